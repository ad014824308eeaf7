//! Tests that cross crates live in `tests/`; here is what they share.

pub mod external;
pub mod reference;
