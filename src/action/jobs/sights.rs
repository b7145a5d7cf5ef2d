//! One watch of the Jobs that were made here, for everyone who waits for the end of one.
//!
//! It is opened when the first one waits and closed when nobody has waited for a while: a replica that runs no Jobs needs
//! no permission to see them. It ends when the replica stops, too. What is seen of a Job is kept only for those who wait. A
//! list that a Job is not in is told as [`Sight::Absent`]; whoever waits asks past the cache then.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::StreamExt;
use kube::{
    Api, Resource, ResourceExt,
    api::{ApiResource, DynamicObject},
    runtime::watcher::{self, watcher},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::template::RUN_ID_LABEL;
use crate::{
    action::JobRef,
    apiserver::ApiServer,
    backoff::Backoff,
    clock::{self, BootTime, SharedClock},
    entropy::SharedEntropy,
    explain::{explain, explain_answer},
    item::Item,
    tasks::Tasks,
};

/// What was last seen of a Job.
#[derive(Debug, Clone)]
pub(super) enum Sight {
    /// Nothing since somebody waits for it.
    Nothing,
    /// It is there.
    There(Arc<DynamicObject>),
    /// It was deleted; this is how it was last.
    Gone(Arc<DynamicObject>),
    /// It was not in a list, or cannot be read.
    Absent,
}

/// The watch, and who waits.
#[derive(Clone)]
pub(super) struct Sights(Arc<Shared>);

struct Shared {
    api: ApiServer,
    namespace: Option<String>,
    clock: SharedClock,
    entropy: SharedEntropy,
    tasks: Tasks,
    stopping: CancellationToken,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    by_job: BTreeMap<JobRef, watch::Sender<Sight>>,
    watched: bool,
    /// Since when nobody waits.
    idle_since: BootTime,
}

/// Somebody waits; dropping it says that nobody does.
pub(super) struct Lookout {
    job: JobRef,
    view: watch::Receiver<Sight>,
    shared: Arc<Shared>,
}

/// The watch stays open this long after the last one who waited: most jobs run again soon.
const LINGER: Duration = Duration::from_mins(5);

/// The pause after a failed watch or list.
const PAUSE: Backoff = Backoff { initial: Duration::from_millis(100), max: Duration::from_secs(15) };

impl Sights {
    pub(super) fn new(
        api: ApiServer,
        namespace: Option<String>,
        clock: SharedClock,
        entropy: SharedEntropy,
        tasks: Tasks,
        stopping: CancellationToken,
    ) -> Self {
        Self(Arc::new(Shared { api, namespace, clock, entropy, tasks, stopping, waiting: Mutex::default() }))
    }

    /// Waits for news of the Job `job` from now on.
    pub(super) fn look_out(&self, job: JobRef) -> Lookout {
        let mut waiting = self.0.lock();
        let sender = waiting.by_job.entry(job.clone()).or_insert_with(|| watch::channel(Sight::Nothing).0);
        let view = sender.subscribe();
        if !std::mem::replace(&mut waiting.watched, true) {
            let shared = self.0.clone();
            let stopping = self.0.stopping.clone();
            let watch = async move {
                stopping.run_until_cancelled(shared.follow()).await;
            };
            self.0.tasks.spawn("watch of Jobs", watch).detach();
        }
        drop(waiting);
        Lookout { job, view, shared: self.0.clone() }
    }
}

impl Lookout {
    /// What is seen next. Cancel-safe.
    pub(super) async fn next(&mut self) -> Sight {
        // The sender is kept for as long as this one waits.
        if self.view.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.view.borrow_and_update().clone()
    }
}

impl Drop for Lookout {
    fn drop(&mut self) {
        let mut waiting = self.shared.lock();
        if waiting.by_job.get(&self.job).is_some_and(|sender| sender.receiver_count() <= 1) {
            waiting.by_job.remove(&self.job);
            waiting.idle_since = self.shared.clock.boot();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // A panic cannot leave it half changed: each change is one call.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn follow(self: Arc<Self>) {
        let kind = ApiResource::erase::<k8s_openapi::api::batch::v1::Job>(&());
        let jobs: Api<Item<DynamicObject>> = match &self.namespace {
            None => Api::all_with(self.api.client(), &kind),
            Some(namespace) => Api::namespaced_with(self.api.client(), namespace, &kind),
        };
        let mut events = watcher(jobs, watcher::Config::default().labels(RUN_ID_LABEL)).boxed();
        let (mut failures, mut listed) = (0_u32, BTreeSet::new());
        let _unwatched = Unwatched(&self);
        while !self.closes() {
            match clock::timeout(&*self.clock, LINGER, events.next()).await {
                Ok(Some(Ok(event))) => {
                    if !matches!(event, watcher::Event::Init) {
                        failures = 0;
                    }
                    self.tell(event, &mut listed);
                }
                Ok(Some(Err(error))) => {
                    if failures == 0 {
                        tracing::warn!(error = %told(&error), "Kubernetes Jobs cannot be watched");
                    }
                    failures = failures.saturating_add(1);
                    clock::sleep(&*self.clock, PAUSE.wait(failures, &*self.entropy)).await;
                }
                // Nothing to tell.
                Ok(None) | Err(_) => {}
            }
        }
    }

    /// Closes the watch if nobody has waited for a while. Who leads now has Jobs of its own, so events alone say nothing.
    fn closes(&self) -> bool {
        let mut waiting = self.lock();
        let closes = waiting.by_job.is_empty() && self.clock.boot() >= waiting.idle_since + LINGER;
        waiting.watched &= !closes;
        closes
    }

    fn tell(&self, event: watcher::Event<Item<DynamicObject>>, listed: &mut BTreeSet<JobRef>) {
        match event {
            watcher::Event::Init => listed.clear(),
            watcher::Event::InitApply(job) => {
                listed.extend(self.tell_one(job, Sight::There));
            }
            watcher::Event::InitDone => {
                let waiting = self.lock();
                for (_, sender) in waiting.by_job.iter().filter(|(job, _)| !listed.contains(*job)) {
                    sender.send_replace(Sight::Absent);
                }
            }
            watcher::Event::Apply(job) => drop(self.tell_one(job, Sight::There)),
            watcher::Event::Delete(job) => drop(self.tell_one(job, Sight::Gone)),
        }
    }

    fn tell_one(&self, job: Item<DynamicObject>, sight: impl Fn(Arc<DynamicObject>) -> Sight) -> Option<JobRef> {
        let key = JobRef { namespace: job.namespace()?, name: job.meta().name.clone()? };
        if let Some(sender) = self.lock().by_job.get(&key) {
            // Of one that cannot be read nothing is seen.
            sender.send_replace(job.0.map_or(Sight::Absent, |job| sight(Arc::new(job))));
        }
        Some(key)
    }
}

/// A watch that ends by a panic is opened again by the next one who waits.
struct Unwatched<'a>(&'a Shared);

impl Drop for Unwatched<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().watched = false;
        }
    }
}

fn told(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => explain_answer(error),
        error => explain(error),
    }
}

impl std::fmt::Debug for Sights {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Sights").field("waiting", &self.0.lock().by_job.len()).finish_non_exhaustive()
    }
}
