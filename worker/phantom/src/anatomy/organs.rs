//! Prostate, seminal vesicles, bladder and rectum in the template frame.

use super::profile::Profile;
use super::shape::{Shape, add, ellipsoid, smooth_min, sub};
use crate::draw::Draw;
use libjrs::geometry::Point;

/// Face between prostate and rectum: larger prostates grow forward and up from here.
const PROSTATE_BACK: f64 = 24.0;
/// Thickness of the rectal wall, mm.
pub const RECTUM_WALL: f64 = 3.0;
/// Thickness of the bladder wall, mm.
pub const BLADDER_WALL: f64 = 2.6;
/// The rectum's contour runs from here to [`RECTUM_TOP`] (z, mm); the bowel goes on beyond both.
pub const RECTUM_BOTTOM: f64 = -58.0;
/// See [`RECTUM_BOTTOM`].
pub const RECTUM_TOP: f64 = 72.0;

/// The organs of one patient.
#[derive(Debug, Clone)]
pub struct Organs {
    /// Centre of the prostate.
    pub prostate_center: Point,
    /// Semi-axes of the prostate.
    pub prostate_radii: [f64; 3],
    /// Three tapered pieces per side, from the midline outwards (right side first).
    pub vesicles: [[Shape; 3]; 2],
    /// Tips of the seminal vesicles (right, left).
    pub vesicle_tips: [Point; 2],
    /// Centre of the bladder when it holds the reference volume.
    pub bladder_center: Point,
    /// Semi-axes of the bladder when it holds the reference volume.
    pub bladder_radii: [f64; 3],
    /// Point at the base of the bladder that filling does not move.
    pub bladder_anchor: Point,
    rectum: Rectum,
}

impl Organs {
    /// Draws a patient's organs; `stretch` is the volume factor from template to patient, so that volumes
    /// are those of phantom.md in the patient.
    pub fn draw(draw: &mut Draw, stretch: f64) -> Self {
        // Prostates of radiotherapy patients: 53 cc, about 20-100 (Orio).
        let prostate_cc = (51.0f64.ln() + 0.33 * draw.normal()).exp().clamp(24.0, 95.0);
        let size = (prostate_cc / stretch / 71.0).cbrt();
        let prostate_radii =
            [27.5 * size * draw.gauss(1.0, 0.04), 20.5 * size, 25.0 * size * draw.gauss(1.0, 0.05)];
        // Apex 7.1 ± 4.7 mm above the bottom of the symphysis at -55 mm (Li 2010).
        let apex = -55.0 + draw.gauss(8.0, 2.6);
        let prostate_center =
            [draw.gauss(0.0, 1.0), PROSTATE_BACK - prostate_radii[1], apex + prostate_radii[2]];

        // Bladder at planning: 282 ± 145 mL (89-608).
        let bladder_cc = (245.0f64.ln() + 0.5 * draw.normal()).exp().clamp(95.0, 600.0);
        let unit = (bladder_cc / stretch / 250.0).ln();
        let bladder_radii = [
            42.0 * (0.27 * unit).exp() * draw.gauss(1.0, 0.04),
            35.0 * (0.27 * unit).exp() * draw.gauss(1.0, 0.04),
            40.6 * (0.46 * unit).exp(),
        ];
        let base = prostate_center[2] + 0.72 * prostate_radii[2];
        let bladder_center = [
            draw.gauss(0.0, 2.0),
            -58.0 + bladder_radii[1] + draw.gauss(3.0, 2.0),
            base + bladder_radii[2] - 1.0,
        ];
        let bladder_anchor =
            [bladder_center[0], bladder_center[1] - 0.25 * bladder_radii[1], base + 0.15 * bladder_radii[2]];

        let fat = draw.gauss(1.0, 0.1);
        let neck = [prostate_center[0], PROSTATE_BACK - 5.0, prostate_center[2] + 0.78 * prostate_radii[2]];
        let [right, left] = [-1.0, 1.0].map(|side| vesicle(draw, neck, side, fat));
        // Cross-section: median 7.3 cm² (2.8-17.1) (Stillie).
        let area = 100.0 * (7.3f64.ln() + 0.3 * draw.normal()).exp().clamp(3.8, 13.0);
        let rectum = Rectum::new(area, [draw.gauss(0.0, 3.0), draw.gauss(0.0, 2.0)]);
        Self {
            prostate_center,
            prostate_radii,
            vesicles: [right.0, left.0],
            vesicle_tips: [right.1, left.1],
            bladder_center,
            bladder_radii,
            bladder_anchor,
            rectum,
        }
    }

    /// Signed distance of the prostate: an egg that narrows to the apex and is flat behind.
    #[inline]
    pub fn prostate(&self, p: Point) -> f64 {
        let d = sub(p, self.prostate_center);
        let r = self.prostate_radii;
        let up = (d[2] / r[2]).clamp(-1.2, 1.2);
        let narrow = 1.0 + 0.16 * up;
        let body = ellipsoid([d[0] / narrow, d[1], d[2]], r);
        // The back face: a cut that leaves a shallow groove.
        let back = d[1] - 0.88 * r[1] + 1.5 * (1.0 - (d[0] / 9.0).powi(2)).max(0.0);
        -smooth_min(-body, -back, 4.0)
    }

    /// Signed distance of both seminal vesicles, outside the prostate.
    #[inline]
    pub fn vesicles(&self, p: Point) -> f64 {
        let side = usize::from(p[0] > self.prostate_center[0]);
        let pieces = &self.vesicles[side];
        // Lobules: the wall swells and narrows by a millimetre along the organ.
        let lobules = 0.7 * (p[0] * 0.9).sin() * (p[2] * 0.7).cos();
        let union = smooth_min(
            smooth_min(pieces[0].distance(p), pieces[1].distance(p), 2.0),
            pieces[2].distance(p),
            2.0,
        );
        (union + lobules).max(-self.prostate(p) + 0.3)
    }

    /// Signed distance of the bladder's outer surface, outside prostate and seminal vesicles.
    #[inline]
    pub fn bladder(&self, p: Point) -> f64 {
        let d = sub(p, self.bladder_center);
        ellipsoid(d, self.bladder_radii).max(-self.prostate(p) + 0.3)
    }

    /// Centre of the rectum's cross-section at height `z`.
    #[inline]
    pub fn rectum_center(&self, z: f64) -> [f64; 2] {
        [self.rectum.center[0].at(z), self.rectum.center[1].at(z)]
    }

    /// Semi-axes (x, y) of the rectum's cross-section at height `z` in the reference state.
    #[inline]
    pub fn rectum_radii(&self, z: f64) -> [f64; 2] {
        let radius = self.rectum.radius.at(z);
        [1.06 * radius, 0.945 * radius]
    }

    /// Signed distance of the rectal tube, without ends.
    #[inline]
    pub fn bowel_tube(&self, p: Point) -> f64 {
        let (c, r) = (self.rectum_center(p[2]), self.rectum_radii(p[2]));
        let (u, v) = ((p[0] - c[0]) / r[0], (p[1] - c[1]) / r[1]);
        let k0 = (u * u + v * v).sqrt();
        let k1 = ((u / r[0]).powi(2) + (v / r[1]).powi(2)).sqrt();
        if k1 < 1e-12 { -r[1] } else { 0.92 * k0 * (k0 - 1.0) / k1 }
    }

    /// Signed distance of the contoured rectum.
    #[inline]
    pub fn rectum(&self, p: Point) -> f64 {
        self.bowel_tube(p).max(p[2] - RECTUM_TOP).max(RECTUM_BOTTOM - p[2]).max(-self.prostate(p) + 0.3)
    }

    /// Signed distance of the prostate and its close surroundings, for the fall-off of its motion.
    pub fn prostate_far(&self, p: Point) -> f64 {
        ellipsoid(sub(p, self.prostate_center), self.prostate_radii)
    }

    /// Middle of a seminal vesicle (0 right, 1 left).
    pub fn vesicle_middle(&self, side: usize) -> Point {
        self.vesicles[side].iter().fold([0.0; 3], |sum, piece| match piece {
            Shape::Rod { a, b, .. } => {
                add(sum, [(a[0] + b[0]) / 6.0, (a[1] + b[1]) / 6.0, (a[2] + b[2]) / 6.0])
            }
            _ => sum,
        })
    }
}

/// How far `p` is from the anchor, in units of the surface of an ellipsoid that contains the anchor:
/// `anchor` and `p` are already divided by the semi-axes and relative to the centre. 1 on the surface.
#[inline]
pub fn gauge<const N: usize>(anchor: [f64; N], p: [f64; N]) -> f64 {
    let (mut dd, mut ad, mut aa) = (0.0, 0.0, 0.0);
    for k in 0..N {
        let d = p[k] - anchor[k];
        dd += d * d;
        ad += anchor[k] * d;
        aa += anchor[k] * anchor[k];
    }
    if dd < 1e-18 {
        return 0.0;
    }
    // |anchor + s d| = 1 gives the exit point; the gauge is 1/s.
    dd / (-ad + (ad * ad + dd * (1.0 - aa)).sqrt())
}

fn vesicle(draw: &mut Draw, neck: Point, side: f64, fat: f64) -> ([Shape; 3], Point) {
    // 6.5 cc for the pair, 5-7 cm long, thin (Barrett 2017).
    let mut bend = |p: Point| add(p, draw.gauss3([1.5, 1.2, 2.0]));
    let points = [
        add(neck, [side * 2.5, 1.0, 0.0]),
        bend(add(neck, [side * 14.0, 4.5, 6.5])),
        bend(add(neck, [side * 25.0, 8.5, 10.0])),
        bend(add(neck, [side * 36.0, 12.0, 17.0])),
    ];
    let radii = [4.2, 5.6, 5.2, 3.4].map(|r| r * fat);
    let piece = |n: usize| Shape::rod(points[n], points[n + 1], radii[n], radii[n + 1]);
    ([piece(0), piece(1), piece(2)], points[3])
}

/// Course and size of the rectum by height.
#[derive(Debug, Clone)]
struct Rectum {
    center: [Profile; 2],
    radius: Profile,
}

impl Rectum {
    /// `area` is the mean cross-section in mm²; `sway` bends the course sideways, mm.
    fn new(area: f64, sway: [f64; 2]) -> Self {
        // Anal canal, the bend behind the apex, along the sacral hollow, forward at the sigmoid.
        const Y: [(f64, f64); 9] = [
            (-110.0, 62.0),
            (-80.0, 54.0),
            (-60.0, 42.0),
            (-45.0, 40.0),
            (-25.0, 46.0),
            (0.0, 54.0),
            (30.0, 60.0),
            (60.0, 52.0),
            (100.0, 20.0),
        ];
        const SIZE: [(f64, f64); 9] = [
            (-110.0, 0.6),
            (-75.0, 0.62),
            (-56.0, 0.66),
            (-40.0, 0.85),
            (-15.0, 1.08),
            (10.0, 1.12),
            (40.0, 1.0),
            (70.0, 0.92),
            (100.0, 0.9),
        ];
        let size = Profile::through(&SIZE);
        let r = (area / std::f64::consts::PI).sqrt();
        Self {
            center: [
                Profile::of(|z| {
                    let t = ((z + 20.0) / 90.0).clamp(-1.0, 1.2);
                    sway[0] * t + sway[1] * (3.0 * t).sin() + 10.0 * ((z - 65.0) / 40.0).clamp(0.0, 2.0)
                }),
                Profile::through(&Y),
            ],
            radius: Profile::of(|z| {
                // The anal canal has its own size: muscle, hardly changed by what the rectum holds.
                let own = ((-40.0 - z) / 20.0).clamp(0.0, 1.0);
                size.at(z) * (r * (1.0 - own) + 15.5 * own)
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw::Purpose;

    #[test]
    fn gauge_is_one_on_the_surface_and_linear_along_rays() {
        let anchor = [0.2, -0.5, 0.3];
        let on = [0.6, 0.0, 0.8];
        assert!((gauge(anchor, on) - 1.0).abs() < 1e-12);
        let twice: [f64; 3] = std::array::from_fn(|k| anchor[k] + 2.0 * (on[k] - anchor[k]));
        assert!((gauge(anchor, twice) - 2.0).abs() < 1e-12);
    }

    #[test]
    fn volumes_are_in_the_range_of_the_table() {
        for patient in 0..6 {
            let organs = Organs::draw(&mut Draw::new(3, patient, 0, Purpose::Anatomy), 1.0);
            let (mut prostate, mut vesicles, mut bladder) = (0.0, 0.0, 0.0);
            // A 2 mm grid over the pelvis: 0.008 cc per point.
            for k in -35..90 {
                for j in -45..40 {
                    for i in -35..36 {
                        let p = [2.0 * f64::from(i), 2.0 * f64::from(j), 2.0 * f64::from(k)];
                        let inside = |d: f64| if d < 0.0 { 0.008 } else { 0.0 };
                        prostate += inside(organs.prostate(p));
                        vesicles += inside(organs.vesicles(p));
                        bladder += inside(organs.bladder(p));
                    }
                }
            }
            assert!((20.0..100.0).contains(&prostate), "prostate {prostate} cc");
            assert!((3.0..13.0).contains(&vesicles), "seminal vesicles {vesicles} cc");
            assert!((80.0..620.0).contains(&bladder), "bladder {bladder} mL");
        }
    }
}
