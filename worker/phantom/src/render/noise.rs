//! Noise of unit variance with the correlation of a reconstruction kernel.

use crate::draw::{Draw, Purpose};
use libjrs::Grid;
use rayon::prelude::*;

/// Width of the in-plane kernel, mm.
const SIGMA: f64 = 0.95;

/// One value per voxel. Each slice has its own keyed generator, so threads cannot matter.
pub(super) fn volume(grid: &Grid, seed: u64, patient: usize, scan: usize) -> Vec<f32> {
    let [nx, ny, _] = grid.size;
    let kernel = kernel(SIGMA / grid.spacing[0]);
    let half = kernel.len() / 2;
    let mut out = vec![0.0f32; grid.len()];
    out.par_chunks_mut(nx * ny).enumerate().for_each(|(k, slice)| {
        // White noise on a frame around the slice, so that the filter has the same variance at the edge.
        let (wx, wy) = (nx + 2 * half, ny + 2 * half);
        let mut white = vec![0.0f32; wx * wy];
        Draw::new(seed, patient, scan, Purpose::Noise(k as u32)).white(&mut white);
        let mut rows = vec![0.0f32; nx * wy];
        for j in 0..wy {
            for i in 0..nx {
                rows[i + nx * j] = kernel.iter().enumerate().map(|(n, w)| w * white[i + n + wx * j]).sum();
            }
        }
        for j in 0..ny {
            for i in 0..nx {
                slice[i + nx * j] = kernel.iter().enumerate().map(|(n, w)| w * rows[i + nx * (j + n)]).sum();
            }
        }
    });
    out
}

/// Gaussian weights whose squares sum to 1, so that the filtered noise keeps unit variance.
fn kernel(sigma: f64) -> Vec<f32> {
    let half = ((2.5 * sigma).ceil() as i32).max(1);
    let weights: Vec<f64> = (-half..=half).map(|n| (-0.5 * (f64::from(n) / sigma).powi(2)).exp()).collect();
    let norm = weights.iter().map(|w| w * w).sum::<f64>().sqrt();
    weights.iter().map(|w| (w / norm) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_variance_and_neighbours_correlate() {
        let grid = Grid::axis_aligned([80, 80, 6], [0.9, 0.9, 2.0], [0.0; 3]);
        let noise = volume(&grid, 5, 1, 2);
        let n = noise.len() as f32;
        let variance = noise.iter().map(|v| v * v).sum::<f32>() / n;
        let pairs = noise.windows(2).map(|w| w[0] * w[1]).sum::<f32>() / n;
        assert!((variance - 1.0).abs() < 0.06, "{variance}");
        assert!(pairs > 0.5, "{pairs}");
    }
}
