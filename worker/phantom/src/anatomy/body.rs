//! The outline of the body and the layer of fat under the skin.

use super::organs::curve;
use super::shape::{smooth_min, smoothstep};
use crate::draw::Draw;
use libjrs::geometry::Point;

/// Body outline of one patient (template frame).
#[derive(Debug, Clone)]
pub struct Body {
    /// Half width at the hips.
    half_width: f64,
    /// Front and back (y).
    front: f64,
    back: f64,
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
        Self {
            half_width,
            front: back - depth,
            back,
            fat: [
                (22.0 + 0.6 * (depth - 229.0) + draw.gauss(0.0, 3.0)).max(9.0),
                (19.0 + 0.75 * extra + draw.gauss(0.0, 1.5)).max(6.0),
                (17.0 + 0.35 * (depth - 229.0) + draw.gauss(0.0, 2.0)).max(8.0),
            ],
            belly: draw.gauss(8.0, 8.0),
        }
    }

    /// Signed distances to the skin and to the fascia under the fat.
    #[inline]
    pub fn distances(&self, p: Point) -> (f64, f64) {
        let z = p[2];
        // Hips are widest at the trochanters, the waist is narrower; the groin is flat, the belly is not.
        const WIDTH: [(f64, f64); 7] =
            [(-260.0, 0.9), (-120.0, 0.975), (-40.0, 1.0), (20.0, 0.975), (80.0, 0.93), (140.0, 0.9), (260.0, 0.92)];
        const GROIN: [(f64, f64); 6] =
            [(-160.0, -22.0), (-90.0, -14.0), (-50.0, -4.0), (0.0, 0.0), (60.0, 2.0), (140.0, 4.0)];
        const BUTTOCK: [(f64, f64); 6] =
            [(-180.0, -42.0), (-110.0, -18.0), (-60.0, -2.0), (-10.0, 2.0), (60.0, -1.0), (150.0, -14.0)];
        let half_width = self.half_width * curve(&WIDTH, z);
        let front = self.front - curve(&GROIN, z) - self.belly * smoothstep((z - 10.0) / 110.0);
        let back = self.back + curve(&BUTTOCK, z);
        let middle = 8.0;
        let (u, v) = (p[0] / half_width, (p[1] - middle) / if p[1] < middle { middle - front } else { back - middle });
        let (u, w) = (u.abs(), v.abs());
        // A superellipse, rounder in front than behind, where the patient lies on a flat couch.
        let n = if v < 0.0 { 2.35 } else { 2.9 };
        let mut skin = {
            let (un, wn) = (u.powf(n - 1.0), w.powf(n - 1.0));
            let g = (un * u + wn * w).powf(1.0 / n);
            let depth = if v < 0.0 { middle - front } else { back - middle };
            let slope = ((un / half_width).powi(2) + (wn / depth).powi(2)).sqrt() * g.powf(1.0 - n);
            if slope < 1e-9 { -100.0 } else { (g - 1.0) / slope }
        };
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
        if p[1] > back - 34.0 && z < 62.0 {
            let depth = 26.0 * smoothstep((62.0 - z) / 60.0) + 10.0 * smoothstep((-40.0 - z) / 40.0);
            let open = p[1] - (back - depth);
            if depth > 1.0 {
                let cleft = p[0].abs() - 0.16 * open.max(0.0) - 0.6;
                skin = skin.max((-cleft).min(open * 0.5));
            }
        }
        let (a, b) = (u * u + 1e-6, w * w + 1e-6);
        let vertical = if v < 0.0 { self.fat[0] * (1.0 + 0.5 * (self.belly / 30.0) * smoothstep(z / 80.0)) } else { self.fat[2] };
        let fat = (self.fat[1] * a + vertical * b) / (a + b);
        (skin, skin + fat)
    }

    /// Where the couch must hold the back (y).
    pub fn back(&self) -> f64 {
        self.back
    }
}
