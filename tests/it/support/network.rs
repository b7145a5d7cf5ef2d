//! A network with a latency between a replica and the API server.
//!
//! What a replica has sent is on its way whatever becomes of the replica. With a latency of its own on each connection, what
//! two replicas do in the same instant has an order that follows from the seed, and not from the order in which a runtime
//! happens to poll them.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use kube::client::Body;
use sandbox::SandboxService;
use tokio::sync::oneshot;
use tower::{BoxError, Service};

/// A connection to the API server on which each request takes this long.
#[derive(Clone)]
pub struct Distant {
    inner: SandboxService,
    latency: Duration,
}

impl Distant {
    pub fn new(inner: SandboxService, latency: Duration) -> Self {
        Self { inner, latency }
    }
}

impl Service<Request<Body>> for Distant {
    type Response = Response<axum::body::Body>;
    type Error = BoxError;
    type Future = futures::future::BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (mut inner, latency) = (self.inner.clone(), self.latency);
        let (mut caller, answer) = oneshot::channel();
        tokio::spawn(async move {
            tokio::time::sleep(latency).await;
            tokio::select! {
                biased;
                answered = inner.call(request) => drop(caller.send(answered)),
                () = caller.closed() => {}
            }
        });
        Box::pin(async move { answer.await.unwrap_or_else(|_| Err("the connection broke".into())) })
    }
}
