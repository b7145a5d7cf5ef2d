//! HTTP out, one attempt at a time.
//!
//! The order is: check what is written, read the Secrets, resolve, judge the address, connect to exactly that address, TLS,
//! ask the guard, send. Each step has a deadline of its own besides the attempt's, so that a step that hangs before the
//! first byte ends as [`EndKind::Unsent`] and may be tried again even by a run that must not happen twice.
//!
//! By hand on hyper's connection, because clients with a pool cannot ask the guard after TLS and before the first byte, and
//! connect to IP literals without asking a resolver. Every attempt has a connection of its own: a kept one may be closed by
//! the other side just as the request goes out, and then nobody knows whether it arrived; a run that must happen at most
//! once would end in doubt. The connection is polled inside the attempt's future, so dropping the attempt closes it.
//! Redirects are not followed, and proxy settings of the environment are not read.

use std::{collections::btree_map::Entry, error::Error, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use http::{Request, StatusCode};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};

use super::{
    Action, ActionSpec, AddressRefused, Attempt, AttemptEnd, Egress, EndKind, SecretSource,
    answer::{self, Answer},
    request::{self, ActionError, ExpectedStatus, Secrets, Target},
    secrets::SecretError,
    tls::{Tls, TlsError},
    wire::{Wire, WireLog, wire},
};
use crate::{
    api::HttpAction,
    clock::{Elapsed, SharedClock, timeout, timeout_at},
    dial::{SharedDial, Stream},
};

/// Sends the requests of `http` actions.
#[derive(Debug)]
pub struct HttpRunner {
    dial: SharedDial,
    egress: Egress,
    secrets: Arc<dyn SecretSource>,
    tls: Tls,
    clock: SharedClock,
}

/// Why there is no complete answer. Whether it was sent is not said here: the wire's log knows.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Action(#[from] ActionError),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("{host} cannot be resolved: {source}")]
    Resolve { host: String, source: io::Error },
    #[error("{host} has no address")]
    NoAddress { host: String },
    #[error("http.url: {host} is not called: {source}")]
    Egress { host: String, source: AddressRefused },
    #[error("{host} cannot be reached at {address}: {source}")]
    Connect { host: String, address: SocketAddr, source: io::Error },
    #[error(transparent)]
    TlsSettings(#[from] TlsError),
    #[error("{host} at {address} failed the TLS handshake: {source}")]
    Handshake { host: String, address: SocketAddr, source: io::Error },
    #[error("gave up {stage}: {limit}")]
    Slow { stage: Stage, limit: Elapsed },
    #[error("the connection failed {stage}: {}", chain(.source))]
    Exchange { stage: Stage, source: hyper::Error },
}

/// How far an attempt has got, for messages.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Stage {
    #[error("before its first step")]
    Begin,
    #[error("reading the Secret {0}")]
    Secret(String),
    #[error("resolving {0}")]
    Resolve(String),
    #[error("connecting to {0}")]
    Connect(SocketAddr),
    #[error("in the TLS handshake with {0}")]
    Handshake(SocketAddr),
    #[error("sending the request, before an answer began")]
    Send,
    #[error("after status {0}, before the end of its body")]
    Body(StatusCode),
}

/// Reading one Secret takes at most this long: the API server answers in milliseconds or is in trouble.
const SECRET_LIMIT: Duration = Duration::from_secs(5);

/// Resolving takes at most this long: the usual resolver asks each server for 5 s, and twice.
const RESOLVE_LIMIT: Duration = Duration::from_secs(10);

/// Connecting to one address takes at most this long: time for the repetitions after 1 s and 3 s of a lost first packet.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// A TLS handshake takes at most this long.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// Of the addresses of one host, so many are tried.
const ADDRESSES_MAX: usize = 8;

/// The head of an answer may be this long, in bytes; hyper refuses more.
pub(super) const HEAD_BYTES_MAX: usize = 64 * 1024;

impl HttpRunner {
    /// A runner that reaches targets by `dial` as far as `egress` allows, and reads credentials from `secrets`.
    pub fn new(dial: SharedDial, egress: Egress, secrets: Arc<dyn SecretSource>, clock: SharedClock) -> Self {
        let tls = Tls::new(clock.clone());
        Self { dial, egress, secrets, tls, clock }
    }

    async fn run(
        &self,
        attempt: &Attempt,
        action: &HttpAction,
        stage: &mut Stage,
        log: &Arc<WireLog>,
    ) -> Result<Answer, Failure> {
        request::check(action)?;
        let target = request::target(action)?;
        let secrets = self.read_secrets(attempt, action, stage).await?;
        let request = request::build(attempt, action, &target, &secrets)?;
        let settings = if target.tls {
            let tls = action.tls.as_ref();
            let from_secret = tls.and_then(|tls| tls.ca_from.as_ref());
            let from_secret = from_secret
                .map(|from| request::secret_text(&attempt.job.namespace, &secrets, &from.secret_key_ref))
                .transpose()?;
            Some(self.tls.settings(from_secret.or_else(|| tls?.ca.as_deref()))?)
        } else {
            None
        };
        let (address, stream) = self.connect(&target, stage).await?;
        let stream = match settings {
            Some(settings) => {
                *stage = Stage::Handshake(address);
                let failed = |source| Failure::Handshake { host: target.host.clone(), address, source };
                let name =
                    ServerName::try_from(target.host.clone()).map_err(|error| failed(io::Error::other(error)))?;
                let handshake = TlsConnector::from(settings).connect(name, stream);
                Box::new(self.limited(HANDSHAKE_LIMIT, stage, handshake).await?.map_err(failed)?)
            }
            None => stream,
        };
        *stage = Stage::Send;
        self.exchange(wire(stream, attempt.guard.clone(), self.clock.clone(), log.clone()), request, stage).await
    }

    async fn read_secrets(
        &self,
        attempt: &Attempt,
        action: &HttpAction,
        stage: &mut Stage,
    ) -> Result<Secrets, Failure> {
        let mut secrets = Secrets::new();
        for reference in request::references(action) {
            if let Entry::Vacant(entry) = secrets.entry(reference.name.clone()) {
                *stage = Stage::Secret(reference.name.clone());
                let read = self.secrets.read(&attempt.job.namespace, &reference.name);
                entry.insert(self.limited(SECRET_LIMIT, stage, read).await??);
            }
        }
        Ok(secrets)
    }

    /// Resolves once, and connects to an address only after it was judged. A refused address is passed over.
    async fn connect(&self, target: &Target, stage: &mut Stage) -> Result<(SocketAddr, Box<dyn Stream>), Failure> {
        let host = || target.host.clone();
        *stage = Stage::Resolve(host());
        let resolved = self.dial.resolve(host(), target.port);
        let resolved = self.limited(RESOLVE_LIMIT, stage, resolved).await?;
        let addresses = resolved.map_err(|source| Failure::Resolve { host: host(), source })?;
        let mut failure = Failure::NoAddress { host: host() };
        for address in addresses.into_iter().take(ADDRESSES_MAX) {
            if let Err(source) = self.egress.check(address.ip()) {
                failure = Failure::Egress { host: host(), source };
                continue;
            }
            *stage = Stage::Connect(address);
            failure = match self.limited(CONNECT_LIMIT, stage, self.dial.connect(address)).await {
                Ok(Ok(stream)) => return Ok((address, stream)),
                Ok(Err(source)) => Failure::Connect { host: host(), address, source },
                Err(slow) => slow,
            };
        }
        Err(failure)
    }

    /// Sends the request and reads the answer. The guard is asked by the wire.
    async fn exchange(
        &self,
        wire: Wire<Box<dyn Stream>>,
        request: Request<Full<Bytes>>,
        stage: &mut Stage,
    ) -> Result<Answer, Failure> {
        let opened = http1::Builder::new().max_buf_size(HEAD_BYTES_MAX).handshake(TokioIo::new(wire)).await;
        let (mut sender, connection) = opened.map_err(|source| Failure::Exchange { stage: Stage::Send, source })?;
        let result = {
            let conversation = async {
                sender.ready().await?;
                let response = sender.send_request(request).await?;
                *stage = Stage::Body(response.status());
                answer::read(response, self.clock.wall()).await
            };
            tokio::pin!(conversation);
            tokio::select! {
                biased;
                result = &mut conversation => result,
                // The other side has closed. What it said is still to be read; if that was not all, the reason is in how
                // it closed.
                closed = connection => match (conversation.await, closed) {
                    (Err(_), Err(why)) => Err(why),
                    (result, _) => result,
                },
            }
        };
        result.map_err(|source| Failure::Exchange { stage: stage.clone(), source })
    }

    async fn limited<F: Future>(&self, limit: Duration, stage: &Stage, step: F) -> Result<F::Output, Failure> {
        let limited = timeout(&*self.clock, limit, step).await;
        limited.map_err(|limit| Failure::Slow { stage: stage.clone(), limit })
    }
}

impl Action for HttpRunner {
    fn attempt(&self, attempt: Attempt) -> BoxFuture<'_, AttemptEnd> {
        async move {
            let ActionSpec::Http(action) = &attempt.action else {
                let message = "not sent: this action is no HTTP request".to_owned();
                return AttemptEnd { kind: EndKind::Unsent, message, retry_after: None, first_byte: None };
            };
            let deadline = self.clock.boot() + attempt.timeout;
            let (log, mut stage) = (Arc::new(WireLog::default()), Stage::Begin);
            let exchange = timeout_at(&*self.clock, deadline, self.run(&attempt, action, &mut stage, &log));
            let result = tokio::select! {
                biased;
                result = exchange => Some(result),
                () = attempt.wishes.replace.cancelled() => None,
            };
            let first_byte = log.first_byte();
            let Some(result) = result else { return replaced(first_byte) };
            let (kind, message, retry_after) = match result {
                Ok(Ok(answer)) => (judge(action, answer.status), answer.message, answer.retry_after),
                _ if log.refused() => {
                    let message = "not sent: the term in office ended before the first byte".to_owned();
                    (EndKind::TermEnded, message, None)
                }
                Ok(Err(failure)) if first_byte.is_some() => (EndKind::NoAnswer, failure.to_string(), None),
                Ok(Err(failure)) => (EndKind::Unsent, format!("not sent: {failure}"), None),
                Err(Elapsed(_)) => {
                    let message = format!("no complete answer within {:?}: the time was up {stage}", attempt.timeout);
                    (EndKind::TimedOut { sent: first_byte.is_some() }, message, None)
                }
            };
            AttemptEnd { kind, message, retry_after, first_byte }
        }
        .boxed()
    }
}

/// The end of an attempt that makes room for a newer slot.
fn replaced(first_byte: Option<Timestamp>) -> AttemptEnd {
    let certain = first_byte.is_none();
    let what = if certain { "nothing was sent" } else { "the target may still be working on the request" };
    let message = format!("replaced by a newer slot; {what}");
    AttemptEnd { kind: EndKind::Replaced { certain }, message, retry_after: None, first_byte }
}

fn judge(action: &HttpAction, status: StatusCode) -> EndKind {
    // The list was read before the request was sent; should it not be readable, nothing is expected.
    let expected = ExpectedStatus::read(&action.expected_status);
    if expected.is_ok_and(|expected| expected.contains(status)) {
        EndKind::Succeeded { status }
    } else {
        EndKind::Refused { status }
    }
}

/// An error with what it came from: hyper's say what they were doing, and only their source says what happened.
fn chain(error: &dyn Error) -> String {
    let sources = std::iter::successors(error.source(), |source| (*source).source());
    sources.fold(error.to_string(), |text, source| format!("{text}: {source}"))
}
