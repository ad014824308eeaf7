//! Time and memory of one registration with random weights: `inference [x y z [max_MiB [refine_steps]]]`.

use libjrs::engine::{CpuEngine, Engine, Plan};
use libjrs::model::{GeneratorWeights, Model, Provenance};
use libjrs::progress::Progress;
use libjrs::refine::RefineOptions;
use libjrs::register::{RegisterOptions, register};
use libjrs::{Grid, Volume};

fn main() -> libjrs::Result<()> {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let size = match numbers[..] {
        [x, y, z, ..] => [x, y, z],
        _ => [190, 130, 80],
    };
    let max_bytes = numbers.get(3).map_or(usize::MAX, |mib| mib << 20);
    let grid = Grid::axis_aligned(size, [1.0; 3], [0.0; 3]);
    let wave = |s: f32| (0..grid.len()).map(|i| 500.0 * (i as f32 * 0.01 + s).sin()).collect();
    let (fixed, moving) = (Volume::new(grid.clone(), wave(0.0)), Volume::new(grid.clone(), wave(0.3)));
    let model = Model::new(GeneratorWeights::random(1), Provenance::default());
    let options = RegisterOptions {
        max_bytes,
        refine: RefineOptions { steps: numbers.get(4).copied().unwrap_or(0), ..Default::default() },
        ..Default::default()
    };
    let engine = CpuEngine::new(&model.generator);
    let plan = Plan::new(size, max_bytes, |s| engine.bytes(s))?;
    let most = plan.tiles.iter().map(|t| engine.bytes(t.input_size())).max().unwrap_or(0);
    let result = register(Some(&model), &fixed, &moving, &options, Progress::SILENT)?;
    println!("{size:?} voxels in {} tiles on {}", plan.tiles.len(), engine.name());
    println!("network buffers {} MiB by estimate", most >> 20);
    for (stage, seconds) in &result.timings {
        println!("{stage}: {seconds:.2} s");
    }
    // Linux only; other systems print nothing here.
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        status
            .lines()
            .filter(|l| l.starts_with("VmHWM"))
            .for_each(|l| println!("peak memory {}", &l[6..].trim()));
    }
    Ok(())
}
