//! How good a registration is: the exact definitions of science.md section 7.
//!
//! - [`surface_distances`]: MSD, HD95, mean distance to agreement in either direction;
//! - [`dice`] and [`structure_volume`];
//! - [`jacobian`]: volume change and folding of a field;
//! - [`target_registration_error`] on landmarks;
//! - [`distance_transform`], which the surface distances rest on;
//! - [`correlation`]: the global NCC of two images;
//! - [`mean`], [`standard_deviation`], [`percentile`] as numpy defines them.
//!
//! A structure that is absent gives `None`, never 0. Inverse consistency is with the fields, in
//! [`crate::field::inverse_consistency`].

mod correlation;
mod distance;
mod jacobian;
mod landmark_error;
mod overlap;
mod statistics;
mod surface;

pub(crate) use correlation::Moments;
pub use correlation::correlation;
pub use distance::distance_transform;
pub use jacobian::{Jacobian, JacobianStatistics, jacobian};
pub use landmark_error::{TargetRegistrationError, target_registration_error};
pub use overlap::{dice, structure_volume};
pub(crate) use statistics::percentiles;
pub use statistics::{mean, percentile, standard_deviation};
pub use surface::{SurfaceDistances, surface_distances};
