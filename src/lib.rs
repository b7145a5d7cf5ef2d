//! Tenure.

#[cfg(feature = "controller")]
pub mod api;
pub mod apiserver;
pub mod clock;
pub mod dial;
pub mod election;
pub mod entropy;
pub mod tasks;
