//! `tenure status`: asks a replica whether it is ready and who leads, and prints what it says.
//!
//! The image holds neither a shell nor an HTTP client, so this is how one asks from inside a cluster: `kubectl exec`, and
//! the pod of `helm test`. It asks the admin port, like any probe; it needs no rights and no kubeconfig.

use std::{error::Error, time::Duration};

use bytes::Bytes;
use clap::Args;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use thiserror::Error;
use tokio::net::TcpStream;

use crate::{
    clock::{self, SharedClock, SystemClock},
    settings,
};

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Where the replica's admin port is
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8080", value_parser = address)]
    admin_address: Address,

    /// Go on asking for this long until a ready replica answers that knows a leader
    #[arg(long, value_name = "DURATION", default_value = "0", value_parser = settings::duration_or_zero)]
    wait: Duration,
}

/// A host, by name or address, and a port.
#[derive(Debug, Clone)]
struct Address {
    host: String,
    port: u16,
}

/// Why the answer is not the one that is wanted.
#[derive(Debug, Error)]
enum StatusError {
    #[error("{address} does not answer within {} s", REQUEST_LIMIT.as_secs())]
    Silent { address: String },
    #[error("{address} cannot be asked: {source}")]
    Failed { address: String, source: Box<dyn Error + Send + Sync> },
    #[error("{address} is not ready:\n{answer}")]
    NotReady { address: String, answer: String },
    #[error("{0} is ready, but nobody leads")]
    NoLeader(String),
}

/// A replica answers from memory; a dead node never does.
const REQUEST_LIMIT: Duration = Duration::from_secs(3);
/// Pause between two questions.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// The status is below a kilobyte: what is much longer comes from somebody else.
const ANSWER_MAX: usize = 64 * 1024;

pub(super) fn run(args: &StatusArgs) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let status = runtime.block_on(ask(args, &SystemClock::shared()))?;
    println!("{status:#}");
    Ok(())
}

/// Asks until the answer is good or the time is over.
async fn ask(args: &StatusArgs, clock: &SharedClock) -> Result<Value, StatusError> {
    let deadline = clock.boot() + args.wait;
    loop {
        match clock::timeout(&**clock, REQUEST_LIMIT, look(&args.admin_address)).await {
            Ok(Ok(status)) => return Ok(status),
            Ok(Err(error)) if clock.boot() >= deadline => return Err(error),
            Err(_) if clock.boot() >= deadline => {
                return Err(StatusError::Silent { address: args.admin_address.to_string() });
            }
            _ => clock::sleep(&**clock, ASK_EVERY).await,
        }
    }
}

/// The status of a ready replica that knows a leader.
async fn look(address: &Address) -> Result<Value, StatusError> {
    let failed = |source| StatusError::Failed { address: address.to_string(), source };
    let (code, answer) = get(address, "/readyz").await.map_err(failed)?;
    if code != StatusCode::OK {
        let answer = String::from_utf8_lossy(&answer).trim_end().to_owned();
        return Err(StatusError::NotReady { address: address.to_string(), answer });
    }
    let (_, answer) = get(address, "/status").await.map_err(failed)?;
    let status: Value = serde_json::from_slice(&answer).map_err(|error| failed(error.into()))?;
    match &status["election"]["holder"] {
        Value::String(holder) if !holder.is_empty() => Ok(status),
        _ => Err(StatusError::NoLeader(address.to_string())),
    }
}

async fn get(address: &Address, path: &str) -> Result<(StatusCode, Bytes), Box<dyn Error + Send + Sync>> {
    let stream = TcpStream::connect((address.host.as_str(), address.port)).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path).header(header::HOST, address.to_string()).body(Empty::<Bytes>::new())?;
    let answering = async {
        let answer = sender.send_request(request).await?;
        let code = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await?;
        // Without a sender the connection ends.
        drop(sender);
        Ok((code, body.to_bytes()))
    };
    let (answer, _) = tokio::join!(answering, connection);
    answer
}

/// Parses `HOST:PORT`; an IPv6 address may do without its brackets.
fn address(text: &str) -> Result<Address, String> {
    let (host, port) = text.rsplit_once(':').ok_or("expected HOST:PORT")?;
    let port = port.parse().map_err(|error| format!("the port {port:?} is not one: {error}"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    if host.is_empty() { Err("expected a host before the port".to_owned()) } else { Ok(Address { host, port }) }
}

impl std::fmt::Display for Address {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(formatter, "[{host}]:{port}") } else { write!(formatter, "{host}:{port}") }
    }
}
