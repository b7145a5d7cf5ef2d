//! Tenure.

pub mod clock;
pub mod entropy;
