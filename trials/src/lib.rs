//! The outside judge.
