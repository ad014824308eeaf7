//! Where a picture lies in the patient.
//!
//! Pictures follow the radiological convention whatever the direction cosines of the volume: the patient's right is
//! on the left of axial and coronal pictures, anterior is up (axial) or left (sagittal), superior is up.

use libjrs::Grid;
use libjrs::geometry::Point;

/// An anatomical plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plane {
    /// Seen from the feet: patient right on the left, anterior on top.
    Axial,
    /// Seen from the front: patient right on the left, superior on top.
    Coronal,
    /// Seen from the patient's left: anterior on the left, superior on top.
    Sagittal,
}

impl Plane {
    /// LPS axis along the picture's columns and its sign towards the right of the picture.
    pub fn rightwards(self) -> (usize, f64) {
        match self {
            Plane::Axial | Plane::Coronal => (0, 1.0),
            Plane::Sagittal => (1, 1.0),
        }
    }

    /// LPS axis along the picture's rows and its sign towards the bottom.
    pub fn downwards(self) -> (usize, f64) {
        match self {
            Plane::Axial => (1, 1.0),
            Plane::Coronal | Plane::Sagittal => (2, -1.0),
        }
    }

    /// LPS axis across the picture.
    pub fn normal(self) -> usize {
        match self {
            Plane::Axial => 2,
            Plane::Coronal => 1,
            Plane::Sagittal => 0,
        }
    }

    /// Letters for the left, right, top and bottom edge.
    pub fn letters(self) -> [&'static str; 4] {
        match self {
            Plane::Axial => ["R", "L", "A", "P"],
            Plane::Coronal => ["R", "L", "S", "I"],
            Plane::Sagittal => ["A", "P", "S", "I"],
        }
    }

    /// Name for titles.
    pub fn name(self) -> &'static str {
        match self {
            Plane::Axial => "axial",
            Plane::Coronal => "coronal",
            Plane::Sagittal => "sagittal",
        }
    }
}

/// A rectangle of a plane and its resolution. Pixels are square in millimetres, so proportions are the patient's.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    plane: Plane,
    centre: Point,
    pixel_mm: f64,
    size: [usize; 2],
}

impl View {
    /// A rectangle of `extent_mm` (width, height) around `centre` (LPS mm), `width_px` pixels wide.
    ///
    /// The extent is at least 1 mm and the picture at least 8 pixels each way, so that every view can be drawn.
    pub fn around(plane: Plane, centre: Point, extent_mm: [f64; 2], width_px: usize) -> Self {
        let extent = extent_mm.map(|e| if e.is_finite() { e.max(1.0) } else { 1.0 });
        let width_px = width_px.max(8);
        let pixel_mm = extent[0] / width_px as f64;
        let height_px = ((extent[1] / pixel_mm).round() as usize).max(8);
        Self { plane, centre, pixel_mm, size: [width_px, height_px] }
    }

    /// All of `grid` in the plane through `point` (LPS mm), `width_px` pixels wide.
    pub fn whole(grid: &Grid, plane: Plane, point: Point, width_px: usize) -> Self {
        let mut low = [f64::INFINITY; 3];
        let mut high = [f64::NEG_INFINITY; 3];
        for corner in 0..8usize {
            // Outer faces of the corner voxels.
            let end = |a: usize| if corner >> a & 1 == 1 { grid.size[a] as f64 - 0.5 } else { -0.5 };
            let p = grid.to_physical([end(0), end(1), end(2)]);
            for a in 0..3 {
                low[a] = low[a].min(p[a]);
                high[a] = high[a].max(p[a]);
            }
        }
        let (right, down) = (plane.rightwards().0, plane.downwards().0);
        let mut centre = point;
        for a in [right, down] {
            centre[a] = (low[a] + high[a]) / 2.0;
        }
        Self::around(plane, centre, [high[right] - low[right], high[down] - low[down]], width_px)
    }

    /// The plane.
    pub fn plane(&self) -> Plane {
        self.plane
    }

    /// Columns and rows.
    pub fn size(&self) -> [usize; 2] {
        self.size
    }

    /// Millimetres per pixel.
    pub fn pixel_mm(&self) -> f64 {
        self.pixel_mm
    }

    /// Place of the plane along its normal, LPS mm.
    pub fn position_mm(&self) -> f64 {
        self.centre[self.plane.normal()]
    }

    /// Physical place (LPS mm) of a picture position in pixels.
    pub fn point(&self, pixel: [f64; 2]) -> Point {
        let mut p = self.centre;
        let axes = [self.plane.rightwards(), self.plane.downwards()];
        for (a, (axis, sign)) in axes.into_iter().enumerate() {
            p[axis] += sign * (pixel[a] - (self.size[a] as f64 - 1.0) / 2.0) * self.pixel_mm;
        }
        p
    }

    /// Picture position in pixels of a physical point (LPS mm), projected along the normal.
    pub fn pixel(&self, point: Point) -> [f64; 2] {
        let axes = [self.plane.rightwards(), self.plane.downwards()];
        std::array::from_fn(|a| {
            let (axis, sign) = axes[a];
            sign * (point[axis] - self.centre[axis]) / self.pixel_mm + (self.size[a] as f64 - 1.0) / 2.0
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_and_pixels_are_inverse() {
        for plane in [Plane::Axial, Plane::Coronal, Plane::Sagittal] {
            let view = View::around(plane, [10.0, -20.0, 30.0], [120.0, 90.0], 240);
            assert_eq!(view.size(), [240, 180]);
            let back = view.pixel(view.point([13.0, 77.5]));
            assert!((back[0] - 13.0).abs() < 1e-9 && (back[1] - 77.5).abs() < 1e-9);
        }
    }

    #[test]
    fn proportions_are_the_patients() {
        // 40 x 30 x 10 voxels of 1 x 1 x 3 mm: a coronal picture is 40 mm wide and 30 mm high.
        let grid = Grid::axis_aligned([40, 30, 10], [1.0, 1.0, 3.0], [0.0; 3]);
        let view = View::whole(&grid, Plane::Coronal, [20.0, 15.0, 15.0], 400);
        assert_eq!(view.size(), [400, 300]);
        assert!((view.position_mm() - 15.0).abs() < 1e-12);
    }
}
