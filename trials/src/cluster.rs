//! The API server of a session: a sandbox in the harness's process, served to the replicas over HTTP.
//!
//! The harness keeps its own hand on it: it creates the objects, follows every write, and puts faults before single requests
//! of single replicas.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use kube::Client;
use sandbox::{Sandbox, ServeOptions, new_token};
use thiserror::Error;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::objects::{NAMESPACE, Objects};

/// Why the API server of a session is not as it should be.
#[derive(Debug, Error)]
pub enum ClusterError {
    /// It could not listen.
    #[error("the sandbox cannot listen on loopback: {0}")]
    Listen(io::Error),
    /// A kubeconfig could not be written.
    #[error("cannot write {path}: {source}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The API server of a session. [`Cluster::stop`] ends it.
#[derive(Debug)]
pub struct Cluster {
    /// The server itself.
    pub sandbox: Sandbox,
    address: SocketAddr,
    token: String,
    shutdown: CancellationToken,
    serving: JoinHandle<io::Result<()>>,
}

impl Cluster {
    /// Starts a server on a free port of 127.0.0.1.
    pub async fn start() -> Result<Self, ClusterError> {
        let (sandbox, token) = (Sandbox::new(), new_token());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(ClusterError::Listen)?;
        let address = listener.local_addr().map_err(ClusterError::Listen)?;
        let shutdown = CancellationToken::new();
        let options = ServeOptions { listener, token: token.clone(), shutdown: shutdown.clone() };
        let serving = tokio::spawn({
            let sandbox = sandbox.clone();
            async move { sandbox.serve(options).await }
        });
        Ok(Self { sandbox, address, token, shutdown, serving })
    }

    /// Writes the kubeconfig by which this client is known.
    pub fn write_kubeconfig(&self, directory: &Path, client: &str) -> Result<PathBuf, ClusterError> {
        let path = directory.join(format!("{client}.kubeconfig"));
        Sandbox::write_kubeconfig(&path, self.address, &format!("{}.{client}", self.token))
            .map_err(|source| ClusterError::Kubeconfig { path: path.clone(), source })?;
        Ok(path)
    }

    /// Creates objects, by the harness itself.
    pub fn objects(&self) -> Objects {
        Objects::new(Client::new(self.sandbox.service("harness"), NAMESPACE))
    }

    /// Stops serving.
    pub async fn stop(self) {
        self.sandbox.faults().clear();
        self.shutdown.cancel();
        match self.serving.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the sandbox stopped with an error"),
            Err(error) => tracing::error!(%error, "the sandbox's task ended badly"),
        }
    }
}
