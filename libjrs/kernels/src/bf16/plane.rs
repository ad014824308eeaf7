//! One z-plane of a tensor, channels innermost.

use super::{round, widen};
use crate::pool::{Buffer, Pool};
use rayon::prelude::*;

/// Values of f32 in a cache line: planes start on one.
const LINE: usize = 16;
/// Voxels behind the last one that a tile may read (and whose sums are thrown away).
const SLACK: usize = 2 * 16 + 4;

/// A plane `[y][x][channel]` of bf16, with a border of zeros before its first row and column: a convolution padded by 1 reads
/// it as it is.
#[derive(Debug)]
pub struct Plane<'p> {
    channels: usize,
    /// y, x.
    edges: [usize; 2],
    buffer: Buffer<'p>,
}

impl<'p> Plane<'p> {
    /// A plane whose border is zero and whose voxels are **whatever an earlier user left**. `edges` = \[y, x\].
    ///
    /// # Panics
    /// If `channels` is not a multiple of 16.
    pub fn new(pool: &'p Pool, channels: usize, edges: [usize; 2]) -> Self {
        assert!(channels.is_multiple_of(16), "{channels} channels are no multiple of 16");
        let mut plane = Self { channels, edges, buffer: pool.take(Self::floats(channels, edges)) };
        let (pitch, [height, _]) = (plane.pitch(), edges);
        let values = plane.values_mut();
        values[..pitch].fill(0);
        for y in 1..=height {
            values[y * pitch..][..channels].fill(0);
        }
        // Weights of zero do not take away what is not a number.
        values[(height + 1) * pitch..].fill(0);
        plane
    }

    /// A plane of zeros: what padding along z reads.
    pub fn zero(pool: &'p Pool, channels: usize, edges: [usize; 2]) -> Self {
        let mut plane = Self::new(pool, channels, edges);
        plane.buffer.fill(0.0);
        plane
    }

    /// Length of the buffer of such a plane, in units of f32.
    pub fn floats(channels: usize, [height, width]: [usize; 2]) -> usize {
        (((height + 1) * (width + 1) + SLACK) * channels).div_ceil(2) + LINE
    }

    /// Channels of a voxel.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Rows and columns, without the border.
    pub fn edges(&self) -> [usize; 2] {
        self.edges
    }

    /// Values from one row to the next.
    pub(super) fn pitch(&self) -> usize {
        (self.edges[1] + 1) * self.channels
    }

    /// All values, border and slack included; the first is that of voxel (-1, -1), on a cache line.
    pub(super) fn values(&self) -> &[u16] {
        let skip = to_line(self.buffer.as_ptr());
        let aligned = &self.buffer[skip..];
        // SAFETY: f32 values are two u16 each, of weaker alignment and without invalid patterns.
        unsafe { std::slice::from_raw_parts(aligned.as_ptr().cast(), 2 * aligned.len()) }
    }

    pub(super) fn values_mut(&mut self) -> &mut [u16] {
        let skip = to_line(self.buffer.as_ptr());
        let aligned = &mut self.buffer[skip..];
        // SAFETY: as in `values`; the slice is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(aligned.as_mut_ptr().cast(), 2 * aligned.len()) }
    }

    /// The rows, border column in front of each.
    pub(super) fn rows_mut(&mut self) -> &mut [u16] {
        let (pitch, height) = (self.pitch(), self.edges[0]);
        &mut self.values_mut()[pitch..][..height * pitch]
    }

    /// The voxels as f32, `[channel][y][x]`.
    pub fn to_f32(&self) -> Vec<f32> {
        let ([height, width], values) = (self.edges, self.values());
        let at = |c: usize, y: usize, x: usize| values[(y + 1) * self.pitch() + (x + 1) * self.channels + c];
        let place = |i: usize| (i / (height * width), i / width % height, i % width);
        (0..self.channels * height * width)
            .map(|i| {
                let (c, y, x) = place(i);
                widen(at(c, y, x))
            })
            .collect()
    }

    /// Rounds `[channel][y][x]` into the voxels.
    ///
    /// # Panics
    /// If there is not one value for each.
    pub fn fill_from(&mut self, source: &[f32]) {
        let ([height, width], channels) = (self.edges, self.channels);
        assert_eq!(source.len(), channels * height * width);
        let pitch = self.pitch();
        for (i, &value) in source.iter().enumerate() {
            let (c, y, x) = (i / (height * width), i / width % height, i % width);
            self.rows_mut()[y * pitch + (x + 1) * channels + c] = round(value);
        }
    }
}

/// f32 values up to the next cache line.
fn to_line(start: *const f32) -> usize {
    (start.addr().wrapping_neg() / size_of::<f32>()) % LINE
}

/// The input of the first layer, from a plane of the fixed and one of the moving image, `[y][x]` of `edges`: voxel (y, x) of
/// `to` (two rows fewer) holds rows y, y + 1 and y + 2 of both images, each value as a sum of two bf16 so that nothing of
/// the images is rounded away: channel `4*row + 2*image + part`, and four of zeros. The kernel along y has become channels, so that the unit is
/// busy with two images.
///
/// # Panics
/// If the sizes do not fit.
pub fn stack_images(images: [&[f32]; 2], edges: [usize; 2], to: &mut Plane<'_>) {
    let [height, width] = edges;
    assert_eq!((to.channels, to.edges), (16, [height - 2, width]));
    assert!(images.iter().all(|image| image.len() == height * width));
    let split = |value: f32| {
        let high = round(value);
        [high, round(value - widen(high))]
    };
    let packed: Vec<[u16; 4]> = images[0]
        .par_iter()
        .zip(images[1])
        .with_min_len(1 << 12)
        .map(|(&fixed, &moving)| {
            let ([f0, f1], [m0, m1]) = (split(fixed), split(moving));
            [f0, f1, m0, m1]
        })
        .collect();
    let pitch = to.pitch();
    to.rows_mut().par_chunks_exact_mut(pitch).with_min_len(16).enumerate().for_each(|(y, row)| {
        let rows = [0, 1, 2].map(|k| &packed[(y + k) * width..][..width]);
        for (x, voxel) in row[16..].as_chunks_mut::<4>().0.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            *voxel = [rows[0][x], rows[1][x], rows[2][x], [0; 4]];
        }
    });
}
