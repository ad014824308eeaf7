//! Saving beside training: training waits only for the copy of its state to host memory.

use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::manifest::Manifest;
use crate::retention::Retention;
use crate::store::RunStore;

/// Saves one checkpoint at a time on a thread of its own. Call [`finish`](Self::finish) at the end; dropping it
/// waits too, but can only log a failure.
#[derive(Debug)]
pub struct BackgroundSaver {
    store: Arc<RunStore>,
    retention: Option<Retention>,
    running: Option<JoinHandle<Result<Manifest>>>,
}

impl BackgroundSaver {
    /// Saves into `store` and prunes by `retention` after each save.
    pub fn new(store: Arc<RunStore>, retention: Option<Retention>) -> Self {
        Self { store, retention, running: None }
    }

    /// Begins to save (arguments as in [`RunStore::save_checkpoint`]), after waiting for the save before it,
    /// whose manifest is returned.
    ///
    /// # Errors
    /// What the save before it failed with; this one is not begun then.
    pub fn save(
        &mut self,
        step: u64,
        generation: u64,
        cursor: serde_json::Value,
        blobs: Vec<(String, Bytes)>,
    ) -> Result<Option<Manifest>> {
        let before = self.wait()?;
        let (store, retention) = (Arc::clone(&self.store), self.retention);
        let save = move || {
            let blobs: Vec<(&str, Bytes)> =
                blobs.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
            let manifest = store.save_checkpoint(step, generation, cursor, &blobs)?;
            // The checkpoint is there; what could not be removed is removed after the next one.
            if let Some(retention) = retention
                && let Err(error) = store.prune(retention)
            {
                tracing::warn!(%error, "old checkpoints could not be removed");
            }
            Ok(manifest)
        };
        let thread = std::thread::Builder::new().name("checkpoint".to_owned()).spawn(save);
        self.running = Some(thread.map_err(|source| {
            Error::input(
                format!("no thread for saving can be started: {source}"),
                "Raise the limit of processes",
            )
        })?);
        Ok(before)
    }

    /// Whether a save is under way, so that [`save`](Self::save) would have to wait.
    pub fn busy(&self) -> bool {
        self.running.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Waits for the save under way, if any, and returns its manifest.
    ///
    /// # Errors
    /// What it failed with.
    pub fn wait(&mut self) -> Result<Option<Manifest>> {
        let Some(thread) = self.running.take() else { return Ok(None) };
        match thread.join() {
            Ok(saved) => saved.map(Some),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Waits for the last save.
    ///
    /// # Errors
    /// What it failed with.
    pub fn finish(mut self) -> Result<Option<Manifest>> {
        self.wait()
    }
}

impl Drop for BackgroundSaver {
    fn drop(&mut self) {
        let Some(thread) = self.running.take() else { return };
        match thread.join() {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::error!(%error, "the last checkpoint was not saved"),
            Err(_) => tracing::error!("the last checkpoint was not saved: its thread panicked"),
        }
    }
}
