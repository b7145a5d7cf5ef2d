//! How a replica reaches the API server, and what it learns from each answer.
//!
//! One [`ApiServer`] makes every Kubernetes client of a replica: plain ones for watches and for facts, gated ones for what
//! may happen only while a term is valid. kube's own retries are off for all of them: kube 5 repeats every verb on 429, 503
//! and 504 up to 15 times outside of any layer, which would send a leader's write long after the term that planned it.
//!
//! A gated client's gate is in its connections, and each term has connections of its own ([`ApiServer::gated_client`]).
//! Connections are made anew after a failure ([`ApiServer::renew_connections`]): behind one address are often several API
//! servers. Credentials that expire are loaded anew in time.
//!
//! Every answer's `Date` header is noted with the time it was asked for ([`ApiServer::date`]): that is how a replica
//! finds out that its wall clock is wrong.

mod credentials;
mod date;
mod gate;
mod plugin;
mod transport;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::{Request, Response};
use jiff::Timestamp;
use kube::{
    Client, Config,
    client::{Body, ConfigExt},
};
use tokio::sync::watch;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt, util::BoxCloneSyncService};

#[cfg(feature = "controller")]
pub(crate) use self::gate::NotSent;
use self::{credentials::Credentials, date::Heard, gate::Gate, transport::Network};
pub use self::{gate::GatedConnector, plugin::PluginError};
use crate::{
    clock::{BootTime, SharedClock},
    election::Guard,
};

/// The way to one API server. Clones share their connections.
#[derive(Clone)]
pub struct ApiServer {
    way: Arc<dyn Way>,
    finish: Arc<dyn Fn(Transport) -> Client + Send + Sync>,
    namespace: String,
    clock: SharedClock,
    heard: Heard,
    /// The gated client of each term in office.
    gated: Arc<Mutex<Vec<(Guard, Client)>>>,
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
#[non_exhaustive]
pub enum ConnectError {
    /// The TLS settings or the credentials of the configuration cannot be used.
    #[error("the Kubernetes client configuration cannot be used: {0}")]
    Config(#[source] Box<kube::Error>),
    /// The exec plugin of the configuration gives no credentials.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// A proxy would stand between the gate and the API server.
    #[error("the Kubernetes client configuration names the proxy {0}: expected none, connections are made directly")]
    Proxy(http::Uri),
}

/// What carries requests to an API server.
trait Way: Send + Sync + 'static {
    /// For requests that may be sent at any time.
    fn plain(&self) -> Transport;

    /// For requests whose first byte asks `guard`. Nothing else is sent over the same connections.
    fn gated(&self, guard: &Guard) -> Transport;

    /// Has what is yet to be sent go over new connections.
    fn renew(&self);
}

/// A service in this process. There is no connection: what is polled is sent.
struct InProcess(Transport);

type Answer = Response<http_body_util::combinators::UnsyncBoxBody<bytes::Bytes, BoxError>>;
type Transport = BoxCloneSyncService<Request<Body>, Answer, BoxError>;

/// How long the head of an answer may take, that of a watch included: the API server sends it at once. Without a bound, a
/// list over a connection that is half open would hang for as long as the kernel believes in it.
const ANSWER_HEAD_MAX: Duration = Duration::from_secs(30);

/// How long a connection attempt may take, TLS included. Every request has a deadline of its own besides.
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
        let failed = |error| ConnectError::Config(Box::new(error));
        let base_uri = config.base_uri_layer();
        let headers = config.extra_headers_layer().map_err(failed)?;
        let namespace = config.default_namespace.clone();
        let finish_namespace = namespace.clone();
        let finish = move |transport: Transport| {
            let addressed = ServiceBuilder::new().layer(base_uri.clone()).layer(headers.clone());
            Client::new(addressed.service(transport), finish_namespace.clone())
        };
        let way = Network::new(Credentials::load(config, clock.clone())?);
        Ok(Self::new(Arc::new(way), finish, namespace, clock))
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
        let service = ServiceExt::<Request<Body>>::map_err(service, Into::into).map_response(|answer: Response<B>| {
            answer.map(|body| http_body_util::BodyExt::boxed_unsync(http_body_util::BodyExt::map_err(body, Into::into)))
        });
        Self::new(
            Arc::new(InProcess(BoxCloneSyncService::new(service))),
            move |transport| Client::new(transport, finish_namespace.clone()),
            namespace.to_owned(),
            clock,
        )
    }

    fn new(
        way: Arc<dyn Way>,
        finish: impl Fn(Transport) -> Client + Send + Sync + 'static,
        namespace: String,
        clock: SharedClock,
    ) -> Self {
        let heard = Heard::new(clock.clone());
        Self { way, finish: Arc::new(finish), namespace, clock, heard, gated: Arc::default() }
    }

    /// A client for reads, and for facts that may be written at any time.
    pub fn client(&self) -> Client {
        self.finish(self.way.plain())
    }

    /// A client that asks `guard` where the first byte of each request is written: after the pool, name resolution, connect
    /// and TLS. It has connections of its own, and sends nothing a second time. A request that is refused was certainly not
    /// sent, and its error is [`kube::Error::Service`] of a [`crate::TermEnded`].
    ///
    /// All callers for one term share one client; a term that has ended makes room.
    pub fn gated_client(&self, guard: &Guard) -> Client {
        let mut gated = self.gated.lock().unwrap_or_else(PoisonError::into_inner);
        gated.retain(|(guard, _)| guard.check().is_ok());
        if let Some((_, client)) = gated.iter().find(|(known, _)| known.is_of_the_term_of(guard)) {
            return client.clone();
        }
        let client = self.finish(self.way.gated(guard));
        gated.push((guard.clone(), client.clone()));
        client
    }

    /// Has requests that are yet to be sent go over new connections; those on their way go on. For whoever finds that the
    /// API server at the other end errs, or is silent: there may be another behind the same address.
    pub fn renew_connections(&self) {
        self.way.renew();
    }

    /// Until when the API server has last asked to be left alone (`Retry-After`): at most 30 s from its answer.
    pub fn not_before(&self) -> BootTime {
        self.heard.not_before()
    }

    fn finish(&self, transport: Transport) -> Client {
        (self.finish)(BoxCloneSyncService::new(self.heard.around(transport)))
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
        self.heard.date.subscribe()
    }
}

impl fmt::Debug for ApiServer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ApiServer").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Way for InProcess {
    fn plain(&self) -> Transport {
        self.0.clone()
    }

    fn gated(&self, guard: &Guard) -> Transport {
        BoxCloneSyncService::new(Gate::new(self.0.clone(), guard.clone()))
    }

    fn renew(&self) {}
}

#[cfg(all(test, feature = "controller"))]
mod tests;
