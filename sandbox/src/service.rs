//! The sandbox as a tower service: a connection without a network.

use std::task::{Context, Poll};

use axum::{
    BoxError, Router,
    body::{Body, HttpBody},
};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use tokio::sync::oneshot;
use tower::{Service, ServiceExt};

use crate::http::{Caller, Lost};

/// One caller's connection to a [`crate::Sandbox`] in the same process.
#[derive(Clone)]
pub struct SandboxService {
    router: Router,
    caller: Caller,
}

impl SandboxService {
    pub(crate) fn new(router: Router, client: &str) -> Self {
        Self { router, caller: Caller(client.to_owned()) }
    }
}

impl<B> Service<Request<B>> for SandboxService
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(self.caller.clone());
        let answer = send(self.router.clone(), request);
        Box::pin(async move { answer.await.unwrap_or_else(|_| Err("the connection broke".into())) })
    }
}

/// Hands the request to a task of its own, which is the network: it goes on when the caller is gone.
pub(crate) fn send(router: Router, request: Request<Body>) -> oneshot::Receiver<Result<Response<Body>, BoxError>> {
    let (mut caller, answer) = oneshot::channel();
    tokio::spawn(async move {
        let response = router.oneshot(request).await.unwrap_or_else(|never| match never {});
        let arrived = match response.extensions().get::<Lost>() {
            Some(Lost::Hang) => return caller.closed().await,
            Some(Lost::Reset) => Err("the connection was reset".into()),
            None => Ok(response),
        };
        // The caller may have given up; then there is nobody to tell.
        caller.send(arrived).ok();
    });
    answer
}
