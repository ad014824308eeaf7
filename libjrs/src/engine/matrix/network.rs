//! The generator's layers with their weights packed for the matrix unit.
//!
//! Planes of 16 channels are read and written in pairs of voxels along x (`jrs_kernels::bf16`): all their edges are even.

use jrs_kernels::activation::{Activation, Head};
use jrs_kernels::bf16::{Filter, Format, Taps, Unit, coarse_taps, paired_tap};

use crate::engine::folded::FoldedLayer;
use crate::model::GeneratorWeights;
use crate::network::{GENERATOR, Join, Layer};

/// Channels of the layers at full resolution, which are read in pairs; also those of the stacked images.
pub(super) const NARROW: usize = 16;

/// One block: convolution, LeakyReLU, BatchNorm.
pub(super) struct Block {
    pub layer: Layer,
    pub filters: Filters,
    /// Voxels that the filters compute as one.
    pub group: usize,
    pub activation: Activation,
}

/// Weights of a block.
pub(super) enum Filters {
    /// Every output meets the same taps.
    Plain(Filter),
    /// The block follows upsampling and a skip: for even and odd planes one filter per lattice, `lattices` along y and x.
    Joined { of_planes: [Vec<Filter>; 2], lattices: [usize; 2] },
}

/// All blocks, and the head.
pub(super) struct Network {
    pub unit: Unit,
    /// Of weights and activations.
    pub format: Format,
    pub blocks: Vec<Block>,
    pub head: Head,
}

impl Network {
    pub fn new(unit: Unit, weights: &GeneratorWeights, format: Format) -> Self {
        let mut folded: Vec<FoldedLayer> = weights.layers.iter().map(FoldedLayer::new).collect();
        let head = folded.pop().expect("the generator ends in a head").head();
        let block = |(layer, folded): (&Layer, FoldedLayer)| {
            let (filters, group) = filters(layer, &folded.weight, format);
            let Activation { bias, slope, scale, shift } = folded.activation();
            let [bias, scale, shift] = [bias, scale, shift].map(|values| values.repeat(group));
            Block { layer: *layer, filters, group, activation: Activation { bias, slope, scale, shift } }
        };
        Self { unit, format, blocks: GENERATOR.iter().zip(folded).map(block).collect(), head }
    }
}

impl Network {
    /// Bytes of the packed weights.
    pub fn bytes(&self) -> usize {
        let of_block = |block: &Block| match &block.filters {
            Filters::Plain(filter) => filter.bytes(),
            Filters::Joined { of_planes, .. } => of_planes.iter().flatten().map(Filter::bytes).sum(),
        };
        self.blocks.iter().map(of_block).sum()
    }
}

/// A block's filters, and how many voxels they compute as one.
fn filters(layer: &Layer, weight: &[f32], format: Format) -> (Filters, usize) {
    let at =
        |co: usize, ci: usize, [z, y, x]: [usize; 3]| weight[(co * layer.c_in + ci) * 27 + z * 9 + y * 3 + x];
    let c_out = layer.c_out;
    if let Some(skip) = layer.join().map(Join::channels) {
        return joined(format, c_out, layer.c_in - skip, skip, at);
    }
    let first = layer.name == GENERATOR[0].name;
    if !first && layer.c_in != NARROW {
        let taps = Taps { channels: layer.c_in, kernel: [3; 3], format };
        return (Filters::Plain(Filter::new(format, c_out, &[taps], |_, co, ci, tap| at(co, ci, tap))), 1);
    }
    // At stride 2 the pairs begin one voxel in front of the first tap: behind the border's two columns.
    let (stride, group) = (layer.stride, 2);
    let paired = |co: usize, pair: usize, ci: usize| {
        paired_tap(stride * (co / c_out) + layer.padding, pair, ci / NARROW)
    };
    let pairs = stride + 1;
    // The images are stacked (`stack_images`): the kernel along y has become channels, and every value is two.
    let (kernel, of_input) = if first { ([3, 1, pairs], Format::One) } else { ([3, 3, pairs], format) };
    let taps = Taps { channels: 2 * NARROW, kernel, format: of_input };
    let filter = Filter::new(format, group * c_out, &[taps], |_, co, ci, [z, y, pair]| {
        let (x, channel) = (paired(co, pair, ci), ci % NARROW);
        match x {
            None => 0.0,
            Some(_) if first && channel >= 12 => 0.0,
            Some(x) if first => at(co % c_out, channel / 2 % 2, [z, channel / 4, x]),
            Some(x) => at(co % c_out, channel, [z, y, x]),
        }
    });
    (Filters::Plain(filter), group)
}

/// Filters of a block whose input is `coarse` upsampled channels beside `skip` others.
fn joined(
    format: Format,
    c_out: usize,
    coarse: usize,
    skip: usize,
    at: impl Fn(usize, usize, [usize; 3]) -> f32,
) -> (Filters, usize) {
    let group = if skip == NARROW { 2 } else { 1 };
    // A pair of outputs is an even and an odd column.
    let lattices = [2, 2 / group];
    let inputs = [
        Taps { channels: coarse, kernel: [2; 3], format },
        Taps { channels: group * skip, kernel: [3, 3, if group == 2 { 2 } else { 3 }], format },
    ];
    let filter = |odd_plane: usize, odd_row: usize, odd_column: usize| {
        Filter::new(format, group * c_out, &inputs, |input, co, ci, [z, y, x]| {
            let (of_group, co) = (co / c_out, co % c_out);
            if input == 1 {
                let tap = if group == 2 { paired_tap(of_group, x, ci / skip) } else { Some(x) };
                return tap.map_or(0.0, |x| at(co, coarse + ci % skip, [z, y, x]));
            }
            let mut sum = 0.0;
            for kz in coarse_taps(odd_plane, z) {
                for ky in coarse_taps(odd_row, y) {
                    let taps = coarse_taps(odd_column + of_group, x);
                    sum += taps.map(|kx| f64::from(at(co, ci, [kz, ky, kx]))).sum::<f64>();
                }
            }
            sum as f32
        })
    };
    let of_planes = [0, 1].map(|plane| {
        let lattices = (0..lattices[0] * lattices[1]).map(|i| (i / lattices[1], i % lattices[1]));
        lattices.map(|(row, column)| filter(plane, row, column)).collect()
    });
    (Filters::Joined { of_planes, lattices }, group)
}
