//! One z-plane of a tensor, in blocks of 16 channels.

use crate::LINE;
use crate::pool::{Buffer, Pool};

/// Channels of a block: those of a cache line.
pub(super) const BLOCK: usize = 16;
/// Voxels behind the last one that a register tile may read (and whose sums are thrown away).
const SLACK: usize = 64;
/// Voxels behind the last one that count: a position of Winograd's filtering may reach three. Their part of a sum cancels, if it is
/// a number, but not to the last bit.
const BEHIND: usize = 3;

/// A plane `[channel / 16][y][x][channel % 16]` of f32, with zeros before its first row and before the first voxel of each row: a
/// convolution padded by 1 reads it as it is. Where the channels are no multiple of 16 (the two images), every one is a block.
///
/// Who writes a row's first voxel writes the zeros in front of it: in one go, a plane's rows would be as many cache misses.
#[derive(Debug)]
pub struct Plane<'p> {
    channels: usize,
    /// y, x.
    edges: [usize; 2],
    buffer: Buffer<'p>,
}

impl<'p> Plane<'p> {
    /// A plane with zeros before its first row and behind its last, whose rows are **whatever an earlier user left**. `edges` = \[y, x\].
    pub fn new(pool: &'p Pool, channels: usize, edges: [usize; 2]) -> Self {
        let buffer = pool.take(Self::floats(channels, edges));
        let mut plane = Self { channels, edges, buffer };
        let (width, pitch) = (plane.width(), plane.pitch());
        for block in plane.values_mut().chunks_exact_mut(block_len(width, edges)) {
            block[..pitch].fill(0.0);
            block[(1 + edges[0]) * pitch..][..BEHIND * width].fill(0.0);
        }
        plane
    }

    /// A plane of zeros: what padding along z reads.
    pub fn zero(pool: &'p Pool, channels: usize, edges: [usize; 2]) -> Self {
        let mut plane = Self::new(pool, channels, edges);
        plane.buffer.fill(0.0);
        plane
    }

    /// Length of the buffer of such a plane.
    pub fn floats(channels: usize, edges: [usize; 2]) -> usize {
        let width = width(channels);
        channels / width * block_len(width, edges) + LINE
    }

    /// Channels of a voxel.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Rows and columns, without the border.
    pub fn edges(&self) -> [usize; 2] {
        self.edges
    }

    /// Channels side by side.
    pub(super) fn width(&self) -> usize {
        width(self.channels)
    }

    pub(super) fn blocks(&self) -> usize {
        self.channels / self.width()
    }

    /// Values from one row to the next.
    pub(super) fn pitch(&self) -> usize {
        (self.edges[1] + 1) * self.width()
    }

    /// Where voxel (y, x) of a block lies in [`Plane::values`], from -1 on.
    pub(super) fn at(&self, block: usize, y: isize, x: isize) -> usize {
        let row = block * block_len(self.width(), self.edges) + (y + 1) as usize * self.pitch();
        row + (x + 1) as usize * self.width()
    }

    /// All values, border and slack included, on a cache line.
    pub(super) fn values(&self) -> &[f32] {
        &self.buffer[crate::to_line(self.buffer.as_ptr())..]
    }

    pub(super) fn values_mut(&mut self) -> &mut [f32] {
        let skip = crate::to_line(self.buffer.as_ptr());
        &mut self.buffer[skip..]
    }

    /// The voxels, `[channel][y][x]`.
    pub fn to_vec(&self) -> Vec<f32> {
        let ([height, columns], width) = (self.edges, self.width());
        let value = |i: usize| {
            let (c, y, x) = (i / (height * columns), i / columns % height, i % columns);
            self.values()[self.at(c / width, y as isize, x as isize) + c % width]
        };
        (0..self.channels * height * columns).map(value).collect()
    }

    /// Copies `[channel][y][x]` into the rows, into channels from `first` on.
    ///
    /// # Panics
    /// If those are no whole channels, or more than there are.
    pub fn fill_from(&mut self, source: &[f32], first: usize) {
        let ([height, columns], width) = (self.edges, self.width());
        assert!(source.len().is_multiple_of(height * columns), "{} values", source.len());
        for (row, values) in source.chunks_exact(columns).enumerate() {
            let (c, y) = (first + row / height, row % height);
            let at = self.at(c / width, y as isize, -1) + c % width;
            let to = &mut self.values_mut()[at..];
            to[0] = 0.0;
            if width == 1 {
                to[1..=columns].copy_from_slice(values);
            } else {
                to.iter_mut().step_by(width).skip(1).zip(values).for_each(|(to, value)| *to = *value);
            }
        }
    }
}

fn width(channels: usize) -> usize {
    if channels.is_multiple_of(BLOCK) { BLOCK } else { 1 }
}

/// Values of a block with its border and slack, in whole cache lines.
fn block_len(width: usize, [height, columns]: [usize; 2]) -> usize {
    (((height + 1) * (columns + 1) + SLACK) * width).next_multiple_of(LINE)
}
