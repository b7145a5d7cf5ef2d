//! An elector: its settings' end, its handle and its start. The loop is in [`run`].

mod run;

use std::{io, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
    stream::FuturesUnordered,
};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

pub(super) use run::TURN_MAX;
use run::{Loop, Orders};

use super::{
    admission::{Admission, Aside},
    builder::{ElectorBuilder, Fresh},
    health::Health,
    leadership::{Herald, Leadership, Standing},
    lease_watch,
    machine::{Lost, Machine},
    metadata::LeaseMetadata,
    observer::{ElectorObserver, Told},
    place::Place,
    record::Identity,
    timing::Timing,
    watchdog::{Post, WatchdogDriver},
};
use crate::{
    apiserver::ApiServer,
    clock::{self, BootTime, SharedClock},
    entropy::SharedEntropy,
    tasks::Tasks,
};

/// Takes part in the election for one Lease until it is released or dropped. Several fit in one process.
///
/// Dropping it ends the term at once and releases the Lease in the background, and says so in the log;
/// [`Elector::release`] waits for both. So keep it: a [`Leadership`] does not keep its elector.
///
/// ```no_run
/// # async fn example(config: tenure::kube::Config) -> Result<(), tenure::election::ConfigError> {
/// // Wrong, and told in the log: the elector is dropped at the semicolon, and this process never leads.
/// let leadership = tenure::Elector::builder("report").start(config.clone())?.leadership();
///
/// // Right: the elector lives as long as this process takes part.
/// let elector = tenure::Elector::builder("report").start(config)?;
/// let leadership = elector.leadership();
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "dropping it leaves the election"]
pub struct Elector {
    leadership: Leadership,
    report: watch::Receiver<ElectorReport>,
    aside: watch::Sender<Aside>,
    release: watch::Sender<Option<BootTime>>,
    stopping: CancellationToken,
    ended: Shared<BoxFuture<'static, Released>>,
    clock: SharedClock,
}

/// How a release went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Released {
    /// The Lease does not show this replica: another may lead at once.
    Free,
    /// The API server did not confirm it in time: others wait for the expiry.
    Unsettled,
}

/// What there is to tell about an elector.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ElectorReport {
    /// The Lease, as `namespace/name`.
    pub lease: String,
    /// The holder that the Lease showed last.
    pub holder: Option<String>,
    /// Until when the term in office is valid, if this replica leads.
    pub valid_until: Option<BootTime>,
    /// Since when this replica is leader or standby.
    pub since: BootTime,
    /// Why the last term of this replica ended.
    pub last_lost: Option<Lost>,
    /// Whether the API server has answered about the Lease at least once without an error.
    pub served: bool,
    /// Since when the API server has answered nothing but that it does not know who asks (401), if it does so now. Credentials
    /// are loaded anew meanwhile.
    pub unauthorized_since: Option<BootTime>,
    /// What the API server's last answer was, if it was an error, or why there was none.
    pub last_error: Option<String>,
    /// When the elector's loop last took a turn: it is stuck if that is long ago.
    pub last_turn: BootTime,
}

/// How long [`Elector::release_on`] gives live work: what remains of Kubernetes' usual grace period of 30 s.
pub const RELEASE_DRAIN: Duration = Duration::from_secs(27);

pub(super) struct Parts {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) timing: Timing,
    pub(super) identity: Identity,
    pub(super) api: ApiServer,
    pub(super) clock: SharedClock,
    pub(super) entropy: SharedEntropy,
    pub(super) tasks: Tasks,
    pub(super) observer: Arc<dyn ElectorObserver>,
    pub(super) fresh: Fresh,
    pub(super) place: Option<Place>,
    pub(super) metadata: LeaseMetadata,
}

impl Elector {
    /// Settings for the election on the Lease `name`.
    pub fn builder(name: &str) -> ElectorBuilder {
        ElectorBuilder::new(name)
    }

    /// A view of this replica's standing, for everything that may act only while leading.
    pub fn leadership(&self) -> Leadership {
        self.leadership.clone()
    }

    /// What there is to tell about the election.
    pub fn report(&self) -> watch::Receiver<ElectorReport> {
        self.report.clone()
    }

    /// Whether the elector does its work, for a liveness probe.
    ///
    /// ```no_run
    /// # fn example(elector: &tenure::Elector) -> Result<(), tenure::election::Unhealthy> {
    /// let health = elector.health(); // Clone; hand it to whatever answers /livez
    /// health.check(std::time::Duration::from_secs(5))
    /// # }
    /// ```
    pub fn health(&self) -> Health {
        Health { report: self.report.clone(), leadership: self.leadership.clone(), clock: self.clock.clone() }
    }

    /// Lets others lead: this replica takes no new work and does not acquire, until [`Elector::contend`] is called. If it
    /// leads, it hands over once live work has ended, and after `drain` whether it has ended or not. While this replica
    /// stands aside already, the sooner of both ends counts.
    pub fn stand_aside(&self, drain: Duration) {
        let deadline = self.clock.boot() + drain;
        self.aside.send_if_modified(|current| sooner(current, deadline));
    }

    /// Takes part again, after [`Elector::stand_aside`]. A term that has not been handed over yet goes on.
    pub fn contend(&self) {
        self.aside.send_if_modified(|current| current.take().is_some());
    }

    /// Leaves the election: no new work, waits at most `drain` for live work, ends the term, releases the Lease and settles
    /// what is open. Cancel-safe: the election is left all the same.
    pub async fn release(&self, drain: Duration) -> Released {
        let deadline = self.clock.boot() + drain;
        self.release.send_if_modified(|current| sooner(current, deadline));
        self.stopping.cancel();
        self.ended.clone().await
    }

    /// Waits for `signal`, then leaves the election as [`Elector::release`] does, with [`RELEASE_DRAIN`] for live work. It
    /// takes as long as that only if work ignores that it is asked to end: [`Leadership::while_leading`] cuts its work off,
    /// and [`Leadership::while_leading_gracefully`] and [`super::Term::handing_over`] ask it.
    pub async fn release_on<S: Future>(&self, signal: S) -> Released {
        signal.await;
        self.release(RELEASE_DRAIN).await
    }
}

/// Sets the deadline if it is sooner than the one there is.
fn sooner(current: &mut Option<BootTime>, deadline: BootTime) -> bool {
    let is_sooner = current.is_none_or(|current| deadline < current);
    if is_sooner {
        *current = Some(deadline);
    }
    is_sooner
}

impl Drop for Elector {
    fn drop(&mut self) {
        let unasked = self
            .release
            .send_if_modified(|deadline| deadline.is_none() && deadline.replace(BootTime::default()).is_none());
        if unasked {
            let lease = self.report.borrow().lease.clone();
            tracing::warn!(
                lease,
                "An elector was dropped without a release: this replica leaves the election, and what it does for its term is \
                 cut off. Keep the Elector for as long as this process is to take part (its Leadership does not), then call \
                 Elector::release"
            );
        }
        self.stopping.cancel();
    }
}

pub(super) fn start(parts: Parts, watchdog: &dyn WatchdogDriver) -> io::Result<Elector> {
    let Parts { namespace, name, timing, identity, api, clock, entropy, tasks, observer, fresh, place, metadata } =
        parts;
    let post = Arc::new(Post::default());
    watchdog.start(post.watchdog(clock.clone()))?;

    let stopping = CancellationToken::new();
    let (standing, standing_view) = watch::channel(Standing::Standby);
    let (aside, aside_view) = watch::channel(None);
    let admission = Admission::new(aside_view.clone(), stopping.clone());
    let (release, release_view) = watch::channel(None);
    let (report, report_view) = watch::channel(ElectorReport {
        lease: format!("{namespace}/{name}"),
        holder: None,
        valid_until: None,
        since: clock.boot(),
        last_lost: None,
        served: false,
        unauthorized_since: None,
        last_error: None,
        last_turn: clock.boot(),
    });
    let (done, ended) = oneshot::channel();
    let (events, watched) = mpsc::channel(lease_watch::EVENTS_MAX);
    let leases: Api<Lease> = Api::namespaced(api.client(), &namespace);
    let watch_anew = Arc::new(Notify::new());
    let watched_lease = lease_watch::Watched { api: api.clone(), namespace: namespace.clone(), name: name.clone() };
    let watching = lease_watch::watch(watched_lease, clock.clone(), watch_anew.clone(), events);
    tasks.spawn("lease-watch", watching).detach();

    let nonces = Box::new(move || entropy.nonce());
    let (asking_clock, way) = (clock.clone(), api.clone());
    let herald = Herald::new(standing);
    let leadership = Leadership::new(standing_view, admission.clone());
    let looping = async move {
        let patience = timing.calm_deadline();
        // It is the user's code: the election does not end by it.
        let asking = AssertUnwindSafe(async move { fresh(api).await }).catch_unwind();
        let is_fresh = match clock::timeout(&*asking_clock, patience, asking).await {
            Ok(answer) => answer.unwrap_or_else(|_| {
                tracing::error!("Whether this installation is fresh cannot be asked: the question panicked");
                false
            }),
            Err(_) => false,
        };
        let fresh_until = is_fresh.then(|| asking_clock.boot() + patience);
        let told = Told::new(observer, identity.clone());
        let machine = Machine::new((&namespace, &name), timing, identity, nonces, fresh_until);
        let lease = format!("{namespace}/{name}");
        let run = Loop {
            machine,
            lease,
            way,
            unanswered: 0,
            leases,
            name,
            timing,
            clock: asking_clock,
            observer: told,
            metadata,
            admission,
            office: None,
            last_office: None,
            drain_awaited: false,
            post,
            place,
            longer_lease_told: false,
            watch_anew,
            standing: herald,
            report,
            requests: FuturesUnordered::new(),
        };
        run.run(watched, Orders { aside: aside_view, release: release_view }, done).await;
    };
    tasks.spawn("elector", looping).detach();
    Ok(Elector {
        leadership,
        report: report_view,
        aside,
        release,
        stopping,
        ended: ended.map(|outcome| outcome.unwrap_or(Released::Unsettled)).boxed().shared(),
        clock,
    })
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future};

    use kube::client::Body;

    use super::*;
    use crate::{clock::SystemClock, heard::Log};

    fn elector() -> Elector {
        let unreachable =
            tower::service_fn(|_: http::Request<Body>| future::pending::<Result<http::Response<Body>, Infallible>>());
        let api = ApiServer::from_service(unreachable, "default", SystemClock::shared());
        Elector::builder("report").start_with(api).expect("the settings are sound")
    }

    #[tokio::test]
    async fn an_elector_that_is_dropped_unreleased_is_told_with_its_lease() {
        let log = Log::start();
        let leadership = elector().leadership();
        assert!(leadership.is_stopping());
        let text = log.text();
        assert!(
            text.contains("WARN") && text.contains("default/report") && text.contains("Elector::release"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn an_elector_that_is_released_and_dropped_is_not_told() {
        let log = Log::start();
        let elector = elector();
        assert_eq!(elector.release(Duration::ZERO).now_or_never(), None);
        drop(elector);
        assert!(!log.text().contains("was dropped without a release"), "{}", log.text());
    }
}
