//! The model file: everything needed to run a trained network, in one safetensors file.
//!
//! Tensors are named `generator.<layer>.conv.weight` and so on (see [`crate::network::Layer::tensors`]), little-endian
//! f32. The header's metadata holds the [`Manifest`] as one JSON string under `jrs.manifest`, and a few plain keys
//! (`format`, `network`, `system`, `software`) for people who open the file elsewhere. Equal models give equal bytes.

mod manifest;
mod signature;
mod weights;

use std::io::Write;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

pub use manifest::{
    Conventions, FORMAT, Manifest, NETWORK, NetworkId, Preprocessing, Provenance, layer_table_sha256,
    sha256_hex,
};
pub use signature::{PublicKey, SecretKey, Signature};
pub use weights::{BatchNorm, GeneratorWeights, LayerWeights};

use crate::network::MARGIN;
use crate::{Error, Result};

const MANIFEST_KEY: &str = "jrs.manifest";
const SIGNATURE_KEY: &str = "jrs.signature";
const PREFIX: &str = "generator.";
const GET_ANOTHER: &str = "use a model file written by `jrs train` or `jrs export`, or copy it again";

/// A trained network with its description.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// What the file says about itself.
    pub manifest: Manifest,
    /// The weights.
    pub generator: GeneratorWeights,
    /// The vendor's signature of the manifest, if there is one. It becomes invalid when the manifest is changed.
    pub signature: Option<Signature>,
}

impl Model {
    /// A model of the current format. Preprocessing, conventions and organs may be changed in the manifest
    /// afterwards; the hashes are taken here and again whenever the model is written.
    pub fn new(generator: GeneratorWeights, training: Provenance) -> Self {
        let manifest = Manifest {
            format: FORMAT,
            network: NetworkId { name: NETWORK.into(), table_sha256: layer_table_sha256() },
            preprocessing: Preprocessing::default(),
            conventions: Conventions::default(),
            organs: Default::default(),
            training,
            tensors: tensor_hashes(&generator),
        };
        Self { manifest, generator, signature: None }
    }

    /// Reads and verifies a model file.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, otherwise as [`Model::from_bytes`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path)
            .map_err(|e| Error::io(path, e, "give the path of a readable model file (.safetensors)"))?;
        Self::from_bytes(&bytes, path)
    }

    /// Parses and verifies a model file's content. `origin` is only named in messages.
    ///
    /// # Errors
    /// [`Error::File`] if the content is no safetensors file, is truncated, comes from a newer format or another
    /// network, lacks a tensor or has an unknown one, or if a weight is not finite or does not match its hash.
    pub fn from_bytes(bytes: &[u8], origin: impl AsRef<Path>) -> Result<Self> {
        let bad = |problem: String| Error::file(&origin, problem, GET_ANOTHER);
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| bad(container_problem(bytes, &e)))?;
        let tensors = SafeTensors::deserialize(bytes).map_err(|e| bad(container_problem(bytes, &e)))?;
        let text = header.metadata().as_ref().and_then(|m| m.get(MANIFEST_KEY)).ok_or_else(|| {
            bad(format!("is a safetensors file but no jrs model: its metadata has no `{MANIFEST_KEY}`"))
        })?;
        let manifest = parse_manifest(text, origin.as_ref())?;
        let signature = header.metadata().as_ref().and_then(|m| m.get(SIGNATURE_KEY));
        let signature = signature.map(|hex| Signature::from_hex(hex)).transpose().map_err(bad)?;
        let generator = GeneratorWeights::from_tensors(|name, shape| {
            let name = format!("{PREFIX}{name}");
            let tensor = tensors.tensor(&name).map_err(|_| bad(format!("tensor `{name}` is missing")))?;
            if tensor.dtype() != Dtype::F32 || tensor.shape() != shape {
                return Err(bad(format!(
                    "tensor `{name}` is {:?} {:?}, expected F32 {shape:?}",
                    tensor.dtype(),
                    tensor.shape()
                )));
            }
            let words = tensor.data().chunks_exact(4);
            Ok(words.map(|w| f32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect())
        })?;
        let mut unknown: Vec<&str> = tensors.names();
        unknown.retain(|n| !manifest.tensors.contains_key(*n));
        unknown.sort_unstable();
        if let Some(name) = unknown.first() {
            return Err(bad(format!("holds a tensor `{name}` that its manifest does not list")));
        }
        let model = Self { manifest, generator, signature };
        model.verify().map_err(|e| bad(e.to_string()))?;
        Ok(model)
    }

    /// Checks the weights against the manifest: names and hashes of all tensors, lengths, finite values, positive
    /// variances, and a preprocessing that can be carried out.
    ///
    /// # Errors
    /// [`Error::Input`] with the first problem found.
    pub fn verify(&self) -> Result<()> {
        let bad = |problem: String| Err(Error::input(problem, GET_ANOTHER));
        for (name, shape, values) in self.generator.tensors() {
            if values.len() != shape.iter().product::<usize>() {
                return bad(format!(
                    "tensor `{PREFIX}{name}` has {} values for shape {shape:?}",
                    values.len()
                ));
            }
            if let Some(i) = values.iter().position(|v| !v.is_finite()) {
                return bad(format!("tensor `{PREFIX}{name}` holds {} at position {i}", values[i]));
            }
            if name.ends_with("bn.var") && values.iter().any(|v| *v < 0.0) {
                return bad(format!("tensor `{PREFIX}{name}` holds a negative variance"));
            }
        }
        let hashes = tensor_hashes(&self.generator);
        for (name, hash) in &hashes {
            match self.manifest.tensors.get(name) {
                None => return bad(format!("tensor `{name}` is not listed in the manifest")),
                Some(listed) if listed != hash => {
                    return bad(format!(
                        "tensor `{name}` was changed: its SHA-256 is {hash}, the manifest says {listed}"
                    ));
                }
                Some(_) => {}
            }
        }
        if let Some(name) = self.manifest.tensors.keys().find(|name| !hashes.contains_key(*name)) {
            return bad(format!("the manifest lists an unknown tensor `{name}`"));
        }
        let p = &self.manifest.preprocessing;
        let usable = p.spacing_mm.is_finite() && p.spacing_mm > 0.0 && p.divide_by > 0.0;
        if !usable || p.clip_hu[0] >= p.clip_hu[1] || p.margin != MARGIN {
            return bad(format!("the preprocessing {p:?} cannot be carried out"));
        }
        Ok(())
    }

    /// The file's content. The same model always gives the same bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let manifest = Manifest { tensors: tensor_hashes(&self.generator), ..self.manifest.clone() };
        let manifest_json = json(&manifest);
        let tensors = self.generator.tensors();
        let data: Vec<Vec<u8>> = tensors.iter().map(|t| little_endian(t.2)).collect();
        let views = tensors.iter().zip(&data).map(|((name, shape, _), bytes)| {
            let view =
                TensorView::new(Dtype::F32, shape.clone(), bytes).expect("Layer::tensors gives the shapes");
            (format!("{PREFIX}{name}"), view)
        });
        let one_key = [(MANIFEST_KEY.to_string(), manifest_json)].into();
        let bytes = safetensors::serialize(views, Some(one_key)).expect("offsets of views are consistent");
        let mut plain = vec![
            ("format", manifest.format.to_string()),
            ("network", manifest.network.name),
            ("software", manifest.training.software),
            ("system", manifest.training.system),
        ];
        if let Some(signature) = &self.signature {
            plain.insert(1, (SIGNATURE_KEY, signature.to_hex()));
        }
        with_metadata(&bytes, &plain)
    }

    /// Writes the file: first under a temporary name in the same folder, then renamed.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let io = |e| Error::io(path, e, "choose a writable folder with enough free space");
        let name = path.file_name().ok_or_else(|| {
            Error::input(
                format!("`{}` names no file", path.display()),
                "give a file name such as model.safetensors",
            )
        })?;
        let temporary =
            path.with_file_name(format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id()));
        let written = std::fs::File::create(&temporary).and_then(|mut file| {
            file.write_all(&self.to_bytes())?;
            file.sync_all()?;
            std::fs::rename(&temporary, path)
        });
        written.map_err(|e| {
            let _ = std::fs::remove_file(&temporary); // may not exist; the first error is the one to report
            io(e)
        })
    }

    /// Signs the manifest, and with it the hash of every tensor.
    pub fn sign(&mut self, key: &SecretKey) {
        self.manifest.tensors = tensor_hashes(&self.generator);
        self.signature = Some(key.sign(json(&self.manifest).as_bytes()));
    }

    /// Checks that the holder of `key` signed this model.
    ///
    /// # Errors
    /// [`Error::Input`] if there is no signature, or it was made with another key or for another manifest.
    pub fn verify_signature(&self, key: &PublicKey) -> Result<()> {
        let fix = "use the model file as its vendor signed it, and that vendor's public key";
        let signature =
            self.signature.as_ref().ok_or_else(|| Error::input("the model is not signed", fix))?;
        if key.accepts(json(&self.manifest).as_bytes(), signature) {
            return Ok(());
        }
        let problem =
            format!("the model's signature does not belong to its manifest and the key {}", key.to_hex());
        Err(Error::input(problem, fix))
    }

    /// SHA-256 (hex) of the file's content: the model's identity in results and audit trails.
    pub fn sha256(&self) -> String {
        sha256_hex(&self.to_bytes())
    }
}

fn json(manifest: &Manifest) -> String {
    serde_json::to_string(manifest).expect("a manifest has string keys only")
}

fn parse_manifest(text: &str, origin: &Path) -> Result<Manifest> {
    // The format comes first: a newer manifest may not parse at all.
    #[derive(serde::Deserialize)]
    struct Format {
        format: u32,
    }
    let broken = |e| Error::file(origin, format!("its manifest cannot be read: {e}"), GET_ANOTHER);
    let Format { format } = serde_json::from_str(text).map_err(broken)?;
    if format > FORMAT {
        return Err(Error::file(
            origin,
            format!("was written in model format {format}, this build reads up to {FORMAT}"),
            "update jrs",
        ));
    }
    let manifest: Manifest = serde_json::from_str(text).map_err(broken)?;
    let network = &manifest.network;
    if network.name != NETWORK || network.table_sha256 != layer_table_sha256() {
        return Err(Error::file(
            origin,
            format!(
                "holds network `{}` with layer table {}, not this build's",
                network.name, network.table_sha256
            ),
            "use the jrs version that trained it, or train again",
        ));
    }
    Ok(manifest)
}

fn container_problem(bytes: &[u8], error: &safetensors::SafeTensorError) -> String {
    use safetensors::SafeTensorError as E;
    match error {
        E::MetadataIncompleteBuffer | E::HeaderTooSmall | E::InvalidHeaderLength => {
            format!("is truncated or no safetensors file ({} bytes: {error})", bytes.len())
        }
        _ => format!("is no safetensors file ({error})"),
    }
}

fn tensor_hashes(generator: &GeneratorWeights) -> std::collections::BTreeMap<String, String> {
    let tensors = generator.tensors().into_iter();
    tensors.map(|(name, _, values)| (format!("{PREFIX}{name}"), sha256_hex(&little_endian(values)))).collect()
}

fn little_endian(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Adds keys to a safetensors file's metadata. The crate keeps metadata in a hash map, whose order changes from run
/// to run, so it is given one key and the others are added here, in order.
fn with_metadata(file: &[u8], keys: &[(&str, String)]) -> Vec<u8> {
    let length = u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&file[8..8 + length]).expect("just written");
    for (key, value) in keys {
        header["__metadata__"][*key] = value.clone().into();
    }
    let mut header = header.to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' '); // the format's alignment of the data
    [&(header.len() as u64).to_le_bytes()[..], &header, &file[8 + length..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> Model {
        let training = Provenance { system: "untrained".into(), seed: 7, ..Default::default() };
        Model::new(GeneratorWeights::random(7), training)
    }

    fn message(bytes: &[u8]) -> String {
        Model::from_bytes(bytes, "some/model.safetensors").unwrap_err().to_string()
    }

    #[test]
    fn round_trip_is_exact_and_bytes_are_equal() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let mut model = model();
        model.manifest.organs = [(1, "prostate".to_string()), (5, "bladder".to_string())].into();
        model.manifest.training.losses = serde_json::json!({"ncc": 0.1, "dsc": 0.30000000000000004});
        model.save(&path).unwrap();
        assert_eq!(Model::load(&path).unwrap(), model);
        assert_eq!(std::fs::read(&path).unwrap(), model.to_bytes());
        assert_eq!(Model::load(&path).unwrap().to_bytes(), model.to_bytes());
        assert_eq!(sha256_hex(&std::fs::read(&path).unwrap()), model.sha256());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn plain_keys_are_there_and_the_crate_reads_the_header() {
        let bytes = model().to_bytes();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = header.metadata().clone().unwrap();
        assert_eq!(metadata["system"], "untrained");
        assert_eq!(metadata["network"], NETWORK);
    }

    #[test]
    fn damaged_files_are_refused_with_the_reason() {
        let bytes = model().to_bytes();
        assert!(message(&bytes[..bytes.len() - 5]).contains("truncated"));
        assert!(message(&bytes[..4]).contains("truncated"));
        assert!(message(b"").contains("truncated"));
        assert!(message(&[0x1f; 400]).contains("no safetensors file"));
        let mut flipped = bytes.clone();
        *flipped.last_mut().unwrap() ^= 1;
        assert!(message(&flipped).contains("was changed"), "{}", message(&flipped));
        assert!(message(&flipped).contains("some/model.safetensors"));
    }

    #[test]
    fn weights_that_are_not_numbers_are_refused() {
        let mut model = model();
        model.generator.layers[3].weight[5] = f32::NAN;
        let said = message(&model.to_bytes());
        assert!(said.contains("generator.x3.conv.weight") && said.contains("NaN at position 5"), "{said}");
    }

    #[test]
    fn missing_and_unknown_tensors_are_named() {
        let renamed = |from: &str, to: &str| {
            let bytes = model().to_bytes();
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            // The same number of bytes, so that the container stays intact; the manifest spells it escaped.
            let header = String::from_utf8(bytes[8..8 + length].to_vec()).unwrap();
            let header = header.replacen(&format!("\"{from}\":{{"), &format!("\"{to}\":{{"), 1);
            [&bytes[..8], header.as_bytes(), &bytes[8 + length..]].concat()
        };
        let said = message(&renamed("generator.x5.conv.bias", "generator.q5.conv.bias"));
        assert!(said.contains("`generator.x5.conv.bias` is missing"), "{said}");
    }

    #[test]
    fn other_formats_and_networks_are_refused() {
        let mut newer = model();
        newer.manifest.format = FORMAT + 1;
        assert!(message(&newer.to_bytes()).contains("model format 2"));
        assert!(message(&newer.to_bytes()).contains("update jrs"));
        let mut other = model();
        other.manifest.network.table_sha256 = "0".repeat(64);
        assert!(message(&other.to_bytes()).contains("layer table"));
        let plain = safetensors::serialize(Vec::<(String, TensorView)>::new(), None).unwrap();
        assert!(message(&plain).contains("no jrs model"));
    }

    #[test]
    fn a_missing_file_is_named() {
        let said = Model::load("no/such/file.safetensors").unwrap_err().to_string();
        assert!(said.contains("no/such/file.safetensors"), "{said}");
    }
}
