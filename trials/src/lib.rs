//! The outside judge of Tenure.
//!
//! Everything here knows `tenure` only from outside: as a binary with flags, as the sender of HTTP requests, and as the
//! author of status versions in an API server. [`ledger`], [`probe`] and [`watcher`] see; [`judge`] judges, and is pure;
//! [`replicas`], [`aim`] and [`cluster`] are the harness's hands, and [`session`] runs one family of trials with them. [`pods`] does the same on a
//! cluster, with hands on its pods and nodes, and with a [`front`] before the API server.
//! [`peers`] puts Tenure beside other electors, and on one Lease with one of them. [`mod@bench`] measures instead of judging.
#![allow(
    clippy::disallowed_methods,
    reason = "the judge measures real processes by the real clock; only the code under test takes time as an argument"
)]

pub mod aim;
pub mod bench;
pub mod clock;
pub mod cluster;
pub mod front;
pub mod journal;
pub mod judge;
pub mod ledger;
pub mod objects;
pub mod observers;
pub mod peers;
pub mod pods;
pub mod probe;
pub mod replicas;
pub mod session;
pub mod slots;
pub mod wait;
pub mod walkthrough;
pub mod watcher;
