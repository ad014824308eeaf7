//! The `jrs` command from outside: what it writes, what it prints, how it fails.
//!
//! The files live here with the other tests that cross crates; the target belongs to the package of the binary, so
//! that cargo builds the binary first.

mod bad_input;
mod gpu_check;
mod real_ct;
mod register;
mod support;
mod training;
