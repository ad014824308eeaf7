//! `jrs train`: one run on this machine, with progress, loss tables and checkpoints.

use super::data::Copies;
use super::tables::Tables;
use super::{local_cluster, phase};
use anyhow::Context;
use bytes::Bytes;
use jrs_coordinator::{BackgroundSaver, Retention, RunStore, Start, Started};
use jrs_telemetry::interrupt::Interrupt;
use jrs_telemetry::progress::Phase;
use jrs_worker::config::TrainConfig;
use jrs_worker::device::Place;
use jrs_worker::state::Cursor;
use jrs_worker::trainer::{IterationReport, Observer, Outcome, Trainer, ValidationReport};
use libjrs::Error;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Name of a checkpoint's only object.
pub const STATE: &str = "state.safetensors";

/// Arguments of `jrs train`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  jrs train --config run.toml --data cache --out runs\n  \
                        jrs train --config run.toml --data cache --out runs --resume\n  \
                        jrs train --config run.toml --data s3://bucket/cache --out s3://bucket --workers 2")]
pub struct Args {
    /// The run's TOML file.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Prepared cache (`jrs prepare`): a folder or a URL.
    #[arg(long, value_name = "URL")]
    pub data: String,
    /// Where copies of remote data are kept.
    #[command(flatten)]
    pub copies: Copies,
    /// Object store for checkpoints: a folder or a URL.
    #[arg(long, value_name = "URL")]
    pub out: String,
    /// Name of the run inside the store.
    #[arg(long, default_value = "default")]
    pub run: String,
    /// Continue from the newest valid checkpoint, or from the one after this many updates; the latter never
    /// falls back to another.
    #[arg(long, value_name = "UPDATES", num_args = 0..=1, default_missing_value = "latest")]
    pub resume: Option<String>,
    /// Folder for losses.csv, TensorBoard events and the model; by default `<out>/runs/<run>` if that is local.
    #[arg(long, value_name = "DIR")]
    pub logs: Option<PathBuf>,
    /// What computes: cpu, cuda, cuda:1 (and so on), or cube-cpu, the GPU's kernels on the CPU, for tests. A run may go on on
    /// another device than it was started on.
    #[arg(long, value_name = "DEVICE", default_value_t)]
    pub device: Place,
    /// Train with this many worker processes and a coordinator. The model does not depend on the number.
    #[arg(long, value_name = "N", conflicts_with = "stop_after")]
    pub workers: Option<NonZeroUsize>,
    /// Stop, with the state saved, after this many iterations in all: for trying out interruptions.
    #[arg(long, value_name = "N")]
    pub stop_after: Option<u64>,
    /// End with one JSON line.
    #[arg(long)]
    pub json: bool,
    /// What the progress bar says, if not the system's name.
    #[arg(skip)]
    pub title: Option<String>,
}

/// What a finished or interrupted run says.
#[derive(Debug, serde::Serialize)]
pub struct Summary {
    /// Name of the run.
    pub run: String,
    /// Generator iterations done.
    pub steps: u64,
    /// The model file.
    pub model: PathBuf,
    /// SHA-256 of the model file.
    pub model_sha256: String,
    /// `finished`, `early stop` or `interrupted`.
    pub outcome: &'static str,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::install()?;
    let summary = train(args, &interrupt)?;
    if args.json {
        println!("{}", serde_json::to_string(&summary)?);
    } else {
        println!("{} after {} iterations: {}", summary.outcome, summary.steps, summary.model.display());
    }
    Ok(interrupt.exit_code().map_or(ExitCode::SUCCESS, ExitCode::from))
}

/// Trains as `args` say until the end or an interruption.
pub fn train(args: &Args, interrupt: &Interrupt) -> anyhow::Result<Summary> {
    let logs = logs_folder(args)?;
    std::fs::create_dir_all(&logs)
        .map_err(|e| Error::io(&logs, e, "Give --logs a folder that can be written"))?;
    if let Some(workers) = args.workers {
        return local_cluster::train(args, workers, &logs, interrupt);
    }
    let config = TrainConfig::load(&args.config)?;
    let prepared = args.copies.open(&args.data)?;
    let device = jrs_worker::device::open(args.device)?;
    let store = Arc::new(RunStore::open(&args.out, &args.run)?);

    let digest = prepared.digest.clone();
    let start = if args.resume.is_some() { Start::Resume } else { Start::New };
    let started = store.start_run(&config.to_toml(), &digest, start)?;
    let mut trainer = Trainer::new(&config, prepared, device)?;
    if started == Started::Resumed {
        restore(&store, args.resume.as_deref(), &mut trainer)?;
    }
    let cursor = trainer.cursor();
    tracing::info!(run = args.run, iteration = cursor.iteration, system = config.system.name(), device = %args.device, "training");

    let mut monitor = Monitor::new(&config, args, store, &logs, cursor, interrupt)?;
    let outcome = trainer.run(&mut monitor)?;
    monitor.finish()?;
    let model = trainer.model();
    let path = logs.join("model.safetensors");
    model.save(&path)?;
    Ok(Summary {
        run: args.run.clone(),
        steps: trainer.cursor().iteration,
        model_sha256: model.sha256(),
        model: path,
        outcome: match outcome {
            Outcome::Finished => "finished",
            Outcome::EarlyStop => "early stop",
            Outcome::Interrupted => "interrupted",
        },
    })
}

fn logs_folder(args: &Args) -> anyhow::Result<PathBuf> {
    match &args.logs {
        Some(folder) => Ok(folder.clone()),
        None if !args.out.contains("://") => Ok(Path::new(&args.out).join("runs").join(&args.run)),
        None => match args.out.strip_prefix("file://") {
            Some(folder) => Ok(Path::new(folder).join("runs").join(&args.run)),
            None => anyhow::bail!(
                "{} is not a local folder. Give --logs DIR for the loss tables and the model",
                args.out
            ),
        },
    }
}

fn restore(store: &RunStore, which: Option<&str>, trainer: &mut Trainer) -> anyhow::Result<()> {
    let loaded = match which {
        None | Some("latest") => store.load_latest()?,
        Some(step) => {
            let step = step.parse().with_context(|| format!("--resume {step} is no number of updates"))?;
            Some(store.load_step(step)?)
        }
    };
    match loaded {
        Some(loaded) => {
            let (updates, damaged) = (loaded.manifest.step, loaded.skipped.len());
            tracing::info!(updates, damaged, "resuming from a checkpoint");
            trainer.restore(loaded.blob(STATE)?).map_err(Into::into)
        }
        None => {
            tracing::warn!("the run has no checkpoint yet; it starts from the beginning");
            Ok(())
        }
    }
}

/// Shows, records and stores what the trainer reports.
struct Monitor<'a> {
    bar: Phase,
    tables: Tables,
    saver: BackgroundSaver,
    interrupt: &'a Interrupt,
    stop_after: Option<u64>,
    iteration: u64,
    adversarial: bool,
}

impl<'a> Monitor<'a> {
    fn new(
        config: &TrainConfig,
        args: &Args,
        store: Arc<RunStore>,
        logs: &Path,
        cursor: Cursor,
        interrupt: &'a Interrupt,
    ) -> anyhow::Result<Self> {
        let title = args.title.clone().unwrap_or_else(|| format!("train {}", config.system.name()));
        let bar = phase(&title, config.iterations);
        bar.resume_at(cursor.iteration);
        // Rows are numbered by iterations done, so the next row has the number after the cursor's.
        let next = cursor.iteration + 1;
        let retention =
            Retention::new(config.checkpoint.keep_last, NonZeroU64::new(config.checkpoint.keep_every))?;
        Ok(Self {
            bar,
            tables: Tables::open(logs, next)?,
            saver: BackgroundSaver::new(store, Some(retention)),
            interrupt,
            stop_after: args.stop_after,
            iteration: cursor.iteration,
            adversarial: config.system.critic_channels().is_some(),
        })
    }

    fn finish(self) -> anyhow::Result<()> {
        self.bar.finish();
        self.saver.finish()?;
        Ok(())
    }
}

impl Observer for Monitor<'_> {
    fn iteration(&mut self, report: &IterationReport) -> libjrs::Result<()> {
        self.tables.iteration(report)?;
        let l = &report.losses;
        if self.adversarial
            && self.iteration.is_multiple_of(100)
            && !(1e-4..=10.0).contains(&l.adversarial_ratio)
        {
            tracing::warn!(
                ratio = l.adversarial_ratio,
                "the adversarial gradient is out of proportion (1e-4..10); see loss.adversarial, critic.reduction"
            );
        }
        self.iteration = report.iteration;
        self.bar.advance(1);
        self.bar.message(format!("1-DSC {:.3}  1-NCC {:.3}", l.dice, l.ncc));
        Ok(())
    }

    fn validated(&mut self, report: &ValidationReport) -> libjrs::Result<()> {
        self.tables.validated(report)?;
        tracing::info!(
            iteration = report.iteration,
            msd_mm = report.msd_mm,
            best = report.best,
            "validation"
        );
        Ok(())
    }

    fn checkpoint(&mut self, cursor: Cursor, state: Vec<u8>) -> libjrs::Result<()> {
        let position = serde_json::to_value(cursor).expect("plain numbers always serialise");
        self.saver
            .save(cursor.updates, 0, position, vec![(STATE.to_owned(), Bytes::from(state))])
            .map(|_| ())
            .map_err(|e| Error::input(e.to_string(), "The checkpoints before this one are as they were"))
    }

    fn stop_requested(&self) -> bool {
        self.interrupt.requested() || self.stop_after.is_some_and(|n| self.iteration >= n)
    }
}
