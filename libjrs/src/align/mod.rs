//! Rigid or affine alignment of two CT scans, the step before the network.
//!
//! Robust intensity registration from coarse to fine: the weighted squared difference of clipped HU inside the
//! fixed torso is minimised by Levenberg-Marquardt. The coarse level sees the outline of the body; the finer ones
//! clip everything below fat away, so that bone, which does not deform, decides about the pose. A Cauchy weight
//! per voxel lets moving gas, bladder and couch disagree without pulling.

mod files;
mod level;
mod solve;

pub use files::{read_affine, write_affine};

use serde::{Deserialize, Serialize};

use crate::geometry::{Affine, Grid, IDENTITY, Point};
use crate::preprocess::torso_mask;
use crate::resample::{resample_nearest, shrink};
use crate::volume::Volume;
use crate::{Error, Result};
use level::Level;
use solve::{Motion, refine};

/// How many degrees of freedom the alignment has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Rotation and translation: 6.
    Rigid,
    /// Any linear map and translation: 12; found after the rigid one.
    Affine,
}

/// What [`align`] may be told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AlignOptions {
    /// Degrees of freedom.
    pub kind: Kind,
    /// Most steps per resolution level.
    pub max_steps: usize,
}

impl Default for AlignOptions {
    fn default() -> Self {
        Self { kind: Kind::Rigid, max_steps: 30 }
    }
}

/// What [`align`] found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Alignment {
    /// Fixed points to moving points.
    pub affine: Affine,
    /// Normalised cross-correlation of the clipped images inside the fixed torso with the scans as they lie in
    /// space, -1..1; 0 if they do not overlap there.
    pub similarity_before: f64,
    /// The same after alignment.
    pub similarity_after: f64,
    /// Median absolute difference of the clipped images inside the fixed torso after alignment, HU.
    pub residual_hu: f64,
    /// Share of the fixed torso that falls inside the moving image after alignment, 0..1.
    pub overlap: f64,
}

/// One resolution: voxel size (mm) and the HU window outside which values are clipped.
struct Resolution {
    mm: f64,
    window: [f32; 2],
}

/// Coarse to fine. Fat is near -100 HU and muscle near 40: a window from -50 up hides skin and fat.
const RESOLUTIONS: [Resolution; 3] = [
    Resolution { mm: 8.0, window: [-400.0, 400.0] },
    Resolution { mm: 4.0, window: [-50.0, 500.0] },
    Resolution { mm: 2.0, window: [-50.0, 500.0] },
];
/// Least share of the fixed torso that must fall inside the moving image.
const LEAST_OVERLAP: f64 = 0.2;

/// Finds the map from fixed to moving points between two CT scans in HU.
///
/// Several starts (the scans as they lie, torso centres of mass, image centres) are tried at the coarsest level and
/// the best one refined. The same input gives the same result for any number of threads.
///
/// # Errors
/// If a scan shows no torso, or the scans cannot be brought to overlap.
pub fn align(fixed: &Volume<f32>, moving: &Volume<f32>, options: &AlignOptions) -> Result<Alignment> {
    let in_role = |role: &str, e: Error| {
        Error::input(format!("the {role} scan cannot be aligned: {e}"), "or give the affine yourself")
    };
    let (fixed_centre, mask) = torso(fixed).map_err(|e| in_role("fixed", e))?;
    let (moving_centre, _) = torso(moving).map_err(|e| in_role("moving", e))?;

    let levels: Vec<Level> =
        RESOLUTIONS.iter().map(|r| Level::new(fixed, moving, &mask, r.mm, r.window)).collect();
    let (coarse, finer) = levels.split_first().expect("RESOLUTIONS is not empty");

    let towards = |from: Point, to: Point| Motion {
        matrix: IDENTITY,
        centre: fixed_centre,
        translation: std::array::from_fn(|a| to[a] - from[a]),
    };
    let starts = [
        towards(fixed_centre, moving_centre),
        towards(fixed_centre, fixed_centre),
        towards(image_centre(&fixed.grid), image_centre(&moving.grid)),
    ];
    let best = starts
        .into_iter()
        .filter_map(|start| refine(coarse, start, Kind::Rigid, options.max_steps))
        .min_by(|a, b| a.cost.total_cmp(&b.cost))
        .ok_or_else(no_overlap)?;
    let mut motion = best.motion;
    for level in finer {
        motion = refine(level, motion, Kind::Rigid, options.max_steps).ok_or_else(no_overlap)?.motion;
    }
    if options.kind == Kind::Affine {
        for level in finer {
            motion = refine(level, motion, Kind::Affine, options.max_steps).ok_or_else(no_overlap)?.motion;
        }
    }

    let affine = motion.affine();
    let last = finer.last().unwrap_or(coarse);
    let after = last.agreement(&affine);
    if after.overlap < LEAST_OVERLAP {
        return Err(no_overlap());
    }
    let before = last.agreement(&Affine::IDENTITY);
    if after.ncc < before.ncc {
        tracing::warn!(
            before = before.ncc,
            after = after.ncc,
            "alignment lowered the similarity of the scans"
        );
    }
    Ok(Alignment {
        affine,
        similarity_before: before.ncc,
        similarity_after: after.ncc,
        residual_hu: after.median_difference,
        overlap: after.overlap,
    })
}

/// What [`align`] computes on scans of these grids, in samples that it looks at: it reads every voxel once per resolution, and
/// each of the steps, of which it usually needs [`USUAL_STEPS`] per start, looks at all samples.
pub(crate) fn work([fixed, moving]: [&Grid; 2], options: &AlignOptions) -> f64 {
    let of_level = |n: usize, r: &Resolution| {
        let shrunk: usize =
            level::factor(fixed, r.mm).iter().zip(fixed.size).map(|(f, n)| n.div_ceil(*f)).product();
        let runs = match (n, options.kind) {
            (0, _) => 3.0,
            (_, Kind::Rigid) => 1.0,
            (_, Kind::Affine) => 2.0,
        };
        let read = (fixed.len() + moving.len()) as f64 / VOXELS_PER_SAMPLE;
        read + runs * USUAL_STEPS * shrunk.min(level::MOST_SAMPLES) as f64
    };
    RESOLUTIONS.iter().enumerate().map(|(n, r)| of_level(n, r)).sum()
}

/// Steps until a level ends, roughly.
const USUAL_STEPS: f64 = 8.0;
/// Voxels that are clipped and shrunk in the time of one sample's part in the normal equations, roughly.
const VOXELS_PER_SAMPLE: f64 = 10.0;

fn no_overlap() -> Error {
    Error::input(
        format!("the scans cannot be brought to overlap on {:.0} % of the torso", 100.0 * LEAST_OVERLAP),
        "check that both show the same region of the same patient, or give the affine yourself",
    )
}

/// Torso mask on voxels of about 4 mm, and its centre of mass (mm).
fn torso(image: &Volume<f32>) -> Result<(Point, Volume<u8>)> {
    let small = shrink(image, level::factor(&image.grid, 4.0), |v| v);
    let mask = torso_mask(&small)?;
    let [nx, ny, _] = mask.grid.size;
    let (mut sum, mut count) = ([0.0; 3], 0.0);
    for (i, _) in mask.data.iter().enumerate().filter(|(_, m)| **m != 0) {
        let index = [i % nx, i / nx % ny, i / (nx * ny)];
        (0..3).for_each(|a| sum[a] += index[a] as f64);
        count += 1.0;
    }
    Ok((mask.grid.to_physical(sum.map(|s| s / count)), mask))
}

fn image_centre(grid: &Grid) -> Point {
    grid.to_physical(grid.size.map(|n| (n as f64 - 1.0) / 2.0))
}

/// The mask on another grid: nearest, nothing outside.
fn mask_on(mask: &Volume<u8>, grid: &Grid) -> Volume<u8> {
    resample_nearest(mask, grid, None, 0)
}

#[cfg(test)]
mod tests;
