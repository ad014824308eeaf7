//! Weights in the order in which the matrix unit reads them.

use super::{Format, split};
use crate::unit::TILE;

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

/// Where a K step reads, from the place of the output: 32 values from there; and which terms it multiplies, 0 high and 1 low.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub term: usize,
    pub weight_term: usize,
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
    /// `[block of 16 output channels][K step][pair of inputs][output channel][input of the pair]`.
    weights: Vec<u16>,
}

/// What a kernel's weights along one axis add up to where the input is upsampled by 2 (nearest) and the coarse voxels are read
/// themselves: tap k of output 2i + `parity` meets upsampled voxel 2i + parity + k, which is coarse voxel i + (parity + k)/2.
pub fn coarse_taps(parity: usize, coarse: usize) -> impl Iterator<Item = usize> {
    (0..3).filter(move |k| (parity + k) / 2 == coarse)
}

/// The tap with which output 2j + `output` meets voxel `input` of the `pair`-th pair that it reads, where inputs and outputs come in
/// pairs along x; `None` where it does not.
pub fn paired_tap(output: usize, pair: usize, input: usize) -> Option<usize> {
    (2 * pair + input).checked_sub(output).filter(|&tap| tap < 3)
}

impl Filter {
    /// Packs `weight(input, c_out, c_in, [kz, ky, kx])` in a format.
    ///
    /// # Panics
    /// If a number of channels does not fit the unit (see [`Taps`]; `c_out` is a multiple of 16, inputs of 32), or there are no
    /// inputs or more than two.
    pub fn new(
        format: Format,
        c_out: usize,
        inputs: &[Taps],
        weight: impl Fn(usize, usize, usize, [usize; 3]) -> f32,
    ) -> Self {
        assert!(c_out.is_multiple_of(16) && c_out > 0, "{c_out} output channels");
        assert!(matches!(inputs.len(), 1 | 2), "{} inputs", inputs.len());
        let mut filter = Self {
            c_out,
            inputs: inputs.iter().map(|&taps| (taps, steps(taps, format))).collect(),
            weights: Vec::new(),
        };
        for block in 0..c_out / 16 {
            for (input, (_, steps)) in filter.inputs.iter().enumerate() {
                for step in steps {
                    for i in 0..TILE {
                        let (pair, co, part) = (i / 32, 16 * block + i / 2 % 16, i % 2);
                        let (ci, tap) = (step.channel + 2 * pair + part, [step.plane, step.dy, step.dx]);
                        filter.weights.push(split(weight(input, co, ci, tap))[step.weight_term]);
                    }
                }
            }
        }
        filter
    }

    /// Output channels.
    pub fn c_out(&self) -> usize {
        self.c_out
    }

    pub(super) fn inputs(&self) -> &[(Taps, Vec<Step>)] {
        &self.inputs
    }

    /// Tiles of a block of 16 output channels, in the order of the steps of all inputs.
    pub(super) fn weights(&self, block: usize) -> &[u16] {
        let len = self.weights.len() / (self.c_out / 16);
        &self.weights[block * len..][..len]
    }
}

fn steps(taps: Taps, weights: Format) -> Vec<Step> {
    let Taps { channels, kernel: [kz, ky, kx], format } = taps;
    assert!(channels.is_multiple_of(32) && channels > 0, "{channels} input channels");
    let mut steps = Vec::new();
    // Channels outermost: what the taps of 32 channels read fits the L1 cache.
    for channel in (0..channels).step_by(32) {
        for plane in 0..kz {
            for (dy, dx) in (0..ky).flat_map(|dy| (0..kx).map(move |dx| (dy, dx))) {
                for (term, weight_term) in [(0, 0), (0, 1), (1, 0)] {
                    if term < format.terms() && weight_term < weights.terms() {
                        steps.push(Step { term, weight_term, plane, dy, dx, channel });
                    }
                }
            }
        }
    }
    steps
}
