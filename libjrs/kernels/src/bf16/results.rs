//! Results on their way from a register block to memory.
//!
//! ```text
//!  matrix unit | products of block 1 | products of block 2 | products of block 3 |
//!  vectors     |                     | results of block 1  | results of block 2  | ...
//! ```
//!
//! One after the other, the unit would wait a third of the time: results are many instructions, and a processor looks ahead by no
//! more than some hundreds. So a few voxels go to memory after each K step of the next block.

use std::ops::Range;

use super::epilogue::{displacements_beside, voxels_beside};
use super::plane::BORDER;
use crate::activation::{Activation, Head};
use crate::unit::{Block, Sums, Unit};

/// Where a task writes: its rows of one output plane.
pub(super) enum Target<'a> {
    Voxels { high: &'a mut [u16], low: Option<&'a mut [u16]>, pitch: usize, channels: usize },
    Displacement { head: &'a Head, width: usize, u: [&'a mut [f32]; 3] },
}

/// Where the results of one lattice go.
#[derive(Clone, Copy)]
pub(super) struct Lattice<'a> {
    pub unit: Unit,
    pub activation: &'a Activation,
    /// Voxels along x that are computed as one.
    pub group: usize,
    /// Lattices along y and x.
    pub lattices: [usize; 2],
    /// First row and column of this one.
    pub parity: [usize; 2],
}

/// Results of a register block, as far as they are not stored: 32 channels (those of a group, where the head takes them) of one or two
/// rows.
///
/// Its numbers are set one by one: a structure that is copied is read in wholes of what was just stored by halves, and that waits until the
/// sums before it are in memory.
pub(super) struct Leaving<'t, 'a> {
    lattice: Lattice<'t>,
    target: &'t mut Target<'a>,
    place: Place,
}

/// Where the results of a block go.
#[derive(Default)]
pub(super) struct Place {
    /// First of 32 channels.
    pub channel: usize,
    /// One or two.
    pub rows: usize,
    /// Where each row begins among a task's values; a single row twice.
    pub starts: [usize; 2],
    /// Values from one result of a row to the next.
    pub stride: usize,
    /// Results of a row.
    pub columns: usize,
}

impl<'t, 'a> Leaving<'t, 'a> {
    /// Nothing yet.
    pub fn new(lattice: Lattice<'t>, target: &'t mut Target<'a>) -> Self {
        let step = lattice.lattices[1] * lattice.group;
        let stride = match target {
            Target::Voxels { channels, .. } => step * *channels,
            Target::Displacement { .. } => step,
        };
        let place = Place { stride, ..Place::default() };
        Self { lattice, target, place }
    }

    /// From now on it is the results of a block from `channel` on, at `rows` and `columns` (of groups) of the lattice.
    pub fn begin(&mut self, channel: usize, rows: Range<usize>, columns: Range<usize>) {
        let Lattice { group, lattices, parity, .. } = self.lattice;
        let column = group * (lattices[1] * columns.start + parity[1]);
        self.place.channel = channel;
        self.place.rows = rows.len();
        for (i, start) in self.place.starts.iter_mut().enumerate() {
            // Where there is one row it is both.
            let row = lattices[0] * (rows.end - 1).min(rows.start + i) + parity[0];
            *start = match self.target {
                Target::Voxels { pitch, channels, high, low } => {
                    let (row, border) = (row * *pitch, BORDER * *channels);
                    if column + channel == 0 {
                        high[row..][..border].fill(0);
                        low.iter_mut().for_each(|low| low[row..][..border].fill(0));
                    }
                    row + border + column * *channels + channel
                }
                Target::Displacement { width, .. } => row * *width + column,
            };
        }
        self.place.columns = columns.len();
    }

    /// Stores the results, whose sums are `before`, while the products of the next `block` are made, if there is one.
    ///
    /// # Safety
    /// As [`Block::run`].
    pub unsafe fn store_beside(&mut self, block: Option<Block<'_>>, before: &Sums) {
        let Lattice { unit, activation, .. } = self.lattice;
        match self.target {
            Target::Voxels { high, low, .. } => {
                // SAFETY: the caller's promise.
                unsafe {
                    voxels_beside(unit, block, before, activation, &self.place, high, low.as_deref_mut())
                };
            }
            Target::Displacement { head, u, .. } => {
                // SAFETY: the caller's promise.
                unsafe { displacements_beside(unit, block, before, activation, &self.place, head, u) };
            }
        }
    }
}
