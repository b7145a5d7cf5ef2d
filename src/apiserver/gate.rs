//! The gate of a Kubernetes client, in its two forms.
//!
//! Over a network the gate is in the connection ([`GatedConnector`]): a pool that hands out such connections can wait, dial
//! and try again as it likes. Around both kinds of transport, [`Gate`] asks once more when a request begins to be worked
//! on: for a service in this process there is no later moment, and over a network it spares a connection that could carry
//! nothing. It also gives every refusal one shape, [`TermEnded`] as the error itself.

use std::task::{Context, Poll};

use futures::{
    FutureExt,
    future::{BoxFuture, MapOk},
};
use http::{Request, Uri};
use hyper_util::rt::TokioIo;
use kube::client::Body;
use tower::{BoxError, Service};

use super::{Answer, Transport};
use crate::{
    election::{GatedStream, Guard, TermEnded, is_refusal},
    explain::explain,
};

/// Makes connections whose every write asks the guard. It belongs outermost, above TLS, and its connections into a pool of
/// their own: what another term may send over them is asked of this one's guard.
#[derive(Debug, Clone)]
pub struct GatedConnector<C> {
    inner: C,
    guard: Guard,
}

impl<C> GatedConnector<C> {
    /// Connections of `inner` that ask `guard`.
    pub fn new(inner: C, guard: Guard) -> Self {
        Self { inner, guard }
    }
}

type GatedIo<S> = TokioIo<GatedStream<TokioIo<S>>>;

impl<C> Service<Uri> for GatedConnector<C>
where
    C: Service<Uri>,
    C::Response: 'static,
    C::Future: Unpin,
{
    type Response = GatedIo<C::Response>;
    type Error = C::Error;
    type Future = MapOk<C::Future, Box<dyn FnOnce(C::Response) -> GatedIo<C::Response> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), C::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let guard = self.guard.clone();
        let gated = move |stream| TokioIo::new(GatedStream::new(TokioIo::new(stream), guard));
        futures::TryFutureExt::map_ok(self.inner.call(to), Box::new(gated))
    }
}

/// A gated request found no connection to go over: nothing of it was sent, and while the term lasts it may be sent again.
#[derive(Debug, thiserror::Error)]
#[error("nothing was sent: {}", explain(&**.0))]
pub(crate) struct NotSent(BoxError);

/// Whether `error` says that no connection could be made, or that the one at hand had died before the request got to it.
fn found_no_connection(error: &(dyn std::error::Error + 'static)) -> bool {
    let connecting = error
        .downcast_ref::<hyper_util::client::legacy::Error>()
        .is_some_and(hyper_util::client::legacy::Error::is_connect);
    let died = |error: &(dyn std::error::Error + 'static)| {
        error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled)
    };
    connecting || error.source().is_some_and(died)
}

/// Asks the guard when a request is first polled, and says for sure what was not sent: [`TermEnded`] for every refusal from
/// further in, [`NotSent`] where there was no connection.
#[derive(Clone)]
pub(super) struct Gate {
    inner: Transport,
    guard: Guard,
}

impl Gate {
    pub(super) fn new(inner: Transport, guard: Guard) -> Self {
        Self { inner, guard }
    }
}

impl Service<Request<Body>> for Gate {
    type Response = Answer;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Answer, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The clone that stays behind has not been asked whether it is ready; the one that was does the work.
        let next = self.inner.clone();
        let (mut ready, guard) = (std::mem::replace(&mut self.inner, next), self.guard.clone());
        async move {
            guard.check()?;
            ready.call(request).await.map_err(|error| match &*error {
                refusal if is_refusal(refusal) => TermEnded.into(),
                unsent if found_no_connection(unsent) => NotSent(error).into(),
                _ => error,
            })
        }
        .boxed()
    }
}
