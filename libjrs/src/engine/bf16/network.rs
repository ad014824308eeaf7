//! The generator's layers with their weights packed for the matrix unit.

use jrs_kernels::bf16::{Activation, Filter, Head, Taps};

use crate::engine::folded::FoldedLayer;
use crate::model::GeneratorWeights;
use crate::network::{GENERATOR, JOINS, LEAKY_SLOPE, Layer};

/// One block: convolution, LeakyReLU, BatchNorm.
pub(super) struct Block {
    pub layer: Layer,
    pub filters: Filters,
    pub activation: Activation,
}

/// Weights of a block.
pub(super) enum Filters {
    /// Every output meets the same taps.
    Plain(Filter),
    /// The block follows upsampling and a skip: `[z parity][y parity, x parity]`.
    Joined([[Filter; 4]; 2]),
}

/// All blocks, and the head.
pub(super) struct Network {
    pub blocks: Vec<Block>,
    pub head: Head,
}

impl Network {
    pub fn new(weights: &GeneratorWeights) -> Self {
        let mut blocks = Vec::new();
        let mut head = None;
        for (layer, trained) in GENERATOR.iter().zip(&weights.layers) {
            let FoldedLayer { weight, bias, norm } = FoldedLayer::new(trained);
            match norm {
                Some((scale, shift)) => blocks.push(Block {
                    layer: *layer,
                    filters: filters(layer, &weight),
                    activation: Activation { bias, slope: LEAKY_SLOPE, scale, shift },
                }),
                None => {
                    let value = |c: usize, k: usize| weight[c * layer.c_in + k];
                    head = Some(Head {
                        weight: std::array::from_fn(|c| std::array::from_fn(|k| value(c, k))),
                        bias: std::array::from_fn(|c| bias[c]),
                    });
                }
            }
        }
        Self { blocks, head: head.expect("the generator ends in a head") }
    }
}

fn filters(layer: &Layer, weight: &[f32]) -> Filters {
    let at =
        |co: usize, ci: usize, [z, y, x]: [usize; 3]| weight[(co * layer.c_in + ci) * 27 + z * 9 + y * 3 + x];
    let c_out = layer.c_out;
    if let Some(join) = JOINS.iter().find(|join| join.before == layer.name) {
        let skip = GENERATOR.iter().find(|l| l.name == join.skip).expect("a layer of the table").c_out;
        let filter = |z: usize, i: usize| {
            Filter::after_upsampling(c_out, layer.c_in - skip, skip, [z, i / 2, i % 2], at)
        };
        return Filters::Joined([0, 1].map(|z| std::array::from_fn(|i| filter(z, i))));
    }
    if layer.name == GENERATOR[0].name {
        // Its input is stacked (`stack_images`): the kernel along y has become channels, every value is two.
        let stacked = |_: usize, co: usize, ci: usize, [z, _, x]: [usize; 3]| {
            if ci < 12 { at(co, ci / 2 % 2, [z, ci / 4, x]) } else { 0.0 }
        };
        return Filters::Plain(Filter::new(c_out, &[Taps { channels: 16, kernel: [3, 1, 3] }], stacked));
    }
    let taps = Taps { channels: layer.c_in, kernel: [3; 3] };
    Filters::Plain(Filter::new(c_out, &[taps], |_, co, ci, tap| at(co, ci, tap)))
}
