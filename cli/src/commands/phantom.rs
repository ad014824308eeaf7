//! `jrs phantom`: the synthetic cohort.

use super::phase;
use jrs_phantom::{Preset, generate};
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `jrs phantom`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  jrs phantom --preset demo --out cohort")]
pub struct Args {
    /// clinical (0.9 x 0.9 x 2-3 mm, 18 patients, 161 pairs), small, demo or tiny.
    #[arg(long, default_value = "demo")]
    preset: String,
    /// Same seed, same bytes.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Folder that receives dataset.json and the NIfTI files.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let preset = Preset::named(&args.preset)?;
    let bar = phase("phantom", (preset.pairs() + preset.patients.len()) as u64);
    let dataset = generate(&preset, args.seed, &args.out, &|_, _| bar.advance(1))?;
    bar.finish();
    println!("{}: {} pairs in {}", dataset.name, dataset.pairs.len(), args.out.display());
    Ok(ExitCode::SUCCESS)
}
