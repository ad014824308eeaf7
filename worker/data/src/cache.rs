//! The prepared cache: one safetensors file per pair on the working grid, and an index written last.
//!
//! A folder holds `<pair>.safetensors` (tensors `fixed`, `moving` int16 HU; `fixed_labels`, `moving_labels`,
//! `mask` uint8; all of shape `[z, y, x]`, the moving ones already carried to the fixed grid by the affine),
//! `<pair>.pair.json` (the pair's [`Entry`], by which an interrupted preparation goes on) and `prepared.json`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libjrs::model::Preprocessing;
use libjrs::{Affine, Error, Grid, Result};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::dataset::{Organ, Split};
use crate::source::{Folder, Nearby, Source, Verified};

/// File name of the index inside a cache folder.
pub const INDEX: &str = "prepared.json";
/// Value of the index's `format`.
pub const FORMAT: &str = "jrs-prepared/1";

/// An opened cache.
#[derive(Debug, Clone)]
pub struct Prepared {
    files: Arc<dyn Verified>,
    /// Name of the dataset, for tables.
    pub name: String,
    /// Spacing of the isotropic working grids, mm.
    pub spacing_mm: f64,
    /// Lowest and highest HU kept.
    pub clip: [i16; 2],
    /// Label ids and names, in the order of tables.
    pub organs: Vec<Organ>,
    /// The pairs, in the order of the manifest.
    pub pairs: Vec<Entry>,
    /// SHA-256 (hex) over options, organs and the hash of every pair: what a model says it was trained on.
    pub digest: String,
}

/// What the index says about one pair.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Unique name; the file is `<id>.safetensors`.
    pub id: String,
    /// Whose scans these are.
    pub patient: String,
    /// Where the pair is used.
    pub split: Split,
    /// Voxels of the working grid along x, y, z.
    pub size: [usize; 3],
    /// Length of the pair's file.
    pub bytes: u64,
    /// SHA-256 (hex) of the pair's file.
    pub sha256: String,
    /// SHA-256 (hex) over the options and the content of the source files the pair was made from.
    pub source_sha256: String,
    /// How similar fixed and moving were before and after alignment (the measure of [`libjrs::align`]); none
    /// if the affine was given or none was wanted.
    pub similarity: Option<[f64; 2]>,
}

/// One pair on its working grid; `data[x + nx * (y + ny * z)]` in every array.
#[derive(Debug, Clone, PartialEq)]
pub struct PreparedPair {
    /// Unique name.
    pub id: String,
    /// Whose scans these are.
    pub patient: String,
    /// Where the pair is used.
    pub split: Split,
    /// The isotropic working grid.
    pub grid: Grid,
    /// Fixed image, clipped HU.
    pub fixed: Vec<i16>,
    /// Moving image carried over by `affine`, clipped HU.
    pub moving: Vec<i16>,
    /// Organs of the fixed image (0 everywhere if unknown).
    pub fixed_labels: Vec<u8>,
    /// Organs of the moving image, carried over by `affine` (0 everywhere if unknown).
    pub moving_labels: Vec<u8>,
    /// Torso of the fixed image, 0 or 1.
    pub mask: Vec<u8>,
    /// Fixed points to moving points; already applied to `moving` and `moving_labels`.
    pub affine: Affine,
}

/// The index as stored.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    format: String,
    name: String,
    spacing_mm: f64,
    clip: [i16; 2],
    organs: Vec<Organ>,
    pairs: Vec<Entry>,
    digest: String,
}

/// What a pair's file says of itself, JSON in the one metadata key [`PAIR_KEY`].
#[derive(Serialize, Deserialize)]
struct Header {
    id: String,
    patient: String,
    split: Split,
    grid: Grid,
    affine: Affine,
}

/// One key only: the order of several would be random, and equal pairs must be equal bytes.
const PAIR_KEY: &str = "pair";
const AGAIN: &str = "run `jrs prepare` again: it makes anew what is missing or damaged";

impl Prepared {
    /// What a model trained on this cache does to a CT before it looks at it: the window is scaled so that its
    /// further end becomes ±1 (the paper's ±1000 HU are divided by 1000).
    pub fn preprocessing(&self) -> Preprocessing {
        let [low, high] = self.clip.map(f64::from);
        Preprocessing {
            spacing_mm: self.spacing_mm,
            clip_hu: [low, high],
            divide_by: low.abs().max(high.abs()),
            ..Preprocessing::default()
        }
    }

    /// Opens a cache folder: reads the index and checks that every pair's file is there with its length.
    ///
    /// # Errors
    /// If the preparation did not finish, the index is of another format or damaged, or a file is missing.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        Self::index(Arc::new(Folder(folder.as_ref().to_owned())))
    }

    /// Opens a cache in `remote`, of which copies are kept nearby.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_remote(remote: Nearby<impl Source + 'static>) -> Result<Self> {
        Self::index(Arc::new(remote))
    }

    fn index(files: Arc<dyn Verified>) -> Result<Self> {
        let source = files.source();
        let path = source.place(INDEX);
        let text = source.read(INDEX)?;
        let json_error = |e: serde_json::Error| Error::file(&path, format!("damaged index: {e}"), AGAIN);
        let value: serde_json::Value = serde_json::from_slice(&text).map_err(json_error)?;
        let format = value.get("format").and_then(|f| f.as_str()).unwrap_or("missing");
        if format != FORMAT {
            let problem = format!("format is `{format}`, and this program reads `{FORMAT}`");
            return Err(Error::file(&path, problem, "prepare the dataset with this version of jrs"));
        }
        let index: Index = serde_json::from_value(value).map_err(json_error)?;
        if index.digest != index.computed_digest() {
            return Err(Error::file(&path, "the index does not match its own digest", AGAIN));
        }
        for entry in &index.pairs {
            let name = pair_name(&entry.id);
            let bytes = source.length(&name)?;
            if bytes != entry.bytes {
                let problem = format!("{bytes} bytes long, and the index says {}", entry.bytes);
                return Err(Error::file(source.place(&name), problem, AGAIN));
            }
        }
        let Index { name, spacing_mm, clip, organs, pairs, digest, .. } = index;
        Ok(Self { files, name, spacing_mm, clip, organs, pairs, digest })
    }

    /// Loads pair number `i` of [`Prepared::pairs`] and checks its hash.
    ///
    /// # Errors
    /// If the file cannot be read, or its content is not what was prepared.
    ///
    /// # Panics
    /// If `i` is not the number of a pair: a bug in the caller.
    pub fn load(&self, i: usize) -> Result<PreparedPair> {
        let entry = &self.pairs[i];
        let name = pair_name(&entry.id);
        let bytes = self.files.fetch(&name, &entry.sha256)?;
        let path = self.files.source().place(&name);
        let hash = sha256_hex(&bytes);
        if hash != entry.sha256 {
            let problem = format!("SHA-256 is {hash}, and the index says {}", entry.sha256);
            return Err(Error::file(&path, problem, AGAIN));
        }
        decode(&bytes).map_err(|problem| Error::file(&path, problem, AGAIN))
    }
}

impl PreparedPair {
    /// The content of the pair's file.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let [nx, ny, nz] = self.grid.size;
        let shape = vec![nz, ny, nx];
        let view = |dtype, data| {
            TensorView::new(dtype, shape.clone(), data)
                .expect("every array of a pair has one value per voxel")
        };
        let tensors = [
            ("fixed", view(Dtype::I16, bytemuck::cast_slice(&self.fixed))),
            ("moving", view(Dtype::I16, bytemuck::cast_slice(&self.moving))),
            ("fixed_labels", view(Dtype::U8, &self.fixed_labels)),
            ("moving_labels", view(Dtype::U8, &self.moving_labels)),
            ("mask", view(Dtype::U8, &self.mask)),
        ];
        let header = Header {
            id: self.id.clone(),
            patient: self.patient.clone(),
            split: self.split,
            grid: self.grid.clone(),
            affine: self.affine,
        };
        let header = serde_json::to_string(&header).expect("plain structs of numbers and strings serialise");
        safetensors::serialize(tensors, Some([(PAIR_KEY.to_owned(), header)].into()))
            .expect("five distinct tensor names with checked shapes serialise")
    }
}

/// Writes the index: the last step of a preparation.
pub(crate) fn write_index(
    folder: &Path,
    name: &str,
    spacing_mm: f64,
    clip: [i16; 2],
    organs: &[Organ],
    pairs: Vec<Entry>,
) -> Result<()> {
    let mut index = Index {
        format: FORMAT.into(),
        name: name.into(),
        spacing_mm,
        clip,
        organs: organs.to_vec(),
        pairs,
        digest: String::new(),
    };
    index.digest = index.computed_digest();
    write_whole(&folder.join(INDEX), &json_bytes(&index))
}

/// Writes a pair's file, then its entry.
pub(crate) fn write_pair(
    folder: &Path,
    pair: &PreparedPair,
    source_sha256: String,
    similarity: Option<[f64; 2]>,
) -> Result<Entry> {
    let bytes = pair.to_bytes();
    let entry = Entry {
        id: pair.id.clone(),
        patient: pair.patient.clone(),
        split: pair.split,
        size: pair.grid.size,
        bytes: bytes.len() as u64,
        sha256: sha256_hex(&bytes),
        source_sha256,
        similarity,
    };
    write_whole(&pair_path(folder, &pair.id), &bytes)?;
    write_whole(&entry_path(folder, &pair.id), &json_bytes(&entry))?;
    Ok(entry)
}

/// The entry of a pair that an earlier run finished from the same sources, if its file is still what it was.
pub(crate) fn finished(folder: &Path, id: &str, source_sha256: &str) -> Option<Entry> {
    let entry: Entry = serde_json::from_slice(&fs::read(entry_path(folder, id)).ok()?).ok()?;
    if entry.id != id || entry.source_sha256 != source_sha256 {
        return None;
    }
    let bytes = fs::read(pair_path(folder, id)).ok()?;
    (sha256_hex(&bytes) == entry.sha256).then_some(entry)
}

/// SHA-256 in lower-case hex.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex(Sha256::digest(bytes).as_slice())
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

impl Index {
    /// Over everything but the digest itself.
    fn computed_digest(&self) -> String {
        let content = (&self.format, &self.name, self.spacing_mm, self.clip, &self.organs, &self.pairs);
        sha256_hex(&json_bytes(&content))
    }
}

fn json_bytes(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec_pretty(value).expect("plain structs of numbers and strings serialise")
}

fn pair_path(folder: &Path, id: &str) -> PathBuf {
    folder.join(pair_name(id))
}

fn pair_name(id: &str) -> String {
    format!("{id}.safetensors")
}

fn entry_path(folder: &Path, id: &str) -> PathBuf {
    folder.join(format!("{id}.pair.json"))
}

/// Writes to a temporary name in the same folder and renames, so that no reader ever sees half a file.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_added_extension(format!("{}.tmp", std::process::id()));
    let attempt = || {
        fs::write(&temporary, bytes)?;
        fs::File::open(&temporary)?.sync_all()?;
        fs::rename(&temporary, path)
    };
    attempt().map_err(|e| {
        let _ = fs::remove_file(&temporary); // the first error is the one to report
        Error::io(path, e, "check that the folder can be written and that the disk is not full")
    })
}

/// The pair in a file's bytes; the problem otherwise.
fn decode(bytes: &[u8]) -> Result<PreparedPair, String> {
    let damaged = |e: safetensors::SafeTensorError| format!("not a prepared pair: {e}");
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(damaged)?;
    let header = metadata.metadata().as_ref().and_then(|m| m.get(PAIR_KEY)).ok_or("no pair header")?;
    let header: Header = serde_json::from_str(header).map_err(|e| format!("damaged pair header: {e}"))?;
    let tensors = SafeTensors::deserialize(bytes).map_err(damaged)?;
    let [nx, ny, nz] = header.grid.size;
    let tensor = |name: &str, dtype: Dtype| {
        let view = tensors.tensor(name).map_err(damaged)?;
        if view.dtype() != dtype || view.shape() != [nz, ny, nx] {
            return Err(format!("tensor {name} is {:?} {:?}", view.dtype(), view.shape()));
        }
        Ok(view.data())
    };
    let i16s = |name| {
        let data = tensor(name, Dtype::I16)?;
        Ok::<_, String>(data.chunks_exact(2).map(|b| i16::from_le_bytes([b[0], b[1]])).collect())
    };
    let u8s = |name| tensor(name, Dtype::U8).map(<[u8]>::to_vec);
    Ok(PreparedPair {
        fixed: i16s("fixed")?,
        moving: i16s("moving")?,
        fixed_labels: u8s("fixed_labels")?,
        moving_labels: u8s("moving_labels")?,
        mask: u8s("mask")?,
        id: header.id,
        patient: header.patient,
        split: header.split,
        grid: header.grid,
        affine: header.affine,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(id: &str) -> PreparedPair {
        let grid = Grid::axis_aligned([4, 3, 2], [1.0; 3], [-1.0, 2.5, 3.0]);
        let n = grid.len();
        PreparedPair {
            id: id.into(),
            patient: "p".into(),
            split: Split::Train,
            grid,
            fixed: (0..n as i16).map(|v| v * 40 - 500).collect(),
            moving: (0..n as i16).map(|v| 300 - v).collect(),
            fixed_labels: (0..n as u8).map(|v| v % 6).collect(),
            moving_labels: vec![0; n],
            mask: vec![1; n],
            affine: Affine { translation: [0.1, -2.0, 1.0 / 3.0], ..Affine::IDENTITY },
        }
    }

    fn cache(folder: &Path) -> Prepared {
        let entries = ["a", "b"].map(|id| write_pair(folder, &pair(id), "0".into(), None).unwrap());
        let organs = [Organ { id: 1, name: "prostate".into() }];
        write_index(folder, "test", 1.0, [-1000, 1000], &organs, entries.to_vec()).unwrap();
        Prepared::open(folder).unwrap()
    }

    #[test]
    fn what_was_written_is_read_and_equal_pairs_are_equal_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let prepared = cache(folder.path());
        assert_eq!(prepared.load(1).unwrap(), pair("b"));
        assert_eq!(pair("b").to_bytes(), pair("b").to_bytes());
        let elsewhere = tempfile::tempdir().unwrap();
        assert_eq!(cache(elsewhere.path()).digest, prepared.digest);
        assert!(!fs::read_dir(folder.path()).unwrap().any(|f| f.unwrap().path().ends_with("tmp")));
    }

    #[test]
    fn damage_is_found_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let prepared = cache(folder.path());
        let file = folder.path().join("a.safetensors");
        let mut bytes = fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&file, &bytes).unwrap();
        let text = prepared.load(0).unwrap_err().to_string();
        assert!(text.contains("a.safetensors") && text.contains("SHA-256"), "{text}");
        assert!(finished(folder.path(), "a", "0").is_none() && finished(folder.path(), "b", "0").is_some());
        assert!(finished(folder.path(), "b", "1").is_none());

        fs::write(&file, &bytes[..bytes.len() - 3]).unwrap();
        let text = Prepared::open(folder.path()).unwrap_err().to_string();
        assert!(text.contains("a.safetensors") && text.contains("bytes long"), "{text}");

        let index = folder.path().join(INDEX);
        let good = fs::read_to_string(&index).unwrap();
        for (bad, expected) in [
            (good.replace("\"train\"", "\"test\""), "digest"),
            (good.replace("jrs-prepared/1", "jrs-prepared/7"), "`jrs-prepared/7`"),
            (good[..good.len() / 2].to_owned(), "damaged index"),
        ] {
            fs::write(&index, bad).unwrap();
            let text = Prepared::open(folder.path()).unwrap_err().to_string();
            assert!(text.contains(expected) && text.contains(INDEX), "{text}");
        }
        fs::remove_file(&index).unwrap();
        assert!(Prepared::open(folder.path()).unwrap_err().to_string().contains("jrs prepare"));
    }

    #[test]
    fn foreign_files_are_refused() {
        assert!(decode(b"short").unwrap_err().contains("not a prepared pair"));
        let view = TensorView::new(Dtype::U8, vec![1], &[0]).unwrap();
        let bytes = safetensors::serialize([("x", view)], None).unwrap();
        assert!(decode(&bytes).unwrap_err().contains("no pair header"));
    }
}
