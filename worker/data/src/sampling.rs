//! Which patch comes when, and what is in it (science.md section 5; architecture.md, "Samples").

use crate::cache::PreparedPair;
use crate::random::{Purpose, stream};
use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use std::sync::Mutex;

/// One patch of the study: the `k`-th of `pair` in `epoch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SampleId {
    /// Pass over the data.
    pub epoch: u64,
    /// Index of the pair among the training pairs.
    pub pair: usize,
    /// Number of the patch within the pair, below `patches_per_pair`.
    pub k: usize,
}

/// Epoch and number of a window.
type WindowKey = (u64, usize);

/// The order of samples. It belongs to the run, never to the number of workers: pairs are permuted per epoch and
/// cut into windows of `window` pairs, and samples are permuted within a window (a full shuffle would reload
/// volumes all the time).
#[derive(Debug)]
pub struct SampleOrder {
    seed: u64,
    pairs: usize,
    patches_per_pair: usize,
    window: usize,
    /// The window asked for last, as asking goes on from it almost always.
    last: Mutex<Option<(WindowKey, Vec<SampleId>)>>,
}

impl SampleOrder {
    /// The order for `pairs` training pairs; all counts at least 1.
    pub fn new(seed: u64, pairs: usize, patches_per_pair: usize, window: usize) -> Self {
        assert!(pairs > 0 && patches_per_pair > 0 && window > 0, "an order of nothing");
        Self { seed, pairs, patches_per_pair, window: window.min(pairs), last: Mutex::new(None) }
    }

    /// Samples in an epoch.
    pub fn epoch_len(&self) -> u64 {
        (self.pairs * self.patches_per_pair) as u64
    }

    /// The sample at `position` of the endless order.
    pub fn at(&self, position: u64) -> SampleId {
        let epoch = position / self.epoch_len();
        let within = (position % self.epoch_len()) as usize;
        let per_window = self.window * self.patches_per_pair;
        let (window, offset) = (within / per_window, within % per_window);
        let mut last = self.last.lock().expect("no panic while held");
        if !matches!(&*last, Some((key, _)) if *key == (epoch, window)) {
            *last = Some(((epoch, window), self.window_order(epoch, window)));
        }
        last.as_ref().expect("just set").1[offset]
    }

    fn window_order(&self, epoch: u64, window: usize) -> Vec<SampleId> {
        let mut pairs: Vec<usize> = (0..self.pairs).collect();
        pairs.shuffle(&mut stream(self.seed, Purpose::PairOrder, &[epoch]));
        let members = pairs.chunks(self.window).nth(window).expect("window of the epoch");
        let mut samples: Vec<SampleId> = members
            .iter()
            .flat_map(|&pair| (0..self.patches_per_pair).map(move |k| SampleId { epoch, pair, k }))
            .collect();
        samples.shuffle(&mut stream(self.seed, Purpose::WindowOrder, &[epoch, window as u64]));
        samples
    }
}

/// A cubic patch of a pair, x fastest.
#[derive(Debug, Clone, PartialEq)]
pub struct Patch {
    /// Where it came from.
    pub id: SampleId,
    /// Edge in voxels.
    pub edge: usize,
    /// I_f, in [-1, 1].
    pub fixed: Vec<f32>,
    /// I_m, pre-aligned, in [-1, 1].
    pub moving: Vec<f32>,
    /// Organ ids of the fixed scan.
    pub fixed_labels: Vec<u8>,
    /// Organ ids of the moving scan.
    pub moving_labels: Vec<u8>,
}

/// How patches are cut from a pair.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cropping {
    /// Seed of the run.
    pub seed: u64,
    /// Edge of a patch in voxels.
    pub edge: usize,
    /// HU that become 1 in a patch.
    pub full_scale: f32,
    /// Share of the patches centred in an organ of the fixed scan; the others are centred anywhere in its torso.
    pub around_organs: f64,
}

impl Cropping {
    /// Centre voxel (x, y, z) of a sample, a pure function of (seed, sample): uniform in the torso mask, or in
    /// the voxels of an organ drawn uniformly from those present.
    pub fn centre(&self, id: SampleId, pair: &PreparedPair) -> [usize; 3] {
        let mut draws = stream(self.seed, Purpose::PatchCentre, &[id.epoch, id.pair as u64, id.k as u64]);
        if self.around_organs > 0.0
            && draws.random_bool(self.around_organs)
            && let Some(centre) = voxel_of_an_organ(pair, &mut draws)
        {
            return centre;
        }
        let size = pair.grid.size;
        // Rejection from the box: the torso fills more than half of it, so a few tries do. An (impossible) mask
        // that is almost empty still ends, with a centre anywhere.
        let mut centre = [0; 3];
        for _ in 0..10_000 {
            centre = std::array::from_fn(|a| draws.random_range(0..size[a]));
            if pair.mask[pair.grid.index(centre[0], centre[1], centre[2])] != 0 {
                break;
            }
        }
        centre
    }

    /// The patch around the sample's centre. Outside the volume images are padded with their minimum and labels
    /// with 0, so that every torso voxel can be a centre.
    pub fn crop(&self, id: SampleId, pair: &PreparedPair) -> Patch {
        let (edge, size) = (self.edge, pair.grid.size);
        let centre = self.centre(id, pair);
        let start: [isize; 3] = std::array::from_fn(|a| centre[a] as isize - (edge / 2) as isize);
        Patch {
            id,
            edge,
            fixed: crop_image(&pair.fixed, size, start, edge, self.full_scale),
            moving: crop_image(&pair.moving, size, start, edge, self.full_scale),
            fixed_labels: crop_box(&pair.fixed_labels, size, start, edge, 0, |v| v),
            moving_labels: crop_box(&pair.moving_labels, size, start, edge, 0, |v| v),
        }
    }
}

fn voxel_of_an_organ(pair: &PreparedPair, draws: &mut impl Rng) -> Option<[usize; 3]> {
    let mut count = [0usize; 256];
    for &label in &pair.fixed_labels {
        count[usize::from(label)] += 1;
    }
    let present: Vec<usize> = (1..256).filter(|&label| count[label] > 0).collect();
    let organ = *present.choose(draws)?;
    let which = draws.random_range(0..count[organ]);
    let mut voxels = (0..pair.fixed_labels.len()).filter(|&i| usize::from(pair.fixed_labels[i]) == organ);
    let i = voxels.nth(which).expect("counted above");
    let [nx, ny, _] = pair.grid.size;
    Some([i % nx, i / nx % ny, i / (nx * ny)])
}

fn crop_image(hu: &[i16], size: [usize; 3], start: [isize; 3], edge: usize, full_scale: f32) -> Vec<f32> {
    let minimum = hu.iter().copied().min().unwrap_or(0);
    crop_box(hu, size, start, edge, f32::from(minimum) / full_scale, |v| f32::from(v) / full_scale)
}

fn crop_box<T: Copy, U: Copy>(
    data: &[T],
    size: [usize; 3],
    start: [isize; 3],
    edge: usize,
    outside: U,
    convert: impl Fn(T) -> U,
) -> Vec<U> {
    let mut patch = vec![outside; edge * edge * edge];
    // Overlap of the patch with the volume along each axis, in patch coordinates.
    let overlap: [(usize, usize); 3] = std::array::from_fn(|a| {
        let first = (-start[a]).clamp(0, edge as isize) as usize;
        let end = (size[a] as isize - start[a]).clamp(first as isize, edge as isize) as usize;
        (first, end)
    });
    let [(x0, x1), (y0, y1), (z0, z1)] = overlap;
    for z in z0..z1 {
        for y in y0..y1 {
            let source = |x: usize| (start[0] + x as isize) as usize;
            let row =
                ((start[2] + z as isize) as usize * size[1] + (start[1] + y as isize) as usize) * size[0];
            for x in x0..x1 {
                patch[(z * edge + y) * edge + x] = convert(data[row + source(x)]);
            }
        }
    }
    patch
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_sample_once_per_epoch() {
        let order = SampleOrder::new(7, 5, 11, 2);
        for epoch in 0..3 {
            let seen: HashSet<SampleId> = (0..order.epoch_len()).map(|p| order.at(epoch * 55 + p)).collect();
            assert_eq!(seen.len(), 55);
            assert!(seen.iter().all(|s| s.epoch == epoch && s.pair < 5 && s.k < 11));
        }
    }

    #[test]
    fn order_does_not_depend_on_who_asks_first() {
        let (a, b) = (SampleOrder::new(7, 5, 11, 2), SampleOrder::new(7, 5, 11, 2));
        let forward: Vec<_> = (0..110).map(|p| a.at(p)).collect();
        let backward: Vec<_> = (0..110).rev().map(|p| b.at(p)).collect();
        assert!(forward.iter().eq(backward.iter().rev()));
        assert_ne!(forward[..55], forward[55..]);
    }

    #[test]
    fn a_window_holds_few_pairs() {
        let order = SampleOrder::new(1, 6, 10, 2);
        for window in 0..3 {
            let pairs: HashSet<usize> = (0..20).map(|i| order.at(window * 20 + i).pair).collect();
            assert_eq!(pairs.len(), 2);
        }
    }

    #[test]
    fn crop_pads_outside() {
        let data: Vec<u8> = (1..=27).collect();
        let patch = crop_box(&data, [3, 3, 3], [-1, 0, 2], 3, 0, |v| v);
        // x starts one before the volume, z at its last slice (values 19..=27) and beyond.
        assert_eq!(patch[..9], [0, 19, 20, 0, 22, 23, 0, 25, 26]);
        assert!(patch[9..].iter().all(|&v| v == 0));
    }
}
