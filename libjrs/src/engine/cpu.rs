//! The generator on the CPU: the layer table run with the kernels of `jrs_kernels`, BatchNorm folded.

use jrs_kernels::pool::Pool;

use super::folded::FoldedLayer;
use super::stream::Stream;
use super::{Engine, check_input};
use crate::Result;
use crate::model::GeneratorWeights;
use crate::network::MARGIN;

/// Runs on the current rayon pool; the same bits for any number of threads.
pub struct CpuEngine {
    layers: Vec<FoldedLayer>,
    /// Buffers of earlier slabs and tiles.
    pool: Pool,
}

impl CpuEngine {
    /// Prepares the weights.
    pub fn new(weights: &GeneratorWeights) -> Self {
        Self { layers: weights.layers.iter().map(FoldedLayer::new).collect(), pool: Pool::new() }
    }
}

impl Engine for CpuEngine {
    fn name(&self) -> String {
        format!("CPU, {} threads", rayon::current_num_threads())
    }

    fn displacement(
        &self,
        fixed: &[f32],
        moving: &[f32],
        size: [usize; 3],
        out: &mut [Vec<f32>; 3],
    ) -> Result<()> {
        check_input(fixed, moving, size)?;
        Stream::run(&self.layers, &self.pool, [fixed, moving], size, out);
        Ok(())
    }

    fn bytes(&self, size: [usize; 3]) -> usize {
        let output: usize = size.iter().map(|n| n - 2 * MARGIN).product();
        Stream::bytes(size) + 3 * size_of::<f32>() * output
    }
}

#[cfg(test)]
pub(super) use tests::{reference_weights, relative_error};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::GeneratorWeights;

    const REFERENCE: &[u8] = include_bytes!("../../../tests/reference/data/networks_torch.safetensors");

    /// The numbers of `tests/reference/README.md`, "Numbers by formula".
    fn uniform(stream: u64, n: usize, scale: f64, offset: f64) -> Vec<f32> {
        let value = |i: u64| {
            let mut z = ((stream << 32) + i).wrapping_add(0x9E37_79B9_7F4A_7C15);
            z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
            let unit = ((z ^ z >> 31) >> 11) as f64 / (1u64 << 52) as f64 - 1.0;
            (offset + scale * unit) as f32
        };
        (0..n as u64).map(value).collect()
    }

    /// Weights whose activations stay near 1, so that errors show.
    pub(in crate::engine) fn reference_weights() -> GeneratorWeights {
        let mut stream = 99;
        GeneratorWeights::from_tensors(|name, shape| {
            stream += 1;
            let (scale, offset) = match name.split_once('.').expect("layer.tensor").1 {
                "conv.weight" => ((6.0 / shape[1..].iter().product::<usize>() as f64).sqrt(), 0.0),
                "bn.gamma" => (0.2, 1.0),
                "bn.mean" => (0.2, 0.3),
                "bn.var" => (0.5, 1.0),
                _ => (0.1, 0.0),
            };
            Ok(uniform(stream, shape.iter().product(), scale, offset))
        })
        .unwrap()
    }

    /// Norm of the difference to PyTorch's result in f64 (case generator_eval, input 1x2x48x44x44), by the result's norm.
    pub(in crate::engine) fn relative_error(engine: &dyn Engine) -> f32 {
        let (voxels, out_voxels) = (48 * 44 * 44, 8 * 4 * 4);
        let input = uniform(1020, 2 * voxels, 1.0, 0.0);
        let mut u = Default::default();
        engine.displacement(&input[..voxels], &input[voxels..], [44, 44, 48], &mut u).unwrap();
        let file = safetensors::SafeTensors::deserialize(REFERENCE).unwrap();
        let tensor = file.tensor("generator_eval.output").unwrap();
        assert_eq!(tensor.shape(), [1, 3, 8, 4, 4]);
        let expected = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        let (mut difference, mut norm) = (0.0, 0.0);
        for (i, e) in expected.enumerate() {
            difference += (u[i / out_voxels][i % out_voxels] - e).powi(2);
            norm += e * e;
        }
        (difference / norm).sqrt()
    }

    #[test]
    fn agrees_with_pytorch() {
        let relative = relative_error(&CpuEngine::new(&reference_weights()));
        assert!(relative < 1e-4, "relative error {relative}");
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let engine = CpuEngine::new(&GeneratorWeights::random(1));
        let values = vec![0.0; 48 * 48 * 48];
        let mut u = Default::default();
        for size in [[40, 48, 48], [46, 48, 48], [48, 48, 52]] {
            assert!(engine.displacement(&values, &values, size, &mut u).is_err(), "{size:?}");
        }
    }

    #[test]
    fn memory_grows_with_the_plane_and_not_with_the_depth() {
        let [thin, thick] = [256, 1024].map(|nz| Stream::bytes([296, 296, nz]));
        assert!(thick < thin + thin / 100, "{thin} and {thick} bytes");
        // As whole tensors x0 and x1 alone would take 3.3 GB at 296^3.
        let whole = CpuEngine::new(&GeneratorWeights::random(1)).bytes([296; 3]);
        assert!(whole < 1_200_000_000, "{whole} bytes");
    }
}
