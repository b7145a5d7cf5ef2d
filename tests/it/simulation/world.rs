//! A world of three machines with clocks of their own, on each a replica that can be killed, frozen, terminated and started
//! again, and an outside view of who is in office.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::SignedDuration;
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::json;
use tenure::{
    Leadership, Released,
    api::PeriodicJob,
    apiserver::ApiServer,
    clock::{BootTime, Clock, RATE_ONE, SimulatedClock, sleep},
    election::{ElectorObserver, Lost},
    entropy::SeededEntropy,
};
use tokio::task::JoinHandle;

use super::{
    judge::{Around, Grid, Judge, Rules},
    story::Story,
};
use crate::support::{
    freeze::Freezer,
    lab::{Drift, Lab, NAMESPACE, Replica},
    ledger::{Ledger, Manner},
    network::Distant,
    whole::{self, Whole},
};

/// The lease of the simulations: short, so that many terms fit into little time.
pub const LEASE_DURATION: Duration = Duration::from_secs(3);
/// How long a terminated replica may drain.
pub const DRAIN: Duration = Duration::from_secs(2);
const STOP_MARGIN: Duration = Duration::from_millis(200);
const RETRY_PERIOD: Duration = Duration::from_millis(300);
/// An edited Lease names a holder that is not Tenure's.
const FOREIGN_GRACE: Duration = Duration::from_millis(300);
/// How often the judge looks at the guards.
const LOOK: Duration = Duration::from_millis(50);
/// How often a leader gives a sign of life to the ledger, on its own clock.
const PROBE: Duration = Duration::from_millis(50);
/// The largest error of a clock's rate, in millionths.
const RATE_ERROR: u64 = 100_000;
/// The wall clocks are wrong by up to this much; a time daemon keeps them there.
const WALL_ERROR_MILLIS: i64 = 1_000;
/// What a request of each machine's elector takes on its way.
const ELECTION_LATENCY: [Duration; 3] = [Duration::from_millis(1), Duration::from_millis(2), Duration::from_millis(3)];
/// What a request of each machine's scheduler takes.
const JOBS_LATENCY: [Duration; 3] = [Duration::from_millis(4), Duration::from_millis(5), Duration::from_millis(6)];
/// How often the time daemons look, in looks of the judge.
const LOOKS_PER_CORRECTION: u64 = 10;

/// The job that is suspended most of the time: most requests would be its own.
pub const FAST: &str = "fast";
/// The jobs: what they say, what is asked of them, and what the target does.
const JOBS: [(&str, &str, Rules, Manner); 4] = [
    (
        "each-second",
        r#"{"interval": "1s", "timeout": "5s", "retry": {"maxAttempts": 3, "initial": "100ms"}}"#,
        Rules { grid: Grid::Millis(1_000), at_most_once: false, most_active: 1 },
        Manner::Moody { within: Duration::from_millis(1_500), refuses: 5, cuts: 3 },
    ),
    (
        "at-most-once",
        r#"{"interval": "1s", "timeout": "5s", "guarantee": "AtMostOnce"}"#,
        Rules { grid: Grid::Millis(1_000), at_most_once: true, most_active: 1 },
        Manner::Moody { within: Duration::from_millis(1_500), refuses: 5, cuts: 3 },
    ),
    (
        FAST,
        r#"{"interval": "200ms", "timeout": "2s", "retry": {"initial": "10ms"}, "suspend": true}"#,
        Rules { grid: Grid::Millis(200), at_most_once: false, most_active: 1 },
        Manner::Moody { within: Duration::from_millis(300), refuses: 2, cuts: 1 },
    ),
    (
        "by-cron",
        r#"{"schedule": "*/7 * * * * *", "concurrencyPolicy": "Allow", "maxActive": 3, "timeout": "20s"}"#,
        Rules { grid: Grid::SecondsOfTheMinute(7), at_most_once: false, most_active: 3 },
        Manner::Answer { status: 200, within: Duration::from_millis(10_500) },
    ),
];

pub struct World {
    pub lab: Lab,
    pub rng: StdRng,
    pub story: Story,
    pub ledger: Ledger,
    pub offices: Offices,
    pub machines: Vec<Machine>,
    pub judge: Judge,
    pub around: Around,
    /// What must not have happened.
    pub violations: Vec<String>,
    /// Until when a replica may be looking at an old state of the Lease.
    pub stale_until: BootTime,
    looks: u64,
}

/// One machine. Its clock outlives the processes on it.
pub struct Machine {
    pub name: String,
    pub process: Option<Whole>,
    clock: Arc<SimulatedClock>,
    /// How far its wall clock is meant to be off, and what it is set to for that.
    wall_error: SignedDuration,
    correction: SignedDuration,
    stepped: bool,
    starts: u64,
}

/// Who took office when: told by the electors the moment they believe it, before they tell anybody else.
#[derive(Debug, Clone)]
pub struct Offices(Arc<Mutex<Seen>>);

#[derive(Debug)]
struct Seen {
    story: Story,
    tokens: Vec<u64>,
    views: BTreeMap<(String, u64), (Leadership, Freezer)>,
    violations: Vec<String>,
}

#[derive(Debug)]
struct Witness {
    name: String,
    start: u64,
    offices: Offices,
}

impl ElectorObserver for Witness {
    fn term_began(&self, token: u64) {
        self.offices.took_office(&self.name, self.start, token);
    }

    fn term_ended(&self, lost: Lost) {
        self.offices.0.lock().unwrap().story.tell(&self.name, &format!("term ended: {lost:?}"));
    }
}

impl Offices {
    fn new(story: Story) -> Self {
        let seen = Seen { story, tokens: Vec::new(), views: BTreeMap::new(), violations: Vec::new() };
        Self(Arc::new(Mutex::new(seen)))
    }

    /// How many terms have begun.
    pub fn terms(&self) -> usize {
        self.0.lock().unwrap().tokens.len()
    }

    pub fn violations(&self) -> Vec<String> {
        self.0.lock().unwrap().violations.clone()
    }

    fn took_office(&self, name: &str, start: u64, token: u64) {
        let mut seen = self.0.lock().unwrap();
        seen.story.tell(name, &format!("takes office with token {token}"));
        let mut wrong = Vec::new();
        for ((other, other_start), (leadership, freezer)) in &seen.views {
            let is_self = other == name && *other_start == start;
            if !is_self && !freezer.is_killed() && leadership.term().is_some() {
                wrong.push(format!("{name} takes office with token {token} while {other} is in office"));
            }
        }
        if seen.tokens.last().is_some_and(|last| *last >= token) {
            wrong.push(format!("{name} takes office with token {token} after {:?}", seen.tokens.last()));
        }
        seen.tokens.push(token);
        seen.violations.append(&mut wrong);
    }
}

impl World {
    pub fn new(seed: u64) -> Self {
        let lab = Lab::new(seed);
        let story = Story::new(lab.clock.clone());
        let ledger = Ledger::new(lab.clock.clone(), seed ^ 0x1ed9_e500);
        let mut rng = StdRng::seed_from_u64(seed);
        let offices = Offices::new(story.clone());
        // One clock as slow as may be, one as fast, one in between: the worst pair is always there.
        let rates = [
            RATE_ONE - RATE_ERROR,
            RATE_ONE + RATE_ERROR,
            rng.random_range(RATE_ONE - RATE_ERROR..=RATE_ONE + RATE_ERROR),
        ];
        let machines = rates.iter().enumerate().map(|(index, rate_ppm)| {
            let wall_error = SignedDuration::from_millis(rng.random_range(-WALL_ERROR_MILLIS..=WALL_ERROR_MILLIS));
            Machine {
                name: format!("replica-{index}"),
                process: None,
                clock: lab.machine_clock(Drift { rate_ppm: *rate_ppm, wall_offset: wall_error }),
                wall_error,
                correction: wall_error,
                stepped: false,
                starts: 0,
            }
        });
        let machines = machines.collect();
        let judge = Judge::new(lab.sandbox.follow(), JOBS.map(|(name, _, rules, _)| (name.to_owned(), rules)));
        Self {
            lab,
            rng,
            story,
            ledger,
            offices,
            machines,
            judge,
            around: Around::default(),
            violations: Vec::new(),
            stale_until: BootTime::default(),
            looks: 0,
        }
    }

    /// Creates the jobs, before anybody looks at them.
    pub async fn install(&self) {
        let client = self.lab.client();
        whole::install(&client).await;
        let jobs: Api<PeriodicJob> = Api::namespaced(client, NAMESPACE);
        for (name, spec, _, manner) in &JOBS {
            let spec = serde_json::from_str(spec).unwrap();
            jobs.create(&PostParams::default(), &whole::job(name, spec)).await.unwrap();
            self.ledger.manner(&format!("{NAMESPACE}/{name}"), manner.clone());
        }
    }

    /// Suspends a job, or takes that back: an edit like any other, in the middle of everything.
    pub async fn suspend(&self, job: &str, suspended: bool) {
        let jobs: Api<PeriodicJob> = Api::namespaced(self.lab.client(), NAMESPACE);
        let edit = Patch::Merge(json!({ "spec": { "suspend": suspended } }));
        jobs.patch(job, &PatchParams::default(), &edit).await.unwrap();
        self.story.tell("user", &format!("{} {job}", if suspended { "suspends" } else { "resumes" }));
    }

    /// Suspends every job.
    pub async fn suspend_all(&self) {
        for (name, ..) in &JOBS {
            self.suspend(name, true).await;
        }
    }

    /// Starts the replica of a machine. Only the very first one may know that the installation is fresh.
    pub fn start(&mut self, index: usize, fresh: bool) {
        let machine = &mut self.machines[index];
        machine.starts += 1;
        let (name, start) = (machine.name.clone(), machine.starts);
        let witness = Witness { name: name.clone(), start, offices: self.offices.clone() };
        let seed = self.lab.seed.wrapping_mul(1_000_003) ^ (index as u64) << 32 ^ start;
        let near = Distant::new(self.lab.sandbox.service(&name), ELECTION_LATENCY[index]);
        let election_api = ApiServer::from_service(near, NAMESPACE, machine.clock.clone());
        let replica = self.lab.replica_on(&name, machine.clock.clone(), election_api.clone(), |builder| {
            builder
                .lease_duration(LEASE_DURATION)
                .retry_period(RETRY_PERIOD)
                .stop_margin(STOP_MARGIN)
                .foreign_grace(FOREIGN_GRACE)
                .entropy(SeededEntropy::shared(seed))
                .observer(Arc::new(witness))
                .fresh_installation(move |_| async move { fresh })
        });
        let view = (replica.leadership(), replica.freezer.clone());
        self.offices.0.lock().unwrap().views.insert((name.clone(), start), view);
        probe(&replica, &self.ledger);
        self.story.tell(&name, "starts");
        let further = Distant::new(self.lab.sandbox.service(&name), JOBS_LATENCY[index]);
        let api = ApiServer::from_service(further, NAMESPACE, machine.clock.clone());
        let entropy = SeededEntropy::shared(!seed);
        let whole = Whole::start(replica, api, &election_api, &self.ledger, entropy, LEASE_DURATION);
        machine.process = Some(whole);
    }

    /// SIGKILL, or the end of a process that has ended by itself.
    pub fn kill(&mut self, index: usize) {
        let machine = &mut self.machines[index];
        if let Some(process) = machine.process.take() {
            process.replica.kill();
            self.offices.0.lock().unwrap().views.remove(&(machine.name.clone(), machine.starts));
            self.story.tell(&machine.name, "is killed");
        }
    }

    /// SIGTERM.
    pub fn terminate(&self, index: usize) -> Option<JoinHandle<Option<Released>>> {
        let machine = &self.machines[index];
        self.story.tell(&machine.name, "is told to stop");
        machine.process.as_ref().map(|process| process.terminate(DRAIN))
    }

    /// SIGSTOP.
    pub fn freeze(&self, index: usize) {
        let machine = &self.machines[index];
        self.story.tell(&machine.name, "is frozen");
        machine.process.iter().for_each(|process| process.replica.freezer.freeze());
    }

    /// SIGCONT.
    pub fn thaw(&self, index: usize) {
        let machine = &self.machines[index];
        self.story.tell(&machine.name, "is thawed");
        machine.process.iter().for_each(|process| process.replica.freezer.thaw());
    }

    /// Who is in office, by the guards.
    pub fn leader(&self) -> Option<usize> {
        self.machines.iter().position(Machine::leads)
    }

    /// A duration between the two, in whole milliseconds.
    pub fn draw(&mut self, least: Duration, most: Duration) -> Duration {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(self.rng.random_range(millis(least)..=millis(most)))
    }

    /// Lets time pass, with the judge looking at the guards and the time daemons at the clocks.
    pub async fn pass(&mut self, duration: Duration) {
        let end = self.lab.now() + duration;
        while self.lab.now() < end {
            self.lab.sleep(LOOK.min(end - self.lab.now())).await;
            self.look();
        }
    }

    /// Lets time pass until `condition` holds; false after `patience`.
    pub async fn pass_until(&mut self, patience: Duration, condition: impl Fn(&Self) -> bool) -> bool {
        let end = self.lab.now() + patience;
        while !condition(self) {
            if self.lab.now() >= end {
                return false;
            }
            self.lab.sleep(LOOK / 5).await;
            self.look();
        }
        true
    }

    pub fn violation(&mut self, what: String) {
        self.story.tell("judge", &what);
        self.violations.push(what);
    }

    fn look(&mut self) {
        self.looks += 1;
        let leaders: Vec<_> = self.machines.iter().filter(|machine| machine.leads()).collect();
        if leaders.len() > 1 {
            let names: Vec<_> = leaders.iter().map(|machine| machine.name.clone()).collect();
            self.violation(format!("{} are in office together", names.join(" and ")));
        }
        for (at, what) in self.ledger.take_story() {
            self.story.tell_of(at, "ledger", &what);
        }
        self.judge.look();
        if self.looks.is_multiple_of(LOOKS_PER_CORRECTION) {
            self.correct_clocks();
        }
    }

    /// What time daemons do: the rates of the machines' clocks are wrong, and what they show is set right all the time.
    pub fn correct_clocks(&mut self) {
        let truth = self.lab.clock.wall();
        for machine in &mut self.machines {
            if machine.stepped {
                continue;
            }
            machine.clock.step_wall(machine.correction);
            let error = machine.clock.wall().duration_since(truth);
            machine.correction += machine.wall_error - error;
            machine.clock.step_wall(machine.correction);
        }
    }
}

impl Machine {
    /// Steps the wall clock, which nobody corrects until [`Machine::trust_clock`].
    pub fn step_clock(&mut self, by: SignedDuration) {
        self.stepped = true;
        self.clock.step_wall(self.correction + by);
    }

    pub fn trust_clock(&mut self) {
        self.stepped = false;
    }

    fn leads(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.replica.leads())
    }
}

/// Gives signs of life to the ledger while leading, as part of the replica.
fn probe(replica: &Replica, ledger: &Ledger) {
    use tenure::tasks::Spawn;
    let (leadership, clock) = (replica.leadership(), replica.clock.clone());
    let (name, ledger) = (replica.name.clone(), ledger.clone());
    replica.freezer.spawn(Box::pin(async move {
        while let Some(term) = leadership.leading().await {
            while term.check().is_ok() {
                ledger.probe(&name, term.token());
                sleep(&*clock, PROBE).await;
            }
        }
    }));
}
