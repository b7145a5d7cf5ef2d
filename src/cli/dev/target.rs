//! What the example jobs call: a heartbeat that is always taken, and a service that is down until it is toggled.
//!
//! The second is "API 2" of the classic example of a reliable call: the caller goes on trying, with growing waits, until it
//! has recovered. The target shows every attempt and how long after the one before it came.

use std::{
    collections::VecDeque,
    fmt::Write,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::{get, post},
};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::ports;
use crate::{clock::SharedClock, tasks::Tasks};

/// The target, serving.
#[derive(Debug)]
pub(super) struct Target {
    address: SocketAddr,
}

#[derive(Debug)]
struct Shared {
    clock: SharedClock,
    address: SocketAddr,
    state: Mutex<Flaky>,
}

#[derive(Debug, Default)]
struct Flaky {
    up: bool,
    heartbeats: u64,
    /// The newest last, at most [`KEPT`].
    attempts: VecDeque<Seen>,
}

/// One attempt at the flaky service.
#[derive(Debug)]
struct Seen {
    at: Timestamp,
    run: String,
    attempt: String,
    token: String,
    answer: StatusCode,
}

/// More than any run of the example has attempts.
const KEPT: usize = 40;

impl Target {
    pub(super) async fn start(clock: SharedClock, tasks: &Tasks, stop: CancellationToken) -> io::Result<Self> {
        let listener = ports::listen(ports::TARGET).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { clock, address, state: Mutex::default() });
        let router = Router::new()
            .route("/", get(show))
            .route("/heartbeat", post(heartbeat))
            .route("/flaky", post(flaky))
            .route("/toggle", post(toggle))
            .with_state(shared);
        let serving = async move {
            let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
            if let Err(error) = served.await {
                tracing::error!(%error, "The target has ended");
            }
        };
        tasks.spawn("target", serving).detach();
        Ok(Self { address })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Shared {
    fn with<T>(&self, work: impl FnOnce(&mut Flaky) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn heartbeat(State(shared): State<Arc<Shared>>) -> &'static str {
    shared.with(|state| state.heartbeats += 1);
    "beat\n"
}

async fn flaky(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> (StatusCode, &'static str) {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("-").to_owned();
    let at = shared.clock.wall();
    shared.with(|state| {
        let (answer, text) =
            if state.up { (StatusCode::OK, "done\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "down\n") };
        let (run, attempt, token) = (header("idempotency-key"), header("tenure-attempt"), header("tenure-token"));
        state.attempts.push_back(Seen { at, run, attempt, token, answer });
        if state.attempts.len() > KEPT {
            state.attempts.pop_front();
        }
        (answer, text)
    })
}

async fn toggle(State(shared): State<Arc<Shared>>) -> &'static str {
    let up = shared.with(|state| {
        state.up = !state.up;
        state.up
    });
    if up { "the flaky target is up: it answers 200\n" } else { "the flaky target is down: it answers 503\n" }
}

async fn show(State(shared): State<Arc<Shared>>) -> String {
    let address = shared.address;
    shared.with(|state| {
        let now = if state.up { "up: it answers 200" } else { "down: it answers 503" };
        let mut text = format!(
            "The flaky target is {now}. To toggle it: curl -X POST http://{address}/toggle\n\
             Heartbeats: {}\n\n{:<14}{:<18}{:<9}{:<8}{:<8}AFTER\n",
            state.heartbeats, "TIME", "RUN", "ATTEMPT", "TOKEN", "ANSWER",
        );
        for (index, seen) in state.attempts.iter().enumerate() {
            let before = state.attempts.iter().take(index).rev().find(|other| other.run == seen.run);
            let after = before
                .map_or_else(String::new, |before| format!("{:.1} s", seen.at.duration_since(before.at).as_secs_f64()));
            let short: String = seen.run.chars().take(16).collect();
            let line = format!(
                "{:<14}{short:<18}{:<9}{:<8}{:<8}{after}",
                seen.at.strftime("%H:%M:%S%.3f").to_string(),
                seen.attempt,
                seen.token,
                seen.answer.as_u16(),
            );
            // Writing to a String cannot fail.
            writeln!(text, "{}", line.trim_end()).ok();
        }
        text
    })
}
