//! A front: what stands between some clients and the API server, and does to their requests what a network, a load balancer or
//! a tired server does.
//!
//! It ends TLS with a certificate of the cluster's authority, hands each request on with the credentials that came with it, and
//! can be told to answer late, to let one of the three servers that it plays answer nothing but errors, to let watches go
//! silent without an end, and to cut a client off. Who is pointed to it is struck by that and nobody else: not the kubelets,
//! not the control plane, and not the harness.
//!
//! It speaks HTTP/1.1. Each connection leads to one of the servers, in turn, as a balancer of connections has it.

mod log;
mod relay;
mod rules;

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kube::{Client, Config, config::AuthInfo};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    },
};

pub use log::{Asked, Log, Verb, most_within};
use relay::Relay;
use rules::Rules;

use crate::{
    clock::At,
    wait::{self, Overdue},
};

/// How many API servers the front plays.
pub const SERVERS: u64 = 3;

/// Files with the certificate that the front shows, and its key.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate, in PEM.
    pub certificate: PathBuf,
    /// Its key, in PEM.
    pub key: PathBuf,
}

/// The front could not be put up.
#[derive(Debug, Error)]
pub enum FrontError {
    /// Its address.
    #[error("listening at {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Its certificate or key could not be read.
    #[error("{}: {source}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What was wrong.
        source: pem::Error,
    },
    /// They cannot be used.
    #[error("the front's certificate: {0}")]
    Tls(#[from] rustls::Error),
    /// The way to the API server.
    #[error("the way to the API server: {0}")]
    Upstream(#[from] Box<kube::Error>),
    /// Who and where the API server is.
    #[error("the kubeconfig: {0}")]
    Config(#[from] kube::config::InferConfigError),
}

/// A front at work. Dropping it ends it, with all connections.
#[derive(Debug)]
pub struct Front {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

/// What all connections of a front share.
struct Shared {
    upstream: Client,
    rules: watch::Sender<Rules>,
    log: Mutex<Log>,
}

impl Front {
    /// Puts up a front before the API server that the kubeconfig names, with none of the kubeconfig's own credentials.
    pub async fn start(address: SocketAddr, identity: &Identity) -> Result<Self, FrontError> {
        let mut config = Config::infer().await?;
        // Who asks has credentials of its own, and a client certificate would win over them.
        config.auth_info = AuthInfo::default();
        let acceptor = acceptor(identity)?;
        Self::before(config, address, Some(acceptor)).await
    }

    async fn before(mut config: Config, address: SocketAddr, tls: Option<TlsAcceptor>) -> Result<Self, FrontError> {
        // What the server says is what the client is to hear.
        config.default_retry = false;
        let upstream = Client::try_from(config).map_err(Box::new)?;
        let failed = |source| FrontError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let shared = Arc::new(Shared { upstream, rules: watch::Sender::default(), log: Mutex::default() });
        let task = tokio::spawn(Relay::new(shared.clone(), tls).serve(listener));
        Ok(Self { address, shared, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on the head of each answer comes so much later than the API server gave it.
    pub fn answer_late(&self, by: Duration) {
        self.shared.rules.send_modify(|rules| rules.late = by);
    }

    /// From now on one of the servers answers 500 to everything, and the watches that are open there end.
    pub fn err(&self, server: u64) {
        self.shared.rules.send_modify(|rules| rules.errs = Some(server));
    }

    /// From now on the watches that are open pass nothing on, and do not end. New ones do.
    pub fn silence_open_watches(&self) {
        let next = self.shared.log().next_watch();
        self.shared.rules.send_modify(|rules| rules.silent_below = next);
    }

    /// From now on no watch passes anything on, or ends.
    pub fn silence_all_watches(&self) {
        self.shared.rules.send_modify(|rules| rules.silent_below = u64::MAX);
    }

    /// From now on nothing passes between these addresses and the API server, in either direction and without an answer.
    pub fn cut(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        let addresses: BTreeSet<IpAddr> = addresses.into_iter().collect();
        self.shared.rules.send_modify(|rules| rules.cut = addresses);
    }

    /// Ends all of that. A watch that has gone silent is broken off: what it has not passed on is lost.
    pub fn heal(&self) {
        let next = self.shared.log().next_watch();
        self.shared.rules.send_modify(|rules| {
            let broken_below = rules.broken_below.max(rules.silent_below.min(next));
            *rules = Rules { broken_below, ..Rules::default() };
        });
    }

    /// What was asked so far, as far as Leases go.
    pub fn with_log<T>(&self, look: impl FnOnce(&Log) -> T) -> T {
        look(&self.shared.log())
    }

    /// Waits until this client has been told that a write of its to a Lease was taken, and returns when that was.
    pub async fn next_renewal(&self, client: IpAddr, limit: Duration) -> Result<At, Overdue> {
        let since = At::now();
        let taken = || self.with_log(|log| log.renewal_of(client, since));
        wait::until("the leader's next renewal has been answered", limit, taken).await
    }

    /// The server to which this client's last write to a Lease went.
    pub fn server_of(&self, client: IpAddr) -> Option<u64> {
        self.with_log(|log| log.server_of_last_write(client))
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("rules", &self.rules).finish_non_exhaustive()
    }
}

fn acceptor(identity: &Identity) -> Result<TlsAcceptor, FrontError> {
    let unreadable = |path: &PathBuf| {
        let path = path.clone();
        move |source| FrontError::Pem { path, source }
    };
    let Identity { certificate, key } = identity;
    let chain = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(unreadable(certificate))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(unreadable(key))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = builder.with_no_client_auth().with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The variables by which a pod finds the API server. The kubelet sets them, and those that a container names win.
const HOST_AND_PORT: [&str; 2] = ["KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"];

/// A strategic merge patch of a Deployment, by which this container finds the API server at the front, or as it did before.
pub fn way_patch(container: &str, front: Option<SocketAddr>) -> Value {
    let env: Vec<Value> = match front {
        Some(front) => {
            let values = [front.ip().to_string(), front.port().to_string()];
            HOST_AND_PORT.iter().zip(values).map(|(name, value)| json!({ "name": name, "value": value })).collect()
        }
        None => HOST_AND_PORT.iter().map(|name| json!({ "name": name, "$patch": "delete" })).collect(),
    };
    json!({ "spec": { "template": { "spec": { "containers": [{ "name": container, "env": env }] } } } })
}

/// Whether a pod template leads its containers by a front.
pub fn is_led_by_a_front(spec: &k8s_openapi::api::core::v1::PodSpec) -> bool {
    let mut env = spec.containers.iter().flat_map(|container| container.env.iter().flatten());
    env.any(|variable| HOST_AND_PORT.contains(&&*variable.name))
}

#[cfg(test)]
mod tests;
