//! Kubernetes Events (`events.k8s.io/v1`) about state changes of the Lease and of jobs.
//!
//! An Event is a note to people: whoever posts one never waits for it, a full queue drops it, and one that the API server
//! does not take within a few tries is given up. Both are counted ([`Events::counts`]).
//!
//! An Event's name follows from what it says, so that a fact that is stated twice, by the same replica or by another, is
//! one Event with a growing `series.count`. Not kube's `Recorder`: it reads the wall clock itself, and it names Events by
//! nanoseconds, which makes a repeated fact a new object after each restart.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::ObjectReference,
        events::v1::{Event, EventSeries},
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use crate::{
    apiserver::ApiServer,
    clock::{self, SharedClock},
    explain::explain,
    tasks::Tasks,
};

/// Where Events are posted. Clones post to the same queue.
#[derive(Debug, Clone)]
pub struct Events {
    queue: mpsc::Sender<Note>,
    counts: Arc<Counters>,
    clock: SharedClock,
}

/// What happened to an object.
#[derive(Debug, Clone, PartialEq)]
pub struct Fact {
    /// The object it happened to.
    pub regarding: ObjectReference,
    /// Whether somebody should look at it.
    pub weight: Weight,
    /// Why, in one CamelCase word.
    pub reason: &'static str,
    /// What was done about it, in one CamelCase word.
    pub action: &'static str,
    /// The sentence for people. Cut at 1,024 bytes, which is what the API server takes.
    pub note: String,
}

/// Whether somebody should look at an Event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// All is as it should be.
    Normal,
    /// It is not.
    Warning,
}

/// What became of the Events posted so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct EventCounts {
    /// Taken by the API server.
    pub written: u64,
    /// Given up after the last try.
    pub failed: u64,
    /// Not queued, because the queue was full or closed.
    pub dropped: u64,
}

#[derive(Debug, Clone)]
struct Note {
    fact: Fact,
    at: Timestamp,
}

#[derive(Debug, Default)]
struct Counters {
    written: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
}

struct Writer {
    client: Client,
    clock: SharedClock,
    instance: String,
    counts: Arc<Counters>,
}

/// State changes are rare; this is a burst in which each of a few hundred jobs has one.
const QUEUE: usize = 512;

/// A note that cannot be written soon is of no use to anyone.
const TRIES: u32 = 3;

/// One try, all requests of it.
const TRY_DEADLINE: Duration = Duration::from_secs(5);

/// Pause after a failed try.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The API server's own bound on a note.
const MAX_NOTE_BYTES: usize = 1024;

/// The name of an object is at most 253 bytes; 17 of them are a dot and the hash.
const MAX_NAME_PREFIX: usize = 236;

/// Who reports, in the form of a label key.
const CONTROLLER: &str = "tenure.dev/tenure";

impl Events {
    /// Starts to write Events in the name of the replica `instance`, as a task of `tasks` that ends when the last clone
    /// is dropped.
    pub fn start(api: &ApiServer, tasks: &Tasks, instance: &str) -> Self {
        let (queue, notes) = mpsc::channel(QUEUE);
        let counts = Arc::new(Counters::default());
        let clock = api.clock().clone();
        let writer = Writer {
            client: api.client(),
            clock: clock.clone(),
            instance: instance.to_owned(),
            counts: counts.clone(),
        };
        tasks.spawn("events", writer.run(notes)).detach();
        Self { queue, counts, clock }
    }

    /// Posts an Event about `fact`, without waiting.
    pub fn post(&self, mut fact: Fact) {
        truncate(&mut fact.note, MAX_NOTE_BYTES);
        let note = Note { fact, at: self.clock.wall() };
        if self.queue.try_send(note).is_err() {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What became of the Events so far.
    pub fn counts(&self) -> EventCounts {
        EventCounts {
            written: self.counts.written.load(Ordering::Relaxed),
            failed: self.counts.failed.load(Ordering::Relaxed),
            dropped: self.counts.dropped.load(Ordering::Relaxed),
        }
    }
}

impl Writer {
    async fn run(self, mut notes: mpsc::Receiver<Note>) {
        while let Some(note) = notes.recv().await {
            let written = self.write(&note).await;
            let counter = if written { &self.counts.written } else { &self.counts.failed };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn write(&self, note: &Note) -> bool {
        for attempt in 1..=TRIES {
            let error = match clock::timeout(&*self.clock, TRY_DEADLINE, self.create_or_count(note)).await {
                Ok(Ok(())) => return true,
                Ok(Err(error)) => explain(&error),
                Err(elapsed) => elapsed.to_string(),
            };
            tracing::debug!(reason = note.fact.reason, attempt, error, "Event was not written");
            if attempt < TRIES {
                clock::sleep(&*self.clock, RETRY_PAUSE).await;
            }
        }
        tracing::warn!(reason = note.fact.reason, note = note.fact.note, "Event given up");
        false
    }

    async fn create_or_count(&self, note: &Note) -> Result<(), kube::Error> {
        let event = event(note, &self.instance);
        let namespace = event.metadata.namespace.as_deref().unwrap_or(CLUSTER_SCOPED);
        let name = event.metadata.name.as_deref().unwrap_or_default();
        let api = Api::<Event>::namespaced(self.client.clone(), namespace);
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let Some(first) = api.get_opt(name).await? else {
                    // It has expired in between.
                    return api.create(&PostParams::default(), &event).await.map(drop);
                };
                let count = first.series.map_or(1, |series| series.count).saturating_add(1);
                let series = EventSeries { count, last_observed_time: MicroTime(note.at) };
                let repeat = serde_json::json!({ "series": series });
                api.patch(name, &PatchParams::default(), &Patch::Merge(repeat)).await.map(drop)
            }
            Err(error) => Err(error),
        }
    }
}

/// Events about objects without a namespace live here.
const CLUSTER_SCOPED: &str = "default";

fn event(note: &Note, instance: &str) -> Event {
    let fact = &note.fact;
    let kind = match fact.weight {
        Weight::Normal => "Normal",
        Weight::Warning => "Warning",
    };
    Event {
        metadata: ObjectMeta {
            name: Some(name(fact)),
            namespace: Some(fact.regarding.namespace.clone().unwrap_or_else(|| CLUSTER_SCOPED.to_owned())),
            ..Default::default()
        },
        action: Some(fact.action.to_owned()),
        event_time: Some(MicroTime(note.at)),
        note: Some(fact.note.clone()),
        reason: Some(fact.reason.to_owned()),
        regarding: Some(fact.regarding.clone()),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(instance.to_owned()),
        type_: Some(kind.to_owned()),
        ..Default::default()
    }
}

/// The same for the same fact about the same object.
fn name(fact: &Fact) -> String {
    let object = &fact.regarding;
    let mut hash = Sha256::new();
    for part in [
        object.kind.as_deref(),
        object.namespace.as_deref(),
        object.name.as_deref(),
        object.uid.as_deref(),
        Some(fact.reason),
        Some(fact.action),
        Some(&fact.note),
    ] {
        hash.update(part.unwrap_or_default());
        hash.update([0]);
    }
    let digest = hash.finalize();
    let short = digest.iter().take(8).fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
    let mut prefix = object.name.clone().unwrap_or_else(|| "event".to_owned());
    truncate(&mut prefix, MAX_NAME_PREFIX);
    format!("{prefix}.{short:016x}")
}

fn truncate(text: &mut String, max_bytes: usize) {
    let end = text.floor_char_boundary(max_bytes);
    text.truncate(end);
}

#[cfg(test)]
mod tests {
    use kube::api::ListParams;
    use sandbox::{Fault, FaultRule, Sandbox, Verb};

    use super::*;
    use crate::clock::{RATE_ONE, SimulatedClock};

    fn fact(note: &str) -> Fact {
        Fact {
            regarding: ObjectReference {
                api_version: Some("coordination.k8s.io/v1".to_owned()),
                kind: Some("Lease".to_owned()),
                name: Some("tenure".to_owned()),
                namespace: Some("default".to_owned()),
                ..Default::default()
            },
            weight: Weight::Normal,
            reason: "BecameLeader",
            action: "Acquire",
            note: note.to_owned(),
        }
    }

    fn events(sandbox: &Sandbox, replica: &str) -> (Events, Tasks, ApiServer) {
        let clock = SimulatedClock::new(Timestamp::UNIX_EPOCH, RATE_ONE, jiff::SignedDuration::ZERO);
        let api = ApiServer::from_service(sandbox.service(replica), "default", clock);
        let tasks = Tasks::default();
        (Events::start(&api, &tasks, replica), tasks, api)
    }

    async fn written(api: &ApiServer) -> Vec<Event> {
        let all = Api::<Event>::all(api.client()).list(&ListParams::default()).await;
        all.expect("the sandbox lists events").items
    }

    #[tokio::test(start_paused = true)]
    async fn a_fact_that_is_stated_again_is_one_event_with_a_count() {
        let sandbox = Sandbox::new();
        for replica in ["replica-0", "replica-1", "replica-0"] {
            let (events, tasks, _) = events(&sandbox, replica);
            events.post(fact("replica-0 leads"));
            drop(events);
            tasks.close_and_wait().await;
        }
        let (events, tasks, api) = events(&sandbox, "replica-0");
        events.post(fact("replica-2 leads"));
        drop(events);
        tasks.close_and_wait().await;
        let mut seen: Vec<_> = written(&api)
            .await
            .into_iter()
            .map(|event| (event.note, event.series.map(|series| series.count)))
            .collect();
        seen.sort();
        let expected = vec![(Some("replica-0 leads".to_owned()), Some(3)), (Some("replica-2 leads".to_owned()), None)];
        assert_eq!(seen, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_that_is_refused_is_given_up_and_counted_and_the_next_one_is_written() {
        let sandbox = Sandbox::new();
        let rule = FaultRule::new(Fault::Refuse { code: 403, retry_after: None }).verb(Verb::Create).times(TRIES);
        sandbox.faults().add(rule);
        let (events, tasks, api) = events(&sandbox, "replica-0");
        let view = events.clone();
        events.post(fact("lost"));
        events.post(fact(&"ü".repeat(MAX_NOTE_BYTES)));
        drop(events);
        while view.counts() != (EventCounts { written: 1, failed: 1, dropped: 0 }) {
            clock::sleep(&**api.clock(), RETRY_PAUSE).await;
        }
        drop(view);
        tasks.close_and_wait().await;
        let seen = written(&api).await;
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].note.as_ref().map(String::len), Some(MAX_NOTE_BYTES));
    }

    #[tokio::test(start_paused = true)]
    async fn posting_never_waits_and_what_does_not_fit_is_counted() {
        let sandbox = Sandbox::new();
        let (events, tasks, _) = events(&sandbox, "replica-0");
        for number in 0..QUEUE + 3 {
            events.post(fact(&format!("number {number}")));
        }
        assert_eq!(events.counts().dropped, 3);
        drop(events);
        tasks.close_and_wait().await;
    }
}
