//! One family of trials, from an empty API server to the evidence.
//!
//! A session starts the sandbox, the ledger, the probe and three replicas, runs its trials one after the other, each from a
//! calm state (every replica ready, one leads, each job has run under its token) and back to one, and at the end waits until
//! every slot due is decided. It decides nothing about what it saw: that is the judge's.

mod trial;

use std::{fs, io, path::PathBuf, time::Duration};

use rand::{SeedableRng, rngs::StdRng};
use rustix::process::Signal;
use thiserror::Error;

use crate::{
    clock::{At, Timeline},
    cluster::{Cluster, ClusterError},
    journal::Journal,
    judge::{Evidence, Family, Trial},
    ledger::{Ledger, LedgerError, Pace},
    objects::{NAMESPACE, ObjectError},
    observers::{Observers, jobs},
    probe::Probe,
    replicas::{Launch, Replica, ReplicaError, ledger_address},
    wait::{self, Overdue},
    watcher::Watcher,
};

/// How many replicas there are.
const REPLICAS: u8 = 3;
/// The lease duration of all trials.
const LEASE: Duration = Duration::from_secs(3);
/// How long an attempt may take: longer than anything the ledger or a hold makes it wait.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(20);
/// The host name of the ledger, which each replica resolves to an address of its own.
const LEDGER_HOST: &str = "ledger.test";
/// How long it may take to come back to a calm state, on a machine that is busy with other things too.
const CALM_LIMIT: Duration = Duration::from_mins(1);
/// How long a replica may take to leave after SIGTERM: its grace period of 30 s, and some.
const LEAVE_LIMIT: Duration = Duration::from_secs(40);

/// What a session is run with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The binary of Tenure.
    pub tenure: PathBuf,
    /// The family.
    pub family: Family,
    /// How many trials.
    pub trials: u32,
    /// What everything random is drawn from.
    pub seed: u64,
    /// Where logs and evidence are written.
    pub directory: PathBuf,
}

/// Why a session could not be brought to its end. This says nothing about Tenure by itself: look at the logs.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The API server.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// An object.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A replica.
    #[error(transparent)]
    Replica(#[from] ReplicaError),
    /// Something that was waited for.
    #[error("trial {trial}: {source}")]
    Overdue {
        /// The trial, 0 before the first.
        trial: u32,
        /// What did not happen.
        source: Overdue,
    },
    /// A family that needs pods.
    #[error("{0} is a family of pods: run it with the e2e program")]
    NotOfProcesses(Family),
    /// No leader came to where it was to be struck, again and again.
    #[error("trial {0}: no leader came to where it was to be struck, again and again")]
    Unsteady(u32),
    /// A file or a socket.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// The leader, as the probe sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Leader {
    place: usize,
    token: u64,
}

struct Session {
    settings: Settings,
    random: StdRng,
    cluster: Cluster,
    observers: Observers,
    replicas: Vec<Replica>,
    trial: u32,
    bad_ends: Vec<String>,
}

/// Runs a family and returns what was seen.
pub async fn run(settings: &Settings) -> Result<Evidence, SessionError> {
    if !Family::OF_PROCESSES.contains(&settings.family) {
        return Err(SessionError::NotOfProcesses(settings.family));
    }
    let mut session = Session::start(settings).await?;
    let mut trials = Vec::new();
    session.calm().await?;
    for number in 1..=settings.trials {
        session.trial = number;
        trials.push(session.run_trial(number).await?);
    }
    session.finish(trials).await
}

impl Session {
    async fn start(settings: &Settings) -> Result<Self, SessionError> {
        let failed = |what| move |source| SessionError::Io { what, source };
        fs::create_dir_all(&settings.directory).map_err(failed("making the directory of the evidence"))?;
        let timeline = Timeline::new();
        let journal = Journal::create(&settings.directory.join("trials.log"), timeline)
            .map_err(failed("creating the log of the trials"))?;
        let jobs = jobs();
        let cluster = Cluster::start().await?;
        let watcher = Watcher::follow(&cluster.sandbox);
        let periods = jobs.iter().map(|job| (job.name.clone(), job.period)).collect();
        let addresses: Vec<_> = (0..REPLICAS).map(ledger_address).collect();
        let ledger = Ledger::start(&addresses, Pace { seed: settings.seed, periods }).await?;
        let probe = Probe::start().map_err(failed("starting the probe"))?;
        let objects = cluster.objects();
        objects.post_definitions(&settings.tenure).await?;
        let url = format!("http://{LEDGER_HOST}:{}/lease", ledger.port());
        for job in &jobs {
            objects.create_job(job, &url, ATTEMPT_TIMEOUT).await?;
        }
        let launch = launch(settings, &probe);
        let mut replicas = Vec::new();
        for number in 0..REPLICAS {
            let kubeconfig = cluster.write_kubeconfig(&settings.directory, &format!("replica-{number}"))?;
            let replica = Replica::new(&launch, number, &kubeconfig).map_err(failed("finding a free admin port"))?;
            replicas.push(replica);
        }
        let random = StdRng::seed_from_u64(settings.seed);
        let settings = settings.clone();
        let mut session = Self {
            settings,
            random,
            cluster,
            observers: Observers { timeline, journal, ledger, probe, watcher, jobs },
            replicas,
            trial: 0,
            bad_ends: Vec::new(),
        };
        for place in 0..session.replicas.len() {
            session.start_replica(place)?;
        }
        Ok(session)
    }

    fn start_replica(&mut self, place: usize) -> Result<(), SessionError> {
        let replica = &mut self.replicas[place];
        let pid = replica.start()?;
        let what = format!("start {} pid {pid} admin {}", replica.identity, replica.admin());
        self.note(&what);
        Ok(())
    }

    fn note(&self, what: &str) {
        self.observers.journal.note(At::now(), &format!("trial {}: {what}", self.trial));
    }

    fn overdue(&self) -> impl Fn(Overdue) -> SessionError + use<> {
        let trial = self.trial;
        move |source| SessionError::Overdue { trial, source }
    }

    /// The replica that leads, if one was seen to in the last moments.
    fn leader(&self) -> Option<Leader> {
        let (identity, token) = self.observers.leader()?;
        let place = self.replicas.iter().position(|replica| replica.identity == identity)?;
        Some(Leader { place, token })
    }

    /// Waits until every replica is ready, one leads, and each job has run under its token; starts again what has ended.
    async fn calm(&mut self) -> Result<Leader, SessionError> {
        let overdue = self.overdue();
        let calm =
            wait::within("every replica is ready, one leads, and each job has run", CALM_LIMIT, self.come_to_calm())
                .await;
        if calm.is_err() {
            let leader = self.leader();
            self.note(&format!("not calm: leader {leader:?}"));
            for job in &self.observers.jobs {
                let run = leader.is_some_and(|leader| self.observers.has_run(job, leader.token));
                self.note(&format!("not calm: {} has run: {run}", job.name));
            }
        }
        calm.map_err(overdue)?
    }

    async fn come_to_calm(&mut self) -> Result<Leader, SessionError> {
        loop {
            let mut ready = true;
            for place in 0..self.replicas.len() {
                if let Some(status) = self.replicas[place].ended_by_itself() {
                    let what = format!("{} ended by itself: {status}", self.replicas[place].identity);
                    self.note(&what);
                    self.bad_ends.push(format!("trial {}: {what}", self.trial));
                }
                if self.replicas[place].pid().is_none() {
                    self.start_replica(place)?;
                }
                ready &= self.replicas[place].is_ready().await;
            }
            if let Some(leader) = self.leader()
                && ready
                && self.observers.all_have_run(leader.token)
            {
                return Ok(leader);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until every slot due by now is decided and run, stops everything, and hands over what was seen.
    async fn finish(mut self, trials: Vec<Trial>) -> Result<Evidence, SessionError> {
        let until = self.observers.timeline.wall(At::now());
        if self.observers.settle(until).await.is_err() {
            self.note("not every slot due was decided in time; the judge counts them");
        }
        let seen = self.observers.seen();
        for replica in &self.replicas {
            replica.signal(Signal::TERM)?;
        }
        for replica in &mut self.replicas {
            replica.ended(LEAVE_LIMIT).await?;
        }
        self.observers.ledger.stop().await;
        self.cluster.stop().await;
        let complaints = seen.complaints();
        let written = seen.write(&self.settings.directory);
        written.map_err(|source| SessionError::Io { what: "writing the evidence", source })?;
        Ok(Evidence {
            family: self.settings.family,
            jobs: self.observers.jobs,
            entries: seen.log.entries().to_vec(),
            probe: seen.probe,
            history: seen.history,
            gaps: 0,
            trials,
            leaderless_limit: None,
            complaints,
            slow: Vec::new(),
            timeline: self.observers.timeline,
            until,
            bad_ends: Some(self.bad_ends),
        })
    }
}

fn launch(settings: &Settings, probe: &Probe) -> Launch {
    Launch {
        binary: settings.tenure.clone(),
        flags: vec![
            format!("--namespace={NAMESPACE}"),
            format!("--leader-elect-lease-duration={}s", LEASE.as_secs()),
            "--leader-elect-stop-margin=200ms".to_owned(),
            format!("--leader-elect-resource-namespace={NAMESPACE}"),
            "--egress-allow=127.0.0.0/8".to_owned(),
            format!("--probe={}", probe.address()),
        ],
        ledger_host: LEDGER_HOST.to_owned(),
        directory: settings.directory.clone(),
    }
}
