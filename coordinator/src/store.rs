//! Opening the place of a run, and making sure before training that it can keep one.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use object_store::ObjectStore;
use object_store::path::Path;

use crate::error::{Error, Result};
use crate::layout;
use crate::location::Location;
use crate::objects::{Created, Objects, sha256};

/// How often an older result is replaced before giving up: another writer may do the same.
const RESULT_TRIES: usize = 3;

/// One run in a folder or bucket. All methods block; call them from a thread that is not inside an asynchronous
/// runtime. It can be shared between threads.
#[derive(Debug)]
pub struct RunStore {
    pub(crate) objects: Objects,
    /// The folder of the run, if it is on this machine.
    pub(crate) folder: Option<PathBuf>,
    name: String,
}

/// The names of the runs below `url`, sorted.
///
/// # Errors
/// If the place is not understood, does not exist or fails.
pub fn run_names(url: &str) -> Result<Vec<String>> {
    let Location { store, prefix, name, credentials, .. } = Location::parse(url, false)?;
    let runs = Objects::new(store, prefix.join("runs"), format!("{name}/runs"), credentials)?;
    let mut names = runs.folders()?;
    names.retain(|name| layout::plain_name("a run", name).is_ok());
    names.sort();
    Ok(names)
}

impl RunStore {
    /// Opens run `run` below `url` for training: a folder (made if missing; relative to the working directory),
    /// `file:///folder`, or with the matching cargo feature `s3://bucket/prefix`, `gs://bucket/prefix` or
    /// `az://container/prefix`, with credentials from the usual environment variables.
    ///
    /// # Errors
    /// If the place is not understood, cannot be written to, or does not honour create-only writes, on which
    /// every promise of this crate rests.
    pub fn open(url: &str, run: &str) -> Result<Self> {
        let store = Self::at(Location::parse(url, true)?, run)?;
        store.probe(url)?;
        Ok(store)
    }

    /// Opens run `run` below `url` for reading: nothing is written, a missing folder is an error.
    ///
    /// # Errors
    /// If the place is not understood or does not exist.
    pub fn open_to_read(url: &str, run: &str) -> Result<Self> {
        Self::at(Location::parse(url, false)?, run)
    }

    /// Run `run` below `prefix` of a store that the caller made, for decorated stores and tests.
    ///
    /// # Errors
    /// If `run` is not a plain name.
    pub fn with_store(store: Arc<dyn ObjectStore>, prefix: Path, run: &str) -> Result<Self> {
        let name = format!("{store}/{prefix}").trim_end_matches('/').to_owned();
        Self::at(Location { store, prefix, folder: None, name, credentials: "" }, run)
    }

    /// The run's name.
    pub fn run(&self) -> &str {
        &self.name
    }

    /// Where the run is kept, for messages and reports: an absolute folder or a URL.
    pub fn location(&self) -> &str {
        self.objects.location()
    }

    /// Stores a result of the run, such as its model, under `name`, in place of an older one. A reader may find nothing for
    /// a moment, but never half of it.
    ///
    /// # Errors
    /// If `name` is no plain file name or the store fails.
    pub fn put_result(&self, name: &str, bytes: Bytes) -> Result<()> {
        let key = layout::plain_name("a result", name)?;
        let wanted = Some((bytes.len() as u64, sha256(&bytes)));
        for _ in 0..RESULT_TRIES {
            if self.objects.create(key, bytes.clone())? == Created::Yes || self.objects.digest(key)? == wanted
            {
                return Ok(());
            }
            self.objects.delete(key)?;
        }
        Err(Error::location(
            format!("{}/{key}", self.location()),
            "someone else keeps writing this result",
            "Stop the other training that writes to this run",
        ))
    }

    fn at(location: Location, run: &str) -> Result<Self> {
        let run = layout::plain_name("a run", run)?;
        let root = location.prefix.join("runs").join(run);
        let place = format!("{}/runs/{run}", location.name);
        let folder = location.folder.map(|folder| folder.join("runs").join(run));
        let objects = Objects::new(location.store, root, place, location.credentials)?;
        Ok(Self { objects, folder, name: run.to_owned() })
    }

    /// Writes a small object twice: the first write must succeed and the second be refused.
    fn probe(&self, url: &str) -> Result<()> {
        let key = format!("probe-{}", uuid::Uuid::new_v4().simple());
        let unusable = |error| match error {
            // A bucket that is away for the moment is no mistake of the user's.
            Error::Store { source, .. } if self.folder.is_some() || refused(&source) => Error::location(
                url,
                format!("cannot be written to: {source}"),
                format!(
                    "Choose a place that you may write to, or check its permissions and credentials{}",
                    self.objects.credentials()
                ),
            ),
            other => other,
        };
        let write = || {
            let bytes = Bytes::from_static(b"can this place be written to?\n");
            self.objects.create(&key, bytes).map_err(unusable)
        };
        let first = write()?;
        let second = write()?;
        self.objects.delete(&key)?;
        if first == Created::Yes && second == Created::Yes {
            return Err(Error::location(
                url,
                "this store overwrites objects although told not to, so two writers could destroy each other's work",
                "Use a store with conditional writes (S3, GCS, Azure, SeaweedFS, MinIO) or a folder",
            ));
        }
        Ok(())
    }
}

/// Whether trying again is no use.
fn refused(error: &object_store::Error) -> bool {
    use object_store::Error::{NotFound, PermissionDenied, Unauthenticated};
    matches!(error, PermissionDenied { .. } | Unauthenticated { .. } | NotFound { .. })
}
