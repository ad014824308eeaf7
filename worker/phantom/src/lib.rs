//! A synthetic male-pelvis CT cohort with known truth.
//!
//! Every patient is a set of signed distance functions in a template frame ([`anatomy`]); every scan is a
//! smooth invertible pull-back map into it ([`motion`]); images are rendered at the mapped points with
//! content, texture and noise of their own ([`render`]); and the true displacement between two scans
//! follows by inverting one of the maps ([`truth`]). Numbers come from the tables in the phantom's
//! documentation and are cited where they are used.
//!
//! ```no_run
//! let preset = jrs_phantom::Preset::named("demo")?;
//! let dataset = jrs_phantom::generate(&preset, 1, "cohort".as_ref(), &|done, total| {
//!     eprintln!("{done} of {total}");
//! })?;
//! println!("{} pairs", dataset.pairs.len());
//! # Ok::<(), libjrs::Error>(())
//! ```
#![forbid(unsafe_code)]

pub mod anatomy;
mod cohort;
pub mod draw;
pub mod lattice;
pub mod motion;
mod preset;
pub mod render;
pub mod truth;

pub use cohort::generate;
pub use preset::{Plan, Preset};
