//! Behaviour, one module per surface or failure family.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "tests stand outside of what they test"
)]

mod aside;
mod choreographed;
mod dev;
mod election;
mod examples;
mod jobs;
mod library;
mod periodic;
mod readme;
mod shutdown;
mod simulation;
mod start_up;
mod support;
mod wrong_http;
mod wrong_input;
