//! Parameters as one flat vector, with views per layer.
//!
//! The flat form is what optimisers update, what workers reduce over the network in one bucket and what a
//! checkpoint stores; the views ([`Leaves`]) are what a forward pass differentiates.

use super::generator::BatchStatistics;
use burn::tensor::{Device, Gradients, Tensor, TensorData};
use libjrs::network::{BN_MOMENTUM, INIT_STD, Layer};
use std::ops::Range;

/// The trainable values of one network, in the order of its layer table: per layer `conv.weight`, `conv.bias`
/// and for blocks `bn.gamma`, `bn.beta`.
#[derive(Debug, Clone)]
pub struct Parameters {
    /// The layer table.
    pub layers: Vec<Layer>,
    /// All values, \[n\], on a device without autodiff.
    pub values: Tensor<1>,
}

/// One tensor inside the flat vector.
struct Slot {
    name: String,
    shape: Vec<usize>,
    range: Range<usize>,
}

impl Parameters {
    /// Fresh parameters: convolution weights N(0, 0.02), biases 0, gamma 1, beta 0 (science.md section 2).
    /// `normal` gives standard normal draws.
    pub fn init(layers: &[Layer], mut normal: impl FnMut() -> f32, device: &Device) -> Self {
        let mut values = Vec::new();
        for slot in slots(layers) {
            let n = slot.range.len();
            if slot.name.ends_with("conv.weight") {
                values.extend((0..n).map(|_| INIT_STD * normal()));
            } else {
                let fill = if slot.name.ends_with("gamma") { 1.0 } else { 0.0 };
                values.extend(std::iter::repeat_n(fill, n));
            }
        }
        Self::from_values(layers, values, device)
    }

    /// Wraps stored values; `values` must have exactly one entry per parameter.
    pub fn from_values(layers: &[Layer], values: Vec<f32>, device: &Device) -> Self {
        let n = values.len();
        assert_eq!(n, layers.iter().map(Layer::parameters).sum::<usize>(), "one value per parameter");
        Self { layers: layers.to_vec(), values: Tensor::from_data(TensorData::new(values, [n]), device) }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.layers.iter().map(Layer::parameters).sum()
    }

    /// True for a network without parameters.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Values on the host.
    pub fn to_vec(&self) -> Vec<f32> {
        self.values.to_data().try_into_vec().expect("parameters are f32")
    }

    /// Views per layer. With `track`, they are leaves of a new autodiff graph.
    pub fn leaves(&self, track: bool) -> Leaves {
        let tensors = slots(&self.layers)
            .into_iter()
            .map(|slot| {
                let flat = self.values.clone().slice([slot.range.clone()]);
                match slot.shape[..] {
                    [o, i, z, y, x] => Leaf::Kernel(tracked(flat.reshape([o, i, z, y, x]), track)),
                    _ => Leaf::Vector(tracked(flat, track)),
                }
            })
            .collect();
        Leaves { tensors }
    }

    /// Clips convolution kernels and biases to ±`limit` after a critic update (the paper's weight clipping).
    ///
    /// BatchNorm's scale and shift are left alone: clipping the scale too shrinks activations about 16-fold per
    /// layer and kills the critic (science.md section 5).
    pub fn clip_convolutions(&mut self, limit: f32) {
        let parts = slots(&self.layers)
            .into_iter()
            .map(|slot| {
                let part = self.values.clone().slice([slot.range.clone()]);
                if slot.name.contains(".conv.") { part.clamp(-limit, limit) } else { part }
            })
            .collect();
        self.values = Tensor::cat(parts, 0);
    }
}

fn tracked<const D: usize>(t: Tensor<D>, track: bool) -> Tensor<D> {
    if track { t.autodiff().require_grad() } else { t }
}

fn slots(layers: &[Layer]) -> Vec<Slot> {
    let mut start = 0;
    let mut slots = Vec::new();
    for layer in layers {
        for (name, shape) in layer.tensors() {
            if name.ends_with("mean") || name.ends_with("var") {
                continue; // running statistics are not trained
            }
            let end = start + shape.iter().product::<usize>();
            slots.push(Slot { name, shape, range: start..end });
            start = end;
        }
    }
    slots
}

enum Leaf {
    Kernel(Tensor<5>),
    Vector(Tensor<1>),
}

/// Per-layer views of [`Parameters`], used by one forward pass.
pub struct Leaves {
    tensors: Vec<Leaf>,
}

impl Leaves {
    /// Hands out the tensors of the layers in table order.
    pub(super) fn reader(&self) -> LeafReader<'_> {
        LeafReader { rest: self.tensors.iter() }
    }

    /// The gradient of every leaf as one flat vector in parameter order, on a device without autodiff. A leaf
    /// the loss does not depend on contributes zeros.
    pub fn gradient(&self, gradients: &mut Gradients) -> Tensor<1> {
        let parts = self
            .tensors
            .iter()
            .map(|leaf| match leaf {
                Leaf::Kernel(t) => flat_gradient(t, gradients),
                Leaf::Vector(t) => flat_gradient(t, gradients),
            })
            .collect();
        Tensor::cat(parts, 0)
    }
}

fn flat_gradient<const D: usize>(leaf: &Tensor<D>, gradients: &mut Gradients) -> Tensor<1> {
    let n = leaf.shape().num_elements();
    match leaf.grad_remove(gradients) {
        Some(g) => g.without_autodiff().reshape([n]),
        None => Tensor::zeros([n], &leaf.device().inner()),
    }
}

/// Walks over [`Leaves`] in table order.
pub(super) struct LeafReader<'a> {
    rest: std::slice::Iter<'a, Leaf>,
}

impl LeafReader<'_> {
    pub(super) fn kernel(&mut self) -> Tensor<5> {
        match self.rest.next() {
            Some(Leaf::Kernel(t)) => t.clone(),
            _ => unreachable!("the layer table puts a kernel here"),
        }
    }

    pub(super) fn vector(&mut self) -> Tensor<1> {
        match self.rest.next() {
            Some(Leaf::Vector(t)) => t.clone(),
            _ => unreachable!("the layer table puts a vector here"),
        }
    }
}

/// BatchNorm's running mean and variance of every block, for inference and for the model file.
#[derive(Debug, Clone, PartialEq)]
pub struct RunningStatistics {
    /// Per block: mean then variance.
    pub blocks: Vec<[Vec<f32>; 2]>,
}

impl RunningStatistics {
    /// Mean 0, variance 1.
    pub fn init(layers: &[Layer]) -> Self {
        let blocks =
            layers.iter().filter(|l| l.block).map(|l| [vec![0.0; l.c_out], vec![1.0; l.c_out]]).collect();
        Self { blocks }
    }

    /// Moves a tenth of the way to one micro-batch's statistics (momentum 0.1), as [`moments`] gives them.
    pub fn update(&mut self, moments: &[f32]) {
        let mut rest = moments;
        for running in self.blocks.iter_mut().flatten() {
            let (new, tail) = rest.split_at(running.len());
            running.iter_mut().zip(new).for_each(|(running, new)| *running += BN_MOMENTUM * (new - *running));
            rest = tail;
        }
        assert!(rest.is_empty(), "one value per running statistic");
    }
}

/// One micro-batch's statistics: per block the mean and the unbiased variance, as PyTorch keeps it. `batch` has one `[2, channels]`
/// tensor per block and the number of values behind each.
pub fn moments(batch: BatchStatistics) -> Tensor<1> {
    let mut factors = Vec::new();
    let mut blocks = Vec::new();
    for (statistics, count) in batch {
        let channels = statistics.dims()[1];
        let unbias = count as f32 / (count as f32 - 1.0).max(1.0);
        factors.extend(std::iter::repeat_n(1.0, channels).chain(std::iter::repeat_n(unbias, channels)));
        blocks.push(statistics.reshape([2 * channels]));
    }
    let n = factors.len();
    let blocks = Tensor::cat(blocks, 0);
    let factors = Tensor::from_data(TensorData::new(factors, [n]), &blocks.device());
    blocks * factors
}
