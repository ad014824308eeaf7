//! Pictures, tables and pages from registration results.
//!
//! Everything here turns data into bytes or text and computes no registration metric (those are in
//! `libjrs::metrics` and `libjrs::qa`):
//!
//! - [`view`] and [`overlay`]: a slice through volumes in patient space, with contours, checkerboards,
//!   differences, displacement and Jacobian maps; [`figures`] puts the usual ones together;
//! - [`boxplot`] and [`curves`]: SVG charts (the paper's Figure 2, loss curves);
//! - [`evaluation`], [`stats`], [`wilcoxon`] and [`table`]: the scores of a study and the paper's tables;
//! - [`html`], [`registration_page()`] and [`evaluation_page()`]: self-contained pages.
//!
//! The charts are written as SVG by hand and not with a plotting crate: what is needed is two chart types, text
//! has to stay text, and colours have to follow the reader's light or dark setting, which takes CSS classes that
//! plotting crates do not emit.
#![forbid(unsafe_code)]

pub mod boxplot;
pub mod colour;
pub mod curves;
pub mod evaluation;
pub mod evaluation_page;
pub mod figures;
pub mod html;
pub mod image;
pub mod montage;
pub mod overlay;
pub mod registration_page;
mod sample;
pub mod save;
pub mod stats;
mod svg;
pub mod table;
pub mod view;
pub mod wilcoxon;

pub use evaluation::{Case, Evaluation, OrganScores, Score, System};
pub use evaluation_page::{EvaluationReport, evaluation_page};
pub use figures::RegistrationPictures;
pub use html::{Figure, Picture, Verdict};
pub use image::RgbImage;
pub use registration_page::{RegistrationReport, registration_page};
pub use save::save;
