//! One synthetic patient, and scans of it under deformations that are known.

use jrs_phantom::anatomy::ORGANS;
use jrs_phantom::lattice::Lattice;
use jrs_phantom::motion::Patient;
use jrs_phantom::render::{Rendered, Texture, render};
use jrs_phantom::truth::displacement;
use libjrs::geometry::Point;
use libjrs::{DisplacementField, Grid, Volume};
use rayon::prelude::*;

use crate::Suite;

/// The pelvis with all organs, mm.
const LOW: Point = [-190.0, -130.0, -70.0];
const HIGH: Point = [190.0, 130.0, 90.0];
/// Knots of the deformations, mm: much finer than what they describe.
const KNOTS: f64 = 6.0;
/// How far maps reach beyond the scans, mm.
const ROOM: f64 = 45.0;

/// The patient at rest.
pub(crate) struct Scene {
    pub patient: Patient,
    pub grid: Grid,
    pub seed: u64,
    rest: Lattice,
}

/// A scan with its organs, torso and map to the anatomy.
pub(crate) struct Scan {
    pub image: Volume<f32>,
    pub labels: Volume<u8>,
    pub torso: Volume<u8>,
    map: Lattice,
}

impl Scene {
    pub fn new(suite: &Suite) -> Self {
        let patient = Patient::new(suite.seed, 0);
        let [pixel, slice] = suite.spacing_mm;
        let spacing = [pixel, pixel, slice];
        let size = std::array::from_fn(|a| ((HIGH[a] - LOW[a]) / spacing[a]).round() as usize);
        let grid = Grid::axis_aligned(size, spacing, LOW);
        let mut motion = patient.motion(suite.seed, 0);
        let rest = patient.pull_back_over(&mut motion, &grid, KNOTS);
        Self { patient, grid, seed: suite.seed, rest }
    }

    /// The patient at the places x + d(x): what is drawn at x shows what the scan at rest shows at x + d(x), up to the
    /// sampling of d and to noise, of which every `number` has its own. Texture moves with the tissue.
    pub fn scan(&self, number: usize, d: impl Fn(Point) -> [f64; 3] + Sync) -> Scan {
        let room = |p: Point, sign: f64| p.map(|c| c + sign * ROOM);
        let map = Lattice::sample(room(LOW, -1.0), room(HIGH, 1.0), KNOTS, |x| {
            let d = d(x);
            let y: Point = std::array::from_fn(|a| x[a] + d[a]);
            // Beyond the map at rest there is nothing to see: it goes on as it is.
            self.rest.map(y).map_or(d, |t| std::array::from_fn(|a| t[a] - x[a]))
        });
        let Rendered { image, labels, torso } =
            render(&self.patient, &map, &self.grid, self.seed, number, Texture::OfTissue);
        Scan { image, labels, torso, map }
    }

    /// Where a point of the anatomy's frame is in the scan at rest.
    pub fn place(&self, template: Point) -> Point {
        let start = std::array::from_fn(|a| template[a] * self.patient.scale[a]);
        self.rest.solve(template, start).unwrap_or(start)
    }

    /// The exact displacement from `fixed` to `moving`; NaN where nothing corresponds.
    pub fn truth(&self, fixed: &Scan, moving: &Scan) -> DisplacementField {
        displacement(&self.patient, &fixed.map, &moving.map, &self.grid)
    }

    /// Where `moving` shows what `fixed` shows at `x`, also in air and gas.
    #[cfg(test)]
    pub fn correspondence(&self, [fixed, moving]: [&Scan; 2], x: Point) -> Option<Point> {
        moving.map.solve(fixed.map.map(x)?, x)
    }

    /// Sets the image wherever `value` (place in the scan, place in the anatomy) says so.
    pub fn paint(&self, scan: &mut Scan, value: impl Fn(Point, Point) -> Option<f32> + Sync) {
        let [nx, ny, _] = self.grid.size;
        let map = &scan.map;
        scan.image.data.par_chunks_mut(nx * ny).enumerate().for_each(|(k, slice)| {
            for (i, hu) in slice.iter_mut().enumerate() {
                let x = self.grid.to_physical([i % nx, i / nx, k].map(|n| n as f64));
                if let Some(new) = map.map(x).and_then(|t| value(x, t)) {
                    *hu = new;
                }
            }
        });
    }
}

/// Labels and names of the organs that are judged.
pub(crate) fn organs() -> impl Iterator<Item = (u8, &'static str)> {
    ORGANS.into_iter()
}
