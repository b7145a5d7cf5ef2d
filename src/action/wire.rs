//! The last step before the first byte.
//!
//! [`Wire`] stands between the HTTP client and the connection (above TLS, if there is any) and asks the guard in the very
//! call that hands the first byte of the request over. However long the steps before have taken, there is nothing between
//! the guard's answer and the write.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use jiff::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    clock::SharedClock,
    election::{Guard, TermEnded},
};

/// A connection whose first byte is let through only while the term is valid.
#[derive(Debug)]
pub(super) struct Wire<S> {
    inner: S,
    gate: FirstByteGate,
}

/// What has happened on a [`Wire`]; outlives it.
#[derive(Debug, Default)]
pub(super) struct WireLog(OnceLock<Result<Timestamp, TermEnded>>);

#[derive(Debug)]
struct FirstByteGate {
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

impl<S> Wire<S> {
    pub(super) fn new(inner: S, guard: Guard, clock: SharedClock, log: Arc<WireLog>) -> Self {
        Self { inner, gate: FirstByteGate { guard, clock, log } }
    }
}

impl FirstByteGate {
    /// Asks the guard until the first byte has been taken; from then on the request is on its way as a whole.
    fn pass(&self, write: impl FnOnce() -> Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
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

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self { inner, gate } = self.get_mut();
        gate.pass(|| Pin::new(inner).poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { inner, gate } = self.get_mut();
        gate.pass(|| Pin::new(inner).poll_write_vectored(context, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_read(context, buffer)
    }
}
