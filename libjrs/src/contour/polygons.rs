//! From polygons to the covered share of every voxel.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::geometry::{Grid, Point};
use crate::volume::Volume;
use crate::{Error, Result};

/// Lines per row of voxels along which coverage is measured; along a line it is exact.
const LINES: usize = 4;
/// How far a polygon may lie off its slice, in slices.
const OFF_SLICE: f64 = 0.25;

/// A structure on a grid.
#[derive(Debug, Clone, PartialEq)]
pub struct Rasterised {
    /// Covered share of every voxel, 0..=1.
    pub coverage: Volume<f32>,
    /// Slices without a polygon between slices with one. They are left empty.
    pub gaps: Vec<Range<usize>>,
}

/// Fills polygons (LPS mm) that lie on the slices of `grid`, the planes of its third index. Within a slice the
/// even-odd rule holds: a polygon inside another is a hole, one inside the hole is an island.
///
/// # Errors
/// If there is no polygon, one has fewer than 3 points, a coordinate is not finite, or one lies off the slices by more
/// than a quarter of their distance.
pub fn rasterise(polygons: &[impl AsRef<[Point]>], grid: &Grid) -> Result<Rasterised> {
    let mut slices: BTreeMap<usize, Vec<Vec<[f64; 2]>>> = BTreeMap::new();
    for (number, polygon) in polygons.iter().enumerate() {
        let (slice, loop_) = on_slice(number, polygon.as_ref(), grid)?;
        slices.entry(slice).or_default().push(loop_);
    }
    if slices.is_empty() {
        return Err(Error::input("a structure without polygons", "give its contours or leave it out"));
    }
    let mut coverage = Volume::filled(grid.clone(), 0.0f32);
    let [nx, ny, _] = grid.size;
    for (slice, loops) in &slices {
        fill(loops, nx, &mut coverage.data[slice * nx * ny..][..nx * ny]);
    }
    let contoured: Vec<usize> = slices.keys().copied().collect();
    let gaps = contoured.windows(2).map(|pair| pair[0] + 1..pair[1]).filter(|gap| !gap.is_empty()).collect();
    Ok(Rasterised { coverage, gaps })
}

/// The slice a polygon lies on, and its points there in voxels.
fn on_slice(number: usize, polygon: &[Point], grid: &Grid) -> Result<(usize, Vec<[f64; 2]>)> {
    let fix = "give closed planar polygons in LPS mm, drawn on the slices of the moving scan";
    if polygon.len() < 3 {
        let problem = format!("polygon {number} has {} points, and 3 are the least", polygon.len());
        return Err(Error::input(problem, fix));
    }
    let index: Vec<[f64; 3]> = polygon.iter().map(|&p| grid.to_index(p)).collect();
    if let Some(at) = index.iter().position(|i| !i.iter().all(|v| v.is_finite())) {
        return Err(Error::input(format!("polygon {number} has the point {:?}", polygon[at]), fix));
    }
    let slice = index[0][2].round();
    if let Some(off) = index.iter().map(|i| (i[2] - slice).abs()).find(|off| *off > OFF_SLICE) {
        return Err(Error::input(format!("polygon {number} lies {off:.2} slices off slice {slice}"), fix));
    }
    if !(0.0..grid.size[2] as f64).contains(&slice) {
        let problem = format!("polygon {number} lies on slice {slice} of a scan with {}", grid.size[2]);
        return Err(Error::input(problem, fix));
    }
    Ok((slice as usize, index.iter().map(|i| [i[0], i[1]]).collect()))
}

/// Adds the covered share of every pixel of a slice.
fn fill(loops: &[Vec<[f64; 2]>], nx: usize, plane: &mut [f32]) {
    let mut crossings = Vec::new();
    for (y, row) in plane.chunks_exact_mut(nx).enumerate() {
        for line in 0..LINES {
            let at = y as f64 - 0.5 + (line as f64 + 0.5) / LINES as f64;
            crossings.clear();
            for points in loops {
                for (n, a) in points.iter().enumerate() {
                    let b = points[(n + 1) % points.len()];
                    // Half-open, so that a corner on the line counts once.
                    if (a[1] <= at) != (b[1] <= at) {
                        crossings.push(a[0] + (at - a[1]) / (b[1] - a[1]) * (b[0] - a[0]));
                    }
                }
            }
            crossings.sort_unstable_by(f64::total_cmp);
            for span in crossings.chunks_exact(2) {
                cover(row, span[0], span[1]);
            }
        }
    }
}

/// Adds a line's share of what lies between `from` and `to`; pixel i reaches from i - 0.5 to i + 0.5.
fn cover(row: &mut [f32], from: f64, to: f64) {
    let edge = row.len() as f64 - 0.5;
    let (from, to) = (from.clamp(-0.5, edge), to.clamp(-0.5, edge));
    let first = (from + 0.5) as usize;
    for (x, share) in row.iter_mut().enumerate().skip(first) {
        let covered = (to.min(x as f64 + 0.5) - from.max(x as f64 - 0.5)).max(0.0);
        if covered == 0.0 && x > first {
            break;
        }
        *share += (covered / LINES as f64) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn square(from: f64, to: f64, z: f64) -> Vec<Point> {
        vec![[from, from, z], [to, from, z], [to, to, z], [from, to, z]]
    }

    #[test]
    fn shares_holes_islands_and_gaps() {
        let grid = Grid::axis_aligned([10, 10, 6], [1.0; 3], [0.0; 3]);
        let polygons =
            [square(0.75, 8.5, 1.0), square(2.5, 6.5, 1.0), square(3.5, 5.5, 1.0), square(-90.0, 90.0, 4.1)];
        let found = rasterise(&polygons, &grid).unwrap();
        let at = |x, y, z| found.coverage.at(x, y, z);
        assert_eq!(
            [at(0, 5, 1), at(1, 5, 1), at(2, 2, 1), at(3, 3, 1), at(4, 4, 1)],
            [0.0, 0.75, 1.0, 0.0, 1.0]
        );
        assert!((at(1, 1, 1) - 0.5625).abs() < 1e-6, "a quarter is missing in both directions");
        assert_eq!(found.coverage.data[400..500], [1.0; 100], "cut at the edge of the scan");
        assert_eq!((found.gaps.len(), found.gaps[0].clone()), (1, 2..4));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let grid = Grid::axis_aligned([10, 10, 6], [1.0, 1.0, 2.0], [0.0; 3]);
        let refused = |polygon: Vec<Point>| rasterise(&[polygon], &grid).unwrap_err().to_string();
        assert!(refused(square(1.0, 2.0, 0.0)[..2].to_vec()).contains("2 points"));
        assert!(refused(square(1.0, f64::NAN, 0.0)).contains("NaN"));
        assert!(refused(square(1.0, 5.0, 3.0)).contains("0.50 slices off"));
        assert!(refused(square(1.0, 5.0, 12.0)).contains("slice 6 of a scan with 6"));
        assert!(refused(square(1.0, 5.0, -2.0)).contains("slice -1"));
        assert!(rasterise(&[] as &[Vec<Point>], &grid).is_err());
    }

    proptest! {
        #[test]
        fn the_area_is_the_polygons(points in prop::collection::vec((0.0f64..20.0, 0.0f64..20.0), 3)) {
            let grid = Grid::axis_aligned([21, 21, 1], [1.0; 3], [0.0; 3]);
            let triangle: Vec<Point> = points.iter().map(|p| [p.0, p.1, 0.0]).collect();
            let [a, b, c] = [points[0], points[1], points[2]];
            let area = ((b.0 - a.0) * (c.1 - a.1) - (c.0 - a.0) * (b.1 - a.1)).abs() / 2.0;
            let filled: f32 = rasterise(&[triangle], &grid).unwrap().coverage.data.iter().sum();
            // A line stands for a quarter of a pixel: at most a few of them begin or end too late.
            prop_assert!((f64::from(filled) - area).abs() < 0.02 * area + 3.0, "{} for {}", filled, area);
        }
    }
}
