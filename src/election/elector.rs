//! An elector: its settings' end, its handle and its start. The loop is in [`run`].

mod run;

use std::{io, sync::Arc, time::Duration};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
    stream::FuturesUnordered,
};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use run::Loop;

use super::{
    builder::{ElectorBuilder, Fresh},
    leadership::{Leadership, Standing},
    lease_watch,
    machine::{Contention, Lost, Machine},
    observer::ElectorObserver,
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
/// Dropping it ends the term at once and releases the Lease in the background; [`Elector::release`] waits for both.
#[derive(Debug)]
#[must_use = "dropping it leaves the election"]
pub struct Elector {
    leadership: Leadership,
    report: watch::Receiver<ElectorReport>,
    contention: watch::Sender<Contention>,
    release: watch::Sender<Option<BootTime>>,
    stopping: CancellationToken,
    ended: Shared<BoxFuture<'static, Released>>,
    clock: SharedClock,
}

/// How a release went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Released {
    /// The Lease does not show this replica: another may lead at once.
    Free,
    /// The API server did not confirm it in time: others wait for the expiry.
    Unsettled,
}

/// What there is to tell about an elector.
#[derive(Debug, Clone)]
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

    /// Says whether this replica may lead. A leader that is to stand aside hands over once its work has ended.
    pub fn contend(&self, contention: Contention) {
        self.contention.send_replace(contention);
    }

    /// Leaves the election: no new ticks, waits at most `drain` for live work, ends the term, releases the Lease and settles
    /// what is open. Cancel-safe: the election is left all the same.
    pub async fn release(&self, drain: Duration) -> Released {
        let deadline = self.clock.boot() + drain;
        self.release.send_if_modified(|current| {
            let sooner = current.is_none_or(|current| deadline < current);
            if sooner {
                *current = Some(deadline);
            }
            sooner
        });
        self.stopping.cancel();
        self.ended.clone().await
    }

    /// Waits for `signal`, then leaves the election as [`Elector::release`] does, with 27 s for live work: what remains of
    /// Kubernetes' usual grace period of 30 s.
    pub async fn release_on<S: Future>(&self, signal: S) -> Released {
        signal.await;
        self.release(Duration::from_secs(27)).await
    }
}

impl Drop for Elector {
    fn drop(&mut self) {
        self.release.send_if_modified(|deadline| deadline.is_none() && deadline.replace(BootTime::default()).is_none());
        self.stopping.cancel();
    }
}

pub(super) fn start(parts: Parts, watchdog: &dyn WatchdogDriver) -> io::Result<Elector> {
    let Parts { namespace, name, timing, identity, api, clock, entropy, tasks, observer, fresh, place } = parts;
    let post = Arc::new(Post::default());
    watchdog.start(post.watchdog(clock.clone()))?;

    let stopping = CancellationToken::new();
    let (standing, standing_view) = watch::channel(Standing::Standby);
    let (contention, contention_view) = watch::channel(Contention::Contend);
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
    let looping = async move {
        let patience = timing.calm_deadline();
        let is_fresh = clock::timeout(&*asking_clock, patience, fresh(api)).await.unwrap_or(false);
        let fresh_until = is_fresh.then(|| asking_clock.boot() + patience);
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
            observer,
            office: None,
            last_office: None,
            drain_awaited: false,
            post,
            place,
            longer_lease_told: false,
            watch_anew,
            standing,
            report,
            requests: FuturesUnordered::new(),
        };
        run.run(watched, contention_view, release_view, done).await;
    };
    tasks.spawn("elector", looping).detach();
    Ok(Elector {
        leadership: Leadership::new(standing_view, stopping.clone()),
        report: report_view,
        contention,
        release,
        stopping,
        ended: ended.map(|outcome| outcome.unwrap_or(Released::Unsettled)).boxed().shared(),
        clock,
    })
}
