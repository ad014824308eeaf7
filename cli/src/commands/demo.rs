//! `jrs demo`: the whole loop on one machine, from nothing to a report.

use super::data::Copies;
use super::evaluate::{self, SplitArg};
use super::train;
use super::{Align, ComputeArgs, phase};
use jrs_data::prepare::{PrepareOptions, prepare};
use jrs_phantom::{Preset, generate};
use jrs_telemetry::interrupt::Interrupt;
use jrs_telemetry::memory::peak_rss_mb;
use jrs_worker::device::Place;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// The demo's run: JRS-GANa at full width, shortened to minutes on two cores. What differs from the paper, and
/// why, stands beside each key.
const CONFIG: &str = include_str!("../../../configs/demo.toml");
/// Working voxels of the demo, mm, instead of the paper's 1: a patch shows four times as much of the patient.
const SPACING_MM: f64 = 4.0;
/// HU that the demo's network sees, instead of the paper's ±1000: soft tissue is what it has minutes to learn.
const CLIP_HU: [i16; 2] = [-250, 250];
/// Steps of test-time refinement after the network: minutes of training give coarse displacements. The report
/// shows the network alone, too.
const REFINE_STEPS: usize = 60;
/// Its voxels, mm: about those of the scans.
const REFINE_SPACING_MM: f64 = 2.0;

/// Arguments of `jrs demo`.
#[derive(clap::Args)]
#[command(
    after_help = "Makes a synthetic cohort, prepares it, trains JRS-GANa (interrupted and resumed once on \
    purpose), registers patients never trained on and writes a report: about ten minutes on two cores."
)]
pub struct Args {
    /// Folder for everything; made anew.
    #[arg(long, default_value = "jrs-demo", value_name = "DIR")]
    out: PathBuf,
    /// Seed of the cohort.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// End with one JSON line.
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Summary {
    #[serde(flatten)]
    evaluation: evaluate::Summary,
    seconds: f64,
    peak_rss_mb: Option<f64>,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let clock = Instant::now();
    let interrupt = Interrupt::install()?;
    let folder = |name: &str| args.out.join(name);
    for old in ["cohort", "cache", "runs", "report"] {
        if folder(old).exists() {
            std::fs::remove_dir_all(folder(old))?;
        }
    }
    std::fs::create_dir_all(&args.out)?;

    let preset = Preset::named("demo")?;
    let bar = phase("1/5 make patients", (preset.pairs() + preset.patients.len()) as u64);
    let dataset = generate(&preset, args.seed, &folder("cohort"), &|_, _| bar.advance(1))?;
    bar.finish();

    let bar = phase("2/5 prepare", dataset.pairs.len() as u64);
    let options = PrepareOptions { spacing_mm: SPACING_MM, clip: CLIP_HU, ..Default::default() };
    prepare(folder("cohort"), folder("cache"), &options, &|_| bar.advance(1))?;
    bar.finish();

    let config = folder("demo.toml");
    jrs_report::save(&config, CONFIG)?;
    let iterations = jrs_worker::config::TrainConfig::load(&config)?.iterations;
    let mut training = train::Args {
        config,
        data: folder("cache").display().to_string(),
        copies: Copies::default(),
        out: folder("runs").display().to_string(),
        run: "demo".into(),
        resume: None,
        logs: None,
        device: Place::Cpu,
        workers: None,
        stop_after: Some(iterations / 2),
        json: false,
        title: Some("3/5 train JRS-GANa, then stop".into()),
    };
    train::train(&training, &interrupt)?;
    training.title = Some("4/5 resume and finish".into());
    training.resume = Some("latest".into());
    training.stop_after = None;
    let trained = train::train(&training, &interrupt)?;
    if let Some(code) = interrupt.exit_code() {
        return Ok(ExitCode::from(code));
    }

    let evaluation = evaluate::evaluate(
        &evaluate::Args {
            model: trained.model,
            data: folder("cohort"),
            split: SplitArg::Test,
            align: Align::Rigid,
            refine: Some(REFINE_STEPS),
            spacing: REFINE_SPACING_MM,
            memory: 2048,
            compute: ComputeArgs::default(),
            out: folder("report"),
            json: false,
            title: "5/5 register unseen patients",
        },
        super::curves::charts(&folder("runs").join("runs/demo"))?,
    )?;
    let summary = Summary { evaluation, seconds: clock.elapsed().as_secs_f64(), peak_rss_mb: peak_rss_mb() };
    if args.json {
        println!("{}", serde_json::to_string(&summary)?);
    } else {
        summary.evaluation.print();
        println!(
            "took    {:.0} s, peak memory {:.0} MB",
            summary.seconds,
            summary.peak_rss_mb.unwrap_or(f64::NAN)
        );
    }
    Ok(ExitCode::SUCCESS)
}
