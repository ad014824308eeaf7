//! Pictures of one view: a background and layers over it.

use libjrs::contour::{Line, lines};
use libjrs::geometry::Point;
use libjrs::{DisplacementField, Volume};
use rayon::prelude::*;

use crate::colour::{Scale, label_colour};
use crate::image::{Font, Rgb, RgbImage, Stroke};
use crate::sample;
use crate::view::View;

/// Background where no volume is.
const OUTSIDE: Rgb = [0, 0, 0];

/// How the contours of one label set are drawn; the colour is the organ's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ContourStyle {
    /// The reference: solid.
    Reference,
    /// The propagated result: bright, thick, rimmed in black.
    Propagated,
    /// The state before registration: thin and dashed.
    Before,
}

/// A picture in the making.
#[derive(Debug, Clone)]
pub struct Overlay {
    view: View,
    image: RgbImage,
}

impl Overlay {
    /// An image through `window`.
    pub fn ct(view: View, volume: &Volume<f32>, window: &Scale) -> Self {
        let values = sample::image(volume, &view);
        Self::paint(view, |p| values[p].map(|v| window.colour(v)))
    }

    /// Squares of `square_mm`, by turns from `fixed` (top left) and `warped`. The second is tinted slightly so that
    /// one sees which is which.
    pub fn checkerboard(
        view: View,
        fixed: &Volume<f32>,
        warped: &Volume<f32>,
        window: &Scale,
        square_mm: f64,
    ) -> Self {
        let both = [sample::image(fixed, &view), sample::image(warped, &view)];
        let width = view.size()[0];
        let square = (square_mm / view.pixel_mm()).max(1.0);
        Self::paint(view, |p| {
            let tile = |n: usize| (n as f64 / square) as usize;
            let which = (tile(p % width) + tile(p / width)) % 2;
            let grey = window.colour(both[which][p]?);
            Some(if which == 0 { grey } else { tint(grey) })
        })
    }

    /// `fixed - warped`.
    pub fn difference(view: View, fixed: &Volume<f32>, warped: &Volume<f32>, scale: &Scale) -> Self {
        let (a, b) = (sample::image(fixed, &view), sample::image(warped, &view));
        Self::paint(view, |p| Some(scale.colour(a[p]? - b[p]?)))
    }

    /// Mixes a colour map of `map` into the picture. Near the neutral value (no displacement, no change of volume) it
    /// fades, so that the image shows where nothing happens; `opacity` is reached at a quarter of the range.
    pub fn heat(mut self, map: &Volume<f32>, scale: &Scale, opacity: f32) -> Self {
        let width = self.view.size()[0];
        for (p, value) in sample::map(map, &self.view).into_iter().enumerate() {
            if let Some(value) = value {
                self.image.blend(p % width, p / width, scale.colour(value), opacity * scale.weight(value));
            }
        }
        self
    }

    /// Contours of every label of `labels` (0 is background).
    pub fn contours(mut self, labels: &Volume<u8>, style: ContourStyle) -> Self {
        let organs = labels_in(labels);
        let [width, height] = self.view.size();
        // Line widths follow the picture, so that large pictures do not get hairlines.
        let unit = (width as f32 / 420.0).clamp(0.8, 2.5);
        for (organ, field) in organs.iter().zip(sample::indicators(labels, &organs, &self.view)) {
            let closed = |line: Line| match line.closed {
                true => line.points.iter().chain(line.points.first()).copied().collect(),
                false => line.points,
            };
            let lines: Vec<Vec<[f32; 2]>> =
                lines(&field, width, height, 0.5).into_iter().map(closed).collect();
            for stroke in style.strokes(label_colour(*organ), unit) {
                self.image.lines(&lines, &stroke);
            }
        }
        self
    }

    /// Arrows every `step_mm` from a fixed point to the place that is read, `gain` times as long as they are.
    pub fn arrows(mut self, field: &DisplacementField, step_mm: f64, gain: f64) -> Self {
        let mut lines = Vec::new();
        let step = (step_mm / self.view.pixel_mm()).max(4.0);
        let [width, height] = self.view.size();
        let mut y = step / 2.0;
        while y < height as f64 {
            let mut x = step / 2.0;
            while x < width as f64 {
                let point = self.view.point([x, y]);
                if let Some(u) = displacement(field, point) {
                    let tip = self.view.pixel(std::array::from_fn(|a| point[a] + gain * u[a]));
                    lines.extend(arrow([x as f32, y as f32], tip.map(|c| c as f32)));
                }
                x += step;
            }
            y += step;
        }
        for (colour, width, opacity) in [([0, 0, 0], 3.0, 0.55), ([255, 255, 255], 1.3, 0.95)] {
            self.image.lines(&lines, &Stroke { colour, width, opacity, dash: None });
        }
        self
    }

    /// A lattice of `step_mm` as the transformation x + u(x) bends it (seen in this plane).
    pub fn deformed_grid(mut self, field: &DisplacementField, step_mm: f64) -> Self {
        let step = (step_mm / self.view.pixel_mm()).max(4.0);
        let [width, height] = self.view.size();
        let mut lines = Vec::new();
        for along in 0..2 {
            let (across_end, along_end) = if along == 0 { (height, width) } else { (width, height) };
            let mut across = step / 2.0;
            while across < across_end as f64 {
                let mut line = Vec::new();
                for s in (0..along_end).step_by(3) {
                    let pixel = if along == 0 { [s as f64, across] } else { [across, s as f64] };
                    let point = self.view.point(pixel);
                    match displacement(field, point) {
                        Some(u) => {
                            let bent = self.view.pixel(std::array::from_fn(|a| point[a] + u[a]));
                            line.push(bent.map(|c| c as f32));
                        }
                        None => lines.push(std::mem::take(&mut line)),
                    }
                }
                lines.push(line);
                across += step;
            }
        }
        lines.retain(|l| l.len() > 1);
        self.image.lines(&lines, &Stroke { colour: [120, 255, 220], width: 1.2, opacity: 0.8, dash: None });
        self
    }

    /// Orientation letters at the edges and a scale bar at the lower left.
    pub fn annotated(mut self) -> Self {
        const INK: Rgb = [235, 238, 242];
        let [width, height] = self.view.size();
        let [left, right, top, bottom] = self.view.plane().letters();
        let (w, h) = (Font::SmallBold.text_width("R"), Font::SmallBold.line_height());
        let middle = [width.saturating_sub(w) / 2, height.saturating_sub(h) / 2];
        for (x, y, letter) in [
            (5, middle[1], left),
            (width.saturating_sub(w + 5), middle[1], right),
            (middle[0], 3, top),
            (middle[0], height.saturating_sub(h + 3), bottom),
        ] {
            self.image.text_on_picture(x, y, letter, Font::SmallBold, INK);
        }
        let bar_mm = [100.0, 50.0, 20.0, 10.0, 5.0, 2.0, 1.0]
            .into_iter()
            .find(|mm| mm / self.view.pixel_mm() <= width as f64 * 0.3)
            .unwrap_or(1.0);
        let (bar, y) = ((bar_mm / self.view.pixel_mm()) as f32, height as f32 - 10.0);
        let line = [vec![[8.0, y], [8.0 + bar, y]]];
        self.image.lines(&line, &Stroke { colour: [0; 3], width: 5.0, opacity: 0.6, dash: None });
        self.image.lines(&line, &Stroke { colour: INK, width: 2.5, opacity: 1.0, dash: None });
        let text = format!("{bar_mm} mm");
        self.image.text_on_picture(8, height.saturating_sub(32), &text, Font::Small, INK);
        self
    }

    /// The finished picture.
    pub fn finish(self) -> RgbImage {
        self.image
    }

    fn paint(view: View, colour: impl Fn(usize) -> Option<Rgb>) -> Self {
        let [width, height] = view.size();
        let mut image = RgbImage::filled(width, height, OUTSIDE);
        for p in 0..width * height {
            if let Some(colour) = colour(p) {
                image.set(p % width, p / width, colour);
            }
        }
        Self { view, image }
    }
}

impl ContourStyle {
    /// The strokes of one line, bottom first.
    fn strokes(self, colour: Rgb, unit: f32) -> Vec<Stroke> {
        let rim = |width: f32, opacity| Stroke { colour: [0; 3], width: width * unit, opacity, dash: None };
        let line = |width: f32, opacity| Stroke { colour, width: width * unit, opacity, dash: None };
        match self {
            Self::Reference => vec![line(1.2, 0.8)],
            Self::Propagated => vec![rim(4.2, 0.6), line(2.4, 1.0)],
            Self::Before => {
                vec![Stroke {
                    colour,
                    width: 1.4 * unit,
                    opacity: 0.85,
                    dash: Some((5.0 * unit, 4.0 * unit)),
                }]
            }
        }
    }

    /// The stroke for a legend.
    pub(crate) fn legend_strokes(self, colour: Rgb) -> Vec<Stroke> {
        self.strokes(colour, 1.2)
    }
}

/// Length of the displacement at every voxel, mm.
pub fn magnitude(field: &DisplacementField) -> Volume<f32> {
    let length = |i: usize| {
        let [x, y, z] = field.at(i);
        (x * x + y * y + z * z).sqrt()
    };
    Volume { grid: field.grid.clone(), data: (0..field.grid.len()).into_par_iter().map(length).collect() }
}

/// The labels that occur, background left out.
pub(crate) fn labels_in(labels: &Volume<u8>) -> Vec<u8> {
    let none = || [false; 256];
    let seen = (labels.data.par_chunks(1 << 16))
        .map(|part| {
            let mut seen = none();
            part.iter().for_each(|&l| seen[usize::from(l)] = true);
            seen
        })
        .reduce(none, |a, b| std::array::from_fn(|l| a[l] || b[l]));
    (1..=255u8).filter(|&l| seen[usize::from(l)]).collect()
}

/// The displacement (mm) at a point, `None` outside the field.
fn displacement(field: &DisplacementField, point: Point) -> Option<[f64; 3]> {
    let at = field.grid.to_index(point);
    let within = (0..3).all(|a| at[a] >= -0.5 && at[a] <= field.grid.size[a] as f64 - 0.5);
    within.then(|| std::array::from_fn(|a| f64::from(sample::linear_of(&field.grid, &field.u[a], at))))
}

/// A shaft and a head; displacements below a pixel are left out.
fn arrow(from: [f32; 2], to: [f32; 2]) -> Vec<Vec<[f32; 2]>> {
    let d = [to[0] - from[0], to[1] - from[1]];
    let length = d[0].hypot(d[1]);
    if length < 1.0 {
        return Vec::new();
    }
    let head = (length * 0.35).clamp(2.5, 7.0) / length;
    let barb =
        |side: f32| [to[0] - head * (d[0] - side * 0.55 * d[1]), to[1] - head * (d[1] + side * 0.55 * d[0])];
    vec![vec![from, to], vec![barb(1.0), to, barb(-1.0)]]
}

/// A little warmer than grey.
fn tint(grey: Rgb) -> Rgb {
    [grey[0], (f32::from(grey[1]) * 0.93) as u8, (f32::from(grey[2]) * 0.74) as u8]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::Plane;
    use libjrs::Grid;

    /// A bright cube near one corner of the patient: towards right (-x), anterior (-y), superior (+z).
    fn marked(grid: Grid) -> Volume<f32> {
        let mut volume = Volume::filled(grid, -1000.0);
        for i in 0..volume.grid.len() {
            let n = volume.grid.size;
            let index = [i % n[0], i / n[0] % n[1], i / (n[0] * n[1])];
            let p = volume.grid.to_physical(index.map(|v| v as f64));
            if p[0] < -20.0 && p[1] < -20.0 && p[2] > 20.0 {
                volume.data[i] = 1000.0;
            }
        }
        volume
    }

    fn brightest_quadrant(image: &RgbImage) -> (bool, bool) {
        let (w, h) = (image.width(), image.height());
        let mut sum = [0f64; 2];
        let mut count = 0f64;
        for y in 0..h {
            for x in 0..w {
                if image.at(x, y)[0] > 200 {
                    sum[0] += x as f64;
                    sum[1] += y as f64;
                    count += 1.0;
                }
            }
        }
        assert!(count > 0.0, "the marker is in the picture");
        (sum[0] / count < w as f64 / 2.0, sum[1] / count < h as f64 / 2.0)
    }

    #[test]
    fn the_patients_right_is_left_and_superior_is_up() {
        let lps = Grid::axis_aligned([60, 60, 60], [1.0; 3], [-29.5; 3]);
        // The same space stored with x and y reversed (RAS order) and z from the top.
        let flipped = Grid {
            size: [60; 3],
            spacing: [1.0; 3],
            origin: [29.5; 3],
            direction: [[-1., 0., 0.], [0., -1., 0.], [0., 0., -1.]],
        };
        // Index axes permuted: i runs along z, j along x, k along y.
        let permuted = Grid {
            size: [60; 3],
            spacing: [1.0; 3],
            origin: [-29.5; 3],
            direction: [[0., 1., 0.], [0., 0., 1.], [1., 0., 0.]],
        };
        for grid in [lps, flipped, permuted] {
            let volume = marked(grid);
            for plane in [Plane::Axial, Plane::Coronal, Plane::Sagittal] {
                let view = View::whole(&volume.grid, plane, [-25.0, -25.0, 25.0], 120);
                let image = Overlay::ct(view, &volume, &Scale::soft_tissue()).finish();
                assert_eq!(brightest_quadrant(&image), (true, true), "{plane:?}");
            }
        }
    }

    #[test]
    fn contours_have_the_organs_colour_and_surround_it() {
        let grid = Grid::axis_aligned([40, 40, 3], [1.0; 3], [0.0; 3]);
        let image = Volume::filled(grid.clone(), -1000.0f32);
        let mut labels = Volume::filled(grid.clone(), 0u8);
        for y in 10..30 {
            for x in 10..30 {
                let i = grid.index(x, y, 1);
                labels.data[i] = 5;
            }
        }
        let view = View::around(Plane::Axial, [19.5, 19.5, 1.0], [40.0, 40.0], 160);
        let picture = Overlay::ct(view, &image, &Scale::soft_tissue())
            .contours(&labels, ContourStyle::Propagated)
            .finish();
        let bladder = label_colour(5);
        // The edge lies between voxels 9 and 10, at pixel 4 * 10 - 0.5.
        let near = |c: Rgb| c.iter().zip(bladder).all(|(&a, b)| a.abs_diff(b) < 20);
        assert!((38..=42).any(|x| near(picture.at(x, 80))));
        assert_eq!(picture.at(80, 80), [0; 3]);
        assert_eq!(picture.at(20, 80), [0; 3]);
    }

    #[test]
    fn difference_is_fixed_minus_warped() {
        let grid = Grid::axis_aligned([10, 10, 3], [1.0; 3], [0.0; 3]);
        let (a, b) = (Volume::filled(grid.clone(), 100.0f32), Volume::filled(grid.clone(), 0.0f32));
        let view = View::around(Plane::Axial, [4.5, 4.5, 1.0], [8.0, 8.0], 16);
        let picture = Overlay::difference(view, &a, &b, &Scale::difference(200.0)).finish();
        let [red, _, blue] = picture.at(8, 8);
        assert!(red > 200 && blue < 100);
    }

    #[test]
    fn checkerboard_takes_turns() {
        let grid = Grid::axis_aligned([20, 20, 3], [1.0; 3], [0.0; 3]);
        let (a, b) = (Volume::filled(grid.clone(), 1000.0f32), Volume::filled(grid.clone(), -1000.0f32));
        let view = View::around(Plane::Axial, [9.5, 9.5, 1.0], [20.0, 20.0], 20);
        let picture = Overlay::checkerboard(view, &a, &b, &Scale::soft_tissue(), 5.0).finish();
        assert_eq!(picture.at(2, 2), [255; 3]);
        assert_eq!(picture.at(7, 2), [0; 3]);
        assert_eq!(picture.at(7, 7), [255; 3]);
    }

    #[test]
    fn arrows_point_to_where_the_image_is_read() {
        let grid = Grid::axis_aligned([40, 40, 3], [1.0; 3], [0.0; 3]);
        let mut field = DisplacementField::zero(grid.clone());
        field.u[0].fill(6.0);
        let image = Volume::filled(grid, -1000.0f32);
        let view = View::around(Plane::Axial, [19.5, 19.5, 1.0], [40.0, 40.0], 80);
        let picture = Overlay::ct(view, &image, &Scale::soft_tissue()).arrows(&field, 40.0, 1.0).finish();
        // One arrow, from the centre (40, 40) by 12 pixels to the right.
        assert!(picture.at(46, 40)[0] > 200);
        assert_eq!(picture.at(34, 40), [0; 3]);
        assert!((magnitude(&field).data[0] - 6.0).abs() < 1e-6);
    }
}
