//! The sandbox as a process.
fn main() {}
