//! What a gated client puts on the wire, and until when.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, api::PostParams};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    net::TcpListener,
};
use tokio_rustls::{TlsAcceptor, rustls};
use tower::ServiceExt;

use super::{
    ApiServer,
    support::{PATIENCE, Said, Stub, config, reply},
};
use crate::{
    TermEnded,
    clock::{self, SystemClock},
    election::{Guard, Term, testing},
};

const MAP: &str = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","namespace":"default"}}"#;

fn term() -> Term {
    testing::term(&SystemClock::shared(), 1, Duration::from_hours(1))
}

async fn create(api: &ApiServer, guard: &Guard) -> Result<ConfigMap, kube::Error> {
    Api::<ConfigMap>::namespaced(api.gated_client(guard), "default")
        .create(&PostParams::default(), &ConfigMap::default())
        .await
}

fn is_term_ended(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Service(inner) if inner.is::<TermEnded>())
}

fn certificate() -> rustls::ServerConfig {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into();
    rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a key that fits")
}

#[tokio::test]
async fn a_term_that_ends_during_the_tls_handshake_sends_no_byte() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let mut settings = kube::Config::new(format!("https://{address}").parse().expect("an address"));
    settings.accept_invalid_certs = true;
    let api = ApiServer::from_config(settings, SystemClock::shared()).expect("a configuration");
    let (term, tls) = (term(), TlsAcceptor::from(Arc::new(certificate())));
    let slow_server = async {
        let (stream, _) = listener.accept().await.expect("a connection");
        testing::revoke(&term);
        let mut stream = tls.accept(stream).await.expect("a handshake");
        let mut sent = Vec::new();
        // It may close without a goodbye: what counts is what came before.
        stream.read_to_end(&mut sent).await.ok();
        sent
    };
    let guard = term.guard();
    let asking = async {
        let answer = create(&api, &guard).await;
        // Its connections are closed with it.
        drop(api);
        answer
    };
    let both = clock::timeout(&SystemClock, PATIENCE, futures::future::join(asking, slow_server));
    let (answer, sent) = both.await.expect("in time");
    assert_eq!(String::from_utf8_lossy(&sent), "");
    assert!(is_term_ended(&answer.expect_err("the term has ended")), "certainly not sent, and says so");
}

#[tokio::test]
async fn a_request_over_a_kept_connection_sends_no_byte_after_the_end() {
    let stub = Stub::start(|_: &Said| reply(201, MAP));
    let api = ApiServer::from_config(config(&stub), SystemClock::shared()).expect("a configuration");
    let term = term();
    let jobs = Api::<ConfigMap>::namespaced(api.gated_client(&term.guard()), "default");
    let (parameters, map) = (PostParams::default(), ConfigMap::default());
    jobs.create(&parameters, &map).await.expect("the term is valid");
    testing::revoke(&term);
    let refused = jobs.create(&parameters, &map).await.expect_err("the term has ended");
    assert!(is_term_ended(&refused), "{refused}");
    assert_eq!(stub.said().len(), 1);
}

#[tokio::test]
async fn all_requests_of_a_term_share_its_connection_and_no_other_term_does() {
    let stub = Stub::start(|_: &Said| reply(201, MAP));
    let api = ApiServer::from_config(config(&stub), SystemClock::shared()).expect("a configuration");
    let (first, second) = (term(), term());
    for _ in 0..3 {
        create(&api, &first.guard()).await.expect("the term is valid");
    }
    testing::revoke(&first);
    create(&api, &second.guard()).await.expect("the term is valid");
    create(&api, &first.guard()).await.expect_err("the term has ended");
    let connections: Vec<usize> = stub.said().iter().map(|said| said.connection).collect();
    assert_eq!(connections, [0, 0, 0, 1]);
}

/// A connection of which the client finds out that it has died only when it uses it.
struct Mortal {
    inner: TokioIo<DuplexStream>,
    dead: Arc<AtomicBool>,
}

impl Connection for Mortal {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl hyper::rt::Read for Mortal {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if self.dead.load(Ordering::SeqCst) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl hyper::rt::Write for Mortal {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[tokio::test]
async fn a_request_that_meets_a_dead_kept_connection_is_not_sent_anew() {
    let (near, mut far) = tokio::io::duplex(4096);
    let (dead, dials) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (dies, dialled) = (dead.clone(), dials.clone());
    let kept = Arc::new(std::sync::Mutex::new(Some(near)));
    let connector = tower::service_fn(move |_: http::Uri| {
        dialled.fetch_add(1, Ordering::SeqCst);
        let stream = kept.lock().expect("not poisoned").take().unwrap_or_else(|| tokio::io::duplex(4096).0);
        futures::future::ready(Ok::<_, io::Error>(Mortal { inner: TokioIo::new(stream), dead: dies.clone() }))
    });
    let term = term();
    let pool = super::transport::pools(connector, None)(Some(&term.guard()));
    let pool = super::Gate::new(pool, term.guard());
    let request = || {
        let to = http::Request::post("http://api.test/");
        to.body(kube::client::Body::empty()).expect("a request")
    };
    let answering = async {
        let mut head = [0; 4096];
        assert!(far.read(&mut head).await.expect("a request") > 0);
        far.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.expect("open");
    };
    let (answer, ()) = tokio::join!(pool.clone().oneshot(request()), answering);
    drop(answer.expect("the term is valid"));
    dead.store(true, Ordering::SeqCst);
    let lost = pool.oneshot(request()).await.map(drop).expect_err("it has died");
    assert!(lost.is::<super::NotSent>(), "certainly not sent, and says so: {lost:?}");
    assert_eq!(dials.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_request_that_finds_nobody_listening_is_certainly_not_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let settings = kube::Config::new(format!("http://{address}").parse().expect("an address"));
    let api = ApiServer::from_config(settings, SystemClock::shared()).expect("a configuration");
    let error = create(&api, &term().guard()).await.expect_err("nobody listens");
    assert!(matches!(&error, kube::Error::Service(inner) if inner.is::<super::NotSent>()), "{error:?}");
    assert!(error.to_string().contains("refused"), "the reason is told: {error}");
}

#[tokio::test]
async fn a_service_in_this_process_is_asked_when_the_request_is_polled() {
    use futures::FutureExt;
    use tower::Service;
    let echo =
        tower::service_fn(|_: http::Request<kube::client::Body>| async { Ok::<_, tower::BoxError>(reply(200, "")) });
    let term = term();
    let mut gate = super::Gate::new(super::BoxCloneSyncService::new(echo), term.guard());
    let request = || http::Request::new(kube::client::Body::empty());
    let ready = gate.ready().await.expect("ready");
    let (in_time, late) = (ready.call(request()), ready.call(request()));
    assert!(in_time.now_or_never().expect("an answer at once").is_ok());
    testing::revoke(&term);
    let refused = late.await.map(drop).expect_err("the term has ended");
    assert!(refused.is::<TermEnded>());
}
