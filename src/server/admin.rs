//! The admin port: probes, `/metrics`, `/status`.
//!
//! It answers from state that is already there, so a slow API server or a busy scheduler never slows a probe. It has no
//! authentication: nothing here changes anything, and nothing secret is shown. Bounded: connections, the time to send a
//! request's head, and the time of a keep-alive connection without a request.

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use serde_json::Value;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;

use super::checks::{Checks, Probe};
use crate::{
    clock::{self, SharedClock},
    observe::metrics::{CONTENT_TYPE, MetricsError},
    tasks::Tasks,
};

/// What the admin port shows: views of the replica's state, made when they are asked for.
#[derive(Clone)]
pub struct AdminViews {
    /// The health checks.
    pub checks: Checks,
    /// The text of `/metrics`.
    pub metrics: Arc<dyn Fn() -> Result<String, MetricsError> + Send + Sync>,
    /// The document of `/status`.
    pub status: Arc<dyn Fn() -> Result<Value, serde_json::Error> + Send + Sync>,
}

/// A running admin server.
#[derive(Debug)]
pub struct Admin {
    address: SocketAddr,
    tasks: Tasks,
    stop: CancellationToken,
}

/// Why there is no admin server.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Somebody else listens there.
    #[error(
        "--admin-address {address} is already in use; end the process that listens there, or choose another address \
         (port 0 takes a free one)"
    )]
    InUse {
        /// The address that was asked for.
        address: SocketAddr,
    },
    /// The address cannot be listened on for another reason.
    #[error("cannot listen on --admin-address {address}: {source}")]
    Listen {
        /// The address that was asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// A kubelet and a Prometheus keep one or two each; the rest is people.
const MAX_CONNECTIONS: usize = 64;

/// A probe's whole head is one packet; who takes longer only holds a place.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// A head of a probe is about 200 bytes.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// After an error of `accept`, such as no file descriptors left, so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Requests that are being answered at the end get this long.
const STOP_TIMEOUT: Duration = Duration::from_millis(500);

/// Takes the admin address. A separate step from serving, so that a replica finds out at its start.
///
/// # Errors
/// [`AdminError`] if it is in use or cannot be listened on.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, AdminError> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => AdminError::InUse { address },
        _ => AdminError::Listen { address, source },
    })
}

impl Admin {
    /// Serves `views` on `listener`.
    ///
    /// # Errors
    /// [`AdminError::Listen`] if the listener has no address.
    pub fn start(
        listener: TcpListener,
        views: AdminViews,
        clock: SharedClock,
        tasks: &Tasks,
    ) -> Result<Self, AdminError> {
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        let address = listener.local_addr().map_err(|source| AdminError::Listen { address: unknown, source })?;
        let (stop, tasks) = (CancellationToken::new(), tasks.child());
        let accept = Accept {
            router: router(views),
            places: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            stop: stop.clone(),
            tasks: tasks.clone(),
            clock,
        };
        tasks.spawn("admin", accept.run(listener)).detach();
        Ok(Self { address, tasks, stop })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops listening, lets requests end that are being answered, and waits.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close_and_wait().await;
    }
}

/// The routes of the admin port.
fn router(views: AdminViews) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/livez/{check}", get(livez_one))
        .route("/healthz", get(healthz))
        .route("/healthz/{check}", get(livez_one))
        .route("/readyz", get(readyz))
        .route("/readyz/{check}", get(readyz_one))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .fallback(not_found)
        .with_state(views)
}

type Parameters = Query<Vec<(String, String)>>;

async fn livez(State(views): State<AdminViews>, parameters: Parameters) -> Response {
    probe(&views, Probe::Live, "livez", &parameters)
}

async fn healthz(State(views): State<AdminViews>, parameters: Parameters) -> Response {
    probe(&views, Probe::Live, "healthz", &parameters)
}

async fn readyz(State(views): State<AdminViews>, parameters: Parameters) -> Response {
    probe(&views, Probe::Ready, "readyz", &parameters)
}

async fn livez_one(State(views): State<AdminViews>, Path(name): Path<String>) -> Response {
    one(&views, Probe::Live, &name)
}

async fn readyz_one(State(views): State<AdminViews>, Path(name): Path<String>) -> Response {
    one(&views, Probe::Ready, &name)
}

fn probe(views: &AdminViews, probe: Probe, title: &str, Query(parameters): &Parameters) -> Response {
    let values = |wanted: &'static str| parameters.iter().filter(move |(name, _)| name == wanted);
    let exclude: Vec<_> = values("exclude").map(|(_, value)| value.clone()).collect();
    let report = views.checks.report(probe, title, &exclude);
    match report.passed {
        true if values("verbose").next().is_none() => "ok".into_response(),
        true => report.verbose.into_response(),
        // A failure always says what has failed.
        false => (StatusCode::SERVICE_UNAVAILABLE, report.verbose).into_response(),
    }
}

fn one(views: &AdminViews, probe: Probe, name: &str) -> Response {
    match views.checks.one(probe, name) {
        Some(Ok(())) => "ok".into_response(),
        Some(Err(reason)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{name} failed: {reason}\n")).into_response(),
        None => {
            let names: Vec<_> = views.checks.names(probe).collect();
            let text = format!("there is no check called {name:?} here; there are: {}\n", names.join(", "));
            (StatusCode::NOT_FOUND, text).into_response()
        }
    }
}

async fn metrics(State(views): State<AdminViews>) -> Response {
    match (views.metrics)() {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "Metrics could not be printed");
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
        }
    }
}

async fn status(State(views): State<AdminViews>) -> Response {
    match (views.status)() {
        Ok(document) => Json(document).into_response(),
        Err(error) => {
            tracing::error!(%error, "Status could not be printed");
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
        }
    }
}

async fn not_found() -> (StatusCode, &'static str) {
    (StatusCode::NOT_FOUND, "there is: /livez, /readyz, /healthz, /metrics, /status\n")
}

struct Accept {
    router: Router,
    places: Arc<Semaphore>,
    stop: CancellationToken,
    tasks: Tasks,
    clock: SharedClock,
}

impl Accept {
    async fn run(self, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                accepted = self.next(&listener) => accepted,
            };
            match accepted {
                Ok((stream, place)) => {
                    let (router, stop, clock) = (self.router.clone(), self.stop.clone(), self.clock.clone());
                    let serve = async move {
                        serve(stream, router, stop, clock).await;
                        drop(place);
                    };
                    self.tasks.spawn("admin connection", serve).detach();
                }
                Err(error) => {
                    tracing::warn!(%error, "Admin connection could not be accepted");
                    clock::sleep(&*self.clock, ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Waits for a place first: who does not get one stays in the system's queue.
    async fn next(&self, listener: &TcpListener) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
        let place = self.places.clone().acquire_owned().await.map_err(io::Error::other)?;
        let (stream, _) = listener.accept().await?;
        Ok((stream, place))
    }
}

/// One connection. hyper rather than `axum::serve`, which has no deadline for a request's head.
async fn serve(stream: TcpStream, router: Router, stop: CancellationToken, clock: SharedClock) {
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let ended = tokio::select! {
        biased;
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            clock::timeout(&*clock, STOP_TIMEOUT, connection.as_mut()).await.unwrap_or(Ok(()))
        }
        ended = connection.as_mut() => ended,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "Admin connection failed");
    }
}

impl fmt::Debug for AdminViews {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("AdminViews").field("checks", &self.checks).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "admin_tests.rs"]
mod tests;
