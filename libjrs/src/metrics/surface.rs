//! Distances between the surfaces of two structures: MSD, HD95, mean distance to agreement per direction.
//!
//! Definitions of science.md section 7: the surface is the set of voxels of the structure with a
//! face-neighbour that is not of it (inner boundary); distances are between voxel centres, in mm, by the exact
//! distance transform. The edge of the volume is no surface: what was cut off by the field of view has no
//! known border. ITK's `LabelContour`, which the authors use, has the same rule.
//!
//! The authors measure the distance to ITK's `SignedMaurerDistanceMap`, whose zero set is the
//! **26-connected** inner boundary, slightly thicker than the surface it is read at. Their MSD is therefore 2
//! to 5 % lower than this one on small blobs (`tests/reference/metrics_reference.py` prints both); HD95 agrees.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::distance::squared_distances;
use super::overlap::same_size;
use super::statistics::{mean, percentile_of_sorted};
use crate::Result;
use crate::volume::Volume;

/// Surface distances between a reference and another delineation of one structure, all in mm.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SurfaceDistances {
    /// Mean of both directed sets pooled (MSD).
    pub msd: f64,
    /// The larger of the two directed 95th percentiles, linear interpolation (HD95).
    pub hd95: f64,
    /// Maximum over both directions (Hausdorff distance).
    pub hausdorff: f64,
    /// Mean distance from the reference surface to the other.
    pub mean_from_reference: f64,
    /// Mean distance from the other surface to the reference.
    pub mean_to_reference: f64,
}

/// Distances between the surfaces of `label` in `reference` and `other`. `None` if the structure is absent
/// from either map or has no surface (it fills the volume).
///
/// # Errors
/// If the maps differ in size.
pub fn surface_distances(
    reference: &Volume<u8>,
    other: &Volume<u8>,
    label: u8,
) -> Result<Option<SurfaceDistances>> {
    same_size(reference, other)?;
    // Both surfaces lie in the joint box, so every nearest surface voxel does too: the result is that of the
    // whole volume at a fraction of the cost.
    let Some(region) = Region::around(reference, label).joined(Region::around(other, label)) else {
        return Ok(None);
    };
    let (from, to) = (region.surface(reference, label), region.surface(other, label));
    let spacing = reference.grid.spacing;
    let (Some(outward), Some(inward)) =
        (directed(&from, &to, region.size(), spacing), directed(&to, &from, region.size(), spacing))
    else {
        return Ok(None);
    };
    // Same order of summation as the definition: one pooled mean.
    let pooled: f64 = outward.iter().sum::<f64>() + inward.iter().sum::<f64>();
    let (count, last) = (outward.len() + inward.len(), |d: &[f64]| d[d.len() - 1]);
    Ok(Some(SurfaceDistances {
        msd: pooled / count as f64,
        hd95: percentile_of_sorted(&outward, 95.0).max(percentile_of_sorted(&inward, 95.0)),
        hausdorff: last(&outward).max(last(&inward)),
        mean_from_reference: mean(&outward).unwrap_or_default(),
        mean_to_reference: mean(&inward).unwrap_or_default(),
    }))
}

/// Sorted distances from every voxel of surface `from` to the nearest of `to`; `None` if either is empty.
fn directed(from: &[u8], to: &[u8], size: [usize; 3], spacing: [f64; 3]) -> Option<Vec<f64>> {
    if !from.contains(&1) || !to.contains(&1) {
        return None;
    }
    let squared = squared_distances(to, size, spacing);
    let mut distances: Vec<f64> =
        from.iter().zip(squared).filter(|(on, _)| **on == 1).map(|(_, d)| d.sqrt()).collect();
    distances.par_sort_unstable_by(f64::total_cmp);
    Some(distances)
}

/// A box of voxels, `first..=last` per axis.
#[derive(Clone, Copy)]
struct Region {
    first: [usize; 3],
    last: [usize; 3],
}

impl Region {
    /// The smallest box around `label`, if there is any.
    fn around(labels: &Volume<u8>, label: u8) -> Bounds {
        let [nx, ny, nz] = labels.grid.size;
        Bounds(
            (0..nz)
                .into_par_iter()
                .filter_map(|z| {
                    let mut found: Option<Region> = None;
                    for y in 0..ny {
                        let row = &labels.data[labels.grid.index(0, y, z)..][..nx];
                        let Some(first) = row.iter().position(|&l| l == label) else { continue };
                        let last = row.iter().rposition(|&l| l == label).unwrap_or(first);
                        let here = Region { first: [first, y, z], last: [last, y, z] };
                        found = Some(found.map_or(here, |f| f.union(here)));
                    }
                    found
                })
                .reduce_with(Region::union),
        )
    }

    fn union(self, other: Region) -> Region {
        Region {
            first: std::array::from_fn(|a| self.first[a].min(other.first[a])),
            last: std::array::from_fn(|a| self.last[a].max(other.last[a])),
        }
    }

    fn size(&self) -> [usize; 3] {
        std::array::from_fn(|a| self.last[a] - self.first[a] + 1)
    }

    /// 1 on the surface voxels of `label` within the box, x fastest.
    fn surface(&self, labels: &Volume<u8>, label: u8) -> Vec<u8> {
        let grid = &labels.grid;
        let [bx, by, bz] = self.size();
        let stride = [1, grid.size[0], grid.size[0] * grid.size[1]];
        let mut surface = vec![0u8; bx * by * bz];
        surface.par_chunks_mut(bx * by).enumerate().for_each(|(z, slice)| {
            for (i, on) in slice.iter_mut().enumerate() {
                let at = [self.first[0] + i % bx, self.first[1] + i / bx, self.first[2] + z];
                let index = grid.index(at[0], at[1], at[2]);
                let is_border = (0..3).any(|a| {
                    (at[a] > 0 && labels.data[index - stride[a]] != label)
                        || (at[a] + 1 < grid.size[a] && labels.data[index + stride[a]] != label)
                });
                *on = u8::from(labels.data[index] == label && is_border);
            }
        });
        surface
    }
}

/// The box of a structure that may be absent.
struct Bounds(Option<Region>);

impl Bounds {
    fn joined(self, other: Bounds) -> Option<Region> {
        Some(self.0?.union(other.0?))
    }
}
