//! The gate where the first byte is written.
//!
//! [`GatedStream`] stands between an HTTP client and its connection, above TLS if there is any, and asks the guard in the
//! very call that hands bytes over. A gate further up, such as a layer around a client, asks too early: the checkout from
//! the pool, name resolution, connect, TLS and the client's own second try all come after it and take as long as they
//! like. So there is no such layer to be had here.
//!
//! A connection that is kept alive carries many requests, and each begins with a write: [`EveryWrite`] asks at every one.
//! Whether the first byte alone is to be asked for is the business of another [`WriteGate`].

use std::{
    error::Error,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::guard::{Guard, TermEnded};

/// A connection that takes bytes only as its gate says.
#[derive(Debug)]
pub struct GatedStream<S, G = EveryWrite> {
    inner: S,
    gate: G,
}

/// Decides on each write to a [`GatedStream`].
pub trait WriteGate {
    /// Calls `write`, or refuses to.
    fn pass(&mut self, write: impl FnOnce() -> Poll<io::Result<usize>>) -> Poll<io::Result<usize>>;

    /// Is told what the other side has sent.
    fn heard(&mut self, _bytes: &[u8]) {}
}

/// Lets a write through only while the term is valid.
#[derive(Debug)]
pub struct EveryWrite {
    guard: Guard,
    /// Whether bytes of a request have been taken that has not been answered yet.
    under_way: bool,
}

/// The term ended when a part of a request had been sent: unlike after [`TermEnded`], it is not certain that the request
/// had no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the term in office ended in the middle of a request")]
struct CutOff;

/// How an interim answer begins. The request that it is about is still under way.
const INTERIM: &[u8] = b"HTTP/1.1 1";

impl<S> GatedStream<S> {
    /// A connection that asks `guard` at every write.
    pub fn new(inner: S, guard: Guard) -> Self {
        Self { inner, gate: EveryWrite { guard, under_way: false } }
    }
}

impl<S, G> GatedStream<S, G> {
    /// A connection with a gate of another kind.
    #[cfg(feature = "controller")]
    pub(crate) fn with_gate(inner: S, gate: G) -> Self {
        Self { inner, gate }
    }
}

impl WriteGate for EveryWrite {
    fn pass(&mut self, write: impl FnOnce() -> Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Err(ended) = self.guard.check() {
            let refused = if self.under_way { io::Error::other(CutOff) } else { io::Error::other(ended) };
            return Poll::Ready(Err(refused));
        }
        let written = write();
        // A connection that takes nothing (pending) has sent nothing. An error may come after TLS has taken bytes and
        // passed some on: it counts as sent.
        self.under_way |= written.is_ready();
        written
    }

    fn heard(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() && !bytes.starts_with(INTERIM) {
            self.under_way = false;
        }
    }
}

/// Whether `error` says that a gate has refused a request before its first byte: that nothing of it was sent is certain.
pub(crate) fn is_refusal(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        // An I/O error does not name what it was made of as its source.
        let made_of = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if error.is::<TermEnded>() || made_of.is_some_and(<dyn Error + Send + Sync>::is::<TermEnded>) {
            return true;
        }
        next = error.source();
    }
    false
}

impl<S: AsyncWrite + Unpin, G: WriteGate + Unpin> AsyncWrite for GatedStream<S, G> {
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

impl<S: AsyncRead + Unpin, G: WriteGate + Unpin> AsyncRead for GatedStream<S, G> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { inner, gate } = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(inner).poll_read(context, buffer);
        gate.heard(buffer.filled().get(before..).unwrap_or_default());
        read
    }
}

impl<S, G> Connection for GatedStream<TokioIo<S>, G>
where
    TokioIo<S>: Connection,
{
    fn connected(&self) -> Connected {
        self.inner.connected()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;
    use crate::{
        clock::SystemClock,
        election::{Term, testing},
    };

    const LONG: Duration = Duration::from_hours(1);

    fn term() -> Term {
        testing::term(&SystemClock::shared(), 1, LONG)
    }

    #[tokio::test]
    async fn a_stream_that_has_carried_a_request_takes_no_other_after_the_end() {
        let (term, (near, mut far)) = (term(), duplex(64));
        let mut stream = GatedStream::new(near, term.guard());
        stream.write_all(b"GET / ").await.expect("the term is valid");
        far.write_all(b"HTTP/1.1 200 OK").await.expect("open");
        stream.read_exact(&mut [0; 15]).await.expect("the answer");
        testing::revoke(&term);
        let refused = stream.write(b"PATCH / ").await.expect_err("the term has ended");
        assert!(is_refusal(&refused), "{refused}");
        drop(stream);
        let mut sent = String::new();
        far.read_to_string(&mut sent).await.expect("text");
        assert_eq!(sent, "GET / ");
    }

    #[tokio::test]
    async fn a_request_that_is_cut_off_in_its_middle_does_not_count_as_unsent() {
        let (term, (near, mut far)) = (term(), duplex(64));
        let mut stream = GatedStream::new(near, term.guard());
        stream.write_all(b"PATCH / ").await.expect("the term is valid");
        far.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.expect("open");
        stream.read_exact(&mut [0; 25]).await.expect("the interim answer");
        testing::revoke(&term);
        let cut = stream.write(b"the rest").await.expect_err("the term has ended");
        assert!(!is_refusal(&cut), "{cut}");
    }

    #[test]
    fn a_refusal_is_found_beneath_the_errors_around_it() {
        #[derive(Debug, thiserror::Error)]
        #[error("sending")]
        struct Sending(#[source] io::Error);
        assert!(is_refusal(&Sending(io::Error::other(TermEnded))));
        assert!(!is_refusal(&Sending(io::Error::other("refused"))));
    }
}
