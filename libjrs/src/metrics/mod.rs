//! How good a registration is (science.md section 7).

mod statistics;

pub(crate) use statistics::percentile_of_sorted;
pub use statistics::{mean, percentile, standard_deviation};
