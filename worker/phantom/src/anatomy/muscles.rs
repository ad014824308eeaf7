//! Muscles, and the fat planes between them.
//!
//! Muscles are generous overlapping solids. Where two overlap, the boundary is where both are equally
//! deep, and a thin plane of fat runs along it: that is what makes muscles visible in CT.

use super::organs::Organs;
use super::shape::{Index, Shape, smooth_min};
use libjrs::geometry::Point;

/// Thickness of the fat between neighbouring muscles, mm.
const PLANE: f64 = 1.8;

/// All muscles of the pelvis and the upper thigh.
pub struct Muscles {
    shapes: Vec<Shape>,
    index: Index,
}

impl Muscles {
    /// Muscles `bulk` mm thicker than usual.
    pub fn new(bulk: f64) -> Self {
        let mut shapes = Vec::new();
        for shape in one_side() {
            let shape = swell(shape, 3.2 + bulk);
            shapes.push(shape.mirrored());
            shapes.push(shape);
        }
        shapes.extend(midline());
        let index = Index::new(&shapes);
        Self { shapes, index }
    }

    /// Signed distance to muscle at `p`, inside the fascia at signed distance `fascia`.
    #[inline]
    pub fn distance(&self, p: Point, fascia: f64, organs: &Organs) -> f64 {
        let (mut first, mut second) = (1e3, 1e3);
        let mut put = |d: f64| {
            if d < first {
                second = first;
                first = d;
            } else if d < second {
                second = d;
            }
        };
        for &n in self.index.near(p) {
            put(self.shapes[n as usize].distance(p));
        }
        put(levator(p, organs));
        let belly = belly_wall(p, fascia);
        put(belly);
        first.max(0.5 * (PLANE - (second - first))).max(fascia)
    }
}

/// The pelvic floor: a funnel from the side walls to the anal canal, open in front.
#[inline]
fn levator(p: Point, organs: &Organs) -> f64 {
    if !(-75.0..15.0).contains(&p[2]) {
        return 1e3;
    }
    let c = organs.rectum_center(p[2].max(-55.0));
    let height = (p[2] + 62.0) / 62.0;
    // Half width of the funnel: sphincter at the bottom, obturator internus at the top.
    let half = 13.0 + 30.0 * height.max(0.0) * height.max(0.0).sqrt().sqrt();
    // An arch: a half circle behind the rectum, straight arms along the prostate.
    let y = (p[1] - (c[1] - 2.0)).max(0.0) / 0.62;
    // The arms converge on the pubis.
    let x = p[0] * (1.0 + 0.011 * (c[1] - p[1]).clamp(0.0, 80.0));
    let r = (x * x + y * y).sqrt();
    let sheet = (r - half).abs() * 0.85 - 2.2;
    sheet.max(-20.0 - p[1] - 25.0 * height.min(0.6)).max(p[2] - 8.0).max(-70.0 - p[2])
}

/// Straight and oblique muscles of the belly, a layer under the fascia.
#[inline]
fn belly_wall(p: Point, fascia: f64) -> f64 {
    let x = p[0].abs();
    let straight = (-fascia - 13.0 + 0.004 * (x - 19.0).powi(2))
        .max(p[1] + 35.0)
        .max((x - 36.0).max(2.0 - x) * 0.9)
        .max(-22.0 - p[2]);
    let oblique = (-fascia - 17.0)
        .max(p[1] - 45.0)
        .max(40.0 - x)
        .max((75.0 - p[2]) * 0.7)
        .max(-75.0 - p[1] + 0.3 * (x - 60.0).max(0.0) - 40.0);
    smooth_min(straight, oblique, 1.0).max(fascia + 0.8)
}

fn swell(shape: Shape, by: f64) -> Shape {
    match shape {
        Shape::Ellipsoid { center, radii, axes } => {
            Shape::Ellipsoid { center, radii: radii.map(|r| r + by), axes }
        }
        Shape::Rod { a, b, ra, rb } => Shape::Rod { a, b, ra: ra + by, rb: rb + by },
        other => other,
    }
}

/// The left side.
fn one_side() -> Vec<Shape> {
    let oval = Shape::turned;
    let rod = Shape::rod;
    vec![
        // Gluteus maximus: two overlapping bellies make one slab that follows the buttock.
        oval([66.0, 70.0, 0.0], [62.0, 25.0, 92.0], -14.0, 8.0),
        oval([104.0, 52.0, -35.0], [56.0, 22.0, 75.0], -32.0, 0.0),
        // Gluteus medius and minimus, outside the wing of the ilium.
        oval([126.0, 10.0, 52.0], [24.0, 50.0, 62.0], 12.0, 0.0),
        oval([116.0, -6.0, 26.0], [13.0, 34.0, 34.0], 10.0, 0.0),
        // Tensor fasciae latae, sartorius, rectus femoris.
        oval([142.0, -40.0, 0.0], [11.0, 23.0, 66.0], 22.0, 0.0),
        rod([124.0, -58.0, 84.0], [112.0, -74.0, 0.0], 7.0, 11.0),
        rod([112.0, -74.0, 0.0], [70.0, -72.0, -150.0], 11.0, 11.0),
        rod([103.0, -40.0, 28.0], [121.0, -54.0, -30.0], 8.0, 14.0),
        rod([121.0, -54.0, -30.0], [116.0, -62.0, -160.0], 14.0, 18.0),
        // Psoas and iliacus to the lesser trochanter.
        rod([42.0, 14.0, 190.0], [50.0, 4.0, 120.0], 18.0, 20.0),
        rod([50.0, 4.0, 120.0], [78.0, -38.0, 30.0], 20.0, 17.0),
        rod([78.0, -38.0, 30.0], [90.0, -40.0, -5.0], 18.0, 17.0),
        rod([90.0, -40.0, -5.0], [114.0, 8.0, -60.0], 17.0, 10.0),
        oval([98.0, 0.0, 88.0], [26.0, 44.0, 46.0], 25.0, -12.0),
        // Pectineus and adductors.
        rod([38.0, -60.0, -22.0], [76.0, -44.0, -62.0], 11.0, 15.0),
        rod([76.0, -44.0, -62.0], [112.0, -6.0, -100.0], 15.0, 11.0),
        rod([24.0, -52.0, -48.0], [62.0, -52.0, -130.0], 9.0, 22.0),
        rod([28.0, -40.0, -58.0], [72.0, -22.0, -130.0], 9.0, 22.0),
        rod([52.0, 8.0, -80.0], [72.0, 16.0, -170.0], 14.0, 34.0),
        rod([14.0, -34.0, -62.0], [40.0, -30.0, -170.0], 6.0, 14.0),
        // Obturators.
        oval([46.0, -20.0, -46.0], [26.0, 13.0, 15.0], 38.0, 0.0),
        rod([60.0, -6.0, -46.0], [104.0, 24.0, -40.0], 12.0, 9.0),
        oval([53.0, -2.0, -18.0], [9.5, 36.0, 34.0], -22.0, 0.0),
        oval([56.0, 6.0, 10.0], [7.0, 34.0, 26.0], -18.0, 0.0),
        rod([64.0, 34.0, -2.0], [120.0, 30.0, -8.0], 9.0, 7.0),
        // Piriformis, gemelli, quadratus femoris.
        rod([34.0, 72.0, 46.0], [84.0, 50.0, 26.0], 13.0, 13.0),
        rod([84.0, 50.0, 26.0], [134.0, 20.0, 2.0], 13.0, 6.0),
        rod([70.0, 36.0, -44.0], [126.0, 24.0, -46.0], 11.0, 12.0),
        // Vasti around the shaft; hamstrings from the ischium.
        oval([150.0, -12.0, -105.0], [22.0, 34.0, 78.0], 0.0, 0.0),
        oval([122.0, -28.0, -125.0], [30.0, 24.0, 70.0], 0.0, 0.0),
        rod([62.0, 46.0, -68.0], [88.0, 46.0, -180.0], 9.0, 26.0),
        // Deep muscles of the back.
        rod([24.0, 96.0, 66.0], [34.0, 78.0, 130.0], 7.0, 24.0),
        rod([34.0, 78.0, 130.0], [36.0, 72.0, 250.0], 26.0, 30.0),
        // Ischiocavernosus with the crus of the penis.
        rod([46.0, 14.0, -76.0], [10.0, -26.0, -68.0], 6.0, 8.0),
    ]
}

/// Root of the penis, perineal body and sphincter around the anal canal.
fn midline() -> Vec<Shape> {
    vec![
        Shape::rod([0.0, 6.0, -72.0], [0.0, -24.0, -78.0], 11.0, 12.0),
        Shape::rod([0.0, -24.0, -78.0], [0.0, -80.0, -84.0], 12.0, 14.0),
        Shape::ellipsoid([0.0, 4.0, -60.0], [12.0, 9.0, 10.0]),
    ]
}
