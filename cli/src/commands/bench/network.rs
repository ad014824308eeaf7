//! Inference: the generator alone, and a whole volume in tiles.

use super::{Bench, wave};
use libjrs::Result;
use libjrs::engine::{Compute, infer};
use libjrs::model::GeneratorWeights;
use libjrs::network::{GENERATOR, Layer, MARGIN};
use libjrs::progress::Progress;

/// One padded input of `size` voxels per edge.
pub fn generator(size: usize, compute: Compute) -> Result<Bench<'static>> {
    let engine = compute.engine(&GeneratorWeights::random(1))?;
    let [fixed, moving] = [0.0, 0.3].map(|phase| wave(size.pow(3), phase));
    let mut u: [Vec<f32>; 3] = Default::default();
    engine.displacement(&fixed, &moving, [size; 3], &mut u)?;
    Ok(Bench {
        name: format!("generator, input {size}^3, {}", engine.name()),
        flops: Some(flops(size)),
        run: Box::new(move || Ok(engine.displacement(&fixed, &moving, [size; 3], &mut u)?)),
    })
}

/// A volume of `size` voxels per edge, a tile taking at most `memory` MB.
pub fn volume(size: usize, memory: usize, compute: Compute) -> Result<Bench<'static>> {
    let engine = compute.engine(&GeneratorWeights::random(1))?;
    let [fixed, moving] = [0.0, 0.3].map(|phase| wave(size.pow(3), phase));
    Ok(Bench {
        name: format!("volume {size}^3, {}, tiles of up to {memory} MB", engine.name()),
        flops: Some(flops((size + 2 * MARGIN).next_multiple_of(4))),
        run: Box::new(move || {
            infer(&*engine, &fixed, &moving, [size; 3], memory * 1_000_000, Progress::SILENT)?;
            Ok(())
        }),
    })
}

/// Multiplications and additions of all convolutions for a cubic input.
pub fn flops(size: usize) -> f64 {
    let mut edge = size;
    let mut sum = 0.0;
    for layer in &GENERATOR {
        edge = match layer.name {
            "x10" | "x14" => 2 * edge,
            _ => edge,
        };
        edge = layer.output(edge);
        sum += layer_flops(layer, edge);
    }
    sum
}

fn layer_flops(layer: &Layer, edge: usize) -> f64 {
    2.0 * (edge.pow(3) * layer.c_out * layer.c_in * layer.kernel.pow(3)) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_that_of_the_method() {
        // science.md section 2: 19.9 GMAC for 96^3, 1.12 TMAC for 296^3.
        assert_eq!((flops(96) / 2e9 * 10.0).round(), 199.0);
        assert_eq!((flops(296) / 2e12 * 100.0).round(), 112.0);
    }
}
