//! What is inside hollow organs and the texture of tissue.

use crate::anatomy::organs::Organs;
use crate::anatomy::shape::ellipsoid;
use crate::draw::{Draw, Purpose};
use libjrs::Grid;
use libjrs::geometry::Point;

/// Distance between the knots of the texture, mm.
const KNOT: f64 = 3.2;

/// Content and texture of one scan, or of all scans of a patient.
pub(super) struct Content {
    /// HU of urine.
    pub urine: f64,
    stool: f64,
    /// Share of the rectum in which stool is mixed with small bubbles, as a threshold on the texture.
    mottled: f64,
    bowel_gas: f64,
    pockets: Vec<Pocket>,
    low: Point,
    size: [usize; 3],
    knots: Vec<f32>,
}

/// A gas bubble in the rectum: height, place and semi-axes in units of the lumen (x, y), mm along z.
struct Pocket {
    z: f64,
    at: [f64; 2],
    radii: [f64; 3],
}

impl Content {
    pub(super) fn draw(seed: u64, patient: usize, scan: usize, grid: &Grid) -> Self {
        let mut draw = Draw::new(seed, patient, scan, Purpose::Content);
        let count = (draw.unit() * 4.2) as usize;
        let pockets = (0..count)
            .map(|_| Pocket {
                z: draw.between(-42.0, 68.0),
                // The patient lies on the back: gas rises to the front wall.
                at: [draw.gauss(0.0, 0.12), draw.gauss(-0.22, 0.1)],
                radii: [draw.between(0.25, 0.62), draw.between(0.2, 0.5), draw.between(5.0, 24.0)],
            })
            .collect();
        let mottled = if draw.unit() < 0.25 { draw.between(0.35, 0.9) } else { 9.0 };
        let urine = if draw.unit() < 0.08 { 22.0 } else { draw.gauss(3.0, 2.0) };
        let stool = draw.between(5.0, 28.0);
        let bowel_gas = draw.between(0.45, 0.8);
        let low: Point = std::array::from_fn(|a| grid.origin[a] - 2.0 * KNOT);
        let size: [usize; 3] =
            std::array::from_fn(|a| (grid.size[a] as f64 * grid.spacing[a] / KNOT).ceil() as usize + 5);
        let mut knots = vec![0.0; size.iter().product()];
        Draw::new(seed, patient, scan, Purpose::Texture).white(&mut knots);
        Self { urine, stool, mottled, bowel_gas, pockets, low, size, knots }
    }

    /// Texture with a grain of about 3 mm, standard deviation about 0.55.
    #[inline]
    pub(super) fn fine(&self, x: Point) -> f64 {
        self.texture(std::array::from_fn(|a| (x[a] - self.low[a]) / KNOT))
    }

    /// Texture with a grain of about 13 mm.
    #[inline]
    pub(super) fn broad(&self, x: Point) -> f64 {
        self.texture(std::array::from_fn(|a| 1.0 + (x[a] - self.low[a]) / (4.1 * KNOT)))
    }

    /// HU of what is in a loop of bowel.
    pub(super) fn bowel(&self, x: Point) -> f64 {
        let kind = self.texture(std::array::from_fn(|a| 2.0 + (x[a] - self.low[a]) / (5.3 * KNOT)));
        if kind > self.bowel_gas { -850.0 } else { 18.0 + 14.0 * kind + 6.0 * self.fine(x) }
    }

    /// HU of what is in the rectum at template point `t`; `x` is where the texture is read.
    pub(super) fn rectum(&self, organs: &Organs, t: Point, x: Point) -> f64 {
        let (c, r) = (organs.rectum_center(t[2]), organs.rectum_radii(t[2]));
        let unit = [(t[0] - c[0]) / r[0], (t[1] - c[1]) / r[1]];
        let mut gas: f64 = 1e3;
        for pocket in &self.pockets {
            let place = [unit[0] - pocket.at[0], unit[1] - pocket.at[1], t[2] - pocket.z];
            let scaled = [place[0] * r[0], place[1] * r[1], place[2]];
            let radii = [pocket.radii[0] * r[0], pocket.radii[1] * r[1], pocket.radii[2]];
            gas = gas.min(ellipsoid(scaled, radii) + 1.2 * self.broad(x));
        }
        let fine = self.fine(x);
        let mut stool = self.stool + 12.0 * fine;
        if fine > self.mottled && t[2] > -40.0 {
            stool = -120.0 - 500.0 * (fine - self.mottled);
        }
        let air = (0.5 - gas / 1.5).clamp(0.0, 1.0);
        stool + air * (-920.0 - stool)
    }

    #[inline]
    fn texture(&self, at: Point) -> f64 {
        let mut base = 0;
        let mut f = [0.0f32; 3];
        let mut stride = 1;
        for a in 0..3 {
            let t = at[a].clamp(0.0, (self.size[a] - 2) as f64 + 0.999);
            base += t as usize * stride;
            f[a] = (t - t.floor()) as f32;
            stride *= self.size[a];
        }
        let (sx, sxy) = (self.size[0], self.size[0] * self.size[1]);
        let k = &self.knots;
        let along = |at: usize| k[at] + f[0] * (k[at + 1] - k[at]);
        let plane = |at: usize| {
            let low = along(at);
            low + f[1] * (along(at + sx) - low)
        };
        let low = plane(base);
        f64::from(low + f[2] * (plane(base + sxy) - low))
    }
}
