//! One replica: its parts, started in order and stopped in reverse.
//!
//! Order of the start: what can be wrong with the settings and the machine first (the admin address, the cluster's
//! configuration, the election's times), then what talks to others. An API server that does not answer is no reason to
//! end: the replica waits, says so once, and is not ready.
//!
//! Order of the stop: readiness fails, no new run starts, what runs may end within the drain time and is recorded, the
//! Lease is released, the notes are written, the admin port closes.

pub mod aside;
pub mod fresh;

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use kube::{
    Config,
    config::{InferConfigError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    action::{Egress, HttpRunner, JobRunner, KubeSecrets, ResolveOverride, Runners},
    apiserver::{ApiServer, ConnectError},
    clock::{self, SharedClock, SystemClock},
    dial::{SharedDial, TcpDial},
    election::{ConfigError, Elector, Leadership, Place, PlaceError, Released, ThreadWatchdog, WatchdogDriver},
    entropy::{SharedEntropy, SystemEntropy},
    observe::{
        Reporter,
        events::Events,
        metrics::{Metrics, MetricsError},
        probe,
        views::Views,
    },
    periodic::{LeaseName, Scheduler, SchedulerHandle, SchedulerParts, SchedulerSettings, Scope},
    server::{self, Admin, AdminError},
    settings::{ClusterSettings, GRACE_RESERVE, JobSettings, ProcessSettings, Settings},
    tasks::Tasks,
};

/// What a replica stands on. Tests bring their own.
#[derive(Debug)]
pub struct Ground {
    /// Time.
    pub clock: SharedClock,
    /// Randomness.
    pub entropy: SharedEntropy,
    /// How the targets of jobs are reached.
    pub dial: SharedDial,
    /// Who looks at the clock when nothing else does.
    pub watchdog: Arc<dyn WatchdogDriver>,
    /// The API server, for the elector alone: the load of other work must not delay a renewal.
    pub election_api: ApiServer,
    /// The API server, for everything else.
    pub api: ApiServer,
    /// Where the admin port listens.
    pub admin: TcpListener,
    /// The owner of the replica's tasks.
    pub tasks: Tasks,
}

/// A running replica.
#[derive(Debug)]
#[must_use = "dropping it leaves the election without waiting for anything"]
pub struct Replica {
    elector: Arc<Elector>,
    scheduler: SchedulerHandle,
    admin: Admin,
    stopping: CancellationToken,
    clock: SharedClock,
    tasks: Tasks,
    drain: Duration,
}

/// A replica cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The admin port cannot be had.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The kubeconfig that was named cannot be used.
    #[error("--kubeconfig {}: {source}", path.display())]
    Kubeconfig {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: KubeconfigError,
    },
    /// No configuration was named, and none can be found.
    #[error(
        "no cluster to work in: {0}; name one with --kubeconfig or the KUBECONFIG variable, or run in a pod with a \
         service account"
    )]
    NoCluster(#[source] Box<InferConfigError>),
    /// The configuration of the cluster cannot be used.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The election cannot be started.
    #[error(transparent)]
    Election(#[from] ConfigError),
    /// The lock directory cannot be used.
    #[error("--lock-directory: {0}")]
    Place(#[from] PlaceError),
    /// An installation is to take over from itself.
    #[error("--adopt-from {0}: this is the Lease of this very installation; name that of the one it takes over from")]
    AdoptsItself(String),
    /// The metrics cannot be set up.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The probe has no socket.
    #[error("the probe cannot be started: {0}")]
    Probe(#[source] io::Error),
}

/// After the release, notes and answers that are under way get this long, but no longer than [`STOP_MAX`] allows.
const SETTLE: Duration = Duration::from_secs(1);

/// What comes after the drain takes this long at most: less than what is kept of the grace period for it.
const STOP_MAX: Duration = Duration::from_millis(2_500);
const _: () = assert!(STOP_MAX.as_millis() < GRACE_RESERVE.as_millis());

impl Ground {
    /// This machine, and the cluster that `settings` name.
    ///
    /// # Errors
    /// [`StartError`] if the admin address or the cluster's configuration cannot be used.
    pub async fn of_this_machine(settings: &Settings) -> Result<Self, StartError> {
        let admin = server::listen(settings.process.admin_address).await?;
        let config = cluster(&settings.cluster).await?;
        let clock = SystemClock::shared();
        Ok(Self {
            election_api: ApiServer::from_config(config.clone(), clock.clone())?,
            api: ApiServer::from_config(config, clock.clone())?,
            clock,
            entropy: SystemEntropy::shared(),
            dial: Arc::new(TcpDial),
            watchdog: Arc::new(ThreadWatchdog),
            admin,
            tasks: Tasks::default(),
        })
    }
}

async fn cluster(settings: &ClusterSettings) -> Result<Config, StartError> {
    let mut config = match &settings.kubeconfig {
        None => Config::infer().await.map_err(|source| StartError::NoCluster(Box::new(source)))?,
        Some(path) => {
            let failed = |source| StartError::Kubeconfig { path: path.clone(), source };
            let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(failed)?
        }
    };
    if let Some(namespace) = &settings.namespace {
        config.default_namespace.clone_from(namespace);
    }
    Ok(config)
}

/// The place that this process has to itself, if it was told of one. A second process in it is a replica like any other.
fn place(settings: &ProcessSettings) -> Result<Option<Place>, PlaceError> {
    let Some((uid, directory)) = settings.pod_uid.as_ref().zip(settings.lock_directory.as_ref()) else {
        return Ok(None);
    };
    match Place::take(uid, directory) {
        Ok(place) => Ok(Some(place)),
        Err(taken @ PlaceError::Taken(_)) => {
            tracing::warn!("{taken}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn http_runner(settings: &JobSettings, api: &ApiServer, dial: SharedDial) -> HttpRunner {
    let secrets = Arc::new(KubeSecrets::new(api.client()));
    let dial = Arc::new(ResolveOverride::new(settings.resolve.clone(), dial));
    HttpRunner::new(dial, Egress::new(settings.egress_allow.clone()), secrets, api.clock().clone())
}

/// The one place from which the elector is told whether this replica takes part. When it is to stand aside, what goes on may
/// end within `drain`: others must not wait for longer.
fn stand_aside(
    around: aside::Surroundings,
    elector: Arc<Elector>,
    reporter: Arc<Reporter>,
    drain: Duration,
) -> impl Future<Output = ()> + Send + 'static {
    let take_part = move |verdict| match verdict {
        aside::Verdict::StandAside => elector.stand_aside(drain),
        aside::Verdict::Contend | aside::Verdict::ContendAnyway => elector.contend(),
    };
    aside::stand_aside(around, take_part, move |by| reporter.clock_overruled(by))
}

impl Replica {
    /// Starts a replica with these settings on this ground.
    ///
    /// # Errors
    /// [`StartError`] if the settings contradict each other. An API server that does not answer is none.
    pub async fn start(settings: &Settings, ground: Ground) -> Result<Self, StartError> {
        let Ground { clock, entropy, dial, watchdog, election_api, api, admin, tasks } = ground;
        let identity = settings.cluster.replica_name();
        let name = &settings.election.resource_name;
        let namespace = settings.election.resource_namespace.as_deref().unwrap_or_else(|| api.namespace());
        let lease = LeaseName::new(namespace, name);
        if settings.election.adopt_from.contains(&lease) {
            return Err(StartError::AdoptsItself(lease.to_string()));
        }
        let stopping = CancellationToken::new();
        let election_date = election_api.date();

        let metrics = Metrics::new(name)?;
        let events = Events::start(&api, &tasks, &identity);
        let reporter = Arc::new(Reporter::new(metrics.clone(), events.clone(), &identity, namespace, name));
        let mut builder = Elector::builder(name)
            .namespace(namespace)
            .identity(&identity)
            .lease_duration(settings.election.lease_duration)
            .retry_period(settings.election.retry_period)
            .stop_margin(settings.election.stop_margin)
            .foreign_grace(settings.election.foreign_grace)
            .clock(clock.clone())
            .entropy(entropy.clone())
            .tasks(tasks.clone())
            .watchdog(watchdog)
            .observer(reporter.clone())
            .fresh_installation({
                let scope = settings.cluster.watch_namespace.clone();
                move |api| fresh::never_led(api, scope)
            });
        if let Some(place) = place(&settings.process)? {
            builder = builder.place(place);
        }
        if let Some(deadline) = settings.election.renew_deadline {
            builder = builder.renew_deadline(deadline);
        }
        let elector = Arc::new(builder.start_with(election_api)?);
        let namespace_in_scope = settings.cluster.watch_namespace.clone();
        let action = Runners {
            http: Arc::new(http_runner(&settings.jobs, &api, dial)),
            jobs: Arc::new(JobRunner::new(
                api.clone(),
                namespace_in_scope.clone(),
                clock.clone(),
                entropy.clone(),
                tasks.clone(),
                stopping.clone(),
            )),
        };
        let scheduler = Scheduler::start(SchedulerParts {
            api: api.clone(),
            dates: vec![election_date.clone()],
            leadership: elector.leadership(),
            action: Arc::new(action),
            clock: clock.clone(),
            entropy,
            tasks: tasks.clone(),
            observer: reporter.clone(),
            controller: lease.to_string(),
            class: settings.cluster.class.clone(),
            adopt_from: settings.election.adopt_from.clone(),
            adopt_patience: settings.election.lease_duration,
            scope: namespace_in_scope.map_or(Scope::All, Scope::Namespace),
            settings: SchedulerSettings {
                catch_up_rate: settings.jobs.catch_up_rate,
                max_clock_skew: settings.jobs.max_clock_skew,
            },
        });
        let around = aside::Surroundings {
            scheduler: scheduler.clone(),
            leadership: elector.leadership(),
            api: api.clone(),
            lease,
            lease_duration: settings.election.lease_duration,
            clock: clock.clone(),
            stopping: stopping.clone(),
        };
        let drain = settings.process.drain_budget();
        tasks.spawn("stand aside", stand_aside(around, elector.clone(), reporter, drain)).detach();
        let views = Views {
            identity: identity.clone(),
            lease_name: name.clone(),
            clock: clock.clone(),
            started: clock.boot(),
            leadership: elector.leadership(),
            election: elector.report(),
            election_date,
            metrics,
            events,
            scheduler: scheduler.state(),
            stopping: stopping.clone(),
        };
        let admin = Admin::start(admin, views.for_admin(), clock.clone(), &tasks)?;
        tracing::info!(replica = identity, address = %admin.address(), "Admin server listens");
        if let Some(address) = settings.process.probe {
            let leadership = elector.leadership();
            probe::start(address, identity, leadership, clock.clone(), &tasks).await.map_err(StartError::Probe)?;
        }
        Ok(Self { elector, scheduler, admin, stopping, clock, tasks, drain })
    }

    /// A view of this replica's standing.
    pub fn leadership(&self) -> Leadership {
        self.elector.leadership()
    }

    /// Where the admin port listens.
    pub fn admin_address(&self) -> std::net::SocketAddr {
        self.admin.address()
    }

    /// Stops in an orderly way: see the module's documentation. Takes at most the drain time and a few seconds.
    pub async fn stop(self) -> Released {
        let Self { elector, scheduler, admin, stopping, clock, tasks, drain } = self;
        stopping.cancel();
        tracing::info!(drain_seconds = drain.as_secs_f64(), "Stopping");
        let deadline = clock.boot() + drain;
        scheduler.drained(deadline).await;
        let released = elector.release(deadline - clock.boot()).await;
        drop(elector);
        admin.stop().await;
        let settle = SETTLE.min((deadline + STOP_MAX).saturating_since(clock.boot()));
        if clock::timeout(&*clock, settle, tasks.close_and_wait()).await.is_err() {
            tracing::warn!(tasks = tasks.len(), "Tasks were left behind");
        }
        match released {
            Released::Free => tracing::info!("Stopped"),
            Released::Unsettled => tracing::warn!("Stopped, but the API server has not confirmed the release"),
        }
        released
    }
}
