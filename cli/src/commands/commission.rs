//! `jrs commission`: the suite with known truth, as a report.

use super::ComputeArgs;
use jrs_commission::{CASES, Suite, page, run as run_suite};
use libjrs::Error;
use libjrs::model::Model;
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `jrs commission`.
#[derive(clap::Args)]
#[command(after_help = "Exit code 0: every case passed; 1: some did not; 2: it could not be run.\n\n\
    Example:\n  jrs commission --model model.safetensors --out commissioning")]
pub struct Args {
    /// The model to be used; may be left out with --refine.
    #[arg(long, value_name = "FILE", required_unless_present = "refine")]
    model: Option<PathBuf>,
    /// Gradient steps of refinement after the network, as with `jrs register --refine`.
    #[arg(long, value_name = "STEPS")]
    refine: Option<usize>,
    /// Voxels on which --refine works, mm.
    #[arg(long, default_value_t = 1.0)]
    spacing: f64,
    /// Memory limit for the network, MB.
    #[arg(long, default_value_t = 4096, value_name = "MB")]
    memory: usize,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Edge of the phantom's voxels, mm (slices are 5/3 of it): coarser is quicker and not what tolerances are meant for.
    #[arg(long, default_value_t = 1.5)]
    voxel: f64,
    /// Another seed is another patient.
    #[arg(long, default_value_t = 132)]
    seed: u64,
    /// Folder for report.html and report.json.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let model = args.model.as_ref().map(Model::load).transpose()?;
    std::fs::create_dir_all(&args.out)
        .map_err(|e| Error::io(&args.out, e, "Give --out a folder that can be written"))?;
    if !(1.0..=10.0).contains(&args.voxel) {
        return Err(Error::input(format!("--voxel {} mm", args.voxel), "Give 1 to 10 mm").into());
    }
    let suite = Suite {
        spacing_mm: [args.voxel, args.voxel * 5.0 / 3.0],
        refine_steps: args.refine.unwrap_or(0),
        refine_spacing_mm: args.spacing,
        max_bytes: args.memory << 20,
        compute: args.compute.checked()?,
        seed: args.seed,
        ..Suite::default()
    };
    let bar = super::phase("commission", CASES.len() as u64 + 1);
    let report = run_suite(model.as_ref(), &suite, &|case| {
        bar.message(case.to_owned());
        bar.advance(1);
    })?;
    bar.finish();
    jrs_report::save(args.out.join("report.json"), serde_json::to_string_pretty(&report)?)?;
    jrs_report::save(args.out.join("report.html"), page(&report))?;
    for case in &report.cases {
        let failed: Vec<&str> = case.checks.iter().filter(|c| !c.passed).map(|c| c.name.as_str()).collect();
        let outcome =
            if failed.is_empty() { "passed".into() } else { format!("FAILED: {}", failed.join(", ")) };
        println!("{:20} {outcome}", case.name);
    }
    println!("{}", args.out.join("report.html").display());
    Ok(ExitCode::from(u8::from(!report.passed)))
}
