//! Data for training and evaluation.

pub mod cache;
pub mod contours;
pub mod dataset;
pub mod prepare;
pub mod random;
pub mod sampling;
pub mod source;
pub mod theta;
