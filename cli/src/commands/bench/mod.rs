//! `jrs bench`: how long the parts take on this machine, on inputs made by formula.
//!
//! `scripts/bench` runs these beside PyTorch, SimpleITK and elastix; `BENCHMARKS.md` has the results.

mod layers;
mod network;
mod precision;
mod sampling;
mod surfaces;
mod training;

use super::ComputeArgs;
use jrs_data::cache::PreparedPair;
use jrs_data::dataset::Split;
use jrs_telemetry::memory::peak_rss_mb;
use jrs_worker::config::System;
use jrs_worker::device::{self, Place};
use libjrs::engine::Precision;
use libjrs::{Affine, Grid};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Arguments of `jrs bench`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  jrs bench generator --size 96 --threads 2 --json")]
pub struct Args {
    #[command(subcommand)]
    work: Work,
    /// Measured runs, after one that is not.
    #[arg(long, global = true, default_value_t = 5, value_name = "N")]
    repeats: usize,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Print one JSON line.
    #[arg(long, global = true)]
    json: bool,
}

/// What to time.
#[derive(clap::Subcommand)]
enum Work {
    /// The generator on one padded input: --size 96 is the training patch, --size 296 a volume of 256^3 in one piece.
    Generator {
        /// Edge of the input in voxels, a multiple of 4 from 44 up.
        #[arg(long, default_value_t = 96)]
        size: usize,
    },
    /// A whole volume through the generator, in tiles under a memory limit.
    Volume {
        /// Edge of the volume in voxels.
        #[arg(long, default_value_t = 256)]
        size: usize,
        /// Megabytes for one tile's working memory.
        #[arg(long, default_value_t = 2048, value_name = "MB")]
        memory: usize,
    },
    /// Not a time: how far the displacements in bf16 are from those in f32, in mm, for one pair and a trained model.
    Precision {
        /// Trained model.
        #[arg(long, value_name = "FILE")]
        model: PathBuf,
        /// Fixed scan (NIfTI).
        #[arg(long, value_name = "FILE")]
        fixed: PathBuf,
        /// Moving scan (NIfTI).
        #[arg(long, value_name = "FILE")]
        moving: PathBuf,
    },
    /// One generator iteration of training: both directions, losses, RMSProp, and the critic updates before it.
    Step {
        /// System of the paper.
        #[arg(long, default_value = "JRS-CNN")]
        system: String,
        /// Edge of the patch in voxels.
        #[arg(long, default_value_t = 96)]
        size: usize,
        /// Critic updates before the generator's (adversarial systems).
        #[arg(long, default_value_t = 5, value_name = "N")]
        critic_steps: u64,
    },
    /// Each convolution of the generator by itself, forward and both gradients, beside the tensor framework's own.
    Layers {
        /// Edge of the patch in voxels.
        #[arg(long, default_value_t = 96)]
        size: usize,
    },
    /// MSD and HD95 of five organs.
    Surfaces {
        /// Edge of the label maps in voxels.
        #[arg(long, default_value_t = 256)]
        size: usize,
    },
    /// The exact Euclidean distance transform.
    Distance {
        /// Edge of the mask in voxels.
        #[arg(long, default_value_t = 256)]
        size: usize,
    },
    /// Cropping one pair of patches, in both directions, with what Θ does to the real pair.
    Sampling {
        /// Edge of the patch in voxels.
        #[arg(long, default_value_t = 96)]
        size: usize,
    },
}

/// What was measured.
#[derive(serde::Serialize)]
struct Measured {
    work: String,
    threads: usize,
    repeats: usize,
    seconds: Seconds,
    /// Billions of multiplications and additions of the definition, per second of the median; what is saved by
    /// reduced arithmetic counts as done. Absent where arithmetic is not the work.
    #[serde(skip_serializing_if = "Option::is_none")]
    gflops: Option<f64>,
    peak_rss_mb: Option<f64>,
}

#[derive(serde::Serialize)]
struct Seconds {
    median: f64,
    min: f64,
    max: f64,
}

/// A piece of work, ready to run again and again.
struct Bench<'a> {
    name: String,
    /// Multiplications and additions of one run, by the definition.
    flops: Option<f64>,
    run: Box<dyn FnMut() -> anyhow::Result<()> + 'a>,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let compute = args.compute.checked()?;
    let runs_network = matches!(args.work, Work::Generator { .. } | Work::Volume { .. });
    if compute.precision != Precision::F32 && !runs_network {
        let fix = "leave --precision out; it is for `generator` and `volume`";
        return Err(libjrs::Error::input("this work has no other precision than f32", fix).into());
    }
    if compute.device != Place::Cpu
        && !runs_network
        && !matches!(args.work, Work::Step { .. } | Work::Layers { .. })
    {
        let fix = "leave --device out; it is for `generator`, `volume`, `step` and `layers`";
        return Err(libjrs::Error::input("this work runs on the CPU", fix).into());
    }
    if args.repeats == 0 {
        return Err(libjrs::Error::input("--repeats is 0", "measure at least once").into());
    }
    if let Work::Precision { model, fixed, moving } = &args.work {
        return precision::compare(model, fixed, moving, args.json);
    }
    if let Work::Layers { size } = args.work {
        return print_layers(&layers::layers(size, args.repeats, &device::open(compute.device)?)?, args.json);
    }
    let mut bench = match &args.work {
        Work::Precision { .. } | Work::Layers { .. } => unreachable!("returned above"),
        Work::Generator { size } => network::generator(*size, compute)?,
        Work::Volume { size, memory } => network::volume(*size, *memory, compute)?,
        Work::Step { system, size, critic_steps } => {
            let system: System = serde_json::from_value(system.as_str().into()).map_err(|_| {
                libjrs::Error::input(
                    format!("there is no system `{system}`"),
                    "Choose Reg-CNN, JRS-CNN, Reg-GAN, JRS-GANa or JRS-GANb",
                )
            })?;
            training::step(system, *size, *critic_steps, &device::open(compute.device)?)?
        }
        Work::Surfaces { size } => surfaces::scores(*size),
        Work::Distance { size } => surfaces::distance(*size),
        Work::Sampling { size } => sampling::crops(*size),
    };
    (bench.run)()?;
    let mut seconds = Vec::new();
    for _ in 0..args.repeats {
        let clock = Instant::now();
        (bench.run)()?;
        seconds.push(clock.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    let middle = seconds.len() / 2;
    let median = (seconds[middle] + seconds[seconds.len() - 1 - middle]) / 2.0;
    let measured = Measured {
        work: bench.name,
        threads: rayon::current_num_threads(),
        repeats: args.repeats,
        seconds: Seconds { median, min: seconds[0], max: seconds[seconds.len() - 1] },
        gflops: bench.flops.map(|flops| flops / median / 1e9),
        peak_rss_mb: peak_rss_mb(),
    };
    if args.json {
        println!("{}", serde_json::to_string(&measured)?);
    } else {
        let Seconds { median, min, max } = measured.seconds;
        println!("{}: {median:.4} s (from {min:.4} to {max:.4})", measured.work);
        if let Some(gflops) = measured.gflops {
            println!("{gflops:.1} GFLOP/s on {} threads", measured.threads);
        }
        if let Some(peak) = measured.peak_rss_mb {
            println!("peak memory {peak:.0} MB");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_layers(layers: &[layers::Timed], json: bool) -> anyhow::Result<ExitCode> {
    if json {
        println!("{}", serde_json::json!({ "layers": layers }));
    } else {
        layers.iter().for_each(|timed| println!("{timed}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Values in [-1, 1] by formula: smooth, so that nothing is denormal and no loss is degenerate.
fn wave(len: usize, phase: f32) -> Vec<f32> {
    (0..len).map(|i| (i as f32 * 0.37 + phase).sin() * (i as f32 * 0.0113).cos()).collect()
}

/// Label map of a cube: five balls beside each other, moved along x by `shift` voxels.
fn five_balls(edge: usize, shift: f64) -> Vec<u8> {
    let unit = edge as f64 / 16.0;
    let centres = [[4., 4., 6.], [11., 4., 7.], [4., 11., 8.], [11., 11., 9.], [8., 8., 4.]];
    let label = |i: usize| {
        let p = [i % edge, i / edge % edge, i / edge / edge].map(|v| v as f64);
        let inside = |c: &[f64; 3]| {
            let d2: f64 =
                (0..3).map(|a| (p[a] - unit * c[a] - if a == 0 { shift } else { 0.0 }).powi(2)).sum();
            d2 < (2.5 * unit).powi(2)
        };
        centres.iter().position(inside).map_or(0, |organ| organ as u8 + 1)
    };
    (0..edge.pow(3)).map(label).collect()
}

/// A pair of scans with five organs, as training has it in memory.
fn pair() -> PreparedPair {
    const EDGE: usize = 192;
    let hu = |phase| wave(EDGE.pow(3), phase).iter().map(|v| (v * 1000.0) as i16).collect();
    PreparedPair {
        id: "bench".into(),
        patient: "bench".into(),
        split: Split::Train,
        grid: Grid::axis_aligned([EDGE; 3], [1.0; 3], [0.0; 3]),
        fixed: hu(0.0),
        moving: hu(0.3),
        fixed_labels: five_balls(EDGE, 0.0),
        moving_labels: five_balls(EDGE, 2.0),
        mask: vec![1; EDGE.pow(3)],
        affine: Affine::IDENTITY,
    }
}
