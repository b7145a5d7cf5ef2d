//! The watch of the jobs, which goes on for ever: an error is told once and followed by a pause that grows.

use std::time::Duration;

use futures::{StreamExt, stream::BoxStream};
use kube::{
    Api,
    core::DeserializeGuard,
    runtime::watcher::{self, watcher},
};

use super::scheduler::Scope;
use crate::{
    api::PeriodicJob,
    apiserver::ApiServer,
    backoff::Backoff,
    clock::{BootTime, SharedClock},
    entropy::SharedEntropy,
    explain::{explain, explain_answer},
};

/// A job, or why it cannot be read: one bad object stops no other.
pub type Guarded = DeserializeGuard<PeriodicJob>;

/// The events of the watch.
pub struct Feed {
    events: BoxStream<'static, Result<watcher::Event<Guarded>, watcher::Error>>,
    clock: SharedClock,
    entropy: SharedEntropy,
    failures: u32,
    pause_until: Option<BootTime>,
}

/// The pause after a failed watch or list.
const PAUSE: Backoff = Backoff { initial: Duration::from_millis(100), max: Duration::from_secs(15) };

impl Feed {
    /// Watches the jobs in `scope`.
    pub fn new(api: &ApiServer, scope: &Scope, clock: SharedClock, entropy: SharedEntropy) -> Self {
        let jobs: Api<Guarded> = match scope {
            Scope::All => Api::all(api.client()),
            Scope::Namespace(namespace) => Api::namespaced(api.client(), namespace),
        };
        let events = watcher(jobs, watcher::Config::default()).boxed();
        Self { events, clock, entropy, failures: 0, pause_until: None }
    }

    /// The next event. Cancel-safe.
    pub async fn next(&mut self) -> watcher::Event<Guarded> {
        loop {
            if let Some(until) = self.pause_until {
                self.clock.sleep_until(until).await;
                self.pause_until = None;
            }
            match self.events.next().await {
                Some(Ok(event)) => {
                    // `Init` only says that a list is about to be asked for.
                    if self.failures > 0 && !matches!(event, watcher::Event::Init) {
                        tracing::info!("Jobs can be watched again");
                        self.failures = 0;
                    }
                    return event;
                }
                Some(Err(error)) => {
                    if self.failures == 0 {
                        tracing::warn!(error = %told(&error), "Jobs cannot be watched");
                    }
                    self.failures = self.failures.saturating_add(1);
                    let wait = PAUSE.wait(self.failures, &*self.entropy);
                    self.pause_until = Some(self.clock.boot() + wait);
                }
                // kube's watcher never ends.
                None => std::future::pending().await,
            }
        }
    }
}

fn told(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == 404 => {
            format!("{}; apply the definition that `tenure crds` prints", status.message)
        }
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => explain_answer(error),
        error => explain(error),
    }
}

impl std::fmt::Debug for Feed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Feed").field("failures", &self.failures).finish_non_exhaustive()
    }
}
