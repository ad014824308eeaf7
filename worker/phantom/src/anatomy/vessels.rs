//! Iliac and femoral vessels, the nodal region around them, small nodes, spermatic cords and bowel loops.

use super::shape::{Index, Shape, add};
use crate::draw::Draw;
use libjrs::geometry::Point;

/// Margin of the contoured nodal region around the vessel axis, mm (vessel plus about 7 mm).
const NODAL_MARGIN: f64 = 6.5;
/// The nodal contour runs between these heights (mm).
pub const NODES_BOTTOM: f64 = 6.0;
/// See [`NODES_BOTTOM`].
pub const NODES_TOP: f64 = 104.0;

/// Vessels and nodes.
pub struct Vessels {
    vessels: (Vec<Shape>, Index),
    beads: (Vec<Shape>, Index),
    region: (Vec<Shape>, Index),
    /// Middle of the nodal region (right, left).
    pub middle: [Point; 2],
}

impl Vessels {
    /// Draws a patient's vessels.
    pub fn draw(draw: &mut Draw) -> Self {
        let (mut vessels, mut beads, mut region) = (vec![], vec![], vec![]);
        let mut middle = [[0.0; 3]; 2];
        for (n, side) in [-1.0, 1.0].into_iter().enumerate() {
            let shift = draw.gauss3([2.0, 2.0, 3.0]);
            let at = |p: Point| add([side * p[0], p[1], p[2]], [side * shift[0], shift[1], shift[2]]);
            // Common, then external iliac, then femoral; artery in front and outside of the vein.
            let external: Vec<Point> = [
                [22.0, 8.0, 150.0],
                [34.0, 14.0, 105.0],
                [48.0, -2.0, 70.0],
                [61.0, -26.0, 38.0],
                [70.0, -52.0, 8.0],
                [79.0, -76.0, -22.0],
                [80.0, -74.0, -70.0],
                [82.0, -58.0, -190.0],
            ]
            .map(at)
            .to_vec();
            let internal =
                [[34.0, 14.0, 105.0], [42.0, 36.0, 75.0], [50.0, 50.0, 45.0], [52.0, 40.0, 22.0]].map(at);
            let obturator = [[46.0, 28.0, 52.0], [47.0, 4.0, 30.0], [48.0, -16.0, 12.0]].map(at);
            let chain = |points: &[Point], offset: Point, r: f64, out: &mut Vec<Shape>| {
                for pair in points.windows(2) {
                    out.push(Shape::rod(add(pair[0], offset), add(pair[1], offset), r, r));
                }
            };
            let artery = draw.gauss(4.6, 0.4);
            let vein = draw.gauss(5.8, 0.5);
            chain(&external, [side * 4.0, -4.5, 0.0], artery, &mut vessels);
            chain(&external, [-side * 4.5, 5.0, 0.0], vein, &mut vessels);
            chain(&internal, [0.0; 3], 3.8, &mut vessels);
            chain(&internal, [-side * 5.0, 6.0, -4.0], 3.2, &mut vessels);
            chain(&obturator, [0.0; 3], 1.8, &mut vessels);
            // Spermatic cord, from the deep ring to the scrotum.
            let cord =
                [[66.0, -72.0, 14.0], [38.0, -84.0, -18.0], [26.0, -84.0, -50.0], [20.0, -80.0, -100.0]]
                    .map(at);
            chain(&cord, [0.0; 3], 4.5, &mut vessels);
            // Vessels beside the prostate and the superficial femoral tributaries.
            let bundle =
                [[22.0, 24.0, -44.0], [27.0, 24.0, -20.0], [36.0, 26.0, 4.0], [46.0, 40.0, 24.0]].map(at);
            chain(&bundle, [0.0; 3], 1.9, &mut vessels);
            let saphenous = [[76.0, -84.0, -30.0], [68.0, -98.0, -60.0], [60.0, -100.0, -120.0]].map(at);
            chain(&saphenous, [0.0; 3], 2.5, &mut vessels);

            chain(&external[1..5], [0.0; 3], 5.0 + NODAL_MARGIN, &mut region);
            chain(&internal, [-side * 2.0, 2.0, 0.0], 3.0 + NODAL_MARGIN, &mut region);
            chain(&obturator, [0.0; 3], 2.0 + NODAL_MARGIN, &mut region);
            middle[n] = external[3];

            for path in [&external[1..6], &internal[..], &obturator[..]] {
                for _ in 0..4 {
                    let along = draw.between(0.0, path.len() as f64 - 1.0);
                    let (k, t) = (along as usize, along.fract());
                    let center: Point =
                        std::array::from_fn(|a| path[k][a] + t * (path[k + 1][a] - path[k][a]));
                    let center = add(center, draw.gauss3([5.5, 5.5, 2.0]));
                    let r = draw.between(1.8, 3.6);
                    beads.push(Shape::ellipsoid(
                        center,
                        [r, r * draw.between(0.7, 1.2), r * draw.between(1.0, 1.9)],
                    ));
                }
            }
            for _ in 0..5 {
                let r = draw.between(2.2, 5.0);
                let center = at([draw.gauss(72.0, 10.0), draw.gauss(-92.0, 5.0), draw.gauss(-30.0, 20.0)]);
                beads.push(Shape::ellipsoid(center, [r, 0.8 * r, 1.6 * r]));
            }
        }
        let indexed = |shapes: Vec<Shape>| {
            let index = Index::new(&shapes);
            (shapes, index)
        };
        Self { vessels: indexed(vessels), beads: indexed(beads), region: indexed(region), middle }
    }

    /// Signed distance to the nearest vessel.
    #[inline]
    pub fn vessel(&self, p: Point) -> f64 {
        nearest(&self.vessels, p)
    }

    /// Signed distance to the nearest small node.
    #[inline]
    pub fn bead(&self, p: Point) -> f64 {
        nearest(&self.beads, p)
    }

    /// Signed distance to the nodal region, before bone, muscle and organs are taken out.
    #[inline]
    pub fn region(&self, p: Point) -> f64 {
        nearest(&self.region, p).max(p[2] - NODES_TOP).max(NODES_BOTTOM - p[2])
    }
}

/// Loops of bowel above the bladder and around the sigmoid.
pub struct Bowel {
    loops: (Vec<Shape>, Index),
}

impl Bowel {
    /// Draws a patient's loops: chains of bent rods that fill the space above `floor` (the bladder's dome).
    pub fn draw(draw: &mut Draw, floor: f64) -> Self {
        let mut shapes = vec![];
        let mut chain = |draw: &mut Draw, start: Point, pieces: usize, radius: f64| {
            let mut a = start;
            let mut r = radius;
            for _ in 0..pieces {
                let b = add(a, draw.gauss3([26.0, 16.0, 16.0]));
                let b = [b[0].clamp(-78.0, 78.0), b[1].clamp(-80.0, 20.0), b[2].max(floor + 12.0)];
                let next = (radius * draw.gauss(1.0, 0.15)).max(6.0);
                shapes.push(Shape::rod(a, b, r, next));
                (a, r) = (b, next);
            }
        };
        for n in 0..14 {
            let z = floor + 14.0 + 13.0 * f64::from(n);
            let start = [draw.between(-66.0, 66.0), draw.between(-80.0, 10.0), z];
            let radius = draw.between(9.0, 14.0);
            chain(draw, start, 4, radius);
        }
        // The sigmoid goes on from the rectum to the left iliac fossa.
        for (a, b) in [
            ([14.0, 36.0, 84.0], [30.0, 6.0, 94.0]),
            ([30.0, 6.0, 94.0], [62.0, -4.0, 104.0]),
            ([62.0, -4.0, 104.0], [84.0, -34.0, 132.0]),
            ([84.0, -34.0, 132.0], [104.0, -24.0, 220.0]),
            ([-98.0, -30.0, 130.0], [-104.0, -24.0, 220.0]),
        ] {
            shapes.push(Shape::rod(a, b, 14.0, 15.0));
        }
        let index = Index::new(&shapes);
        Self { loops: (shapes, index) }
    }

    /// Signed distance to the outside of the bowel wall.
    #[inline]
    pub fn distance(&self, p: Point) -> f64 {
        nearest(&self.loops, p)
    }
}

#[inline]
fn nearest((shapes, index): &(Vec<Shape>, Index), p: Point) -> f64 {
    index.near(p).iter().map(|&n| shapes[n as usize].distance(p)).fold(1e3, f64::min)
}
