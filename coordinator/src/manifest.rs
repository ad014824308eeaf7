//! The manifest of a checkpoint: what it consists of and where training stood. Its existence is the commit.

use serde::{Deserialize, Serialize};

use crate::layout;
use crate::objects::sha256;

const FORMAT: u32 = 1;

/// `ckpt/step-<n>/MANIFEST.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: u32,
    /// Optimiser steps done when this was saved.
    pub step: u64,
    /// The generation of workers that saved it; 1 on a single machine.
    pub generation: u64,
    /// Random id of the save that wrote it, and the folder of its objects.
    pub attempt: String,
    /// Where training continues: whatever the caller needs to find the next sample.
    pub cursor: serde_json::Value,
    /// The stored objects, in the order in which they were given.
    pub objects: Vec<StoredObject>,
    /// SHA-256 of this manifest with this field empty, so that a flipped digit in the cursor is noticed too.
    sha256: String,
}

/// One object of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredObject {
    /// The caller's name for it, as in `state.safetensors`.
    pub name: String,
    /// Where it is, relative to the run.
    pub key: String,
    /// Its length in bytes.
    pub size: u64,
    /// SHA-256 of its content in lower-case hexadecimal.
    pub sha256: String,
}

impl Manifest {
    pub(crate) fn new(
        step: u64,
        generation: u64,
        attempt: String,
        cursor: serde_json::Value,
        objects: Vec<StoredObject>,
    ) -> Self {
        let sha256 = String::new();
        let mut manifest = Self { format: FORMAT, step, generation, attempt, cursor, objects, sha256 };
        manifest.sha256 = manifest.digest();
        manifest
    }

    /// The bytes as stored: indented JSON, so that a person can read it.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("a manifest has string keys only");
        bytes.push(b'\n');
        bytes
    }

    /// Reads the manifest stored for `step`; the error says what is wrong with it.
    pub(crate) fn parse(bytes: &[u8], step: u64) -> Result<Self, String> {
        let manifest: Self = serde_json::from_slice(bytes)
            .map_err(|source| format!("its manifest cannot be read: {source}"))?;
        if manifest.format != FORMAT {
            return Err(format!(
                "its manifest has format {}, this program reads format {FORMAT}",
                manifest.format
            ));
        }
        if manifest.sha256 != manifest.digest() {
            return Err("its manifest does not match its own SHA-256".to_owned());
        }
        if manifest.step != step {
            return Err(format!("its manifest is that of step {}", manifest.step));
        }
        let strayed =
            |object: &&StoredObject| object.key != layout::object(step, &manifest.attempt, &object.name);
        if let Some(object) = manifest.objects.iter().find(strayed) {
            return Err(format!("its manifest places {} at {}", object.name, object.key));
        }
        Ok(manifest)
    }

    /// Whether the other one describes the same state, whoever saved it.
    pub(crate) fn same_content(&self, other: &Self) -> bool {
        let content = |manifest: &Self| -> Vec<(String, String)> {
            manifest.objects.iter().map(|object| (object.name.clone(), object.sha256.clone())).collect()
        };
        self.step == other.step && self.cursor == other.cursor && content(self) == content(other)
    }

    fn digest(&self) -> String {
        let unsigned = Self { sha256: String::new(), ..self.clone() };
        sha256(&unsigned.to_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Manifest {
        let key = layout::object(7, "a1", "state");
        let object = StoredObject { name: "state".into(), key, size: 3, sha256: sha256(b"abc") };
        let cursor = serde_json::json!({"sample": 7001, "best": 0.1, "phase": "critic"});
        Manifest::new(7, 2, "a1".into(), cursor, vec![object])
    }

    #[test]
    fn it_reads_what_it_wrote() {
        assert_eq!(Manifest::parse(&example().to_bytes(), 7).unwrap(), example());
    }

    /// Known answer: FIPS 180-2, appendix B.1.
    #[test]
    fn objects_are_hashed_with_sha_256() {
        assert_eq!(
            example().objects[0].sha256,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    /// The layout of the JSON may change under a flip (a space becomes a tab); the meaning may not.
    #[test]
    fn no_flipped_bit_changes_what_it_says() {
        let bytes = example().to_bytes();
        for index in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[index] ^= 1 << bit;
                if let Ok(manifest) = Manifest::parse(&flipped, 7) {
                    assert_eq!(manifest, example(), "byte {index} bit {bit}");
                }
            }
        }
    }

    #[test]
    fn a_manifest_in_the_wrong_place_is_refused() {
        assert!(Manifest::parse(&example().to_bytes(), 8).unwrap_err().contains("step 7"));
    }
}
