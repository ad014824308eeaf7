//! Runs in an object store, and the plan of a training step.
//!
//! This crate holds what every part of the training cluster has to agree on and nothing that talks over a
//! network: where a run keeps its files, when a checkpoint counts as saved, who leads, and which micro-batch
//! belongs to which rank. It serves training on a single machine as it is.
//!
//! * [`RunStore`] keeps one run in a folder or a bucket: its config, its generations and its checkpoints.
//!   A checkpoint exists when its [`Manifest`] exists; the manifest is written last and only once.
//! * [`BackgroundSaver`] saves while training goes on.
//! * [`plan`] cuts a step into micro-batches and hands them to ranks, as pure functions.
//!
//! ```
//! use jrs_coordinator::{Bytes, RunStore, Start};
//! # fn main() -> jrs_coordinator::Result<()> {
//! let store = RunStore::open("memory:///", "demo")?;
//! store.start_run("seed = 1\n", "sha256:0123", Start::New)?;
//! store.save_checkpoint(10, 1, serde_json::json!({"step": 10}), &[("state.safetensors", Bytes::from("..."))])?;
//! let loaded = store.load_latest()?.expect("one was saved");
//! assert_eq!(loaded.manifest.step, 10);
//! # Ok(())
//! # }
//! ```
//!
//! # Layout
//!
//! ```text
//! runs/<run>/config.toml                           create-only
//! runs/<run>/dataset.digest                        create-only, written second: with it the run exists
//! runs/<run>/gen/<n>.json                          create-only
//! runs/<run>/ckpt/step-<n>/<attempt>/<object>      create-only, for instance state.safetensors
//! runs/<run>/ckpt/step-<n>/MANIFEST.json           create-only, written last
//! ```
//!
//! `<n>` is a decimal number without leading zeros, so that one step has one key; listings are sorted by number.
//! `<attempt>` is random: two writers of one step never touch each other's objects.

#![forbid(unsafe_code)]

mod background;
mod bucket;
mod checkpoint;
mod cloud;
pub mod decision;
mod error;
mod generation;
mod layout;
mod location;
mod manifest;
mod objects;
pub mod plan;
mod retention;
pub mod simulation;
mod start;
mod store;

pub use background::BackgroundSaver;
pub use bucket::Bucket;
pub use bytes::Bytes;
pub use checkpoint::{Checked, Loaded, Skipped};
pub use error::{Error, Result};
pub use generation::Claim;
pub use manifest::{Manifest, StoredObject};
pub use object_store;
pub use retention::{Orphan, Retention};
pub use start::{Start, Started};
pub use store::{RunStore, run_names};
