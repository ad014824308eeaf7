//! What a run shows while it works, and how it is stopped.
//!
//! * [`losses::LossTable`]: every loss of every step as CSV, each step exactly once however often the run resumed.
//! * [`tensorboard::EventWriter`]: the same figures as event files for TensorBoard.
//! * [`progress::Progress`]: bars with the remaining time on a terminal, a log line every half minute elsewhere.
//! * [`logging`]: `tracing` to standard error, for people or as JSON lines.
//! * [`memory`]: the peak memory of this process.
//! * [`interrupt::Interrupt`]: Ctrl-C and SIGTERM as a flag that the training loop reads between steps.

#![forbid(unsafe_code)]

pub mod interrupt;
pub mod logging;
pub mod losses;
pub mod memory;
pub mod progress;
pub mod tensorboard;

/// This machine's name, for people.
pub fn host_name() -> String {
    gethostname::gethostname().to_string_lossy().into_owned()
}
