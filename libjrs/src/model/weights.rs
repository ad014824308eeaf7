//! The generator's weights on plain vectors, layer by layer as in [`GENERATOR`].

use crate::network::{GENERATOR, INIT_STD, Layer};
use crate::{Error, Result};

/// All weights of the generator.
#[derive(Debug, Clone, PartialEq)]
pub struct GeneratorWeights {
    /// One entry per row of [`GENERATOR`], in its order.
    pub layers: Vec<LayerWeights>,
}

/// One convolution and, in blocks, the BatchNorm behind it.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerWeights {
    /// Convolution kernel \[c_out, c_in, k, k, k\].
    pub weight: Vec<f32>,
    /// Convolution bias \[c_out\].
    pub bias: Vec<f32>,
    /// BatchNorm; `None` in heads.
    pub norm: Option<BatchNorm>,
}

/// BatchNorm with its running statistics, each \[c_out\].
#[derive(Debug, Clone, PartialEq)]
pub struct BatchNorm {
    /// Trained scale.
    pub gamma: Vec<f32>,
    /// Trained shift.
    pub beta: Vec<f32>,
    /// Running mean.
    pub mean: Vec<f32>,
    /// Running variance (biased or not is the trainer's business).
    pub var: Vec<f32>,
}

impl GeneratorWeights {
    /// Collects the weights from `source`, which is asked for every tensor of the layer table by name (for instance
    /// `x0.conv.weight`) and shape.
    ///
    /// # Errors
    /// Whatever `source` returns, or a tensor whose number of values is not that of its shape.
    pub fn from_tensors(mut source: impl FnMut(&str, &[usize]) -> Result<Vec<f32>>) -> Result<Self> {
        let layers = GENERATOR.iter().map(|layer| LayerWeights::from_tensors(layer, &mut source));
        Ok(Self { layers: layers.collect::<Result<_>>()? })
    }

    /// Every tensor as (name, shape, values), in the order of the layer table.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>, &[f32])> {
        let values = self.layers.iter().flat_map(LayerWeights::values);
        let names = GENERATOR.iter().flat_map(Layer::tensors);
        names.zip(values).map(|((name, shape), values)| (name, shape, values)).collect()
    }

    /// Freshly initialised weights for tests and for the start of training: convolutions N(0, 0.02), biases 0,
    /// BatchNorm the identity (`science.md` section 2). A pure function of `seed`.
    pub fn random(seed: u64) -> Self {
        let mut normal = Normal { state: seed, spare: None };
        Self::from_tensors(|name, shape| {
            let n: usize = shape.iter().product();
            Ok(match name.rsplit_once('.').map(|(_, last)| last) {
                Some("weight") => (0..n).map(|_| INIT_STD * normal.next()).collect(),
                Some("gamma" | "var") => vec![1.0; n],
                _ => vec![0.0; n],
            })
        })
        .expect("the closure gives each tensor its full length")
    }
}

impl LayerWeights {
    fn from_tensors(
        layer: &Layer,
        source: &mut impl FnMut(&str, &[usize]) -> Result<Vec<f32>>,
    ) -> Result<LayerWeights> {
        let mut tensors = Vec::new();
        for (name, shape) in layer.tensors() {
            let values = source(&name, &shape)?;
            if values.len() != shape.iter().product::<usize>() {
                return Err(Error::input(
                    format!("tensor {name} has {} values but its shape is {shape:?}", values.len()),
                    "give the weights of the same network",
                ));
            }
            tensors.push(values);
        }
        let mut tensors = tensors.into_iter();
        let mut next =
            || tensors.next().expect("Layer::tensors lists conv.{weight,bias}, bn.{gamma,beta,mean,var}");
        let (weight, bias) = (next(), next());
        let norm = layer.block.then(|| BatchNorm { gamma: next(), beta: next(), mean: next(), var: next() });
        Ok(LayerWeights { weight, bias, norm })
    }

    fn values(&self) -> Vec<&[f32]> {
        let mut all: Vec<&[f32]> = vec![&self.weight, &self.bias];
        if let Some(norm) = &self.norm {
            all.extend([&norm.gamma[..], &norm.beta, &norm.mean, &norm.var]);
        }
        all
    }
}

/// Standard normal draws: splitmix64 (Steele et al. 2014) and Box-Muller.
struct Normal {
    state: u64,
    spare: Option<f32>,
}

impl Normal {
    fn next(&mut self) -> f32 {
        if let Some(value) = self.spare.take() {
            return value;
        }
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * self.uniform()).sin_cos();
        self.spare = Some((radius * sin) as f32);
        (radius * cos) as f32
    }

    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ z >> 31) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_weights_have_the_stated_spread() {
        let weights = GeneratorWeights::random(3);
        let kernel = &weights.layers[7].weight; // x7: 64*64*27 values
        let n = kernel.len() as f32;
        let mean = kernel.iter().sum::<f32>() / n;
        let std = (kernel.iter().map(|w| (w - mean).powi(2)).sum::<f32>() / n).sqrt();
        assert!(mean.abs() < 3e-4 && (std - INIT_STD).abs() < 3e-4, "mean {mean}, std {std}");
        assert_ne!(weights, GeneratorWeights::random(4));
        let trainable: usize = GENERATOR.iter().map(Layer::parameters).sum();
        let statistics: usize = GENERATOR.iter().filter(|l| l.block).map(|l| 2 * l.c_out).sum();
        assert_eq!(weights.tensors().iter().map(|t| t.2.len()).sum::<usize>(), trainable + statistics);
    }
}
