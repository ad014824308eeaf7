//! Contours as treatment planning systems keep them: planar polygons, slice by slice, holes as polygons inside.
//!
//! A structure goes over to the fixed scan in three steps, none of which rounds to voxels: its polygons become the
//! covered share of every voxel ([`rasterise`]), that is read through the field as an image
//! ([`crate::field::warp_image`]), and [`trace`] follows the line where half is covered.

mod lines;
mod polygons;

pub use lines::{Line, lines};
pub use polygons::rasterise;

use crate::geometry::Point;
use crate::volume::Volume;

/// A closed polygon on one slice.
#[derive(Debug, Clone, PartialEq)]
pub struct SliceContour {
    /// Number of the slice: the third index of the grid.
    pub slice: usize,
    /// LPS mm; the first point is not repeated.
    pub points: Vec<Point>,
    /// True if the structure lies around it and not in it.
    pub is_hole: bool,
}

/// Outlines of what is covered by more than half, slice by slice; holes stay holes, and what reaches the edge of
/// the grid is closed there.
pub fn trace(coverage: &Volume<f32>) -> Vec<SliceContour> {
    let grid = &coverage.grid;
    let [nx, ny, nz] = grid.size;
    let (width, height) = (nx + 2, ny + 2);
    let mut framed = vec![0.0; width * height];
    let mut contours = Vec::new();
    for slice in 0..nz {
        let plane = &coverage.data[slice * nx * ny..][..nx * ny];
        if plane.iter().all(|&share| share <= 0.5) {
            continue;
        }
        for (y, row) in plane.chunks_exact(nx).enumerate() {
            framed[(y + 1) * width + 1..][..nx].copy_from_slice(row);
        }
        contours.extend(lines(&framed, width, height, 0.5).into_iter().map(|line| {
            SliceContour {
                slice,
                is_hole: signed_area(&line.points) < 0.0,
                points: (line.points.iter())
                    .map(|p| grid.to_physical([f64::from(p[0]) - 1.0, f64::from(p[1]) - 1.0, slice as f64]))
                    .collect(),
            }
        }));
    }
    contours
}

/// Twice the area, positive for counter-clockwise loops.
fn signed_area(points: &[[f32; 2]]) -> f64 {
    let next = points.iter().cycle().skip(1);
    let cross = |(a, b): (&[f32; 2], &[f32; 2])| {
        f64::from(a[0]) * f64::from(b[1]) - f64::from(b[0]) * f64::from(a[1])
    };
    points.iter().zip(next).map(cross).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::warp_image;
    use crate::geometry::{Grid, distance};
    use crate::volume::DisplacementField;

    fn grid() -> Grid {
        let (s, c) = 0.3f64.sin_cos();
        Grid {
            size: [40, 44, 6],
            spacing: [1.2, 1.2, 3.0],
            origin: [-20.0, 30.0, -100.0],
            direction: [[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]],
        }
    }

    /// A circle about index (cx, cy) with a radius in mm.
    fn circle(grid: &Grid, [cx, cy]: [f64; 2], slice: usize, mm: f64) -> Vec<Point> {
        let angle = |n: usize| n as f64 / 100.0 * std::f64::consts::TAU;
        let at =
            |a: f64| [cx + mm * a.cos() / grid.spacing[0], cy + mm * a.sin() / grid.spacing[1], slice as f64];
        (0..100).map(|n| grid.to_physical(at(angle(n)))).collect()
    }

    #[test]
    fn a_ring_comes_back_with_its_hole_where_the_field_says() {
        let grid = grid();
        let centre = [19.0, 22.0];
        let polygons: Vec<Vec<Point>> =
            (1..5).flat_map(|k| [circle(&grid, centre, k, 15.0), circle(&grid, centre, k, 6.0)]).collect();
        let coverage = rasterise(&polygons, &grid).unwrap().coverage;
        let mut field = DisplacementField::zero(grid.clone());
        // T(x) = x + u: the structure is seen 2.5 mm further down in x on the fixed scan.
        field.u[0].fill(2.5);
        let found = trace(&warp_image(&coverage, &field, None, 0.0));
        assert_eq!(found.len(), 8);
        let middle = grid.to_physical([centre[0], centre[1], 0.0]);
        for contour in &found {
            let radius = if contour.is_hole { 6.0 } else { 15.0 };
            for p in &contour.points {
                let r = distance([p[0] + 2.5, p[1], 0.0], [middle[0], middle[1], 0.0]);
                assert!((r - radius).abs() < 0.25, "{r} mm instead of {radius}");
            }
        }
        assert_eq!(found.iter().filter(|c| c.is_hole).count(), 4);
    }

    #[test]
    fn what_reaches_the_edge_is_closed() {
        let mut coverage = Volume::filled(grid(), 0.0f32);
        coverage.data[..40 * 44].fill(1.0);
        let found = trace(&coverage);
        assert_eq!((found.len(), found[0].is_hole, found[0].slice), (1, false, 0));
    }
}
