//! The few store operations that a run needs, blocking, on keys relative to the run.

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// Before a change is made again of which it is not known whether it was made.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(300), Duration::from_millis(900)];
/// After this time it is not made again: the store itself has waited long enough.
const PATIENCE: Duration = Duration::from_secs(30);

/// The objects of one run. Training is synchronous, so the store's futures run on a small runtime of its own.
#[derive(Debug)]
pub(crate) struct Objects {
    store: Arc<dyn ObjectStore>,
    root: Path,
    location: String,
    credentials: &'static str,
    runtime: Runtime,
}

/// Runs the store's futures. Dropping it does not wait, so that it may be dropped anywhere, even inside another runtime.
#[derive(Debug)]
struct Runtime(Option<tokio::runtime::Runtime>);

impl Runtime {
    fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.0.as_ref().expect("it is only taken when dropped").block_on(future)
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// What became of a create-only write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Created {
    Yes,
    /// Something is there already. After a retry inside the store it may be our own write, so read it back.
    Exists,
}

/// One line of a listing.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    pub(crate) key: String,
    pub(crate) size: u64,
    pub(crate) modified: std::time::SystemTime,
}

impl Objects {
    /// The objects below `root` in `store`; messages call the place `location`, and say where its `credentials` come from.
    pub(crate) fn new(
        store: Arc<dyn ObjectStore>,
        root: Path,
        location: String,
        credentials: &'static str,
    ) -> Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|source| {
                Error::location(
                    &location,
                    format!("no runtime for the store: {source}"),
                    "Raise the limit of open files",
                )
            })?;
        Ok(Self { store, root, location, credentials, runtime: Runtime(Some(runtime)) })
    }

    /// How messages call the run.
    pub(crate) fn location(&self) -> &str {
        &self.location
    }

    /// Where the store's credentials come from, in brackets; empty if it needs none.
    pub(crate) fn credentials(&self) -> &'static str {
        self.credentials
    }

    /// Writes `bytes` under `key` unless something is there.
    pub(crate) fn create(&self, key: &str, bytes: Bytes) -> Result<Created> {
        let path = self.path(key);
        let write = async || {
            let options = PutOptions::from(PutMode::Create);
            match self.store.put_opts(&path, bytes.clone().into(), options).await {
                Ok(_) => Ok(Created::Yes),
                // Which of the two a cloud answers depends on the moment at which the other write ended.
                Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                    self.exists(&path).await
                }
                Err(source) => Err(source),
            }
        };
        self.runtime.block_on(settled(write)).map_err(|source| self.failed(key, "create", source))
    }

    /// A cloud also says that something exists while the write of another one is under way, which may come to nothing.
    async fn exists(&self, path: &Path) -> object_store::Result<Created> {
        match self.store.head(path).await {
            Ok(_) => Ok(Created::Exists),
            Err(object_store::Error::NotFound { source, .. }) => {
                Err(object_store::Error::Generic { store: "conditional write", source })
            }
            Err(source) => Err(source),
        }
    }

    /// The content of `key`, or `None` if it is not there. Any other failure is an error: a store that is out of
    /// reach must never look like an empty one.
    pub(crate) fn read(&self, key: &str) -> Result<Option<Bytes>> {
        let path = self.path(key);
        let read = self.runtime.block_on(async { self.store.get(&path).await?.bytes().await });
        self.found(key, "read", read)
    }

    /// Size in bytes of `key`, or `None` if it is not there.
    pub(crate) fn size(&self, key: &str) -> Result<Option<u64>> {
        let head = self.runtime.block_on(self.store.head(&self.path(key)));
        Ok(self.found(key, "look up", head)?.map(|meta| meta.size))
    }

    /// Size and SHA-256 of `key` without holding it in memory, or `None` if it is not there.
    pub(crate) fn digest(&self, key: &str) -> Result<Option<(u64, String)>> {
        let path = self.path(key);
        let digest = self.runtime.block_on(async {
            let mut chunks = self.store.get(&path).await?.into_stream();
            let (mut size, mut hash) = (0, Sha256::new());
            while let Some(chunk) = chunks.try_next().await? {
                size += chunk.len() as u64;
                hash.update(&chunk);
            }
            Ok((size, hex(&hash.finalize())))
        });
        self.found(key, "read", digest)
    }

    /// Removes `key`; that it is gone already is fine.
    pub(crate) fn delete(&self, key: &str) -> Result<()> {
        let path = self.path(key);
        let deleted = self.runtime.block_on(settled(async || self.store.delete(&path).await));
        self.found(key, "delete", deleted).map(|_| ())
    }

    /// Everything below `prefix`, sorted by key.
    pub(crate) fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        let listing = self.store.list(Some(&self.path(prefix)));
        let metas: Vec<ObjectMeta> = self
            .runtime
            .block_on(listing.try_collect())
            .map_err(|source| self.failed(prefix, "list", source))?;
        let mut listed: Vec<Listed> = metas.into_iter().filter_map(|meta| self.listed(meta)).collect();
        listed.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(listed)
    }

    /// The folders right below the root.
    pub(crate) fn folders(&self) -> Result<Vec<String>> {
        let listing = self.runtime.block_on(self.store.list_with_delimiter(Some(&self.root)));
        let listing = listing.map_err(|source| self.failed("", "list", source))?;
        let name = |folder: &Path| folder.filename().map(str::to_owned);
        Ok(listing.common_prefixes.iter().filter_map(name).collect())
    }

    fn listed(&self, meta: ObjectMeta) -> Option<Listed> {
        let parts: Vec<_> = meta.location.prefix_match(&self.root)?.collect();
        let key = parts.iter().map(AsRef::as_ref).collect::<Vec<&str>>().join("/");
        Some(Listed { key, size: meta.size, modified: meta.last_modified.into() })
    }

    fn path(&self, key: &str) -> Path {
        key.split('/').fold(self.root.clone(), |path, part| path.join(part))
    }

    fn found<T>(
        &self,
        key: &str,
        action: &'static str,
        result: object_store::Result<T>,
    ) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(self.failed(key, action, source)),
        }
    }

    fn failed(&self, key: &str, action: &'static str, source: object_store::Error) -> Error {
        Error::Store {
            object: format!("{}/{key}", self.location),
            action,
            source: Box::new(source),
            credentials: self.credentials,
        }
    }
}

/// Makes a change again whose reply was lost. That is safe where the second one does nothing if the first one arrived: a
/// create-only write then finds its own object, and the caller knows it by its content.
async fn settled<T>(change: impl AsyncFn() -> object_store::Result<T>) -> object_store::Result<T> {
    let began = Instant::now();
    for pause in PAUSES {
        match change().await {
            Err(object_store::Error::Generic { source, .. }) if began.elapsed() < PATIENCE => {
                tracing::debug!(%source, ?pause, "the store did not say whether it made this change; asking again");
                tokio::time::sleep(pause).await;
            }
            settled => return settled,
        }
    }
    change().await
}

/// SHA-256 of `bytes` in lower-case hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
