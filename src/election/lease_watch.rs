//! The watch on the one Lease: a hint that shortens waiting, never the only source. Old or missing events are harmless.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, pin_mut};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api,
    api::{WatchEvent, WatchParams},
};
use tokio::sync::{Notify, mpsc};

use super::{machine::Event, record::Record};
use crate::{
    apiserver::ApiServer,
    clock::{self, BootTime, SharedClock},
};

/// A watch is opened again before the 295 s that kube allows for one.
const WATCH_SECONDS: u32 = 290;

/// Silence beyond the watch's own end: the connection is dead, and nobody said so.
const WATCH_SILENCE_MAX: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 5);

/// A server that ends watches at once must not be asked thousands of times a second, nor one that is asked to open anew.
const REOPEN_PAUSE_MIN: Duration = Duration::from_secs(1);

/// The pause doubles with each watch that fails or ends early, up to this. Meanwhile the elector asks by itself.
const REOPEN_PAUSE_MAX: Duration = Duration::from_secs(30);

/// A watch that was served for so long was a success, however it ended.
const SERVED_MIN: Duration = Duration::from_secs(10);

/// Events on their way to the elector; it takes each at once, and a Lease changes a few times a minute.
pub(super) const EVENTS_MAX: usize = 16;

/// The Lease to watch, and where.
pub(super) struct Watched {
    pub(super) api: ApiServer,
    pub(super) namespace: String,
    pub(super) name: String,
}

/// Watches until the receiver is gone. `anew` ends the watch that is open, is being opened or is waited with, and has it
/// opened again, at most once in [`REOPEN_PAUSE_MIN`].
pub(super) async fn watch(watched: Watched, clock: SharedClock, anew: Arc<Notify>, events: mpsc::Sender<Event>) {
    let Watched { api, namespace, name } = watched;
    let leases: Api<Lease> = Api::namespaced(api.client(), &namespace);
    let params = WatchParams::default().fields(&format!("metadata.name={name}")).timeout(WATCH_SECONDS);
    let mut pause = REOPEN_PAUSE_MIN;
    while !events.is_closed() {
        // What was wished for until now is fulfilled by this opening, and must not cut it off.
        let fulfilled = anew.notified().now_or_never();
        tracing::trace!(?fulfilled, "The Lease is to be watched");
        let opened = clock.boot();
        let wanted = tokio::select! {
            biased;
            () = events.closed() => return,
            () = anew.notified() => true,
            () = follow(&leases, &params, &clock, &events) => false,
        };
        let served = clock.boot() - opened >= SERVED_MIN;
        pause = if wanted || served { REOPEN_PAUSE_MIN } else { pause };
        let asked_for = api.not_before();
        tokio::select! {
            biased;
            () = events.closed() => return,
            () = clock.sleep_until((opened + pause).max(asked_for)) => {}
            () = wish(&anew, &clock, (opened + REOPEN_PAUSE_MIN).max(asked_for)) => {}
        }
        pause = (pause * 2).min(REOPEN_PAUSE_MAX);
    }
}

/// Waits until the watch is wanted before its pause is over, but no less than until `at`.
async fn wish(anew: &Notify, clock: &SharedClock, at: BootTime) {
    anew.notified().await;
    clock.sleep_until(at).await;
}

/// Follows one watch to its end. It begins with the Lease as it is, possibly a little stale: that needs no list first.
async fn follow(api: &Api<Lease>, params: &WatchParams, clock: &SharedClock, events: &mpsc::Sender<Event>) {
    let stream = match api.watch(params, "0").await {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%error, "Cannot watch the Lease");
            return;
        }
    };
    pin_mut!(stream);
    while let Ok(Some(Ok(event))) = clock::timeout(&**clock, WATCH_SILENCE_MAX, stream.next()).await {
        let event = match event {
            WatchEvent::Added(lease) | WatchEvent::Modified(lease) => Record::read(lease).map(Event::Watched).ok(),
            WatchEvent::Deleted(lease) => {
                Record::read(lease).map(|record| Event::WatchedGone { resource_version: record.resource_version }).ok()
            }
            WatchEvent::Bookmark(_) => None,
            WatchEvent::Error(status) => {
                tracing::debug!(error = %status, "The watch of the Lease was ended");
                return;
            }
        };
        if let Some(event) = event
            && events.send(event).await.is_err()
        {
            return;
        }
    }
}

#[cfg(all(test, feature = "controller"))]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http::{Response, header::RETRY_AFTER};
    use http_body_util::Empty;
    use jiff::{SignedDuration, Timestamp};
    use kube::client::Body;

    use super::*;
    use crate::{
        clock::{RATE_ONE, SimulatedClock},
        tasks::Tasks,
    };

    struct Refused {
        clock: Arc<SimulatedClock>,
        asked: Arc<AtomicUsize>,
        anew: Arc<Notify>,
        _events: mpsc::Receiver<Event>,
    }

    /// A watch that is refused whenever it is opened.
    fn refused(retry_after: Option<&'static str>) -> Refused {
        let clock = SimulatedClock::new(Timestamp::UNIX_EPOCH, RATE_ONE, SignedDuration::ZERO);
        let (asked, anew) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let counted = asked.clone();
        let service = tower::service_fn(move |_: http::Request<Body>| {
            counted.fetch_add(1, Ordering::SeqCst);
            let mut answer = Response::builder().status(429);
            if let Some(seconds) = retry_after {
                answer = answer.header(RETRY_AFTER, seconds);
            }
            futures::future::ready(answer.body(Empty::<bytes::Bytes>::new()))
        });
        let api = ApiServer::from_service(service, "default", clock.clone());
        let watched = Watched { api, namespace: "default".to_owned(), name: "main".to_owned() };
        let (events, events_seen) = mpsc::channel(EVENTS_MAX);
        Tasks::default().spawn("lease-watch", watch(watched, clock.clone(), anew.clone(), events)).detach();
        Refused { clock, asked, anew, _events: events_seen }
    }

    impl Refused {
        /// How often the watch was opened in so many seconds.
        async fn asked_within(&self, seconds: u64) -> usize {
            let before = self.asked.load(Ordering::SeqCst);
            clock::sleep(&*self.clock, Duration::from_secs(seconds)).await;
            self.asked.load(Ordering::SeqCst) - before
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_is_always_refused_is_opened_ever_more_seldom() {
        let refused = refused(None);
        assert_eq!(refused.asked_within(59).await, 6, "after 1, 2, 4, 8, 16 and 30 s");
        assert_eq!(refused.asked_within(300).await, 10, "every 30 s");
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_is_wanted_is_opened_at_once_and_once_a_second() {
        let refused = refused(None);
        assert_eq!(refused.asked_within(100).await, 8, "the last of them after 91 s");
        refused.anew.notify_one();
        assert_eq!(refused.asked_within(1).await, 1);
        for _ in 0..100 {
            refused.anew.notify_one();
            clock::sleep(&*refused.clock, Duration::from_millis(100)).await;
        }
        let asked = refused.asked.load(Ordering::SeqCst) - 9;
        assert!((9..=11).contains(&asked), "about once a second in 10 s: {asked}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_is_not_opened_while_the_server_wants_to_be_left_alone() {
        let refused = refused(Some("20"));
        assert_eq!(refused.asked_within(1).await, 1);
        refused.anew.notify_one();
        assert_eq!(refused.asked_within(18).await, 0, "wanted or not");
        assert_eq!(refused.asked_within(3).await, 1);
    }
}
