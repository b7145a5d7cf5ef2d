//! One family of trials on a cluster, where the replicas are pods: from an installed chart to the evidence.
//!
//! The harness runs where pods reach it by address. It serves the ledger and the probe there, creates the jobs in a namespace
//! of its own, and strikes the leader's pod, its node, or the control plane. It asks the API server for what a user could
//! ask it, and needs [`Hands`] for the rest; where there are none, the families that need them cannot be run.

mod behind;
mod beside;
mod hands;
mod installation;
mod pulse;
mod table;
mod trial;
mod wall_clock;

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api, Client,
    api::{ListParams, ObjectMeta, PostParams},
};
use rand::{SeedableRng, rngs::StdRng};
use thiserror::Error;

pub use hands::{HandError, Hands};
pub use installation::go_by;
pub(crate) use installation::is_rolled_out;
use pulse::Pulse;
pub use table::{About, Row, table};

use crate::{
    clock::{At, Timeline},
    front::Front,
    journal::Journal,
    judge::{Evidence, Family, Trial},
    ledger::{Ledger, LedgerError, NamedBy, Pace},
    objects::{ObjectError, Objects},
    observers::{Observers, jobs},
    probe::Probe,
    wait::{self, Overdue},
    watcher::Watcher,
};

/// The namespace of the jobs.
const NAMESPACE: &str = "tenure-trials";
/// By this label the pods of an installation are known.
const SELECTOR: &str = "app.kubernetes.io/name=tenure";
/// How long an attempt may take: longer than anything that the ledger makes it wait, and longer than a grace period where
/// runs have to last that long.
const fn attempt_timeout(family: Family) -> Duration {
    Duration::from_secs(if matches!(family, Family::LongRuns) { 60 } else { 20 })
}
/// How long it may take to come back to a calm state: a node has to boot, and its pods with it.
const CALM_LIMIT: Duration = Duration::from_mins(4);
/// How long the jobs of a family may take to be gone: nothing holds them back.
const CLEAR_LIMIT: Duration = Duration::from_mins(1);
/// Of 10 frozen containers, so many at least are not restarted by the kubelet and have to go on.
const RESUMED_OF_10: u32 = 8;
/// How long one request of the harness may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// How often the state of the pods is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What a family is run with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The family.
    pub family: Family,
    /// How many trials.
    pub trials: u32,
    /// What everything random is drawn from.
    pub seed: u64,
    /// Where logs and evidence are written.
    pub directory: PathBuf,
    /// The address at which pods reach this program.
    pub address: IpAddr,
    /// The port of the probe, which the replicas were given.
    pub probe_port: u16,
    /// The namespace of the installation.
    pub namespace: String,
    /// The name of its Lease.
    pub lease: String,
    /// Its lease duration.
    pub lease_duration: Duration,
    /// How many replicas it has.
    pub replicas: usize,
    /// Hands on the nodes, if there are any.
    pub hands: Option<Hands>,
    /// An image of Tenure whose time of day can be wrong, if there is one.
    pub skewed_image: Option<String>,
    /// What the replicas come by to the API server in some families, if there is one.
    pub front: Option<Arc<Front>>,
}

/// Why a family could not be brought to its end. This says nothing about Tenure by itself: look at the logs.
#[derive(Debug, Error)]
pub enum PodsError {
    /// The API server.
    #[error("{what}: {source}")]
    Api {
        /// What was asked of it.
        what: &'static str,
        /// Its answer.
        source: Box<kube::Error>,
    },
    /// An object.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A fault.
    #[error(transparent)]
    Hand(#[from] HandError),
    /// Something that was waited for.
    #[error("trial {trial}: {source}")]
    Overdue {
        /// The trial, 0 before the first.
        trial: u32,
        /// What did not happen.
        source: Overdue,
    },
    /// The family needs something that is not there.
    #[error("{family} needs {needs}")]
    NotApplicable {
        /// The family.
        family: Family,
        /// What it needs.
        needs: &'static str,
    },
    /// What is installed is not what the family needs.
    #[error("the installation: {0}")]
    Installation(String),
    /// A file or a socket.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// What was seen of a family on a cluster.
#[derive(Debug)]
pub struct Outcome {
    /// For the judge.
    pub evidence: Evidence,
    /// How many frozen containers went on when they were thawed, and how many the kubelet had restarted.
    pub thawed: (u32, u32),
    /// Why it ended before its last trial, if it did.
    pub broken_off: Option<PodsError>,
}

/// The leader of the moment.
#[derive(Debug, Clone)]
struct Leader {
    pod: String,
    node: String,
    address: IpAddr,
    token: u64,
    grace: Duration,
}

struct Session {
    settings: Settings,
    client: Client,
    random: StdRng,
    observers: Observers,
    objects: Objects,
    trial: u32,
    thawed: (u32, u32),
    grace: Duration,
    restarts: Option<Restarts>,
    pulse: Pulse,
}

/// How often the kubelet has restarted the container of each pod.
type Restarts = BTreeMap<String, i32>;

/// Runs a family and returns what was seen.
pub async fn run(client: Client, settings: &Settings) -> Result<Outcome, PodsError> {
    if settings.family.needs_the_nodes() && settings.hands.is_none() {
        return Err(no_hands(settings.family));
    }
    if settings.family.needs_a_wrong_clock() && settings.skewed_image.is_none() {
        let needs = "an image whose time of day can be wrong (--skewed-image)";
        return Err(PodsError::NotApplicable { family: settings.family, needs });
    }
    if settings.family.needs_a_front() && settings.front.is_none() {
        let needs = "a certificate of the cluster's authority (--front-certificate)";
        return Err(PodsError::NotApplicable { family: settings.family, needs });
    }
    let mut session = Session::start(client, settings).await?;
    let mut trials = Vec::new();
    let broken_off = Box::pin(session.play(&mut trials)).await.err();
    if let Some(error) = &broken_off {
        session.note(&format!("broken off: {error}"));
    }
    session.finish(trials, broken_off).await
}

impl Outcome {
    /// What must not be, beyond what the judge says of the evidence.
    pub fn failures(&self) -> Vec<String> {
        let (family, (went_on, restarted)) = (self.evidence.family, self.thawed);
        let frozen = went_on + restarted;
        let mut failures = Vec::new();
        // Fewer trials say nothing about a share.
        if family.freezes() && frozen >= family.full_size() && went_on * 10 < frozen * RESUMED_OF_10 {
            failures.push(format!("{family}: {went_on} of {frozen} frozen containers went on"));
        }
        for restarted in self.evidence.bad_ends.iter().flatten().filter(|_| !family.restarts_containers()) {
            failures.push(format!("{family}: {restarted}"));
        }
        // That nobody came is a finding; whatever else ends a family says nothing about Tenure.
        if let Some(error @ PodsError::Overdue { .. }) = &self.broken_off {
            failures.push(format!("{family}: {error}"));
        }
        failures
    }

    /// Why it could not be brought to its end for a reason that says nothing about Tenure.
    pub fn obstacle(&self) -> Option<&PodsError> {
        self.broken_off.as_ref().filter(|error| !matches!(error, PodsError::Overdue { .. }))
    }

    /// Whether the installation did not even come to a calm state before the first trial. The next family will not find it
    /// in one either.
    pub const fn began_in_disorder(&self) -> bool {
        matches!(self.broken_off, Some(PodsError::Overdue { trial: 0, .. }))
    }
}

impl Session {
    async fn start(client: Client, settings: &Settings) -> Result<Self, PodsError> {
        let failed = |what| move |source| PodsError::Io { what, source };
        // The replicas are replaced by that, which is no fault of the family's: no job is there yet.
        installation::choose_the_way(&client, settings).await?;
        fs::create_dir_all(&settings.directory).map_err(failed("making the directory of the evidence"))?;
        let timeline = Timeline::new();
        let journal = Journal::create(&settings.directory.join("trials.log"), timeline)
            .map_err(failed("creating the log of the trials"))?;
        let probe = Probe::start_at(SocketAddr::new(settings.address, settings.probe_port))
            .map_err(failed("starting the probe"))?;
        let jobs = jobs();
        let periods = jobs.iter().map(|job| (job.name.clone(), job.period)).collect();
        let pace = Pace { seed: settings.seed, periods };
        let ledger = Ledger::start_named_by(NamedBy::Origin, &[settings.address], pace).await?;
        make_namespace(&client).await?;
        let objects = Objects::within(client.clone(), NAMESPACE);
        clear(&objects, 0).await?;
        let watcher = Watcher::follow_api(client.clone(), NAMESPACE);
        let url = format!("http://{}/lease", SocketAddr::new(settings.address, ledger.port()));
        for job in &jobs {
            objects.create_job(job, &url, attempt_timeout(settings.family)).await?;
        }
        Ok(Self {
            settings: settings.clone(),
            pulse: Pulse::start(client.clone()),
            client,
            random: StdRng::seed_from_u64(settings.seed),
            observers: Observers { timeline, journal, ledger, probe, watcher, jobs },
            objects,
            trial: 0,
            thawed: (0, 0),
            grace: Duration::ZERO,
            restarts: None,
        })
    }

    async fn play(&mut self, trials: &mut Vec<Trial>) -> Result<(), PodsError> {
        self.remove_beside().await?;
        self.grace = self.calm().await?.grace;
        self.restarts = self.restarts().await;
        for number in 1..=self.settings.trials {
            self.trial = number;
            trials.push(Box::pin(self.run_trial(number)).await?);
        }
        Ok(())
    }

    async fn restarts(&self) -> Option<Restarts> {
        let listed = self.pods().list(&ListParams::default().labels(SELECTOR)).await_within().await?;
        let counted = listed.items.into_iter().filter_map(|pod| {
            let containers = pod.status?.container_statuses.unwrap_or_default();
            Some((pod.metadata.name?, containers.iter().map(|container| container.restart_count).sum()))
        });
        Some(counted.collect())
    }

    /// The pods whose container was restarted since the family began, one sentence each.
    async fn restarted(&self) -> Option<Vec<String>> {
        let (before, now) = (self.restarts.as_ref()?, self.restarts().await?);
        let more = now.into_iter().map(|(pod, count)| (count - before.get(&pod).copied().unwrap_or_default(), pod));
        Some(
            more.filter(|(count, _)| *count > 0)
                .map(|(count, pod)| format!("{pod} was restarted {count} times"))
                .collect(),
        )
    }

    fn note(&self, what: &str) {
        self.observers.journal.note(At::now(), &format!("trial {}: {what}", self.trial));
    }

    /// Waits until every replica is ready, one leads, and each job has run under its token.
    async fn calm(&self) -> Result<Leader, PodsError> {
        let calm = async {
            loop {
                if let Some(leader) = self.calm_leader().await {
                    return leader;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let calm = wait::within("every replica is ready, one leads, and each job has run", CALM_LIMIT, calm).await;
        calm.map_err(|source| PodsError::Overdue { trial: self.trial, source })
    }

    async fn calm_leader(&self) -> Option<Leader> {
        let listed = self.pods().list(&ListParams::default().labels(SELECTOR)).await_within().await?;
        let ready = listed.items.iter().filter(|pod| is_ready(pod)).count();
        if listed.items.len() != self.settings.replicas || ready != self.settings.replicas {
            return None;
        }
        let (name, token) = self.observers.leader()?;
        let pod = listed.items.into_iter().find(|pod| pod.metadata.name.as_deref() == Some(&*name))?;
        let address = pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?;
        let spec = pod.spec.as_ref()?;
        let grace = u64::try_from(spec.termination_grace_period_seconds?).map(Duration::from_secs).ok()?;
        let leader = Leader { pod: name, node: spec.node_name.clone()?, address, token, grace };
        (self.observers.all_have_run(token) && self.is_rolled_out().await?).then_some(leader)
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.settings.namespace)
    }

    /// Waits until every slot due by now is decided, removes the jobs, and hands over what was seen.
    async fn finish(self, trials: Vec<Trial>, broken_off: Option<PodsError>) -> Result<Outcome, PodsError> {
        let until = self.observers.timeline.wall(At::now());
        if self.observers.settle(until).await.is_err() {
            self.note("not every slot due was decided in time; the judge counts them");
        }
        let (seen, gaps) = (self.observers.seen(), self.observers.watcher.gaps());
        let bad_ends = self.restarted().await;
        let cleared = clear(&self.objects, self.trial).await.err();
        self.observers.ledger.stop().await;
        let complaints = seen.complaints();
        let written = seen.write(&self.settings.directory).and_then(|()| self.write_requests());
        written.map_err(|source| PodsError::Io { what: "writing the evidence", source })?;
        let evidence = Evidence {
            family: self.settings.family,
            jobs: self.observers.jobs,
            entries: seen.log.entries().to_vec(),
            probe: seen.probe,
            history: seen.history,
            gaps,
            trials,
            leaderless_limit: Some(self.settings.lease_duration + trial::LEASE_AND),
            complaints,
            slow: self.pulse.slow(),
            timeline: self.observers.timeline,
            until,
            bad_ends,
        };
        Ok(Outcome { evidence, thawed: self.thawed, broken_off: broken_off.or(cleared) })
    }
}

/// A request of the harness has a deadline; one that fails is made again by whoever needs it.
trait AwaitWithin<T> {
    async fn await_within(self) -> Option<T>;
}

impl<T, F: Future<Output = Result<T, kube::Error>>> AwaitWithin<T> for F {
    async fn await_within(self) -> Option<T> {
        tokio::time::timeout(REQUEST_LIMIT, self).await.ok()?.ok()
    }
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut ready = conditions.filter(|condition| condition.type_ == "Ready");
    pod.metadata.deletion_timestamp.is_none() && ready.any(|condition| condition.status == "True")
}

async fn make_namespace(client: &Client) -> Result<(), PodsError> {
    let metadata = ObjectMeta { name: Some(NAMESPACE.to_owned()), ..ObjectMeta::default() };
    let namespace = Namespace { metadata, ..Namespace::default() };
    match Api::all(client.clone()).create(&PostParams::default(), &namespace).await {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        made => made.map(drop).map_err(|source| api("making the namespace of the jobs", source)),
    }
}

/// Deletes the jobs of a family, and waits until they are gone.
async fn clear(objects: &Objects, trial: u32) -> Result<(), PodsError> {
    let cleared = async {
        objects.delete_all().await?;
        while !objects.list().await?.is_empty() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    };
    let cleared = wait::within("the jobs are gone", CLEAR_LIMIT, cleared).await;
    cleared.map_err(|source| PodsError::Overdue { trial, source })?
}

fn no_hands(family: Family) -> PodsError {
    PodsError::NotApplicable { family, needs: "hands on the nodes (--faults)" }
}

fn api(what: &'static str, source: kube::Error) -> PodsError {
    PodsError::Api { what, source: Box::new(source) }
}
