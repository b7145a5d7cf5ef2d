//! The outside watcher: every status version of every `PeriodicJob`, as it was committed.
//!
//! It reads the sandbox's stream of committed writes, in commit order and without a gap, and keeps of each status what the
//! slot rules are judged by. It knows the custom resource by its documented JSON only.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::StreamExt;
use jiff::Timestamp;
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams, WatchEvent, WatchParams},
};
use sandbox::Sandbox;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::{clock::At, objects::kind};

/// The name of the resource that is watched.
const RESOURCE: &str = "periodicjobs.tenure.dev";

/// What a status says, as far as the slot rules are judged by it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JobStatus {
    /// The term that last claimed the job.
    pub term: Option<TermRef>,
    /// Slots are counted from here on, exclusive.
    pub origin: Option<Timestamp>,
    /// Every slot up to here has its disposition.
    pub mark: Option<Timestamp>,
    /// The open runs by run id.
    pub active: BTreeMap<String, ActiveRun>,
    /// How many slots ended in each disposition, by its name.
    pub counts: BTreeMap<String, u64>,
    /// The newest slots that were not run.
    pub ranges: Vec<SlotRange>,
    /// The newest runs that ended.
    pub last_runs: Vec<RunRecord>,
}

/// A term, by its token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TermRef {
    /// Its fencing token.
    pub token: u64,
}

/// An open run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ActiveRun {
    /// When it was due.
    pub slot: Timestamp,
    /// The attempt that is stored.
    pub attempt: u32,
    /// The trigger that asked for it; such a run belongs to no slot.
    #[serde(default)]
    pub trigger: Option<String>,
}

/// Neighbouring slots with one disposition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRange {
    /// The first slot.
    pub from: Timestamp,
    /// The last slot.
    pub to: Timestamp,
    /// The disposition.
    pub reason: String,
}

/// A run that ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    /// The run id.
    pub id: String,
    /// How it ended.
    pub outcome: String,
}

/// One committed version of a job's status.
#[derive(Debug, Clone, Serialize)]
pub struct Version {
    /// When the watcher saw it.
    pub at: At,
    /// Its resource version.
    pub resource_version: u64,
    /// What it says.
    pub status: JobStatus,
}

/// Everything seen of one job.
#[derive(Debug, Clone, Default)]
pub struct JobHistory {
    /// When the object was created.
    pub created: Option<Timestamp>,
    /// Its versions in commit order.
    pub versions: Vec<Version>,
}

/// Everything the watcher has seen.
#[derive(Debug, Clone, Default)]
pub struct History {
    jobs: BTreeMap<String, JobHistory>,
    unreadable: Vec<String>,
    gaps: u64,
}

/// A running watcher. Dropping it stops it.
#[derive(Debug)]
pub struct Watcher {
    history: Arc<Mutex<History>>,
    task: JoinHandle<()>,
}

impl JobStatus {
    /// The sum of dispositions. Triggered runs belong to no slot and are left out.
    pub fn slots_decided(&self) -> u64 {
        self.counts.iter().filter(|(name, _)| *name != "triggered").map(|(_, count)| count).sum()
    }
}

impl History {
    /// Takes one version of an object.
    pub fn take(&mut self, at: At, resource_version: u64, object: &Value) {
        let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        let job = self.jobs.entry(name.to_owned()).or_default();
        let created = object.pointer("/metadata/creationTimestamp").and_then(Value::as_str);
        job.created = created.and_then(|text| text.parse().ok()).or(job.created);
        let Some(status) = object.get("status") else { return };
        match JobStatus::deserialize(status) {
            Ok(status) => job.versions.push(Version { at, resource_version, status }),
            Err(error) => self.unreadable.push(format!("{name} at version {resource_version}: {error}")),
        }
    }

    /// What was seen of a job.
    pub fn job(&self, name: &str) -> Option<&JobHistory> {
        self.jobs.get(name)
    }

    /// The newest status of a job.
    pub fn newest(&self, name: &str) -> Option<&JobStatus> {
        self.jobs.get(name)?.versions.last().map(|version| &version.status)
    }

    /// The jobs by name.
    pub fn jobs(&self) -> impl Iterator<Item = (&str, &JobHistory)> {
        self.jobs.iter().map(|(name, job)| (name.as_str(), job))
    }

    /// Status versions that do not read as the documentation says.
    pub fn unreadable(&self) -> &[String] {
        &self.unreadable
    }
}

impl Watcher {
    /// Follows every write from now on.
    pub fn follow(sandbox: &Sandbox) -> Self {
        let mut changes = sandbox.follow();
        let history = Arc::<Mutex<History>>::default();
        let task = tokio::spawn({
            let history = history.clone();
            async move {
                while let Some(change) = changes.recv().await {
                    if change.resource == RESOURCE {
                        let at = At::now();
                        lock(&history).take(at, change.rv, &change.object);
                    }
                }
            }
        });
        Self { history, task }
    }

    /// Follows every write from now on through the API server's watch. A watch that breaks goes on from the version that it
    /// had reached; [`Watcher::gaps`] counts the times when the API server no longer had what came in between.
    pub fn follow_api(client: Client, namespace: &str) -> Self {
        let history = Arc::<Mutex<History>>::default();
        let jobs: Api<DynamicObject> = Api::namespaced_with(client, namespace, &kind());
        let task = tokio::spawn(follow(jobs, history.clone()));
        Self { history, task }
    }

    /// How often versions may have been missed.
    pub fn gaps(&self) -> u64 {
        lock(&self.history).gaps
    }

    /// Everything seen so far.
    pub fn history(&self) -> History {
        lock(&self.history).clone()
    }

    /// What `look` finds in the history, without a copy of it.
    pub fn with_history<T>(&self, look: impl FnOnce(&History) -> T) -> T {
        look(&lock(&self.history))
    }
}

/// A watch is opened again before the 295 s that kube allows for one.
const WATCH_SECONDS: u32 = 290;
/// An API server that is down is not asked without a pause.
const REOPEN_PAUSE: Duration = Duration::from_millis(100);
/// The answer to a list and the head of a watch come at once, or not at all.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

async fn follow(jobs: Api<DynamicObject>, history: Arc<Mutex<History>>) {
    let params = WatchParams::default().timeout(WATCH_SECONDS);
    let mut reached: Option<String> = None;
    loop {
        let from = match reached.take() {
            Some(version) => version,
            None => match list(&jobs, &history).await {
                Some(version) => version,
                None => continue,
            },
        };
        reached = Some(from.clone());
        let opened = tokio::time::timeout(ANSWER_LIMIT, jobs.watch(&params, &from)).await;
        let Ok(Ok(events)) = opened else {
            tokio::time::sleep(REOPEN_PAUSE).await;
            continue;
        };
        let mut events = std::pin::pin!(events);
        while let Some(Ok(event)) = events.next().await {
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    reached.clone_from(&object.metadata.resource_version);
                    note(&history, &object);
                }
                WatchEvent::Deleted(object) => reached.clone_from(&object.metadata.resource_version),
                WatchEvent::Bookmark(bookmark) => reached = Some(bookmark.metadata.resource_version),
                WatchEvent::Error(status) => {
                    tracing::warn!(%status, "versions may have been missed");
                    lock(&history).gaps += 1;
                    reached = None;
                    break;
                }
            }
        }
    }
}

async fn list(jobs: &Api<DynamicObject>, history: &Mutex<History>) -> Option<String> {
    let listed = tokio::time::timeout(ANSWER_LIMIT, jobs.list(&ListParams::default())).await;
    let Ok(Ok(list)) = listed else {
        tokio::time::sleep(REOPEN_PAUSE).await;
        return None;
    };
    list.items.iter().for_each(|object| note(history, object));
    list.metadata.resource_version
}

fn note(history: &Mutex<History>, object: &DynamicObject) {
    let version = object.metadata.resource_version.as_deref().and_then(|version| version.parse().ok());
    let value = serde_json::to_value(object);
    if let (Some(version), Ok(value)) = (version, value) {
        let mut history = lock(history);
        // A list after a gap shows what is known already.
        let known =
            object.metadata.name.as_deref().and_then(|name| history.job(name)).and_then(|job| job.versions.last());
        if known.is_none_or(|known| known.resource_version < version) {
            history.take(At::now(), version, &value);
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_sum_leaves_triggered_runs_out() {
        let status = JobStatus::deserialize(json!({ "counts": { "ran": 3, "overlap": 2, "triggered": 9 } })).unwrap();
        assert_eq!(status.slots_decided(), 5);
    }

    #[test]
    fn a_status_that_cannot_be_read_is_kept_as_a_complaint_and_not_dropped() {
        let mut history = History::default();
        let object = json!({
            "metadata": { "name": "fast", "creationTimestamp": "2026-03-01T00:00:00Z" },
            "status": { "mark": "yesterday" },
        });
        history.take(At::from_millis(1), 7, &object);
        assert_eq!(history.unreadable().len(), 1);
        assert!(history.unreadable()[0].starts_with("fast at version 7: "), "{:?}", history.unreadable());
        assert!(history.job("fast").unwrap().created.is_some());
    }
}
