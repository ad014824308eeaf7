//! Reading a field at points, and reading a moving image or label map through it.

use rayon::prelude::*;

use super::trilinear::{Cell, IndexMap};
use crate::geometry::{Affine, Point};
use crate::volume::{DisplacementField, Volume};

/// The displacement at a physical point (mm), or `None` if the point is outside the field's grid.
pub fn sample(field: &DisplacementField, point: Point) -> Option<[f64; 3]> {
    let cell = Cell::inside(field.grid.size, field.grid.to_index(point))?;
    Some(std::array::from_fn(|c| cell.interpolate(&field.u[c])))
}

/// The displacement at a physical point (mm); outside the grid, that of the nearest point of the grid.
pub fn sample_clamped(field: &DisplacementField, point: Point) -> [f64; 3] {
    let cell = Cell::clamped(field.grid.size, field.grid.to_index(point));
    std::array::from_fn(|c| cell.interpolate(&field.u[c]))
}

/// `T(x) = affine(x + u(x))` of a fixed point, or `None` if the point is outside the field's grid.
pub fn map_point(field: &DisplacementField, affine: Option<&Affine>, point: Point) -> Option<Point> {
    let u = sample(field, point)?;
    let moved = std::array::from_fn(|a| point[a] + u[a]);
    Some(affine.map_or(moved, |affine| affine.apply(moved)))
}

/// The moving image on the fixed grid: `moving(T(x))`, trilinear, `outside` where `T(x)` leaves the image.
pub fn warp_image(
    moving: &Volume<f32>,
    field: &DisplacementField,
    affine: Option<&Affine>,
    outside: f32,
) -> Volume<f32> {
    through_field(moving, field, affine, |cell| {
        cell.map_or(outside, |cell| cell.interpolate(&moving.data) as f32)
    })
}

/// The moving labels on the fixed grid: one-hot linear interpolation, then the label of the largest weight
/// (science.md section 6). Equal weights go to the smaller label; outside the moving grid is background, 0.
pub fn warp_labels(moving: &Volume<u8>, field: &DisplacementField, affine: Option<&Affine>) -> Volume<u8> {
    through_field(moving, field, affine, |cell| cell.map_or(0, |cell| heaviest_label(&cell, &moving.data)))
}

/// 1 for every fixed voxel whose `T(x)` lies outside the moving grid, else 0.
pub fn out_of_field<T: Copy + Sync>(
    moving: &Volume<T>,
    field: &DisplacementField,
    affine: Option<&Affine>,
) -> Volume<u8> {
    through_field(moving, field, affine, |cell| u8::from(cell.is_none()))
}

/// Evaluates `value` at the moving cell of every fixed voxel, slices in parallel.
fn through_field<T: Sync, V: Copy + Send + Default>(
    moving: &Volume<T>,
    field: &DisplacementField,
    affine: Option<&Affine>,
    value: impl Fn(Option<Cell>) -> V + Sync,
) -> Volume<V> {
    let fixed = &field.grid;
    let map = IndexMap::new(fixed, affine, &moving.grid);
    let [nx, ny, _] = fixed.size;
    let mut data = vec![V::default(); fixed.len()];
    data.par_chunks_mut((nx * ny).max(1)).enumerate().for_each(|(z, slice)| {
        for y in 0..ny {
            let (row, first) = (map.row(y, z), fixed.index(0, y, z));
            for (x, out) in slice[nx * y..][..nx].iter_mut().enumerate() {
                *out = value(Cell::inside(moving.grid.size, row.moved(x, field.at(first + x))));
            }
        }
    });
    Volume { grid: fixed.clone(), data }
}

/// The label of the largest linear weight in a cell; equal weights go to the smaller label.
pub(crate) fn heaviest_label(cell: &Cell, labels: &[u8]) -> u8 {
    let corner = cell.corners().map(|i| labels[i]);
    if corner.iter().all(|&l| l == corner[0]) {
        return corner[0];
    }
    let weights = cell.weights();
    let weight_of = |label: u8| -> f64 { (0..8).filter(|&c| corner[c] == label).map(|c| weights[c]).sum() };
    let mut best = (weight_of(corner[0]), corner[0]);
    for &label in &corner[1..] {
        let weight = weight_of(label);
        if weight > best.0 || (weight == best.0 && label < best.1) {
            best = (weight, label);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::Grid;

    fn oblique_grid() -> Grid {
        let (s, c) = 0.3f64.sin_cos();
        Grid {
            size: [9, 8, 7],
            spacing: [0.9, 1.1, 2.5],
            origin: [-10.0, 4.0, 30.0],
            direction: [[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]],
        }
    }

    /// Linear interpolation reproduces a linear image exactly, through any field and affine.
    #[test]
    fn a_linear_image_is_warped_exactly() {
        let fixed = oblique_grid();
        let moving = Grid::axis_aligned([40, 40, 40], [2.0, 1.5, 1.8], [-40.0, -25.0, 0.0]);
        let intensity = |p: Point| 3.0 * p[0] - 2.0 * p[1] + 0.5 * p[2] + 7.0;
        let mut image = Volume::filled(moving.clone(), 0.0f32);
        let mut field = DisplacementField::zero(fixed.clone());
        for z in 0..40 {
            for y in 0..40 {
                for x in 0..40 {
                    image.data[moving.index(x, y, z)] =
                        intensity(moving.to_physical([x as f64, y as f64, z as f64])) as f32;
                }
            }
        }
        for i in 0..fixed.len() {
            for c in 0..3 {
                field.u[c][i] = ((i * (c + 3)) % 11) as f32 * 0.3 - 1.5;
            }
        }
        let affine = Affine {
            matrix: [[1.02, 0.05, 0.0], [-0.04, 0.98, 0.01], [0.0, 0.02, 1.0]],
            translation: [1.5, -2.0, 0.7],
        };
        let warped = warp_image(&image, &field, Some(&affine), -1000.0);
        let gone = out_of_field(&image, &field, Some(&affine));
        assert!(gone.data.iter().all(|&g| g == 0));
        for z in 0..7 {
            for y in 0..8 {
                for x in 0..9 {
                    let p = fixed.to_physical([x as f64, y as f64, z as f64]);
                    let expected = intensity(map_point(&field, Some(&affine), p).unwrap());
                    assert!((f64::from(warped.at(x, y, z)) - expected).abs() < 1e-3);
                }
            }
        }
    }

    #[test]
    fn half_a_voxel_is_the_edge() {
        let grid = Grid::axis_aligned([3, 3, 3], [2.0; 3], [0.0; 3]);
        let mut field = DisplacementField::zero(grid);
        field.u[0].fill(1.0);
        assert!(sample(&field, [4.99, 2.0, 2.0]).is_some());
        assert!(sample(&field, [5.01, 2.0, 2.0]).is_none());
        assert!(sample(&field, [f64::NAN, 2.0, 2.0]).is_none());
        assert_eq!(sample_clamped(&field, [500.0, 2.0, -9.0]), [1.0, 0.0, 0.0]);
    }

    #[test]
    fn labels_go_to_the_largest_weight() {
        let grid = Grid::axis_aligned([2, 2, 1], [1.0; 3], [0.0; 3]);
        let labels = Volume::new(grid, vec![1, 2, 3, 2]);
        let at = |x: f64, y: f64| {
            let target = Grid::axis_aligned([1, 1, 1], [1.0; 3], [x, y, 0.0]);
            warp_labels(&labels, &DisplacementField::zero(target), None).data[0]
        };
        assert_eq!(at(0.4, 0.4), 2, "0.36 of label 1, 0.4 of label 2, 0.24 of label 3");
        assert_eq!(at(0.2, 0.2), 1);
        assert_eq!(at(0.1, 0.9), 3);
        assert_eq!(at(5.0, 0.0), 0, "outside is background");
        assert_eq!(at(0.5, 0.0), 1, "a tie goes to the smaller label");
    }
}
