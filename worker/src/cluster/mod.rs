//! A worker of a training cluster: it attaches to a coordinator, takes part in one generation after the other, and survives
//! what happens to the others.
//!
//! Two threads. The one that called [`run`] trains (`session`); it alone touches networks and data. The other (`control`)
//! talks to the coordinator, sends heartbeats, and can break off a collective that waits for a dead peer. Between them
//! lies `status`.
//!
//! Within a generation no step waits for the coordinator. When the membership is to change, a wish to stop travels with
//! a step's own exponents, so that all ranks stop behind the same step; when a rank is lost, the step is undone on the others
//! and made again by the next generation.

mod control;
mod fault;
mod session;
mod status;
mod sync;

pub use fault::{FAULT_VARIABLE, Fault};

use crate::collective::Choice;
use crate::device::Place;
use crate::state::Cursor;
use crate::trainer::{IterationReport, ValidationReport};
use jrs_data::cache::Prepared;
use jrs_protocol::client::ClientOptions;
use jrs_telemetry::interrupt::Interrupt;
use libjrs::model::Model;
use libjrs::{Error, Result};
use std::net::SocketAddr;

/// Opens prepared data at a folder or URL.
pub type OpenData = dyn Fn(&str) -> Result<Prepared>;

/// How a worker is started.
pub struct Options {
    /// Where the coordinator is.
    pub coordinator: ClientOptions,
    /// Name of the run, if only this one will do.
    pub run: Option<String>,
    /// Where the prepared data is, if not where the coordinator says.
    pub data: Option<String>,
    /// Opens it.
    pub open_data: Box<OpenData>,
    /// What computes.
    pub device: Place,
    /// Where the collective listens.
    pub listen: SocketAddr,
    /// What carries gradients between workers.
    pub collective: Choice,
    /// What other workers are told to connect to, if not this machine's address towards the coordinator.
    pub advertise: Option<String>,
    /// Failures to inject, for tests.
    pub faults: Vec<Fault>,
    /// Set when this worker should leave.
    pub interrupt: Interrupt,
}

/// How a worker ended, as an exit code says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The run is finished.
    Finished,
    /// It was asked to leave, and left between two steps.
    Left,
    /// The coordinator does not want it.
    Refused(u8),
}

/// Something in the surroundings failed that may be better next time.
pub const RETRY: u8 = 75;
/// A configuration that cannot work, as `sysexits.h` has it.
pub const BAD_CONFIG: u8 = 78;

impl Exit {
    /// 0, 143, or what the coordinator says.
    pub fn code(self) -> u8 {
        match self {
            Self::Finished => 0,
            Self::Left => 143,
            Self::Refused(code) => code,
        }
    }
}

/// Why a worker could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// Trying again may help: exit code 75.
    #[error(transparent)]
    Retry(Error),
    /// Its device or its NCCL is stuck: exit code 75, however the process can be made to end. Another process may take its place.
    #[error(transparent)]
    Stuck(Error),
    /// Trying again will not help: exit code 78.
    #[error(transparent)]
    BadConfig(Error),
}

impl Failed {
    /// The exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::Retry(_) | Self::Stuck(_) => RETRY,
            Self::BadConfig(_) => BAD_CONFIG,
        }
    }
}

/// Where a run's checkpoints, tables and model are kept. Only rank 0 keeps anything.
pub trait Keeper {
    /// Opens the store that the coordinator names.
    ///
    /// # Errors
    /// If it cannot be used.
    fn open(&mut self, store_url: &str, run: &str) -> Result<()>;
    /// The state of the newest sound checkpoint, or of the one after exactly `step` updates.
    ///
    /// # Errors
    /// If the store fails, or has no such step.
    fn load(&mut self, step: Option<u64>) -> Result<Option<Vec<u8>>>;
    /// From now on this worker keeps the tables; the next row is that of iteration `next`.
    ///
    /// # Errors
    /// If they cannot be written.
    fn lead(&mut self, generation: u64, next: u64) -> Result<()>;
    /// After every generator iteration.
    ///
    /// # Errors
    /// If the tables cannot be written.
    fn iteration(&mut self, report: &IterationReport) -> Result<()>;
    /// After every validation.
    ///
    /// # Errors
    /// If the tables cannot be written.
    fn validated(&mut self, report: &ValidationReport) -> Result<()>;
    /// Begins to save `state`, beside training.
    ///
    /// # Errors
    /// If the checkpoint cannot be begun; training goes on and tries again later.
    fn save(&mut self, cursor: Cursor, state: Vec<u8>) -> Result<()>;
    /// The save that has ended since the last call.
    fn saved(&mut self) -> Option<Saved>;
    /// Waits until the last save is in the store.
    ///
    /// # Errors
    /// If it failed.
    fn settle(&mut self) -> Result<()>;
    /// Stores the finished model.
    ///
    /// # Errors
    /// If the store fails.
    fn keep_model(&mut self, model: &Model) -> Result<()>;
}

/// A checkpoint in the store.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Saved {
    /// Updates it holds.
    pub updates: u64,
    /// Until it was there.
    pub seconds: f64,
    /// Its size.
    pub bytes: u64,
}

/// Works until the run is finished or this worker has to leave.
///
/// # Errors
/// If this worker cannot go on; the exit code is [`Failed::code`].
pub fn run(options: Options, keeper: &mut dyn Keeper) -> Result<Exit, Failed> {
    session::Session::start(options, keeper)?.run()
}
