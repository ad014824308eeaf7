//! Padding and tiling (`science.md` section 6): which pieces of a volume the network sees, one after another.
//!
//! Nearest upsampling makes the network shift-invariant only for shifts by [`INPUT_MULTIPLE`], and the zero padding
//! of the strided layers reaches the first [`SEAM`] output voxels. So tiles start at multiples of 4, and every
//! tile but the first of an axis drops its first 4 output voxels; then tiles give what the whole volume gives.

use std::ops::Range;

use crate::network::{INPUT_MULTIPLE, MARGIN, MIN_INPUT};
use crate::{Error, Result};

/// Output voxels at a tile's lower end that the zero padding of the strided layers reaches.
pub const SEAM: usize = 4;

/// One run of the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tile {
    /// Voxels of the padded volume that the network reads, per axis x, y, z.
    pub input: [Range<usize>; 3],
    /// Voxels of the unpadded volume that this tile's output is kept for.
    pub keep: [Range<usize>; 3],
    /// Output voxels dropped at the lower end per axis: 0 or [`SEAM`].
    pub skip: [usize; 3],
}

impl Tile {
    /// Edges of the network's input.
    pub fn input_size(&self) -> [usize; 3] {
        self.input.clone().map(|r| r.len())
    }

    /// Edges of the network's output.
    pub fn output_size(&self) -> [usize; 3] {
        self.input_size().map(|n| n - 2 * MARGIN)
    }
}

/// How a volume of `size` voxels is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Edges of the unpadded volume.
    pub size: [usize; 3],
    /// Edges of the volume padded by [`MARGIN`] and rounded up.
    pub padded: [usize; 3],
    /// The tiles, x fastest.
    pub tiles: Vec<Tile>,
}

impl Plan {
    /// The cheapest tiling of a volume of `size` voxels whose tiles need at most `max_bytes`, where `bytes` tells
    /// what one run on a given input size needs. One tile if the whole volume fits.
    ///
    /// # Errors
    /// [`Error::Input`] if an axis is empty, [`Error::Memory`] if even the smallest tile does not fit.
    pub fn new(size: [usize; 3], max_bytes: usize, bytes: impl Fn([usize; 3]) -> usize) -> Result<Self> {
        Self::within(size, &size.map(|n| 0..n), max_bytes, bytes)
    }

    /// [`Plan::new`] where only the voxels of a box are `wanted`: per axis x, y, z a range that starts at a multiple of
    /// [`INPUT_MULTIPLE`].
    ///
    /// # Errors
    /// As [`Plan::new`], and [`Error::Input`] if the box is not one of the volume.
    pub fn within(
        size: [usize; 3],
        wanted: &[Range<usize>; 3],
        max_bytes: usize,
        bytes: impl Fn([usize; 3]) -> usize,
    ) -> Result<Self> {
        if size.contains(&0) {
            return Err(Error::input(
                format!("a volume of {size:?} voxels is empty"),
                "give a volume with voxels",
            ));
        }
        let fits = |n: usize, r: &Range<usize>| {
            !r.is_empty() && r.end <= n && r.start.is_multiple_of(INPUT_MULTIPLE)
        };
        if !size.iter().zip(wanted).all(|(&n, range)| fits(n, range)) {
            return Err(Error::input(
                format!("voxels {wanted:?} of a volume of {size:?} voxels"),
                format!("ask for voxels inside the volume, from multiples of {INPUT_MULTIPLE} on"),
            ));
        }
        let splits = std::array::from_fn(|a| axis_splits(size[a], &wanted[a]));
        let mut best: Option<(Way, usize)> = None;
        let mut least = usize::MAX;
        for way in ways(&splits) {
            let cost = way.iter().map(|split| split.voxels_read).product();
            if best.is_none_or(|(_, cheapest)| cost < cheapest) {
                let needed = bytes(way.map(|split| split.largest));
                least = least.min(needed);
                if needed <= max_bytes {
                    best = Some((way, cost));
                }
            }
        }
        let Some((way, _)) = best else {
            return Err(Error::memory(
                format!(
                    "the memory limit of {max_bytes} bytes is below the {least} bytes of the smallest tile"
                ),
                format!("allow at least {least} bytes"),
            ));
        };
        let mut tiles = Vec::new();
        for z in &way[2].tiles {
            for y in &way[1].tiles {
                for x in &way[0].tiles {
                    let all = [x, y, z];
                    tiles.push(Tile {
                        input: all.map(|t| t.input.clone()),
                        keep: all.map(|t| t.keep.clone()),
                        skip: all.map(|t| t.skip),
                    });
                }
            }
        }
        Ok(Self { size, padded: size.map(padded), tiles })
    }

    /// The largest of what `bytes` tells of the tiles.
    pub fn most_bytes(&self, bytes: impl Fn([usize; 3]) -> usize) -> usize {
        self.tiles.iter().map(|tile| bytes(tile.input_size())).max().unwrap_or(0)
    }

    /// The least `max_bytes` with which [`new`](Self::new) finds a plan for a volume that is not empty. What a run needs does not
    /// always grow with its input, so every way to cut is asked.
    pub fn least_bytes(size: [usize; 3], bytes: impl Fn([usize; 3]) -> usize) -> usize {
        let splits = size.map(|n| axis_splits(n, &(0..n)));
        ways(&splits).map(|way| bytes(way.map(|split| split.largest))).min().unwrap_or(0)
    }
}

/// Edge of a padded axis of `n` voxels.
pub fn padded(n: usize) -> usize {
    (n + 2 * MARGIN).next_multiple_of(INPUT_MULTIPLE).max(MIN_INPUT)
}

/// A cut for every axis.
type Way<'a> = [&'a AxisSplit; 3];

/// All ways to cut a volume.
fn ways(splits: &[Vec<AxisSplit>; 3]) -> impl Iterator<Item = Way<'_>> {
    let [x, y, z] = splits;
    x.iter().flat_map(move |x| y.iter().flat_map(move |y| z.iter().map(move |z| [x, y, z])))
}

/// One axis cut into equal pieces.
struct AxisSplit {
    tiles: Vec<AxisTile>,
    largest: usize,
    voxels_read: usize,
}

struct AxisTile {
    input: Range<usize>,
    keep: Range<usize>,
    skip: usize,
}

/// All ways to cut the `wanted` voxels of an axis of `n`, from one piece to pieces of 4 voxels.
fn axis_splits(n: usize, wanted: &Range<usize>) -> Vec<AxisSplit> {
    let Range { start: first, end } = *wanted;
    let output = if end == n { padded(n) - 2 * MARGIN } else { end.next_multiple_of(INPUT_MULTIPLE) };
    let mut splits: Vec<AxisSplit> = Vec::new();
    let mut last_step = 0;
    for pieces in 1..=(output - first) / INPUT_MULTIPLE {
        let step = (output - first).div_ceil(pieces).next_multiple_of(INPUT_MULTIPLE);
        if step == last_step {
            continue;
        }
        last_step = step;
        let tiles: Vec<AxisTile> = (first..output)
            .step_by(step)
            .map(|start| {
                let skip = if start == 0 { 0 } else { SEAM };
                let last = (start + step).min(output);
                // start < end: rounding adds fewer voxels than the multiple that starts are of.
                AxisTile { input: start - skip..last + 2 * MARGIN, keep: start..last.min(end), skip }
            })
            .collect();
        let lengths = || tiles.iter().map(|t| t.input.len());
        let (largest, voxels_read) = (lengths().max().unwrap_or(0), lengths().sum());
        splits.push(AxisSplit { tiles, largest, voxels_read });
    }
    splits
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 4 bytes per input voxel: enough to see the limit at work.
    fn four_bytes(size: [usize; 3]) -> usize {
        size.iter().product::<usize>() * 4
    }

    #[test]
    fn a_volume_that_fits_is_one_tile() {
        let plan = Plan::new([190, 130, 81], usize::MAX, four_bytes).unwrap();
        assert_eq!(plan.padded, [232, 172, 124]);
        assert_eq!(plan.tiles.len(), 1);
        assert_eq!(plan.tiles[0].output_size(), [192, 132, 84]);
        assert_eq!(plan.tiles[0].keep, [0..190, 0..130, 0..81]);
    }

    #[test]
    fn a_limit_below_the_smallest_tile_says_how_much_is_needed() {
        let said = Plan::new([64, 64, 64], 1000, four_bytes).unwrap_err().to_string();
        assert!(said.contains(&(48usize.pow(3) * 4).to_string()), "{said}");
        assert!(Plan::new([64, 0, 64], usize::MAX, four_bytes).is_err());
        for wrong in [2..8, 8..8, 60..65] {
            assert!(Plan::within([64; 3], &[0..64, wrong, 0..64], usize::MAX, four_bytes).is_err());
        }
    }

    #[test]
    fn the_least_limit_is_that_of_the_tile_that_needs_least() {
        // Short tiles are the dear ones here.
        let bytes = |size: [usize; 3]| 1_000_000 / size[0];
        let least = Plan::least_bytes([64, 64, 64], bytes);
        assert_eq!(least, 1_000_000 / 104);
        assert!(Plan::new([64, 64, 64], least, bytes).is_ok());
        let said = Plan::new([64, 64, 64], least - 1, bytes).unwrap_err().to_string();
        assert!(said.contains(&least.to_string()), "{said}");
    }

    proptest! {
        #[test]
        fn tiles_cover_every_voxel_once_and_keep_the_rules(
            size in prop::array::uniform3(1usize..90),
            part in prop::array::uniform3((0.0..1.0, 0.0..1.0)),
            limit in 48usize.pow(3) * 4..120usize.pow(3) * 4,
        ) {
            let wanted: [Range<usize>; 3] = std::array::from_fn(|a| {
                let start = (part[a].0 * size[a] as f64) as usize / INPUT_MULTIPLE * INPUT_MULTIPLE;
                start..start + 1 + (part[a].1 * (size[a] - start) as f64) as usize
            });
            let plan = Plan::within(size, &wanted, limit, four_bytes).unwrap();
            let mut seen = vec![0u8; size.iter().product()];
            for tile in &plan.tiles {
                prop_assert!(four_bytes(tile.input_size()) <= limit);
                for a in 0..3 {
                    prop_assert!(tile.input[a].start % INPUT_MULTIPLE == 0);
                    prop_assert!(tile.input_size()[a] % INPUT_MULTIPLE == 0);
                    prop_assert!(tile.input_size()[a] >= MIN_INPUT);
                    prop_assert!(tile.input[a].end <= plan.padded[a]);
                    // Output voxel m sits on input voxel m + MARGIN, and padding shifted the volume by MARGIN.
                    prop_assert!(tile.keep[a].start == tile.input[a].start + tile.skip[a]);
                    let first = tile.keep[a].start == 0;
                    prop_assert_eq!(tile.skip[a], if first { 0 } else { SEAM });
                    prop_assert!(tile.skip[a] + tile.keep[a].len() <= tile.output_size()[a]);
                }
                for z in tile.keep[2].clone() {
                    for y in tile.keep[1].clone() {
                        for x in tile.keep[0].clone() {
                            seen[x + size[0] * (y + size[1] * z)] += 1;
                        }
                    }
                }
            }
            for (i, &times) in seen.iter().enumerate() {
                let at = [i % size[0], i / size[0] % size[1], i / size[0] / size[1]];
                let inside = (0..3).all(|a| wanted[a].contains(&at[a]));
                prop_assert_eq!(times, u8::from(inside));
            }
        }
    }
}
