//! The promises of the cohort: equal bytes for any number of threads, and a truth that carries the moving
//! scan's organs onto the fixed scan's.

use jrs_phantom::motion::Patient;
use jrs_phantom::{Preset, generate, render, truth};
use libjrs::Grid;
use std::collections::BTreeMap;
use std::path::Path;

/// Every file below `folder` with its bytes.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_string_lossy().into_owned();
                found.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

#[test]
fn same_seed_same_bytes_for_any_number_of_threads() {
    let mut preset = Preset::named("tiny").unwrap();
    preset.patients.truncate(2);
    let make = |threads: usize, seed: u64| {
        let folder = tempfile::tempdir().unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| generate(&preset, seed, folder.path(), &|_, _| {})).unwrap();
        files(folder.path())
    };
    let (one, two) = (make(1, 4), make(2, 4));
    assert_eq!(one.keys().collect::<Vec<_>>(), two.keys().collect::<Vec<_>>());
    // The manifest, 2 patients with 2 scans of 3 files and one pair of 2 files.
    assert_eq!(one.len(), 1 + 2 * (2 * 3 + 2));
    for (name, bytes) in &one {
        assert!(bytes == &two[name], "{name} depends on the number of threads");
    }
    assert!(one["p01/s0/ct.nii.gz"] != make(2, 5)["p01/s0/ct.nii.gz"], "the seed changes nothing");
}

#[test]
fn truth_carries_the_moving_organs_onto_the_fixed_ones() {
    // A box around the organs with voxels fine enough for the seminal vesicles.
    let grid = Grid::axis_aligned([70, 66, 74], [2.0, 2.0, 2.0], [-70.0, -66.0, -58.0]);
    let seed = 21;
    let patient = Patient::new(seed, 1);
    let mut motions = [patient.motion(seed, 1), patient.motion(seed, 0)];
    let [fixed, moving] = motions.each_mut().map(|m| patient.pull_back_over(m, &grid, 5.0));
    let field = truth::displacement(&patient, &fixed, &moving, &grid);
    let labels = render::render(&patient, &fixed, &grid, seed, 1, render::Texture::OfScan).labels;

    let (mut both, mut sum, mut unknown) = ([0.0f64; 6], [0.0f64; 6], 0);
    let mut travel = 0.0;
    for k in 0..grid.size[2] {
        for j in 0..grid.size[1] {
            for i in 0..grid.size[0] {
                let at = grid.index(i, j, k);
                let u = field.at(at);
                if u[0].is_nan() {
                    unknown += usize::from(labels.data[at] != 4);
                    continue;
                }
                let x = grid.to_physical([i as f64, j as f64, k as f64]);
                let y = std::array::from_fn(|a| x[a] + f64::from(u[a]));
                let carried =
                    moving.map(y).and_then(|t| patient.anatomy.tissue(t)).map_or(0, |tissue| tissue.label());
                let here = labels.data[at];
                both[usize::from(here)] += f64::from(u8::from(here == carried));
                sum[usize::from(here)] += 1.0;
                sum[usize::from(carried)] += 1.0;
                travel += f64::from(u.iter().map(|c| c * c).sum::<f32>().sqrt());
            }
        }
    }
    for organ in 1..=5 {
        let dice = 2.0 * both[organ] / sum[organ];
        assert!(sum[organ] > 100.0 && dice > 0.95, "organ {organ}: {dice}");
    }
    // Unknown outside the rectum: only bowel and voxels whose inversion failed, which must be rare.
    assert!(unknown * 20 < grid.len(), "{unknown} of {} voxels without a correspondence", grid.len());
    let mean = travel / grid.len() as f64;
    assert!((1.0..40.0).contains(&mean), "mean displacement {mean} mm");
    let landmarks = truth::landmarks(&patient, &fixed, &moving, &grid);
    assert!(landmarks.len() >= 6, "{} landmarks", landmarks.len());
}
