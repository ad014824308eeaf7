//! Pelvis, sacrum and femurs in the template frame (origin midway between the femoral heads, mm, LPS).

use super::shape::{Index, Shape, smooth_min};
use libjrs::geometry::Point;

/// Centre of the left femoral head; the right one is its mirror image.
pub const FEMORAL_HEAD: Point = [90.0, 0.0, 0.0];
/// Radius of the femoral head: about 50 cc (phantom.md).
pub const FEMORAL_HEAD_RADIUS: f64 = 23.4;
/// Upper and lower end of the pubic symphysis.
pub const SYMPHYSIS: [Point; 2] = [[0.0, -57.0, -15.0], [0.0, -36.0, -53.0]];

/// All bones, in two groups that do not merge: the joint space stays open.
pub struct Bones {
    shapes: Vec<(Shape, Bone)>,
    index: Index,
}

/// What a bone is made of.
#[derive(Debug, Clone, Copy)]
struct Bone {
    femur: bool,
    /// Thickness of the compact layer, mm.
    cortex: f64,
    /// HU of the spongy inside.
    marrow: f64,
}

/// Bone near a point.
#[derive(Debug, Clone, Copy)]
pub struct BoneSample {
    /// Signed distance to the bone surface.
    pub distance: f64,
    /// Thickness of the compact layer, mm.
    pub cortex: f64,
    /// HU of the spongy inside.
    pub marrow: f64,
}

impl Bones {
    /// Bones whose compact layer is `cortex` times the usual.
    pub fn new(cortex: f64) -> Self {
        let mut shapes = Vec::new();
        let mut put = |shape: Shape, femur: bool, thickness: f64, marrow: f64| {
            let bone = Bone { femur, cortex: thickness * cortex, marrow };
            shapes.push((shape.mirrored(), bone));
            shapes.push((shape, bone));
        };
        for (shape, cortex, marrow) in femur() {
            put(shape, true, cortex, marrow);
        }
        for (shape, cortex, marrow) in hip() {
            put(shape, false, cortex, marrow);
        }
        let midline = Bone { femur: false, cortex: 1.6 * cortex, marrow: 170.0 };
        shapes.extend(sacrum_and_spine().into_iter().map(|shape| (shape, midline)));
        let index = Index::new(&shapes.iter().map(|(shape, _)| shape.clone()).collect::<Vec<_>>());
        Self { shapes, index }
    }

    /// Distance and composition at `p`.
    #[inline]
    pub fn sample(&self, p: Point) -> BoneSample {
        const FAR: f64 = 1e3;
        let mut group = [FAR; 2];
        let mut closest = (FAR, 2.0, 200.0);
        for &n in self.index.near(p) {
            let (shape, bone) = &self.shapes[n as usize];
            let d = shape.distance(p);
            let slot = &mut group[usize::from(bone.femur)];
            *slot = smooth_min(*slot, d, 6.0);
            if d < closest.0 {
                closest = (d, bone.cortex, bone.marrow);
            }
        }
        BoneSample { distance: group[0].min(group[1]), cortex: closest.1, marrow: closest.2 }
    }

    /// Distance without the index, for the coarse map that stops soft tissue at bone.
    pub fn far_distance(&self, p: Point) -> f64 {
        self.shapes.iter().map(|(shape, _)| shape.distance(p)).fold(f64::INFINITY, f64::min)
    }
}

fn femur() -> Vec<(Shape, f64, f64)> {
    let head = FEMORAL_HEAD;
    vec![
        (Shape::ellipsoid(head, [FEMORAL_HEAD_RADIUS; 3]), 1.8, 330.0),
        (Shape::rod(head, [126.0, 9.0, -26.0], 15.0, 16.0), 2.2, 180.0),
        (Shape::turned([144.0, 14.0, -18.0], [12.0, 18.0, 21.0], -15.0, 0.0), 1.8, 110.0),
        (Shape::rod([128.0, 9.0, -28.0], [139.0, 9.0, -62.0], 19.0, 17.0), 2.6, 120.0),
        (Shape::ellipsoid([117.0, 22.0, -60.0], [9.0, 9.0, 13.0]), 2.0, 150.0),
        (Shape::rod([139.0, 9.0, -62.0], [130.0, 2.0, -270.0], 16.5, 14.0), 5.0, 20.0),
    ]
}

fn hip() -> Vec<(Shape, f64, f64)> {
    let roof = [90.0, 6.0, 40.0];
    let front = [101.0, -30.0, 36.0]; // anterior inferior iliac spine
    let asis = [126.0, -50.0, 90.0];
    let crest = [140.0, -14.0, 128.0];
    let crest_back = [112.0, 46.0, 132.0];
    let psis = [52.0, 88.0, 94.0];
    let joint = [57.0, 68.0, 52.0];
    let notch = [76.0, 40.0, 40.0];
    let plate = |corners: [Point; 3], half: f64| (Shape::Plate { corners, half }, 2.0, 150.0);
    vec![
        (
            Shape::Cup {
                center: FEMORAL_HEAD,
                inner: 27.0,
                outer: 35.0,
                axis: [-0.78, 0.22, 0.585],
                cosine: 0.02,
            },
            2.2,
            260.0,
        ),
        (Shape::turned([92.0, 2.0, 37.0], [19.0, 25.0, 13.0], -10.0, 0.0), 2.0, 240.0),
        (Shape::rod([84.0, 33.0, 20.0], [68.0, 38.0, -20.0], 10.0, 10.0), 2.0, 180.0),
        (Shape::turned([66.0, 34.0, -22.0], [12.0, 16.0, 16.0], -30.0, 0.0), 2.0, 180.0),
        (Shape::rod([67.0, 33.0, -24.0], [57.0, 36.0, -62.0], 11.0, 14.0), 2.2, 170.0),
        (Shape::rod([54.0, 28.0, -66.0], [13.0, -26.0, -54.0], 8.0, 6.0), 1.8, 200.0),
        (Shape::rod([70.0, -24.0, 6.0], [20.0, -53.0, -20.0], 10.0, 8.5), 2.0, 200.0),
        (Shape::turned([15.0, -47.0, -34.0], [13.0, 11.0, 24.0], 0.0, 29.0), 2.0, 220.0),
        (Shape::rod([17.0, -52.0, -22.0], [26.0, -58.0, -17.0], 8.0, 5.0), 2.0, 220.0),
        plate([roof, front, asis], 6.0),
        plate([roof, asis, crest], 4.5),
        plate([roof, crest, crest_back], 4.5),
        plate([roof, crest_back, notch], 6.0),
        plate([notch, crest_back, psis], 6.5),
        plate([notch, psis, joint], 7.0),
        (Shape::rod(asis, crest, 6.0, 7.0), 2.0, 160.0),
        (Shape::rod(crest, crest_back, 7.0, 8.0), 2.0, 160.0),
        (Shape::rod(crest_back, psis, 8.0, 9.0), 2.0, 160.0),
    ]
}

fn sacrum_and_spine() -> Vec<Shape> {
    let wedge = |from, to, thickness, width| Shape::Wedge { from, to, thickness, width };
    let mut shapes = vec![
        wedge([50.0, 112.0], [74.0, 74.0], [20.0, 16.0], [50.0, 46.0]),
        wedge([76.0, 74.0], [89.0, 42.0], [14.0, 10.0], [44.0, 31.0]),
        wedge([89.0, 42.0], [87.0, 12.0], [9.0, 7.0], [28.0, 14.0]),
        wedge([87.0, 12.0], [77.0, -14.0], [6.0, 4.0], [9.0, 5.0]),
    ];
    for (z, y) in [(138.0, 30.0), (176.0, 27.0), (214.0, 27.0), (252.0, 30.0)] {
        shapes.push(Shape::ellipsoid([0.0, y, z], [27.0, 19.0, 18.0]));
        shapes.push(Shape::rod([0.0, y + 36.0, z - 4.0], [0.0, y + 58.0, z - 10.0], 5.0, 6.0));
        for side in [-1.0, 1.0] {
            shapes.push(Shape::rod([side * 20.0, y + 16.0, z], [side * 3.0, y + 36.0, z - 3.0], 6.0, 5.0));
            shapes.push(Shape::rod([side * 20.0, y + 20.0, z], [side * 44.0, y + 24.0, z], 6.0, 4.0));
        }
    }
    shapes
}
