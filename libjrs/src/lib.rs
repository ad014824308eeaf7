//! The core of JRS-GAN: everything that is needed to *use* a trained network and to judge its result.
//!
//! Conventions (see `ARCHITECTURE.md`): physical space is LPS millimetres; volumes are stored x fastest;
//! a displacement field lives on the **fixed** grid and points from a fixed point to the place in the
//! moving image to read (pull-back): `warped(x) = moving(x + u(x))`.
#![forbid(unsafe_code)]

pub mod align;
mod atomic;
pub mod contour;
pub mod engine;
pub mod error;
pub mod estimate;
pub mod field;
pub mod field_io;
pub mod geometry;
mod gzip;
pub mod landmarks;
pub mod metrics;
pub mod model;
pub mod network;
pub mod nifti;
pub mod preprocess;
pub mod progress;
pub mod provenance;
pub mod qa;
mod reach;
pub mod refine;
pub mod register;
pub mod resample;
pub mod volume;
pub mod working;

pub use error::{Error, Result};
pub use geometry::{Affine, Grid};
pub use volume::{DisplacementField, Volume};
