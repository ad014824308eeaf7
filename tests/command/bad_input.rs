//! Every bad input gives one paragraph that names the file and the fix, exit code 2, and nothing half-written.

use crate::support::{bytes, files_below, folder, jrs, said, text, tiny};
use flate2::read::GzDecoder;
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Bytes of a NIfTI-1 header before the voxels, as our files have them.
const HEADER: usize = 352;

/// An uncompressed NIfTI file that tests damage.
struct Nifti(Vec<u8>);

impl Nifti {
    fn read(gz: &Path) -> Self {
        let mut bytes = Vec::new();
        GzDecoder::new(std::fs::File::open(gz).unwrap()).read_to_end(&mut bytes).unwrap();
        Self(bytes)
    }

    fn ct() -> Self {
        Self::read(&tiny().scan("s1", "ct.nii.gz"))
    }

    /// dim\[i\] of the header.
    fn dim(&self, i: usize) -> usize {
        usize::from(u16::from_le_bytes([self.0[40 + 2 * i], self.0[41 + 2 * i]]))
    }

    fn set_dim(mut self, i: usize, value: usize) -> Self {
        self.0[40 + 2 * i..42 + 2 * i].copy_from_slice(&(value as u16).to_le_bytes());
        self
    }

    fn with(mut self, offset: usize, bytes: &[u8]) -> Self {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// The same voxels as float32, with one NaN.
    fn with_nan(self) -> Self {
        let mut bytes = self.0[..HEADER].to_vec();
        bytes[70..72].copy_from_slice(&16i16.to_le_bytes()); // datatype: float32
        bytes[72..74].copy_from_slice(&32i16.to_le_bytes()); // bitpix
        let voxels = self.0[HEADER..].as_chunks::<2>().0.iter();
        let mut values: Vec<f32> = voxels.map(|b| i16::from_le_bytes(*b).into()).collect();
        values[12_345] = f32::NAN;
        bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        Self(bytes)
    }

    fn save(&self, path: &Path) -> PathBuf {
        std::fs::write(path, &self.0).unwrap();
        path.to_owned()
    }
}

/// Runs `arguments`, which must be refused: exit code 2 and one paragraph with all of `words`.
fn refused(arguments: &[impl Into<OsString> + Clone], words: &[&str]) {
    let arguments: Vec<OsString> = arguments.iter().cloned().map(Into::into).collect();
    let output = jrs().args(&arguments).args(["--log", "error"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", said(&output));
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(message.trim().lines().count(), 1, "not one paragraph: {message}");
    for word in words {
        assert!(message.contains(word), "{arguments:?}: `{word}` is not in: {message}");
    }
    assert!(message.ends_with(".\n") && !message.contains("..\n"), "not a sentence: {message}");
    assert!(!message.contains("panicked"), "{message}");
}

/// `jrs register` and `jrs prepare` both refuse `bad` as the fixed image, and write nothing.
fn refused_as_fixed_image(name: &str, bad: &Path, words: &[&str]) {
    let tiny = tiny();
    let root = folder(&format!("bad-{name}"));
    let file = bad.file_name().unwrap().to_str().unwrap();
    let words: Vec<&str> = words.iter().copied().chain([file]).collect();

    let out = root.join("registered");
    refused(
        &[
            OsString::from("register"),
            "--model".into(),
            tiny.model.clone().into(),
            "--fixed".into(),
            bad.into(),
            "--moving".into(),
            tiny.scan("s0", "ct.nii.gz").into(),
            "--out".into(),
            out.clone().into(),
        ],
        &words,
    );
    assert_eq!(files_below(&out), Vec::<PathBuf>::new());

    let data = dataset(&root, |pair| pair["fixed"]["image"] = text(bad).into());
    prepare_refused(&data, &root, &words);
}

/// A dataset.json in `root` with the first tiny pair, changed by `edit`.
fn dataset(root: &Path, edit: impl Fn(&mut serde_json::Value)) -> PathBuf {
    let tiny = tiny();
    let manifest = bytes(&tiny.cohort.join("dataset.json"));
    let mut dataset: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let mut pair = dataset["pairs"][0].clone();
    pair.as_object_mut().unwrap().remove("truth");
    edit(&mut pair);
    // File names are relative to the manifest's folder; edits give whole paths.
    for scan in ["fixed", "moving"] {
        for file in pair[scan].as_object_mut().unwrap().values_mut() {
            let path = tiny.cohort.join(file.as_str().unwrap());
            let below = path.strip_prefix(tiny.cohort.ancestors().nth(2).unwrap()).unwrap();
            *file = text(&Path::new("../..").join(below)).into();
        }
    }
    dataset["pairs"] = serde_json::json!([pair]);
    let data = root.join("data");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(data.join("dataset.json"), dataset.to_string()).unwrap();
    data
}

fn prepare_refused(data: &Path, root: &Path, words: &[&str]) {
    let out = root.join("cache");
    refused(&["prepare".as_ref(), "--data".as_ref(), data, "--out".as_ref(), out.as_path()], words);
    assert_eq!(files_below(&out), Vec::<PathBuf>::new(), "prepare left files");
}

#[test]
fn truncated_gzip() {
    let root = folder("truncated");
    let whole = bytes(&tiny().scan("s1", "ct.nii.gz"));
    let bad = root.join("truncated.nii.gz");
    std::fs::write(&bad, &whole[..whole.len() / 2]).unwrap();
    refused_as_fixed_image("gzip", &bad, &["again"]);
}

#[test]
fn damaged_headers_and_voxels() {
    let root = folder("damaged");
    let [nx, ny, nz] = [1, 2, 3].map(|i| Nifti::ct().dim(i));
    let volume = nx * ny * nz * 2;
    let mut four = Nifti::ct().set_dim(0, 4).set_dim(4, 2);
    four.0.extend_from_within(HEADER..HEADER + volume);
    let mut slice = Nifti::ct().set_dim(3, 1);
    slice.0.truncate(HEADER + nx * ny * 2);
    let mut short = Nifti::ct();
    short.0.truncate(HEADER + volume / 3);
    let cases = [
        ("magic", Nifti::ct().with(344, b"abcd"), "NIfTI"),
        ("nan", Nifti::ct().with_nan(), "NaN"),
        ("slice", slice, "slice"),
        ("spacing", Nifti::ct().with(80, &(-2.0f32).to_le_bytes()), "-2"),
        ("4d", four, "4"),
        ("short", short, "bytes"),
    ];
    for (name, nifti, word) in cases {
        let bad = nifti.save(&root.join(format!("{name}.nii")));
        refused_as_fixed_image(name, &bad, &[word]);
    }
}

#[test]
fn missing_file() {
    refused_as_fixed_image("missing", &folder("missing").join("scan.nii.gz"), &[]);
}

#[test]
fn labels_and_masks_that_do_not_fit() {
    let tiny = tiny();
    let root = folder("labels");
    let nz = Nifti::ct().dim(3);
    let per_slice = Nifti::ct().dim(1) * Nifti::ct().dim(2);

    let mut labels = Nifti::read(&tiny.scan("s0", "labels.nii.gz")).set_dim(3, nz - 1);
    labels.0.truncate(HEADER + per_slice * (nz - 1));
    let small = labels.save(&root.join("small.nii"));
    let out = root.join("registered");
    let register = |labels: &Path| -> Vec<OsString> {
        let model = tiny.model.clone().into_os_string();
        let fixed = tiny.scan("s1", "ct.nii.gz").into_os_string();
        let moving = tiny.scan("s0", "ct.nii.gz").into_os_string();
        let named = [("--model", model), ("--fixed", fixed), ("--moving", moving)];
        let rest = [("--labels", labels.as_os_str().to_owned()), ("--out", out.clone().into_os_string())];
        let options = named.into_iter().chain(rest).flat_map(|(name, value)| [name.into(), value]);
        [OsString::from("register")].into_iter().chain(options).collect()
    };
    refused(&register(&small), &["small.nii", "grid", "Resample"]);
    assert_eq!(files_below(&out), Vec::<PathBuf>::new());
    let data = dataset(&root, |pair| pair["moving"]["labels"] = text(&small).into());
    prepare_refused(&data, &root, &["small.nii", "grid"]);

    // The same size elsewhere in space.
    let shifted = Nifti::read(&tiny.scan("s0", "labels.nii.gz")).with(292, &123.0f32.to_le_bytes());
    let shifted = shifted.with(268, &123.0f32.to_le_bytes()).save(&root.join("shifted.nii"));
    refused(&register(&shifted), &["shifted.nii", "grid"]);

    let mut empty = Nifti::read(&tiny.scan("s1", "torso.nii.gz"));
    empty.0[HEADER..].fill(0);
    let empty = empty.save(&root.join("empty.nii"));
    let data = dataset(&root, |pair| pair["fixed"]["mask"] = text(&empty).into());
    prepare_refused(&data, &root, &["empty.nii", "empty"]);
}

#[test]
fn configuration_and_outputs() {
    let tiny = tiny();
    let root = folder("configuration");
    let config = root.join("run.toml");
    std::fs::write(&config, "system = \"JRS-GANa\"\nlearning_rat = 1\n").unwrap();
    let out = root.join("runs");
    let train = |config: &Path, out: &Path| {
        ["train", "--config", text(config), "--data", text(&tiny.cache), "--out", text(out)]
            .map(OsString::from)
    };
    refused(&train(&config, &out), &["run.toml", "learning_rat"]);
    assert_eq!(files_below(&out), Vec::<PathBuf>::new());
    refused(&["plan", "--config", text(&config)], &["run.toml", "learning_rat"]);

    // Below a file nobody can make a folder, whoever the tests run as.
    let unwritable = config.join("out");
    let good = root.join("good.toml");
    std::fs::write(&good, "system = \"JRS-CNN\"\niterations = 1\nsampling = { patch = 44 }\n").unwrap();
    refused(&train(&good, &unwritable), &["run.toml"]);
    let (moving, fixed) = (tiny.scan("s0", "ct.nii.gz"), tiny.scan("s1", "ct.nii.gz"));
    let (model, out) = (text(&tiny.model), text(&unwritable));
    refused(
        &["register", "--model", model, "--fixed", text(&fixed), "--moving", text(&moving), "--out", out],
        &["run.toml"],
    );
    refused(&["prepare", "--data", text(&tiny.cohort), "--out", out], &["run.toml"]);
    refused(&["phantom", "--preset", "tiny", "--out", out], &["run.toml"]);
    refused(&["evaluate", "--model", model, "--data", text(&tiny.cohort), "--out", out], &["run.toml"]);

    let damaged = root.join("model.safetensors");
    let mut content = bytes(&tiny.model);
    *content.last_mut().unwrap() ^= 1;
    std::fs::write(&damaged, content).unwrap();
    refused(&["model", "verify", text(&damaged)], &["model.safetensors"]);
}
