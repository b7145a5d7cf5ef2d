//! Connections to an API server over the network.
//!
//! A [`Line`] is a pool of connections, renewed whenever its [`Credentials`] are: with every change of what is needed to
//! connect, and with every failure after which the next request had better find another way. Behind one address there are
//! often several API servers, and a connection that is kept alive stays with one of them: a server that answers every
//! request with an error, at once, would keep its clients for ever. Requests on their way are not disturbed by a renewal:
//! their connection goes on until it has answered.

use std::{
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use hyper_util::{
    client::legacy::{
        Client as HttpClient,
        connect::{Connect, HttpConnector},
    },
    rt::{TokioExecutor, TokioTimer},
};
use kube::client::{Body, middleware::AuthLayer};
use tower::{BoxError, Layer, Service, ServiceExt, util::BoxCloneSyncService};

use super::{
    Answer, Transport, Way,
    credentials::{Credentials, Loaded},
    gate::{Gate, GatedConnector},
};
use crate::election::Guard;

/// An idle connection is given up before the API server does that after 90 s: a request that meets the closing is lost.
const IDLE_MAX: Duration = Duration::from_mins(1);

/// A connection on which nothing comes in for so long is probed by the kernel. A watch on a quiet object is such a one.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(10);

/// The pause between two probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// So many probes without an answer end the connection.
const KEEPALIVE_PROBES: u32 = 3;

/// What was sent and not acknowledged for so long ends the connection: without it the kernel goes on for 15 minutes.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(20);

/// The way to an API server over the network.
pub(super) struct Network {
    credentials: Arc<Credentials>,
    plain: Line,
}

/// One pool, renewed as told.
#[derive(Clone)]
struct Line {
    credentials: Arc<Credentials>,
    guard: Option<Guard>,
    pool: Arc<Mutex<Option<(u64, Transport)>>>,
}

/// Makes a pool: gated, if there is a guard.
pub(super) type MakePool = Arc<dyn Fn(Option<&Guard>) -> Transport + Send + Sync>;

impl Network {
    pub(super) fn new(credentials: Credentials) -> Self {
        let credentials = Arc::new(credentials);
        Self { plain: Line::new(credentials.clone(), None), credentials }
    }
}

impl Way for Network {
    fn plain(&self) -> Transport {
        BoxCloneSyncService::new(self.plain.clone())
    }

    fn gated(&self, guard: &Guard) -> Transport {
        let line = Line::new(self.credentials.clone(), Some(guard.clone()));
        BoxCloneSyncService::new(Gate::new(BoxCloneSyncService::new(line), guard.clone()))
    }

    fn renew(&self) {
        self.credentials.renew();
    }
}

/// The connector beneath TLS.
pub(super) fn tcp() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(KEEPALIVE_AFTER));
    tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    tcp.set_keepalive_retries(Some(KEEPALIVE_PROBES));
    #[cfg(target_os = "linux")]
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX));
    tcp
}

/// What makes pools of the connections of `connector`, with `auth` on each request.
pub(super) fn pools<C>(connector: C, auth: Option<AuthLayer>) -> MakePool
where
    C: Connect + Service<http::Uri> + Clone + Send + Sync + 'static,
    GatedConnector<C>: Connect,
{
    Arc::new(move |guard| match guard {
        None => pool(connector.clone(), auth.as_ref(), false),
        Some(guard) => pool(GatedConnector::new(connector.clone(), guard.clone()), auth.as_ref(), true),
    })
}

fn pool<C: Connect + Clone + Send + Sync + 'static>(connector: C, auth: Option<&AuthLayer>, gated: bool) -> Transport {
    let http = HttpClient::builder(TokioExecutor::new())
        .pool_idle_timeout(IDLE_MAX)
        .pool_timer(TokioTimer::new())
        // What acts for a term is sent again only by whoever planned it.
        .retry_canceled_requests(!gated)
        .build(connector);
    let http = ServiceExt::<Request<Body>>::map_err(http, BoxError::from).map_response(
        |answer: http::Response<hyper::body::Incoming>| answer.map(|body| body.map_err(Into::into).boxed_unsync()),
    );
    match auth {
        Some(auth) => BoxCloneSyncService::new(auth.layer(http)),
        None => BoxCloneSyncService::new(http),
    }
}

impl Line {
    fn new(credentials: Arc<Credentials>, guard: Option<Guard>) -> Self {
        Self { credentials, guard, pool: Arc::default() }
    }

    /// The pool as it is to be now, and its number.
    fn current(&self) -> (u64, Transport) {
        let Loaded { number, make } = self.credentials.loaded();
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = pool.take().filter(|(of, _)| *of == number);
        let current = kept.unwrap_or_else(|| (number, make(self.guard.as_ref())));
        *pool = Some(current.clone());
        current
    }

    /// What an answer says about the way that it came.
    fn judge(&self, number: u64, answer: &Result<Answer, BoxError>) {
        match answer {
            Ok(answer) if answer.status() == StatusCode::UNAUTHORIZED => self.credentials.refused(),
            Ok(answer) if is_of_the_server(answer.status()) => self.credentials.renew_after(number),
            Err(error) if is_tls_alert(&**error) => self.credentials.refused(),
            _ => {}
        }
    }
}

/// Whether a status speaks of this one API server, and another may answer differently.
fn is_of_the_server(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error()
}

/// Whether the other side has refused the connection in words of TLS, as one does that finds a client certificate expired.
fn is_tls_alert(error: &(dyn std::error::Error + 'static)) -> bool {
    crate::explain::explain(error).contains("received fatal alert")
}

impl Service<Request<Body>> for Line {
    type Response = Answer;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Answer, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let line = self.clone();
        async move {
            line.credentials.ready().await;
            let (number, pool) = line.current();
            let answer = pool.oneshot(request).await;
            line.judge(number, &answer);
            answer
        }
        .boxed()
    }
}
