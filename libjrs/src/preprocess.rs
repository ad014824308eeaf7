//! What is done to every CT before the network sees it: the torso mask and the intensity scale.

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
    let body = image.map(|hu| u8::from(hu > BODY_HU));
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
        let (low, high) = image.data.iter().fold((f32::MAX, f32::MIN), |(l, h), &v| (l.min(v), h.max(v)));
        return Err(Error::input(
            format!("no torso was found in an image with values from {low} to {high}"),
            "check that the image is a CT in HU (water 0, air -1000) or give a mask",
        ));
    }
    Ok(Volume { grid: image.grid.clone(), data: torso })
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
    let stride = [1, size[0], size[0] * size[1]];
    let n = size[axis];
    let mut out = mask.to_vec();
    let line = |out: &mut [u8], base: usize, offset: usize, step: usize| {
        // Distance since the last voxel of `value`, forwards then backwards.
        for forwards in [true, false] {
            let mut since = radius + 1;
            for i in 0..n {
                let at = if forwards { i } else { n - 1 - i } * step;
                since = if mask[base + offset + at] == value { 0 } else { since + 1 };
                if since <= radius {
                    out[offset + at] = value;
                }
            }
        }
    };
    let plane = size[0] * size[1];
    if axis == 2 {
        for offset in 0..plane {
            line(&mut out, 0, offset, stride[2]);
        }
    } else {
        let other = 1 - axis;
        out.par_chunks_mut(plane.max(1)).enumerate().for_each(|(z, slice)| {
            for o in 0..size[other] {
                line(slice, z * plane, o * stride[other], stride[axis]);
            }
        });
    }
    out
}

/// The largest face-connected component of 1s; of equal ones the first in memory.
fn largest_component(mask: &[u8], size: [usize; 3]) -> Vec<u8> {
    let [nx, ny, nz] = size;
    let stride = [1, nx, nx * ny];
    let mut component = vec![0u32; mask.len()];
    let (mut best, mut best_count, mut number) = (0, 0usize, 0);
    let mut stack = Vec::new();
    for seed in 0..mask.len() {
        if mask[seed] == 0 || component[seed] != 0 {
            continue;
        }
        number += 1;
        component[seed] = number;
        stack.push(seed);
        let mut count = 0;
        while let Some(i) = stack.pop() {
            count += 1;
            let at = [i % nx, i / nx % ny, i / (nx * ny)];
            for a in 0..3 {
                let neighbours = [
                    (at[a] > 0).then(|| i - stride[a]),
                    (at[a] + 1 < [nx, ny, nz][a]).then(|| i + stride[a]),
                ];
                for j in neighbours.into_iter().flatten() {
                    if mask[j] != 0 && component[j] == 0 {
                        component[j] = number;
                        stack.push(j);
                    }
                }
            }
        }
        if count > best_count {
            (best, best_count) = (number, count);
        }
    }
    component.iter().map(|&c| u8::from(best_count > 0 && c == best)).collect()
}

/// Sets what background cannot reach from the border of its axial slice.
fn fill_holes(mask: &mut [u8], size: [usize; 3], [a, b]: [usize; 2]) {
    let stride = [1, size[0], size[0] * size[1]];
    let up = 3 - a - b;
    let (na, nb) = (size[a], size[b]);
    let mut outside = vec![false; na * nb];
    let mut stack = Vec::new();
    for s in 0..size[up] {
        let at = |i: usize| s * stride[up] + i % na * stride[a] + i / na * stride[b];
        outside.fill(false);
        let reach = |i: usize, outside: &mut [bool], stack: &mut Vec<usize>| {
            if !outside[i] && mask[at(i)] == 0 {
                outside[i] = true;
                stack.push(i);
            }
        };
        for i in 0..na * nb {
            let (x, y) = (i % na, i / na);
            if x == 0 || y == 0 || x + 1 == na || y + 1 == nb {
                reach(i, &mut outside, &mut stack);
            }
        }
        while let Some(i) = stack.pop() {
            let (x, y) = (i % na, i / na);
            let neighbours = [
                (x > 0).then(|| i - 1),
                (x + 1 < na).then(|| i + 1),
                (y > 0).then(|| i - na),
                (y + 1 < nb).then(|| i + na),
            ];
            for j in neighbours.into_iter().flatten() {
                reach(j, &mut outside, &mut stack);
            }
        }
        for i in 0..na * nb {
            mask[at(i)] = u8::from(!outside[i]);
        }
    }
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
}
