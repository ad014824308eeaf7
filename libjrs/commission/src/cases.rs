//! The cases: what is deformed, and what else makes it hard. Tissue carries its texture along; only a scanner's noise is each
//! scan's own.

use jrs_phantom::anatomy::bones::FEMORAL_HEAD;
use libjrs::geometry::{Point, distance};
use libjrs::resample::{resample_image, resample_nearest};
use libjrs::{Grid, Volume};

use crate::scene::{Scan, Scene};

/// A case of the suite.
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// What it shows.
    pub purpose: &'static str,
    pub(crate) standard: Standard,
    pub(crate) make: fn(&Scene) -> Pair,
}

/// Which tolerances a case is judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standard {
    /// Nothing has moved.
    Still,
    /// The patient has only shifted.
    Rigid,
    /// Both scans show the same, deformed.
    Deformed,
    /// One scan shows what the other does not.
    Outliers,
}

/// A pair of scans with its truth.
pub(crate) struct Pair {
    /// What is known: on the scene's grid, before the scans were cut or turned.
    pub fixed: Scan,
    pub moving: Scan,
    /// What registration gets, where that is something else.
    pub seen: [Option<Volume<f32>>; 2],
    /// Labels of the moving scan on its own grid, if that is another one.
    pub seen_labels: Option<Volume<u8>>,
    /// True if the verdict must not be OK.
    pub must_warn: bool,
}

impl Pair {
    /// Fixed and moving scan as registration gets them.
    pub fn images(&self) -> [&Volume<f32>; 2] {
        let [fixed, moving] = &self.seen;
        [fixed.as_ref().unwrap_or(&self.fixed.image), moving.as_ref().unwrap_or(&self.moving.image)]
    }
}

/// Air.
const AIR: f32 = -1000.0;

/// All cases, in order.
pub const CASES: [Case; 10] = [
    Case {
        name: "identity",
        purpose: "the same scan twice: nothing may move",
        standard: Standard::Still,
        make: |scene| pair(scene.scan(0, |_| [0.0; 3]), scene.scan(0, |_| [0.0; 3])),
    },
    Case {
        name: "repeat scan",
        purpose: "the same patient in the same place, new noise: noise may move nothing",
        standard: Standard::Still,
        make: |scene| pair(scene.scan(1, |_| [0.0; 3]), rest(scene)),
    },
    Case {
        name: "shift",
        purpose: "the patient lies 8 mm elsewhere, new noise: rigid alignment and signs of all axes",
        standard: Standard::Rigid,
        make: |scene| pair(scene.scan(1, |_| [5.0, -4.0, 4.8]), rest(scene)),
    },
    Case {
        name: "smooth bump",
        purpose: "soft tissue around the prostate moves by up to 10 mm",
        standard: Standard::Deformed,
        make: |scene| pair(scene.scan(1, bump(scene)), rest(scene)),
    },
    Case {
        name: "bladder filling",
        purpose: "the bladder is fuller and pushes its neighbours",
        standard: Standard::Deformed,
        make: |scene| {
            let centre = scene.place(scene.patient.anatomy.organs.bladder_center);
            pair(scene.scan(1, swelling(centre, [1.0; 3], 0.38, 38.0)), rest(scene))
        },
    },
    Case {
        name: "rectal gas",
        purpose: "the rectum is wider and full of gas, which no voxel of the other scan shows",
        standard: Standard::Outliers,
        make: |scene| {
            let height = 12.0;
            let [x, y] = scene.patient.anatomy.organs.rectum_center(height);
            let centre = scene.place([x, y, height]);
            let mut fixed = scene.scan(1, swelling(centre, [1.0, 1.0, 0.0], 0.5, 18.0));
            let anatomy = &scene.patient.anatomy;
            let is_gas =
                |x: Point, t: Point| (x[2] - centre[2]).abs() < 25.0 && anatomy.organs.rectum(t) < -3.0;
            scene.paint(&mut fixed, |x, t| is_gas(x, t).then_some(-900.0));
            pair(fixed, rest(scene))
        },
    },
    Case {
        name: "oblique grid",
        purpose: "the smooth bump, the fixed scan stored on a turned grid with its axes in another order",
        standard: Standard::Deformed,
        make: |scene| {
            let pair = pair(scene.scan(1, bump(scene)), rest(scene));
            let grid = turned(&scene.grid);
            let image = resample_image(&pair.fixed.image, &grid, None, AIR);
            Pair { seen: [Some(image), None], ..pair }
        },
    },
    Case {
        name: "anisotropic grid",
        purpose: "the smooth bump, the moving scan with slices of twice the thickness",
        standard: Standard::Deformed,
        make: |scene| {
            let pair = pair(scene.scan(1, bump(scene)), rest(scene));
            let mut grid = scene.grid.clone();
            grid.spacing[2] *= 2.0;
            grid.size[2] = grid.size[2].div_ceil(2);
            let image = resample_image(&pair.moving.image, &grid, None, AIR);
            let labels = resample_nearest(&pair.moving.labels, &grid, None, 0);
            Pair { seen: [None, Some(image)], seen_labels: Some(labels), ..pair }
        },
    },
    Case {
        name: "metal and contrast",
        purpose: "the smooth bump with a hip implant and its streaks in both scans, and contrast in one bladder",
        standard: Standard::Outliers,
        make: |scene| {
            let (mut fixed, mut moving) = (scene.scan(1, bump(scene)), rest(scene));
            let hip = scene.place(FEMORAL_HEAD);
            scene.paint(&mut fixed, |x, t| metal(hip, x, 0.0).or_else(|| contrast(scene, t)));
            scene.paint(&mut moving, |x, _| metal(hip, x, 0.6));
            pair(fixed, moving)
        },
    },
    Case {
        name: "cut field of view",
        purpose: "the moving scan lacks its upper third: right where it is, and a warning",
        standard: Standard::Outliers,
        make: |scene| {
            let pair = pair(scene.scan(1, bump(scene)), rest(scene));
            let mut grid = scene.grid.clone();
            grid.size[2] = grid.size[2] * 2 / 3;
            let image = resample_nearest(&pair.moving.image, &grid, None, AIR);
            let labels = resample_nearest(&pair.moving.labels, &grid, None, 0);
            Pair { seen: [None, Some(image)], seen_labels: Some(labels), must_warn: true, ..pair }
        },
    },
];

fn rest(scene: &Scene) -> Scan {
    scene.scan(0, |_| [0.0; 3])
}

fn pair(fixed: Scan, moving: Scan) -> Pair {
    Pair { fixed, moving, seen: [None, None], seen_labels: None, must_warn: false }
}

/// 10 mm in its middle, on the prostate, along no axis.
fn bump(scene: &Scene) -> impl Fn(Point) -> [f64; 3] + Sync + use<> {
    let centre = scene.place(scene.patient.anatomy.organs.prostate_center);
    move |x| {
        let weight = (-distance(x, centre).powi(2) / (2.0 * 28.0f64.powi(2))).exp();
        [4.0, 8.0, -4.5].map(|mm| mm * weight)
    }
}

/// Reads closer to `centre`, so that what is around it looks larger, by a share of at most `strength` (below 1, where
/// it would fold) along the axes of `along`.
fn swelling(centre: Point, along: [f64; 3], strength: f64, sigma: f64) -> impl Fn(Point) -> [f64; 3] + Sync {
    move |x| {
        let from: [f64; 3] = std::array::from_fn(|a| x[a] - centre[a]);
        // What is not along the axes fades more slowly.
        let r2: f64 = (0..3).map(|a| from[a].powi(2) * if along[a] > 0.0 { 1.0 } else { 0.25 }).sum();
        let weight = strength * (-r2 / (2.0 * sigma * sigma)).exp();
        std::array::from_fn(|a| -weight * along[a] * from[a])
    }
}

/// An implant in the hip, and streaks in its slices.
fn metal(hip: Point, x: Point, phase: f64) -> Option<f32> {
    let (dx, dy) = (x[0] - hip[0], x[1] - hip[1]);
    if distance(x, hip) < 18.0 {
        return Some(3000.0);
    }
    let reach = dx.hypot(dy);
    let is_streak =
        (x[2] - hip[2]).abs() < 14.0 && reach < 120.0 && (9.0 * dy.atan2(dx) + phase).cos() > 0.97;
    is_streak.then_some(if (x[2] / 3.0).sin() > 0.0 { 600.0 } else { -600.0 })
}

/// Contrast agent in the bladder.
fn contrast(scene: &Scene, t: Point) -> Option<f32> {
    (scene.patient.anatomy.organs.bladder(t) < -2.6).then_some(350.0)
}

/// A grid over the same place, turned about two axes, with k, i, j as its index axes.
fn turned(grid: &Grid) -> Grid {
    let ((s, c), (t, d)) = (0.17f64.sin_cos(), 0.1f64.sin_cos());
    let rows = [[c, -s * d, s * t], [s, c * d, -c * t], [0.0, t, d]];
    let order = [2, 0, 1];
    let mut new = Grid {
        size: order.map(|a| grid.size[a]),
        spacing: order.map(|a| grid.spacing[a]),
        origin: [0.0; 3],
        direction: rows.map(|row| order.map(|a| row[a])),
    };
    let middle = |g: &Grid| g.to_physical(g.size.map(|n| (n as f64 - 1.0) / 2.0));
    let (from, to) = (middle(&new), middle(grid));
    new.origin = std::array::from_fn(|a| to[a] - from[a]);
    new
}
