//! Lease-based leader election for services on Kubernetes: one of several replicas leads, and what only the leader may do
//! happens in one place at a time.
//!
//! ```no_run
//! use std::time::Duration;
//! use tenure::{Elector, PeriodicTimer, Term};
//!
//! # async fn report(_term: Term) {}
//! # async fn observe(_term: Term) {}
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let elector = Elector::builder("hourly-report")      // the Lease; namespace and identity come from the pod
//!     .lease_duration(Duration::from_secs(15))
//!     .start(kube::Config::infer().await?)?;           // its own connection; unsafe timings are refused
//! let leadership = elector.leadership();               // Clone; .watch() is a tokio watch::Receiver<Standing>
//!
//! let mut timer = PeriodicTimer::every(Duration::from_secs(3600), &leadership);
//! let reports = async {
//!     while let Some(tick) = timer.tick().await {      // pends while standby; None once stopping
//!         let _ = tick.run(report).await;              // dropped the instant the term ends
//!     }                                                // work that merely follows a tick is not gated
//! };
//! let observer = leadership.while_leading(observe);    // called anew in every term, dropped at its end and its hand-over
//! let stop = elector.release_on(tokio::signal::ctrl_c()); // no new ticks, waits for live ones, hands over
//! let ((), (), _released) = tokio::join!(reports, observer, stop);
//! # Ok(())
//! # }
//! ```
//!
//! # What is promised
//!
//! No two replicas have a valid [`Term`] at the same time, whatever happens to pods, nodes, messages and the API server, as
//! long as no clock's *rate* is wrong by more than 10 %. Offsets and steps of wall clocks do not matter. A leader that is
//! cut off stops before another can take over; a frozen one finds its guard shut when it thaws; a planned hand-over waits
//! for the work in hand and takes milliseconds.
//!
//! # What is not
//!
//! An effect that is already on the wire when its process is frozen can still land, and a virtual machine whose clock stood
//! still does not know it. For those, send [`Term::token`] along: it grows with every term, and a target that remembers
//! the largest one it has seen can refuse what is older.
//!
//! # Where to go on
//!
//! Work that blocks or detaches: [`Term::spawn_blocking`], [`Term::begin`]. Work that a hand-over waits for:
//! [`Leadership::while_leading_gracefully`], [`Term::hold`]. Letting others lead for a while: [`Elector::stand_aside`]. A
//! runtime that is blocked at times: [`election::ElectorBuilder::own_thread`]. A liveness probe: [`Elector::health`].
//! Metrics and news of who leads: [`election::ElectorObserver`].
//!
//! # Features
//!
//! The library needs none of the features; a program that uses it chooses the version of `k8s-openapi` itself. `controller`
//! (on by default) is what the `tenure` binary is made of: its modules are public for the binary and the tests, and carry
//! no promise of stability. `dev` adds the sandbox.
#![cfg_attr(docsrs, feature(doc_cfg))]

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
#[doc(hidden)]
pub mod dial;
#[doc(hidden)]
pub mod duration;
pub mod election;
pub mod entropy;
mod explain;
#[cfg(test)]
mod heard;
#[cfg(feature = "controller")]
mod item;
#[cfg(feature = "controller")]
#[doc(hidden)]
pub mod observe;
#[cfg(feature = "controller")]
#[doc(hidden)]
pub mod periodic;
#[cfg(feature = "controller")]
#[doc(hidden)]
pub mod replica;
#[cfg(feature = "controller")]
#[doc(hidden)]
pub mod schedule;
#[cfg(feature = "controller")]
#[doc(hidden)]
pub mod server;
#[cfg(feature = "controller")]
#[doc(hidden)]
pub mod settings;
pub mod tasks;
pub mod timer;

pub use election::{Elector, Guard, Leadership, Released, Standing, Term, TermEnded};
pub use timer::{FirstTick, PeriodicTimer, Tick};
pub use {k8s_openapi, kube};
