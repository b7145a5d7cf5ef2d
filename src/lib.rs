//! Tenure.

#[cfg(feature = "controller")]
pub mod api;
pub mod apiserver;
pub mod backoff;
pub mod clock;
pub mod dial;
#[doc(hidden)]
pub mod duration;
pub mod election;
pub mod entropy;
pub mod tasks;
