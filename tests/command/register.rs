//! `jrs register` and `jrs evaluate`: every file is there and says what it should.

use crate::support::{files_below, folder, last_json, run, text, tiny};
use libjrs::engine::{Precision, on_cpu, padded};
use libjrs::landmarks::{NamedPoint, read_points, write_points};
use libjrs::model::Model;
use libjrs::nifti::{read_image, read_labels};
use libjrs::resample::working_grid;
use libjrs::{DisplacementField, field_io};
use std::collections::BTreeSet;
use std::path::Path;

#[test]
fn every_result_of_a_registration() {
    let root = folder("registration");
    let (points, out) = (root.join("points.csv"), root.join("out"));
    let fixed = read_image(tiny().scan("s1", "ct.nii.gz")).unwrap();
    let middle = fixed.grid.to_physical(fixed.grid.size.map(|n| n as f64 / 2.0));
    write_points(&points, &[NamedPoint { name: "isocentre".into(), point: middle }]).unwrap();
    let labels = [tiny().scan("s0", "labels.nii.gz"), tiny().scan("s1", "labels.nii.gz")];
    let contours = ["--labels", text(&labels[0]), "--reference", text(&labels[1])];
    let qa = register(&out, &[&contours[..], &["--points", text(&points)]].concat());

    let figures =
        ["displacement", "jacobian", "inverse_consistency", "ncc_before", "ncc_after", "out_of_field"];
    for figure in figures {
        assert!(!qa[figure].is_null(), "{figure} is missing in {qa}");
    }
    assert!(["OK", "REVIEW", "REJECT"].contains(&qa["status"].as_str().unwrap()), "{qa}");
    let organs = qa["organs"].as_array().unwrap();
    assert_eq!(organs.len(), 5, "{qa}");
    for organ in organs {
        for when in ["before", "after"] {
            assert!(organ[when]["dice"].is_number() && organ[when]["surface"]["msd"].is_number(), "{organ}");
        }
    }
    let stored: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(out.join("qa.json")).unwrap()).unwrap();
    assert_eq!(stored, qa);

    let expected = [
        "affine.json",
        "dvf-ants.nii.gz",
        "dvf.mha",
        "dvf.nii.gz",
        "labels.nii.gz",
        "points.csv",
        "qa.json",
        "report.html",
        "warped.nii.gz",
    ];
    assert_eq!(names_below(&out), expected.map(String::from).into());
    assert!(read_image(out.join("warped.nii.gz")).unwrap().grid.same_space(&fixed.grid, 1e-3));
    let carried = read_labels(out.join("labels.nii.gz")).unwrap();
    assert!(carried.grid.same_space(&fixed.grid, 1e-3));
    assert!((1..=5).all(|organ| carried.data.contains(&organ)), "an organ was lost");

    // The three files of the field hold the same field; the point went where its inverse says.
    let field = field_io::read(out.join("dvf.nii.gz")).unwrap();
    for other in ["dvf-ants.nii.gz", "dvf.mha"] {
        assert!(difference(&field, &field_io::read(out.join(other)).unwrap()) < 1e-5, "{other}");
    }
    let carried = read_points(out.join("points.csv")).unwrap();
    assert_eq!(carried[0].name, "isocentre");
    let there_and_back = libjrs::field::map_point(&field, None, carried[0].point).unwrap();
    assert!(libjrs::geometry::distance(there_and_back, middle) < 0.05, "{carried:?}");
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    for word in
        ["folding in the body", "volume of the bladder", "seconds: read", "seconds: QA", "seconds: all of it"]
    {
        assert!(page.contains(word), "{word} is missing on the page");
    }
    assert!(page.contains("<svg") || page.contains("data:image/png"), "the page shows no picture");
    assert!(!page.contains("<script src") && !page.contains("<link"), "the page needs other files");
}

#[test]
fn one_way_leaves_out_only_what_needs_both() {
    let root = folder("one-way");
    let result = |name: &str, more: &[&str]| {
        let out = root.join(name);
        let qa = register(&out, more);
        (qa, std::fs::read(out.join("dvf.mha")).unwrap())
    };
    let (both, one) = (result("both", &[]), result("one", &["--one-way"]));
    assert_eq!(both.1, one.1, "the field is another");
    assert!(both.0["inverse_consistency"].is_object() && one.0["inverse_consistency"].is_null(), "{one:?}");
    assert_eq!(both.0["jacobian"], one.0["jacobian"]);
}

#[test]
fn tiles_join_without_a_seam() {
    let root = folder("tiles");
    let dvf = |name: &str, megabytes: usize| {
        let out = root.join(name);
        register(&out, &["--memory", &megabytes.to_string()]);
        field_io::read(out.join("dvf.nii.gz")).unwrap()
    };
    // Half of what the whole volume needs makes tiles.
    let model = Model::load(&tiny().model).unwrap();
    let fixed = read_image(tiny().scan("s1", "ct.nii.gz")).unwrap();
    let padded = working_grid(&fixed.grid, model.manifest.preprocessing.spacing_mm).size.map(padded);
    let half = on_cpu(&model.generator, Precision::F32).unwrap().bytes(padded) / 2;
    let (whole, tiled) = (dvf("whole", 4096), dvf("tiled", half >> 20));
    let largest = whole.u.iter().flatten().fold(0.0f32, |m, v| m.max(v.abs()));
    assert!(largest > 0.01, "a field of at most {largest} mm shows nothing");
    let apart = difference(&whole, &tiled);
    eprintln!("tiled and whole differ by at most {apart:.1e} mm of {largest:.2} mm");
    assert!(apart < 1e-4, "{apart} mm");
}

#[test]
fn evaluation_writes_the_papers_tables() {
    let (root, tiny) = (folder("evaluation"), tiny());
    let arguments = ["evaluate", "--model", text(&tiny.model), "--data", text(&tiny.cohort)];
    let said = run(&[&arguments[..], &["--split", "test", "--json", "--out", text(&root)]].concat());
    let summary = last_json(&said);
    for key in ["msd_before_mm", "msd_after_mm", "folding_percent"] {
        assert!(summary[key].as_f64().is_some_and(f64::is_finite), "{key} in {summary}");
    }
    let organs = summary["msd_per_organ"].as_object().unwrap();
    assert_eq!(organs.len(), 5, "{summary}");
    assert!(organs.values().flat_map(|v| v.as_array().unwrap()).all(|v| v.as_f64().unwrap() >= 0.0));
    assert_eq!(summary["report"], text(&root.join("report.html")));

    let names = names_below(&root);
    for name in
        ["tables.md", "evaluation.json", "report.html", "msd_mm.csv", "msd_mm.svg", "dsc.csv", "dsc.svg"]
    {
        assert!(names.contains(name), "{name} is not in {names:?}");
    }
    let tables = std::fs::read_to_string(root.join("tables.md")).unwrap();
    for row in ["JRS-CNN", jrs_report::evaluation::BEFORE, "bladder", "seminal vesicles"] {
        assert!(tables.contains(row), "{row} is not in\n{tables}");
    }
}

/// Registers the first tiny pair into `out` and returns the QA report.
fn register(out: &Path, more: &[&str]) -> serde_json::Value {
    let tiny = tiny();
    let (fixed, moving) = (tiny.scan("s1", "ct.nii.gz"), tiny.scan("s0", "ct.nii.gz"));
    let pair = ["--fixed", text(&fixed), "--moving", text(&moving), "--out", text(out)];
    last_json(&run(&[&["register", "--model", text(&tiny.model), "--json"], &pair[..], more].concat()))
}

fn names_below(folder: &Path) -> BTreeSet<String> {
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    files_below(folder).iter().map(|path| name(path)).collect()
}

/// Largest difference of a component, mm.
fn difference(a: &DisplacementField, b: &DisplacementField) -> f32 {
    assert!(a.grid.same_space(&b.grid, 1e-3));
    let pairs = a.u.iter().flatten().zip(b.u.iter().flatten());
    pairs.fold(0.0, |most, (a, b)| most.max((a - b).abs()))
}
