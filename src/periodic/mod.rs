//! Periodic jobs: what a leader decides about slots, stores, runs and records.
pub mod patch;
pub mod plan;
pub mod record;
