//! Tenure.

#[cfg(feature = "controller")]
#[doc(hidden)]
pub mod action;
#[cfg(feature = "controller")]
pub mod api;
pub mod apiserver;
pub mod backoff;
#[cfg(feature = "controller")]
#[doc(hidden)]
pub mod cli;
pub mod clock;
pub mod dial;
#[doc(hidden)]
pub mod duration;
pub mod election;
pub mod entropy;
#[cfg(feature = "controller")]
#[doc(hidden)]
pub mod observe;
#[cfg(feature = "controller")]
#[doc(hidden)]
pub mod server;
#[cfg(feature = "controller")]
#[doc(hidden)]
pub mod settings;
pub mod tasks;
