//! Polygons from anywhere: onto voxels and back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use libjrs::Grid;
use libjrs::contour::{rasterise, trace};

fuzz_target!(|bytes: &[u8]| {
    let grid = Grid::axis_aligned([17, 13, 5], [1.5, 1.0, 2.0], [-8.0, 3.0, 1.0]);
    let mut polygons: Vec<Vec<[f64; 3]>> = vec![Vec::new()];
    for point in bytes.chunks_exact(7) {
        let coordinate = |n: usize| f64::from(i16::from_le_bytes([point[n], point[n + 1]])) / 256.0;
        // The last byte says whether a polygon begins, the slice, and what no program should write.
        let z = match point[6] >> 5 {
            7 => coordinate(4),
            6 => f64::from_bits(u64::from_le_bytes([point[0], point[1], point[2], point[3], point[4], point[5], 0xf0, 0x7f])),
            slice => 1.0 + 2.0 * f64::from(slice),
        };
        if point[6] & 16 != 0 {
            polygons.push(Vec::new());
        }
        polygons.last_mut().unwrap().push([coordinate(0), coordinate(2), z]);
    }
    polygons.retain(|polygon| !polygon.is_empty());
    if let Ok(found) = rasterise(&polygons, &grid) {
        assert!(found.coverage.data.iter().all(|share| (0.0..=1.0 + 1e-5).contains(share)));
        for contour in trace(&found.coverage) {
            assert!(contour.points.len() >= 3 && contour.points.iter().flatten().all(|c| c.is_finite()));
        }
    }
});
