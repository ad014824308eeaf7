//! BatchNorm folded into what follows a convolution.

use jrs_kernels::activation::{Activation, Head};

use crate::model::LayerWeights;
use crate::network::{BN_EPSILON, LEAKY_SLOPE};

/// A layer ready to run: BatchNorm follows the activation here, so it cannot move into the kernel of its own
/// convolution; it becomes one multiplication and one addition behind LeakyReLU, exact at zero padding too.
pub(super) struct FoldedLayer {
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
    /// `scale`, `shift` per output channel; `None` in heads.
    pub norm: Option<(Vec<f32>, Vec<f32>)>,
}

impl FoldedLayer {
    /// Folds a trained layer.
    pub fn new(layer: &LayerWeights) -> Self {
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

    /// What follows the convolution of a block.
    ///
    /// # Panics
    /// In a head.
    pub fn activation(&self) -> Activation {
        let (scale, shift) = self.norm.clone().expect("a block has BatchNorm");
        Activation { bias: self.bias.clone(), slope: LEAKY_SLOPE, scale, shift }
    }

    /// The generator's head.
    pub fn head(&self) -> Head {
        let weight = |c: usize, k: usize| self.weight[c * self.weight.len() / self.bias.len() + k];
        Head {
            weight: std::array::from_fn(|c| std::array::from_fn(|k| weight(c, k))),
            bias: std::array::from_fn(|c| self.bias[c]),
        }
    }
}
