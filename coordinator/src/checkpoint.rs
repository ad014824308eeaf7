//! Saving and loading checkpoints. The truth is the list of manifests; everything else may be half-written.

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::layout::{self, CheckpointKey};
use crate::manifest::{Manifest, StoredObject};
use crate::objects::{Created, sha256};
use crate::store::RunStore;

/// How often a commit is tried again after it removed a damaged checkpoint of the same step.
const COMMIT_TRIES: usize = 3;

/// A checkpoint in memory; every object matched its size and SHA-256.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// What it says about itself.
    pub manifest: Manifest,
    /// Name and content of each object, in the manifest's order.
    pub blobs: Vec<(String, Bytes)>,
    /// Newer checkpoints that were damaged and passed over, newest first.
    pub skipped: Vec<Skipped>,
}

/// A damaged checkpoint that was passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Its step.
    pub step: u64,
    /// What is wrong with it.
    pub reason: String,
}

/// The state of one checkpoint in a listing.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// Its step.
    pub step: u64,
    /// Its manifest, or what is wrong with the checkpoint.
    pub manifest: Result<Manifest, String>,
}

impl Loaded {
    /// The object called `name`.
    ///
    /// # Errors
    /// If the checkpoint has no such object: it was written by another version of the program.
    pub fn blob(&self, name: &str) -> Result<&Bytes> {
        self.blobs.iter().find(|(stored, _)| stored == name).map(|(_, bytes)| bytes).ok_or_else(|| {
            Error::input(
                format!("the checkpoint of step {} has no object {name:?}", self.manifest.step),
                "Resume with the version of the program that wrote it",
            )
        })
    }
}

impl RunStore {
    /// Saves a checkpoint: the objects first, under a folder of this attempt alone, and the manifest last. When
    /// this returns, the checkpoint survives a power failure; when it fails or the process dies, the earlier
    /// checkpoints are as they were. Each object is one upload, so at most 5 GB in a bucket.
    ///
    /// If the step is saved already with the same content, that one is returned; a damaged one is replaced.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the step is saved already with other content; [`Error::Input`] for names that
    /// are no plain file names.
    pub fn save_checkpoint(
        &self,
        step: u64,
        generation: u64,
        cursor: serde_json::Value,
        blobs: &[(&str, Bytes)],
    ) -> Result<Manifest> {
        let attempt = uuid::Uuid::new_v4().simple().to_string();
        check_names(blobs)?;
        let objects = blobs
            .iter()
            .map(|(name, bytes)| self.store_object(step, &attempt, name, bytes))
            .collect::<Result<Vec<_>>>()?;
        self.commit(Manifest::new(step, generation, attempt, cursor, objects))
    }

    /// Every checkpoint with a manifest, oldest first, with its manifest checked but its objects unread.
    ///
    /// # Errors
    /// If the store fails.
    pub fn list_checkpoints(&self) -> Result<Vec<Checked>> {
        let steps = self.checkpoint_steps()?;
        steps.into_iter().map(|step| Ok(Checked { step, manifest: self.read_manifest(step)? })).collect()
    }

    /// Every checkpoint with a manifest, oldest first, with all its objects read and compared.
    ///
    /// # Errors
    /// If the store fails; damage is in the result.
    pub fn verify(&self) -> Result<Vec<Checked>> {
        self.checkpoint_steps()?.into_iter().map(|step| self.verify_step(step)).collect()
    }

    /// The newest sound checkpoint, or `None` if the run has no checkpoint. Damaged ones on the way are logged as
    /// errors and listed in [`Loaded::skipped`].
    ///
    /// # Errors
    /// [`Error::NothingSound`] if there are checkpoints and none is sound; [`Error::Store`] if the store fails,
    /// which is never taken for damage.
    pub fn load_latest(&self) -> Result<Option<Loaded>> {
        let mut skipped = Vec::new();
        for step in self.checkpoint_steps()?.into_iter().rev() {
            match self.read_checkpoint(step)? {
                Ok(loaded) => return Ok(Some(Loaded { skipped, ..loaded })),
                Err(reason) => {
                    tracing::error!(
                        run = self.location(),
                        step,
                        reason,
                        "checkpoint is damaged, falling back to the one before"
                    );
                    skipped.push(Skipped { step, reason });
                }
            }
        }
        if skipped.is_empty() {
            return Ok(None);
        }
        let reasons = skipped.iter().map(|skip| format!("step {}: {}", skip.step, skip.reason)).collect();
        Err(Error::NothingSound { location: self.location().to_owned(), reasons })
    }

    /// The checkpoint of exactly this step; never another one.
    ///
    /// # Errors
    /// [`Error::NoCheckpoint`] or [`Error::DamagedCheckpoint`].
    pub fn load_step(&self, step: u64) -> Result<Loaded> {
        let location = || self.location().to_owned();
        let steps = self.checkpoint_steps()?;
        if !steps.contains(&step) {
            return Err(Error::NoCheckpoint { location: location(), step, steps });
        }
        match self.read_checkpoint(step)? {
            Ok(loaded) => Ok(loaded),
            Err(reason) => Err(Error::DamagedCheckpoint { location: location(), step, reason }),
        }
    }

    /// The steps that have a manifest, ascending.
    pub(crate) fn checkpoint_steps(&self) -> Result<Vec<u64>> {
        let listed = self.objects.list(layout::CHECKPOINTS)?;
        let manifest_step = |key: &str| match layout::parse_checkpoint(key)? {
            CheckpointKey::Manifest { step } => Some(step),
            CheckpointKey::Object { .. } => None,
        };
        let mut steps: Vec<u64> = listed.iter().filter_map(|object| manifest_step(&object.key)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// The manifest of `step`; the inner error says what is wrong with it, the outer that the store failed.
    pub(crate) fn read_manifest(&self, step: u64) -> Result<Result<Manifest, String>> {
        Ok(match self.objects.read(&layout::manifest(step))? {
            Some(bytes) => Manifest::parse(&bytes, step),
            None => Err("its manifest is missing".to_owned()),
        })
    }

    fn store_object(&self, step: u64, attempt: &str, name: &str, bytes: &Bytes) -> Result<StoredObject> {
        let key = layout::object(step, attempt, name);
        let size = bytes.len() as u64;
        let sha256 = sha256(bytes);
        // The key is ours alone, so something there is our own write whose acknowledgement was lost.
        if self.objects.create(&key, bytes.clone())? == Created::Exists
            && self.objects.digest(&key)? != Some((size, sha256.clone()))
        {
            return Err(Error::location(
                format!("{}/{key}", self.location()),
                "the store holds other bytes than were written",
                "Check the store; the earlier checkpoints are untouched",
            ));
        }
        Ok(StoredObject { name: name.to_owned(), key, size, sha256 })
    }

    fn commit(&self, manifest: Manifest) -> Result<Manifest> {
        let (key, step) = (layout::manifest(manifest.step), manifest.step);
        for _ in 0..COMMIT_TRIES {
            if self.objects.create(&key, Bytes::from(manifest.to_bytes()))? == Created::Yes {
                return Ok(manifest);
            }
            match self.verify_step(step)?.manifest {
                Ok(held) if held.attempt == manifest.attempt => return Ok(manifest),
                Ok(held) if held.same_content(&manifest) => {
                    self.forget(&manifest);
                    return Ok(held);
                }
                Ok(held) => {
                    self.forget(&manifest);
                    let (location, attempt) = (self.location().to_owned(), held.attempt);
                    return Err(Error::Conflict { location, step, attempt });
                }
                Err(reason) => {
                    tracing::error!(run = self.location(), step, reason, "replacing a damaged checkpoint");
                    self.objects.delete(&key)?;
                }
            }
        }
        Err(Error::location(
            format!("{}/{key}", self.location()),
            format!("the manifest was taken {COMMIT_TRIES} times by damaged checkpoints"),
            "Stop the other training that writes to this run, and check the store",
        ))
    }

    /// Removes the objects of an attempt that lost; what cannot be removed is an orphan for later.
    fn forget(&self, manifest: &Manifest) {
        for object in &manifest.objects {
            if let Err(error) = self.remove_object(&object.key) {
                tracing::warn!(%error, "could not remove an object of an attempt that lost");
            }
        }
    }

    fn verify_step(&self, step: u64) -> Result<Checked> {
        let manifest = match self.read_manifest(step)? {
            Ok(manifest) => manifest,
            Err(reason) => return Ok(Checked { step, manifest: Err(reason) }),
        };
        for object in &manifest.objects {
            let found = self.objects.digest(&object.key)?;
            let found = found.as_ref().map(|(size, sha256)| (*size, sha256.as_str()));
            if let Err(reason) = compare(object, found) {
                return Ok(Checked { step, manifest: Err(reason) });
            }
        }
        Ok(Checked { step, manifest: Ok(manifest) })
    }

    /// Everything of `step`; errors as in [`read_manifest`](Self::read_manifest).
    fn read_checkpoint(&self, step: u64) -> Result<Result<Loaded, String>> {
        let manifest = match self.read_manifest(step)? {
            Ok(manifest) => manifest,
            Err(reason) => return Ok(Err(reason)),
        };
        let mut blobs = Vec::with_capacity(manifest.objects.len());
        for object in &manifest.objects {
            let bytes = self.objects.read(&object.key)?;
            let digest = bytes.as_ref().map(|bytes| sha256(bytes));
            let found =
                bytes.as_ref().zip(digest.as_deref()).map(|(bytes, digest)| (bytes.len() as u64, digest));
            if let Err(reason) = compare(object, found) {
                return Ok(Err(reason));
            }
            blobs.extend(bytes.map(|bytes| (object.name.clone(), bytes)));
        }
        Ok(Ok(Loaded { manifest, blobs, skipped: Vec::new() }))
    }
}

/// Compares what the manifest promises with the size and SHA-256 found.
fn compare(object: &StoredObject, found: Option<(u64, &str)>) -> Result<(), String> {
    let StoredObject { key, size, sha256, .. } = object;
    match found {
        None => Err(format!("{key} is missing")),
        Some((length, _)) if length != *size => Err(format!("{key} has {length} bytes instead of {size}")),
        Some((_, digest)) if digest != sha256 => {
            Err(format!("{key} has SHA-256 {digest} instead of {sha256}, so its content changed"))
        }
        Some(_) => Ok(()),
    }
}

fn check_names(blobs: &[(&str, Bytes)]) -> Result<()> {
    if blobs.is_empty() {
        return Err(Error::input(
            "a checkpoint without objects would restore nothing",
            "Pass at least one object",
        ));
    }
    for (index, (name, _)) in blobs.iter().enumerate() {
        layout::plain_name("a checkpoint's object", name)?;
        if blobs[..index].iter().any(|(earlier, _)| earlier == name) {
            return Err(Error::input(format!("two objects are called {name:?}"), "Give each its own name"));
        }
    }
    Ok(())
}
