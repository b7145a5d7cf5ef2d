//! What a replica shows of itself: metrics, logs, Kubernetes Events and `/status`. Names live here, in one place.
//!
//! All of it is a view: nothing here decides anything, and nothing waits for it.

pub mod events;
pub mod logs;
pub mod metrics;
pub mod probe;
mod reporter;
pub mod views;

pub use reporter::Reporter;
