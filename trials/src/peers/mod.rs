//! Tenure beside other electors, on a cluster where all of them are installed (`tests/peers`).
//!
//! [`table`] strikes Tenure, client-go, kube-lease-manager and kube-leader-election by the same faults at the same time, each
//! on its own Lease, and [`report`] prints what the probe saw. The figures of the others are measurements: they never fail a run.
//! Tenure's own are held to what it promises. [`mixed`] puts Tenure and client-go on one Lease, and lets them hand it to each
//! other. Whether Tenure loses or doubles work is not looked at here but in [`crate::pods`].

mod behind;
mod fault;
mod fleet;
pub mod mixed;
pub mod report;
mod seen;
mod strike;
pub mod table;
mod ticks;

use std::{io, time::Duration};

use thiserror::Error;

pub use fault::Fault;
pub use fleet::{Contender, Fleet};
pub use report::Row;
pub use ticks::{Stint, Ticks};

use crate::{pods::HandError, wait::Overdue};

/// The namespace of everything.
pub const NAMESPACE: &str = "tenure-peers";

/// Why the peers could not be tried. This says nothing about any of them: look at the log.
#[derive(Debug, Error)]
pub enum PeersError {
    /// The API server.
    #[error("{what}: {source}")]
    Api {
        /// What was asked of it.
        what: String,
        /// Its answer.
        source: Box<kube::Error>,
    },
    /// A fault.
    #[error(transparent)]
    Hand(#[from] HandError),
    /// A front.
    #[error(transparent)]
    Front(#[from] crate::front::FrontError),
    /// Something that was waited for.
    #[error("{fleet}: {source}")]
    Overdue {
        /// Who.
        fleet: String,
        /// What did not happen.
        source: Overdue,
    },
    /// A file or a socket.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

fn millis(distance: jiff::SignedDuration) -> String {
    format!("{:+.1}", distance.as_secs_f64() * 1000.0)
}

fn seconds(span: Duration) -> String {
    format!("{:.3}", span.as_secs_f64())
}
