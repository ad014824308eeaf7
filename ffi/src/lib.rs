//! The C ABI of libjrs. Callers read `include/jrs.h`, which is normative; this crate implements it.
//!
//! Present: versions, errors, models (load, check, describe, free). Not yet: sessions (registration), progress and
//! cancelling, log callback, signatures, estimates of time and memory.
//!
//! One module per C type family. All entries go through [`status::guard`], so that no panic crosses into the
//! host and every failure leaves its words for `jrs_last_error`.

pub mod model;
pub mod status;
pub mod version;
