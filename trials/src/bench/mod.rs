//! The benchmark: figures of the release binary, next to their targets. Nothing here passes or fails.
//!
//! Sandbox, ledger and replicas are processes of their own, so that each has its own runtime, and what the one costs is not
//! counted to the other. [`run`] measures once; [`render`] prints several runs as median and spread.

mod figures;
mod outside;
mod run;

pub use figures::{Figure, Lateness, Measured, render};
pub use outside::{OutsideError, serve_ledger};
pub use run::{BenchError, Settings, run};
