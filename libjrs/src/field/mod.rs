//! Using a displacement field: sampling, warping, composing, resampling, inverting.
//!
//! Everything follows one convention: `u` is on the fixed grid in LPS mm, and the total transform from
//! a fixed to a moving point is `T(x) = affine(x + u(x))` (without an affine, `x + u(x)`).
//!
//! What counts as inside a grid is ITK's rule, so that results agree with SimpleITK: a point is inside up
//! to half a voxel beyond the outer voxel centres, and there the outermost value is used.
//! Grids must not be empty (the readers refuse such files).

mod compose;
mod inverse;
pub(crate) mod trilinear;
mod warp;

pub(crate) use compose::field_on;
pub use compose::{compose_with_affine, resample_field};
pub use inverse::{InverseConsistency, InversePoint, TOLERANCE_MM, inverse_consistency, invert_points};
pub(crate) use warp::heaviest_label;
pub use warp::{map_point, out_of_field, sample, sample_clamped, warp_image, warp_labels};
