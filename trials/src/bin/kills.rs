//! Aimed kills of the release binary.
fn main() {}
