//! The ledger as a server.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rand::{Rng, SeedableRng, rngs::StdRng};
use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::record::{Entry, Log, Request, Verdict};
use crate::clock::At;

/// How much of a request's body is read: what the contract allows a job to send.
const BODY_BOUND: usize = 64 * 1024;
/// How often a free port that all addresses share is looked for before the ledger gives up.
const PORT_TRIES: usize = 50;

/// How long the ledger takes to answer.
#[derive(Debug, Clone, Default)]
pub struct Pace {
    /// What the delays are drawn from.
    pub seed: u64,
    /// The period of each job by name. A job that is not named here is answered at once.
    pub periods: BTreeMap<String, Duration>,
}

/// Which address of a connection names the replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NamedBy {
    /// The one that was dialled: each replica has one of its own.
    #[default]
    Dialled,
    /// The one that it came from: each replica is a pod.
    Origin,
}

/// Whose request a hold waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// The next one.
    Anybodys,
    /// The next one of this replica.
    Replica(IpAddr),
    /// The next one of this term, whatever address it comes from.
    Term(u64),
}

/// Why a ledger could not start.
#[derive(Debug, Error)]
pub enum LedgerError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// No port is free on all addresses.
    #[error("no port is free on all of {0:?}")]
    NoPort(Vec<IpAddr>),
}

/// A running ledger. Dropping the last clone does not stop it; [`Ledger::stop`] does.
#[derive(Debug, Clone)]
pub struct Ledger(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    port: u16,
    pace: Pace,
    named_by: NamedBy,
    log: Mutex<Log>,
    changed: watch::Sender<usize>,
    holds: Mutex<Vec<Armed>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// A hold that no request has met yet.
#[derive(Debug)]
struct Armed {
    job: Option<String>,
    whose: Whose,
    met: watch::Sender<Option<Entry>>,
    released: CancellationToken,
}

/// The answer of one request, held. Dropping it releases it.
#[derive(Debug)]
pub struct Hold {
    met: watch::Receiver<Option<Entry>>,
    released: CancellationToken,
}

impl Ledger {
    /// Starts a ledger that listens on one port of every address.
    pub async fn start(addresses: &[IpAddr], pace: Pace) -> Result<Self, LedgerError> {
        Self::start_named_by(NamedBy::Dialled, addresses, pace).await
    }

    /// The same, with a say in what names a replica.
    pub async fn start_named_by(named_by: NamedBy, addresses: &[IpAddr], pace: Pace) -> Result<Self, LedgerError> {
        let (port, listeners) = listen(addresses).await?;
        let ledger = Self(Arc::new(Shared {
            port,
            pace,
            named_by,
            log: Mutex::default(),
            changed: watch::Sender::new(0),
            holds: Mutex::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }));
        for listener in listeners {
            let (shared, stop) = (ledger.0.clone(), ledger.0.stop.clone());
            ledger.0.tasks.spawn(async move { stop.run_until_cancelled(accept(shared, listener)).await });
        }
        Ok(ledger)
    }

    /// The port that is the same on every address.
    pub fn port(&self) -> u16 {
        self.0.port
    }

    /// Everything seen so far.
    pub fn log(&self) -> Log {
        lock(&self.0.log).clone()
    }

    /// What `look` finds in the log, without a copy of it.
    pub fn with_log<T>(&self, look: impl FnOnce(&Log) -> T) -> T {
        look(&lock(&self.0.log))
    }

    /// How many requests have been taken; it changes with each.
    pub fn taken(&self) -> watch::Receiver<usize> {
        self.0.changed.subscribe()
    }

    /// Holds the answer of the next accepted request of this job (or any) that is theirs.
    pub fn hold(&self, job: Option<&str>, whose: Whose) -> Hold {
        let (met, seen) = watch::channel(None);
        let released = CancellationToken::new();
        lock(&self.0.holds).push(Armed { job: job.map(str::to_owned), whose, met, released: released.clone() });
        Hold { met: seen, released }
    }

    /// Stops listening and answering, and waits until nothing is left.
    pub async fn stop(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

impl Hold {
    /// Waits until a request is held, and returns it.
    pub async fn reached(&mut self) -> Option<Entry> {
        self.met.wait_for(Option::is_some).await.ok().and_then(|entry| entry.clone())
    }

    /// Lets the answer go. A hold that no request has met is disarmed.
    pub fn release(&self) {
        self.released.cancel();
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.release();
    }
}

impl Pace {
    /// How long a request waits for its answer: 0 to 1.5 periods, the same for the same seed, run and attempt.
    fn delay(&self, request: &Request) -> Duration {
        let Some(period) = self.periods.get(&request.job) else { return Duration::ZERO };
        let mut hasher = DefaultHasher::new();
        (self.seed, &request.run_id, request.attempt).hash(&mut hasher);
        period.mul_f64(StdRng::seed_from_u64(hasher.finish()).random_range(0.0..1.5))
    }
}

impl Shared {
    fn take(&self, first_byte: At, replica: IpAddr, path: &str, request: Request) -> (usize, Entry) {
        let mut log = lock(&self.log);
        let (place, _) = log.take(first_byte, replica, path, request);
        let entry = log.entries()[place].clone();
        self.changed.send_replace(place + 1);
        (place, entry)
    }

    /// The hold that this request meets, if one is armed for it.
    fn meet(&self, entry: &Entry) -> Option<CancellationToken> {
        let mut holds = lock(&self.holds);
        holds.retain(|hold| !hold.released.is_cancelled());
        let place = holds.iter().position(|hold| {
            hold.job.as_ref().is_none_or(|job| *job == entry.request.job)
                && match hold.whose {
                    Whose::Anybodys => true,
                    Whose::Replica(replica) => replica == entry.replica,
                    Whose::Term(token) => token == entry.request.token,
                }
        })?;
        let hold = holds.remove(place);
        hold.met.send_replace(Some(entry.clone()));
        Some(hold.released)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn listen(addresses: &[IpAddr]) -> Result<(u16, Vec<TcpListener>), LedgerError> {
    'search: for _ in 0..PORT_TRIES {
        let mut listeners: Vec<TcpListener> = Vec::new();
        let mut port = 0;
        for address in addresses {
            let address = SocketAddr::new(*address, port);
            match TcpListener::bind(address).await {
                Ok(listener) => {
                    port = listener.local_addr().map_err(|source| LedgerError::Listen { address, source })?.port();
                    listeners.push(listener);
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => continue 'search,
                Err(source) => return Err(LedgerError::Listen { address, source }),
            }
        }
        return Ok((port, listeners));
    }
    Err(LedgerError::NoPort(addresses.to_vec()))
}

async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        // A failed accept concerns one connection, or passes: the listener itself stays good.
        let Ok((stream, _)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        let (connection, stop) = (serve(shared.clone(), stream), shared.stop.clone());
        shared.tasks.spawn(async move { stop.run_until_cancelled(connection).await });
    }
}

/// Serves the one request of a connection. What goes wrong with a connection is seen by its sender and missing in the log.
async fn serve(shared: Arc<Shared>, stream: TcpStream) {
    let mut first = [0_u8; 1];
    let Ok(1..) = stream.peek(&mut first).await else { return };
    let first_byte = At::now();
    let named = match shared.named_by {
        NamedBy::Dialled => stream.local_addr(),
        NamedBy::Origin => stream.peer_addr(),
    };
    let Ok(replica) = named else { return };
    let service = service_fn(move |request| handle(shared.clone(), first_byte, replica.ip(), request));
    let served = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the ledger broke");
    }
}

async fn handle(
    shared: Arc<Shared>,
    first_byte: At,
    replica: IpAddr,
    request: http::Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let read = match Request::from_headers(request.headers()) {
        Ok(read) => read,
        Err(reason) => {
            lock(&shared.log).malformed(reason.clone());
            return Ok(answer(StatusCode::BAD_REQUEST, reason));
        }
    };
    let delay = shared.pace.delay(&read);
    let (place, entry) = shared.take(first_byte, replica, &path, read);
    if Limited::new(request.into_body(), BODY_BOUND).collect().await.is_err() {
        return Ok(answer(StatusCode::PAYLOAD_TOO_LARGE, "the body is incomplete or too large".to_owned()));
    }
    if entry.verdict == Verdict::Refused {
        lock(&shared.log).answered(place, At::now());
        return Ok(answer(StatusCode::PRECONDITION_FAILED, "a higher token has been seen".to_owned()));
    }
    match shared.meet(&entry) {
        Some(released) => released.cancelled().await,
        None => tokio::time::sleep(delay).await,
    }
    lock(&shared.log).answered(place, At::now());
    Ok(answer(StatusCode::OK, "taken".to_owned()))
}

fn answer(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const REPLICAS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(127, 0, 0, 21)), IpAddr::V4(Ipv4Addr::new(127, 0, 0, 22))];

    async fn post(ledger: &Ledger, replica: usize, run: &str, token: u64) -> u16 {
        let mut stream = TcpStream::connect((REPLICAS[replica], ledger.port())).await.unwrap();
        let head = format!(
            "POST /lease HTTP/1.1\r\nHost: ledger.test\r\nIdempotency-Key: {run}\r\nTenure-Job: default/job\r\n\
             Tenure-Slot: 2026-03-01T00:00:00Z\r\nTenure-Attempt: 1\r\nTenure-Token: {token}\r\nContent-Length: 2\r\n\r\nhi"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text.split(' ').nth(1).unwrap().parse().unwrap()
    }

    #[tokio::test]
    async fn a_request_is_kept_with_the_replica_it_came_from_and_an_old_token_is_refused() {
        let ledger = Ledger::start(&REPLICAS, Pace::default()).await.unwrap();
        let before = At::now();
        assert_eq!(post(&ledger, 0, "a", 5).await, 200);
        assert_eq!(post(&ledger, 1, "b", 8).await, 200);
        assert_eq!(post(&ledger, 0, "a", 5).await, 412);
        let log = ledger.log();
        let seen: Vec<_> =
            log.entries().iter().map(|entry| (entry.replica, entry.request.token, entry.verdict)).collect();
        let expected = [
            (REPLICAS[0], 5, Verdict::Accepted),
            (REPLICAS[1], 8, Verdict::Accepted),
            (REPLICAS[0], 5, Verdict::Refused),
        ];
        assert_eq!(seen, expected);
        assert!(log.entries().iter().all(|entry| entry.first_byte > before && entry.answered > Some(entry.first_byte)));
        ledger.stop().await;
    }

    #[tokio::test]
    async fn a_held_answer_comes_when_the_hold_is_released() {
        let ledger = Ledger::start(&REPLICAS, Pace::default()).await.unwrap();
        let mut hold = ledger.hold(Some("job"), Whose::Replica(REPLICAS[1]));
        assert_eq!(post(&ledger, 0, "other-replica", 5).await, 200);
        let sender = ledger.clone();
        let held = tokio::spawn(async move { post(&sender, 1, "held", 5).await });
        assert_eq!(hold.reached().await.unwrap().request.run_id, "held");
        assert_eq!(ledger.with_log(|log| log.entries()[1].answered), None);
        assert!(!held.is_finished());
        hold.release();
        assert_eq!(held.await.unwrap(), 200);
        ledger.stop().await;
    }

    #[tokio::test]
    async fn a_sender_that_goes_away_leaves_an_entry_without_an_answer() {
        let ledger = Ledger::start(&REPLICAS, Pace::default()).await.unwrap();
        let mut hold = ledger.hold(None, Whose::Anybodys);
        let sender = ledger.clone();
        let held = tokio::spawn(async move { post(&sender, 1, "gone", 5).await });
        hold.reached().await.unwrap();
        held.abort();
        assert!(held.await.unwrap_err().is_cancelled());
        let mut taken = ledger.taken();
        taken.mark_unchanged();
        assert_eq!(post(&ledger, 0, "next", 5).await, 200);
        assert_eq!(ledger.with_log(|log| log.entries()[0].answered), None);
        ledger.stop().await;
    }

    #[tokio::test]
    async fn a_request_outside_the_contract_is_answered_400_and_kept_apart() {
        let ledger = Ledger::start(&REPLICAS, Pace::default()).await.unwrap();
        let mut stream = TcpStream::connect((REPLICAS[0], ledger.port())).await.unwrap();
        stream.write_all(b"POST /lease HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 400"), "{text}");
        let log = ledger.log();
        assert!(log.entries().is_empty());
        assert_eq!(log.malformed_requests(), ["header Tenure-Slot is missing"]);
        ledger.stop().await;
    }

    #[test]
    fn delays_follow_from_the_seed_and_reach_beyond_one_period() {
        let pace = |seed| Pace { seed, periods: BTreeMap::from([("job".to_owned(), Duration::from_secs(1))]) };
        let request =
            |run: u32| Request { run_id: run.to_string(), job: "job".into(), slot: None, attempt: 1, token: 1 };
        let delays: Vec<Duration> = (0..200).map(|run| pace(1).delay(&request(run))).collect();
        assert_eq!(delays, (0..200).map(|run| pace(1).delay(&request(run))).collect::<Vec<_>>());
        assert_ne!(delays, (0..200).map(|run| pace(2).delay(&request(run))).collect::<Vec<_>>());
        assert!(delays.iter().all(|delay| *delay <= Duration::from_millis(1500)));
        assert!(delays.iter().any(|delay| *delay > Duration::from_secs(1)));
        assert!(delays.iter().any(|delay| *delay < Duration::from_millis(500)));
    }
}
