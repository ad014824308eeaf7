//! One module per command.

pub mod model;
pub mod phantom;
pub mod plan;
pub mod train;

use jrs_telemetry::progress::{Phase, Progress};

/// A progress bar (or plain log lines where there is no terminal) for `total` parts of `name`.
fn phase(name: &str, total: u64) -> Phase {
    Progress::detect().phase(name, total)
}
