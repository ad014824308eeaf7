//! `jrs worker`: one worker of a training cluster.

use super::coordinator::Security;
use super::data::Copies;
use super::tables::Tables;
use super::train::STATE;
use crate::failure;
use bytes::Bytes;
use jrs_coordinator::{BackgroundSaver, Manifest, Retention, RunStore};
use jrs_protocol::client::ClientOptions;
use jrs_telemetry::interrupt::Interrupt;
use jrs_worker::cluster::{self, BAD_CONFIG, FAULT_VARIABLE, Failed, Fault, Keeper, Options, Saved};
use jrs_worker::collective::{Choice, Wanted};
use jrs_worker::config::TrainConfig;
use jrs_worker::device::Place;
use jrs_worker::state::Cursor;
use jrs_worker::trainer::{IterationReport, ValidationReport};
use libjrs::model::Model;
use libjrs::{Error, Result};
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Arguments of `jrs worker`.
#[derive(clap::Args)]
#[command(
    after_help = "Exit codes: 0 the run is finished, 75 try again, 78 bad configuration, 143 left after SIGTERM.\n\n\
                        Example:\n  jrs worker --coordinator coordinator:7070 --data cache --token-file token"
)]
pub struct Args {
    /// Where the coordinator is: host:port, or a URL.
    #[arg(long, value_name = "URL")]
    coordinator: String,
    /// Work for this run only; without it, for whatever the coordinator leads.
    #[arg(long, value_name = "NAME")]
    run: Option<String>,
    /// Prepared cache (`jrs prepare`): a folder or a URL. Without it, where the coordinator says.
    #[arg(long, value_name = "URL")]
    data: Option<String>,
    #[command(flatten)]
    copies: Copies,
    /// What computes: cpu, cuda, cuda:1 (and so on), or cube-cpu, the GPU's kernels on the CPU, for tests.
    #[arg(long, value_name = "DEVICE", default_value_t)]
    device: Place,
    /// Where other workers reach this one's collective; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:0")]
    listen: SocketAddr,
    /// What carries gradients between workers: NCCL works between GPUs; auto takes it where all workers have it.
    #[arg(long, value_name = "KIND", default_value = "auto")]
    collective: Kind,
    /// Host, or host:port, that other workers are told, if not this machine's address towards the coordinator.
    #[arg(long, value_name = "HOST")]
    advertise: Option<String>,
    /// Folder for losses.csv and TensorBoard events while this worker is the first; without it none are written.
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
    #[command(flatten)]
    security: Security,
}

/// What carries gradients between workers.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Kind {
    Auto,
    Tcp,
    Nccl,
}

impl From<Kind> for Wanted {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Auto => Self::Auto,
            Kind::Tcp => Self::Tcp,
            Kind::Nccl => Self::Nccl,
        }
    }
}

/// How long a process whose device is stuck may take to end by itself.
const ENDING: Duration = Duration::from_secs(10);

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let faults = match std::env::var(FAULT_VARIABLE) {
        Ok(text) => Fault::parse(&text).map_err(|p| anyhow::anyhow!("{FAULT_VARIABLE}: {p}"))?,
        Err(_) => Vec::new(),
    };
    let (token, tls) = (args.security.token()?, args.security.tls());
    let collective = match Choice::new(args.collective.into(), args.device.gpu()) {
        Ok(collective) => collective,
        Err(fault) => {
            let error = Error::input(
                format!("--collective nccl cannot be used: {fault}"),
                "Take --collective auto, or a GPU with NCCL",
            );
            return Ok(failure::report_as(&error.into(), BAD_CONFIG));
        }
    };
    let options = Options {
        coordinator: ClientOptions { url: args.coordinator, token, tls },
        run: args.run,
        data: args.data,
        open_data: Box::new(move |place| args.copies.open(place)),
        device: args.device,
        listen: args.listen,
        collective,
        advertise: args.advertise,
        faults,
        interrupt: Interrupt::install()?,
    };
    let mut keeper = StoreKeeper { logs: args.logs, ..StoreKeeper::default() };
    match cluster::run(options, &mut keeper) {
        Ok(exit) => Ok(ExitCode::from(exit.code())),
        Err(failed) => {
            let code = failed.code();
            tracing::error!(error = %failed, code, "this worker cannot go on");
            if matches!(failed, Failed::Stuck(_)) {
                end_for_sure();
            }
            Ok(failure::report_as(&failed.into(), code))
        }
    }
}

/// Ends the process even if the libraries of its stuck device do not let it: they run code when a process ends.
fn end_for_sure() {
    std::thread::spawn(|| {
        std::thread::sleep(ENDING);
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    });
}

/// Keeps a run in its store, and its tables in a folder.
#[derive(Default)]
struct StoreKeeper {
    logs: Option<PathBuf>,
    store: Option<Arc<RunStore>>,
    saver: Option<BackgroundSaver>,
    begun: Option<Instant>,
    tables: Option<Tables>,
    generation: u64,
}

impl StoreKeeper {
    fn store(&self) -> &Arc<RunStore> {
        self.store.as_ref().expect("the store is opened before it is used")
    }

    fn saver(&mut self) -> &mut BackgroundSaver {
        self.saver.as_mut().expect("the store is opened before it is used")
    }

    fn describe(&mut self, manifest: &Manifest) -> Saved {
        let seconds = self.begun.map_or(0.0, |begun| begun.elapsed().as_secs_f64());
        let bytes = manifest.objects.iter().map(|object| object.size).sum();
        Saved { updates: manifest.step, seconds, bytes }
    }
}

impl Keeper for StoreKeeper {
    fn open(&mut self, store_url: &str, run: &str) -> Result<()> {
        jrs_telemetry::logging::join_trace(&format!("{store_url}/{run}"));
        let store = Arc::new(RunStore::open(store_url, run).map_err(unusable)?);
        let config = store.config().map_err(unusable)?.unwrap_or_default();
        let checkpoint = TrainConfig::parse(&config)
            .map_err(|problem| Error::input(format!("the run's config: {problem}"), "Use the same version"))?
            .checkpoint;
        let retention =
            Retention::new(checkpoint.keep_last, NonZeroU64::new(checkpoint.keep_every)).map_err(unusable)?;
        self.saver = Some(BackgroundSaver::new(Arc::clone(&store), Some(retention)));
        self.store = Some(store);
        Ok(())
    }

    fn load(&mut self, step: Option<u64>) -> Result<Option<Vec<u8>>> {
        let loaded = match step {
            Some(step) => Some(self.store().load_step(step).map_err(unusable)?),
            None => self.store().load_latest().map_err(unusable)?,
        };
        let Some(loaded) = loaded else { return Ok(None) };
        let (updates, damaged) = (loaded.manifest.step, loaded.skipped.len());
        tracing::info!(updates, damaged, "resuming from a checkpoint");
        Ok(Some(loaded.blob(STATE).map_err(unusable)?.to_vec()))
    }

    fn lead(&mut self, generation: u64, next: u64) -> Result<()> {
        self.generation = generation;
        self.tables = self.logs.as_deref().map(|folder: &Path| Tables::open(folder, next)).transpose()?;
        Ok(())
    }

    fn iteration(&mut self, report: &IterationReport) -> Result<()> {
        self.tables.as_mut().map_or(Ok(()), |tables| tables.iteration(report))
    }

    fn validated(&mut self, report: &ValidationReport) -> Result<()> {
        self.tables.as_mut().map_or(Ok(()), |tables| tables.validated(report))
    }

    fn save(&mut self, cursor: Cursor, state: Vec<u8>) -> Result<()> {
        if self.saver().busy() {
            tracing::warn!(
                updates = cursor.updates,
                "the checkpoint before is still on its way to the store; this one is left out"
            );
            return Ok(());
        }
        let position = serde_json::to_value(cursor).expect("plain numbers always serialise");
        let generation = self.generation;
        self.begun = Some(Instant::now());
        let blobs = vec![(STATE.to_owned(), Bytes::from(state))];
        self.saver().save(cursor.updates, generation, position, blobs).map(|_| ()).map_err(unusable)
    }

    fn saved(&mut self) -> Option<Saved> {
        if self.saver().busy() {
            return None;
        }
        match self.saver().wait() {
            Ok(manifest) => manifest.map(|manifest| self.describe(&manifest)),
            Err(error) => {
                tracing::error!(%error, "a checkpoint was not saved; training goes on and will try again");
                None
            }
        }
    }

    fn settle(&mut self) -> Result<()> {
        self.saver().wait().map(|_| ()).map_err(unusable)
    }

    fn keep_model(&mut self, model: &Model) -> Result<()> {
        self.store().put_result("model.safetensors", Bytes::from(model.to_bytes())).map_err(unusable)
    }
}

/// As a failure of the surroundings, which may be better next time.
fn unusable(error: jrs_coordinator::Error) -> Error {
    Error::io("the run's store", std::io::Error::other(error), "What is in it is untouched")
}
