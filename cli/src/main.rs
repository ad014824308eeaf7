//! The `jrs` command.
fn main() {}
