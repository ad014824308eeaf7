//! What a model file says about itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::network::{GENERATOR, MARGIN};

/// Newest model file format this build reads, and the one it writes.
pub const FORMAT: u32 = 1;
/// Name of the network described by [`GENERATOR`].
pub const NETWORK: &str = "jrs-gan-generator";

/// The model's description; JSON under the key `jrs.manifest` of the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// File format, see [`FORMAT`].
    pub format: u32,
    /// Which network the tensors belong to.
    pub network: NetworkId,
    /// What an image must go through before the network sees it.
    pub preprocessing: Preprocessing,
    /// How the output is to be read.
    pub conventions: Conventions,
    /// Label ids of the organs the model was trained with, and their names. Empty for systems without labels.
    pub organs: BTreeMap<u8, String>,
    /// Where the weights come from.
    pub training: Provenance,
    /// SHA-256 (hex) of every tensor's little-endian bytes.
    pub tensors: BTreeMap<String, String>,
}

/// A network by name and by the digest of its layer table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkId {
    /// For instance `jrs-gan-generator`.
    pub name: String,
    /// SHA-256 (hex) of the layer table; two builds with the same digest run the same network.
    pub table_sha256: String,
}

/// From a CT in HU to the network's input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Preprocessing {
    /// Edge of the isotropic working voxels, mm.
    pub spacing_mm: f64,
    /// Intensities are clipped to this range, HU.
    pub clip_hu: [f64; 2],
    /// Then divided by this.
    pub divide_by: f64,
    /// Voxels of context the network consumes on every side.
    pub margin: usize,
}

impl Default for Preprocessing {
    /// `science.md` section 1: 1 mm, ±1000 HU, divided by 1000.
    fn default() -> Self {
        Self { spacing_mm: 1.0, clip_hu: [-1000.0, 1000.0], divide_by: 1000.0, margin: MARGIN }
    }
}

impl Preprocessing {
    /// An intensity in HU as the network sees it; NaN becomes the lower end of the range (air).
    #[inline]
    pub fn normalise(&self, hu: f32) -> f32 {
        let [low, high] = self.clip_hu.map(|v| v as f32);
        // f32::max returns the other operand for NaN.
        hu.max(low).min(high) / self.divide_by as f32
    }
}

/// Words for people who read the displacement elsewhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Conventions {
    /// Direction of the displacement.
    pub displacement: String,
    /// Its unit.
    pub units: String,
    /// Order of its components and of the tensor's axes.
    pub axes: String,
}

impl Default for Conventions {
    fn default() -> Self {
        Self {
            displacement: "pull-back on the fixed grid: warped(x) = moving(x + u(x))".into(),
            units: "mm".into(),
            axes: "components x, y, z along the working grid's index axes; tensors are [channel][z][y][x]"
                .into(),
        }
    }
}

/// How the weights came to be.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// `Reg-CNN`, `JRS-CNN`, `Reg-GAN`, `JRS-GANa`, `JRS-GANb`, or `untrained`.
    pub system: String,
    /// SHA-256 (hex) of the training configuration.
    pub config_sha256: String,
    /// SHA-256 (hex) of the dataset's manifest.
    pub dataset_sha256: String,
    /// Seed of the run.
    pub seed: u64,
    /// Generator steps done.
    pub steps: u64,
    /// Version of the software that trained.
    pub software: String,
    /// Last values of the losses and of the validation metrics, free form.
    pub losses: serde_json::Value,
}

/// SHA-256 (hex) of [`GENERATOR`], so that a file from a build with another table is recognised.
pub fn layer_table_sha256() -> String {
    let rows = GENERATOR.map(|l| {
        format!("{} {} {} {} {} {} {}\n", l.name, l.c_in, l.c_out, l.kernel, l.stride, l.padding, l.block)
    });
    sha256_hex(rows.concat().as_bytes())
}

/// SHA-256 of `bytes` in lower-case hex.
pub fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_is_clipped() {
        let scale = |hu| Preprocessing::default().normalise(hu);
        assert_eq!([-3024.0, -500.0, 40.0, 1500.0, f32::NAN].map(scale), [-1.0, -0.5, 0.04, 1.0, -1.0]);
    }
}
