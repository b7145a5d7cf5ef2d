//! The way of one request: from a client to the API server, and of the answer back.

use std::{convert::Infallible, net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, Stream, stream::unfold};
use http::{HeaderName, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use kube::client::Body;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::Instant,
};
use tokio_rustls::TlsAcceptor;

use super::{
    SERVERS, Shared,
    log::is_watch,
    rules::{Ruled, Rules},
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;

/// What speaks of one connection, and is made anew for the next one.
const OF_THE_CONNECTION: [HeaderName; 7] = [
    header::CONNECTION,
    header::HOST,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::TE,
    HeaderName::from_static("keep-alive"),
];

/// What a server says that only errs.
const ERROR: &str = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"this server only errs","reason":"InternalError","code":500}"#;

/// The pause after a connection that could not be taken.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// What takes connections.
pub(super) struct Relay {
    shared: Arc<Shared>,
    tls: Option<TlsAcceptor>,
}

/// One connection: from whom, and to which server.
#[derive(Clone)]
struct Connection {
    shared: Arc<Shared>,
    client: IpAddr,
    server: u64,
    ruled: Ruled,
}

impl Relay {
    pub fn new(shared: Arc<Shared>, tls: Option<TlsAcceptor>) -> Self {
        Self { shared, tls }
    }

    /// Takes connections until it is dropped, and they with it.
    pub async fn serve(self, listener: TcpListener) {
        let mut connections = JoinSet::new();
        let mut number = 0;
        loop {
            // An error is that of one connection, such as one that was reset before it was taken; or there are too many.
            let Ok((stream, peer)) = listener.accept().await else {
                tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
                continue;
            };
            // What has ended is not kept.
            while connections.try_join_next().is_some() {}
            let ruled = Ruled(self.shared.rules.subscribe());
            let client = peer.ip().to_canonical();
            let connection = Connection { shared: self.shared.clone(), client, server: number % SERVERS, ruled };
            number += 1;
            connections.spawn(connection.attend(stream, self.tls.clone()));
        }
    }
}

impl Connection {
    async fn attend(mut self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        self.ruled.passable(self.client).await;
        // Answers are small and awaited.
        stream.set_nodelay(true).ok();
        match tls {
            // A client that hangs up is no matter of ours.
            Some(tls) => {
                if let Ok(stream) = tls.accept(stream).await {
                    self.speak(stream).await;
                }
            }
            None => self.speak(stream).await,
        }
    }

    async fn speak(self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let service = service_fn(move |request| self.clone().relay(request));
        http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
    }

    /// An error ends the connection, as if the server had gone.
    async fn relay(mut self, request: Request<Incoming>) -> Result<Answer, BoxError> {
        self.ruled.passable(self.client).await;
        let place = self.shared.log().take(self.client, self.server, request.method(), request.uri());
        let answer = if self.ruled.now().errs == Some(self.server) { error() } else { self.ask(request).await? };
        self.ruled.passable(self.client).await;
        self.shared.log().answered(place, answer.status());
        Ok(answer)
    }

    async fn ask(&mut self, request: Request<Incoming>) -> Result<Answer, BoxError> {
        let watch = is_watch(request.uri()).then(|| self.shared.log().watch_begins());
        let (mut parts, body) = request.into_parts();
        for name in OF_THE_CONNECTION {
            parts.headers.remove(name);
        }
        let body = body.collect().await?.to_bytes();
        let answer = self.shared.upstream.send(Request::from_parts(parts, Body::from(body))).await;
        let answer = answer.inspect_err(|error| self.shared.log().unanswered(error))?;
        self.ruled.late_since(Instant::now()).await;
        let (mut parts, body) = answer.into_parts();
        for name in OF_THE_CONNECTION {
            parts.headers.remove(name);
        }
        let passing = Passing { body, watch, connection: self.clone() };
        Ok(Response::from_parts(parts, StreamBody::new(passing.frames()).boxed_unsync()))
    }
}

/// The body of an answer on its way.
struct Passing {
    body: Body,
    /// Its number, if it is a watch.
    watch: Option<u64>,
    connection: Connection,
}

impl Passing {
    fn frames(self) -> impl Stream<Item = Result<Frame<Bytes>, BoxError>> + Send {
        unfold(self, |mut passing| async { passing.next().await.map(|frame| (frame, passing)) })
    }

    async fn next(&mut self) -> Option<Result<Frame<Bytes>, BoxError>> {
        let Connection { client, server, ruled, .. } = &mut self.connection;
        let server = *server;
        let ends = |number| move |rules: &Rules| rules.errs == Some(server) || number < rules.broken_below;
        loop {
            let frame = match self.watch {
                None => self.body.frame().await,
                Some(number) => {
                    let frame = tokio::select! {
                        frame = self.body.frame().fuse() => frame,
                        () = ruled.until(ends(number)) => None,
                    };
                    if number < ruled.now().broken_below {
                        return Some(Err("it was silent for a while".into()));
                    }
                    if number < ruled.now().silent_below {
                        // It has ended, and nobody is told.
                        if !matches!(frame, Some(Ok(_))) {
                            ruled.until(|rules| number < rules.broken_below).await;
                        }
                        continue;
                    }
                    frame
                }
            };
            ruled.passable(*client).await;
            return frame.map(|frame| frame.map_err(BoxError::from));
        }
    }
}

fn error() -> Answer {
    let body = Full::new(Bytes::from_static(ERROR.as_bytes())).map_err(|never: Infallible| match never {});
    let mut answer = Response::new(body.boxed_unsync());
    *answer.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    let json = header::HeaderValue::from_static("application/json");
    answer.headers_mut().insert(header::CONTENT_TYPE, json);
    answer
}
