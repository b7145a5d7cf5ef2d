//! One replica: its parts, started in order and stopped in reverse.
//!
//! Order of the start: what can be wrong with the settings and the machine first (the admin address, the cluster's
//! configuration, the election's times), then what talks to others. An API server that does not answer is no reason to
//! end: the replica waits, says so once, and is not ready.
//!
//! Order of the stop: readiness fails, no new run starts, what runs may end within the drain time and is recorded, the
//! Lease is released, the notes are written, the admin port closes.

use std::{io, path::PathBuf, sync::Arc, sync::atomic::AtomicBool, time::Duration};

use kube::{
    Api, Config,
    api::ListParams,
    config::{InferConfigError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    api::PeriodicJob,
    apiserver::{ApiServer, ConnectError},
    clock::{self, SharedClock, SystemClock},
    dial::{SharedDial, TcpDial},
    election::{ConfigError, Elector, Leadership, Released, ThreadWatchdog, WatchdogDriver},
    entropy::{SharedEntropy, SystemEntropy},
    observe::{
        Reporter,
        events::Events,
        metrics::{Metrics, MetricsError},
        probe,
        views::Views,
    },
    server::{self, Admin, AdminError},
    settings::{ClusterSettings, Settings},
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
    elector: Elector,
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
    /// The metrics cannot be set up.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The probe has no socket.
    #[error("the probe cannot be started: {0}")]
    Probe(#[source] io::Error),
}

/// After the release, notes and answers that are under way get this long.
const SETTLE: Duration = Duration::from_secs(1);

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

/// Whether no job in scope has ever been claimed by a term: then nobody can still hold a Lease that is not there.
async fn never_led(api: ApiServer, scope: Option<String>) -> bool {
    let jobs = match scope {
        Some(namespace) => Api::<PeriodicJob>::namespaced(api.client(), &namespace),
        None => Api::all(api.client()),
    };
    match jobs.list(&ListParams::default()).await {
        Ok(jobs) => jobs.items.iter().all(|job| job.status.is_none()),
        Err(error) => {
            tracing::warn!(%error, "Jobs could not be listed: a missing Lease is waited for");
            false
        }
    }
}

impl Replica {
    /// Starts a replica with these settings on this ground.
    ///
    /// # Errors
    /// [`StartError`] if the settings contradict each other. An API server that does not answer is none.
    pub async fn start(settings: &Settings, ground: Ground) -> Result<Self, StartError> {
        let Ground { clock, entropy, dial: _, watchdog, election_api, api, admin, tasks } = ground;
        let identity = settings.cluster.replica_name();
        let name = &settings.election.resource_name;
        let namespace = settings.election.resource_namespace.as_deref().unwrap_or_else(|| api.namespace());
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
            .clock(clock.clone())
            .entropy(entropy)
            .tasks(tasks.clone())
            .watchdog(watchdog)
            .observer(reporter)
            .fresh_installation({
                let scope = settings.cluster.watch_namespace.clone();
                move |api| never_led(api, scope)
            });
        if let Some(deadline) = settings.election.renew_deadline {
            builder = builder.renew_deadline(deadline);
        }
        let elector = builder.start_with(election_api)?;
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
            stopping: stopping.clone(),
            served: AtomicBool::new(false),
        };
        let admin = Admin::start(admin, views.for_admin(), clock.clone(), &tasks)?;
        tracing::info!(replica = identity, address = %admin.address(), "Admin server listens");
        if let Some(address) = settings.process.probe {
            let leadership = elector.leadership();
            probe::start(address, identity, leadership, clock.clone(), &tasks).await.map_err(StartError::Probe)?;
        }
        Ok(Self { elector, admin, stopping, clock, tasks, drain: settings.process.drain_budget() })
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
        let Self { elector, admin, stopping, clock, tasks, drain } = self;
        stopping.cancel();
        tracing::info!(drain_seconds = drain.as_secs_f64(), "Stopping");
        let released = elector.release(drain).await;
        drop(elector);
        admin.stop().await;
        if clock::timeout(&*clock, SETTLE, tasks.close_and_wait()).await.is_err() {
            tracing::warn!(tasks = tasks.len(), "Tasks were left behind");
        }
        match released {
            Released::Free => tracing::info!("Stopped"),
            Released::Unsettled => tracing::warn!("Stopped, but the API server has not confirmed the release"),
        }
        released
    }
}
