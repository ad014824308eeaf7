//! Real scans: each is warped by a known smooth field of up to 10 mm with fresh noise, and the command has to find it.
//!
//! The scans are no part of the repository (see `jrs_tests::external::real_scan`), and the demo's model is only there
//! once the demo has run.

use crate::support::{folder, run, text};
use jrs_tests::external::real_scan;
use jrs_tests::reference::uniform;
use libjrs::field::{out_of_field, warp_image};
use libjrs::metrics::{mean, percentile};
use libjrs::nifti::{Sample, read_image, write_image};
use libjrs::preprocess::torso_mask;
use libjrs::{DisplacementField, Grid, Volume, field_io};
use std::path::{Path, PathBuf};

const AIR_HU: f32 = -1024.0;
const NOISE_HU: f64 = 8.0;

#[test]
fn abdomen() {
    finds_a_known_warp("abdomen_ct.nii.gz");
}

#[test]
fn torso() {
    finds_a_known_warp("torso_ct_3mm.nii.gz");
}

fn finds_a_known_warp(name: &str) {
    let Some(path) = real_scan(name) else { return };
    let root = folder(&format!("real-{name}"));
    let case = Case::new(&read_image(path).unwrap(), &root);
    case.prepare();

    let before = case.error(&DisplacementField::zero(case.truth.grid.clone()));
    let mut table = vec![("before", before)];
    let refined = case.register("refine", &["--refine", "100", "--spacing", "2"]);
    table.push(("refine 100", refined));
    if let Some(model) = demo_model() {
        table.push(("model", case.register("model", &["--model", text(&model)])));
        let both = ["--model", text(&model), "--refine", "100", "--spacing", "2"];
        table.push(("model, refine 100", case.register("both", &both)));
    }
    eprintln!("\n{name}, error in the torso, mm    mean     p95");
    for (how, [mean, p95]) in &table {
        eprintln!("  {how:<34} {mean:>6.2}  {p95:>6.2}");
    }
    assert!(before[0] > 3.0, "the warp must be worth finding");
    assert!(
        refined[0] < 0.5 * before[0],
        "refinement alone: mean error {:.2} -> {:.2} mm",
        before[0],
        refined[0]
    );
}

/// A scan and its warped copy as files, with the field between them.
struct Case {
    root: PathBuf,
    truth: DisplacementField,
    /// Where the error counts: in the patient, and what is seen there is in the moving scan too.
    counts: Vec<bool>,
}

impl Case {
    fn new(ct: &Volume<f32>, root: &Path) -> Self {
        let ct = ct.map(|hu| hu.max(AIR_HU));
        let truth = smooth_field(&ct.grid);
        let warped = warp_image(&ct, &truth, None, AIR_HU);
        let outside = out_of_field(&ct, &truth, None);
        let mask = torso_mask(&warped).unwrap();
        let counts = mask.data.iter().zip(&outside.data).map(|(m, o)| *m != 0 && *o == 0).collect();
        for (name, image, stream) in [("moving.nii.gz", &ct, 7000), ("fixed.nii.gz", &warped, 7010)] {
            write_image(root.join(name), &noisy(image, stream), Sample::Int16).unwrap();
        }
        Self { root: root.to_owned(), truth, counts }
    }

    fn prepare(&self) {
        let dataset = serde_json::json!({
            "format": "jrs-dataset/1", "name": "real", "organs": [],
            "pairs": [{"id": "pair", "patient": "a", "split": "test",
                       "fixed": {"image": "fixed.nii.gz"}, "moving": {"image": "moving.nii.gz"}}],
        });
        std::fs::write(self.root.join("dataset.json"), dataset.to_string()).unwrap();
        let cache = self.root.join("cache");
        let data = ["--data", text(&self.root), "--out", text(&cache)];
        let said = run(&[&["prepare", "--spacing", "2", "--align", "none"], &data[..]].concat());
        assert!(said.contains("1 pairs at 2 mm"), "{said}");
    }

    /// Registers with these options; the error that is left.
    fn register(&self, name: &str, more: &[&str]) -> [f64; 2] {
        let [fixed, moving, out] = ["fixed.nii.gz", "moving.nii.gz", name].map(|name| self.root.join(name));
        let pair = ["--fixed", text(&fixed), "--moving", text(&moving), "--out", text(&out)];
        run(&[&["register", "--align", "none"], &pair[..], more].concat());
        self.error(&field_io::read(out.join("dvf.nii.gz")).unwrap())
    }

    /// Mean and 95th percentile of the distance to the truth, mm.
    fn error(&self, field: &DisplacementField) -> [f64; 2] {
        assert!(field.u.iter().flatten().all(|v| v.is_finite()), "the field holds NaN or infinity");
        let counted = (0..self.counts.len()).filter(|&i| self.counts[i]);
        let errors: Vec<f64> = counted
            .map(|i| libjrs::geometry::distance(field.at(i).map(f64::from), self.truth.at(i).map(f64::from)))
            .collect();
        [mean(&errors).unwrap(), percentile(&errors, 95.0).unwrap()]
    }
}

/// At most 10 mm long: waves of 150 to 230 mm.
fn smooth_field(grid: &Grid) -> DisplacementField {
    let wave = |q: f64, length: f64, phase: f64| (q / length * std::f64::consts::TAU + phase).sin();
    let mut field = DisplacementField::zero(grid.clone());
    let [nx, ny, _] = grid.size;
    for i in 0..grid.len() {
        let p = grid.to_physical([i % nx, i / nx % ny, i / nx / ny].map(|v| v as f64));
        field.u[0][i] = (6.0 * wave(p[1], 150.0, 0.3) * wave(p[2], 210.0, 1.0)) as f32;
        field.u[1][i] = (6.0 * wave(p[2], 180.0, 2.0) * wave(p[0], 170.0, 0.1)) as f32;
        field.u[2][i] = (5.0 * wave(p[0], 230.0, 1.4) * wave(p[1], 160.0, 0.8)) as f32;
    }
    field
}

/// The image with noise of [`NOISE_HU`], nearly normal: the sum of four uniform numbers.
fn noisy(image: &Volume<f32>, stream: u64) -> Volume<f32> {
    let scale = NOISE_HU * (3.0_f64 / 4.0).sqrt();
    let mut image = image.clone();
    for part in 0..4 {
        let noise = uniform(stream + part, image.data.len(), scale, 0.0);
        image.data.iter_mut().zip(noise).for_each(|(v, n)| *v += n);
    }
    image
}

/// The model that `JRS_DEMO_MODEL` names, else the one that `jrs demo` left in the checkout.
fn demo_model() -> Option<PathBuf> {
    let left = Path::new(env!("CARGO_MANIFEST_DIR")).join("../jrs-demo/runs/runs/demo/model.safetensors");
    let path = std::env::var_os("JRS_DEMO_MODEL").map_or(left, PathBuf::from);
    if path.is_file() {
        return Some(path);
    }
    eprintln!(
        "SKIPPED: no {} (JRS_DEMO_MODEL names the demo's model); refinement alone is tried",
        path.display()
    );
    None
}
