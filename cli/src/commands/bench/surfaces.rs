//! Scores of contours.

use super::{Bench, five_balls};
use libjrs::metrics::{distance_transform, surface_distances};
use libjrs::{Grid, Volume};

/// MSD and HD95 (and the other surface distances) of five organs in two label maps.
pub fn scores(size: usize) -> Bench<'static> {
    let map = |shift| Volume::new(Grid::axis_aligned([size; 3], [1.0; 3], [0.0; 3]), five_balls(size, shift));
    let (reference, other) = (map(0.0), map(3.0));
    Bench {
        name: format!("surface distances of 5 organs, {size}^3"),
        flops: None,
        run: Box::new(move || {
            for organ in 1..=5 {
                surface_distances(&reference, &other, organ)?;
            }
            Ok(())
        }),
    }
}

/// The distance to the nearest voxel of five balls, for every voxel.
pub fn distance(size: usize) -> Bench<'static> {
    let sites = Volume::new(Grid::axis_aligned([size; 3], [1.0; 3], [0.0; 3]), five_balls(size, 0.0));
    Bench {
        name: format!("distance transform, {size}^3"),
        flops: None,
        run: Box::new(move || {
            std::hint::black_box(distance_transform(&sites));
            Ok(())
        }),
    }
}
