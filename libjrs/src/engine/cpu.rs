//! The generator on the CPU's vectors, in f32.

use jrs_kernels::Isa;
use jrs_kernels::activation::Head;
use jrs_kernels::blocked::{Convolution, Output, Plane, Source, View};
use jrs_kernels::pool::Pool;

use super::folded::FoldedLayer;
use super::stream::{Blocks, Content, Results, Stream};
use super::{Buffers, Engine, check_input};
use crate::Result;
use crate::model::GeneratorWeights;
use crate::network::{GENERATOR, Join, Layer, MARGIN};

/// Runs on the current rayon pool; the same bits for any number of threads.
pub struct CpuEngine {
    network: Network,
    buffers: Buffers,
}

impl CpuEngine {
    /// Prepares the weights.
    pub fn new(weights: &GeneratorWeights) -> Self {
        Self { network: Network::new(weights), buffers: Buffers::default() }
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
        self.buffers.run(&self.network, [fixed, moving], size, out);
        Ok(())
    }

    fn bytes(&self, size: [usize; 3]) -> usize {
        let output: usize = size.iter().map(|n| n - 2 * MARGIN).product();
        let scratch = rayon::current_num_threads() * self.network.scratch_len;
        self.network.bytes() + Stream::bytes(&self.network, size) + size_of::<f32>() * (scratch + 3 * output)
    }
}

/// All blocks, and the head.
struct Network {
    blocks: Vec<Convolution>,
    head: Head,
    /// Values that a thread works in, whatever the block.
    scratch_len: usize,
}

impl Network {
    fn new(weights: &GeneratorWeights) -> Self {
        let mut folded: Vec<FoldedLayer> = weights.layers.iter().map(FoldedLayer::new).collect();
        let head = folded.pop().expect("the generator ends in a head").head();
        let blocks: Vec<Convolution> = GENERATOR.iter().zip(&folded).map(block).collect();
        let scratch_len = blocks.iter().map(Convolution::scratch_len).max().expect("there are blocks");
        Self { blocks, head, scratch_len }
    }

    /// Of the prepared weights.
    fn bytes(&self) -> usize {
        self.blocks.iter().map(Convolution::bytes).sum()
    }
}

/// A block's convolution, which reads upsampled planes before the skip's.
fn block((layer, folded): (&Layer, &FoldedLayer)) -> Convolution {
    let sources = match layer.join().map(Join::channels) {
        None => vec![Source::Fine(layer.c_in)],
        Some(skip) => vec![Source::Coarse(layer.c_in - skip), Source::Fine(skip)],
    };
    Convolution::new(&sources, layer.stride, folded.activation(), |co, ci, [kz, ky, kx]| {
        folded.weight[(co * layer.c_in + ci) * 27 + kz * 9 + ky * 3 + kx]
    })
}

impl Blocks for Network {
    type Plane<'p> = Plane<'p>;

    /// Each time, two more planes are transformed.
    const FEWEST_PLANES: usize = 8;

    fn floats(&self, of: Content, edges: [usize; 2]) -> usize {
        Plane::floats(channels(of), edges)
    }

    fn plane<'p>(&self, pool: &'p Pool, of: Content, edges: [usize; 2]) -> Plane<'p> {
        Plane::new(pool, channels(of), edges)
    }

    fn zero<'p>(&self, pool: &'p Pool, channels: usize, edges: [usize; 2]) -> Plane<'p> {
        Plane::zero(pool, channels, edges)
    }

    fn load(&self, [fixed, moving]: [&[f32]; 2], _: [usize; 2], to: &mut Plane<'_>) {
        to.fill_from(fixed, 0);
        to.fill_from(moving, 1);
    }

    fn compute(&self, i: usize, window: &[&Plane<'_>], skip: &[&Plane<'_>], results: Results<'_, Plane<'_>>) {
        let mut views = vec![View { planes: window.to_vec(), crop: 0 }];
        if let Some(join) = GENERATOR[i].join() {
            views.push(View { planes: skip.to_vec(), crop: join.crop });
        }
        let output = match results {
            Results::Planes(planes) => Output::Planes(planes),
            Results::Displacement(u, edges) => Output::Displacement { head: &self.head, edges, u },
        };
        self.blocks[i].run(Isa::best(), &views, output, self.scratch_len);
    }
}

fn channels(of: Content) -> usize {
    match of {
        Content::Images => GENERATOR[0].c_in,
        Content::Channels(channels) => channels,
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
        let network = Network::new(&GeneratorWeights::random(1));
        let [thin, thick] = [256, 1024].map(|nz| Stream::bytes(&network, [296, 296, nz]));
        assert!(thick < thin + thin / 100, "{thin} and {thick} bytes");
        // As whole tensors x0 and x1 alone would take 3.3 GB at 296^3.
        let whole = CpuEngine::new(&GeneratorWeights::random(1)).bytes([296; 3]);
        assert!(whole < 1_200_000_000, "{whole} bytes");
    }

    /// As the backward direction of a registration, whose input is part of the forward one's.
    #[test]
    fn smaller_inputs_take_what_larger_ones_left() {
        let (large, small) = ([148, 140, 48], [140, 132, 44]);
        let weights = reference_weights();
        let engine = CpuEngine::new(&weights);
        let run = |engine: &CpuEngine, size: [usize; 3]| {
            let image = uniform(7, size.iter().product(), 1.0, 0.0);
            let mut u = Default::default();
            engine.displacement(&image, &image, size, &mut u).unwrap();
            u
        };
        run(&engine, large);
        let held = engine.buffers.pool.peak();
        assert_eq!(run(&engine, small), run(&CpuEngine::new(&weights), small));
        assert_eq!(engine.buffers.pool.peak(), held, "the buffers were kept, and no others made");
        // What is much smaller would find none that fits.
        run(&engine, [44; 3]);
        assert!(engine.buffers.pool.peak() < held);
    }

    /// One slab and several, thick and thin; later tiles take what the first left.
    #[test]
    fn counts_what_the_pool_holds() {
        for size in [[44, 44, 44], [44, 48, 180], [180, 140, 48]] {
            let engine = CpuEngine::new(&GeneratorWeights::random(1));
            let image = vec![0.5; size.iter().product()];
            for _ in 0..3 {
                engine.displacement(&image, &image, size, &mut Default::default()).unwrap();
            }
            let counted = Stream::bytes(&engine.network, size);
            assert_eq!(counted, size_of::<f32>() * engine.buffers.pool.peak(), "{size:?}");
        }
    }
}
