//! Tenure.

pub mod apiserver;
pub mod clock;
pub mod dial;
pub mod election;
pub mod entropy;
pub mod tasks;
