//! How much bf16 moves the result.

use libjrs::Result;
use libjrs::engine::{Compute, Precision};
use libjrs::model::Model;
use libjrs::nifti::read_image;
use libjrs::progress::Progress;
use libjrs::register::{RegisterOptions, register};
use std::path::Path;
use std::process::ExitCode;

/// Lengths of the differences between two fields, mm.
#[derive(serde::Serialize)]
struct Difference {
    mean_mm: f64,
    p999_mm: f64,
    max_mm: f64,
    /// Largest displacement in f32.
    max_displacement_mm: f64,
}

/// Registers a pair as it lies, in both precisions.
pub fn compare(model: &Path, fixed: &Path, moving: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let model = Model::load(model)?;
    let (fixed, moving) = (read_image(fixed)?, read_image(moving)?);
    let field = |precision| -> Result<_> {
        let compute = Compute { precision, ..Default::default() };
        let options = RegisterOptions { compute, ..Default::default() };
        Ok(register(Some(&model), &fixed, &moving, &options, Progress::SILENT)?.network_field)
    };
    let (exact, rounded) = (field(Precision::F32)?, field(Precision::Bf16)?);
    let length = |v: [f32; 3]| v.iter().map(|&c| f64::from(c).powi(2)).sum::<f64>().sqrt();
    let voxels = 0..exact.grid.len();
    let differences = voxels.clone().map(|i| {
        let (a, b) = (exact.at(i), rounded.at(i));
        length([0, 1, 2].map(|c| a[c] - b[c]))
    });
    let mut differences: Vec<f64> = differences.collect();
    differences.sort_by(f64::total_cmp);
    let difference = Difference {
        mean_mm: differences.iter().sum::<f64>() / differences.len() as f64,
        p999_mm: differences[(differences.len() - 1) * 999 / 1000],
        max_mm: differences[differences.len() - 1],
        max_displacement_mm: voxels.map(|i| length(exact.at(i))).fold(0.0, f64::max),
    };
    if json {
        println!("{}", serde_json::to_string(&difference)?);
    } else {
        let Difference { mean_mm, p999_mm, max_mm, max_displacement_mm } = difference;
        println!(
            "bf16 differs from f32 by {mean_mm:.4} mm on average, {p999_mm:.4} at the 99.9th percentile, {max_mm:.4} at most"
        );
        println!("the largest displacement is {max_displacement_mm:.2} mm");
    }
    Ok(ExitCode::SUCCESS)
}
