//! What each answer says about time: the `Date` of the API server, and how long it wants to be left alone.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use http::{HeaderMap, HeaderName, Request, header};
use jiff::Timestamp;
use kube::client::Body;
use tokio::sync::watch;
use tower::{BoxError, Service};

use super::{ANSWER_HEAD_MAX, Answer, DateSeen, Transport};
use crate::clock::{self, BootTime, SharedClock};

/// The longest `Retry-After` that is believed: a proxy in maintenance may name hours, in which nobody would lead.
pub(super) const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// What the answers have said.
#[derive(Debug, Clone)]
pub(super) struct Heard {
    clock: SharedClock,
    pub(super) date: watch::Sender<Option<DateSeen>>,
    /// On the boot clock, in nanoseconds; zero if nothing was asked for.
    not_before: Arc<AtomicU64>,
}

/// Notes what each answer says, and bounds how long its head may take.
#[derive(Clone)]
pub(super) struct Observed {
    inner: Transport,
    heard: Heard,
}

impl Heard {
    pub(super) fn new(clock: SharedClock) -> Self {
        Self { clock, date: watch::channel(None).0, not_before: Arc::new(AtomicU64::new(0)) }
    }

    pub(super) fn not_before(&self) -> BootTime {
        BootTime::from_nanos(self.not_before.load(Ordering::Relaxed))
    }

    pub(super) fn around(&self, inner: Transport) -> Observed {
        Observed { inner, heard: self.clone() }
    }

    fn note(&self, sent: BootTime, answer: &Answer) {
        let now = self.clock.boot();
        if let Some(wait) = text(answer.headers(), header::RETRY_AFTER).and_then(parse_seconds) {
            self.not_before.fetch_max((now + wait.min(RETRY_AFTER_MAX)).as_nanos(), Ordering::Relaxed);
        }
        if let Some(server) = text(answer.headers(), header::DATE).and_then(parse_date) {
            self.date.send_replace(Some(DateSeen { server, wall: self.clock.wall(), sent, received: now }));
        }
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn parse_date(header: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(header).ok()
}

/// The API server writes seconds; the other form, a date, is by a clock that may be wrong.
fn parse_seconds(header: &str) -> Option<Duration> {
    header.trim().parse().ok().map(Duration::from_secs)
}

impl Service<Request<Body>> for Observed {
    type Response = Answer;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Answer, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (heard, sent) = (self.heard.clone(), self.heard.clock.boot());
        let answer = self.inner.call(request);
        async move {
            let answer = clock::timeout(&*heard.clock, ANSWER_HEAD_MAX, answer).await??;
            heard.note(sent, &answer);
            Ok(answer)
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_of_an_answer_is_read_as_http_writes_it() {
        let parsed = parse_date("Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(parsed, Some("1994-11-06T08:49:37Z".parse().expect("a timestamp")));
        assert_eq!(parse_date("yesterday"), None);
    }

    #[test]
    fn a_pause_is_read_in_seconds_only() {
        assert_eq!(parse_seconds(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(parse_seconds("Sun, 06 Nov 1994 08:49:37 GMT"), None);
    }
}
