//! The trainable networks: flat parameters, the generator and the critic.

mod critic;
mod generator;
mod parameters;

pub use critic::critic;
pub use generator::{BatchStatistics, generator};
pub use parameters::{Leaves, Parameters, RunningStatistics, moments};
