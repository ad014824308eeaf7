//! The 4x4 blocks of outputs that a task of `winograd` owns in a plane.

use std::ops::Range;

use crate::LINE;
use crate::winograd::{BLOCK as OUTPUTS, SPAN};

use super::Source;
use super::plane::{BLOCK, Plane};

/// Positions of a task: whole register tiles of any kind.
pub(super) const TILE: usize = 24;
/// Values of a block of channels of a tile.
pub(super) const TILE_LEN: usize = TILE * BLOCK;

/// Some positions of a plane.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    first: usize,
    pub count: usize,
    /// Positions in a row.
    columns: usize,
    /// Outputs along y and x.
    pub edges: [usize; 2],
}

impl Tile {
    /// How many there are in a plane.
    pub fn all(edges: [usize; 2]) -> usize {
        positions(edges).div_ceil(TILE)
    }

    /// The `number`-th of a plane.
    pub fn new(number: usize, edges: [usize; 2]) -> Self {
        let first = number * TILE;
        Self { first, count: TILE.min(positions(edges) - first), columns: edges[1].div_ceil(OUTPUTS), edges }
    }

    /// The one behind it, if there is one.
    pub fn next(&self) -> Option<Self> {
        let number = self.first / TILE + 1;
        (number < Self::all(self.edges)).then(|| Self::new(number, self.edges))
    }

    /// Row and column of the first output of its position `p`.
    #[inline(always)]
    pub fn place(&self, p: usize) -> [usize; 2] {
        let p = self.first + p;
        [p / self.columns * OUTPUTS, p % self.columns * OUTPUTS]
    }

    /// The rows of outputs whose first ones are of the tile.
    pub fn first_columns(&self) -> impl Iterator<Item = Range<usize>> {
        let (columns, height) = (self.columns, self.edges[0]);
        let rows = self.first.div_ceil(columns)..(self.first + self.count).div_ceil(columns);
        rows.map(move |row| row * OUTPUTS..height.min((row + 1) * OUTPUTS))
    }

    /// The lines of a plane that its transform reads.
    pub fn lines(&self, plane: &Plane<'_>, source: Source, crop: usize, lines: &mut Vec<*const f32>) {
        let (up, values) = (source.up(), plane.values());
        let mut p = 0;
        while p < self.count {
            let [y, x] = self.place(p);
            // As many as lie in this row.
            let count = (self.columns - x / OUTPUTS).min(self.count - p);
            let voxels = ((count - 1) * OUTPUTS + SPAN) / up;
            for (block, row) in
                (0..plane.blocks()).flat_map(|block| (0..SPAN / up).map(move |row| (block, row)))
            {
                let row = (y / up + crop + row).min(plane.edges()[0] - 1);
                let at = plane.at(block, row as isize, (x / up + crop) as isize);
                lines.extend(values[at..][..voxels * BLOCK].iter().step_by(LINE).map(std::ptr::from_ref));
            }
            p += count;
        }
    }
}

fn positions(edges: [usize; 2]) -> usize {
    edges.iter().map(|n| n.div_ceil(OUTPUTS)).product()
}
