//! The judgement of what [`crate::register`] returns.

use super::{QaInput, QaLimits, QaReport, assess};
use crate::Result;
use crate::field::resample_field;
use crate::network::MARGIN;
use crate::preprocess::torso_mask;
use crate::register::Registration;
use crate::volume::Volume;

/// Judges a finished registration of `[fixed, moving]` scans, in the fixed torso if one is found. `labels` are the
/// known organs on the fixed and the organs on the moving scan, each optional; `spacing_mm` is the edge of the
/// network's voxels.
///
/// # Errors
/// As [`assess`].
pub fn assess_registration(
    [fixed, moving]: [&Volume<f32>; 2],
    registration: &Registration,
    [fixed_labels, moving_labels]: [Option<&Volume<u8>>; 2],
    spacing_mm: f64,
    limits: &QaLimits,
) -> Result<QaReport> {
    // The field without the affine, on the fixed grid: what the network did.
    let local = resample_field(&registration.network_field, &fixed.grid);
    let body = torso_mask(fixed).ok();
    let input = QaInput {
        fixed,
        moving,
        field: &local,
        affine: Some(&registration.affine),
        total: Some(&registration.field),
        backward: registration.backward.as_ref(),
        body: body.as_ref(),
        moving_labels,
        fixed_labels,
        capture_range_mm: MARGIN as f64 * spacing_mm,
    };
    assess(&input, limits)
}
