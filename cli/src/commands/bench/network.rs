//! Inference: the generator alone, and a whole volume in tiles.

use super::{Bench, wave};
use libjrs::Result;
use libjrs::engine::{Compute, infer};
use libjrs::model::GeneratorWeights;
use libjrs::network::{MARGIN, flops};
use libjrs::progress::Progress;

/// One padded input of `size` voxels per edge.
pub fn generator(size: usize, compute: Compute) -> Result<Bench<'static>> {
    let engine = compute.engine(&GeneratorWeights::random(1))?;
    let [fixed, moving] = [0.0, 0.3].map(|phase| wave(size.pow(3), phase));
    let mut u: [Vec<f32>; 3] = Default::default();
    engine.displacement(&fixed, &moving, [size; 3], &mut u)?;
    Ok(Bench {
        name: format!("generator, input {size}^3, {}", engine.name()),
        flops: Some(flops([size; 3])),
        run: Box::new(move || Ok(engine.displacement(&fixed, &moving, [size; 3], &mut u)?)),
    })
}

/// A volume of `size` voxels per edge, a tile taking at most `memory` MB.
pub fn volume(size: usize, memory: usize, compute: Compute) -> Result<Bench<'static>> {
    let engine = compute.engine(&GeneratorWeights::random(1))?;
    let [fixed, moving] = [0.0, 0.3].map(|phase| wave(size.pow(3), phase));
    Ok(Bench {
        name: format!("volume {size}^3, {}, tiles of up to {memory} MB", engine.name()),
        flops: Some(flops([(size + 2 * MARGIN).next_multiple_of(4); 3])),
        run: Box::new(move || {
            infer(&*engine, &fixed, &moving, [size; 3], memory * 1_000_000, Progress::SILENT)?;
            Ok(())
        }),
    })
}
