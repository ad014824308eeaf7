//! Images, labels and masks on other grids; smoothing and shrinking for pyramids.
//!
//! Inside a grid means ITK's rule, as in [`crate::field`]: up to half a voxel beyond the outer voxel centres.

use rayon::prelude::*;

use crate::field::heaviest_label;
use crate::field::trilinear::{Cell, IndexMap};
use crate::geometry::{Affine, Grid, Point};
use crate::volume::Volume;

/// Grids whose corners are this near to each other are one: interpolation between them would be a copy, mm.
pub(crate) const SAME_MM: f64 = 1e-6;

/// The image at a physical point (mm), trilinear; `None` outside.
pub fn sample_linear(image: &Volume<f32>, point: Point) -> Option<f32> {
    let cell = Cell::inside(image.grid.size, image.grid.to_index(point))?;
    Some(cell.interpolate(&image.data) as f32)
}

/// The value of the voxel nearest to a physical point (mm); `None` outside.
pub fn sample_nearest<T: Copy>(volume: &Volume<T>, point: Point) -> Option<T> {
    nearest_voxel(&volume.grid, volume.grid.to_index(point)).map(|i| volume.data[i])
}

/// `image(affine(x))` at every voxel `x` of `grid`, trilinear, and `outside` where that leaves the image.
pub fn resample_image(
    image: &Volume<f32>,
    grid: &Grid,
    affine: Option<&Affine>,
    outside: f32,
) -> Volume<f32> {
    if image.grid.same_space(grid, SAME_MM) && affine.is_none_or(|affine| *affine == Affine::IDENTITY) {
        return Volume { grid: grid.clone(), data: image.data.clone() };
    }
    let size = image.grid.size;
    through_affine(&image.grid, grid, affine, |index| {
        Cell::inside(size, index).map_or(outside, |cell| cell.interpolate(&image.data) as f32)
    })
}

/// `labels(affine(x))` at every voxel `x` of `grid`: linear interpolation of the one-hot labels, then the
/// heaviest label (science.md section 6); background outside.
pub fn resample_labels(labels: &Volume<u8>, grid: &Grid, affine: Option<&Affine>) -> Volume<u8> {
    let size = labels.grid.size;
    through_affine(&labels.grid, grid, affine, |index| {
        Cell::inside(size, index).map_or(0, |cell| heaviest_label(&cell, &labels.data))
    })
}

/// The voxel of `volume` nearest to `affine(x)` at every voxel `x` of `grid`, and `outside` where there is none.
pub fn resample_nearest<T: Copy + Default + Send + Sync>(
    volume: &Volume<T>,
    grid: &Grid,
    affine: Option<&Affine>,
    outside: T,
) -> Volume<T> {
    through_affine(&volume.grid, grid, affine, |index| {
        nearest_voxel(&volume.grid, index).map_or(outside, |i| volume.data[i])
    })
}

/// The isotropic grid on which the network works: it covers the fixed image, keeps its obliquity, and its axes
/// are those of the fixed image permuted and flipped to run as closely as possible to left, posterior, superior.
///
/// Its centre is the centre of the fixed image and its outermost voxel centres lie inside the fixed image.
pub fn working_grid(fixed: &Grid, spacing_mm: f64) -> Grid {
    let d = &fixed.direction;
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let closeness = |order: &[usize; 3]| (0..3).map(|p| d[p][order[p]].abs()).sum::<f64>();
    // Ties (an exact 45 degrees) go to the earlier order.
    let order =
        orders.iter().fold(orders[0], |best, o| if closeness(o) > closeness(&best) { *o } else { best });

    // A hair is taken off before rounding up, so that a spacing of 1.0000001 gives no extra slice.
    let size =
        order.map(|a| ((fixed.size[a] as f64 * fixed.spacing[a] / spacing_mm - 1e-3).ceil() as usize).max(1));
    let sign: [f64; 3] = std::array::from_fn(|p| if d[p][order[p]] < 0.0 { -1.0 } else { 1.0 });
    let direction = std::array::from_fn(|r| std::array::from_fn(|p| sign[p] * d[r][order[p]]));
    let mut grid = Grid { size, spacing: [spacing_mm; 3], origin: [0.0; 3], direction };
    let from = grid.to_physical(middle(&grid));
    let to = fixed.to_physical(middle(fixed));
    grid.origin = std::array::from_fn(|a| to[a] - from[a]);
    grid
}

/// Separable Gaussian smoothing, `sigma_mm` along every axis, border voxels repeated outwards.
///
/// The kernel reaches 3 sigma and is normalised; axes with a sigma below a tenth of a voxel are left alone.
pub fn gaussian_smooth(image: &Volume<f32>, sigma_mm: f64) -> Volume<f32> {
    let mut smooth = image.clone();
    for axis in 0..3 {
        let sigma = sigma_mm / image.grid.spacing[axis];
        if sigma >= 0.1 {
            smooth.data = convolve_axis(&smooth.data, image.grid.size, axis, &gaussian_kernel(sigma));
        }
    }
    smooth
}

/// Shrinks by whole factors: each voxel is the mean of `value` over a block of `factor` voxels. What does not
/// fill a block at the far ends is averaged over the voxels there are.
pub fn shrink(image: &Volume<f32>, factor: [usize; 3], value: impl Fn(f32) -> f32 + Sync) -> Volume<f32> {
    let old = &image.grid;
    let grid = Grid {
        size: std::array::from_fn(|a| old.size[a].div_ceil(factor[a])),
        spacing: std::array::from_fn(|a| old.spacing[a] * factor[a] as f64),
        origin: old.to_physical(factor.map(|f| (f as f64 - 1.0) / 2.0)),
        direction: old.direction,
    };
    let [nx, ny, _] = grid.size;
    let mut data = vec![0.0f32; grid.len()];
    data.par_chunks_mut((nx * ny).max(1)).enumerate().for_each(|(z, slice)| {
        let mut counts = vec![0u32; nx * ny];
        for zz in z * factor[2]..((z + 1) * factor[2]).min(old.size[2]) {
            for yy in 0..old.size[1] {
                let row = &image.data[old.index(0, yy, zz)..][..old.size[0]];
                let start = yy / factor[1] * nx;
                for (x, block) in row.chunks(factor[0]).enumerate() {
                    slice[start + x] += block.iter().map(|&v| value(v)).sum::<f32>();
                    counts[start + x] += block.len() as u32;
                }
            }
        }
        for (sum, count) in slice.iter_mut().zip(counts) {
            *sum /= count as f32;
        }
    });
    Volume { grid, data }
}

/// Evaluates `value` at the continuous source index of every voxel of `grid`, slices in parallel.
fn through_affine<V: Copy + Send + Default>(
    source: &Grid,
    grid: &Grid,
    affine: Option<&Affine>,
    value: impl Fn([f64; 3]) -> V + Sync,
) -> Volume<V> {
    let map = IndexMap::new(grid, affine, source);
    let [nx, ny, _] = grid.size;
    let mut data = vec![V::default(); grid.len()];
    data.par_chunks_mut((nx * ny).max(1)).enumerate().for_each(|(z, slice)| {
        for y in 0..ny {
            let row = map.row(y, z);
            for (x, out) in slice[nx * y..][..nx].iter_mut().enumerate() {
                *out = value(row.at(x));
            }
        }
    });
    Volume { grid: grid.clone(), data }
}

fn nearest_voxel(grid: &Grid, index: [f64; 3]) -> Option<usize> {
    let is_inside = (0..3).all(|a| index[a] >= -0.5 && index[a] <= grid.size[a] as f64 - 0.5);
    is_inside.then(|| {
        let [x, y, z] = std::array::from_fn(|a| (index[a].round().max(0.0) as usize).min(grid.size[a] - 1));
        grid.index(x, y, z)
    })
}

fn middle(grid: &Grid) -> [f64; 3] {
    grid.size.map(|n| (n as f64 - 1.0) / 2.0)
}

fn gaussian_kernel(sigma: f64) -> Vec<f32> {
    let reach = (3.0 * sigma).ceil() as i32;
    let weights: Vec<f64> = (-reach..=reach).map(|i| (-0.5 * (f64::from(i) / sigma).powi(2)).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|w| (w / sum) as f32).collect()
}

/// Convolution along one axis with a symmetric kernel of odd length.
fn convolve_axis(data: &[f32], size: [usize; 3], axis: usize, kernel: &[f32]) -> Vec<f32> {
    let [nx, ny, nz] = size;
    let reach = kernel.len() / 2;
    let mut out = vec![0.0f32; data.len()];
    out.par_chunks_mut((nx * ny).max(1)).enumerate().for_each(|(z, slice)| {
        let clamped = |i: usize, tap: usize, n: usize| (i + tap).saturating_sub(reach).min(n - 1);
        match axis {
            0 => {
                for y in 0..ny {
                    let row = &data[nx * (y + ny * z)..][..nx];
                    for x in 0..nx {
                        slice[nx * y + x] =
                            kernel.iter().enumerate().map(|(t, w)| w * row[clamped(x, t, nx)]).sum();
                    }
                }
            }
            // Along y and z whole rows are added, which the compiler vectorises.
            1 => {
                for y in 0..ny {
                    for (t, w) in kernel.iter().enumerate() {
                        let row = &data[nx * (clamped(y, t, ny) + ny * z)..][..nx];
                        for (o, v) in slice[nx * y..][..nx].iter_mut().zip(row) {
                            *o += w * v;
                        }
                    }
                }
            }
            _ => {
                for (t, w) in kernel.iter().enumerate() {
                    let plane = &data[nx * ny * clamped(z, t, nz)..][..nx * ny];
                    for (o, v) in slice.iter_mut().zip(plane) {
                        *o += w * v;
                    }
                }
            }
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::{determinant, distance};

    fn oblique() -> Grid {
        let (s, c) = 0.2f64.sin_cos();
        Grid {
            size: [12, 9, 7],
            spacing: [0.9, 1.1, 2.5],
            origin: [-10.0, 4.0, 30.0],
            // Axis 0 runs superior, axis 1 to the right, axis 2 posterior, all tilted by 0.2 rad.
            direction: [[0.0, -c, s], [0.0, s, c], [1.0, 0.0, 0.0]],
        }
    }

    fn linear(grid: Grid) -> Volume<f32> {
        let mut volume = Volume::filled(grid, 0.0);
        let [nx, ny, nz] = volume.grid.size;
        for (z, y, x) in (0..nz).flat_map(|z| (0..ny).flat_map(move |y| (0..nx).map(move |x| (z, y, x)))) {
            let p = volume.grid.to_physical([x as f64, y as f64, z as f64]);
            let i = volume.grid.index(x, y, z);
            volume.data[i] = (3.0 * p[0] - 2.0 * p[1] + 0.5 * p[2] + 7.0) as f32;
        }
        volume
    }

    /// Trilinear interpolation reproduces a linear image exactly, through any grid and affine.
    #[test]
    fn a_linear_image_stays_linear() {
        let image = linear(oblique());
        let affine = Affine {
            matrix: [[0.99, 0.02, 0.0], [-0.02, 1.01, 0.01], [0.0, 0.0, 1.0]],
            translation: [0.4, -0.3, 0.2],
        };
        let grid = working_grid(&image.grid, 1.3);
        let out = resample_image(&image, &grid, Some(&affine), f32::NAN);
        let mut inside = 0;
        for z in 1..grid.size[2] - 1 {
            for y in 1..grid.size[1] - 1 {
                for x in 1..grid.size[0] - 1 {
                    let p = affine.apply(grid.to_physical([x as f64, y as f64, z as f64]));
                    let index = image.grid.to_index(p);
                    // Within half a voxel of the border the outermost value is repeated, which is not linear.
                    if (0..3).all(|a| index[a] >= 0.0 && index[a] <= image.grid.size[a] as f64 - 1.0) {
                        let expected = 3.0 * p[0] - 2.0 * p[1] + 0.5 * p[2] + 7.0;
                        assert!((f64::from(out.at(x, y, z)) - expected).abs() < 1e-3);
                        assert!((sample_linear(&image, p).unwrap() - out.at(x, y, z)).abs() < 1e-4);
                        inside += 1;
                    }
                }
            }
        }
        assert!(inside > 300, "{inside}");
    }

    #[test]
    fn the_working_grid_is_lps_and_covers_the_image() {
        let fixed = oblique();
        let grid = working_grid(&fixed, 1.0);
        assert_eq!(grid.size, [10, 18, 11]); // axes 1, 2, 0: 9.9, 17.5 and 10.8 mm
        assert!((determinant(&grid.direction) - 1.0).abs() < 1e-9);
        assert!((0..3).all(|a| grid.direction[a][a] > 0.97)); // cos 0.2
        assert!(distance(grid.to_physical(middle(&grid)), fixed.to_physical(middle(&fixed))) < 1e-9);
        for corner in grid.corners() {
            let index = fixed.to_index(corner);
            assert!((0..3).all(|a| index[a] >= -0.5 && index[a] <= fixed.size[a] as f64 - 0.5));
        }
        let plain = Grid::axis_aligned([20, 10, 5], [2.0; 3], [1.0, 2.0, 3.0]);
        assert!(working_grid(&plain, 2.0).same_space(&plain, 1e-9));
    }

    #[test]
    fn labels_take_the_heavier_side_and_background_outside() {
        let grid = Grid::axis_aligned([4, 1, 1], [1.0; 3], [0.0; 3]);
        let labels = Volume::new(grid, vec![1, 1, 3, 3]);
        let fine = Grid::axis_aligned([6, 1, 1], [0.8; 3], [0.0; 3]);
        // Centres 0, 0.8, 1.6, 2.4, 3.2 and 4.0; the last is outside.
        assert_eq!(resample_labels(&labels, &fine, None).data, [1, 1, 3, 3, 3, 0]);
        assert_eq!(resample_nearest(&labels, &fine, None, 9).data, [1, 1, 3, 3, 3, 9]);
        assert_eq!(sample_nearest(&labels, [1.6, 0.0, 0.0]), Some(3));
        assert_eq!(sample_nearest(&labels, [5.0, 0.0, 0.0]), None);
    }

    #[test]
    fn smoothing_keeps_the_mean_and_has_the_asked_width() {
        let grid = Grid::axis_aligned([31, 31, 21], [1.0, 1.0, 2.0], [0.0; 3]);
        let mut image = Volume::filled(grid, 0.0f32);
        let centre = image.grid.index(15, 15, 10);
        image.data[centre] = 1000.0;
        let smooth = gaussian_smooth(&image, 2.0);
        let total: f64 = smooth.data.iter().map(|&v| f64::from(v)).sum();
        assert!((total - 1000.0).abs() < 0.1, "{total}");
        for axis in 0..3 {
            let mut second_moment = 0.0;
            for (i, &v) in smooth.data.iter().enumerate() {
                let at = [i % 31, i / 31 % 31, i / (31 * 31)][axis] as f64;
                let offset = (at - [15.0, 15.0, 10.0][axis]) * image.grid.spacing[axis];
                second_moment += f64::from(v) * offset * offset / total;
            }
            // Variance of the kernel, cut at 3 sigma: 4 mm² less about 3 %.
            assert!((3.8..4.05).contains(&second_moment), "axis {axis}: {second_moment}");
        }
    }

    #[test]
    fn shrinking_averages_blocks_and_keeps_the_place() {
        let image = linear(oblique());
        let small = shrink(&image, [3, 3, 2], |v| v);
        assert_eq!(small.grid.size, [4, 3, 4]);
        let p = small.grid.to_physical([1.0, 1.0, 1.0]);
        assert!((sample_linear(&image, p).unwrap() - small.at(1, 1, 1)).abs() < 1e-3);
        // The last block along z holds one slice only.
        let last: f32 = (0..9).map(|i| image.at(i % 3, i / 3, 6)).sum::<f32>() / 9.0;
        assert!((small.at(0, 0, 3) - last).abs() < 1e-3);
    }
}
