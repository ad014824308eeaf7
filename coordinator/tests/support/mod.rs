//! Backends for the conformance suite, and a store that fails where it is told to.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use jrs_coordinator::object_store::memory::InMemory;
use jrs_coordinator::object_store::path::Path;
use jrs_coordinator::object_store::{
    self, CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use jrs_coordinator::{Bytes, RunStore};
use object_store::ObjectStoreExt;
use serde_json::{Value, json};

/// A place for runs that can be opened several times, and whose objects can be damaged.
pub struct Backend {
    connect: Box<dyn Fn() -> Arc<dyn ObjectStore> + Send + Sync>,
    pub prefix: Path,
    _folder: Option<tempfile::TempDir>,
}

impl Backend {
    pub fn memory() -> Self {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        Self {
            connect: Box::new(move || Arc::clone(&store)),
            prefix: Path::from("some/prefix"),
            _folder: None,
        }
    }

    pub fn folder() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn ObjectStore> =
            Arc::new(object_store::local::LocalFileSystem::new_with_prefix(folder.path()).unwrap());
        Self { connect: Box::new(move || Arc::clone(&store)), prefix: Path::ROOT, _folder: Some(folder) }
    }

    /// The bucket that `variable` names, below a prefix of this test alone. Its kind reads the variables that begin with
    /// `settings`.
    #[cfg(feature = "cloud")]
    pub fn bucket(variable: &str, settings: &'static str) -> Option<Self> {
        let Ok(url) = std::env::var(variable) else {
            eprintln!("SKIPPED: {variable} is not set");
            return None;
        };
        // As the crate does it for the stores that it opens itself.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url: url::Url = url.parse().unwrap();
        let open = move || {
            let variables = std::env::vars().filter(|(key, _)| key.starts_with(settings));
            object_store::parse_url_opts(&url, variables).unwrap()
        };
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let prefix = open().1.join(unique);
        Some(Self { connect: Box::new(move || Arc::from(open().0)), prefix, _folder: None })
    }

    /// A connection of its own: those of HTTP clients belong to the runtime that made them, and stand still when another
    /// one uses them while that one does nothing.
    pub fn store(&self) -> Arc<dyn ObjectStore> {
        (self.connect)()
    }

    pub fn open(&self) -> RunStore {
        self.open_through(self.store())
    }

    pub fn open_through(&self, store: Arc<dyn ObjectStore>) -> RunStore {
        RunStore::with_store(store, self.prefix.clone(), "run").unwrap()
    }

    /// Replaces the content of an object, or removes it.
    pub fn damage(&self, key: &str, with: impl FnOnce(Vec<u8>) -> Option<Vec<u8>>) {
        let path =
            key.split('/').fold(self.prefix.clone().join("runs").join("run"), |path, part| path.join(part));
        let store = self.store();
        block_on(async {
            let bytes = store.get(&path).await.unwrap().bytes().await.unwrap();
            match with(bytes.to_vec()) {
                Some(bytes) => drop(store.put(&path, bytes.into()).await.unwrap()),
                None => store.delete(&path).await.unwrap(),
            }
        });
    }
}

/// What a training step would save: content and cursor differ from step to step.
pub fn save(store: &RunStore, step: u64) -> jrs_coordinator::Manifest {
    try_save(store, step).unwrap()
}

pub fn try_save(store: &RunStore, step: u64) -> jrs_coordinator::Result<jrs_coordinator::Manifest> {
    store.save_checkpoint(step, 1, cursor(step), &blobs(step))
}

pub fn cursor(step: u64) -> Value {
    json!({"position": step * 16, "best": 0.1 + step as f64})
}

pub fn blobs(step: u64) -> [(&'static str, Bytes); 2] {
    let state: Vec<u8> = (0..2000 + step).map(|index| (index * 31 + step) as u8).collect();
    [("state.safetensors", Bytes::from(state)), ("note.txt", Bytes::from(format!("step {step}")))]
}

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// What happens at the chosen write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The process dies or the network breaks before the object is there; so do all later writes.
    Dead,
    /// The object is there, the reply is lost, and the store's own retry meets the object.
    LostReply,
    /// The object is there, the connection breaks, and the store does not try again.
    BrokenReply,
    /// The object is not there, and the store refuses it because of another write that comes to nothing.
    Conflict,
}

/// Passes everything to `inner`, except for the chosen write.
#[derive(Debug)]
pub struct Faulty {
    inner: Arc<dyn ObjectStore>,
    fault: Fault,
    at_write: usize,
    writes: Mutex<usize>,
}

impl Faulty {
    /// Fails at write number `at_write`, counted from 0.
    pub fn new(inner: &Arc<dyn ObjectStore>, fault: Fault, at_write: usize) -> Arc<Self> {
        Arc::new(Self { inner: Arc::clone(inner), fault, at_write, writes: Mutex::new(0) })
    }
}

impl std::fmt::Display for Faulty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Faulty({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        at: &Path,
        data: PutPayload,
        opts: PutOptions,
    ) -> object_store::Result<PutResult> {
        let write = {
            let mut writes = self.writes.lock().unwrap();
            *writes += 1;
            *writes - 1
        };
        match self.fault {
            Fault::Dead if write >= self.at_write => {
                Err(Error::Generic { store: "faulty", source: "the connection was lost".into() })
            }
            Fault::LostReply if write == self.at_write => {
                self.inner.put_opts(at, data, opts).await?;
                Err(Error::AlreadyExists { path: at.to_string(), source: "the retry met the object".into() })
            }
            Fault::BrokenReply if write == self.at_write => {
                self.inner.put_opts(at, data, opts).await?;
                Err(Error::Generic { store: "faulty", source: "the connection was lost".into() })
            }
            Fault::Conflict if write == self.at_write => Err(Error::AlreadyExists {
                path: at.to_string(),
                source: "another write is under way".into(),
            }),
            _ => self.inner.put_opts(at, data, opts).await,
        }
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        opts: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, opts).await
    }

    async fn get_opts(&self, at: &Path, opts: GetOptions) -> object_store::Result<GetResult> {
        self.inner.get_opts(at, opts).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, opts: CopyOptions) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, opts).await
    }
}
