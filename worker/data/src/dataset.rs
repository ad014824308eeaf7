//! The dataset manifest (`dataset.json`): which scans form pairs, and who is in which split.
//!
//! All file names are relative to the folder of the manifest.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

use libjrs::{Error, Result};
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

impl Dataset {
    /// Reads and checks the manifest of a dataset folder, and that every file it names is there.
    ///
    /// # Errors
    /// If the manifest is missing, is of another format or contradicts itself (ids used twice, a patient in two
    /// splits, labels without organs), or if a file it names is not there.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let path = folder.join(MANIFEST);
        let text = fs::read_to_string(&path).map_err(|e| {
            Error::io(&path, e, format!("give the folder of a dataset, the one that holds its {MANIFEST}"))
        })?;
        let dataset = Self::parse(&text, &path)?;
        for pair in &dataset.pairs {
            for name in pair.files() {
                let file = folder.join(name);
                if !file.is_file() {
                    return Err(Error::file(
                        &path,
                        format!("pair `{}` names {name}, and {} is not a file", pair.id, file.display()),
                        "put the file there or take the pair out of the manifest",
                    ));
                }
            }
        }
        Ok(dataset)
    }

    /// Parses and checks the text of a manifest; `path` is what errors name.
    ///
    /// # Errors
    /// As for [`Dataset::open`], without looking for the image files.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let json_error = |e: serde_json::Error| {
            Error::file(path, format!("not a dataset manifest: {e}"), "compare it with the documented format")
        };
        // The format is looked at first: a manifest of a later version fails for that reason and no other.
        let value: serde_json::Value = serde_json::from_str(text).map_err(json_error)?;
        match value.get("format").and_then(|f| f.as_str()) {
            Some(FORMAT) => {}
            other => {
                return Err(Error::file(
                    path,
                    format!("format is {}, and this program reads `{FORMAT}`", quoted(other)),
                    "write the manifest in this format, or use the version of jrs that wrote it",
                ));
            }
        }
        let dataset: Self = serde_json::from_value(value).map_err(json_error)?;
        dataset.check().map_err(|(problem, fix)| Error::file(path, problem, fix))?;
        Ok(dataset)
    }

    /// What a manifest must hold beyond its types; the problem and the fix otherwise.
    fn check(&self) -> Result<(), (String, &'static str)> {
        let mut organ_ids = HashSet::new();
        for organ in &self.organs {
            if organ.id == 0 || !organ_ids.insert(organ.id) {
                let problem = format!("organ `{}` has id {}, which is 0 or used twice", organ.name, organ.id);
                return Err((problem, "give every organ its own id from 1 to 255"));
            }
        }
        if self.pairs.is_empty() {
            return Err(("the manifest lists no pairs".into(), "add at least one pair"));
        }
        let mut pair_ids = HashSet::new();
        let mut split_of: HashMap<&str, (Split, &str)> = HashMap::new();
        for pair in &self.pairs {
            let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if pair.id.is_empty() || pair.id.starts_with('.') || !pair.id.chars().all(is_name) {
                let problem = format!("pair id `{}` cannot be used as a file name", pair.id);
                return Err((problem, "use letters, digits, `-`, `_` and `.` (not first)"));
            }
            // Compared in lower case, because cache files are named after pairs and some file systems fold case.
            if !pair_ids.insert(pair.id.to_lowercase()) {
                return Err((format!("pair id `{}` is used twice", pair.id), "give every pair its own id"));
            }
            let (split, first) = *split_of.entry(&pair.patient).or_insert((pair.split, &pair.id));
            if split != pair.split {
                let problem = format!(
                    "patient `{}` is in split {split:?} (pair `{first}`) and in {:?} (pair `{}`)",
                    pair.patient, pair.split, pair.id
                );
                return Err((problem, "keep all pairs of a patient in one split, or the test is no test"));
            }
            if let Some(name) = pair.files().find(|name| name.is_empty() || Path::new(name).is_absolute()) {
                let problem = format!("pair `{}` names the file `{name}`", pair.id);
                return Err((problem, "give file names relative to the folder of the manifest"));
            }
            let has_labels = pair.fixed.labels.is_some() || pair.moving.labels.is_some();
            if has_labels && self.organs.is_empty() {
                let problem = format!("pair `{}` has labels, and the manifest lists no organs", pair.id);
                return Err((problem, "list the ids and names of the organs"));
            }
        }
        Ok(())
    }
}

fn quoted(value: Option<&str>) -> String {
    value.map_or("missing".into(), |v| format!("`{v}`"))
}

impl Pair {
    /// All file names of the pair, relative to the manifest's folder.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        let truth = self.truth.as_ref();
        [
            Some(&self.fixed.image),
            self.fixed.labels.as_ref(),
            self.fixed.mask.as_ref(),
            Some(&self.moving.image),
            self.moving.labels.as_ref(),
            self.moving.mask.as_ref(),
            self.affine.as_ref(),
            truth.and_then(|t| t.displacement.as_ref()),
            truth.and_then(|t| t.landmarks.as_ref()),
        ]
        .into_iter()
        .flatten()
        .map(String::as_str)
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn manifest() -> Value {
        let pair = |id: &str, patient: &str, split: &str| {
            json!({"id": id, "patient": patient, "split": split,
                   "fixed": {"image": "f.nii.gz", "labels": "fl.nii.gz"}, "moving": {"image": "m.nii.gz"}})
        };
        json!({"format": FORMAT, "name": "test", "organs": [{"id": 1, "name": "prostate"}],
               "pairs": [pair("a-1", "a", "train"), pair("a-2", "a", "train"), pair("b-1", "b", "test")]})
    }

    fn message(change: impl FnOnce(&mut Value)) -> String {
        let mut value = manifest();
        change(&mut value);
        Dataset::parse(&value.to_string(), Path::new("d/dataset.json")).unwrap_err().to_string()
    }

    #[test]
    fn a_good_manifest_is_read() {
        let dataset = Dataset::parse(&manifest().to_string(), Path::new("x")).unwrap();
        assert_eq!(dataset.pairs[2].split, Split::Test);
        assert_eq!(dataset.pairs[0].files().collect::<Vec<_>>(), ["f.nii.gz", "fl.nii.gz", "m.nii.gz"]);
    }

    #[test]
    fn every_contradiction_is_named() {
        type Change = fn(&mut Value);
        let cases: [(Change, &str); 12] = [
            (|v| v["format"] = json!("jrs-dataset/9"), "format is `jrs-dataset/9`"),
            (|v| v["format"] = Value::Null, "format is missing"),
            (|v| v["colour"] = json!(1), "unknown field `colour`"),
            (|v| v["pairs"] = json!([]), "no pairs"),
            (|v| v["pairs"][1]["id"] = json!("A-1"), "`A-1` is used twice"),
            (|v| v["pairs"][1]["id"] = json!("../a"), "`../a` cannot be used"),
            (|v| v["pairs"][1]["split"] = json!("test"), "patient `a` is in split Train (pair `a-1`)"),
            (|v| v["pairs"][1]["split"] = json!("tset"), "unknown variant `tset`"),
            (|v| v["pairs"][1]["fixed"]["image"] = json!("/abs.nii"), "`/abs.nii`"),
            (|v| v["organs"][0]["id"] = json!(0), "`prostate` has id 0"),
            (|v| v["organs"][0]["id"] = json!(300), "300"),
            (|v| v["organs"] = json!([]), "lists no organs"),
        ];
        for (change, expected) in cases {
            let text = message(change);
            assert!(text.contains(expected) && text.contains("dataset.json"), "{expected}: {text}");
        }
        let text = Dataset::parse("{ nonsense", Path::new("dataset.json")).unwrap_err().to_string();
        assert!(text.contains("line 1"), "{text}");
    }

    #[test]
    fn missing_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let text = Dataset::open(folder.path()).unwrap_err().to_string();
        assert!(text.contains("dataset.json") && text.contains("folder of a dataset"), "{text}");
        fs::write(folder.path().join(MANIFEST), manifest().to_string()).unwrap();
        let text = Dataset::open(folder.path()).unwrap_err().to_string();
        assert!(text.contains("pair `a-1` names f.nii.gz"), "{text}");
    }
}
