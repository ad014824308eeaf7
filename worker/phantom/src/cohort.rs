//! Writes a cohort as a dataset folder.
//!
//! ```text
//! DIR/dataset.json                                  written last
//! DIR/<patient>/<scan>/{ct,labels,torso}.nii.gz     scan s0 is the planning CT (moving)
//! DIR/<patient>/<pair>/{displacement.nii.gz,landmarks.csv}
//! ```

use crate::anatomy::ORGANS;
use crate::lattice::Lattice;
use crate::motion::Patient;
use crate::preset::{Plan, Preset};
use crate::render::{Texture, render};
use crate::truth::{displacement, landmarks};
use jrs_data::dataset::{Dataset, FORMAT, MANIFEST, Organ, Pair, Scan, Truth};
use libjrs::field_io::{NiftiFlavour, write_nifti};
use libjrs::landmarks::write_landmarks;
use libjrs::nifti::{Sample, write_image, write_labels};
use libjrs::{Error, Grid, Result};
use rayon::prelude::*;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Memory for patients in work at the same time, bytes.
const MEMORY: usize = 6 << 30;
/// Bytes per voxel of a patient in work: image, noise, labels and the displacement with its file buffer.
const BYTES_PER_VOXEL: usize = 40;

/// Makes the cohort of `preset` with `seed` in the folder `out` and returns its manifest.
///
/// `progress(done, total)` counts finished scans. Same preset and seed give the same bytes for any number
/// of threads.
///
/// # Errors
/// If a file cannot be written.
pub fn generate(
    preset: &Preset,
    seed: u64,
    out: &Path,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<Dataset> {
    let total = preset.pairs() + preset.patients.len();
    let done = AtomicUsize::new(0);
    let advance = || progress(done.fetch_add(1, Ordering::Relaxed) + 1, total);
    progress(0, total);

    // Gzip runs on one thread per file, so patients are made side by side as far as memory allows.
    let longest =
        (preset.extent[1] - preset.extent[0]) / preset.slices.iter().copied().fold(f64::MAX, f64::min);
    let voxels = preset.matrix[0] * preset.matrix[1] * longest.ceil() as usize;
    let together = (MEMORY / (voxels * BYTES_PER_VOXEL).max(1)).clamp(1, rayon::current_num_threads());
    let plans: Vec<(usize, &Plan)> = preset.patients.iter().enumerate().collect();
    let mut pairs = Vec::new();
    for group in plans.chunks(together) {
        let made: Result<Vec<_>> = group
            .par_iter()
            .map(|&(number, plan)| patient(preset, number, plan, seed, out, &advance))
            .collect();
        pairs.extend(made?.into_iter().flatten());
    }

    let dataset = Dataset {
        format: FORMAT.into(),
        name: format!("synthetic male pelvis ({}, seed {seed})", preset.name),
        organs: ORGANS.map(|(id, name)| Organ { id, name: name.into() }).to_vec(),
        pairs,
    };
    let text = serde_json::to_string_pretty(&dataset).map_err(|problem| {
        Error::input(format!("the manifest cannot be written: {problem}"), "report this")
    })?;
    write_text(&out.join(MANIFEST), &(text + "\n"))?;
    Ok(dataset)
}

/// All scans and pairs of one patient.
fn patient(
    preset: &Preset,
    number: usize,
    plan: &Plan,
    seed: u64,
    out: &Path,
    advance: &(dyn Fn() + Sync),
) -> Result<Vec<Pair>> {
    let patient = Patient::new(seed, number);
    let grid = preset.grid(&patient);
    let name = format!("p{:02}", number + 1);
    let (planning, moving) = scan(preset, &patient, &grid, &name, seed, 0, out)?;
    advance();
    let mut pairs = Vec::new();
    for repeat in 1..=plan.repeats {
        let (today, fixed) = scan(preset, &patient, &grid, &name, seed, repeat, out)?;
        let id = format!("{name}-s{repeat}");
        let folder = format!("{name}/{id}");
        create_folder(&out.join(&folder))?;
        let truth = Truth {
            displacement: Some(format!("{folder}/displacement.nii.gz")),
            landmarks: Some(format!("{folder}/landmarks.csv")),
        };
        let field = displacement(&patient, &fixed, &moving, &grid);
        write_nifti(out.join(&folder).join("displacement.nii.gz"), &field, NiftiFlavour::Itk)?;
        let points = landmarks(&patient, &fixed, &moving, &grid);
        write_landmarks(out.join(&folder).join("landmarks.csv"), &points)?;
        pairs.push(Pair {
            id,
            patient: name.clone(),
            split: plan.split,
            fixed: today,
            moving: planning.clone(),
            affine: None,
            truth: Some(truth),
        });
        advance();
    }
    Ok(pairs)
}

/// Renders and writes one scan; returns its entry in the manifest and its pull-back map.
fn scan(
    preset: &Preset,
    patient: &Patient,
    grid: &Grid,
    name: &str,
    seed: u64,
    number: usize,
    out: &Path,
) -> Result<(Scan, Lattice)> {
    let mut motion = patient.motion(seed, number);
    let map = patient.pull_back_over(&mut motion, grid, preset.knots);
    let rendered = render(patient, &map, grid, seed, number, Texture::OfScan);
    let folder = format!("{name}/s{number}");
    create_folder(&out.join(&folder))?;
    let entry = Scan {
        image: format!("{folder}/ct.nii.gz"),
        labels: Some(format!("{folder}/labels.nii.gz")),
        mask: Some(format!("{folder}/torso.nii.gz")),
    };
    write_image(out.join(&folder).join("ct.nii.gz"), &rendered.image, Sample::Int16)?;
    write_labels(out.join(&folder).join("labels.nii.gz"), &rendered.labels)?;
    write_labels(out.join(&folder).join("torso.nii.gz"), &rendered.torso)?;
    Ok((entry, map))
}

fn create_folder(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path)
        .map_err(|source| Error::io(path, source, "Choose an output folder that can be written"))
}

/// Writes beside the file and renames, so that a reader never sees half of it.
fn write_text(path: &Path, text: &str) -> Result<()> {
    let temporary = path.with_extension("part");
    std::fs::write(&temporary, text)
        .and_then(|()| std::fs::rename(&temporary, path))
        .map_err(|source| Error::io(path, source, "Check that the folder can be written and has space"))
}
