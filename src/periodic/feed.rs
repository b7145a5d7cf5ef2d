//! The watch of the jobs, which goes on for ever: an error is told once and followed by a pause that grows.

use std::time::Duration;

use futures::{StreamExt, stream::BoxStream};
use kube::{
    Api,
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
    item::Item,
};

/// The events of the watch.
pub struct Feed {
    events: BoxStream<'static, Result<watcher::Event<Item<PeriodicJob>>, watcher::Error>>,
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
        let jobs: Api<Item<PeriodicJob>> = match scope {
            Scope::All => Api::all(api.client()),
            Scope::Namespace(namespace) => Api::namespaced(api.client(), namespace),
        };
        let events = watcher(jobs, watcher::Config::default()).boxed();
        Self { events, clock, entropy, failures: 0, pause_until: None }
    }

    /// The next event. Cancel-safe.
    pub async fn next(&mut self) -> watcher::Event<Item<PeriodicJob>> {
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

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
    };

    use http::{Request, Response};
    use http_body_util::Full;
    use jiff::{SignedDuration, Timestamp};
    use kube::client::Body;

    use super::*;
    use crate::{
        clock::{self, RATE_ONE, SimulatedClock},
        entropy::SeededEntropy,
    };

    #[tokio::test(start_paused = true)]
    async fn an_api_server_in_trouble_is_asked_less_and_less_often() {
        let asked = Arc::new(AtomicU32::new(0));
        let counter = asked.clone();
        let service = tower::service_fn(move |_: Request<Body>| {
            counter.fetch_add(1, Ordering::SeqCst);
            let mut answer = Response::new(Full::<bytes::Bytes>::default());
            *answer.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
            std::future::ready(Ok::<_, Infallible>(answer))
        });
        let clock: SharedClock = SimulatedClock::new(Timestamp::UNIX_EPOCH, RATE_ONE, SignedDuration::ZERO);
        let api = ApiServer::from_service(service, "default", clock.clone());
        let mut feed = Feed::new(&api, &Scope::All, clock.clone(), SeededEntropy::shared(1));
        let asking = async {
            loop {
                feed.next().await;
            }
        };
        let hour: Result<(), _> = clock::timeout(&*clock, Duration::from_hours(1), asking).await;
        assert!(hour.is_err());
        let asked = asked.load(Ordering::SeqCst);
        // The pause is 7.5 s on average once it has grown, which is 480 an hour.
        assert!((100..800).contains(&asked), "asked {asked} times in an hour");
    }
}
