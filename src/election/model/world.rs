//! The world of the model: true time, messages, and replicas with clocks of their own.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    foreign::Foreign,
    judge::Judge,
    store::{Store, read},
};
use crate::{
    clock::BootTime,
    election::{
        machine::{Action, Contention, Event, Machine, ReadOutcome, WriteOutcome},
        record::{FIELD_MANAGER, Identity},
        timing::{CLOCK_RATE_ERROR_PERCENT, Timing, TimingRequest},
    },
};

pub(super) const REPLICAS: usize = 3;

/// True time, in nanoseconds.
pub(super) type Instant = u64;

pub(super) const MILLI: u64 = 1_000_000;
pub(super) const SECOND: u64 = 1_000 * MILLI;

/// What kind of world it is.
#[derive(Debug, Clone, Copy)]
#[allow(clippy::struct_excessive_bools, reason = "each switches one kind of trouble on, and they combine")]
pub(super) struct Setting {
    /// Messages are lost, and a tenth of them is slow.
    pub(super) lossy: bool,
    /// How long every answer takes, half of it each way; a few milliseconds if zero.
    pub(super) latency: Duration,
    pub(super) mixed_leases: bool,
    /// One API server of three answers every request with an error at once.
    pub(super) one_errs: bool,
    /// Whether there is a limit on times without a leader.
    pub(super) live: bool,
}

impl Setting {
    pub(super) const LEASE: Duration = Duration::from_secs(15);
    pub(super) const CHAOS: Self =
        Self { lossy: true, latency: Duration::ZERO, mixed_leases: false, one_errs: false, live: true };
    pub(super) const CALM: Self = Self { lossy: false, ..Self::CHAOS };

    /// How long nobody may lead while a replica is healthy: by the slowest clock a lease, or what a client of another make
    /// gets, and a second; and what three answers take on the way: of the sign that is waited for, of a question, of the
    /// write that acquires.
    fn bound(self, longest_lease: Duration) -> Option<u64> {
        let grace = TimingRequest::default().foreign_grace;
        let slowest = (longest_lease + grace) * 100 / (100 - CLOCK_RATE_ERROR_PERCENT);
        let answers = self.latency.max(Duration::from_millis(2 * QUICK_MAX / MILLI)) * 3;
        // One that is lost, or refused by the server that errs, costs a deadline and a pause.
        let tries = match (self.lossy, self.one_errs) {
            (true, _) => Duration::from_mins(1),
            (false, true) => Duration::from_secs(8),
            (false, false) => Duration::ZERO,
        };
        let bound = slowest + Duration::from_secs(1) + answers + tries;
        self.live.then(|| u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX))
    }
}

/// The longest lease of a world of different ones, by the slowest clock and with all that comes on top.
const TAMPERED_FOR: u64 = 80 * SECOND;

/// How long after a connection is possible again a watch that was lost is opened.
const WATCH_REOPENS: u64 = SECOND;

/// One way of a quick message, at most.
const QUICK_MAX: u64 = 20 * MILLI;

#[derive(Debug, Clone)]
pub(super) enum Request {
    Read { id: u64 },
    Create { write: u64, lease: Box<Lease> },
    Replace { write: u64, lease: Box<Lease> },
}

#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "a few dozen are queued")]
pub(super) enum Happening {
    /// A request of a process, by number, reaches the server.
    Arrives(usize, u32, Request, Fate),
    /// Something reaches a process.
    Reaches(usize, u32, Event),
    Wakes(usize, u32),
    WatchOpens(usize, u32),
    Starts(usize),
    Disturbs,
    ForeignTries(u32),
    ForeignGoesOn,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fate {
    Answered,
    AnswerLost,
    /// The server that errs has it.
    Refused,
}

struct Scheduled {
    at: Instant,
    order: u64,
    happening: Happening,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// A machine on which one process after the other takes part.
#[allow(clippy::struct_excessive_bools, reason = "what is done to it from outside, each on its own")]
pub(super) struct Replica {
    pub(super) machine: Machine,
    /// Which process: messages to the ones before it are for nobody.
    pub(super) process: u32,
    pub(super) running: bool,
    pod: u32,
    /// The name of its place, if it has one; it changes when a process leaves office alive.
    place: Option<u32>,
    timing: Timing,
    rate_ppm: u64,
    pub(super) valid_until: Option<BootTime>,
    pub(super) frozen_until: Instant,
    pub(super) cut_off_until: Instant,
    pub(super) stopping: bool,
    pub(super) aside_until: Instant,
    pub(super) watch_dead: bool,
    drain_asked: bool,
    /// The API server of three that its connection leads to.
    server: usize,
    wake: Option<BootTime>,
    pub(super) healthy_since: Option<Instant>,
}

pub(super) struct World {
    pub(super) seed: u64,
    pub(super) setting: Setting,
    pub(super) rng: StdRng,
    pub(super) now: Instant,
    order: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    pub(super) replicas: Vec<Replica>,
    pub(super) store: Store,
    pub(super) foreign: Foreign,
    pub(super) judge: Judge,
    /// When somebody last changed what the Lease says of its holder.
    pub(super) tampered: Instant,
    connections: usize,
    boots: u64,
}

impl Replica {
    fn boot(&self, now: Instant) -> BootTime {
        BootTime::from_nanos(u64::try_from(u128::from(now) * u128::from(self.rate_ppm) / 1_000_000).unwrap_or(u64::MAX))
    }

    fn true_time(&self, boot: BootTime) -> Instant {
        u64::try_from((u128::from(boot.as_nanos()) * 1_000_000).div_ceil(u128::from(self.rate_ppm))).unwrap_or(u64::MAX)
    }

    pub(super) fn may_act(&self, now: Instant) -> bool {
        self.running && self.valid_until.is_some_and(|until| self.boot(now) < until)
    }

    pub(super) fn is_healthy(&self, now: Instant) -> bool {
        let reachable = if self.cut_off_until == 0 { 0 } else { self.cut_off_until + WATCH_REOPENS };
        self.running && !self.stopping && now >= self.frozen_until.max(reachable).max(self.aside_until)
    }

    fn place_name(&self, index: usize) -> Option<String> {
        self.place.map(|place| format!("place-{index}-{}-{place}", self.pod))
    }
}

impl World {
    pub(super) fn new(seed: u64, setting: Setting) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let error = u64::from(CLOCK_RATE_ERROR_PERCENT) * 10_000;
        // Certainly nobody has led: some worlds tell their replicas.
        let fresh = rng.random_bool(0.3);
        let mut longest = Duration::ZERO;
        let replicas: Vec<_> = (0..REPLICAS)
            .map(|index| {
                let lease = match rng.random_range(0..3) {
                    _ if !setting.mixed_leases => Setting::LEASE,
                    0 => Setting::LEASE,
                    1 => Setting::LEASE * 4,
                    _ => Setting::LEASE / 3,
                };
                longest = longest.max(lease);
                let request =
                    TimingRequest { lease_duration: lease, stop_margin: Duration::ZERO, ..TimingRequest::default() };
                let timing = Timing::new(request).expect("the times are safe");
                let place = rng.random_bool(0.8).then_some(0);
                // The extremes are the dangerous ones.
                let rate_ppm = match rng.random_range(0..4) {
                    0 => 1_000_000 - error,
                    1 => 1_000_000 + error,
                    _ => rng.random_range(1_000_000 - error..=1_000_000 + error),
                };
                let fresh_until = fresh.then(|| BootTime::from_nanos(2 * SECOND));
                Replica {
                    machine: process((index, 0), index as u64, None, timing, fresh_until, seed),
                    process: 0,
                    running: true,
                    pod: 0,
                    place,
                    timing,
                    rate_ppm,
                    valid_until: None,
                    frozen_until: 0,
                    cut_off_until: 0,
                    stopping: false,
                    aside_until: 0,
                    watch_dead: false,
                    drain_asked: false,
                    server: index,
                    wake: None,
                    healthy_since: None,
                }
            })
            .collect();
        let mut world = Self {
            seed,
            setting,
            rng,
            now: 0,
            order: 0,
            queue: BinaryHeap::new(),
            replicas,
            store: Store::starting_at(100),
            foreign: Foreign::default(),
            judge: Judge::new(setting.bound(longest)),
            tampered: 0,
            connections: REPLICAS,
            boots: REPLICAS as u64,
        };
        for index in 0..REPLICAS {
            let name = world.replicas[index].place_name(index);
            world.replicas[index].machine.move_to(name);
            world.schedule(0, Happening::Wakes(index, 0));
        }
        world.schedule(20 * SECOND, Happening::Disturbs);
        world
    }

    /// Whether every replica has seen the holder that the Lease shows, and so its duration.
    pub(super) fn everybody_knows(&self) -> bool {
        let holder = self.store.get().and_then(|record| record.content.holder);
        self.replicas
            .iter()
            .filter(|replica| replica.running)
            .all(|replica| replica.machine.holder() == holder.as_ref())
    }

    pub(super) fn schedule(&mut self, after: u64, happening: Happening) {
        self.order += 1;
        self.queue.push(Reverse(Scheduled { at: self.now + after, order: self.order, happening }));
    }

    pub(super) fn wall(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_nanos(i64::try_from(self.now).unwrap_or(0))
    }

    /// How long a message takes one way.
    fn delay(&mut self) -> u64 {
        let half = u64::try_from(self.setting.latency.as_nanos()).unwrap_or(u64::MAX) / 2;
        if half > 0 {
            return half - half / 50 + self.rng.random_range(0..half / 50);
        }
        match self.rng.random_range(0..10) {
            0 if self.setting.lossy => self.rng.random_range(0..6 * SECOND),
            _ => self.rng.random_range(0..QUICK_MAX),
        }
    }

    pub(super) fn run(&mut self, until: Instant) {
        while let Some(Reverse(next)) = self.queue.pop() {
            if next.at > until {
                return;
            }
            self.now = next.at;
            match next.happening {
                Happening::Wakes(index, process) => {
                    let due = self.replicas[index].wake.is_none_or(|at| self.replicas[index].boot(self.now) >= at);
                    if due {
                        self.deliver(index, process, Event::Tick);
                    }
                }
                Happening::Reaches(index, process, event) => self.deliver(index, process, event),
                Happening::Arrives(index, process, request, fate) => self.serve(index, process, request, fate),
                Happening::WatchOpens(index, process) => self.open_watch(index, process),
                Happening::Starts(index) => self.start(index),
                Happening::Disturbs => self.disturb(),
                Happening::ForeignTries(left) => self.foreign_tries(left),
                Happening::ForeignGoesOn => self.foreign_goes_on(),
            }
            Judge::look(self);
        }
    }

    pub(super) fn deliver(&mut self, index: usize, process: u32, event: Event) {
        let now = self.now;
        let replica = &mut self.replicas[index];
        if !replica.running || replica.process != process {
            return;
        }
        if replica.frozen_until > now {
            let after = replica.frozen_until - now;
            self.schedule(after, Happening::Reaches(index, process, event));
            return;
        }
        // What is asked of a replica last counts, in whatever order a thaw brings it.
        let aside = if now < replica.aside_until { Contention::StandAside } else { Contention::Contend };
        let event = if matches!(event, Event::Contend(_)) { Event::Contend(aside) } else { event };
        let boot = replica.boot(now);
        // The watchdog runs beside the loop, and may be first.
        if replica.valid_until.is_some_and(|until| boot >= until) {
            replica.valid_until = None;
        }
        let wall = Timestamp::UNIX_EPOCH + SignedDuration::from_nanos(i64::try_from(now).unwrap_or(0));
        let actions = replica.machine.step(event, boot, wall);
        for action in actions {
            self.act(index, action);
        }
        self.drain(index);
        let replica = &mut self.replicas[index];
        replica.wake = replica.machine.next_wake();
        if let Some(at) = replica.wake {
            let wake = replica.true_time(at.max(boot)).max(now + 1) - now;
            self.schedule(wake, Happening::Wakes(index, process));
        }
    }

    fn act(&mut self, index: usize, action: Action) {
        let process = self.replicas[index].process;
        match action {
            Action::Read { id } => self.send(index, Request::Read { id }),
            Action::Create { write, lease } => self.send(index, Request::Create { write, lease }),
            Action::Replace { write, lease } => self.send(index, Request::Replace { write, lease }),
            Action::Lead(tenure) => {
                self.judge.note_token(self.seed, tenure.token);
                self.replicas[index].valid_until = Some(tenure.valid_until);
                Judge::judge(self, index);
            }
            Action::Extend { valid_until, .. } => {
                // A term that the watchdog has ended stays ended.
                if let Some(until) = &mut self.replicas[index].valid_until {
                    *until = valid_until.max(*until);
                    Judge::judge(self, index);
                } else {
                    self.schedule(0, Happening::Reaches(index, process, Event::Ended));
                }
            }
            Action::Revoke(_) => {
                let replica = &mut self.replicas[index];
                replica.valid_until = None;
                replica.drain_asked = false;
                replica.place = replica.place.map(|place| place + 1);
                let place = replica.place_name(index);
                replica.machine.move_to(place);
                // Most work ends at once, some does not.
                let after = if self.rng.random_bool(0.8) { 0 } else { self.rng.random_range(0..3 * SECOND) };
                self.schedule(after, Happening::Reaches(index, process, Event::WorkEnded));
            }
            Action::WatchAnew => {
                let after = self.delay();
                self.schedule(after, Happening::WatchOpens(index, process));
            }
            Action::Retire => {
                let replica = &mut self.replicas[index];
                assert!(replica.stopping, "seed {}: nobody asked for it", self.seed);
                replica.running = false;
                replica.pod += 1;
                let after = self.rng.random_range(0..10 * SECOND);
                self.schedule(after, Happening::Starts(index));
            }
        }
    }

    /// A leader that is to go ends its work first.
    fn drain(&mut self, index: usize) {
        let replica = &mut self.replicas[index];
        if replica.machine.wants_drain() && !replica.drain_asked {
            replica.drain_asked = true;
            let process = replica.process;
            let after = self.rng.random_range(0..2 * SECOND);
            self.schedule(after, Happening::Reaches(index, process, Event::Drained));
        }
    }

    /// Another process on the same machine, in the same pod or in another one.
    fn start(&mut self, index: usize) {
        // Who lowers the duration must not let a replica that has never seen the longer one loose on a Lease that shows it
        // no more.
        let told_by = self.tampered + TAMPERED_FOR;
        if self.setting.mixed_leases && self.tampered > 0 && self.now < told_by {
            self.schedule(told_by - self.now, Happening::Starts(index));
            return;
        }
        let boots = self.boots;
        self.boots += 1;
        let replica = &mut self.replicas[index];
        replica.process += 1;
        replica.running = true;
        replica.stopping = false;
        replica.drain_asked = false;
        replica.watch_dead = false;
        replica.frozen_until = 0;
        replica.healthy_since = None;
        replica.valid_until = None;
        let place = replica.place_name(index);
        replica.machine = process((index, replica.pod), boots, place, replica.timing, None, self.seed);
        let process = replica.process;
        self.deliver(index, process, Event::Tick);
        if let Some(left) = self.replicas[index].aside_until.checked_sub(self.now) {
            self.deliver(index, process, Event::Contend(Contention::StandAside));
            self.schedule(left, Happening::Reaches(index, process, Event::Contend(Contention::Contend)));
        }
        self.open_watch(index, process);
    }

    fn send(&mut self, index: usize, request: Request) {
        let lossy = self.setting.lossy;
        let (process, server) = (self.replicas[index].process, self.replicas[index].server);
        let cut_off = self.replicas[index].cut_off_until > self.now;
        // It is given up after one lease duration.
        let patience = self.replicas[index].timing.lease().as_nanos();
        let given_up = match &request {
            Request::Read { id } => Event::Read { id: *id, outcome: ReadOutcome::Failed { retry_after: None } },
            Request::Create { write, .. } | Request::Replace { write, .. } => {
                Event::Answered { write: *write, outcome: WriteOutcome::Unclear }
            }
        };
        self.schedule(
            u64::try_from(patience).unwrap_or(u64::MAX),
            Happening::Reaches(index, process, given_up.clone()),
        );
        if cut_off || (lossy && self.rng.random_range(0..20) == 0) {
            // Lost before the server. A reset is noticed, a hang is not.
            if self.rng.random_bool(0.5) {
                let after = self.delay();
                self.schedule(after, Happening::Reaches(index, process, given_up));
            }
            return;
        }
        let fate = match self.rng.random_range(0..20) {
            _ if self.setting.one_errs && server == 0 => Fate::Refused,
            0 if lossy => Fate::AnswerLost,
            _ => Fate::Answered,
        };
        let after = self.delay();
        self.schedule(after, Happening::Arrives(index, process, request, fate));
    }

    fn serve(&mut self, index: usize, process: u32, request: Request, fate: Fate) {
        let step = self.rng.random_range(1..5);
        let version = self.store.version;
        let event = match request {
            _ if fate == Fate::Refused => self.refuse(index, &request),
            Request::Read { id } => {
                let outcome = self.store.get().map_or(ReadOutcome::Absent, ReadOutcome::Found);
                Event::Read { id, outcome }
            }
            Request::Create { write, lease } => Event::Answered { write, outcome: self.store.create(*lease, step) },
            Request::Replace { write, lease } => Event::Answered { write, outcome: self.store.replace(*lease, step) },
        };
        if self.store.version > version {
            self.tell();
        }
        let after = self.delay();
        match (fate, &event) {
            (Fate::Answered | Fate::Refused, _) => self.schedule(after, Happening::Reaches(index, process, event)),
            (Fate::AnswerLost, Event::Answered { write, .. }) => {
                let unclear = Event::Answered { write: *write, outcome: WriteOutcome::Unclear };
                self.schedule(after, Happening::Reaches(index, process, unclear));
            }
            (Fate::AnswerLost, _) => {}
        }
    }

    /// An error comes at once, and the next request goes by another connection.
    fn refuse(&mut self, index: usize, request: &Request) -> Event {
        self.connections += 1;
        self.replicas[index].server = self.connections % 3;
        let outcome =
            if self.rng.random_bool(0.5) { WriteOutcome::Unclear } else { WriteOutcome::Refused { retry_after: None } };
        match request {
            Request::Read { id } => Event::Read { id: *id, outcome: ReadOutcome::Failed { retry_after: None } },
            Request::Create { write, .. } | Request::Replace { write, .. } => {
                Event::Answered { write: *write, outcome }
            }
        }
    }

    /// Stores what somebody writes over whatever there is.
    pub(super) fn commit(&mut self, lease: Lease, manager: &str) {
        debug_assert_ne!(manager, FIELD_MANAGER, "electors write by compare-and-swap");
        let step = self.rng.random_range(1..5);
        let wall = self.wall();
        self.store.commit(lease, (manager, wall), step);
        self.judge.disturbed = self.now;
        self.judge.written = self.now;
        self.tell();
    }

    /// Sends what the Lease shows now to every watch.
    pub(super) fn tell(&mut self) {
        self.judge.changed = self.now;
        for index in 0..REPLICAS {
            let replica = &self.replicas[index];
            let process = replica.process;
            let heard = replica.running && replica.cut_off_until <= self.now && !replica.watch_dead;
            if !heard || (self.setting.lossy && self.rng.random_range(0..10) == 0) {
                continue;
            }
            let event = match self.store.lease() {
                Some(lease) => Event::Watched(read(lease.clone())),
                None => Event::WatchedGone { resource_version: self.store.version },
            };
            let after = self.delay();
            self.schedule(after, Happening::Reaches(index, process, event));
        }
    }

    /// A watch that is opened begins with the Lease as it is.
    fn open_watch(&mut self, index: usize, process: u32) {
        let replica = &mut self.replicas[index];
        if replica.process != process {
            return;
        }
        if let Some(left) = replica.cut_off_until.checked_sub(self.now).filter(|left| *left > 0) {
            let after = left + self.rng.random_range(0..WATCH_REOPENS);
            self.schedule(after, Happening::WatchOpens(index, process));
            return;
        }
        replica.watch_dead = false;
        if let Some(record) = self.store.get() {
            let after = self.delay();
            self.schedule(after, Happening::Reaches(index, process, Event::Watched(record)));
        }
    }
}

fn process(
    (index, pod): (usize, u32),
    boot: u64,
    place: Option<String>,
    timing: Timing,
    fresh_until: Option<BootTime>,
    seed: u64,
) -> Machine {
    let mut nonces = StdRng::seed_from_u64(seed ^ ((boot + 1) << 32));
    let identity = Identity::new(&format!("pod-{index}-{pod}"), &format!("{boot:08x}")).in_place(place);
    Machine::new(
        ("ns", "main"),
        timing,
        identity,
        Box::new(move || format!("{:016x}", nonces.random::<u64>())),
        fresh_until,
    )
}

/// Chooses by weight.
pub(super) fn pick<T: Copy + Ord>(rng: &mut StdRng, weights: &BTreeMap<T, u32>) -> T {
    let mut left = rng.random_range(0..weights.values().sum());
    for (choice, weight) in weights {
        if left < *weight {
            return *choice;
        }
        left -= weight;
    }
    unreachable!("the weights sum up")
}
