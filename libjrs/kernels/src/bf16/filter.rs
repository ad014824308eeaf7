//! Weights in the order in which the matrix unit reads them.

use std::ops::Range;

use super::{Format, split};
use crate::unit::{Shape, Tile};

/// How a filter meets one of its inputs.
#[derive(Clone, Copy, Debug)]
pub struct Taps {
    /// Input channels, a multiple of 32; of both voxels where they are read in pairs.
    pub channels: usize,
    /// Kernel edges z, y, x.
    pub kernel: [usize; 3],
    /// Of the input.
    pub format: Format,
}

/// Where a K step reads, from the place of the output: 32 values from there; and which terms of the weights it takes, 0 high and
/// 1 low.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub weight_terms: Range<usize>,
    pub plane: usize,
    pub dy: usize,
    pub dx: usize,
    pub channel: usize,
}

/// Weights from one or two inputs to some output channels.
#[derive(Debug)]
pub struct Filter {
    c_out: usize,
    inputs: Vec<(Taps, Vec<Step>)>,
    /// `[channels of a register block][K step][weight term][16 output channels]`.
    weights: Vec<Tile>,
}

/// What a kernel's weights along one axis add up to where the input is upsampled by 2 (nearest) and the coarse voxels are read
/// themselves: tap k of output 2i + `parity` meets upsampled voxel 2i + parity + k, which is coarse voxel i + (parity + k)/2.
pub fn coarse_taps(parity: usize, coarse: usize) -> impl Iterator<Item = usize> {
    (0..3).filter(move |k| (parity + k) / 2 == coarse)
}

/// The tap with which an output meets voxel `input` of the `pair`-th pair that it reads, if its first tap is voxel `first` of them all;
/// `None` where it does not. Inputs and outputs come in pairs along x: at stride 1 `first` is 0 and 1 for the outputs of a pair.
pub fn paired_tap(first: usize, pair: usize, input: usize) -> Option<usize> {
    (2 * pair + input).checked_sub(first).filter(|&tap| tap < 3)
}

impl Filter {
    /// Packs `weight(input, c_out, c_in, [kz, ky, kx])` in a format.
    ///
    /// # Panics
    /// If a number of channels does not fit the unit (see [`Taps`]; all are multiples of 32), there are no inputs or more than two, they
    /// differ in format, or values are two terms each and weights only one.
    pub fn new(
        format: Format,
        c_out: usize,
        inputs: &[Taps],
        weight: impl Fn(usize, usize, usize, [usize; 3]) -> f32,
    ) -> Self {
        assert!(c_out.is_multiple_of(32) && c_out > 0, "{c_out} output channels");
        assert!(matches!(inputs.len(), 1 | 2), "{} inputs", inputs.len());
        assert!(inputs.iter().all(|taps| taps.format == inputs[0].format), "inputs in two formats");
        let inputs: Vec<_> = inputs.iter().map(|&taps| (taps, steps(taps, format))).collect();
        let of_steps: usize = inputs.iter().flat_map(|(_, steps)| steps).map(|s| s.weight_terms.len()).sum();
        let mut weights = Vec::with_capacity(c_out / 16 * of_steps);
        let blocks = Shape::TwoByTwo(inputs[0].0.format).blocks();
        for first in (0..c_out).step_by(16 * blocks) {
            for (input, (_, steps)) in inputs.iter().enumerate() {
                for (step, term) in steps.iter().flat_map(|s| s.weight_terms.clone().map(move |t| (s, t))) {
                    weights.extend((first..).step_by(16).take(blocks).map(|co| {
                        Tile(std::array::from_fn(|i| {
                            let (ci, co) = (step.channel + i / 32 * 2 + i % 2, co + i / 2 % 16);
                            split(weight(input, co, ci, [step.plane, step.dy, step.dx]))[term]
                        }))
                    }));
                }
            }
        }
        Self { c_out, inputs, weights }
    }

    /// Output channels.
    pub fn c_out(&self) -> usize {
        self.c_out
    }

    /// Bytes of the packed weights.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.weights[..])
    }

    pub(super) fn inputs(&self) -> &[(Taps, Vec<Step>)] {
        &self.inputs
    }

    /// What computes it. In the products both sides have as many terms.
    pub(super) fn shape(&self) -> Shape {
        Shape::TwoByTwo(self.inputs[0].0.format)
    }

    /// Tiles of a register block's channels from `first` on, in the order of the steps of all inputs.
    pub(super) fn weights(&self, first: usize) -> &[Tile] {
        let of_16 = self.weights.len() / (self.c_out / 16);
        &self.weights[first / 16 * of_16..][..self.shape().blocks() * of_16]
    }
}

fn steps(taps: Taps, weights: Format) -> Vec<Step> {
    let Taps { channels, kernel: [kz, ky, kx], format } = taps;
    assert!(channels.is_multiple_of(32) && channels > 0, "{channels} input channels");
    assert!(format.terms() <= weights.terms(), "values of two terms by weights of one");
    let mut steps = Vec::new();
    // Channels outermost: what the taps of 32 channels read fits the L1 cache.
    for channel in (0..channels).step_by(32) {
        for plane in 0..kz {
            for (dy, dx) in (0..ky).flat_map(|dy| (0..kx).map(move |dx| (dy, dx))) {
                // Values of one term meet one term of the weights at a time.
                steps.extend((0..weights.terms()).step_by(format.terms()).map(|term| Step {
                    weight_terms: term..term + format.terms(),
                    plane,
                    dy,
                    dx,
                    channel,
                }));
            }
        }
    }
    steps
}
