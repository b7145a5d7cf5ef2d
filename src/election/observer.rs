//! Who is told of what an elector does, for metrics.

use std::{fmt, time::Duration};

use super::machine::Lost;

/// Is told of terms and writes. Calls come from the elector's loop and must not block.
pub trait ElectorObserver: fmt::Debug + Send + Sync + 'static {
    /// A term with this token has begun.
    fn term_began(&self, token: u64) {
        let _ = token;
    }

    /// The term in office has ended.
    fn term_ended(&self, lost: Lost) {
        let _ = lost;
    }

    /// A write of the Lease was answered with success, this long after it was sent.
    fn write_confirmed(&self, took: Duration) {
        let _ = took;
    }
}

/// Is told, and does nothing.
#[derive(Debug, Clone, Copy)]
pub(super) struct NoObserver;

impl ElectorObserver for NoObserver {}
