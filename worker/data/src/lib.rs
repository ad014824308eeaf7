//! Data for training and evaluation.

pub mod cache;
pub mod dataset;
pub mod prepare;
pub mod random;
pub mod sampling;
pub mod source;
