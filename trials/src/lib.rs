//! The outside judge of Tenure.
//!
//! Everything here knows `tenure` only from outside: as a binary with flags, as the sender of HTTP requests, and as the
//! author of status versions in an API server.
#![allow(
    clippy::disallowed_methods,
    reason = "the judge measures real processes by the real clock; only the code under test takes time as an argument"
)]

pub mod clock;
pub mod judge;
pub mod ledger;
pub mod probe;
pub mod slots;
pub mod walkthrough;
pub mod watcher;
