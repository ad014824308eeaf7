//! `jrs runs list | show | verify | prune`: what a store holds.

use anyhow::Context;
use jrs_coordinator::{Checked, Manifest, Retention, RunStore, run_names};
use serde::Serialize;
use std::num::NonZeroU64;
use std::process::ExitCode;
use std::time::Duration;

/// Arguments of `jrs runs`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  jrs runs list runs\n  jrs runs show s3://bucket/jrs first\n  \
                        jrs runs prune runs first --keep-last 3 --keep-every 1000")]
pub struct Args {
    #[command(subcommand)]
    action: Action,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(clap::Subcommand)]
enum Action {
    /// The runs of a store, with their newest checkpoints.
    List {
        /// A folder or a URL.
        url: String,
    },
    /// One run: generations, checkpoints, what unfinished saves left behind.
    Show(One),
    /// Read every object of every checkpoint and compare it with its hash.
    Verify(One),
    /// Remove old checkpoints, and what unfinished saves left behind.
    Prune {
        #[command(flatten)]
        one: One,
        /// Newest checkpoints kept (at least 2).
        #[arg(long, value_name = "K")]
        keep_last: usize,
        /// Besides, every checkpoint whose update is a multiple of this is kept; 0 keeps none.
        #[arg(long, value_name = "N", default_value_t = 0)]
        keep_every: u64,
        /// Age from which an object without a checkpoint counts as left behind. Longer than any save may take.
        #[arg(long, value_name = "HOURS", default_value_t = 24)]
        orphan_hours: u64,
    },
}

#[derive(clap::Args)]
struct One {
    /// A folder or a URL.
    url: String,
    /// Name of the run.
    #[arg(default_value = "default")]
    run: String,
}

/// One line of `list`, and the head of `show`.
#[derive(Serialize)]
struct Summary {
    run: String,
    generation: u64,
    checkpoints: usize,
    newest: Option<u64>,
    dataset_digest: Option<String>,
}

#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    summary: Summary,
    location: String,
    config: Option<String>,
    steps: Vec<Step>,
    orphans: Vec<Left>,
}

/// A checkpoint.
#[derive(Serialize)]
struct Step {
    step: u64,
    generation: Option<u64>,
    iteration: Option<u64>,
    bytes: Option<u64>,
    /// What is wrong with it.
    damage: Option<String>,
}

#[derive(Serialize)]
struct Left {
    key: String,
    bytes: u64,
}

#[derive(Serialize)]
struct Pruned {
    checkpoints: Vec<u64>,
    objects: Vec<Left>,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.action {
        Action::List { url } => list(url, args.json),
        Action::Show(one) => show(&one.open()?, args.json),
        Action::Verify(one) => verify(&one.open()?, args.json),
        Action::Prune { one, keep_last, keep_every, orphan_hours } => {
            let retention = Retention::new(*keep_last, NonZeroU64::new(*keep_every))?;
            prune(&one.open()?, retention, Duration::from_secs(3600 * orphan_hours), args.json)
        }
    }
}

fn list(url: &str, json: bool) -> anyhow::Result<ExitCode> {
    let summaries = run_names(url)?
        .iter()
        .map(|run| Summary::of(&RunStore::open_to_read(url, run)?))
        .collect::<anyhow::Result<Vec<_>>>()?;
    if json {
        return print(&summaries);
    }
    if summaries.is_empty() {
        println!("{url} holds no runs");
        return Ok(ExitCode::SUCCESS);
    }
    println!("{:<24} {:>11} {:>11} {:>11}", "run", "newest", "checkpoints", "generation");
    for s in summaries {
        let newest = s.newest.map_or_else(|| "-".to_owned(), |step| step.to_string());
        println!("{:<24} {newest:>11} {:>11} {:>11}", s.run, s.checkpoints, s.generation);
    }
    Ok(ExitCode::SUCCESS)
}

fn show(store: &RunStore, json: bool) -> anyhow::Result<ExitCode> {
    let shown = Shown {
        summary: Summary::of(store)?,
        location: store.location().to_owned(),
        config: store.config()?,
        steps: store.list_checkpoints()?.iter().map(Step::of).collect(),
        orphans: store.orphans()?.into_iter().map(|o| Left { key: o.key, bytes: o.size }).collect(),
    };
    if json {
        return print(&shown);
    }
    let digest = shown.summary.dataset_digest.as_deref().unwrap_or("-");
    println!("{}\n  dataset     {digest}\n  generation  {}", shown.location, shown.summary.generation);
    shown.steps.iter().for_each(Step::print);
    for left in &shown.orphans {
        println!("  left behind {} ({} bytes): an unfinished save, or one under way", left.key, left.bytes);
    }
    Ok(ExitCode::SUCCESS)
}

fn verify(store: &RunStore, json: bool) -> anyhow::Result<ExitCode> {
    let steps: Vec<Step> = store.verify()?.iter().map(Step::of).collect();
    if json {
        print(&steps)?;
    } else {
        println!("{}", store.location());
        steps.iter().for_each(Step::print);
    }
    let damaged: Vec<String> =
        steps.iter().filter(|s| s.damage.is_some()).map(|s| s.step.to_string()).collect();
    anyhow::ensure!(
        damaged.is_empty(),
        "{}: the checkpoints of the steps {} are damaged. Training falls back to the newest sound one; restore the others from a \
         backup, or remove them with `jrs runs prune`",
        store.location(),
        damaged.join(", ")
    );
    Ok(ExitCode::SUCCESS)
}

fn prune(store: &RunStore, retention: Retention, age: Duration, json: bool) -> anyhow::Result<ExitCode> {
    let checkpoints = store.prune(retention)?;
    let orphans = store.clean_orphans(age)?;
    let objects = orphans.into_iter().map(|o| Left { key: o.key, bytes: o.size }).collect();
    let pruned = Pruned { checkpoints, objects };
    if json {
        return print(&pruned);
    }
    let (checkpoints, objects) = (pruned.checkpoints.len(), pruned.objects.len());
    println!("{}: removed {checkpoints} checkpoints and {objects} objects left behind", store.location());
    Ok(ExitCode::SUCCESS)
}

fn print(value: &impl Serialize) -> anyhow::Result<ExitCode> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(ExitCode::SUCCESS)
}

impl One {
    fn open(&self) -> anyhow::Result<RunStore> {
        let store = RunStore::open_to_read(&self.url, &self.run)?;
        let exists = store.config()?.is_some();
        exists.then_some(store).with_context(|| {
            format!(
                "{} holds no run {:?}. `jrs runs list {}` shows those it has",
                self.url, self.run, self.url
            )
        })
    }
}

impl Summary {
    fn of(store: &RunStore) -> anyhow::Result<Self> {
        let checkpoints = store.list_checkpoints()?;
        Ok(Self {
            run: store.run().to_owned(),
            generation: store.latest_generation()?.unwrap_or(0),
            checkpoints: checkpoints.len(),
            newest: checkpoints.last().map(|checked| checked.step),
            dataset_digest: store.dataset_digest()?,
        })
    }
}

impl Step {
    fn of(checked: &Checked) -> Self {
        let manifest = checked.manifest.as_ref();
        let iteration = |m: &Manifest| m.cursor.get("iteration").and_then(serde_json::Value::as_u64);
        Self {
            step: checked.step,
            generation: manifest.ok().map(|m| m.generation),
            iteration: manifest.ok().and_then(iteration),
            bytes: manifest.ok().map(|m| m.objects.iter().map(|object| object.size).sum()),
            damage: manifest.err().cloned(),
        }
    }

    fn print(&self) {
        match (&self.damage, self.bytes) {
            (Some(damage), _) => println!("  step {:>9}  DAMAGED: {damage}", self.step),
            (None, bytes) => println!(
                "  step {:>9}  iteration {:>9}  generation {:>4}  {:>9.1} MB",
                self.step,
                self.iteration.unwrap_or(0),
                self.generation.unwrap_or(0),
                bytes.unwrap_or(0) as f64 / 1e6
            ),
        }
    }
}
