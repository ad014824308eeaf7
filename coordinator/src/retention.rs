//! What is kept: the last few checkpoints and every Nth, and nothing of saves that never finished.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::error::{Error, Result};
use crate::layout::{self, CheckpointKey};
use crate::objects::Listed;
use crate::store::RunStore;

/// Which checkpoints to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    keep_last: usize,
    keep_every: Option<NonZeroU64>,
}

/// Something below `ckpt/` that belongs to no checkpoint: what a save leaves that was killed or lost a race.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// Its key, relative to the run.
    pub key: String,
    /// Its size in bytes.
    pub size: u64,
    /// When it was written, by the store's clock.
    pub modified: SystemTime,
    /// The file itself, for what the store does not list.
    staged: Option<PathBuf>,
}

impl Retention {
    /// Keeps the `keep_last` newest, and every step that `keep_every` divides, for ever.
    ///
    /// # Errors
    /// If `keep_last` is below 2: with one, damage to the newest loses the run.
    pub fn new(keep_last: usize, keep_every: Option<NonZeroU64>) -> Result<Self> {
        if keep_last < 2 {
            return Err(Error::input(
                format!("keeping the last {keep_last} checkpoints leaves nothing to fall back to"),
                "Keep at least 2",
            ));
        }
        Ok(Self { keep_last, keep_every })
    }
}

impl RunStore {
    /// Removes checkpoints that `retention` does not keep, manifest first, so that no half-removed one is ever
    /// taken for whole; returns their steps, ascending. Checkpoints with a missing or truncated object do not
    /// count among the last ones kept.
    ///
    /// # Errors
    /// If the store fails.
    pub fn prune(&self, retention: Retention) -> Result<Vec<u64>> {
        let steps = self.checkpoint_steps()?;
        let mut sound = 0;
        let mut removed = Vec::new();
        for &step in steps.iter().rev() {
            if sound < retention.keep_last {
                sound += usize::from(self.looks_sound(step)?);
                continue;
            }
            if retention.keep_every.is_some_and(|every| step.is_multiple_of(every.get())) {
                continue;
            }
            self.remove(step)?;
            removed.push(step);
        }
        removed.reverse();
        Ok(removed)
    }

    /// Removes every checkpoint after `step`, newest first: for going back to `step` on purpose where the arithmetic
    /// is not deterministic, so that the steps done again may be saved. Returns their steps, ascending.
    ///
    /// # Errors
    /// If the store fails.
    pub fn discard_after(&self, step: u64) -> Result<Vec<u64>> {
        let later: Vec<u64> = self.checkpoint_steps()?.into_iter().filter(|&later| later > step).collect();
        later.iter().rev().try_for_each(|&step| self.remove(step))?;
        Ok(later)
    }

    /// What saves left behind that never finished. A save under way looks the same, so judge by age.
    ///
    /// # Errors
    /// If the store fails.
    pub fn orphans(&self) -> Result<Vec<Orphan>> {
        let mut current: Option<(u64, Option<String>)> = None;
        let mut orphans = Vec::new();
        for listed in self.objects.list(layout::CHECKPOINTS)? {
            let Some(CheckpointKey::Object { step, attempt }) = layout::parse_checkpoint(&listed.key) else {
                continue;
            };
            if current.as_ref().is_none_or(|(of, _)| *of != step) {
                current = Some((step, self.protected_attempt(step)?));
            }
            let owner = current.as_ref().and_then(|(_, owner)| owner.as_deref());
            if owner != Some(attempt) && owner != Some(EVERY_ATTEMPT) {
                let Listed { key, size, modified } = listed;
                orphans.push(Orphan { key, size, modified, staged: None });
            }
        }
        orphans.extend(self.staged_files()?);
        Ok(orphans)
    }

    /// Removes orphans that are older than `age`, which must be longer than the slowest save takes (and than the
    /// difference between this clock and the store's). Returns what was removed.
    ///
    /// # Errors
    /// If the store fails.
    pub fn clean_orphans(&self, age: Duration) -> Result<Vec<Orphan>> {
        let now = SystemTime::now();
        let old = |orphan: &Orphan| now.duration_since(orphan.modified).is_ok_and(|since| since >= age);
        let orphans: Vec<Orphan> = self.orphans()?.into_iter().filter(old).collect();
        for orphan in &orphans {
            match &orphan.staged {
                Some(path) => std::fs::remove_file(path).map_err(|source| unremovable(path, source))?,
                None => self.remove_object(&orphan.key)?,
            }
        }
        Ok(orphans)
    }

    /// Whether the manifest reads and every object is there in full length; contents are not read.
    fn looks_sound(&self, step: u64) -> Result<bool> {
        let Ok(manifest) = self.read_manifest(step)? else { return Ok(false) };
        for object in &manifest.objects {
            if self.objects.size(&object.key)? != Some(object.size) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn remove(&self, step: u64) -> Result<()> {
        self.objects.delete(&layout::manifest(step))?;
        // Listings go by whole path segments: step-1 does not take step-10 with it.
        let objects = self.objects.list(&layout::step(step))?;
        objects.iter().try_for_each(|object| self.remove_object(&object.key))
    }

    /// Removes an object below `ckpt/`, and on a local disk the folders of its attempt and step once they are empty.
    /// (The store's own clean-up would climb on to the root, where another process may be about to write.)
    pub(crate) fn remove_object(&self, key: &str) -> Result<()> {
        self.objects.delete(key)?;
        if let Some(folder) = &self.folder {
            let file = folder.join(key);
            // Each is refused while the folder still holds something, which is what is wanted.
            let _ = file.ancestors().skip(1).take(2).try_for_each(std::fs::remove_dir);
        }
        Ok(())
    }

    /// The attempt that the step's manifest names; all of them if the manifest cannot be read, because a person
    /// may still want to repair it.
    fn protected_attempt(&self, step: u64) -> Result<Option<String>> {
        if self.objects.size(&layout::manifest(step))?.is_none() {
            return Ok(None);
        }
        Ok(Some(
            self.read_manifest(step)?.map_or_else(|_| EVERY_ATTEMPT.to_owned(), |manifest| manifest.attempt),
        ))
    }

    /// In a folder, a killed write leaves its staging file `<name>#<n>`, which the store does not list.
    fn staged_files(&self) -> Result<Vec<Orphan>> {
        let Some(folder) = &self.folder else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for step in folders(&folder.join(layout::CHECKPOINTS)) {
            for attempt in folders(&step) {
                for entry in std::fs::read_dir(&attempt).into_iter().flatten().flatten() {
                    let (path, staged) = (entry.path(), entry.file_name().to_string_lossy().contains('#'));
                    let (true, Ok(meta)) = (staged, entry.metadata()) else { continue };
                    let key = path.strip_prefix(folder).unwrap_or(&path).display().to_string();
                    let modified = meta.modified().map_err(|source| unremovable(&path, source))?;
                    found.push(Orphan { key, size: meta.len(), modified, staged: Some(path) });
                }
            }
        }
        found.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }
}

fn unremovable(path: &Path, source: std::io::Error) -> Error {
    Error::location(
        path.display().to_string(),
        format!("this left-over file cannot be removed: {source}"),
        "Check its permissions",
    )
}

/// No attempt has this id: `*` is not a character of one.
const EVERY_ATTEMPT: &str = "*";

/// The folders in `parent`; none if it cannot be read.
fn folders(parent: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir())
}
