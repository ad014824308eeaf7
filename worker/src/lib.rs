//! Training of JRS-GAN (Elmahdy et al., MICCAI 2019).
//!
//! Read [`gan`] for the paper's step, [`losses`] for its equations and [`trainer`] for the schedule around them.
#![forbid(unsafe_code)]

pub mod batch;
pub mod cluster;
pub mod collective;
pub mod config;
pub mod device;
mod feed;
pub mod gan;
mod gradients;
pub mod losses;
pub mod nets;
pub mod ops;
pub mod optimizer;
pub mod state;
pub mod step;
pub mod trainer;
pub mod validation;

pub use jrs_data::{contours, theta};
