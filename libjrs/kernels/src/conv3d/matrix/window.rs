//! What a task reads: some planes of a band of rows, channels innermost, as pairs of bf16.

use std::ops::Range;

use super::vectors;
use crate::pool::{Buffer, SCRATCH};
use crate::unit::{ROWS, TILES, Unit};

/// Most bytes of a window, unless four rows need more: with weights and sums it stays in a 2 MB L2 cache.
const MOST: usize = 768 << 10;
/// A part has at least this many planes, or the planes that two parts share cost too much.
const FEWEST_PLANES: usize = 4;

/// A convolution's reading side, as the direct path has it.
pub(super) use crate::conv3d::window::Reading;

/// How outputs are cut into parts.
pub(super) struct Bands {
    reading: Reading,
    /// Output rows and planes of a part.
    rows: usize,
    planes: usize,
    /// Voxels of a packed row: all that the tiles of a row of outputs read.
    pitch: usize,
}

/// Some rows of some output planes.
#[derive(Clone)]
pub(super) struct Part {
    pub batch: usize,
    pub planes: Range<usize>,
    pub rows: Range<usize>,
}

impl Bands {
    /// Depends on shapes only: about `parts` of them.
    pub fn new(reading: Reading, batch: usize, parts: usize) -> Self {
        let [depth, height, width] = reading.output;
        let reach = reading.stride * (width.next_multiple_of(ROWS) - 1) + reading.kernel[2];
        let mut bands = Self { reading, rows: TILES, planes: depth, pitch: reach.next_multiple_of(ROWS) };
        while bands.rows < height && bands.bytes_with(bands.rows + TILES) <= MOST {
            bands.rows += TILES;
        }
        // Rows of equal bands.
        bands.rows = height.div_ceil(height.div_ceil(bands.rows)).next_multiple_of(TILES);
        let along_z = parts.div_ceil(batch * height.div_ceil(bands.rows)).min(depth.div_ceil(FEWEST_PLANES));
        bands.planes = depth.div_ceil(along_z);
        bands
    }

    pub fn parts(&self, batch: usize) -> Vec<Part> {
        let [depth, height, _] = self.reading.output;
        let cut = |n: usize, step: usize| (0..n).step_by(step).map(move |from| from..n.min(from + step));
        let mut parts = Vec::new();
        for batch in 0..batch {
            for planes in cut(depth, self.planes) {
                parts.extend(cut(height, self.rows).map(|rows| Part { batch, planes: planes.clone(), rows }));
            }
        }
        parts
    }

    /// Blocks of 16 input channels.
    pub fn blocks(&self) -> usize {
        self.reading.c_in.div_ceil(16)
    }

    /// Bytes from a packed row to the next.
    pub fn row_bytes(&self) -> usize {
        64 * self.pitch
    }

    fn bytes_with(&self, rows: usize) -> usize {
        self.reading.kernel[0] * self.blocks() * self.packed_rows(rows) * self.row_bytes()
    }

    /// Input rows that `rows` outputs meet.
    fn packed_rows(&self, rows: usize) -> usize {
        self.reading.stride * (rows - 1) + self.reading.kernel[1]
    }
}

/// The planes that an output plane meets, `[plane in turn][block of 16 channels][y][x][channel]`, from the part's first row and
/// column on.
pub(super) struct Window<'a> {
    unit: Unit,
    bands: &'a Bands,
    part: Part,
    /// Input planes packed so far, counted from the part's first.
    packed: usize,
    /// Rows of a block, from the first cache line on.
    rows: usize,
    buffer: Buffer<'static>,
}

impl<'a> Window<'a> {
    pub fn new(unit: Unit, bands: &'a Bands, part: Part) -> Self {
        let rows = bands.packed_rows(part.rows.len());
        let buffer = SCRATCH.take(bands.bytes_with(part.rows.len()) / 4 + 16);
        Self { unit, bands, part, packed: 0, rows, buffer }
    }

    /// Packs what output plane `z` meets and its predecessors did not. Call it plane by plane.
    pub fn advance(&mut self, x: &[f32], z: usize) {
        let Reading { c_in, input: [depth, height, width], start, stride, kernel, .. } = self.bands.reading;
        let first = stride * (z - self.part.planes.start);
        for plane in self.packed.max(first)..first + kernel[0] {
            let from = start[0] + (stride * self.part.planes.start + plane) as isize;
            let (pitch, rows, slot) = (self.bands.pitch, self.rows, plane % kernel[0]);
            let first_row = start[1] + (stride * self.part.rows.start) as isize;
            let (unit, batch, blocks) = (self.unit, self.part.batch, self.bands.blocks());
            let lines = self.lines_mut();
            for (i, to) in lines[slot * blocks * rows * pitch..][..blocks * rows * pitch]
                .chunks_exact_mut(pitch)
                .enumerate()
            {
                let (block, row) = (i / rows, first_row + (i % rows) as isize);
                if from < 0 || from as usize >= depth || row < 0 || row as usize >= height {
                    to.fill([0; 16]);
                    continue;
                }
                let channels = (16 * block..c_in.min(16 * block + 16)).map(|c| {
                    let plane = (batch * c_in + c) * depth + from as usize;
                    &x[(plane * height + row as usize) * width..][..width]
                });
                vectors::pack(unit, channels, start[2], to);
            }
        }
        self.packed = self.packed.max(first + kernel[0]);
    }

    /// The first tap's voxel of the first plane and block, in a row and column of the window.
    pub fn row(&self, row: usize, column: usize) -> *const u8 {
        self.lines()[row * self.bands.pitch + column..].as_ptr().cast()
    }

    /// Bytes from the window's first voxel to one of tap plane `plane` of output plane `z`.
    pub fn offset(&self, z: usize, plane: usize, block: usize, row: usize, column: usize) -> isize {
        let Reading { stride, kernel, .. } = self.bands.reading;
        let slot = (stride * (z - self.part.planes.start) + plane) % kernel[0];
        let line = ((slot * self.bands.blocks() + block) * self.rows + row) * self.bands.pitch + column;
        64 * line as isize
    }

    /// Voxels, 16 pairs each, on cache lines.
    fn lines(&self) -> &[[u32; 16]] {
        let skip = self.skip();
        let lines = self.buffer[skip..].as_chunks::<16>().0;
        // SAFETY: f32 and u32 have the same size and alignment, and no invalid patterns.
        unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len()) }
    }

    fn lines_mut(&mut self) -> &mut [[u32; 16]] {
        let skip = self.skip();
        let lines = self.buffer[skip..].as_chunks_mut::<16>().0;
        // SAFETY: as in `lines`; the slice is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len()) }
    }

    fn skip(&self) -> usize {
        (self.buffer.as_ptr().addr().wrapping_neg() / 4) % 16
    }
}
