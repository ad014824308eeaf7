//! What exactly ran: the record that goes into an audit trail beside a result. It holds no image content and no
//! names; inputs are identified by their hash.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::geometry::{Affine, Grid};
use crate::model::Model;
use crate::register::Registration;
use crate::volume::Volume;

/// The record of one registration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// `libjrs` and its version.
    pub software: String,
    /// The trained model; `None` for refinement alone.
    pub model: Option<ModelRecord>,
    /// What computed: device, precision, threads.
    pub device: Device,
    /// The caller's options.
    pub options: BTreeMap<String, serde_json::Value>,
    /// By role: `fixed`, `moving`, `labels`, ...
    pub inputs: BTreeMap<String, InputRecord>,
    /// Fixed to moving points before the deformation.
    pub prealignment: Affine,
    /// Stage and seconds, in order.
    pub timings_s: Vec<(String, f64)>,
    /// What a user should know before using the result.
    pub warnings: Vec<String>,
}

/// Which model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// SHA-256 (hex) of the model file.
    pub sha256: String,
    /// The trained system, for instance `JRS-GANa`.
    pub system: String,
    /// Training steps.
    pub steps: u64,
    /// True if it carries a signature (whether that was checked is the caller's business).
    pub is_signed: bool,
}

/// What computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// For instance `CPU`.
    pub name: String,
    /// For instance `f32`.
    pub precision: String,
    /// Threads.
    pub threads: usize,
    /// True if the same input gives the same bytes on the same build and kind of CPU.
    pub is_deterministic: bool,
}

/// One input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InputRecord {
    /// Where its voxels are.
    pub grid: Grid,
    /// SHA-256 (hex) of size, spacing, origin, direction (f64) and voxels, all little-endian.
    pub sha256: String,
}

impl ModelRecord {
    /// The record of `model`.
    pub fn new(model: &Model) -> Self {
        Self {
            sha256: model.sha256(),
            system: model.manifest.training.system.clone(),
            steps: model.manifest.training.steps,
            is_signed: model.signature.is_some(),
        }
    }
}

impl InputRecord {
    /// The record of a volume.
    pub fn new<T: bytemuck::NoUninit>(volume: &Volume<T>) -> Self {
        let grid = &volume.grid;
        let mut hash = Sha256::new();
        grid.size.iter().for_each(|&n| hash.update((n as u64).to_le_bytes()));
        let numbers = grid.spacing.iter().chain(&grid.origin).chain(grid.direction.as_flattened());
        numbers.for_each(|v| hash.update(v.to_le_bytes()));
        hash.update(bytemuck::cast_slice(&volume.data));
        let sha256 = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
        Self { grid: grid.clone(), sha256 }
    }
}

impl Record {
    /// The record of `registration`; inputs and options are added by the caller.
    pub fn new(registration: &Registration, model: Option<&Model>, device: Device) -> Self {
        let seconds = |(stage, seconds): &(&'static str, f64)| ((*stage).to_owned(), *seconds);
        Self {
            software: concat!("libjrs ", env!("CARGO_PKG_VERSION")).into(),
            model: model.map(ModelRecord::new),
            device,
            options: BTreeMap::new(),
            inputs: BTreeMap::new(),
            prealignment: registration.affine,
            timings_s: registration.timings.iter().map(seconds).collect(),
            warnings: registration.warnings.clone(),
        }
    }

    /// As indented JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("maps have text as keys")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_that_of_geometry_and_voxels() {
        let grid = Grid::axis_aligned([2, 1, 1], [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]);
        let volume = Volume::new(grid, vec![1.0f32, -2.0]);
        // python3 -c "import hashlib, struct; print(hashlib.sha256(struct.pack('<3Q15d2f', 2,1,1, 1,2,3, 4,5,6,
        //     1,0,0, 0,1,0, 0,0,1, 1,-2)).hexdigest())"
        let expected = "796336a92151307099683b61105bf84ee88ed5b0ef6fc4b445f3bff8589ecaa5";
        assert_eq!(InputRecord::new(&volume).sha256, expected);
    }
}
