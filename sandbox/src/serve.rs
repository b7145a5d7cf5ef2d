//! The sandbox over HTTP: on loopback only, behind a bearer token.
//!
//! A web page that a browser shows can send requests to loopback, so the token is not optional. A client is known by the
//! token it sends: `TOKEN` alone is the administrator, `TOKEN.NAME` is the client NAME, which fault rules can be aimed at.
//! Connections are HTTP/1.1,
//! over TLS or plain. hyper is used below axum, because a fault must be able to break a connection.

use std::{
    fs, io, io::Write as _, net::SocketAddr, os::unix::fs::OpenOptionsExt, path::Path, sync::Arc, time::Duration,
};

use axum::{BoxError, Router, body::Body, response::IntoResponse};
use http::{HeaderMap, Request, Response, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rand::Rng;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{Sandbox, http::Caller, service, status::Failure, tls};

/// What anyone may ask without a token, as on a real cluster.
const OPEN_PATHS: [&str; 4] = ["/healthz", "/livez", "/readyz", "/version"];

/// How long a connection may be idle. Longer than clients keep one in their pools (90 s in hyper and Go): a server that
/// closes first now and then breaks a request that was just sent, which no API server is known for.
const IDLE_MAX: Duration = Duration::from_mins(5);

/// How to serve a [`Sandbox`].
#[derive(Debug)]
pub struct ServeOptions {
    /// Where to listen; an address that is not loopback is refused.
    pub listener: TcpListener,
    /// The bearer token of the administrator; `TOKEN.NAME` is the token of the client NAME.
    pub token: String,
    /// Ends the server and breaks its connections.
    pub shutdown: CancellationToken,
}

/// A bearer token that cannot be guessed.
pub fn new_token() -> String {
    let token: u128 = rand::rng().random();
    format!("{token:032x}")
}

impl Sandbox {
    /// Serves HTTP until `shutdown`.
    ///
    /// # Errors
    ///
    /// If the listener is not on loopback, or cannot accept connections.
    pub async fn serve(&self, options: ServeOptions) -> io::Result<()> {
        let address = options.listener.local_addr()?;
        if !address.ip().is_loopback() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("the sandbox listens on loopback only, not on {address}"),
            ));
        }
        let token: Arc<str> = options.token.into();
        let router = self.router();
        let mut connections = JoinSet::new();
        loop {
            let stream = tokio::select! {
                biased;
                () = options.shutdown.cancelled() => return Ok(()),
                Some(_) = connections.join_next() => continue,
                accepted = options.listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    // One connection that broke while it was accepted is no reason to end.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                    Err(error) => return Err(error),
                },
            };
            stream.set_nodelay(true)?;
            let (router, token) = (router.clone(), Arc::clone(&token));
            connections.spawn(async move {
                if !tls::is_tls(&stream).await {
                    connected(stream, router, token).await;
                } else if let Ok(stream) = tls::acceptor().accept(stream).await {
                    connected(stream, router, token).await;
                }
            });
        }
    }

    /// A kubeconfig for the client that `token` names, for a server in this process.
    pub fn kubeconfig(address: SocketAddr, token: &str) -> String {
        let certificate = tls::certificate_data();
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: sandbox\n\
             clusters:\n- name: sandbox\n  cluster:\n    server: https://{address}\n    certificate-authority-data: {certificate}\n\
             contexts:\n- name: sandbox\n  context:\n    cluster: sandbox\n    user: sandbox\n    namespace: default\n\
             users:\n- name: sandbox\n  user:\n    token: {token}\n"
        )
    }

    /// Writes [`Sandbox::kubeconfig`] to a file that only its owner can read, in one step.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn write_kubeconfig(path: &Path, address: SocketAddr, token: &str) -> io::Result<()> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}", new_token()));
        let scratch = path.with_file_name(name);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&scratch)?;
        file.write_all(Self::kubeconfig(address, token).as_bytes())?;
        fs::rename(&scratch, path)
    }
}

/// Serves one connection until it ends. That it breaks is the client's affair, or a fault's doing.
async fn connected(stream: impl AsyncRead + AsyncWrite + Unpin, router: Router, token: Arc<str>) {
    let answer = service_fn(move |request| handle(router.clone(), Arc::clone(&token), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_MAX)
        .serve_connection(TokioIo::new(stream), answer);
    connection.await.ok();
}

async fn handle(router: Router, token: Arc<str>, request: Request<Incoming>) -> Result<Response<Body>, BoxError> {
    let path = request.uri().path();
    let caller = match caller(&token, request.headers()) {
        Some(name) if !name.is_empty() && path.starts_with("/sandbox/") => {
            let why = "the faults are set with the token of the administrator";
            return Ok(Failure::new(403, "Forbidden", why).into_response());
        }
        Some(name) => name.to_owned(),
        None if OPEN_PATHS.contains(&path) => String::new(),
        None => return Ok(Failure::unauthorized().into_response()),
    };
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(Caller(caller));
    service::send(router, request).await.unwrap_or_else(|_| Err("the connection broke".into()))
}

/// The client that the bearer token names; the administrator has no name.
fn caller<'a>(token: &str, headers: &'a HeaderMap) -> Option<&'a str> {
    let given = headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")?.trim();
    let rest = given.strip_prefix(token)?;
    if rest.is_empty() { Some("") } else { rest.strip_prefix('.').filter(|name| !name.is_empty()) }
}
