//! The C ABI of libjrs. `include/jrs.h` is generated from here (`cbindgen.toml`), so comments on public items are
//! written for callers in C; `docs/integrators.md` is their manual.
//!
//! One module per C type family, a thin layer over libjrs. All entries go through [`status::guard`], so that no panic
//! crosses into the host and every failure leaves its words for `jrs_last_error`.

pub mod status;

pub mod cancel;
pub mod contours;
pub mod limits;
pub mod model;
pub mod qa;
pub mod register;
pub mod result;
pub mod session;
pub mod version;
pub mod volume;
pub mod write;

mod call;
#[cfg(debug_assertions)]
pub mod debug;
mod structs;
