//! From sums to voxels: activation, rounding, and the head.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::avx512;
use super::split;
use crate::activation::{Activation, Head};
use crate::unit::{ROWS, Unit};

/// Sums of a tile.
pub(super) type TileSums = [f32; ROWS * 16];

/// [`Activation`] from a channel on.
pub(super) struct Lanes<'a> {
    bias: &'a [f32],
    slope: f32,
    scale: &'a [f32],
    shift: &'a [f32],
}

/// [`Activation`] for the 16 channels of a tile.
pub(super) struct TileLanes<'a> {
    pub bias: &'a [f32; 16],
    pub slope: f32,
    pub scale: &'a [f32; 16],
    pub shift: &'a [f32; 16],
}

impl<'a> Lanes<'a> {
    pub fn of(activation: &'a Activation, channel: usize) -> Self {
        let Activation { bias, slope, scale, shift } = activation;
        Self { bias: &bias[channel..], slope: *slope, scale: &scale[channel..], shift: &shift[channel..] }
    }

    /// For the `block`-th 16 channels.
    pub fn block(&self, block: usize) -> TileLanes<'a> {
        let lanes = |v: &'a [f32]| v[16 * block..].first_chunk().expect("a value per channel");
        let [bias, scale, shift] = [self.bias, self.scale, self.shift].map(lanes);
        TileLanes { bias, slope: self.slope, scale, shift }
    }
}

impl TileLanes<'_> {
    fn apply(&self, sums: &mut TileSums) {
        for voxel in sums.as_chunks_mut::<16>().0 {
            for k in 0..16 {
                let value = voxel[k] + self.bias[k];
                // max is LeakyReLU for slopes from 0 to 1.
                voxel[k] = self.scale[k] * value.max(self.slope * value) + self.shift[k];
            }
        }
    }
}

/// Activates the first `count` voxels and rounds them to places `stride` values apart; what is left goes to `low`.
pub(super) fn store_voxels(
    unit: Unit,
    sums: &mut [f32],
    act: &Lanes<'_>,
    count: usize,
    high: &mut [u16],
    mut low: Option<&mut [u16]>,
    stride: usize,
) {
    let sums = sums.as_chunks_mut::<{ ROWS * 16 }>().0;
    let room = (count - 1) * stride + 16 * sums.len();
    assert!(count <= ROWS && high.len() >= room && low.as_ref().is_none_or(|low| low.len() >= room));
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if unit == Unit::Amx {
        // SAFETY: that unit comes with AVX-512 (checked before it is chosen); there is room.
        return unsafe { avx512::store_voxels(sums, act, count, high, low, stride) };
    }
    let _ = unit;
    for (block, sums) in sums.iter_mut().enumerate() {
        act.block(block).apply(sums);
        for (i, &value) in sums.iter().enumerate().take(16 * count) {
            let at = i / 16 * stride + 16 * block + i % 16;
            let terms = split(value);
            high[at] = terms[0];
            if let Some(low) = &mut low {
                low[at] = terms[1];
            }
        }
    }
}

/// The head's components of a tile's voxels.
pub(super) fn components(
    unit: Unit,
    sums: &mut TileSums,
    act: &TileLanes<'_>,
    head: &Head,
) -> [[f32; ROWS]; 3] {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if unit == Unit::Amx {
        // SAFETY: that unit comes with AVX-512 (checked before it is chosen).
        return unsafe { avx512::components(sums, act, head) };
    }
    let _ = unit;
    act.apply(sums);
    let voxels = sums.as_chunks::<16>().0;
    std::array::from_fn(|c| {
        let dot = |v: &[f32; 16]| (0..16).map(|k| head.weight[c][k] * v[k]).sum::<f32>();
        std::array::from_fn(|i| head.bias[c] + dot(&voxels[i]))
    })
}
