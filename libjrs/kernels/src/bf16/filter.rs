//! Weights in the order in which the matrix unit reads them.

use super::round;

/// How a filter meets one of its inputs.
#[derive(Clone, Copy, Debug)]
pub struct Taps {
    /// Input channels: 16 or a multiple of 32.
    pub channels: usize,
    /// Kernel edges z, y, x; x at most 4.
    pub kernel: [usize; 3],
}

/// Where a K step reads, from the place of the output: 32 values from there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub plane: usize,
    pub dy: usize,
    pub dx: usize,
    pub channel: usize,
}

/// Weights from one or two inputs to some output channels, in bf16.
#[derive(Debug)]
pub struct Filter {
    c_out: usize,
    inputs: Vec<(Taps, Vec<Step>)>,
    /// `[group of blocks][K step][block of 16 output channels][pair of inputs][output channel][input of the pair]`; a group is two
    /// blocks, or the only one.
    weights: Vec<u16>,
}

/// Values of a tile of weights.
pub(super) const TILE: usize = 16 * 32;

impl Filter {
    /// Packs `weight(input, c_out, c_in, [kz, ky, kx])`.
    ///
    /// # Panics
    /// If a number of channels does not fit the unit (see [`Taps`]; `c_out` is 16 or a multiple of 32), or there are no
    /// inputs or more than two.
    pub fn new(
        c_out: usize,
        inputs: &[Taps],
        weight: impl Fn(usize, usize, usize, [usize; 3]) -> f32,
    ) -> Self {
        assert!(c_out == 16 || c_out.is_multiple_of(32) && c_out > 0, "{c_out} output channels");
        assert!(matches!(inputs.len(), 1 | 2), "{} inputs", inputs.len());
        let mut filter = Self {
            c_out,
            inputs: inputs.iter().map(|&taps| (taps, steps(taps))).collect(),
            weights: Vec::new(),
        };
        for group in 0..filter.groups() {
            for (input, (taps, steps)) in filter.inputs.iter().enumerate() {
                for step in steps {
                    for block in 0..filter.blocks() {
                        let first = (group * filter.blocks() + block) * 16;
                        for i in 0..TILE {
                            let (pair, co, part) = (i / 32, first + i / 2 % 16, i % 2);
                            // The step's 32 values may be two voxels of 16 channels.
                            let k = step.channel + 2 * pair + part;
                            let (kx, ci) = (step.dx + k / taps.channels, k % taps.channels);
                            let inside = kx < taps.kernel[2];
                            let value =
                                if inside { weight(input, co, ci, [step.plane, step.dy, kx]) } else { 0.0 };
                            filter.weights.push(round(value));
                        }
                    }
                }
            }
        }
        filter
    }

    /// A 3x3x3 convolution of nearest-upsampled channels beside those of a skip connection, `weight(c_out, c_in, tap)` in that order, for
    /// the outputs of the given parities z, y, x. Its first input is the coarse one, of 2 planes, its second the skip, of 3.
    ///
    /// Along an axis, tap k of output 2i + p meets upsampled voxel 2i + p + k, which is coarse voxel i + (p + k)/2.
    pub fn after_upsampling(
        c_out: usize,
        coarse: usize,
        skip: usize,
        parity: [usize; 3],
        weight: impl Fn(usize, usize, [usize; 3]) -> f32,
    ) -> Self {
        let inputs = [Taps { channels: coarse, kernel: [2; 3] }, Taps { channels: skip, kernel: [3; 3] }];
        Self::new(c_out, &inputs, |input, co, ci, tap| {
            if input == 1 {
                return weight(co, coarse + ci, tap);
            }
            let meets = |k: &[usize; 3]| (0..3).all(|a| (parity[a] + k[a]) / 2 == tap[a]);
            let taps = (0..27).map(|i| [i / 9, i / 3 % 3, i % 3]).filter(meets);
            taps.map(|k| weight(co, ci, k) as f64).sum::<f64>() as f32
        })
    }

    /// Output channels.
    pub fn c_out(&self) -> usize {
        self.c_out
    }

    /// Blocks of 16 output channels that are computed together.
    pub(super) fn blocks(&self) -> usize {
        if self.c_out == 16 { 1 } else { 2 }
    }

    pub(super) fn groups(&self) -> usize {
        self.c_out / (16 * self.blocks())
    }

    pub(super) fn inputs(&self) -> &[(Taps, Vec<Step>)] {
        &self.inputs
    }

    /// Tiles of a group, in the order of the steps of all inputs.
    pub(super) fn weights(&self, group: usize) -> &[u16] {
        let len = self.weights.len() / self.groups();
        &self.weights[group * len..][..len]
    }
}

fn steps(taps: Taps) -> Vec<Step> {
    let Taps { channels, kernel: [kz, ky, kx] } = taps;
    assert!(channels == 16 || channels.is_multiple_of(32) && channels > 0, "{channels} input channels");
    let mut steps = Vec::new();
    for plane in 0..kz {
        for dy in 0..ky {
            if channels == 16 {
                steps.extend((0..kx).step_by(2).map(|dx| Step { plane, dy, dx, channel: 0 }));
            } else {
                let places =
                    (0..kx).flat_map(|dx| (0..channels).step_by(32).map(move |channel| (dx, channel)));
                steps.extend(places.map(|(dx, channel)| Step { plane, dy, dx, channel }));
            }
        }
    }
    steps
}
