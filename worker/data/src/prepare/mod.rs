//! From a dataset of NIfTI files to the cache that training reads.
//!
//! Each pair is checked, aligned, carried to the isotropic working grid of its fixed image and clipped. An
//! interrupted preparation goes on where it stopped: a pair is done again only if the options, its manifest entry
//! or one of its files changed, or if its cache file is damaged.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use libjrs::align::{AlignOptions, Kind, align, read_affine};
use libjrs::nifti::{read_image, read_labels, read_mask};
use libjrs::preprocess::{clip_to_i16, torso_mask};
use libjrs::resample::{resample_labels, resample_nearest, working_grid};
use libjrs::working::{WorkingPair, working_pair};
use libjrs::{Affine, Error, Grid, Result, Volume};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::cache::{self, Entry, INDEX, Prepared, PreparedPair, hex};
use crate::dataset::{Dataset, MANIFEST, Organ, Pair, Scan};

/// How the moving scan is brought onto the fixed one before the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Prealignment {
    /// Six degrees of freedom, by the bones.
    Rigid,
    /// Twelve.
    Affine,
    /// As the scans lie in space.
    None,
}

/// What a preparation may be told. All of it is part of the cache's digest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PrepareOptions {
    /// Spacing of the isotropic working grid, mm.
    pub spacing_mm: f64,
    /// For pairs without an affine of their own.
    pub align: Prealignment,
    /// Lowest and highest HU kept.
    pub clip: [i16; 2],
}

impl Default for PrepareOptions {
    /// The paper's 1 mm and ±1000 HU (science.md section 1); rigid, because a pose difference is.
    fn default() -> Self {
        Self { spacing_mm: 1.0, align: Prealignment::Rigid, clip: [-1000, 1000] }
    }
}

/// Told after every pair.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress<'a> {
    /// The pair.
    pub id: &'a str,
    /// Pairs that are done, this one included.
    pub done: usize,
    /// Pairs of the dataset.
    pub total: usize,
    /// True if an earlier run had finished the pair.
    pub reused: bool,
    /// Time it took.
    pub seconds: f64,
    /// Similarity before and after alignment, if it was aligned.
    pub similarity: Option<[f64; 2]>,
}

/// Pairs in work at one time: enough to hide reading, few enough for the memory (a pair of full-size scans takes
/// about 1 GB).
const PAIRS_AT_ONCE: usize = 4;
/// Label maps and masks must lie where their image lies, within this (mm; headers hold single precision).
const SAME_PLACE_MM: f64 = 0.1;
/// More working voxels than this (800³) are a wrong spacing.
const MOST_VOXELS: usize = 512_000_000;
/// Least share of the torso that the moving image must cover.
const LEAST_OVERLAP: f64 = 0.2;

/// Prepares the dataset of `dataset_folder` in `cache_folder` and opens the result.
///
/// Pairs already done are kept. The index is written last, so that a folder with an index is always whole.
///
/// # Errors
/// For options that make no sense, a manifest or file that cannot be used, labels or masks that do not lie on
/// their image, labels the manifest does not know, and scans that cannot be aligned. Pairs finished before the
/// error stay.
pub fn prepare(
    dataset_folder: impl AsRef<Path>,
    cache_folder: impl AsRef<Path>,
    options: &PrepareOptions,
    progress: &(dyn Fn(&Progress) + Sync),
) -> Result<Prepared> {
    let (source, target) = (dataset_folder.as_ref(), cache_folder.as_ref());
    check_options(options)?;
    let dataset = Dataset::open(source)?;
    fs::create_dir_all(target)
        .map_err(|e| Error::io(target, e, "give a folder for the cache that can be written"))?;

    let job = Job { source, target, options, dataset: &dataset };
    let total = dataset.pairs.len();
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(PAIRS_AT_ONCE).min(total);
    let (next, done, failed) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let results: Vec<Mutex<Option<Result<Entry>>>> = (0..total).map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while !failed.load(Ordering::Relaxed) {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(pair) = dataset.pairs.get(i) else { break };
                    let started = Instant::now();
                    let result = job.pair(pair);
                    match &result {
                        Ok((entry, reused)) => progress(&Progress {
                            id: &pair.id,
                            done: done.fetch_add(1, Ordering::Relaxed) + 1,
                            total,
                            reused: *reused,
                            seconds: started.elapsed().as_secs_f64(),
                            similarity: entry.similarity,
                        }),
                        Err(_) => failed.store(true, Ordering::Relaxed),
                    }
                    let mut slot = results[i].lock().expect("only this thread writes slot i");
                    *slot = Some(result.map(|(entry, _)| entry));
                }
            });
        }
    });
    // Slots are empty only behind a failure, so the first error in the manifest's order comes out.
    let entries = results
        .into_iter()
        .filter_map(|slot| slot.into_inner().expect("no worker panicked"))
        .collect::<Result<Vec<Entry>>>()?;
    cache::write_index(target, &dataset.name, options.spacing_mm, options.clip, &dataset.organs, entries)?;
    Prepared::open(target)
}

fn check_options(options: &PrepareOptions) -> Result<()> {
    if !(0.25..=10.0).contains(&options.spacing_mm) {
        let problem = format!("a working spacing of {} mm", options.spacing_mm);
        return Err(Error::input(problem, "give a spacing from 0.25 to 10 mm; the paper's is 1"));
    }
    let [low, high] = options.clip;
    if low >= high {
        let problem = format!("an HU window from {low} to {high}");
        return Err(Error::input(problem, "give the lower end first; the paper's is -1000 to 1000"));
    }
    Ok(())
}

/// What all pairs share.
struct Job<'a> {
    source: &'a Path,
    target: &'a Path,
    options: &'a PrepareOptions,
    dataset: &'a Dataset,
}

/// A scan as read and checked.
struct Loaded {
    image: Volume<f32>,
    labels: Option<Volume<u8>>,
    mask: Option<Volume<u8>>,
}

impl Job<'_> {
    /// The pair's entry, and whether it was there already.
    fn pair(&self, pair: &Pair) -> Result<(Entry, bool)> {
        let source_sha256 = self.source_hash(pair)?;
        if let Some(entry) = cache::finished(self.target, &pair.id, &source_sha256) {
            return Ok((entry, true));
        }
        // From here on the folder is unfinished again.
        let index = self.target.join(INDEX);
        match fs::remove_file(&index) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io(&index, e, "make the cache folder writable"));
            }
            _ => {}
        }
        let (prepared, similarity) = self.compute(pair)?;
        Ok((cache::write_pair(self.target, &prepared, source_sha256, similarity)?, false))
    }

    /// Over everything that decides about the pair's cache file.
    fn source_hash(&self, pair: &Pair) -> Result<String> {
        let mut hash = Sha256::new();
        let settings = serde_json::to_vec(&(cache::FORMAT, self.options, &self.dataset.organs, pair))
            .expect("plain structs of numbers and strings serialise");
        hash.update(settings);
        let scans = [&pair.fixed, &pair.moving];
        let names = scans.iter().flat_map(|s| [Some(&s.image), s.labels.as_ref(), s.mask.as_ref()]);
        for name in names.chain([pair.affine.as_ref()]).flatten() {
            let path = self.path(name);
            let mut of_file = Sha256::new();
            File::open(&path)
                .and_then(|mut file| io::copy(&mut file, &mut of_file))
                .map_err(|e| Error::io(&path, e, "check that the file may be read"))?;
            hash.update(of_file.finalize());
        }
        Ok(hex(&hash.finalize()))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.source.join(name)
    }

    fn load(&self, scan: &Scan) -> Result<Loaded> {
        let image = read_image(self.path(&scan.image))?;
        let on_image = |name: &str, grid: &Grid| {
            if grid.same_space(&image.grid, SAME_PLACE_MM) {
                return Ok(());
            }
            Err(Error::file(
                self.path(name),
                format!(
                    "not on the grid of {}: size {:?}, spacing {:?}, origin {:?} instead of {:?}, {:?}, {:?}",
                    scan.image,
                    grid.size,
                    grid.spacing,
                    grid.origin,
                    image.grid.size,
                    image.grid.spacing,
                    image.grid.origin
                ),
                "resample it to the image (labels by nearest neighbour), or correct the header",
            ))
        };
        let labels = match &scan.labels {
            Some(name) => {
                let labels = read_labels(self.path(name))?;
                on_image(name, &labels.grid)?;
                check_labels(&self.path(name), &labels, &self.dataset.organs)?;
                Some(labels)
            }
            None => None,
        };
        let mask = match &scan.mask {
            Some(name) => {
                let mask = read_mask(self.path(name))?;
                on_image(name, &mask.grid)?;
                Some(mask)
            }
            None => None,
        };
        Ok(Loaded { image, labels, mask })
    }

    fn compute(&self, pair: &Pair) -> Result<(PreparedPair, Option<[f64; 2]>)> {
        let manifest = self.source.join(MANIFEST);
        let of_pair = |problem: String, fix: &str| {
            Error::file(&manifest, format!("pair `{}`: {problem}", pair.id), fix)
        };
        let (fixed, moving) = (self.load(&pair.fixed)?, self.load(&pair.moving)?);
        let grid = working_grid(&fixed.image.grid, self.options.spacing_mm);
        // Checked as a product of floats: sizes from a damaged header could overflow.
        if grid.size.iter().map(|&n| n as f64).product::<f64>() > MOST_VOXELS as f64 {
            let problem = format!("{:?} voxels at {} mm", grid.size, self.options.spacing_mm);
            return Err(of_pair(
                problem,
                "check the spacing in the image's header, or prepare more coarsely",
            ));
        }

        let (affine, similarity) = self.affine(pair, &fixed.image, &moving.image, &of_pair)?;
        let [low, _] = self.options.clip;
        let WorkingPair { fixed: fixed_hu, moving: moving_hu, covered } =
            working_pair(&fixed.image, &moving.image, &affine, &grid, f32::from(low));
        let clipped = |image: &[f32]| image.iter().map(|&hu| clip_to_i16(hu, self.options.clip)).collect();
        let labels_on_grid = |labels: &Option<Volume<u8>>, affine: Option<&Affine>| match labels {
            Some(labels) => resample_labels(labels, &grid, affine).data,
            None => vec![0; grid.len()],
        };
        let mut mask = match &fixed.mask {
            Some(mask) => resample_nearest(mask, &grid, None, 0),
            None => {
                // Of the whole fixed image: on the working grid it is blank where the moving one has no data.
                let torso = torso_mask(&fixed.image).map_err(|e| {
                    of_pair(format!("{}: {e}", pair.fixed.image), "or name a mask in the manifest")
                })?;
                resample_nearest(&torso, &grid, None, 0)
            }
        };
        let torso = mask.data.iter().filter(|m| **m != 0).count();
        // What the moving scan does not show cannot be learned from.
        let mut fixed_labels = labels_on_grid(&fixed.labels, None);
        for (i, _) in covered.iter().enumerate().filter(|(_, covered)| !**covered) {
            mask.data[i] = 0;
            fixed_labels[i] = 0;
        }
        let share = mask.data.iter().filter(|m| **m != 0).count() as f64 / torso.max(1) as f64;
        if share < LEAST_OVERLAP {
            let problem = format!("the moving image covers {:.0} % of the fixed torso", 100.0 * share);
            return Err(of_pair(
                problem,
                "check that both scans show the same region, and the affine if one is given",
            ));
        }
        let prepared = PreparedPair {
            id: pair.id.clone(),
            patient: pair.patient.clone(),
            split: pair.split,
            fixed: clipped(&fixed_hu),
            moving: clipped(&moving_hu),
            fixed_labels,
            moving_labels: labels_on_grid(&moving.labels, Some(&affine)),
            mask: mask.data,
            affine,
            grid,
        };
        Ok((prepared, similarity))
    }

    /// The given affine, or the one found, with the similarity before and after.
    fn affine(
        &self,
        pair: &Pair,
        fixed: &Volume<f32>,
        moving: &Volume<f32>,
        of_pair: &dyn Fn(String, &str) -> Error,
    ) -> Result<(Affine, Option<[f64; 2]>)> {
        if let Some(name) = &pair.affine {
            return Ok((read_affine(self.path(name))?, None));
        }
        let kind = match self.options.align {
            Prealignment::Rigid => Kind::Rigid,
            Prealignment::Affine => Kind::Affine,
            Prealignment::None => return Ok((Affine::IDENTITY, None)),
        };
        let found = align(fixed, moving, &AlignOptions { kind, ..Default::default() })
            .map_err(|e| of_pair(e.to_string(), "an affine can be named in the manifest"))?;
        Ok((found.affine, Some([found.similarity_before, found.similarity_after])))
    }
}

/// Every label must be an organ of the manifest, or tables would leave it out silently.
fn check_labels(path: &Path, labels: &Volume<u8>, organs: &[Organ]) -> Result<()> {
    let mut counts = [0usize; 256];
    labels.data.iter().for_each(|&l| counts[usize::from(l)] += 1);
    let is_known = |id: usize| id == 0 || organs.iter().any(|o| usize::from(o.id) == id);
    if let Some(id) = (0..256).find(|&id| counts[id] > 0 && !is_known(id)) {
        let ids: Vec<String> = organs.iter().map(|o| o.id.to_string()).collect();
        return Err(Error::file(
            path,
            format!("{} voxels have label {id}, and the manifest knows {}", counts[id], ids.join(", ")),
            "add the organ to the manifest, or set these voxels to 0",
        ));
    }
    if counts[0] == labels.data.len() {
        tracing::warn!(file = %path.display(), "the label map is empty");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
