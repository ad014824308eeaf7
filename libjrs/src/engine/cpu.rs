//! The generator on the CPU: the layer table run with the kernels of `jrs_kernels`, BatchNorm folded.

use jrs_kernels::upsample_concat::UpsampleConcat;
use jrs_kernels::{Conv3d, Epilogue};

use super::Engine;
use crate::model::{GeneratorWeights, LayerWeights};
use crate::network::{BN_EPSILON, CROP_A, CROP_B, GENERATOR, INPUT_MULTIPLE, LEAKY_SLOPE, MIN_INPUT};
use crate::{Error, Result};

/// Runs on the current rayon pool; the same bits for any number of threads.
pub struct CpuEngine {
    layers: Vec<FoldedLayer>,
}

/// A layer ready to run: BatchNorm follows the activation here, so it cannot move into the kernel of its own
/// convolution; it becomes one multiplication and one addition behind LeakyReLU, exact at zero padding too.
struct FoldedLayer {
    weight: Vec<f32>,
    bias: Vec<f32>,
    /// `scale`, `shift` per output channel; `None` in heads.
    norm: Option<(Vec<f32>, Vec<f32>)>,
}

impl CpuEngine {
    /// Prepares the weights.
    pub fn new(weights: &GeneratorWeights) -> Self {
        Self { layers: weights.layers.iter().map(FoldedLayer::new).collect() }
    }

    fn run(&self, layer: usize, x: &Tensor) -> Tensor {
        let (table, folded) = (&GENERATOR[layer], &self.layers[layer]);
        let conv = Conv3d {
            batch: 1,
            c_in: table.c_in,
            c_out: table.c_out,
            input: x.edges,
            kernel: table.kernel,
            stride: table.stride,
            padding: table.padding,
        };
        let epilogue = match &folded.norm {
            Some((scale, shift)) => Epilogue::LeakyNorm { slope: LEAKY_SLOPE, scale, shift },
            None => Epilogue::None,
        };
        let mut y = Tensor::zeros(table.c_out, x.edges.map(|n| table.output(n)));
        conv.forward(&x.data, &folded.weight, &folded.bias, epilogue, &mut y.data);
        y
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
        let [nx, ny, nz] = size;
        let mut x = Tensor { channels: 2, edges: [nz, ny, nx], data: [fixed, moving].concat() };
        let (mut skip_a, mut skip_b) = (None, None);
        for (i, layer) in GENERATOR.iter().enumerate() {
            // Each tensor is dropped as soon as nothing reads it; of the skips only the part that is read is kept.
            match layer.name {
                "x2" => skip_a = Some(x.cropped(CROP_A)),
                "x5" => skip_b = Some(x.cropped(CROP_B)),
                "x10" => x = x.upsampled_with(skip_b.take().expect("x5 comes before x10")),
                "x14" => x = x.upsampled_with(skip_a.take().expect("x2 comes before x14")),
                _ => {}
            }
            x = self.run(i, &x);
        }
        let voxels = x.voxels();
        for (component, values) in out.iter_mut().zip(x.data.chunks_exact(voxels)) {
            component.clear();
            component.extend_from_slice(values);
        }
        Ok(())
    }

    fn bytes(&self, size: [usize; 3]) -> usize {
        // The loop of `displacement` with sizes in place of tensors.
        let volume = |edges: [usize; 3]| edges.iter().product::<usize>();
        let (mut edges, mut current) = (size, 2 * volume(size));
        let (mut skip_a, mut skip_b, mut peak) = (0, 0, 0);
        for layer in &GENERATOR {
            let concat = |edges: [usize; 3]| layer.c_in * volume(edges.map(|n| 2 * n));
            match layer.name {
                "x2" => skip_a = layer.c_in * volume(edges.map(|n| n - 2 * CROP_A)),
                "x5" => skip_b = layer.c_in * volume(edges.map(|n| n - 2 * CROP_B)),
                "x10" | "x14" => {
                    let joined = concat(edges);
                    peak = peak.max(current + skip_a + skip_b + joined);
                    if layer.name == "x10" {
                        skip_b = 0
                    } else {
                        skip_a = 0
                    }
                    (edges, current) = (edges.map(|n| 2 * n), joined);
                }
                _ => {}
            }
            edges = edges.map(|n| layer.output(n));
            let output = layer.c_out * volume(edges);
            peak = peak.max(current + skip_a + skip_b + output);
            current = output;
        }
        size_of::<f32>() * peak.max(2 * current)
    }
}

fn check_input(fixed: &[f32], moving: &[f32], size: [usize; 3]) -> Result<()> {
    if size.iter().any(|&n| n < MIN_INPUT || n % INPUT_MULTIPLE != 0) {
        return Err(Error::input(
            format!("a network input of {size:?} voxels"),
            format!("pad every edge to a multiple of {INPUT_MULTIPLE} of at least {MIN_INPUT}"),
        ));
    }
    let voxels: usize = size.iter().product();
    if fixed.len() != voxels || moving.len() != voxels {
        return Err(Error::input(
            format!("{} fixed and {} moving values for {voxels} voxels", fixed.len(), moving.len()),
            "give one value per voxel",
        ));
    }
    Ok(())
}

impl FoldedLayer {
    fn new(layer: &LayerWeights) -> Self {
        let norm = layer.norm.as_ref().map(|bn| {
            // In f64, so that folding adds no error of its own.
            let scale: Vec<f64> = bn
                .gamma
                .iter()
                .zip(&bn.var)
                .map(|(&g, &v)| g as f64 / (v as f64 + BN_EPSILON as f64).sqrt())
                .collect();
            let moved = bn.beta.iter().zip(&bn.mean).zip(&scale);
            let shift = moved.map(|((&b, &m), s)| (b as f64 - m as f64 * s) as f32).collect();
            (scale.iter().map(|&s| s as f32).collect(), shift)
        });
        Self { weight: layer.weight.clone(), bias: layer.bias.clone(), norm }
    }
}

/// \[channels, z, y, x\].
struct Tensor {
    channels: usize,
    edges: [usize; 3],
    data: Vec<f32>,
}

impl Tensor {
    fn zeros(channels: usize, edges: [usize; 3]) -> Self {
        Self { channels, edges, data: vec![0.0; channels * edges.iter().product::<usize>()] }
    }

    fn voxels(&self) -> usize {
        self.edges.iter().product()
    }

    /// Twice the size (nearest), then the channels of `skip`.
    fn upsampled_with(self, skip: Tensor) -> Tensor {
        let mut y = Tensor::zeros(self.channels + skip.channels, self.edges.map(|n| 2 * n));
        let (c_up, c_skip) = (self.channels, skip.channels);
        UpsampleConcat { batch: 1, c_up, c_skip, low: self.edges, crop: 0 }.forward(
            &self.data,
            &skip.data,
            &mut y.data,
        );
        y
    }

    /// Without `crop` voxels on every side.
    fn cropped(&self, crop: usize) -> Tensor {
        let [_, ny, nx] = self.edges;
        let edges = self.edges.map(|n| n - 2 * crop);
        let mut data = Vec::with_capacity(self.channels * edges.iter().product::<usize>());
        for channel in self.data.chunks_exact(self.voxels()) {
            for z in crop..crop + edges[0] {
                for y in crop..crop + edges[1] {
                    let start = crop + nx * (y + ny * z);
                    data.extend_from_slice(&channel[start..start + edges[2]]);
                }
            }
        }
        Tensor { channels: self.channels, edges, data }
    }
}

#[cfg(test)]
pub(super) use tests::reference_weights;

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

    #[test]
    fn agrees_with_pytorch() {
        // Case generator_eval: PyTorch in f64, input 1x2x48x44x44 (z, y, x).
        let (voxels, out_voxels) = (48 * 44 * 44, 8 * 4 * 4);
        let input = uniform(1020, 2 * voxels, 1.0, 0.0);
        let mut u = Default::default();
        let engine = CpuEngine::new(&reference_weights());
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
        let relative = (difference / norm).sqrt();
        assert!(relative < 1e-4, "norm of the difference / norm = {relative}");
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
    fn the_memory_estimate_is_the_table_by_hand() {
        // 96^3: x15 is 56^3, x13 60^3. The most is x1 (92^3 x 16) beside x0 (94^3 x 16).
        let engine = CpuEngine::new(&GeneratorWeights::random(1));
        assert_eq!(engine.bytes([96, 96, 96]), 4 * 16 * (94usize.pow(3) + 92usize.pow(3)));
    }
}
