//! The usual figures of one registration, in one call each.

use libjrs::geometry::Point;
use libjrs::{DisplacementField, Result, Volume};
use rayon::prelude::*;

use crate::colour::{Scale, label_colour, label_name};
use crate::html::{Figure, Picture};
use crate::image::RgbImage;
use crate::montage::{LegendEntry, Montage, Panel};
use crate::overlay::{ContourStyle, Overlay, labels_in, magnitude};
use crate::view::{Plane, View};

/// What is known about one registration. All volumes may have grids of their own; they meet in patient space.
#[derive(Debug, Clone, Copy)]
pub struct RegistrationPictures<'a> {
    /// The fixed image, HU.
    pub fixed: &'a Volume<f32>,
    /// The moving image as it lies before deformable registration, HU.
    pub moving: &'a Volume<f32>,
    /// The moving image after registration, HU.
    pub warped: &'a Volume<f32>,
    /// Contours of the fixed image.
    pub fixed_labels: Option<&'a Volume<u8>>,
    /// Contours of the moving image before registration.
    pub moving_labels: Option<&'a Volume<u8>>,
    /// Contours of the moving image after registration.
    pub warped_labels: Option<&'a Volume<u8>>,
    /// The displacement field.
    pub field: Option<&'a DisplacementField>,
    /// det(I + du/dx).
    pub jacobian: Option<&'a Volume<f32>>,
}

/// Margin around the organs, mm.
const MARGIN_MM: f64 = 35.0;
/// Smallest picture, mm.
const SMALLEST_MM: f64 = 80.0;
/// Range of the difference images, HU.
const DIFFERENCE_HU: f32 = 200.0;

impl RegistrationPictures<'_> {
    /// The paper's Figure 3: contours before, contours after, difference before, difference after (columns), in the
    /// axial and the sagittal plane (rows). `panel_px` is the width of a panel.
    pub fn comparison(&self, panel_px: usize) -> RgbImage {
        let window = Scale::soft_tissue();
        let scale = Scale::difference(DIFFERENCE_HU);
        let mut rows = Vec::new();
        for plane in [Plane::Axial, Plane::Sagittal] {
            let view = self.close_up(plane, panel_px);
            let contoured = |labels: Option<&Volume<u8>>, style| {
                let mut overlay = Overlay::ct(view.clone(), self.fixed, &window);
                if let Some(labels) = labels {
                    overlay = overlay.contours(labels, style);
                }
                if let Some(reference) = self.fixed_labels {
                    overlay = overlay.contours(reference, ContourStyle::Reference);
                }
                overlay.annotated().finish()
            };
            let difference = |other: &Volume<f32>| {
                Overlay::difference(view.clone(), self.fixed, other, &scale).annotated().finish()
            };
            let panel = |title: String, image| Panel { title, image };
            rows.push(vec![
                panel(
                    format!("{} - before", plane.name()),
                    contoured(self.moving_labels, ContourStyle::Before),
                ),
                panel("after".into(), contoured(self.warped_labels, ContourStyle::Propagated)),
                panel("difference before".into(), difference(self.moving)),
                panel("difference after".into(), difference(self.warped)),
            ]);
        }
        Montage { rows, legend: self.legend(), scales: vec![scale] }.render()
    }

    /// Fixed and warped image in alternating squares, three planes.
    pub fn checkerboard(&self, panel_px: usize) -> RgbImage {
        self.three_planes(panel_px, |view| {
            Overlay::checkerboard(view, self.fixed, self.warped, &Scale::soft_tissue(), 20.0)
        })
    }

    /// Displacement length over the fixed image with arrows, three planes.
    pub fn displacement(&self, field: &DisplacementField, panel_px: usize) -> RgbImage {
        let length = magnitude(field);
        let scale = Scale::displacement(round_up(length.range()[1]));
        let mut montage = self.planes(panel_px, |view| {
            let step = view.pixel_mm() * view.size()[0] as f64 / 18.0;
            Overlay::ct(view, self.fixed, &Scale::soft_tissue())
                .heat(&length, &scale, 0.55)
                .arrows(field, step, 1.0)
        });
        montage.scales = vec![scale];
        montage.render()
    }

    /// A regular lattice bent by the transformation, over the fixed image, three planes.
    pub fn deformed_grid(&self, field: &DisplacementField, panel_px: usize) -> RgbImage {
        self.three_planes(panel_px, |view| {
            let step = view.pixel_mm() * view.size()[0] as f64 / 32.0;
            Overlay::ct(view, self.fixed, &Scale::soft_tissue()).deformed_grid(field, step)
        })
    }

    /// Jacobian determinant over the fixed image, three planes; folding in magenta.
    pub fn jacobian(&self, jacobian: &Volume<f32>, panel_px: usize) -> RgbImage {
        let scale = Scale::jacobian(0.6);
        let mut montage = self.planes(panel_px, |view| {
            Overlay::ct(view, self.fixed, &Scale::soft_tissue()).heat(jacobian, &scale, 0.6)
        });
        montage.scales = vec![scale];
        montage.legend = vec![LegendEntry {
            text: "det J <= 0 (folding)".into(),
            colour: crate::colour::FOLDING,
            style: None,
        }];
        montage.render()
    }

    /// All figures for which there is data, with captions, for the page of one registration.
    ///
    /// # Errors
    /// If a picture cannot be written as PNG.
    pub fn figures(&self, panel_px: usize) -> Result<Vec<Figure>> {
        type Draw<'a> = Box<dyn Fn() -> RgbImage + Send + Sync + 'a>;
        let mut figures: Vec<(Draw, &str)> = vec![
            (
                Box::new(|| self.comparison(panel_px)),
                "Contours on the fixed image and intensity differences, before and after registration. \
                 Thin solid lines are the contours of the fixed image, where they are known.",
            ),
            (
                Box::new(|| self.checkerboard(panel_px)),
                "Checkerboard of the fixed image (grey) and the registered moving image (warm). Edges should run \
                 on from square to square.",
            ),
        ];
        if let Some(field) = self.field {
            figures.push((
                Box::new(move || self.displacement(field, panel_px)),
                "Length of the displacement; arrows run from a fixed point to the place where the moving image is \
                 read, in true length.",
            ));
            figures.push((
                Box::new(move || self.deformed_grid(field, panel_px)),
                "A regular lattice as the transformation bends it.",
            ));
        }
        if let Some(jacobian) = self.jacobian {
            figures.push((
                Box::new(move || self.jacobian(jacobian, panel_px)),
                "Jacobian determinant: blue where tissue shrinks from the fixed to the moving image, orange where \
                 it grows, magenta where the transformation folds.",
            ));
        }
        figures
            .into_par_iter()
            .map(|(draw, caption)| {
                Ok(Figure { picture: Picture::Png(draw().png()?), caption: caption.into() })
            })
            .collect()
    }

    fn three_planes(&self, panel_px: usize, overlay: impl Fn(View) -> Overlay) -> RgbImage {
        self.planes(panel_px, overlay).render()
    }

    fn planes(&self, panel_px: usize, overlay: impl Fn(View) -> Overlay) -> Montage {
        let panels = [Plane::Axial, Plane::Coronal, Plane::Sagittal].map(|plane| Panel {
            title: plane.name().into(),
            image: overlay(self.close_up(plane, panel_px)).annotated().finish(),
        });
        Montage { rows: vec![panels.into()], ..Montage::default() }
    }

    fn legend(&self) -> Vec<LegendEntry> {
        const WHITE: [u8; 3] = [235, 238, 242];
        let entry = |text: &str, colour, style| LegendEntry { text: text.into(), colour, style };
        let mut present = Vec::new();
        for labels in [self.fixed_labels, self.moving_labels, self.warped_labels].into_iter().flatten() {
            present.extend(labels_in(labels));
        }
        present.sort_unstable();
        present.dedup();
        let mut legend: Vec<_> =
            present.iter().map(|&l| entry(&label_name(l), label_colour(l), None)).collect();
        let styles = [
            (self.fixed_labels, "fixed contour", ContourStyle::Reference),
            (self.moving_labels, "moving, before", ContourStyle::Before),
            (self.warped_labels, "moving, after", ContourStyle::Propagated),
        ];
        for (labels, text, style) in styles {
            if labels.is_some() {
                legend.push(entry(text, WHITE, Some(style)));
            }
        }
        legend
    }

    /// The view around the organs, the whole fixed image where there are none.
    fn close_up(&self, plane: Plane, width_px: usize) -> View {
        let labels = self.fixed_labels.or(self.warped_labels);
        match labels.and_then(organ_box) {
            Some((low, high, focus)) => {
                let (first, last) = bounds(self.fixed.grid.corners().into_iter());
                let room: [f64; 3] = std::array::from_fn(|a| last[a] - first[a]);
                let organs = (0..3).map(|a| high[a] - low[a]).fold(0.0, f64::max);
                // One extent for all planes, so that panels in a row have one scale and one height.
                let width = (organs + 2.0 * MARGIN_MM).min(room[0]).min(room[1]).max(SMALLEST_MM);
                let height = (0.8 * width).min(room[2]).max(SMALLEST_MM);
                let mut centre = focus;
                for (axis, extent) in [(plane.rightwards().0, width), (plane.downwards().0, height)] {
                    // Around the organs, but without showing the outside of the scan where that can be avoided.
                    let (lowest, highest) = (first[axis] + extent / 2.0, last[axis] - extent / 2.0);
                    let wanted = (low[axis] + high[axis]) / 2.0;
                    centre[axis] = if lowest <= highest { wanted.clamp(lowest, highest) } else { wanted };
                }
                View::around(plane, centre, [width, height], width_px)
            }
            None => {
                let n = self.fixed.grid.size.map(|n| (n as f64 - 1.0) / 2.0);
                View::whole(&self.fixed.grid, plane, self.fixed.grid.to_physical(n), width_px)
            }
        }
    }
}

/// Bounding box of all labels (LPS mm) and the centroid of the lowest label present (the prostate, usually).
fn organ_box(labels: &Volume<u8>) -> Option<(Point, Point, Point)> {
    let target = *labels_in(labels).first()?;
    let n = labels.grid.size;
    let place = |i: usize| {
        let index = [i % n[0], i / n[0] % n[1], i / (n[0] * n[1])];
        labels.grid.to_physical(index.map(|v| v as f64))
    };
    let voxels = |wanted: fn(u8, u8) -> bool| {
        let data = labels.data.iter().enumerate();
        data.filter(move |(_, l)| wanted(**l, target)).map(|(i, _)| place(i))
    };
    let (low, high) = bounds(voxels(|label, _| label != 0));
    let (mut sum, mut count) = ([0f64; 3], 0f64);
    for p in voxels(|label, target| label == target) {
        (0..3).for_each(|a| sum[a] += p[a]);
        count += 1.0;
    }
    // The nearest slice, so that contours are those of a slice and not of a place between two.
    let centroid = labels.grid.to_index(sum.map(|s| s / count)).map(f64::round);
    Some((low, high, labels.grid.to_physical(centroid)))
}

/// Smallest and largest coordinates.
fn bounds(points: impl Iterator<Item = Point>) -> (Point, Point) {
    points.fold(([f64::INFINITY; 3], [f64::NEG_INFINITY; 3]), |(low, high), p| {
        (std::array::from_fn(|a| low[a].min(p[a])), std::array::from_fn(|a| high[a].max(p[a])))
    })
}

/// The next of 1, 2, 5, 10, 20 ... mm.
fn round_up(value: f32) -> f32 {
    [1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0].into_iter().find(|&s| s >= value).unwrap_or(100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use libjrs::Grid;

    /// A block of "prostate" in a scan of 100 x 100 x 60 mm.
    fn scan() -> (Volume<f32>, Volume<u8>) {
        let grid = Grid::axis_aligned([50, 50, 20], [2.0, 2.0, 3.0], [-49.0, -49.0, 0.0]);
        let mut labels = Volume::filled(grid.clone(), 0u8);
        for z in 8..13 {
            for y in 20..30 {
                for x in 20..30 {
                    let i = grid.index(x, y, z);
                    labels.data[i] = 1;
                }
            }
        }
        (labels.map(|l| f32::from(l) * 100.0), labels)
    }

    #[test]
    fn every_figure_is_made_for_which_there_is_data() {
        let (image, labels) = scan();
        let field = DisplacementField::zero(image.grid.clone());
        let full = RegistrationPictures {
            fixed: &image,
            moving: &image,
            warped: &image,
            fixed_labels: Some(&labels),
            moving_labels: Some(&labels),
            warped_labels: Some(&labels),
            field: Some(&field),
            jacobian: None,
        };
        assert_eq!(full.figures(120).unwrap().len(), 4);
        let bare = RegistrationPictures {
            fixed_labels: None,
            moving_labels: None,
            warped_labels: None,
            field: None,
            ..full
        };
        assert_eq!(bare.figures(120).unwrap().len(), 2);
    }

    #[test]
    fn close_ups_stay_inside_the_scan_and_share_their_scale() {
        let (image, labels) = scan();
        let pictures = RegistrationPictures {
            fixed: &image,
            moving: &image,
            warped: &image,
            fixed_labels: Some(&labels),
            moving_labels: None,
            warped_labels: None,
            field: None,
            jacobian: None,
        };
        let views = [Plane::Axial, Plane::Coronal, Plane::Sagittal].map(|p| pictures.close_up(p, 200));
        assert!(views.iter().all(|v| v.size() == views[0].size() && v.pixel_mm() == views[0].pixel_mm()));
        // The axial plane goes through slice 10, the middle of the block: 30 mm.
        assert!((views[0].position_mm() - 30.0).abs() < 1e-9);
    }
}
