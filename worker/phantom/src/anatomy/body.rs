//! The outline of the body and the layer of fat under the skin.

use super::profile::Profile;
use super::shape::{smooth_min, smoothstep};
use crate::draw::Draw;
use libjrs::geometry::Point;

/// Body outline of one patient (template frame).
#[derive(Debug, Clone)]
pub struct Body {
    /// Half width, front and back (y) by height.
    half_width: Profile,
    front: Profile,
    back: Profile,
    /// Thickness of the fat under the skin: front, side, back.
    fat: [f64; 3],
    /// How far the belly stands out above the pubis.
    belly: f64,
}

impl Body {
    /// Draws a body: width 365 ± 17 mm, depth 229 ± 14 mm (phantom.md); `scale` is the factor from template
    /// to patient along each axis.
    pub fn draw(draw: &mut Draw, scale: [f64; 3]) -> Self {
        let size = draw.normal();
        let half_width = (365.0 + 17.0 * size) / 2.0 / scale[0];
        let depth = (229.0 + 14.0 * (0.7 * size + 0.71 * draw.normal())) / scale[1];
        let back = 110.0 + 0.35 * (depth - 229.0);
        let extra = half_width - 182.0;
        let belly = draw.gauss(8.0, 8.0);
        // Hips are widest at the trochanters, the waist is narrower; the groin is flat, the belly is not.
        let width = Profile::through(&[
            (-260.0, 0.9),
            (-120.0, 0.975),
            (-40.0, 1.0),
            (20.0, 0.985),
            (80.0, 0.945),
            (140.0, 0.9),
            (260.0, 0.92),
        ]);
        let groin = Profile::through(&[
            (-160.0, -22.0),
            (-90.0, -14.0),
            (-50.0, -4.0),
            (0.0, 0.0),
            (60.0, 2.0),
            (140.0, 4.0),
        ]);
        let buttock = Profile::through(&[
            (-180.0, -42.0),
            (-110.0, -18.0),
            (-60.0, -2.0),
            (-10.0, 2.0),
            (60.0, -1.0),
            (150.0, -14.0),
        ]);
        Self {
            half_width: Profile::of(|z| half_width * width.at(z)),
            front: Profile::of(|z| back - depth - groin.at(z) - belly * smoothstep((z - 10.0) / 110.0)),
            back: Profile::of(|z| back + buttock.at(z)),
            fat: [
                (22.0 + 0.6 * (depth - 229.0) + draw.gauss(0.0, 3.0)).max(9.0),
                (19.0 + 0.75 * extra + draw.gauss(0.0, 1.5)).max(6.0),
                (17.0 + 0.35 * (depth - 229.0) + draw.gauss(0.0, 2.0)).max(8.0),
            ],
            belly,
        }
    }

    /// Signed distances to the skin and to the fascia under the fat.
    #[inline]
    pub fn distances(&self, p: Point) -> (f64, f64) {
        let z = p[2];
        let (half_width, front, back) = (self.half_width.at(z), self.front.at(z), self.back.at(z));
        let middle = 8.0;
        let (u, v) =
            (p[0] / half_width, (p[1] - middle) / if p[1] < middle { middle - front } else { back - middle });
        let (u, w) = (u.abs(), v.abs());
        // A superellipse, rounder in front (exponent 5/2) than behind (3), where the patient lies on the couch.
        let (depth, un, wn) = if v < 0.0 {
            (middle - front, u * u.sqrt(), w * w.sqrt())
        } else {
            (back - middle, u * u, w * w)
        };
        let sum = un * u + wn * w;
        let g = if v < 0.0 { sum.powf(0.4) } else { sum.cbrt() };
        let slope = ((un / half_width).powi(2) + (wn / depth).powi(2)).sqrt() * g / sum.max(1e-9);
        let mut skin = if slope < 1e-9 { -100.0 } else { (g - 1.0) / slope };
        if z < -40.0 {
            // The thighs part below the perineum.
            let leg = {
                let c = half_width * 0.525;
                let r = [half_width - c - 2.0, (back - front) * 0.47];
                let (a, b) = ((p[0].abs() - c) / r[0], (p[1] - 0.5 * (front + back)) / r[1]);
                let g = (a * a + b * b).sqrt();
                (g - 1.0) * r[0].min(r[1])
            };
            let trunk = skin.max((-88.0 - z) * 0.8);
            skin = smooth_min(trunk, leg.max(skin), 8.0);
        }
        // The cleft between the buttocks.
        if z < 25.0 && p[1] > back - 34.0 {
            let depth = 17.0 * smoothstep((25.0 - z) / 50.0) + 12.0 * smoothstep((-45.0 - z) / 40.0);
            let open = p[1] - (back - depth);
            if depth > 1.0 {
                let cleft = p[0].abs() - 0.11 * open.max(0.0) - 0.5;
                skin = skin.max((-cleft).min(open * 0.5));
            }
        }
        let (a, b) = (u * u + 1e-6, w * w + 1e-6);
        let vertical = if v < 0.0 {
            self.fat[0] * (1.0 + 0.5 * (self.belly / 30.0) * smoothstep(z / 80.0))
        } else {
            self.fat[2]
        };
        let fat = (self.fat[1] * a + vertical * b) / (a + b);
        (skin, skin + fat)
    }

    /// Where the couch must hold the back (y).
    pub fn back(&self) -> f64 {
        self.back.at(0.0)
    }
}
