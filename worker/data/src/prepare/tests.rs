use super::*;
use libjrs::align::write_affine;
use libjrs::geometry::distance;
use libjrs::nifti::{Sample, write_image, write_labels};
use serde_json::{Value, json};
use std::sync::atomic::AtomicUsize;

/// A body with two bones and an organ, shifted by `shift` mm.
fn scan(folder: &Path, name: &str, shift: [f64; 3]) {
    let grid = Grid::axis_aligned([50, 36, 20], [6.0, 6.0, 8.0], [-147.0, -105.0, -76.0]);
    let mut image = Volume::filled(grid.clone(), -1000.0f32);
    let mut labels = Volume::filled(grid.clone(), 0u8);
    for i in 0..grid.len() {
        let at = grid.to_physical([i % 50, i / 50 % 36, i / 1800].map(|v| v as f64));
        let p: [f64; 3] = std::array::from_fn(|a| at[a] - shift[a]);
        if (p[0] / 120.0).powi(2) + (p[1] / 80.0).powi(2) < 1.0 {
            image.data[i] = 40.0;
        }
        if distance([p[0].abs(), p[1], p[2]], [70.0, 0.0, 10.0]) < 30.0 {
            image.data[i] = 600.0;
        }
        if distance(p, [0.0, 0.0, 0.0]) < 25.0 {
            labels.data[i] = 5;
        }
    }
    write_image(folder.join(format!("{name}.nii.gz")), &image, Sample::Int16).unwrap();
    write_labels(folder.join(format!("{name}-labels.nii.gz")), &labels).unwrap();
}

fn manifest() -> Value {
    let pair = |id: &str, fixed: &str| {
        json!({"id": id, "patient": id, "split": "train",
               "fixed": {"image": format!("{fixed}.nii.gz"), "labels": format!("{fixed}-labels.nii.gz")},
               "moving": {"image": "m.nii.gz", "labels": "m-labels.nii.gz"}})
    };
    json!({"format": crate::dataset::FORMAT, "name": "test", "organs": [{"id": 5, "name": "bladder"}],
           "pairs": [pair("one", "f"), pair("two", "g")]})
}

struct Setup {
    _folder: tempfile::TempDir,
    source: PathBuf,
    target: PathBuf,
}

impl Setup {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (source, target) = (folder.path().join("data"), folder.path().join("cache"));
        fs::create_dir(&source).unwrap();
        scan(&source, "f", [0.0; 3]);
        scan(&source, "g", [-4.0, 6.0, 0.0]);
        scan(&source, "m", [10.0, -8.0, 9.0]);
        let setup = Self { _folder: folder, source, target };
        setup.write(&manifest());
        setup
    }

    fn write(&self, manifest: &Value) {
        fs::write(self.source.join(MANIFEST), manifest.to_string()).unwrap();
    }

    /// The result, and how many pairs were computed.
    fn run(&self, options: &PrepareOptions) -> (Result<Prepared>, usize) {
        let computed = AtomicUsize::new(0);
        let result = prepare(&self.source, &self.target, options, &|p| {
            computed.fetch_add(usize::from(!p.reused), Ordering::Relaxed);
        });
        (result, computed.into_inner())
    }

    fn message(&self, change: impl FnOnce(&mut Value)) -> String {
        let mut value = manifest();
        change(&mut value);
        self.write(&value);
        let text = self.run(&options()).0.unwrap_err().to_string();
        assert!(!self.target.join(INDEX).exists(), "an index was left after: {text}");
        text
    }
}

fn options() -> PrepareOptions {
    PrepareOptions { spacing_mm: 5.0, align: Prealignment::Rigid, clip: [-900, 500] }
}

#[test]
fn pairs_are_aligned_clipped_and_on_the_working_grid() {
    let setup = Setup::new();
    let prepared = setup.run(&options()).0.unwrap();
    let pair = prepared.load(0).unwrap();
    assert_eq!((pair.grid.size, pair.grid.spacing), ([60, 44, 32], [5.0; 3])); // 300, 216 and 160 mm
    let truth = [10.0, -8.0, 9.0];
    // A quarter of an 8 mm slice, whose edges are sampled without partial volume.
    assert!(distance(pair.affine.apply([0.0; 3]), truth) < 2.0, "{:?}", pair.affine);
    assert!(pair.fixed.iter().chain(&pair.moving).all(|v| (-900..=500).contains(v)));
    let volume = |labels: &[u8]| labels.iter().filter(|&&l| l == 5).count() as f64 * 125.0;
    let ball = 4.0 / 3.0 * std::f64::consts::PI * 25.0f64.powi(3);
    assert!((volume(&pair.fixed_labels) / ball - 1.0).abs() < 0.1);
    let both =
        pair.fixed_labels.iter().zip(&pair.moving_labels).filter(|(f, m)| **f == 5 && **m == 5).count();
    let dice = 2.0 * both as f64 * 125.0 / (volume(&pair.fixed_labels) + volume(&pair.moving_labels));
    assert!(dice > 0.9, "{dice}");
    let torso = pair.mask.iter().filter(|&&m| m == 1).count() as f64 * 125.0;
    // Of the 160 mm the moving scan, 9 mm further up, lacks the last two slices of 5 mm.
    let ellipse = std::f64::consts::PI * 120.0 * 80.0 * 150.0;
    // The -250 HU surface lies about 1 mm inside the middle of a blurred edge, and the opening rounds the flanks.
    assert!((torso / ellipse - 1.0).abs() < 0.08, "{torso} {ellipse}");
    let [before, after] = prepared.pairs[0].similarity.unwrap();
    assert!(after > 0.9 && after > before);
}

#[test]
fn finished_pairs_are_kept_and_changed_ones_done_again() {
    let setup = Setup::new();
    let (first, computed) = setup.run(&options());
    let digest = first.unwrap().digest;
    assert_eq!(computed, 2);
    assert_eq!(setup.run(&options()).1, 0);

    // Cut short after the first pair: no index, one pair file missing, one temporary left behind.
    fs::remove_file(setup.target.join(INDEX)).unwrap();
    fs::remove_file(setup.target.join("two.safetensors")).unwrap();
    let (again, computed) = setup.run(&options());
    assert_eq!((again.unwrap().digest, computed), (digest.clone(), 1));

    // Damaged on disk.
    let file = setup.target.join("one.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    let (again, computed) = setup.run(&options());
    assert_eq!((again.unwrap().digest, computed), (digest.clone(), 1));

    // Another source, another option.
    scan(&setup.source, "g", [-5.0, 6.0, 0.0]);
    let (again, computed) = setup.run(&options());
    assert!(again.unwrap().digest != digest && computed == 1);
    assert_eq!(setup.run(&PrepareOptions { align: Prealignment::None, ..options() }).1, 2);
}

#[test]
fn a_given_affine_is_used_and_labels_may_be_absent() {
    let setup = Setup::new();
    let affine = Affine { translation: [1.0, 2.0, 3.0], ..Affine::IDENTITY };
    write_affine(setup.source.join("a.tfm"), &affine).unwrap();
    let mut value = manifest();
    value["pairs"][0]["affine"] = json!("a.tfm");
    value["pairs"][0]["moving"].as_object_mut().unwrap().remove("labels");
    setup.write(&value);
    let pair = setup.run(&options()).0.unwrap().load(0).unwrap();
    assert_eq!(pair.affine, affine);
    assert!(pair.moving_labels.iter().all(|&l| l == 0));
}

#[test]
fn bad_pairs_are_refused_and_leave_no_index() {
    let setup = Setup::new();
    let folder = setup.source.clone();
    let grid = Grid::axis_aligned([50, 36, 20], [6.0, 6.0, 8.0], [-147.0, -105.0, -70.0]);
    write_labels(folder.join("shifted.nii.gz"), &Volume::filled(grid.clone(), 5)).unwrap();
    write_labels(folder.join("empty.nii.gz"), &Volume::filled(grid.clone(), 0)).unwrap();
    write_image(folder.join("air.nii.gz"), &Volume::filled(grid, -1000.0), Sample::Int16).unwrap();
    fs::write(folder.join("far.txt"), "1 0 0 900\n0 1 0 0\n0 0 1 0\n0 0 0 1\n").unwrap();
    fs::write(folder.join("text.nii.gz"), "not an image").unwrap();
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 7] = [
        (|v| v["organs"][0]["id"] = json!(1), "label 5, and the manifest knows 1"),
        (|v| v["pairs"][1]["fixed"]["labels"] = json!("shifted.nii.gz"), "not on the grid of g.nii.gz"),
        (|v| v["pairs"][0]["fixed"]["mask"] = json!("empty.nii.gz"), "mask is empty"),
        (|v| v["pairs"][0]["moving"] = json!({"image": "air.nii.gz"}), "pair `one`: the moving scan"),
        (|v| v["pairs"][0]["affine"] = json!("far.txt"), "covers 0 % of the fixed torso"),
        (|v| v["pairs"][0]["fixed"]["image"] = json!("text.nii.gz"), "text.nii.gz"),
        (|v| v["pairs"][0]["fixed"]["image"] = json!("gone.nii.gz"), "gone.nii.gz"),
    ];
    for (change, expected) in cases {
        let text = setup.message(change);
        assert!(text.contains(expected), "{expected}: {text}");
    }
    for (bad, expected) in [
        (PrepareOptions { spacing_mm: 0.0, ..options() }, "spacing of 0 mm"),
        (PrepareOptions { spacing_mm: f64::NAN, ..options() }, "spacing of NaN mm"),
        (PrepareOptions { clip: [100, 100], ..options() }, "from 100 to 100"),
    ] {
        let text = setup.run(&bad).0.unwrap_err().to_string();
        assert!(text.contains(expected), "{expected}: {text}");
    }
}
