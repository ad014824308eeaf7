//! The dataset manifest (`dataset.json`): which scans form pairs, and who is in which split.
//!
//! All file names are relative to the folder of the manifest.

use serde::{Deserialize, Serialize};

/// File name of the manifest inside a dataset folder.
pub const MANIFEST: &str = "dataset.json";
/// Value of [`Dataset::format`].
pub const FORMAT: &str = "jrs-dataset/1";

/// A set of image pairs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dataset {
    /// [`FORMAT`].
    pub format: String,
    /// For people and for tables ("which data").
    pub name: String,
    /// Label ids and their names, in the order of tables.
    pub organs: Vec<Organ>,
    /// Image pairs.
    pub pairs: Vec<Pair>,
}

/// A contoured structure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Organ {
    /// Value in label maps, 1..=255 (0 is background).
    pub id: u8,
    /// Such as `seminal vesicles`.
    pub name: String,
}

/// Which part of the study a pair belongs to; always decided per patient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Seen by the optimiser.
    Train,
    /// Chooses the best model.
    Validation,
    /// Never seen before the final table.
    Test,
}

/// One registration problem.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// Unique, usable as a file name.
    pub id: String,
    /// Patients never cross splits.
    pub patient: String,
    /// Where the pair is used.
    pub split: Split,
    /// Today's scan, on which the result is wanted.
    pub fixed: Scan,
    /// The planning scan, whose contours are carried over.
    pub moving: Scan,
    /// Affine made elsewhere, fixed to moving points (JSON of `libjrs::Affine`, or ITK `.tfm`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affine: Option<String>,
    /// What a phantom knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truth: Option<Truth>,
}

/// The files of one CT.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scan {
    /// CT in HU.
    pub image: String,
    /// Label map on the same grid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<String>,
    /// Torso mask on the same grid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<String>,
}

/// Exact answers, known for synthetic pairs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Truth {
    /// Displacement field on the fixed grid including pose (NIfTI 5-D, intent 1006, RAS vectors); NaN where no
    /// correspondence exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub displacement: Option<String>,
    /// CSV `name,fixed_x,fixed_y,fixed_z,moving_x,moving_y,moving_z`, LPS mm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub landmarks: Option<String>,
}
