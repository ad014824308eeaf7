//! The `jrs` command: train, run and judge JRS-GAN.
//!
//! A thin layer: every command parses its arguments, calls the library crates and prints. Exit codes: 0 done,
//! 2 bad input or usage, 130 interrupted (with the state saved).

mod commands;
mod failure;

use clap::{Parser, Subcommand};
use commands::{
    bench, commission, coordinator, demo, evaluate, k8s, model, phantom, plan, prepare, register, runs,
    train, worker,
};
use std::process::ExitCode;

/// Deformable registration of CT scans by a network that learned to carry contours (JRS-GAN).
#[derive(Parser)]
#[command(name = "jrs", version, arg_required_else_help = true, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Threads for computing; by default one per core. Results do not depend on it.
    #[arg(long, global = true, value_name = "N")]
    threads: Option<usize>,
    /// Log level: error, warn, info, debug, trace.
    #[arg(long, global = true, value_name = "LEVEL")]
    log: Option<String>,
    /// Log lines as JSON.
    #[arg(long, global = true)]
    log_json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Make a synthetic male-pelvis cohort with known truth.
    Phantom(phantom::Args),
    /// Resample, align and clip a dataset into the cache that training reads.
    Prepare(prepare::Args),
    /// Train one of the five systems of the paper on prepared data.
    Train(train::Args),
    /// Lead the workers of one run.
    Coordinator(coordinator::Args),
    /// Look at the runs of a store, check them or tidy up.
    Runs(runs::Args),
    /// Be one worker of a training cluster.
    Worker(worker::Args),
    /// Write what Kubernetes needs to run a cluster.
    K8s(k8s::Args),
    /// Print the resolved configuration and what a run will cost, without training.
    Plan(plan::Args),
    /// Register two scans: warped image, displacement field, labels, points and a QA report.
    Register(register::Args),
    /// Score a model on a split of a dataset: the paper's tables and plots.
    Evaluate(evaluate::Args),
    /// Judge a model on deformations with known truth, against AAPM TG-132.
    Commission(commission::Args),
    /// The whole loop on one machine: make patients, train, resume, register, judge.
    Demo(demo::Args),
    /// Time the parts on this machine.
    Bench(bench::Args),
    /// Look at a model file or check it.
    Model(model::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    jrs_kernels::memory::keep_large_buffers();
    match start(&cli).and_then(|()| run(cli.command)) {
        Ok(code) => code,
        Err(error) => failure::report(&error),
    }
}

fn start(cli: &Cli) -> anyhow::Result<()> {
    let format = if cli.log_json { jrs_telemetry::logging::Format::Json } else { Default::default() };
    jrs_telemetry::logging::init(cli.log.as_deref(), format)?;
    if let Some(threads) = cli.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    Ok(())
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Phantom(args) => phantom::run(&args),
        Command::Prepare(args) => prepare::run(&args),
        Command::Register(args) => register::run(&args),
        Command::Evaluate(args) => evaluate::run(&args),
        Command::Commission(args) => commission::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Train(args) => train::run(&args),
        Command::Worker(args) => worker::run(args),
        Command::Coordinator(args) => coordinator::run(&args),
        Command::K8s(args) => k8s::run(&args),
        Command::Runs(args) => runs::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Model(args) => model::run(&args),
    }
}
