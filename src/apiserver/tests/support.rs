//! A server on the loopback interface, and a clock that can be set.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::watch,
};
use tokio_rustls::{TlsAcceptor, rustls};

use crate::{
    clock::{self, BootTime, Clock, SystemClock},
    tasks::Tasks,
};

/// One request, as it reached the server.
#[derive(Debug, Clone)]
pub(super) struct Said {
    /// Which connection it came over, from zero.
    pub(super) connection: usize,
    pub(super) method: http::Method,
    pub(super) uri: http::Uri,
    pub(super) authorization: Option<String>,
    /// The client certificate of the connection.
    pub(super) certificate: Option<Vec<u8>>,
    pub(super) body: bytes::Bytes,
}

pub(super) type Reply = http::Response<UnsyncBoxBody<bytes::Bytes, tower::BoxError>>;
type Answers = Arc<dyn Fn(Said) -> BoxFuture<'static, Reply> + Send + Sync>;

pub(super) struct Stub {
    pub(super) address: SocketAddr,
    pub(super) tls: bool,
    said: watch::Receiver<Vec<Said>>,
}

/// What a wait in a test may take; it is reached only when the test fails.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn reply(status: u16, body: &'static str) -> Reply {
    let body = Full::new(bytes::Bytes::from_static(body.as_bytes())).map_err(|never| match never {}).boxed_unsync();
    let json = http::Response::builder().status(status).header(http::header::CONTENT_TYPE, "application/json");
    json.body(body).expect("a response")
}

pub(super) fn config(stub: &Stub) -> kube::Config {
    let scheme = if stub.tls { "https" } else { "http" };
    let mut config = kube::Config::new(format!("{scheme}://{}", stub.address).parse().expect("an address"));
    config.accept_invalid_certs = true;
    config
}

impl Stub {
    pub(super) fn start(answer: impl Fn(&Said) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_async(move |said| futures::future::ready(answer(&said)))
    }

    pub(super) fn start_async<F>(answer: impl Fn(Said) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Reply> + Send + 'static,
    {
        Self::start_with(None, Arc::new(move |said| Box::pin(answer(said))))
    }

    pub(super) fn start_tls(
        tls: rustls::ServerConfig,
        answer: impl Fn(&Said) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::start_with(Some(tls), Arc::new(move |said| Box::pin(futures::future::ready(answer(&said)))))
    }

    fn start_with(tls: Option<rustls::ServerConfig>, answers: Answers) -> Self {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        socket.set_nonblocking(true).expect("a socket");
        let address = socket.local_addr().expect("an address");
        let listener = TcpListener::from_std(socket).expect("a runtime");
        let (log, said) = watch::channel(Vec::new());
        let (is_tls, acceptor) = (tls.is_some(), tls.map(|tls| TlsAcceptor::from(Arc::new(tls))));
        Tasks::default()
            .spawn("stub", async move {
                let tasks = Tasks::default();
                for connection in 0.. {
                    let Ok((stream, _)) = listener.accept().await else { return };
                    let (acceptor, log, answers) = (acceptor.clone(), log.clone(), answers.clone());
                    let serving = async move {
                        let Some(acceptor) = acceptor else {
                            return serve(stream, connection, None, log, answers).await;
                        };
                        let Ok(stream) = acceptor.accept(stream).await else { return };
                        let shown = stream.get_ref().1.peer_certificates();
                        let certificate = shown.and_then(|chain| chain.first()).map(|leaf| leaf.to_vec());
                        serve(stream, connection, certificate, log, answers).await;
                    };
                    tasks.spawn("stub-connection", serving).detach();
                }
            })
            .detach();
        Self { address, tls: is_tls, said }
    }

    /// All that has been asked so far.
    pub(super) fn said(&self) -> Vec<Said> {
        self.said.borrow().clone()
    }

    /// Waits until `count` requests have come in.
    pub(super) async fn heard(&self, count: usize) {
        let mut said = self.said.clone();
        let heard = said.wait_for(|said| said.len() >= count);
        clock::timeout(&SystemClock, PATIENCE, heard).await.expect("in time").expect("the server runs");
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    connection: usize,
    certificate: Option<Vec<u8>>,
    log: watch::Sender<Vec<Said>>,
    answers: Answers,
) {
    let answering = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let (log, answers, certificate) = (log.clone(), answers.clone(), certificate.clone());
        async move {
            let (head, body) = request.into_parts();
            let authorization = head.headers.get(http::header::AUTHORIZATION);
            let said = Said {
                connection,
                authorization: authorization.and_then(|value| value.to_str().ok()).map(ToOwned::to_owned),
                certificate,
                body: body.collect().await?.to_bytes(),
                method: head.method,
                uri: head.uri,
            };
            log.send_modify(|log| log.push(said.clone()));
            Ok::<_, hyper::Error>(answers(said).await)
        }
    });
    // How it ends is the client's affair.
    http1::Builder::new().serve_connection(TokioIo::new(stream), answering).await.ok();
}

/// The machine's clocks, with an offset that grows as told.
#[derive(Debug, Default)]
pub(super) struct SettableClock(AtomicU64);

/// How often a wait on the clock looks whether it was set.
const LOOK: Duration = Duration::from_millis(2);

impl SettableClock {
    pub(super) fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_secs(), Ordering::SeqCst);
    }

    fn offset(&self) -> Duration {
        Duration::from_secs(self.0.load(Ordering::SeqCst))
    }
}

/// The clock is a clone of it, and the one that is set another.
#[derive(Debug, Clone, Default)]
pub(super) struct SharedSettable(pub(super) Arc<SettableClock>);

impl Clock for SharedSettable {
    fn boot(&self) -> BootTime {
        SystemClock.boot() + self.0.offset()
    }

    fn wall(&self) -> jiff::Timestamp {
        SystemClock.wall() + self.0.offset()
    }

    fn sleep_until(&self, at: BootTime) -> BoxFuture<'static, ()> {
        let clock = self.clone();
        Box::pin(async move {
            while clock.boot() < at {
                clock::sleep(&SystemClock, LOOK).await;
            }
        })
    }
}
