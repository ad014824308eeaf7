//! Sizes of a cohort: how many patients and scans, on which voxels.

use crate::motion::Patient;
use jrs_data::dataset::Split;
use libjrs::{Error, Grid, Result};

/// What to make.
#[derive(Debug, Clone, PartialEq)]
pub struct Preset {
    /// Name of the preset, for the dataset's title.
    pub name: String,
    /// Voxels along x and y.
    pub matrix: [usize; 2],
    /// Millimetres per voxel in the axial plane.
    pub pixel: f64,
    /// Slice spacings in mm; a patient has one of them.
    pub slices: Vec<f64>,
    /// Lowest and highest slice relative to the femoral heads, mm.
    pub extent: [f64; 2],
    /// Knots of the motion, mm.
    pub knots: f64,
    /// The patients in order.
    pub patients: Vec<Plan>,
}

/// One patient of a cohort.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Where all pairs of the patient belong.
    pub split: Split,
    /// Repeat scans; each makes a pair with the planning scan.
    pub repeats: usize,
}

/// Names that [`Preset::named`] knows.
pub const NAMES: [&str; 4] = ["clinical", "small", "demo", "tiny"];

impl Preset {
    /// A preset by name: `clinical` (the paper's cohort), `small`, `demo` or `tiny`.
    ///
    /// # Errors
    /// If there is no preset of this name.
    pub fn named(name: &str) -> Result<Self> {
        use Split::{Test, Train, Validation};
        let patients = |split, repeats: &[usize]| -> Vec<Plan> {
            repeats.iter().map(|&repeats| Plan { split, repeats }).collect()
        };
        let make = |matrix, pixel, slices: &[f64], extent, knots, patients: [Vec<Plan>; 3]| Self {
            name: name.into(),
            matrix,
            pixel,
            slices: slices.to_vec(),
            extent,
            knots,
            patients: patients.concat(),
        };
        Ok(match name {
            // 18 patients, 161 pairs: 111 of 12 patients (two of them for validation) and 50 of 6.
            "clinical" => make(
                [512, 512],
                0.9,
                &[2.0, 2.5, 3.0],
                [-110.0, 170.0],
                4.0,
                [
                    patients(Train, &[7, 9, 10, 10, 9, 10, 8, 10, 9, 10]),
                    patients(Validation, &[9, 10]),
                    patients(Test, &[7, 8, 8, 8, 9, 10]),
                ],
            ),
            "small" => make(
                [256, 184],
                1.5,
                &[2.0, 2.5],
                [-85.0, 105.0],
                4.0,
                [patients(Train, &[4; 8]), patients(Validation, &[4]), patients(Test, &[4; 3])],
            ),
            // The paper's 18 patients. Motion differs more between patients than between days: few pairs of many.
            "demo" => make(
                [192, 132],
                2.0,
                &[2.5],
                [-70.0, 90.0],
                5.0,
                [patients(Train, &[2; 10]), patients(Validation, &[1; 2]), patients(Test, &[1; 6])],
            ),
            "tiny" => make(
                [64, 48],
                6.0,
                &[4.0],
                [-70.0, 90.0],
                8.0,
                [patients(Train, &[1]), patients(Validation, &[1]), patients(Test, &[1])],
            ),
            _ => {
                return Err(Error::input(
                    format!("there is no phantom preset `{name}`"),
                    format!("choose one of {}", NAMES.join(", ")),
                ));
            }
        })
    }

    /// Number of image pairs.
    pub fn pairs(&self) -> usize {
        self.patients.iter().map(|plan| plan.repeats).sum()
    }

    /// The voxels of a patient's scans: the same couch position for all of them.
    pub fn grid(&self, patient: &Patient) -> Grid {
        let spacing = [self.pixel, self.pixel, self.slices[patient.number % self.slices.len()]];
        let slices = ((self.extent[1] - self.extent[0]) / spacing[2]).round() as usize;
        let size = [self.matrix[0], self.matrix[1], slices];
        // The body spans y = -119..110 for the average patient; leave a little more room behind, for the couch.
        let middle = [0.0, if self.matrix[1] as f64 * self.pixel > 400.0 { 10.0 } else { -3.0 }];
        let corner = |a: usize| middle[a] - 0.5 * (size[a] as f64 - 1.0) * self.pixel;
        Grid::axis_aligned(size, spacing, [corner(0), corner(1), self.extent[0]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clinical_has_the_shape_of_the_papers_cohort() {
        let preset = Preset::named("clinical").unwrap();
        let pairs = |wanted: &[Split]| -> (usize, usize) {
            let chosen: Vec<_> = preset.patients.iter().filter(|p| wanted.contains(&p.split)).collect();
            (chosen.len(), chosen.iter().map(|p| p.repeats).sum())
        };
        assert_eq!((preset.patients.len(), preset.pairs()), (18, 161));
        assert_eq!(pairs(&[Split::Train, Split::Validation]), (12, 111));
        assert_eq!(pairs(&[Split::Validation]).0, 2);
        assert_eq!(pairs(&[Split::Test]), (6, 50));
        assert!(preset.patients.iter().all(|p| (7..=10).contains(&p.repeats)));
    }

    #[test]
    fn unknown_names_are_refused_with_the_choices() {
        let message = Preset::named("huge").unwrap_err().to_string();
        assert!(message.contains("huge") && message.contains("demo"), "{message}");
    }
}
