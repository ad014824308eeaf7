//! What is done to every CT before the network sees it: the torso mask and the intensity scale.

use std::ops::Range;

use rayon::prelude::*;

use crate::volume::Volume;
use crate::{Error, Result};

/// HU above which a voxel counts as patient (or couch); fat is near -100, air and lung below -500.
const BODY_HU: f32 = -250.0;
/// Structures thinner than twice this in the axial plane are no torso: couch shells, cables, clothing.
const OPENING_MM: f64 = 5.0;

/// HU clipped to `[low, high]` and rounded to whole numbers: what the cache stores.
#[inline]
pub fn clip_to_i16(hu: f32, [low, high]: [i16; 2]) -> i16 {
    hu.clamp(f32::from(low), f32::from(high)).round() as i16
}

/// The torso of a CT in HU: 1 inside, 0 outside.
///
/// Threshold at -250 HU; thin things (the couch) removed by an opening in the axial plane; the largest connected
/// piece; holes (bowel gas, lungs) filled axial slice by slice.
///
/// # Errors
/// If nothing is left: the image is not a CT in HU, or shows no patient.
pub fn torso_mask(image: &Volume<f32>) -> Result<Volume<u8>> {
    let axial = axial_axes(image);
    let body: Volume<u8> = image.map(|hu| u8::from(hu > BODY_HU));
    let radius = axial.map(|a| (OPENING_MM / image.grid.spacing[a]).round() as usize);

    let size = image.grid.size;
    let mut core = body.data.clone();
    for (axis, radius) in axial.into_iter().zip(radius) {
        core = spread(&core, size, axis, radius, 0);
    }
    let mut torso = largest_component(&core, size);
    for (axis, radius) in axial.into_iter().zip(radius) {
        // One voxel more than the erosion brings corners back; the body keeps it inside the patient.
        torso = spread(&torso, size, axis, radius + usize::from(radius > 0), 1);
    }
    torso.iter_mut().zip(&body.data).for_each(|(t, &b)| *t &= b);
    fill_holes(&mut torso, size, axial);
    if torso.iter().all(|&v| v == 0) {
        let [low, high] = image.range();
        return Err(Error::input(
            format!("no torso was found in an image with values from {low} to {high}"),
            "check that the image is a CT in HU (water 0, air -1000) or give a mask",
        ));
    }
    Ok(Volume { grid: image.grid.clone(), data: torso })
}

/// The smallest box that holds every voxel above -250 HU, and so the torso with its holes; the whole image if there is none.
pub(crate) fn patient_box(image: &Volume<f32>) -> [Range<usize>; 3] {
    let [nx, ny, nz] = image.grid.size;
    let nothing = || [[usize::MAX, 0]; 3];
    let join = |a: [[usize; 2]; 3], b: [[usize; 2]; 3]| {
        std::array::from_fn(|i| [a[i][0].min(b[i][0]), a[i][1].max(b[i][1])])
    };
    let of_row = |(row, values): (usize, &[f32])| {
        let first = values.iter().position(|&hu| hu > BODY_HU)?;
        let last = values.iter().rposition(|&hu| hu > BODY_HU)?;
        let [y, z] = [row % ny, row / ny];
        Some([[first, last + 1], [y, y + 1], [z, z + 1]])
    };
    let ends = image.data.par_chunks(nx).enumerate().filter_map(of_row).reduce(nothing, join);
    let whole = [nx, ny, nz];
    std::array::from_fn(|a| if ends[0][1] == 0 { 0..whole[a] } else { ends[a][0]..ends[a][1] })
}

/// The two index axes that span axial slices: all but the one that runs closest to superior.
fn axial_axes(image: &Volume<f32>) -> [usize; 2] {
    let up = image.grid.direction[2].map(f64::abs);
    match (0..3).fold(2, |best, a| if up[a] > up[best] { a } else { best }) {
        0 => [1, 2],
        1 => [0, 2],
        _ => [0, 1],
    }
}

/// Spreads `value` by `radius` voxels along one axis: 1 dilates, 0 erodes (beyond the border nothing changes).
fn spread(mask: &[u8], size: [usize; 3], axis: usize, radius: usize, value: u8) -> Vec<u8> {
    let stride: usize = size[..axis].iter().product();
    let line = (stride * size[axis]).max(1);
    let mut out = mask.to_vec();
    let join = |a: u8, b: u8| if value == 1 { a | b } else { a & b };
    // A task is whole lines: some rows along x, a slice along y, everything along z.
    let task = if axis == 0 { line * size[1] } else { line };
    out.par_chunks_mut(task.max(1)).for_each_init(Vec::new, |old: &mut Vec<u8>, task| {
        for lines in task.chunks_mut(line) {
            // Windows that start at a voxel, then windows that end at one; each step joins two that lie side by side.
            for forwards in [true, false] {
                let mut length = 1;
                while length <= radius {
                    let step = length.min(radius + 1 - length);
                    length += step;
                    let shift = (step * stride).min(lines.len());
                    old.clear();
                    old.extend_from_slice(lines);
                    let (new, other) = match forwards {
                        true => (&mut lines[..], &old[shift..]),
                        false => (&mut lines[shift..], &old[..]),
                    };
                    new.iter_mut().zip(other).for_each(|(v, &o)| *v = join(*v, o));
                }
            }
        }
    });
    out
}

/// A run of 1s along x.
struct Run {
    start: usize,
    end: usize,
    /// A run of the same component that comes earlier, or itself.
    parent: usize,
}

/// The largest face-connected component of 1s; of equal ones the first in memory.
fn largest_component(mask: &[u8], size: [usize; 3]) -> Vec<u8> {
    let [nx, ny, nz] = size;
    let mut runs: Vec<Run> = Vec::new();
    // Where the runs of each row start in `runs`.
    let mut rows = Vec::with_capacity(ny * nz + 1);
    for (r, row) in mask.chunks(nx).enumerate() {
        rows.push(runs.len());
        let mut x = 0;
        while let Some(start) = row[x..].iter().position(|&v| v != 0).map(|n| x + n) {
            let end = row[start..].iter().position(|&v| v == 0).map_or(nx, |n| start + n);
            runs.push(Run { start, end, parent: runs.len() });
            x = end;
        }
        let before = [(r % ny > 0).then(|| r - 1), (r >= ny).then(|| r - ny)];
        for other in before.into_iter().flatten() {
            connect(&mut runs, rows[other]..rows[other + 1], rows[r]);
        }
    }
    rows.push(runs.len());

    // Parents come first, so one pass from the front finds the roots.
    let mut voxels = vec![0usize; runs.len()];
    for i in 0..runs.len() {
        let root = runs[runs[i].parent].parent;
        runs[i].parent = root;
        voxels[root] += runs[i].end - runs[i].start;
    }
    let best = (0..runs.len()).fold(0, |best, i| if voxels[i] > voxels[best] { i } else { best });
    let mut out = vec![0; mask.len()];
    for (row, range) in out.chunks_mut(nx).zip(rows.windows(2)) {
        for run in runs[range[0]..range[1]].iter().filter(|run| run.parent == best) {
            row[run.start..run.end].fill(1);
        }
    }
    out
}

/// Joins the runs from number `from` on with those of a neighbouring row that they touch.
fn connect(runs: &mut [Run], neighbours: std::ops::Range<usize>, from: usize) {
    let root = |runs: &[Run], mut i: usize| {
        while runs[i].parent != i {
            i = runs[i].parent;
        }
        i
    };
    let (mut a, mut b) = (neighbours.start, from);
    while a < neighbours.end && b < runs.len() {
        if runs[a].start < runs[b].end && runs[b].start < runs[a].end {
            let (first, second) = (root(runs, a), root(runs, b));
            let (low, high) = (first.min(second), first.max(second));
            runs[high].parent = low;
            // Shorter ways for later searches.
            runs[a].parent = low;
            runs[b].parent = low;
        }
        if runs[a].end <= runs[b].end { a += 1 } else { b += 1 }
    }
}

/// Sets what background cannot reach from the border of its axial slice.
fn fill_holes(mask: &mut [u8], size: [usize; 3], [a, b]: [usize; 2]) {
    let stride = [1, size[0], size[0] * size[1]];
    let up = 3 - a - b;
    let (na, nb) = (size[a], size[b]);
    let source = &*mask;
    let filled: Vec<Vec<u8>> = (0..size[up])
        .into_par_iter()
        .map(|s| {
            let at = |i: usize| s * stride[up] + i % na * stride[a] + i / na * stride[b];
            let mut slice: Vec<u8> = (0..na * nb).map(|i| source[at(i)]).collect();
            fill_slice(&mut slice, na);
            slice
        })
        .collect();
    mask.par_chunks_mut(stride[2].max(1)).enumerate().for_each(|(z, plane)| {
        for (i, voxel) in plane.iter_mut().enumerate() {
            let at = [i % size[0], i / size[0], z];
            *voxel = filled[at[up]][at[a] + na * at[b]];
        }
    });
}

/// [`fill_holes`] in one slice with rows of `width` voxels.
fn fill_slice(slice: &mut [u8], width: usize) {
    const OUTSIDE: u8 = 2;
    let height = slice.len() / width;
    let mut stack = Vec::new();
    let reach = |slice: &mut [u8], stack: &mut Vec<usize>, i: usize| {
        if slice[i] == 0 {
            slice[i] = OUTSIDE;
            stack.push(i);
        }
    };
    for x in 0..width {
        reach(slice, &mut stack, x);
        reach(slice, &mut stack, x + width * (height - 1));
    }
    for y in 0..height {
        reach(slice, &mut stack, width * y);
        reach(slice, &mut stack, width * y + width - 1);
    }
    while let Some(i) = stack.pop() {
        let (x, y) = (i % width, i / width);
        if x > 0 {
            reach(slice, &mut stack, i - 1);
        }
        if x + 1 < width {
            reach(slice, &mut stack, i + 1);
        }
        if y > 0 {
            reach(slice, &mut stack, i - width);
        }
        if y + 1 < height {
            reach(slice, &mut stack, i + width);
        }
    }
    slice.iter_mut().for_each(|v| *v = u8::from(*v != OUTSIDE));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::Grid;

    /// An ellipse of water with a gas bubble, a closed couch shell below it and a loose wire.
    fn scene(order: [usize; 3]) -> (Volume<f32>, Volume<u8>) {
        let lps_size = [80usize, 60, 6];
        let size = order.map(|a| lps_size[a]);
        let mut grid = Grid::axis_aligned(size, [2.0; 3], [0.0; 3]);
        grid.direction =
            std::array::from_fn(|r| std::array::from_fn(|c| if order[c] == r { 1.0 } else { 0.0 }));
        let mut image = Volume::filled(grid.clone(), -1000.0f32);
        let mut truth = Volume::filled(grid.clone(), 0u8);
        for i in 0..grid.len() {
            let index = [i % size[0], i / size[0] % size[1], i / (size[0] * size[1])];
            let mut at = [0; 3];
            (0..3).for_each(|c| at[order[c]] = index[c]);
            let (x, y) = (at[0] as f32 - 40.0, at[1] as f32 - 25.0);
            let inside = (x / 30.0).powi(2) + (y / 18.0).powi(2) <= 1.0;
            let bubble = x * x + y * y < 16.0;
            let couch = (50..56).contains(&at[1]) && (10..70).contains(&at[0]);
            let shell = couch && !((51..55).contains(&at[1]) && (11..69).contains(&at[0]));
            let wire = at[1] == 45 && at[0] == 4;
            truth.data[i] = u8::from(inside);
            if (inside && !bubble) || shell || wire {
                image.data[i] = 40.0;
            }
        }
        (image, truth)
    }

    #[test]
    fn the_couch_goes_and_the_bubble_is_filled() {
        for order in [[0, 1, 2], [2, 0, 1]] {
            let (image, truth) = scene(order);
            let mask = torso_mask(&image).unwrap();
            let wrong = mask.data.iter().zip(&truth.data).filter(|(a, b)| a != b).count();
            // The opening rounds off a few voxels at the tips of the ellipse.
            assert!(wrong * 100 < truth.data.iter().filter(|&&t| t == 1).count(), "{wrong}");
        }
    }

    #[test]
    fn an_image_of_air_is_refused() {
        let image = Volume::filled(Grid::axis_aligned([20, 20, 4], [2.0; 3], [0.0; 3]), -1000.0);
        let text = torso_mask(&image).unwrap_err().to_string();
        assert!(text.contains("-1000") && text.contains("HU"), "{text}");
    }

    #[test]
    fn the_scale_is_clipped() {
        assert_eq!([-3024.0, 39.6, 1500.0].map(|v| clip_to_i16(v, [-1000, 1000])), [-1000, 40, 1000]);
    }

    fn random_mask(size: [usize; 3], percent: u64) -> Vec<u8> {
        let mut state = 7u64;
        let next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            u8::from((state >> 33) % 100 < percent)
        };
        std::iter::repeat_with(next).take(size.iter().product()).collect()
    }

    #[test]
    fn spreading_is_the_extreme_of_the_neighbourhood() {
        let size = [9, 8, 7];
        let mask = random_mask(size, 30);
        let stride = [1, 9, 72];
        for (axis, radius, value) in (0..3).flat_map(|a| (0..12).flat_map(move |r| [(a, r, 0), (a, r, 1)])) {
            let found = spread(&mask, size, axis, radius, value);
            for i in 0..mask.len() {
                let at = i / stride[axis] % size[axis];
                let (first, last) = (at.saturating_sub(radius), (at + radius).min(size[axis] - 1));
                let line = (first..=last).map(|n| mask[i + n * stride[axis] - at * stride[axis]]);
                let expected = if value == 1 { line.max() } else { line.min() };
                assert_eq!(
                    Some(found[i]),
                    expected,
                    "axis {axis}, radius {radius}, value {value}, voxel {i}"
                );
            }
        }
    }

    /// Against a flood from every voxel: near the percolation threshold (31 %) components wind about each other.
    #[test]
    fn the_largest_component_is_what_a_flood_finds() {
        let size = [11, 9, 8];
        for percent in [5, 25, 31, 35, 60, 100] {
            let mask = random_mask(size, percent);
            let stride = [1, 11, 99];
            let mut component = vec![usize::MAX; mask.len()];
            let mut counts = Vec::new();
            for seed in 0..mask.len() {
                if mask[seed] == 0 || component[seed] != usize::MAX {
                    continue;
                }
                let (mut stack, mut count) = (vec![seed], 0);
                component[seed] = counts.len();
                while let Some(i) = stack.pop() {
                    count += 1;
                    for a in 0..3 {
                        let at = i / stride[a] % size[a];
                        let up = (at + 1 < size[a]).then(|| i + stride[a]);
                        let down = (at > 0).then(|| i - stride[a]);
                        for j in [up, down].into_iter().flatten() {
                            if mask[j] == 1 && component[j] == usize::MAX {
                                component[j] = counts.len();
                                stack.push(j);
                            }
                        }
                    }
                }
                counts.push(count);
            }
            let best = (0..counts.len()).fold(0, |b, i| if counts[i] > counts[b] { i } else { b });
            let expected: Vec<u8> = component.iter().map(|&c| u8::from(c == best)).collect();
            assert_eq!(largest_component(&mask, size), expected, "{percent} %");
        }
        assert!(largest_component(&random_mask(size, 0), size).iter().all(|&v| v == 0));
    }
}
