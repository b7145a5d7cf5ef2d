//! The outside judge: a target in another place than the replicas, which stamps the first byte of each request with the true
//! time and keeps what the request says of itself. It also plays a fencing target: it refuses a token lower than one that it
//! has seen. What it does next to a request of a job is set by [`Manner`].
//!
//! Its side of each connection runs outside of every replica's freezer: what was sent goes on.

use std::{
    collections::BTreeMap,
    io::{self, Cursor},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tenure::{
    clock::{BootTime, Clock, SimulatedClock},
    dial::{Dial, SharedDial, Stream},
};
use tokio::{
    io::{AsyncReadExt, DuplexStream},
    sync::watch,
};

/// What a connection holds on its way.
const PIPE_BYTES: usize = 16 * 1024;

/// Where the ledger is, for those who ask by name.
const ADDRESS: ([u8; 4], u16) = ([10, 0, 0, 1], 80);

/// The ledger. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Ledger(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: Arc<SimulatedClock>,
    book: Mutex<Book>,
    /// Grows with each line.
    length: watch::Sender<usize>,
}

#[derive(Debug)]
struct Book {
    rng: StdRng,
    lines: Vec<Line>,
    highest_token: u64,
    probes: u64,
    refused_probes: Vec<String>,
    manners: BTreeMap<String, Manner>,
    cut_off: BTreeMap<String, CutOff>,
    story: Vec<(BootTime, String)>,
}

/// One request, as it was seen from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// When its first byte came, on the true time.
    pub at: BootTime,
    /// Which replica sent it: each has an address of its own here.
    pub replica: String,
    pub job: String,
    pub run: String,
    pub slot: String,
    pub attempt: u32,
    pub token: u64,
    /// Whether the token was the highest one seen.
    pub accepted: bool,
    /// When it was answered, and with which status. None while it is worked on, and if it is never answered.
    pub answered: Option<(BootTime, u16)>,
}

/// What the target does with the requests of one job.
#[derive(Debug, Clone)]
pub enum Manner {
    /// It answers this status after a time drawn from [0, the bound].
    Answer { status: u16, within: Duration },
    /// So many of a hundred requests are answered with 503, and so many are never answered, their connection cut.
    Moody { within: Duration, refuses: u32, cuts: u32 },
    /// It takes the request and closes the connection.
    Cut,
    /// It takes the request and answers nothing until told otherwise.
    Hold(watch::Receiver<bool>),
}

/// How a replica cannot reach the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CutOff {
    Refused,
    Silent,
}

impl Line {
    /// Whether it was answered as its sender wished.
    pub fn is_success(&self) -> bool {
        self.answered.is_some_and(|(_, status)| status == 200)
    }
}

impl Ledger {
    pub fn new(clock: Arc<SimulatedClock>, seed: u64) -> Self {
        let book = Book {
            rng: StdRng::seed_from_u64(seed),
            lines: Vec::new(),
            highest_token: 0,
            probes: 0,
            refused_probes: Vec::new(),
            manners: BTreeMap::new(),
            cut_off: BTreeMap::new(),
            story: Vec::new(),
        };
        Self(Arc::new(Inner { clock, book: Mutex::new(book), length: watch::Sender::new(0) }))
    }

    /// The way of `replica` to the ledger.
    pub fn dial(&self, replica: &str) -> SharedDial {
        Arc::new(LedgerDial { ledger: self.clone(), replica: replica.to_owned() })
    }

    /// From now on, requests of `job` (`namespace/name`) are treated like this.
    pub fn manner(&self, job: &str, manner: Manner) {
        self.book(|book| book.manners.insert(job.to_owned(), manner));
    }

    /// Cuts `replica` off from the ledger.
    pub fn cut_off(&self, replica: &str, how: CutOff) {
        self.book(|book| book.cut_off.insert(replica.to_owned(), how));
    }

    /// Ends [`Ledger::cut_off`].
    pub fn heal(&self, replica: &str) {
        self.book(|book| book.cut_off.remove(replica));
    }

    /// A sign of life of a leader: a datagram with its token.
    pub fn probe(&self, replica: &str, token: u64) {
        let at = self.0.clock.boot();
        self.book(|book| {
            book.probes += 1;
            if token < book.highest_token {
                book.refused_probes.push(format!("{at:?} {replica} probes with {token} after {}", book.highest_token));
            }
            book.highest_token = book.highest_token.max(token);
        });
    }

    pub fn lines(&self) -> Vec<Line> {
        self.book(|book| book.lines.clone())
    }

    /// The requests of `job`, in the order in which they came.
    pub fn lines_of(&self, job: &str) -> Vec<Line> {
        self.lines().into_iter().filter(|line| line.job == job).collect()
    }

    /// How many probes came, and those that came with an old token.
    pub fn probes(&self) -> (u64, Vec<String>) {
        self.book(|book| (book.probes, book.refused_probes.clone()))
    }

    /// What has happened here, for the event log; each entry is given out once.
    pub fn take_story(&self) -> Vec<(BootTime, String)> {
        self.book(|book| std::mem::take(&mut book.story))
    }

    fn book<T>(&self, work: impl FnOnce(&mut Book) -> T) -> T {
        work(&mut self.0.book.lock().unwrap())
    }

    /// Serves one connection to its end.
    async fn serve(self, replica: String, mut stream: DuplexStream) {
        let mut first = [0; 1];
        if stream.read_exact(&mut first).await.is_err() {
            return;
        }
        let at = self.0.clock.boot();
        let (reader, writer) = tokio::io::split(stream);
        let whole = tokio::io::join(Cursor::new(first).chain(reader), writer);
        let service = service_fn(|request| self.clone().take(replica.clone(), at, request));
        // A caller that is gone by the time of the answer is no concern of the ledger.
        drop(http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(whole), service).await);
    }

    async fn take(
        self,
        replica: String,
        at: BootTime,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, io::Error> {
        let header = |name: &str| {
            request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        let line = Line {
            at,
            replica,
            job: header("tenure-job"),
            run: header("idempotency-key"),
            slot: header("tenure-slot"),
            attempt: header("tenure-attempt").parse().unwrap_or(0),
            token: header("tenure-token").parse().unwrap_or(0),
            accepted: true,
            answered: None,
        };
        let (index, treatment) = self.book(|book| book.write_down(line));
        self.0.length.send_modify(|length| *length += 1);
        let status = match treatment {
            Treatment::Answer { status, after } => {
                self.0.clock.sleep_until(self.0.clock.boot() + after).await;
                status
            }
            Treatment::Cut => return Err(io::Error::other("cut")),
            Treatment::Hold(mut released) => {
                // A hold whose owner is gone is released.
                released.wait_for(|released| *released).await.ok();
                200
            }
        };
        let now = self.0.clock.boot();
        self.book(|book| {
            book.lines[index].answered = Some((now, status));
            let run = book.lines[index].run.clone();
            book.story.push((now, format!("ledger answers {run} with {status}")));
        });
        let answer = Response::builder().status(StatusCode::from_u16(status).unwrap());
        Ok(answer.body(Full::new(Bytes::from_static(b"written down"))).unwrap())
    }
}

enum Treatment {
    Answer { status: u16, after: Duration },
    Cut,
    Hold(watch::Receiver<bool>),
}

impl Book {
    fn write_down(&mut self, mut line: Line) -> (usize, Treatment) {
        line.accepted = line.token >= self.highest_token;
        self.highest_token = self.highest_token.max(line.token);
        let treatment = if line.accepted {
            self.treatment(&line.job)
        } else {
            Treatment::Answer { status: 409, after: Duration::ZERO }
        };
        let what = if line.accepted { "takes" } else { "refuses" };
        let (job, run, attempt, token) = (&line.job, &line.run, line.attempt, line.token);
        let told = format!("ledger {what} {job} {run} attempt {attempt} token {token} from {}", line.replica);
        self.story.push((line.at, told));
        self.lines.push(line);
        (self.lines.len() - 1, treatment)
    }

    fn treatment(&mut self, job: &str) -> Treatment {
        let usual = Manner::Answer { status: 200, within: Duration::ZERO };
        match self.manners.get(job).unwrap_or(&usual).clone() {
            Manner::Answer { status, within } => Treatment::Answer { status, after: self.time_within(within) },
            Manner::Moody { within, refuses, cuts } => {
                let mood = self.rng.random_range(0..100);
                let status = if mood < refuses { 503 } else { 200 };
                let after = self.time_within(within);
                if (refuses..refuses + cuts).contains(&mood) {
                    return Treatment::Cut;
                }
                Treatment::Answer { status, after }
            }
            Manner::Cut => Treatment::Cut,
            Manner::Hold(released) => Treatment::Hold(released),
        }
    }

    fn time_within(&mut self, bound: Duration) -> Duration {
        let millis = u64::try_from(bound.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(self.rng.random_range(0..=millis))
    }
}

#[derive(Debug)]
struct LedgerDial {
    ledger: Ledger,
    replica: String,
}

impl Dial for LedgerDial {
    fn resolve(&self, _: String, _: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        async { Ok(vec![SocketAddr::from(ADDRESS)]) }.boxed()
    }

    fn connect(&self, _: SocketAddr) -> BoxFuture<'static, io::Result<Box<dyn Stream>>> {
        let (ledger, replica) = (self.ledger.clone(), self.replica.clone());
        async move {
            match ledger.book(|book| book.cut_off.get(&replica).copied()) {
                Some(CutOff::Refused) => return Err(io::ErrorKind::ConnectionRefused.into()),
                Some(CutOff::Silent) => std::future::pending().await,
                None => {}
            }
            let (near, far) = tokio::io::duplex(PIPE_BYTES);
            tokio::spawn(ledger.serve(replica, far));
            Ok(Box::new(near) as Box<dyn Stream>)
        }
        .boxed()
    }
}
