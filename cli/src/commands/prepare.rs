//! `jrs prepare`: from NIfTI to the compact cache that training reads.

use super::phase;
use jrs_data::dataset::Dataset;
use jrs_data::prepare::{Prealignment, PrepareOptions, prepare};
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `jrs prepare`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  jrs prepare --data cohort --out cache\n\n\
    An interrupted preparation goes on where it stopped. A pair's own affine (dataset.json) is used as it is.")]
pub struct Args {
    /// Folder with dataset.json.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Folder for the cache.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Edge of the working voxels, mm.
    #[arg(long, default_value_t = 1.0)]
    spacing: f64,
    /// Lowest and highest HU that the network sees.
    #[arg(long, num_args = 2, value_names = ["LOW", "HIGH"], allow_negative_numbers = true, default_values_t = [-1000, 1000])]
    clip: Vec<i16>,
    /// Alignment of the scans before the network: rigid (by the bones), affine or none.
    #[arg(long, default_value = "rigid")]
    align: super::Align,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let pairs = Dataset::open(&args.data)?.pairs.len();
    let clip = [args.clip[0], args.clip[1]]; // clap sees to the number
    let options = PrepareOptions { spacing_mm: args.spacing, align: args.align.into(), clip };
    let bar = phase("prepare", pairs as u64);
    let prepared = prepare(&args.data, &args.out, &options, &|p| {
        bar.advance(1);
        tracing::debug!(pair = p.id, reused = p.reused, seconds = p.seconds, similarity = ?p.similarity, "prepared");
    })?;
    bar.finish();
    println!("{}: {} pairs at {} mm in {}", prepared.name, pairs, prepared.spacing_mm, args.out.display());
    Ok(ExitCode::SUCCESS)
}

impl From<super::Align> for Prealignment {
    fn from(align: super::Align) -> Self {
        match align {
            super::Align::Rigid => Self::Rigid,
            super::Align::Affine => Self::Affine,
            super::Align::None => Self::None,
        }
    }
}
