//! A network in this process: names, addresses, and peers that answer by a script.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use jiff::SignedDuration;
use kube::client::Body;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::watch,
};
use tokio_rustls::{TlsAcceptor, rustls};

use super::super::{
    Action, ActionSpec, Attempt, AttemptEnd, Egress, HttpRunner, JobRef, KubeSecrets, SecretData, SecretError,
    SecretSource, Wishes,
};
use crate::{
    api::Guarantee,
    apiserver::ApiServer,
    clock::{RATE_ONE, SharedClock, SimulatedClock, sleep},
    dial::{Dial, Stream},
    election::{Term, testing},
};

/// Longer than every step's own deadline taken together.
pub(super) const TIMEOUT: Duration = Duration::from_mins(1);

/// A term is valid for this long in these tests: less than the slow steps of one of them take together.
const VALIDITY: Duration = Duration::from_secs(10);

/// What a connection holds on its way: small, so that a peer notices early that nobody reads.
const PIPE_BYTES: usize = 16 * 1024;

/// A runner, the network it is on, and what has happened there.
#[derive(Debug)]
pub(super) struct Bench {
    pub(super) clock: SharedClock,
    pub(super) term: Term,
    net: Net,
    secrets: Arc<dyn SecretSource>,
}

/// One side of a connection, by script: read the request, write the answer, then do something.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    answer: Option<String>,
    reads_first: bool,
    then: Then,
    connect_delay: Duration,
    tls: Option<Arc<rustls::ServerConfig>>,
}

/// What a peer does after its answer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Then {
    Close,
    Hold,
    Stream,
}

/// Where a Kubernetes API in this process has the Secret.
#[derive(Debug, Clone, Copy)]
pub(super) enum SecretsAt {
    InTeam,
    InOther,
    Forbidden,
}

#[derive(Debug, Clone)]
struct Net {
    clock: SharedClock,
    hosts: BTreeMap<String, Vec<IpAddr>>,
    /// Names whose address is another one each time.
    changing: BTreeMap<String, Vec<IpAddr>>,
    resolve_delay: Duration,
    peers: BTreeMap<IpAddr, Peer>,
    seen: Arc<watch::Sender<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    resolutions: usize,
    connections: Vec<String>,
    received: String,
    streamed: usize,
    closed: usize,
}

#[derive(Debug)]
struct TestSecrets {
    clock: SharedClock,
    delay: Duration,
}

impl Bench {
    pub(super) fn new() -> Self {
        let epoch = "2026-01-02T03:04:06Z".parse().expect("a timestamp");
        let clock: SharedClock = SimulatedClock::new(epoch, RATE_ONE, SignedDuration::ZERO);
        let net = Net {
            clock: clock.clone(),
            hosts: BTreeMap::new(),
            changing: BTreeMap::new(),
            resolve_delay: Duration::ZERO,
            peers: BTreeMap::new(),
            seen: Arc::new(watch::Sender::default()),
        };
        let secrets = Arc::new(TestSecrets { clock: clock.clone(), delay: Duration::ZERO });
        Self { term: testing::term(&clock, 7, VALIDITY), net, secrets, clock }.host("target.test", &["10.0.0.1"])
    }

    pub(super) fn host(mut self, name: &str, addresses: &[&str]) -> Self {
        self.net.hosts.insert(name.to_owned(), parse(addresses));
        self
    }

    pub(super) fn changing_host(mut self, name: &str, addresses: &[&str]) -> Self {
        self.net.changing.insert(name.to_owned(), parse(addresses));
        self
    }

    pub(super) fn target(mut self, address: &str, peer: Peer) -> Self {
        self.net.peers.insert(address.parse().expect("an address"), peer);
        self
    }

    pub(super) fn slow_resolver(mut self, delay: Duration) -> Self {
        self.net.resolve_delay = delay;
        self
    }

    pub(super) fn slow_secrets(mut self, delay: Duration) -> Self {
        self.secrets = Arc::new(TestSecrets { clock: self.clock.clone(), delay });
        self
    }

    pub(super) fn kubernetes_secrets(mut self, which: SecretsAt) -> Self {
        let service = tower::service_fn(move |request: http::Request<Body>| async move {
            Ok::<_, std::convert::Infallible>(secret_api(which, request.uri().path()))
        });
        let api = ApiServer::from_service(service, "team", self.clock.clone());
        self.secrets = Arc::new(KubeSecrets::new(api.client()));
        self
    }

    pub(super) fn runner(&self) -> HttpRunner {
        HttpRunner::new(Arc::new(self.net.clone()), Egress::default(), self.secrets.clone(), self.clock.clone())
    }

    pub(super) fn secrets(&self) -> Arc<dyn SecretSource> {
        self.secrets.clone()
    }

    pub(super) fn plan(&self, action: &serde_json::Value) -> Attempt {
        Attempt {
            run_id: "0123abcd".to_owned(),
            job: JobRef { namespace: "team".to_owned(), name: "report".to_owned() },
            slot: "2026-01-02T03:04:05.2Z".parse().expect("a timestamp"),
            attempt: 2,
            guard: self.term.guard(),
            uid: "e5b1".to_owned(),
            action: ActionSpec::Http(serde_json::from_value(action.clone()).expect("an action")),
            timeout: TIMEOUT,
            active_deadline: None,
            guarantee: Guarantee::AtLeastOnce,
            begun_before: false,
            wishes: Wishes::default(),
        }
    }

    pub(super) async fn attempt(&self, action: &serde_json::Value) -> AttemptEnd {
        self.runner().attempt(self.plan(action)).await
    }

    pub(super) fn connections(&self) -> Vec<String> {
        self.net.seen.borrow().connections.clone()
    }

    pub(super) fn resolutions(&self) -> usize {
        self.net.seen.borrow().resolutions
    }

    /// All that peers have read, above TLS.
    pub(super) fn received(&self) -> String {
        self.net.seen.borrow().received.clone()
    }

    pub(super) async fn until_received(&self, text: &str) {
        self.until(|seen| seen.received.contains(text)).await;
    }

    pub(super) async fn until_closed(&self) {
        self.until(|seen| seen.closed > 0).await;
    }

    /// How much a streaming peer wrote before it was cut off.
    pub(super) async fn streamed_when_closed(&self) -> usize {
        self.until_closed().await;
        self.net.seen.borrow().streamed
    }

    async fn until(&self, condition: impl FnMut(&Seen) -> bool) {
        let mut seen = self.net.seen.subscribe();
        let met = crate::clock::timeout(&*self.clock, TIMEOUT, seen.wait_for(condition)).await.map(drop);
        met.expect("the condition is met in time");
    }
}

impl Peer {
    pub(super) fn answers(answer: &str) -> Self {
        let answer = Some(answer.to_owned());
        Self { answer, reads_first: true, then: Then::Close, connect_delay: Duration::ZERO, tls: None }
    }

    /// Takes the connection and never reads or writes.
    pub(super) fn silent() -> Self {
        Self { answer: None, ..Self::answers("") }
    }

    /// Speaks first, and does not speak TLS.
    pub(super) fn greets(answer: &str) -> Self {
        Self { reads_first: false, ..Self::answers(answer) }
    }

    pub(super) fn then(self, then: Then) -> Self {
        Self { then, ..self }
    }

    pub(super) fn slow_to_connect(self, connect_delay: Duration) -> Self {
        Self { connect_delay, ..self }
    }

    pub(super) fn with_tls(self, certificate: &Certificate) -> Self {
        Self { tls: Some(certificate.server()), ..self }
    }

    async fn serve(self, stream: DuplexStream, seen: Arc<watch::Sender<Seen>>) {
        let Some(answer) = self.answer.clone() else {
            let _kept = stream;
            return std::future::pending().await;
        };
        let ended = match self.tls.clone() {
            None => self.converse(stream, &answer, &seen).await,
            Some(settings) => match TlsAcceptor::from(settings).accept(stream).await {
                Ok(stream) => self.converse(stream, &answer, &seen).await,
                Err(error) => Err(error),
            },
        };
        // The other side may go at any time; the tests look at what was seen.
        drop(ended);
        seen.send_modify(|seen| seen.closed += 1);
    }

    async fn converse(&self, mut stream: impl Stream, answer: &str, seen: &watch::Sender<Seen>) -> io::Result<()> {
        if self.reads_first {
            read_request(&mut stream, seen).await?;
        }
        stream.write_all(answer.as_bytes()).await?;
        stream.flush().await?;
        match self.then {
            Then::Close => stream.shutdown().await,
            Then::Hold => stream.read_exact(&mut [0]).await.map(drop),
            Then::Stream => loop {
                stream.write_all(&[b'x'; 1_000]).await?;
                seen.send_modify(|seen| seen.streamed += 1_000);
            },
        }
    }
}

async fn read_request(stream: &mut impl Stream, seen: &watch::Sender<Seen>) -> io::Result<()> {
    let mut request = String::new();
    loop {
        let mut buffer = [0; 4096];
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        request.push_str(&text);
        seen.send_modify(|seen| seen.received.push_str(&text));
        if let Some((head, body)) = request.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().expect("a length")) {
                return Ok(());
            }
        }
    }
}

impl Dial for Net {
    fn resolve(&self, host: String, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        let mut resolutions = 0;
        self.seen.send_modify(|seen| {
            resolutions = seen.resolutions;
            seen.resolutions += 1;
        });
        let literal = host.parse().ok().map(|address: IpAddr| vec![address]);
        let changing = self.changing.get(&host).map(|all| vec![all[resolutions % all.len()]]);
        let found = literal.or(changing).or_else(|| self.hosts.get(&host).cloned());
        let (clock, delay) = (self.clock.clone(), self.resolve_delay);
        async move {
            sleep(&*clock, delay).await;
            let found = found.ok_or_else(|| io::Error::other("no such name"))?;
            Ok(found.into_iter().map(|address| SocketAddr::new(address, port)).collect())
        }
        .boxed()
    }

    #[allow(clippy::disallowed_methods, reason = "a peer of a test ends with the test's runtime")]
    fn connect(&self, address: SocketAddr) -> BoxFuture<'static, io::Result<Box<dyn Stream>>> {
        self.seen.send_modify(|seen| seen.connections.push(address.to_string()));
        let (net, peer) = (self.clone(), self.peers.get(&address.ip()).cloned());
        async move {
            let peer = peer.ok_or(io::ErrorKind::ConnectionRefused)?;
            sleep(&*net.clock, peer.connect_delay).await;
            let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
            drop(tokio::spawn(peer.serve(theirs, net.seen)));
            Ok(Box::new(ours) as Box<dyn Stream>)
        }
        .boxed()
    }
}

impl SecretSource for TestSecrets {
    fn read<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<SecretData, SecretError>> {
        async move {
            sleep(&*self.clock, self.delay).await;
            if (namespace, name) != ("team", "creds") {
                return Err(SecretError::NotFound { namespace: namespace.to_owned(), name: name.to_owned() });
            }
            let data: [(&str, &[u8]); 5] = [
                ("token", b"t0ken\n"),
                ("user", b"user"),
                ("password", b"p:w"),
                ("binary", b"\xff\xfe"),
                ("lines", b"one\r\nHost: two"),
            ];
            Ok(data.into_iter().map(|(key, value)| (key.to_owned(), value.to_vec())).collect())
        }
        .boxed()
    }
}

fn secret_api(which: SecretsAt, path: &str) -> http::Response<http_body_util::Full<bytes::Bytes>> {
    let namespace = if matches!(which, SecretsAt::InOther) { "other" } else { "team" };
    let is_there = path == format!("/api/v1/namespaces/{namespace}/secrets/creds");
    let failure = |code: u16, reason: &str| {
        let text = serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": reason,
            "reason": reason, "code": code,
        });
        (code, text)
    };
    let (code, body) = match which {
        SecretsAt::Forbidden => failure(403, "Forbidden"),
        _ if !is_there => failure(404, "NotFound"),
        _ => {
            let metadata = serde_json::json!({ "name": "creds", "namespace": namespace });
            let data = serde_json::json!({ "token": "dDBrZW4=" });
            (200, serde_json::json!({ "kind": "Secret", "apiVersion": "v1", "metadata": metadata, "data": data }))
        }
    };
    let body = http_body_util::Full::new(body.to_string().into());
    http::Response::builder().status(code).body(body).expect("the parts are valid")
}

fn parse(addresses: &[&str]) -> Vec<IpAddr> {
    addresses.iter().map(|address| address.parse().expect("an address")).collect()
}

/// A certificate for `target.test`, its key, and who vouches for it.
pub(super) struct Certificate {
    pub(super) ca_pem: String,
    chain: Vec<rustls::pki_types::CertificateDer<'static>>,
    key: Vec<u8>,
}

impl Certificate {
    /// A certificate for `name`, valid from the beginning of one year to that of another, from an authority of its own.
    pub(super) fn new(name: &str, years: Range<i32>) -> Self {
        let mut authority = rcgen::CertificateParams::new(Vec::new()).expect("no names are valid names");
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        authority.not_before = rcgen::date_time_ymd(2000, 1, 1);
        authority.not_after = rcgen::date_time_ymd(2100, 1, 1);
        authority.distinguished_name.push(rcgen::DnType::CommonName, format!("The authority for {name}"));
        let authority_key = rcgen::KeyPair::generate().expect("a key");
        let ca_pem = authority.self_signed(&authority_key).expect("a certificate").pem();
        let issuer = rcgen::Issuer::new(authority, authority_key);
        let mut leaf = rcgen::CertificateParams::new([name.to_owned()]).expect("a valid name");
        leaf.not_before = rcgen::date_time_ymd(years.start, 1, 1);
        leaf.not_after = rcgen::date_time_ymd(years.end, 1, 1);
        let key = rcgen::KeyPair::generate().expect("a key");
        let chain = vec![leaf.signed_by(&key, &issuer).expect("a certificate").der().clone()];
        Self { ca_pem, chain, key: key.serialize_der() }
    }

    pub(super) fn server(&self) -> Arc<rustls::ServerConfig> {
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(self.key.clone()).into();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let settings = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has them")
            .with_no_client_auth()
            .with_single_cert(self.chain.clone(), key)
            .expect("the key is the certificate's");
        Arc::new(settings)
    }
}

/// Some authority's certificate.
pub(super) fn ca_pem() -> String {
    Certificate::new("target.test", 2026..2027).ca_pem
}
