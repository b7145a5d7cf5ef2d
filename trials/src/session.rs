//! One family of trials, from an empty API server to the evidence.
//!
//! A session starts the sandbox, the ledger, the probe and three replicas, runs its trials one after the other, each from a
//! calm state (every replica ready, one leads, each job has run under its token) and back to one, and at the end waits until
//! every slot due is decided. It decides nothing about what it saw: that is the judge's.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use rustix::process::Signal;
use thiserror::Error;

use crate::{
    aim::{Aim, Disturbance},
    clock::{At, Timeline},
    cluster::{Cluster, ClusterError},
    journal::{Journal, write_lines},
    judge::{Evidence, Family, Freeze, Guarantee, Job, Trial, Window},
    ledger::{Ledger, LedgerError, Pace, Verdict},
    objects::{NAMESPACE, ObjectError},
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
/// How long a run may take to come to the point that is aimed at: a few periods, with every answer delayed.
const AIM_LIMIT: Duration = Duration::from_secs(15);
/// How often a trial is begun again because the leader changed before it was struck.
const AIM_TRIES: u32 = 10;
/// How long a replica may take to leave after SIGTERM: its grace period of 30 s, and some.
const LEAVE_LIMIT: Duration = Duration::from_secs(40);
/// How long a successor may take. Beyond it something is broken, and the trials cannot go on.
const SUCCESSOR_LIMIT: Duration = Duration::from_secs(30);
/// How long the marks may take to reach the end of the family once it is calm.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);
/// A leader whose last datagram is older than this is not called one. It sends one per millisecond.
const FRESH: Duration = Duration::from_millis(250);

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
    /// The leader changed before it could be struck, again and again.
    #[error("trial {0}: the leader changed before it could be struck, {AIM_TRIES} times in a row")]
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

/// What was drawn for a trial.
#[derive(Debug)]
struct Plan {
    number: u32,
    window: Window,
    job: String,
    disturbance: Disturbance,
    /// How long the calm lasts before the first fault.
    calm: Duration,
    /// How long after the signal the held request goes on, in a family that does not wait for the successor.
    release_after: Duration,
    /// Whether the held request goes on only when the successor leads.
    release_late: bool,
    /// How long a freeze lasts.
    freeze: Duration,
    /// When SIGTERM is sent into the freeze, if it is.
    term_into_freeze: Option<Duration>,
}

/// A leader that is held at the point that was aimed at.
struct Held {
    leader: Leader,
    aim: Aim,
    armed: At,
}

struct Session {
    settings: Settings,
    random: StdRng,
    timeline: Timeline,
    journal: Journal,
    cluster: Cluster,
    ledger: Ledger,
    probe: Probe,
    watcher: Watcher,
    replicas: Vec<Replica>,
    jobs: Vec<Job>,
    trial: u32,
}

/// Runs a family and returns what was seen.
pub async fn run(settings: &Settings) -> Result<Evidence, SessionError> {
    let mut session = Session::start(settings).await?;
    let mut trials = Vec::new();
    session.calm().await?;
    for number in 1..=settings.trials {
        session.trial = number;
        trials.push(session.run_trial(number).await?);
    }
    session.finish(trials).await
}

/// The jobs of every family.
fn jobs() -> Vec<Job> {
    let job =
        |name: &str, millis, guarantee| Job { name: name.into(), period: Duration::from_millis(millis), guarantee };
    vec![
        job("fast", 200, Guarantee::AtLeastOnce),
        job("steady", 1000, Guarantee::AtLeastOnce),
        job("careful", 1000, Guarantee::AtMostOnce),
    ]
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
        let mut session =
            Self { settings, random, timeline, journal, cluster, ledger, probe, watcher, replicas, jobs, trial: 0 };
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
        self.journal.note(At::now(), &format!("trial {}: {what}", self.trial));
    }

    fn overdue(&self) -> impl Fn(Overdue) -> SessionError + use<> {
        let trial = self.trial;
        move |source| SessionError::Overdue { trial, source }
    }

    /// The replica that leads, if one was seen to in the last moments.
    fn leader(&self) -> Option<Leader> {
        let newest = self.probe.with_log(|log| log.newest().cloned())?;
        let place = self.replicas.iter().position(|replica| replica.identity == newest.identity)?;
        (At::now().since(newest.last) < FRESH).then_some(Leader { place, token: newest.token })
    }

    /// Waits until every replica is ready, one leads, and each job has run under its token; starts again what has ended.
    async fn calm(&mut self) -> Result<Leader, SessionError> {
        let overdue = self.overdue();
        wait::within("every replica is ready, one leads, and each job has run", CALM_LIMIT, self.come_to_calm())
            .await
            .map_err(overdue)?
    }

    async fn come_to_calm(&mut self) -> Result<Leader, SessionError> {
        loop {
            let mut ready = true;
            for place in 0..self.replicas.len() {
                if let Some(status) = self.replicas[place].ended_by_itself() {
                    self.note(&format!("{} ended by itself: {status}", self.replicas[place].identity));
                }
                if self.replicas[place].pid().is_none() {
                    self.start_replica(place)?;
                }
                ready &= self.replicas[place].is_ready().await;
            }
            if let Some(leader) = self.leader()
                && ready
                && self.jobs.iter().all(|job| self.has_run(job, leader.token))
            {
                return Ok(leader);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn has_run(&self, job: &Job, token: u64) -> bool {
        self.ledger.with_log(|log| {
            let mut newest = log.entries().iter().rev().take_while(|entry| entry.request.token == token);
            newest.any(|entry| entry.request.job == job.name && entry.verdict == Verdict::Accepted)
        })
    }

    fn draw(&mut self, number: u32) -> Plan {
        let random = &mut self.random;
        let freeze = LEASE.mul_f64(random.random_range(1.2..=3.0));
        let into_freeze = freeze.mul_f64(random.random_range(0.1..0.9));
        let windows = u32::try_from(Window::ALL.len()).expect("there are four windows");
        Plan {
            number,
            window: Window::ALL[(number % windows) as usize],
            job: self.jobs[random.random_range(0..self.jobs.len())].name.clone(),
            disturbance: Disturbance::draw(random),
            calm: Duration::from_millis(random.random_range(500..2000)),
            release_after: Duration::from_millis(random.random_range(0..500)),
            release_late: self.settings.family != Family::Term && random.random(),
            freeze,
            // Every second round of the windows, so that each window is frozen both ways.
            term_into_freeze: ((number - 1) / windows).is_multiple_of(2).then_some(into_freeze),
        }
    }

    async fn run_trial(&mut self, number: u32) -> Result<Trial, SessionError> {
        let plan = self.draw(number);
        self.note(&format!("{} {plan:?}", self.settings.family));
        let Held { leader, aim, armed } = self.hold_leader(&plan).await?;
        let (victim, victim_address) = {
            let replica = &self.replicas[leader.place];
            (replica.identity.clone(), replica.address)
        };
        let struck = At::now();
        let freeze = match self.settings.family {
            Family::Kill => self.kill(&plan, leader, &aim).await?,
            Family::Term => self.terminate(&plan, leader, &aim).await?,
            Family::Stop => Some(self.freeze(&plan, leader, &aim).await?),
        };
        let taken_over = self.successor(leader).await?;
        aim.release();
        self.cluster.sandbox.faults().clear();
        self.note(&format!("successor first seen {:?} after the signal", taken_over.since(struck)));
        self.calm().await?;
        let (calm, token, window) = (At::now(), leader.token, plan.window);
        let taken_over = Some(taken_over);
        Ok(Trial { number, victim, victim_address, token, window, armed, struck, calm, freeze, taken_over })
    }

    /// Puts the faults of the trial in force and waits until the leader is held where it is to be struck.
    async fn hold_leader(&mut self, plan: &Plan) -> Result<Held, SessionError> {
        for _ in 0..AIM_TRIES {
            let leader = self.calm().await?;
            tokio::time::sleep(plan.calm).await;
            let armed = At::now();
            let (identity, address) =
                (self.replicas[leader.place].identity.clone(), self.replicas[leader.place].address);
            let sandbox = &self.cluster.sandbox;
            plan.disturbance.arm(sandbox, &identity, &mut self.random);
            let mut aim = Aim::take(sandbox, &self.ledger, plan.window, &plan.job, &identity, address);
            let reached = wait::within("the leader is where it is to be struck", AIM_LIMIT, aim.reached()).await;
            if self.leader() == Some(leader) {
                reached.map_err(self.overdue())?;
                return Ok(Held { leader, aim, armed });
            }
            self.note("the leader changed before it was struck; begun again");
            aim.release();
            self.cluster.sandbox.faults().clear();
        }
        Err(SessionError::Unsteady(plan.number))
    }

    fn signal(&self, leader: Leader, signal: Signal, name: &str) -> Result<(), SessionError> {
        let replica = &self.replicas[leader.place];
        let at = At::now();
        replica.signal(signal)?;
        let pid = replica.pid().unwrap_or_default();
        self.journal.note(at, &format!("trial {}: {name} {} pid {pid}", self.trial, replica.identity));
        Ok(())
    }

    async fn ended(&mut self, leader: Leader) -> Result<(), SessionError> {
        let replica = &mut self.replicas[leader.place];
        let status = replica.ended(LEAVE_LIMIT).await?;
        let what = format!("{} ended: {status}", replica.identity);
        self.note(&what);
        Ok(())
    }

    /// Kills the leader. The request that was held goes on before or after the successor leads: the network may still
    /// deliver what a dead process sent.
    async fn kill(&mut self, plan: &Plan, leader: Leader, aim: &Aim) -> Result<Option<Freeze>, SessionError> {
        self.signal(leader, Signal::KILL, "KILL")?;
        self.ended(leader).await?;
        if plan.release_late {
            self.successor(leader).await?;
            tokio::time::sleep(plan.release_after).await;
        }
        aim.release();
        self.start_replica(leader.place)?;
        Ok(None)
    }

    /// Asks the leader to leave. What was held goes on soon after: a planned hand-over is judged with an API server and a
    /// target that answer.
    async fn terminate(&mut self, plan: &Plan, leader: Leader, aim: &Aim) -> Result<Option<Freeze>, SessionError> {
        self.signal(leader, Signal::TERM, "TERM")?;
        tokio::time::sleep(plan.release_after).await;
        aim.release();
        self.ended(leader).await?;
        self.start_replica(leader.place)?;
        Ok(None)
    }

    async fn freeze(&mut self, plan: &Plan, leader: Leader, aim: &Aim) -> Result<Freeze, SessionError> {
        self.signal(leader, Signal::STOP, "STOP")?;
        let stop = At::now();
        if !plan.release_late {
            aim.release();
        }
        if let Some(before) = plan.term_into_freeze {
            tokio::time::sleep(before).await;
            self.signal(leader, Signal::TERM, "TERM into the freeze")?;
            tokio::time::sleep(plan.freeze.saturating_sub(before)).await;
        } else {
            tokio::time::sleep(plan.freeze).await;
        }
        let cont = At::now();
        self.signal(leader, Signal::CONT, "CONT")?;
        if plan.release_late {
            self.successor(leader).await?;
            tokio::time::sleep(plan.release_after).await;
        }
        aim.release();
        if plan.term_into_freeze.is_some() {
            self.ended(leader).await?;
        }
        Ok(Freeze { stop, cont })
    }

    /// Waits for a higher token than the leader's, and says when it was first seen.
    async fn successor(&self, leader: Leader) -> Result<At, SessionError> {
        let look =
            || self.probe.with_log(|log| log.terms().find(|term| term.token > leader.token).map(|term| term.first));
        wait::until("a successor leads", SUCCESSOR_LIMIT, look).await.map_err(self.overdue())
    }

    /// Waits until every slot due by now is decided and run, stops everything, and hands over what was seen.
    async fn finish(mut self, trials: Vec<Trial>) -> Result<Evidence, SessionError> {
        let until = self.timeline.wall(At::now());
        let settled = || {
            self.watcher.with_history(|history| {
                let settled = |job: &Job| {
                    history.newest(&job.name).is_some_and(|status| {
                        status.mark >= Some(until) && status.active.values().all(|run| run.slot > until)
                    })
                };
                self.jobs.iter().all(settled).then_some(())
            })
        };
        if wait::until("every slot due is decided", SETTLE_LIMIT, settled).await.is_err() {
            self.note("not every slot due was decided in time; the judge counts them");
        }
        let (history, log, probe) = (self.watcher.history(), self.ledger.log(), self.probe.log());
        for replica in &self.replicas {
            replica.signal(Signal::TERM)?;
        }
        for replica in &mut self.replicas {
            replica.ended(LEAVE_LIMIT).await?;
        }
        self.ledger.stop().await;
        self.cluster.stop().await;
        let written = write_evidence(&self.settings.directory, &history, &log, &probe);
        written.map_err(|source| SessionError::Io { what: "writing the evidence", source })?;
        for complaint in log.malformed_requests().iter().chain(history.unreadable()) {
            tracing::error!(complaint, "something seen does not keep to its contract");
        }
        Ok(Evidence {
            family: self.settings.family,
            jobs: self.jobs,
            entries: log.entries().to_vec(),
            probe,
            history,
            trials,
            timeline: self.timeline,
            until,
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

fn write_evidence(
    directory: &Path,
    history: &crate::watcher::History,
    log: &crate::ledger::Log,
    probe: &crate::probe::ProbeLog,
) -> io::Result<()> {
    write_lines(&directory.join("ledger.jsonl"), log.entries())?;
    write_lines(&directory.join("terms.jsonl"), probe.terms())?;
    write_lines(&directory.join("late-datagrams.jsonl"), probe.late())?;
    for (name, job) in history.jobs() {
        write_lines(&directory.join(format!("status-{name}.jsonl")), &job.versions)?;
    }
    Ok(())
}
