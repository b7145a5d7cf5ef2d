//! How a replica reaches the API server, and what it learns from each answer.
//!
//! One [`ApiServer`] makes every Kubernetes client of a replica: plain ones for watches and for facts, gated ones for what
//! may happen only while a term is valid. kube's own retries are off for all of them: kube 5 repeats every verb on 429, 503
//! and 504 up to 15 times outside of any layer, which would send a leader's write long after the term that planned it.
//!
//! Every answer's `Date` header is noted with the time it was asked for ([`ApiServer::date`]): that is how a replica
//! finds out that its wall clock is wrong.

use std::{fmt, sync::Arc, time::Duration};

use futures::FutureExt;
use http::{Request, Response};
use hyper_util::rt::TokioExecutor;
use jiff::Timestamp;
use kube::{
    Client, Config,
    client::{Body, ConfigExt},
};
use tokio::sync::watch;
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, util::BoxCloneSyncService};

use crate::{
    clock::{self, BootTime, SharedClock},
    election::{Gate, GateLayer, Guard},
};

/// The way to one API server. Clones share their connections.
#[derive(Clone)]
pub struct ApiServer {
    transport: Transport,
    finish: Arc<dyn Fn(Transport) -> Client + Send + Sync>,
    namespace: String,
    clock: SharedClock,
    date: watch::Sender<Option<DateSeen>>,
}

/// The time of day as the API server gave it in one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DateSeen {
    /// The `Date` header, which has whole seconds: the true time was up to a second later.
    pub server: Timestamp,
    /// The local wall clock when the answer came.
    pub wall: Timestamp,
    /// When the request was sent.
    pub sent: BootTime,
    /// When the answer came.
    pub received: BootTime,
}

/// The client cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The TLS settings or the credentials of the configuration cannot be used.
    #[error("the Kubernetes client configuration cannot be used: {0}")]
    Config(#[source] Box<kube::Error>),
    /// A proxy would stand between the gate and the API server.
    #[error("the Kubernetes client configuration names the proxy {0}: expected none, connections are made directly")]
    Proxy(http::Uri),
}

type Answer = Response<http_body_util::combinators::UnsyncBoxBody<bytes::Bytes, BoxError>>;
type Transport = BoxCloneSyncService<Request<Body>, Answer, BoxError>;

/// How long the head of an answer may take, that of a watch included: the API server sends it at once. Without a bound, a
/// list over a connection that is half open would hang for as long as the kernel believes in it.
const ANSWER_HEAD_MAX: Duration = Duration::from_secs(30);

/// How long a connection attempt may take. Every request has a deadline of its own besides.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

impl ApiServer {
    /// The API server of `config`, with retries off and a deadline on connecting.
    ///
    /// # Errors
    /// [`ConnectError`] if the TLS settings, the credentials or a proxy cannot be used.
    pub fn from_config(mut config: Config, clock: SharedClock) -> Result<Self, ConnectError> {
        if let Some(proxy) = config.proxy_url {
            return Err(ConnectError::Proxy(proxy));
        }
        config.default_retry = false;
        config.connect_timeout = Some(config.connect_timeout.map_or(CONNECT_TIMEOUT, |set| set.min(CONNECT_TIMEOUT)));
        let failed = |error| ConnectError::Config(Box::new(error));
        let https = config.rustls_https_connector().map_err(failed)?;
        let mut connector = hyper_timeout::TimeoutConnector::new(https);
        connector.set_connect_timeout(config.connect_timeout);
        let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector);
        let transport = ServiceExt::<Request<Body>>::map_err(http, BoxError::from);
        let auth = config.auth_layer().map_err(failed)?;
        let base_uri = config.base_uri_layer();
        let headers = config.extra_headers_layer().map_err(failed)?;
        let namespace = config.default_namespace.clone();
        let finish_namespace = namespace.clone();
        let finish = move |transport: Transport| {
            let addressed = ServiceBuilder::new().layer(base_uri.clone()).layer(headers.clone());
            match &auth {
                Some(auth) => Client::new(addressed.service(auth.layer(transport)), finish_namespace.clone()),
                None => Client::new(addressed.service(transport), finish_namespace.clone()),
            }
        };
        Ok(Self::new(transport, finish, namespace, clock))
    }

    /// An API server that answers in this process: a router, or any tower service.
    pub fn from_service<S, B>(service: S, namespace: &str, clock: SharedClock) -> Self
    where
        S: Service<Request<Body>, Response = Response<B>, Error: Into<BoxError>, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
        B: http_body::Body<Data = bytes::Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let finish_namespace = namespace.to_owned();
        let transport = ServiceExt::<Request<Body>>::map_err(service, Into::into);
        Self::new(
            transport,
            move |transport| Client::new(transport, finish_namespace.clone()),
            namespace.to_owned(),
            clock,
        )
    }

    fn new<S, B>(
        transport: S,
        finish: impl Fn(Transport) -> Client + Send + Sync + 'static,
        namespace: String,
        clock: SharedClock,
    ) -> Self
    where
        S: Service<Request<Body>, Response = Response<B>, Error = BoxError, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
        B: http_body::Body<Data = bytes::Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let (date, _) = watch::channel(None);
        let observe = DateLayer { clock: clock.clone(), date: date.clone() };
        let boxed = transport.map_response(|answer: Response<B>| {
            answer.map(|body| http_body_util::BodyExt::boxed_unsync(http_body_util::BodyExt::map_err(body, Into::into)))
        });
        let transport = BoxCloneSyncService::new(observe.layer(boxed));
        Self { transport, finish: Arc::new(finish), namespace, clock, date }
    }

    /// A client for reads, and for facts that may be written at any time.
    pub fn client(&self) -> Client {
        (self.finish)(self.transport.clone())
    }

    /// A client whose every request is let through only while `guard` says yes. The gate is the innermost layer.
    pub fn gated_client(&self, guard: Guard) -> Client {
        let gated: Gate<Transport> = GateLayer::new(guard).layer(self.transport.clone());
        (self.finish)(BoxCloneSyncService::new(gated))
    }

    /// The namespace that the configuration names.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The clock that this replica lives by.
    pub fn clock(&self) -> &SharedClock {
        &self.clock
    }

    /// The newest `Date` header seen, over all clients made here.
    pub fn date(&self) -> watch::Receiver<Option<DateSeen>> {
        self.date.subscribe()
    }
}

impl fmt::Debug for ApiServer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ApiServer").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

/// Notes the `Date` header of each answer.
#[derive(Clone)]
struct DateLayer {
    clock: SharedClock,
    date: watch::Sender<Option<DateSeen>>,
}

#[derive(Clone)]
struct DateService<S> {
    inner: S,
    observe: DateLayer,
}

impl<S> Layer<S> for DateLayer {
    type Service = DateService<S>;

    fn layer(&self, inner: S) -> DateService<S> {
        DateService { inner, observe: self.clone() }
    }
}

impl DateLayer {
    fn note<B>(&self, sent: BootTime, answer: &Response<B>) {
        let header = answer.headers().get(http::header::DATE).and_then(|value| value.to_str().ok());
        let Some(server) = header.and_then(parse_date) else { return };
        self.date.send_replace(Some(DateSeen { server, wall: self.clock.wall(), sent, received: self.clock.boot() }));
    }
}

fn parse_date(header: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(header).ok()
}

impl<S, B> Service<Request<Body>> for DateService<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = BoxError, Future: Send + 'static>,
    B: 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = futures::future::BoxFuture<'static, Result<Response<B>, BoxError>>;

    fn poll_ready(&mut self, context: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (observe, sent) = (self.observe.clone(), self.observe.clock.boot());
        let answer = self.inner.call(request);
        async move {
            let answer = clock::timeout(&*observe.clock, ANSWER_HEAD_MAX, answer).await??;
            observe.note(sent, &answer);
            Ok(answer)
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use jiff::SignedDuration;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::{Api, api::ListParams};

    use super::*;
    use crate::clock::{Clock, RATE_ONE, SimulatedClock};

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_never_answered_ends_with_an_error() {
        let clock = SimulatedClock::new(Timestamp::UNIX_EPOCH, RATE_ONE, SignedDuration::ZERO);
        let silent = tower::service_fn(|_: Request<Body>| {
            std::future::pending::<Result<Response<http_body_util::Empty<bytes::Bytes>>, Infallible>>()
        });
        let api = ApiServer::from_service(silent, "default", clock.clone());
        let maps: Api<ConfigMap> = Api::all(api.client());
        let listed = maps.list(&ListParams::default()).await;
        assert!(listed.is_err());
        assert!(clock.boot().since_origin() >= ANSWER_HEAD_MAX);
    }

    #[test]
    fn a_proxy_is_refused_by_name() {
        let mut config = Config::new(http::Uri::from_static("https://127.0.0.1:6443"));
        config.proxy_url = Some(http::Uri::from_static("http://proxy:3128"));
        let message =
            ApiServer::from_config(config, crate::clock::SystemClock::shared()).expect_err("a proxy").to_string();
        assert!(message.contains("http://proxy:3128"), "{message}");
    }

    #[test]
    fn the_date_of_an_answer_is_read_as_http_writes_it() {
        let parsed = parse_date("Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(parsed, Some("1994-11-06T08:49:37Z".parse().expect("a timestamp")));
        assert_eq!(parse_date("yesterday"), None);
    }
}
