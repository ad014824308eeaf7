//! Reading volumes along a [`View`].
//!
//! Separable cubic filters of Mitchell and Netravali (SIGGRAPH 1988), two-parameter family (B, C): the interpolating
//! Catmull-Rom filter for images, so that coarse volumes do not look blocky, and a softer one for label indicators,
//! so that contours are smooth. Across the picture labels are read linearly: a contour in a slice shows that slice.

use libjrs::Volume;
use rayon::prelude::*;

use crate::view::View;

/// A cubic filter of the family.
#[derive(Clone, Copy)]
struct Cubic {
    b: f64,
    c: f64,
}

/// Interpolates (B = 0, C = 1/2).
const CATMULL_ROM: Cubic = Cubic { b: 0.0, c: 0.5 };
/// Near the B-spline, yet a single voxel keeps (3/4)² > 1/2 of its value in the plane, so nothing vanishes.
const SOFT: Cubic = Cubic { b: 0.75, c: 0.125 };

impl Cubic {
    fn weight(self, t: f64) -> f64 {
        let (b, c, t) = (self.b, self.c, t.abs());
        let value = if t < 1.0 {
            (12.0 - 9.0 * b - 6.0 * c) * t.powi(3) + (-18.0 + 12.0 * b + 6.0 * c) * t * t + (6.0 - 2.0 * b)
        } else if t < 2.0 {
            (-b - 6.0 * c) * t.powi(3)
                + (6.0 * b + 30.0 * c) * t * t
                + (-12.0 * b - 48.0 * c) * t
                + (8.0 * b + 24.0 * c)
        } else {
            0.0
        };
        value / 6.0
    }
}

/// Four taps along one axis: voxel indices (edge voxels repeated) and weights.
struct Taps {
    index: [usize; 4],
    weight: [f32; 4],
}

impl Taps {
    fn cubic(filter: Cubic, position: f64, size: usize) -> Self {
        Self::new(position, size, |t| filter.weight(t))
    }

    fn linear(position: f64, size: usize) -> Self {
        Self::new(position, size, |t| (1.0 - t.abs()).max(0.0))
    }

    fn new(position: f64, size: usize, weight: impl Fn(f64) -> f64) -> Self {
        let base = position.floor() as i64 - 1;
        let last = size as i64 - 1;
        Self {
            index: std::array::from_fn(|n| (base + n as i64).clamp(0, last) as usize),
            weight: std::array::from_fn(|n| weight(position - (base + n as i64) as f64) as f32),
        }
    }
}

/// One value per pixel of the view (rows from the top), `None` outside the volume.
pub(crate) fn image(volume: &Volume<f32>, view: &View) -> Vec<Option<f32>> {
    let grid = &volume.grid;
    per_pixel(view, |pixel| {
        let at = inside(volume, view, pixel)?;
        let [tx, ty, tz]: [Taps; 3] = std::array::from_fn(|a| Taps::cubic(CATMULL_ROM, at[a], grid.size[a]));
        let mut sum = 0f32;
        for k in 0..4 {
            for j in 0..4 {
                let row = grid.index(0, ty.index[j], tz.index[k]);
                let weight = ty.weight[j] * tz.weight[k];
                for i in 0..4 {
                    sum += weight * tx.weight[i] * volume.data[row + tx.index[i]];
                }
            }
        }
        Some(sum)
    })
}

/// One value per pixel, linear interpolation: for maps whose numbers must not overshoot.
pub(crate) fn map(volume: &Volume<f32>, view: &View) -> Vec<Option<f32>> {
    per_pixel(view, |pixel| inside(volume, view, pixel).map(|at| linear(volume, at)))
}

/// Linear interpolation at a continuous voxel index; outside the volume the edge value.
pub(crate) fn linear(volume: &Volume<f32>, at: [f64; 3]) -> f32 {
    linear_of(&volume.grid, &volume.data, at)
}

/// [`linear`] on a plane of values that belongs to `grid`.
pub(crate) fn linear_of(grid: &libjrs::Grid, data: &[f32], at: [f64; 3]) -> f32 {
    let taps: [Taps; 3] = std::array::from_fn(|a| Taps::linear(at[a], grid.size[a]));
    let mut sum = 0f32;
    for k in 1..3 {
        for j in 1..3 {
            for i in 1..3 {
                let weight = taps[0].weight[i] * taps[1].weight[j] * taps[2].weight[k];
                sum += weight * data[grid.index(taps[0].index[i], taps[1].index[j], taps[2].index[k])];
            }
        }
    }
    sum
}

/// For each organ in `organs` its soft indicator (0..1) per pixel.
pub(crate) fn indicators(labels: &Volume<u8>, organs: &[u8], view: &View) -> Vec<Vec<f32>> {
    let grid = &labels.grid;
    // The index axis that runs most nearly across the picture.
    let normal = view.plane().normal();
    let across = (0..3)
        .max_by(|&a, &b| grid.direction[normal][a].abs().total_cmp(&grid.direction[normal][b].abs()))
        .unwrap_or(2);
    let mut slot = [usize::MAX; 256];
    for (n, &organ) in organs.iter().enumerate() {
        slot[usize::from(organ)] = n;
    }
    let [width, height] = view.size();
    let mut fields = vec![vec![0f32; width * height]; organs.len()];
    for p in 0..width * height {
        let Some(at) = inside(labels, view, [(p % width) as f64, (p / width) as f64]) else { continue };
        let [tx, ty, tz]: [Taps; 3] = std::array::from_fn(|a| {
            if a == across {
                Taps::linear(at[a], grid.size[a])
            } else {
                Taps::cubic(SOFT, at[a], grid.size[a])
            }
        });
        for k in 0..4 {
            for j in 0..4 {
                let weight = ty.weight[j] * tz.weight[k];
                if weight == 0.0 {
                    continue;
                }
                let row = grid.index(0, ty.index[j], tz.index[k]);
                for i in 0..4 {
                    let n = slot[usize::from(labels.data[row + tx.index[i]])];
                    if n != usize::MAX {
                        fields[n][p] += weight * tx.weight[i];
                    }
                }
            }
        }
    }
    fields
}

/// The voxel index of a pixel, `None` beyond the outer faces of the volume.
fn inside<T>(volume: &Volume<T>, view: &View, pixel: [f64; 2]) -> Option<[f64; 3]> {
    let at = volume.grid.to_index(view.point(pixel));
    let within = (0..3).all(|a| at[a] >= -0.5 && at[a] <= volume.grid.size[a] as f64 - 0.5);
    within.then_some(at)
}

fn per_pixel<T: Send>(view: &View, value: impl Fn([f64; 2]) -> T + Sync) -> Vec<T> {
    let [width, height] = view.size();
    (0..width * height).into_par_iter().map(|p| value([(p % width) as f64, (p / width) as f64])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::Plane;
    use libjrs::Grid;

    #[test]
    fn filters_sum_to_one() {
        for filter in [CATMULL_ROM, SOFT] {
            for position in [2.0, 2.3, 2.5, 2.99] {
                let sum: f32 = Taps::cubic(filter, position, 8).weight.iter().sum();
                assert!((sum - 1.0).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn images_keep_voxel_values() {
        let grid = Grid::axis_aligned([6, 5, 4], [2.0, 2.0, 3.0], [0.0; 3]);
        let data = (0..grid.len()).map(|i| ((i * 37) % 101) as f32).collect();
        let volume = Volume::new(grid, data);
        // A view whose pixel centres are the voxel centres of slice 2.
        let view = View::around(Plane::Axial, [5.0, 4.0, 6.0], [12.0, 10.0], 6);
        let view8 = View::around(Plane::Axial, [5.0, 4.0, 6.0], [16.0, 16.0], 8);
        assert_eq!(view.size()[0], 8, "views have at least 8 pixels");
        let pixels = image(&volume, &view8);
        // Voxel (3, 1, 2) lies at (6, 2, 6) mm.
        let at = view8.pixel([6.0, 2.0, 6.0]);
        let p = at[1].round() as usize * 8 + at[0].round() as usize;
        let exact = (at[0].fract() == 0.0, at[1].fract() == 0.0);
        assert_eq!(exact, (true, false));
        assert!(pixels[p].is_some());
        assert!((linear(&volume, [3.0, 1.0, 2.0]) - volume.at(3, 1, 2)).abs() < 1e-4);
    }

    #[test]
    fn a_single_voxel_is_not_lost() {
        let grid = Grid::axis_aligned([9, 9, 3], [1.0; 3], [0.0; 3]);
        let mut labels = Volume::filled(grid, 0u8);
        let i = labels.grid.index(4, 4, 1);
        labels.data[i] = 3;
        let view = View::around(Plane::Axial, [4.0, 4.0, 1.0], [9.0, 9.0], 9);
        let fields = indicators(&labels, &[3], &view);
        assert!(fields[0][4 * 9 + 4] > 0.5);
        assert!(fields[0].iter().filter(|&&v| v > 0.5).count() == 1);
    }
}
