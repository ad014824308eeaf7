//! Makes a cohort and says how long it took: `cohort OUT_DIR [PRESET] [SEED]`.

use jrs_phantom::{Preset, generate};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let word = |n: usize, default: &str| arguments.get(n).cloned().unwrap_or_else(|| default.to_owned());
    let start = std::time::Instant::now();
    let out = word(0, "cohort");
    let dataset =
        generate(&Preset::named(&word(1, "tiny"))?, word(2, "1").parse()?, out.as_ref(), &|done, total| {
            eprint!("\r{done} of {total} scans");
        })?;
    eprintln!("\n{} pairs in {:.1} s", dataset.pairs.len(), start.elapsed().as_secs_f64());
    Ok(())
}
