//! Fixed colours of organs, colour maps with their ranges.

use crate::image::Rgb;

/// An organ as it appears in pictures and tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Organ {
    /// Label value (science: prostate 1 ... bladder 5).
    pub label: u8,
    /// Name in tables and legends.
    pub name: &'static str,
    /// Colour of its contour.
    pub colour: Rgb,
}

/// The organs of the paper, in its order. The colours differ in hue and in lightness, and keep apart for readers
/// with the common colour deficiencies (after Okabe and Ito's palette, lightened for grey CT).
pub const ORGANS: [Organ; 5] = [
    Organ { label: 1, name: "prostate", colour: [255, 105, 97] },
    Organ { label: 2, name: "seminal vesicles", colour: [255, 214, 64] },
    Organ { label: 3, name: "lymph nodes", colour: [60, 210, 150] },
    Organ { label: 4, name: "rectum", colour: [214, 130, 255] },
    Organ { label: 5, name: "bladder", colour: [72, 180, 255] },
];

/// Colours of further labels, by turns.
const OTHERS: [Rgb; 3] = [[255, 165, 80], [180, 220, 90], [255, 150, 200]];

/// The colour of a label.
pub fn label_colour(label: u8) -> Rgb {
    ORGANS.iter().find(|o| o.label == label).map_or(OTHERS[usize::from(label) % OTHERS.len()], |o| o.colour)
}

/// The name of a label, `label n` where it is none of the organs.
pub fn label_name(label: u8) -> String {
    ORGANS.iter().find(|o| o.label == label).map_or(format!("label {label}"), |o| o.name.to_owned())
}

/// A family of colours over 0..1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Palette {
    /// Black to white.
    Grey,
    /// Dark violet over green to yellow, rising lightness.
    Sequential,
    /// Blue over near-black to red: signed differences.
    Difference,
    /// Blue (shrinking) over grey to orange (growing): ratios around 1.
    Ratio,
}

impl Palette {
    /// The colour at `t`, cut off at 0 and 1.
    pub fn colour(self, t: f32) -> Rgb {
        let stops: &[Rgb] = match self {
            Palette::Grey => &[[0, 0, 0], [255, 255, 255]],
            Palette::Sequential => {
                &[[48, 18, 80], [62, 74, 137], [38, 130, 142], [53, 183, 121], [160, 218, 57], [253, 231, 60]]
            }
            Palette::Difference => {
                &[[140, 205, 255], [40, 120, 235], [24, 26, 32], [232, 60, 45], [255, 200, 140]]
            }
            Palette::Ratio => {
                &[[20, 70, 200], [90, 160, 235], [225, 226, 228], [245, 160, 70], [190, 70, 10]]
            }
        };
        let t = if t.is_finite() { t.clamp(0.0, 1.0) } else { 0.0 };
        let scaled = t * (stops.len() - 1) as f32;
        let n = (scaled as usize).min(stops.len() - 2);
        let f = scaled - n as f32;
        std::array::from_fn(|c| {
            let (a, b) = (f32::from(stops[n][c]), f32::from(stops[n + 1][c]));
            (a + (b - a) * f).round() as u8
        })
    }
}

/// A palette stretched over a range of values.
#[derive(Debug, Clone, PartialEq)]
pub struct Scale {
    /// The colours.
    pub palette: Palette,
    /// Value of the first colour.
    pub low: f32,
    /// Value of the last colour.
    pub high: f32,
    /// What the values are, with unit, for the colour bar.
    pub label: String,
}

impl Scale {
    /// The usual window for the male pelvis in CT, -160 to 240 HU.
    pub fn soft_tissue() -> Self {
        Self { palette: Palette::Grey, low: -160.0, high: 240.0, label: "HU".into() }
    }

    /// Differences of ±`range` HU.
    pub fn difference(range: f32) -> Self {
        Self { palette: Palette::Difference, low: -range, high: range, label: "fixed - moving, HU".into() }
    }

    /// Displacements of 0 to `high` mm.
    pub fn displacement(high: f32) -> Self {
        Self { palette: Palette::Sequential, low: 0.0, high, label: "displacement, mm".into() }
    }

    /// Jacobian determinants of 1 ± `range`; values at or below 0 are drawn in magenta (folding).
    pub fn jacobian(range: f32) -> Self {
        Self { palette: Palette::Ratio, low: 1.0 - range, high: 1.0 + range, label: "det J".into() }
    }

    /// The colour of a value.
    pub fn colour(&self, value: f32) -> Rgb {
        if self.palette == Palette::Ratio && value <= 0.0 {
            return FOLDING;
        }
        self.palette.colour(self.position(value))
    }

    /// How far a value is from the neutral one: 0 there, 1 from a quarter of the range on.
    pub(crate) fn weight(&self, value: f32) -> f32 {
        let neutral = match self.palette {
            Palette::Grey | Palette::Sequential => 0.0,
            Palette::Difference | Palette::Ratio => 0.5,
        };
        let away = 4.0 * (self.position(value) - neutral).abs();
        if away.is_finite() { away.min(1.0) } else { 1.0 }
    }

    fn position(&self, value: f32) -> f32 {
        (value - self.low) / (self.high - self.low)
    }
}

/// Where the transformation folds.
pub const FOLDING: Rgb = [255, 0, 200];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_ends_are_black_and_white() {
        let window = Scale::soft_tissue();
        assert_eq!(window.colour(-1000.0), [0; 3]);
        assert_eq!(window.colour(240.0), [255; 3]);
        assert_eq!(window.colour(40.0), [128; 3]);
    }

    #[test]
    fn signs_of_differences_show_as_red_and_blue() {
        let scale = Scale::difference(200.0);
        let (red, blue) = (scale.colour(100.0), scale.colour(-100.0));
        assert!(red[0] > 200 && red[2] < 100);
        assert!(blue[2] > 200 && blue[0] < 100);
        assert!(scale.colour(0.0).iter().all(|&c| c < 40));
    }

    #[test]
    fn folding_stands_out() {
        assert_eq!(Scale::jacobian(0.5).colour(-0.1), FOLDING);
        assert_ne!(Scale::jacobian(0.5).colour(0.1), FOLDING);
    }
}
