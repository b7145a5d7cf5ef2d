//! The watch on the one Lease: a hint that shortens waiting, never the only source. Old or missing events are harmless.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, pin_mut};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api,
    api::{WatchEvent, WatchParams},
};
use tokio::sync::{Notify, mpsc};

use super::{machine::Event, record::Record};
use crate::clock::{self, SharedClock};

/// A watch is opened again before the 295 s that kube allows for one.
const WATCH_SECONDS: u32 = 290;

/// Silence beyond the watch's own end: the connection is dead, and nobody said so.
const WATCH_SILENCE_MAX: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 5);

/// A server that ends watches at once must not be asked thousands of times a second.
const REOPEN_PAUSE_MIN: Duration = Duration::from_secs(1);

/// Events on their way to the elector; it takes each at once, and a Lease changes a few times a minute.
pub(super) const EVENTS_MAX: usize = 16;

/// Watches until the receiver is gone. `anew` ends the watch that is open, or is being opened, and has it opened again.
pub(super) async fn watch(
    api: Api<Lease>,
    name: Arc<str>,
    clock: SharedClock,
    anew: Arc<Notify>,
    events: mpsc::Sender<Event>,
) {
    let params = WatchParams::default().fields(&format!("metadata.name={name}")).timeout(WATCH_SECONDS);
    while !events.is_closed() {
        let opened = clock.boot();
        tokio::select! {
            biased;
            () = events.closed() => return,
            () = anew.notified() => {}
            () = follow(&api, &params, &clock, &events) => {}
        }
        tokio::select! {
            biased;
            () = events.closed() => return,
            () = clock.sleep_until(opened + REOPEN_PAUSE_MIN) => {}
        }
    }
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
