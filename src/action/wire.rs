//! The last step before the first byte.
//!
//! [`Wire`] is a [`GatedStream`] between the HTTP client and the connection (above TLS, if there is any): its gate asks the
//! guard in the very call that hands the first byte of the request over, and notes when that was. However long the steps
//! before have taken, there is nothing between the guard's answer and the write.

use std::{
    io,
    sync::{Arc, OnceLock},
    task::Poll,
};

use jiff::Timestamp;

use crate::{
    clock::SharedClock,
    election::{GatedStream, Guard, TermEnded, WriteGate},
};

/// A connection whose first byte is let through only while the term is valid.
pub(super) type Wire<S> = GatedStream<S, FirstByteGate>;

/// What has happened on a [`Wire`]; outlives it.
#[derive(Debug, Default)]
pub(super) struct WireLog(OnceLock<Result<Timestamp, TermEnded>>);

/// Asks once: what has begun to be sent is sent as a whole, and its answer is a fact.
#[derive(Debug)]
pub(super) struct FirstByteGate {
    guard: Guard,
    clock: SharedClock,
    log: Arc<WireLog>,
}

impl WireLog {
    /// When the first byte was handed over, if one may have been.
    pub(super) fn first_byte(&self) -> Option<Timestamp> {
        self.0.get().and_then(|verdict| verdict.ok())
    }

    /// Whether the guard said no, so that nothing was handed over.
    pub(super) fn refused(&self) -> bool {
        matches!(self.0.get(), Some(Err(TermEnded)))
    }
}

/// Puts the gate before `inner`, which carries one request.
pub(super) fn wire<S>(inner: S, guard: Guard, clock: SharedClock, log: Arc<WireLog>) -> Wire<S> {
    GatedStream::with_gate(inner, FirstByteGate { guard, clock, log })
}

impl WriteGate for FirstByteGate {
    /// Asks the guard until the first byte has been taken; from then on the request is on its way as a whole.
    fn pass(&mut self, write: impl FnOnce() -> Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match self.log.0.get() {
            Some(Ok(_)) => return write(),
            Some(Err(ended)) => return Poll::Ready(Err(io::Error::other(*ended))),
            None => {}
        }
        let now = self.clock.wall();
        if let Err(ended) = self.guard.check() {
            self.log.0.get_or_init(|| Err(ended)).ok();
            return Poll::Ready(Err(io::Error::other(ended)));
        }
        let written = write();
        // A connection that takes nothing (pending) has sent nothing. An error may come after TLS has taken bytes and
        // passed some on: it counts as sent.
        if written.is_ready() {
            self.log.0.get_or_init(|| Ok(now)).ok();
        }
        written
    }
}
