//! One z-plane of a tensor, channels innermost.

use super::{Format, split, widen};
use crate::pool::{Buffer, Pool};
use crate::{LINE, to_line};

/// Zero columns in front of each row. Two, so that pairs of voxels stay pairs.
pub(super) const BORDER: usize = 2;
/// Voxels behind the last one that a tile may read (and whose sums are thrown away): 16 steps of up to four voxels, and a kernel.
const SLACK: usize = 4 * 16 + 8;

/// A plane `[y][x][channel]` of bf16, with zeros before its first row and before the first voxel of each row: a convolution
/// padded by 1 reads it as it is. In [`Format::Two`] the low terms are a second such plane behind that of the high ones.
///
/// Who writes a row's first voxel writes the zeros in front of it: in one go, a plane's rows would be as many cache misses.
#[derive(Debug)]
pub struct Plane<'p> {
    channels: usize,
    /// y, x.
    edges: [usize; 2],
    format: Format,
    buffer: Buffer<'p>,
}

impl<'p> Plane<'p> {
    /// A plane with zeros before its first row and behind its last, whose rows are **whatever an earlier user left**. `edges` = \[y, x\].
    ///
    /// # Panics
    /// If `channels` is not a multiple of 16.
    pub fn new(pool: &'p Pool, channels: usize, edges: [usize; 2], format: Format) -> Self {
        assert!(channels.is_multiple_of(16), "{channels} channels are no multiple of 16");
        let buffer = pool.take(Self::floats(channels, edges, format));
        let mut plane = Self { channels, edges, format, buffer };
        let (pitch, [height, _]) = (plane.pitch(), edges);
        for values in plane.terms_mut() {
            values[..pitch].fill(0);
            // Weights of zero do not take away what is not a number.
            values[(height + 1) * pitch..].fill(0);
        }
        plane
    }

    /// A plane of zeros: what padding along z reads.
    pub fn zero(pool: &'p Pool, channels: usize, edges: [usize; 2], format: Format) -> Self {
        let mut plane = Self::new(pool, channels, edges, format);
        plane.buffer.fill(0.0);
        plane
    }

    /// Length of the buffer of such a plane, in units of f32.
    pub fn floats(channels: usize, edges: [usize; 2], format: Format) -> usize {
        format.terms() * term(channels, edges) / 2 + LINE
    }

    /// How its values are held.
    pub fn format(&self) -> Format {
        self.format
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
        (self.edges[1] + BORDER) * self.channels
    }

    /// Values from a high term to its low one.
    pub(super) fn low(&self) -> usize {
        term(self.channels, self.edges)
    }

    /// All values, border and slack included; the first is that of voxel (-1, -2), on a cache line.
    pub(super) fn values(&self) -> &[u16] {
        let skip = to_line(self.buffer.as_ptr());
        let aligned = &self.buffer[skip..];
        // SAFETY: f32 values are two u16 each, of weaker alignment and without invalid patterns.
        unsafe { std::slice::from_raw_parts(aligned.as_ptr().cast(), 2 * aligned.len()) }
    }

    /// [`Plane::values`] of each term.
    fn terms_mut(&mut self) -> impl Iterator<Item = &mut [u16]> {
        let (low, terms) = (self.low(), self.format.terms());
        let skip = to_line(self.buffer.as_ptr());
        let aligned = &mut self.buffer[skip..];
        // SAFETY: as in `values`; the slice is borrowed mutably.
        let values =
            unsafe { std::slice::from_raw_parts_mut(aligned.as_mut_ptr().cast(), 2 * aligned.len()) };
        values.chunks_exact_mut(low).take(terms)
    }

    /// The rows of each term, border in front of each.
    pub(super) fn rows_mut(&mut self) -> impl Iterator<Item = &mut [u16]> {
        let (pitch, height) = (self.pitch(), self.edges[0]);
        self.terms_mut().map(move |values| &mut values[pitch..][..height * pitch])
    }

    /// The voxels as f32, `[channel][y][x]`.
    pub fn to_f32(&self) -> Vec<f32> {
        let [height, width] = self.edges;
        let at = |c: usize, y: usize, x: usize| {
            let first = (y + 1) * self.pitch() + (x + BORDER) * self.channels + c;
            let terms = self.values()[first..].iter().step_by(self.low()).take(self.format.terms());
            terms.map(|&term| widen(term)).sum()
        };
        let place = |i: usize| (i / (height * width), i / width % height, i % width);
        (0..self.channels * height * width)
            .map(|i| {
                let (c, y, x) = place(i);
                at(c, y, x)
            })
            .collect()
    }

    /// Rounds `[channel][y][x]` into the rows.
    ///
    /// # Panics
    /// If there is not one value for each.
    pub fn fill_from(&mut self, source: &[f32]) {
        let ([height, width], channels) = (self.edges, self.channels);
        assert_eq!(source.len(), channels * height * width);
        let pitch = self.pitch();
        for (term, rows) in self.rows_mut().enumerate() {
            rows.chunks_exact_mut(pitch).for_each(|row| row[..BORDER * channels].fill(0));
            for (i, &value) in source.iter().enumerate() {
                let (c, y, x) = (i / (height * width), i / width % height, i % width);
                rows[y * pitch + (x + BORDER) * channels + c] = split(value)[term];
            }
        }
    }
}

/// The input of the first layer, from a plane of the fixed and one of the moving image, `[y][x]` of `edges`: voxel (y, x) of
/// `to` (two rows fewer, in [`Format::One`]) holds rows y, y + 1 and y + 2 of both images, high and low terms side by side so that
/// nothing of the images is rounded away: channel `4*row + 2*image + term`, and four of zeros. The kernel along y has become channels, so that the unit is
/// busy with two images.
///
/// # Panics
/// If the sizes do not fit.
pub fn stack_images(images: [&[f32]; 2], edges: [usize; 2], to: &mut Plane<'_>) {
    let [height, width] = edges;
    assert_eq!((to.channels, to.edges, to.format), (16, [height - 2, width], Format::One));
    assert!(images.iter().all(|image| image.len() == height * width));
    let pack = |y: usize| -> Vec<[u16; 4]> {
        let [fixed, moving] = images.map(|image| &image[y * width..][..width]);
        fixed
            .iter()
            .zip(moving)
            .map(|(&f, &m)| [split(f), split(m)])
            .map(|[f, m]| [f[0], f[1], m[0], m[1]])
            .collect()
    };
    let pitch = to.pitch();
    let mut rows = [Vec::new(), pack(0), pack(1)];
    let values = to.rows_mut().next().expect("one term");
    for (y, row) in values.chunks_exact_mut(pitch).enumerate() {
        rows.rotate_left(1);
        rows[2] = pack(y + 2);
        let (border, voxels) = row.split_at_mut(16 * BORDER);
        border.fill(0);
        for (x, voxel) in voxels.as_chunks_mut::<4>().0.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            *voxel = [rows[0][x], rows[1][x], rows[2][x], [0; 4]];
        }
    }
}

/// Values of one term with its border and slack, in whole cache lines.
fn term(channels: usize, [height, width]: [usize; 2]) -> usize {
    (((height + 1) * (width + BORDER) + SLACK) * channels).next_multiple_of(2 * LINE)
}
