//! A judgement of one registration: figures, and OK / REVIEW / REJECT with the reasons.
//!
//! [`assess`] works from what a clinic has (images, field, contours); reference contours and the backward field
//! are optional and add figures. What is not given is `None` in the report (`null` in the JSON). "Before" is
//! always the pre-alignment alone (`affine`, or nothing), so that the figures say what the **field** does.

mod limits;
mod registration;

pub use limits::{Check, QaLimits, Status};
pub use registration::assess_registration;

use std::borrow::Cow;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::field::trilinear::{Cell, IndexMap};
use crate::field::{self, InverseConsistency, compose_with_affine, warp_labels};
use crate::geometry::Affine;
use crate::metrics::{
    self, JacobianStatistics, Moments, SurfaceDistances, dice, percentiles, structure_volume,
    surface_distances,
};
use crate::resample::resample_labels;
use crate::volume::{DisplacementField, Volume, first_not_finite};
use crate::{Error, Result};

/// Organ names by label id (1..=5), as in science.md section 1.
const ORGANS: [&str; 5] = ["prostate", "seminal vesicles", "lymph nodes", "rectum", "bladder"];

/// What there is to judge.
#[derive(Debug, Clone, Copy)]
pub struct QaInput<'a> {
    /// Fixed image, HU.
    pub fixed: &'a Volume<f32>,
    /// Moving image, HU.
    pub moving: &'a Volume<f32>,
    /// The field on the fixed grid, mm.
    pub field: &'a DisplacementField,
    /// The pre-alignment the field was found after: `T(x) = affine(x + u(x))`.
    pub affine: Option<&'a Affine>,
    /// [`compose_with_affine`] of the two, where it is at hand; made where it is needed and not given.
    pub total: Option<&'a DisplacementField>,
    /// The **total** field from moving to fixed, on the moving grid or a part of it, for inverse consistency.
    pub backward: Option<&'a DisplacementField>,
    /// The patient (not 0) on the fixed grid; without it every voxel counts as body.
    pub body: Option<&'a Volume<u8>>,
    /// Organs on the moving grid, which are propagated.
    pub moving_labels: Option<&'a Volume<u8>>,
    /// Reference organs on the fixed grid, for overlap and surface distances.
    pub fixed_labels: Option<&'a Volume<u8>>,
    /// Largest displacement per axis the network can see, mm.
    pub capture_range_mm: f64,
}

/// The judgement of one registration. Shares go from 0 to 1; lengths are mm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QaReport {
    /// The verdict.
    pub status: Status,
    /// Why it is not OK, one sentence each; empty if it is.
    pub reasons: Vec<String>,
    /// Length of the displacement in the body.
    pub displacement: DisplacementFigures,
    /// Jacobian determinant in the body; `None` if the body has no voxel off the border.
    pub jacobian: Option<JacobianStatistics>,
    /// How well backward undoes forward, in the body.
    pub inverse_consistency: Option<InverseConsistency>,
    /// Global NCC of fixed and moving in the body, pre-alignment only.
    pub ncc_before: Option<f64>,
    /// The same through the field.
    pub ncc_after: Option<f64>,
    /// Share of the body that is sent outside the moving image.
    pub out_of_field: f64,
    /// One entry per organ that is in either label map, by label id.
    pub organs: Vec<OrganFigures>,
    /// The limits that were applied.
    pub limits: QaLimits,
}

/// Statistics of |u|.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DisplacementFigures {
    /// Mean.
    pub mean_mm: f64,
    /// 95th percentile.
    pub p95_mm: f64,
    /// Maximum.
    pub max_mm: f64,
    /// Share of voxels with a component beyond the capture range.
    pub beyond_capture_range: f64,
}

/// One organ.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrganFigures {
    /// Label id.
    pub label: u8,
    /// Name (science.md section 1), or `label N`.
    pub name: String,
    /// Jacobian in the organ: in the reference contour if there is one, else in the propagated one.
    pub jacobian: Option<JacobianStatistics>,
    /// Volume after propagation divided by the volume in the moving image; 0 if the organ was lost.
    pub volume_ratio: Option<f64>,
    /// Agreement with the reference, pre-alignment only.
    pub before: Option<Agreement>,
    /// The same through the field.
    pub after: Option<Agreement>,
}

/// Overlap and surface distances of a propagated organ and its reference.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// Dice coefficient.
    pub dice: f64,
    /// MSD, HD95 and the rest, mm; `None` if one of the two has no surface (it fills the volume).
    pub surface: Option<SurfaceDistances>,
}

impl QaReport {
    /// Every judged figure beside its limit.
    pub fn checks(&self) -> Vec<Check> {
        self.limits.checks(self)
    }

    /// The report as indented JSON.
    pub fn to_json(&self) -> String {
        // Cannot fail: no maps with other keys than text, and no writer that could.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

/// Computes the figures and judges them by `limits`.
///
/// # Errors
/// If the inputs are not on the grids they should be on, the body is empty, or the field holds NaN or infinity.
pub fn assess(input: &QaInput, limits: &QaLimits) -> Result<QaReport> {
    check(input)?;
    let QaInput { field, affine, .. } = *input;
    let body = Sweep::over(input);
    let nobody = || Error::input("the body mask is empty", "Give a mask of the patient, or none");
    let [p95_mm, max_mm] = percentiles(&body.lengths, [95.0, 100.0]).ok_or_else(nobody)?;
    let voxels = body.voxels as f64;

    let jacobian = metrics::jacobian(field);
    let inverse_consistency = match input.backward {
        None => None,
        Some(backward) => {
            let total = match (input.total, affine) {
                (Some(total), _) => Cow::Borrowed(total),
                (None, Some(affine)) => Cow::Owned(compose_with_affine(field, affine)),
                (None, None) => Cow::Borrowed(field),
            };
            field::inverse_consistency(&total, backward, input.body)?
        }
    };
    let mut report = QaReport {
        status: Status::Ok,
        reasons: Vec::new(),
        displacement: DisplacementFigures {
            mean_mm: body.length_sum / voxels,
            p95_mm,
            max_mm,
            beyond_capture_range: body.beyond as f64 / voxels,
        },
        jacobian: jacobian.statistics(|i| input.in_body(i)),
        inverse_consistency,
        ncc_before: body.before.correlation(),
        ncc_after: body.after.correlation(),
        out_of_field: body.lost as f64 / voxels,
        organs: organ_figures(input, &jacobian)?,
        limits: limits.clone(),
    };
    (report.status, report.reasons) = limits.judge(&report);
    Ok(report)
}

impl QaInput<'_> {
    #[inline]
    fn in_body(&self, voxel: usize) -> bool {
        self.body.is_none_or(|body| body.data[voxel] != 0)
    }
}

/// What one pass over the body gives.
#[derive(Default)]
struct Sweep {
    voxels: usize,
    /// |u|, slice by slice, mm.
    lengths: Vec<Vec<f32>>,
    length_sum: f64,
    /// Voxels with a component beyond the capture range.
    beyond: usize,
    /// Voxels sent outside the moving image.
    lost: usize,
    /// Fixed and moving values, where the pre-alignment leads into the moving image.
    before: Moments,
    /// The same through the field.
    after: Moments,
}

impl Sweep {
    fn over(input: &QaInput) -> Self {
        let map = IndexMap::new(&input.fixed.grid, input.affine, &input.moving.grid);
        let nz = input.fixed.grid.size[2];
        let slices: Vec<Sweep> = (0..nz).into_par_iter().map(|z| Self::slice(input, &map, z)).collect();
        slices.into_iter().fold(Self::default(), |mut all, slice| {
            all.lengths.extend(slice.lengths);
            Self {
                voxels: all.voxels + slice.voxels,
                lengths: all.lengths,
                length_sum: all.length_sum + slice.length_sum,
                beyond: all.beyond + slice.beyond,
                lost: all.lost + slice.lost,
                before: all.before.joined(&slice.before),
                after: all.after.joined(&slice.after),
            }
        })
    }

    fn slice(input: &QaInput, map: &IndexMap, z: usize) -> Self {
        let QaInput { fixed, moving, field, .. } = *input;
        let (mut sweep, mut lengths) = (Self::default(), Vec::new());
        let [nx, ny, _] = fixed.grid.size;
        for y in 0..ny {
            let (row, first) = (map.row(y, z), fixed.grid.index(0, y, z));
            for x in (0..nx).filter(|x| input.in_body(first + x)) {
                let u = field.at(first + x);
                let length = u.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
                lengths.push(length as f32);
                sweep.length_sum += length;
                let largest = u.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                sweep.beyond += usize::from(f64::from(largest) > input.capture_range_mm);
                let value = f64::from(fixed.data[first + x]);
                if let Some(cell) = Cell::inside(moving.grid.size, row.at(x)) {
                    sweep.before.add(value, cell.interpolate(&moving.data));
                }
                match Cell::inside(moving.grid.size, row.moved(x, u)) {
                    Some(cell) => sweep.after.add(value, cell.interpolate(&moving.data)),
                    None => sweep.lost += 1,
                }
            }
        }
        sweep.voxels = lengths.len();
        sweep.lengths.push(lengths);
        sweep
    }
}

fn check(input: &QaInput) -> Result<()> {
    let same = |what: &str, size: [usize; 3], where_: &str, expected: [usize; 3]| {
        if size == expected {
            return Ok(());
        }
        Err(Error::input(
            format!("{what} has {size:?} voxels and the {where_} image {expected:?}"),
            format!("Give {what} on the grid of the {where_} image"),
        ))
    };
    let (fixed, moving) = (input.fixed.grid.size, input.moving.grid.size);
    same("the field", input.field.grid.size, "fixed", fixed)?;
    if let Some(body) = input.body {
        same("the body mask", body.grid.size, "fixed", fixed)?;
    }
    if let Some(labels) = input.fixed_labels {
        same("the reference label map", labels.grid.size, "fixed", fixed)?;
    }
    if let Some(labels) = input.moving_labels {
        same("the moving label map", labels.grid.size, "moving", moving)?;
    }
    if let Some(total) = input.total {
        same("the total field", total.grid.size, "fixed", fixed)?;
    }
    for field in [Some(input.field), input.backward].into_iter().flatten() {
        let bad = |u: &Vec<f32>| first_not_finite(u).map(|i| u[i]);
        if let Some(bad) = field.u.iter().find_map(bad) {
            return Err(Error::input(
                format!("the displacement field holds {bad}"),
                "Register again; a field must be finite everywhere",
            ));
        }
    }
    Ok(())
}

fn organ_figures(input: &QaInput, jacobian: &metrics::Jacobian) -> Result<Vec<OrganFigures>> {
    let before = input.moving_labels.map(|labels| resample_labels(labels, &input.fixed.grid, input.affine));
    let after = input.moving_labels.map(|labels| warp_labels(labels, input.field, input.affine));
    let mut present = [false; 256];
    for labels in [input.moving_labels, input.fixed_labels].into_iter().flatten() {
        labels.data.iter().for_each(|&l| present[usize::from(l)] = true);
    }
    let agreement = |propagated: &Option<Volume<u8>>, label: u8| -> Result<Option<Agreement>> {
        let (Some(reference), Some(propagated)) = (input.fixed_labels, propagated) else { return Ok(None) };
        let Some(dice) = dice(reference, propagated, label)? else { return Ok(None) };
        Ok(Some(Agreement { dice, surface: surface_distances(reference, propagated, label)? }))
    };
    (1..=255u8)
        .filter(|&label| present[usize::from(label)])
        .map(|label| {
            let region = input.fixed_labels.filter(|l| l.data.contains(&label)).or(after.as_ref());
            let original = input.moving_labels.and_then(|labels| structure_volume(labels, label));
            let propagated = after.as_ref().and_then(|labels| structure_volume(labels, label));
            Ok(OrganFigures {
                label,
                name: ORGANS
                    .get(usize::from(label) - 1)
                    .map_or_else(|| format!("label {label}"), |name| (*name).to_owned()),
                jacobian: region.and_then(|r| jacobian.statistics(|i| r.data[i] == label)),
                volume_ratio: original.map(|v| propagated.unwrap_or(0.0) / v),
                before: agreement(&before, label)?,
                after: agreement(&after, label)?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::{Grid, distance};

    struct Scene {
        fixed: Volume<f32>,
        moving: Volume<f32>,
        fixed_labels: Volume<u8>,
        moving_labels: Volume<u8>,
        field: DisplacementField,
        backward: DisplacementField,
    }

    /// A ball (bladder) that moved by 4 mm along x, and the field that finds it.
    fn scene() -> Scene {
        let grid = Grid::axis_aligned([30, 24, 24], [1.0; 3], [0.0; 3]);
        let ball = |cx: f64| {
            let inside: Vec<bool> = (0..grid.len())
                .map(|i| {
                    let p = [i % 30, i / 30 % 24, i / 720].map(|v| v as f64);
                    distance(p, [cx, 12.0, 12.0]) < 6.0
                })
                .collect();
            let image = inside.iter().map(|&b| if b { 60.0 } else { -20.0 }).collect();
            let labels = inside.iter().map(|&b| if b { 5 } else { 0 }).collect();
            (Volume::new(grid.clone(), image), Volume::new(grid.clone(), labels))
        };
        let ((fixed, fixed_labels), (moving, moving_labels)) = (ball(12.0), ball(16.0));
        let mut field = DisplacementField::zero(grid.clone());
        field.u[0].fill(4.0);
        let mut backward = DisplacementField::zero(grid.clone());
        backward.u[0].fill(-4.0);
        Scene { fixed, moving, fixed_labels, moving_labels, field, backward }
    }

    fn input(s: &Scene) -> QaInput<'_> {
        QaInput {
            fixed: &s.fixed,
            moving: &s.moving,
            field: &s.field,
            affine: None,
            total: None,
            backward: Some(&s.backward),
            body: None,
            moving_labels: Some(&s.moving_labels),
            fixed_labels: Some(&s.fixed_labels),
            capture_range_mm: 20.0,
        }
    }

    #[test]
    fn a_good_registration_is_ok() {
        let s = scene();
        let limits = QaLimits { out_of_field_review: 0.2, ..QaLimits::default() };
        let report = assess(&input(&s), &limits).unwrap();
        assert_eq!((report.status, &report.reasons[..]), (Status::Ok, &[][..]));
        assert_eq!(report.displacement.mean_mm, 4.0);
        assert_eq!(report.displacement.beyond_capture_range, 0.0);
        assert!((report.out_of_field - 4.0 / 30.0).abs() < 1e-12, "x = 26..30 leaves the image");
        assert!(report.ncc_before.unwrap() < 0.6 && report.ncc_after.unwrap() > 0.999999);
        assert!(report.inverse_consistency.unwrap().max_mm < 1e-6);
        let [bladder] = &report.organs[..] else { panic!("{:?}", report.organs) };
        assert_eq!((bladder.label, &bladder.name[..], bladder.volume_ratio), (5, "bladder", Some(1.0)));
        assert_eq!(bladder.after.unwrap().dice, 1.0);
        assert_eq!(bladder.after.unwrap().surface.unwrap().msd, 0.0);
        assert!(bladder.before.unwrap().dice < 0.7 && bladder.before.unwrap().surface.unwrap().hd95 > 3.0);
        assert_eq!(bladder.jacobian.unwrap().folded, 0.0);
    }

    #[test]
    fn the_report_survives_json() {
        let s = scene();
        let report = assess(&input(&s), &QaLimits::default()).unwrap();
        assert!(report.to_json().contains("\"REVIEW\""), "13 % of the field of view is cut");
        assert_eq!(serde_json::from_str::<QaReport>(&report.to_json()).unwrap(), report);
    }

    #[test]
    fn without_labels_and_backward_there_are_gaps_not_zeros() {
        let s = scene();
        let bare = QaInput { backward: None, moving_labels: None, fixed_labels: None, ..input(&s) };
        let report = assess(&bare, &QaLimits::default()).unwrap();
        assert_eq!(report.inverse_consistency, None);
        assert!(report.organs.is_empty());
    }

    #[test]
    fn folding_a_lost_organ_and_worse_images_are_named() {
        let mut s = scene();
        for i in 0..s.field.grid.len() {
            s.field.u[0][i] = -3.0 * (i % 30) as f32;
        }
        let report = assess(&QaInput { backward: None, ..input(&s) }, &QaLimits::default()).unwrap();
        assert_eq!(report.status, Status::Reject);
        let reasons = report.reasons.join("\n");
        for words in ["folds", "bladder", "capture range", "outside the moving image"] {
            assert!(reasons.contains(words), "{words}: {reasons}");
        }
        assert_eq!(report.organs[0].volume_ratio, Some(0.0));
    }

    #[test]
    fn unusable_inputs_are_refused() {
        let mut s = scene();
        let small = Volume::filled(Grid::axis_aligned([3; 3], [1.0; 3], [0.0; 3]), 1u8);
        let wrong = assess(&QaInput { body: Some(&small), ..input(&s) }, &QaLimits::default());
        assert!(wrong.unwrap_err().to_string().contains("body mask"));
        let nobody = Volume::filled(s.fixed.grid.clone(), 0u8);
        assert!(assess(&QaInput { body: Some(&nobody), ..input(&s) }, &QaLimits::default()).is_err());
        s.field.u[1][7] = f32::NAN;
        assert!(assess(&input(&s), &QaLimits::default()).unwrap_err().to_string().contains("NaN"));
    }
}
