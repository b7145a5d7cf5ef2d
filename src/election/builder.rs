//! How an [`Elector`] is set up.

use std::{fmt, io, sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use super::{
    elector::{self, Elector, Parts},
    metadata::{LeaseMetadata, MetadataError},
    observer::{ElectorObserver, NoObserver},
    own_thread,
    place::Place,
    record::Identity,
    timing::{Timing, TimingError, TimingRequest},
    watchdog::{ThreadWatchdog, WatchdogDriver},
};
use crate::{
    apiserver::{ApiServer, ConnectError},
    clock::{SharedClock, SystemClock},
    entropy::{SharedEntropy, SystemEntropy},
    tasks::Tasks,
};

/// Settings of an [`Elector`]. See [`Elector::builder`].
#[must_use = "an elector does nothing until it is started"]
pub struct ElectorBuilder {
    name: String,
    namespace: Option<String>,
    pod: Option<String>,
    timing: TimingRequest,
    clock: SharedClock,
    entropy: SharedEntropy,
    tasks: Tasks,
    watchdog: Arc<dyn WatchdogDriver>,
    observer: Arc<dyn ElectorObserver>,
    fresh: Fresh,
    place: Option<Place>,
    metadata: LeaseMetadata,
    own_thread: bool,
}

/// Answers whether this installation has never had a leader.
pub(super) type Fresh = Box<dyn FnOnce(ApiServer) -> BoxFuture<'static, bool> + Send>;

/// An elector cannot be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The name of the Lease cannot be one.
    #[error("Lease name {0:?}: expected a lowercase RFC 1123 subdomain: letters, digits, '-' and '.', at most 253")]
    Name(String),
    /// The times contradict each other.
    #[error(transparent)]
    Timing(#[from] TimingError),
    /// The API server cannot be reached by this configuration.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The watchdog did not start, and without it nothing would end a term in a starved process.
    #[error("the lease watchdog did not start: {0}")]
    Watchdog(#[source] io::Error),
    /// The API server would refuse the labels, annotations or owners of the Lease.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The thread of the elector's own did not start.
    #[error("the elector's own thread did not start: {0}")]
    Thread(#[source] io::Error),
    /// A connection was given whose tasks run on another runtime.
    #[error("own_thread with start_with: expected start, for the connection must be made on that thread")]
    ForeignConnection,
}

impl ElectorBuilder {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            namespace: None,
            pod: None,
            timing: TimingRequest::default(),
            clock: SystemClock::shared(),
            entropy: SystemEntropy::shared(),
            tasks: Tasks::default(),
            watchdog: Arc::new(ThreadWatchdog),
            observer: Arc::new(NoObserver),
            fresh: Box::new(|_| futures::future::ready(false).boxed()),
            place: None,
            metadata: LeaseMetadata::default(),
            own_thread: false,
        }
    }

    /// The namespace of the Lease. By default that of the kube configuration, in a cluster the pod's own.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// The name under which this replica holds the Lease; each process and each term adds something of its own. By default
    /// the environment's `POD_NAME`, else `HOSTNAME`, else `tenure`.
    pub fn identity(mut self, pod: impl Into<String>) -> Self {
        self.pod = Some(pod.into());
        self
    }

    /// A place that this process has to itself: a term that was held from there ended with the process that held it, and
    /// is not waited for. So a container that is restarted in its pod leads again at once.
    pub fn place(mut self, place: Place) -> Self {
        self.place = Some(place);
        self
    }

    /// How long a record keeps others away: whole seconds, 15 s by default. A crashed leader is replaced after about this.
    pub fn lease_duration(mut self, duration: Duration) -> Self {
        self.timing.lease_duration = duration;
        self
    }

    /// The latest end of a term after its last confirmed renewal; by default as late as the lease duration safely allows.
    pub fn renew_deadline(mut self, deadline: Duration) -> Self {
        self.timing.renew_deadline = Some(deadline);
        self
    }

    /// The pause after a failed try, 2 s by default.
    pub fn retry_period(mut self, period: Duration) -> Self {
        self.timing.retry_period = period;
        self
    }

    /// The time in which running gated work has really ended, 1 s by default.
    pub fn stop_margin(mut self, margin: Duration) -> Self {
        self.timing.stop_margin = margin;
        self
    }

    /// What a holder that is not Tenure's gets after its expiry and after its release: 5 s unless told otherwise.
    pub fn foreign_grace(mut self, grace: Duration) -> Self {
        self.timing.foreign_grace = grace;
        self
    }

    /// Another clock, for tests.
    pub fn clock(mut self, clock: SharedClock) -> Self {
        self.clock = clock;
        self
    }

    /// Another source of randomness, for tests.
    pub fn entropy(mut self, entropy: SharedEntropy) -> Self {
        self.entropy = entropy;
        self
    }

    /// The owner of the elector's tasks.
    pub fn tasks(mut self, tasks: Tasks) -> Self {
        self.tasks = tasks;
        self
    }

    /// Another driver of the watchdog, for tests.
    pub fn watchdog(mut self, driver: Arc<dyn WatchdogDriver>) -> Self {
        self.watchdog = driver;
        self
    }

    /// Who is told of terms and writes, for metrics.
    pub fn observer(mut self, observer: Arc<dyn ElectorObserver>) -> Self {
        self.observer = observer;
        self
    }

    /// Labels of the Lease, put on it when it is created and when a term begins. What others have put there stays.
    pub fn labels<K: Into<String>, V: Into<String>>(mut self, labels: impl IntoIterator<Item = (K, V)>) -> Self {
        self.metadata.labels.extend(labels.into_iter().map(|(key, value)| (key.into(), value.into())));
        self
    }

    /// Annotations of the Lease, as [`ElectorBuilder::labels`]. Keys with the prefix `tenure.dev/` are the election's own.
    pub fn annotations<K: Into<String>, V: Into<String>>(mut self, more: impl IntoIterator<Item = (K, V)>) -> Self {
        self.metadata.annotations.extend(more.into_iter().map(|(key, value)| (key.into(), value.into())));
        self
    }

    /// An owner of the Lease, as [`ElectorBuilder::labels`]: the Lease is deleted with it. Name what all replicas have in
    /// common, such as their Deployment, and not a pod: a Lease that is deleted while somebody leads costs the term.
    pub fn owner(mut self, owner: OwnerReference) -> Self {
        self.metadata.owners.push(owner);
        self
    }

    /// Runs the election on a thread of its own. Without this it shares the runtime it is started on, and work that blocks
    /// all threads of that runtime for some seconds costs the term. The observer and [`ElectorBuilder::fresh_installation`]
    /// are called on that thread.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let elector = tenure::Elector::builder("model-training").own_thread().start(kube::Config::infer().await?)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn own_thread(mut self) -> Self {
        self.own_thread = true;
        self
    }

    /// Asked once, at the start: has this installation certainly never had a leader? Then a Lease that is missing a moment
    /// later is created at once. The default is no: a replica that finds no Lease waits one lease duration, for whoever held
    /// it may not know yet that it is gone.
    pub fn fresh_installation<F, Answer>(mut self, ask: F) -> Self
    where
        F: FnOnce(ApiServer) -> Answer + Send + 'static,
        Answer: Future<Output = bool> + Send + 'static,
    {
        self.fresh = Box::new(|api| ask(api).boxed());
        self
    }

    /// Starts the election, over a connection of its own made from `config`.
    ///
    /// # Errors
    /// [`ConfigError`] when the settings contradict each other or the configuration cannot be used. An API server that
    /// cannot be reached is no error: the elector waits for it.
    pub fn start(self, config: kube::Config) -> Result<Elector, ConfigError> {
        if self.own_thread {
            let owner = self.tasks.clone();
            return own_thread::start(self, &owner, config);
        }
        self.start_here(config)
    }

    pub(super) fn start_here(self, config: kube::Config) -> Result<Elector, ConfigError> {
        let api = ApiServer::from_config(config, self.clock.clone())?;
        self.start_over(api)
    }

    /// Starts the election over `api`, which should be used by nothing else: the load of other work must not delay a
    /// renewal.
    ///
    /// # Errors
    /// [`ConfigError`] when the settings contradict each other.
    pub fn start_with(self, api: ApiServer) -> Result<Elector, ConfigError> {
        if self.own_thread { Err(ConfigError::ForeignConnection) } else { self.start_over(api) }
    }

    fn start_over(self, api: ApiServer) -> Result<Elector, ConfigError> {
        if !is_subdomain(&self.name) {
            return Err(ConfigError::Name(self.name));
        }
        self.metadata.validate()?;
        let timing = Timing::new(self.timing)?;
        let pod = self.pod.unwrap_or_else(pod_name);
        let boot = format!("{:08x}", self.entropy.next_u64() >> 32);
        let parts = Parts {
            namespace: self.namespace.unwrap_or_else(|| api.namespace().to_owned()),
            name: self.name,
            timing,
            identity: Identity::new(&pod, &boot).in_place(self.place.as_ref().map(|place| place.name().to_owned())),
            place: self.place,
            api,
            clock: self.clock,
            entropy: self.entropy,
            tasks: self.tasks,
            observer: self.observer,
            fresh: self.fresh,
            metadata: self.metadata,
        };
        elector::start(parts, &*self.watchdog).map_err(ConfigError::Watchdog)
    }
}

impl fmt::Debug for ElectorBuilder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ElectorBuilder")
            .field("name", &self.name)
            .field("timing", &self.timing)
            .finish_non_exhaustive()
    }
}

fn pod_name() -> String {
    ["POD_NAME", "HOSTNAME"]
        .into_iter()
        .filter_map(|variable| std::env::var(variable).ok())
        .find(|name| !name.is_empty())
        .unwrap_or_else(|| "tenure".to_owned())
}

pub(super) fn is_subdomain(name: &str) -> bool {
    let edge = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let label = |label: &str| {
        let bytes = label.as_bytes();
        bytes.first().copied().is_some_and(edge)
            && bytes.last().copied().is_some_and(edge)
            && bytes.iter().all(|byte| edge(*byte) || *byte == b'-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_no_lease_can_have_is_refused() {
        for name in ["main", "a.b-c", "0"] {
            assert!(is_subdomain(name), "{name}");
        }
        for name in ["", "Main", "a_b", "-a", "a-", "a..b", &"a".repeat(254)] {
            assert!(!is_subdomain(name), "{name}");
        }
    }
}
