//! Thousands of elections among pure machines: a store with compare-and-swap, messages that are late or lost, replicas that
//! freeze or are cut off, clocks whose rates are wrong by up to ρ, and people who delete and edit the Lease.
//!
//! The judge stands outside: whenever a machine enters or prolongs a term, no other machine's guard may say yes.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    machine::{Action, Event, Lost, Machine, ReadOutcome, WriteOutcome},
    record::{Identity, Record},
    timing::{CLOCK_RATE_ERROR_PERCENT, Timing, TimingRequest},
};
use crate::clock::BootTime;

const REPLICAS: usize = 3;
const LEASE: Duration = Duration::from_secs(15);

/// True time, in nanoseconds.
type Instant = u64;

const MILLI: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MILLI;

#[derive(Debug, Clone)]
enum Request {
    Read { id: u64 },
    Create { write: u64, lease: Box<Lease> },
    Replace { write: u64, lease: Box<Lease> },
}

#[derive(Debug, Clone)]
enum Happening {
    Arrives(usize, Request, Fate),
    Reaches(usize, Event),
    Wakes(usize),
    Freezes(usize),
    Disturbs,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Answered,
    AnswerLost,
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

struct Replica {
    machine: Machine,
    rate_ppm: u64,
    valid_until: Option<BootTime>,
    frozen_until: Instant,
    cut_off_until: Instant,
    /// Events that wait for the thaw.
    wake: Option<BootTime>,
}

struct World {
    seed: u64,
    rng: StdRng,
    now: Instant,
    order: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    replicas: Vec<Replica>,
    stored: Option<Lease>,
    version: u64,
    objects: u64,
    newest_token: u64,
    terms: u64,
}

impl Replica {
    fn boot(&self, now: Instant) -> BootTime {
        BootTime::from_nanos(u64::try_from(u128::from(now) * u128::from(self.rate_ppm) / 1_000_000).unwrap_or(u64::MAX))
    }

    fn true_time(&self, boot: BootTime) -> Instant {
        u64::try_from((u128::from(boot.as_nanos()) * 1_000_000).div_ceil(u128::from(self.rate_ppm))).unwrap_or(u64::MAX)
    }

    fn may_act(&self, now: Instant) -> bool {
        self.valid_until.is_some_and(|until| self.boot(now) < until)
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let request = TimingRequest { lease_duration: LEASE, stop_margin: Duration::ZERO, ..TimingRequest::default() };
        let timing = Timing::new(request).expect("the times are safe");
        let error = u64::from(CLOCK_RATE_ERROR_PERCENT) * 10_000;
        let replicas = (0..REPLICAS)
            .map(|index| {
                let mut nonces = StdRng::seed_from_u64(seed ^ (index as u64 + 1) << 32);
                let machine = Machine::new(
                    ("ns", "main"),
                    timing,
                    Identity::new(&format!("pod-{index}"), "boot"),
                    Box::new(move || format!("{:016x}", nonces.random::<u64>())),
                    None,
                );
                // The extremes are the dangerous ones.
                let rate_ppm = match rng.random_range(0..4) {
                    0 => 1_000_000 - error,
                    1 => 1_000_000 + error,
                    _ => rng.random_range(1_000_000 - error..=1_000_000 + error),
                };
                Replica { machine, rate_ppm, valid_until: None, frozen_until: 0, cut_off_until: 0, wake: None }
            })
            .collect();
        let mut world = Self {
            seed,
            rng,
            now: 0,
            order: 0,
            queue: BinaryHeap::new(),
            replicas,
            stored: None,
            version: 100,
            objects: 0,
            newest_token: 0,
            terms: 0,
        };
        for index in 0..REPLICAS {
            world.schedule(0, Happening::Wakes(index));
        }
        world.schedule(20 * SECOND, Happening::Disturbs);
        world
    }

    fn schedule(&mut self, after: u64, happening: Happening) {
        self.order += 1;
        self.queue.push(Reverse(Scheduled { at: self.now + after, order: self.order, happening }));
    }

    fn delay(&mut self) -> u64 {
        match self.rng.random_range(0..10) {
            0 => self.rng.random_range(0..6 * SECOND),
            _ => self.rng.random_range(0..20 * MILLI),
        }
    }

    fn run(&mut self, until: Instant) {
        while let Some(Reverse(next)) = self.queue.pop() {
            if next.at > until {
                return;
            }
            self.now = next.at;
            match next.happening {
                Happening::Wakes(index) => {
                    let due = self.replicas[index].wake.is_none_or(|at| self.replicas[index].boot(self.now) >= at);
                    if due {
                        self.deliver(index, Event::Tick);
                    }
                }
                Happening::Reaches(index, event) => self.deliver(index, event),
                Happening::Arrives(index, request, fate) => self.serve(index, request, fate),
                Happening::Freezes(index) => {
                    self.replicas[index].frozen_until = self.now + self.rng.random_range(SECOND..40 * SECOND);
                }
                Happening::Disturbs => self.disturb(),
            }
        }
    }

    fn deliver(&mut self, index: usize, event: Event) {
        let frozen_until = self.replicas[index].frozen_until;
        if frozen_until > self.now {
            self.schedule(frozen_until - self.now, Happening::Reaches(index, event));
            return;
        }
        let now = self.now;
        let replica = &mut self.replicas[index];
        let boot = replica.boot(now);
        // The watchdog runs beside the loop, and may be first.
        if replica.valid_until.is_some_and(|until| boot >= until) {
            replica.valid_until = None;
        }
        let actions = replica.machine.step(
            event,
            boot,
            Timestamp::UNIX_EPOCH + SignedDuration::from_nanos(i64::try_from(now).unwrap_or(0)),
        );
        for action in actions {
            self.act(index, action);
        }
        let replica = &mut self.replicas[index];
        replica.wake = replica.machine.next_wake();
        if let Some(at) = replica.wake {
            let wake = replica.true_time(at.max(boot)).max(now + 1) - now;
            self.schedule(wake, Happening::Wakes(index));
        }
    }

    fn act(&mut self, index: usize, action: Action) {
        match action {
            Action::Read { id } => self.send(index, Request::Read { id }),
            Action::Create { write, lease } => self.send(index, Request::Create { write, lease }),
            Action::Replace { write, lease } => self.send(index, Request::Replace { write, lease }),
            Action::Lead(tenure) => {
                self.terms += 1;
                assert!(
                    tenure.token > self.newest_token,
                    "seed {}: token {} after {}",
                    self.seed,
                    tenure.token,
                    self.newest_token
                );
                self.newest_token = tenure.token;
                self.replicas[index].valid_until = Some(tenure.valid_until);
                self.judge(index);
            }
            Action::Extend { valid_until, .. } => {
                // A term that the watchdog has ended stays ended.
                if let Some(until) = &mut self.replicas[index].valid_until {
                    *until = valid_until.max(*until);
                    self.judge(index);
                } else {
                    self.schedule(0, Happening::Reaches(index, Event::Ended));
                }
            }
            Action::Revoke(lost) => {
                assert_ne!(lost, Lost::Released, "seed {}: nobody asked for it", self.seed);
                self.replicas[index].valid_until = None;
                self.schedule(0, Happening::Reaches(index, Event::WorkEnded));
            }
            // The watch of the model is not opened: it loses and delays events.
            Action::WatchAnew => {}
            Action::Retire => panic!("nobody asked for it"),
        }
    }

    fn judge(&self, index: usize) {
        for (other, replica) in self.replicas.iter().enumerate().filter(|(other, _)| *other != index) {
            assert!(
                !(replica.may_act(self.now) && self.replicas[index].may_act(self.now)),
                "seed {}: replicas {index} and {other} may both act at {} ms",
                self.seed,
                self.now / MILLI,
            );
        }
    }

    fn send(&mut self, index: usize, request: Request) {
        let cut_off = self.replicas[index].cut_off_until > self.now;
        let fate = match self.rng.random_range(0..20) {
            0 => Fate::AnswerLost,
            _ => Fate::Answered,
        };
        if cut_off || self.rng.random_range(0..20) == 0 {
            // Lost before the server. A reset is noticed, a hang is not.
            if let (Some(write), true) = (write_of(&request), self.rng.random_bool(0.5)) {
                let after = self.delay();
                self.schedule(
                    after,
                    Happening::Reaches(index, Event::Answered { write, outcome: WriteOutcome::Unclear }),
                );
            }
            return;
        }
        let after = self.delay();
        self.schedule(after, Happening::Arrives(index, request, fate));
    }

    fn serve(&mut self, index: usize, request: Request, fate: Fate) {
        let event = match request {
            Request::Read { id } => {
                let outcome = self.stored.clone().map_or(ReadOutcome::Absent, |lease| ReadOutcome::Found(read(lease)));
                Event::Read { id, outcome }
            }
            Request::Create { write, lease } => {
                let outcome = if self.stored.is_some() {
                    WriteOutcome::Conflict
                } else {
                    self.objects += 1;
                    let mut lease = *lease;
                    lease.metadata.uid = Some(format!("uid-{}", self.objects));
                    WriteOutcome::Stored(self.commit(lease))
                };
                Event::Answered { write, outcome }
            }
            Request::Replace { write, lease } => {
                let current = self.stored.as_ref().map(|stored| &stored.metadata);
                let same = current.is_some_and(|current| {
                    current.uid == lease.metadata.uid && current.resource_version == lease.metadata.resource_version
                });
                let outcome = if same { WriteOutcome::Stored(self.commit(*lease)) } else { WriteOutcome::Conflict };
                Event::Answered { write, outcome }
            }
        };
        let after = self.delay();
        match (fate, &event) {
            (Fate::Answered, _) => self.schedule(after, Happening::Reaches(index, event)),
            (Fate::AnswerLost, Event::Answered { write, .. }) => {
                let unclear = Event::Answered { write: *write, outcome: WriteOutcome::Unclear };
                self.schedule(after, Happening::Reaches(index, unclear));
            }
            (Fate::AnswerLost, _) => {}
        }
    }

    fn commit(&mut self, mut lease: Lease) -> Record {
        self.version += self.rng.random_range(1..5);
        lease.metadata.resource_version = Some(self.version.to_string());
        self.stored = Some(lease.clone());
        for index in 0..REPLICAS {
            if self.replicas[index].cut_off_until <= self.now && self.rng.random_range(0..10) > 0 {
                let after = self.delay();
                self.schedule(after, Happening::Reaches(index, Event::Watched(read(lease.clone()))));
            }
        }
        read(lease)
    }

    fn disturb(&mut self) {
        let victim = self.rng.random_range(0..REPLICAS);
        let leader = (0..REPLICAS).find(|index| self.replicas[*index].may_act(self.now)).unwrap_or(victim);
        match self.rng.random_range(0..8) {
            0..=2 => self.schedule(0, Happening::Freezes(leader)),
            3 => self.schedule(0, Happening::Freezes(victim)),
            4 => self.replicas[leader].cut_off_until = self.now + self.rng.random_range(SECOND..60 * SECOND),
            5 => self.replicas[victim].cut_off_until = self.now + self.rng.random_range(SECOND..60 * SECOND),
            6 => self.delete(),
            _ => self.edit(),
        }
        let after = self.rng.random_range(SECOND..40 * SECOND);
        self.schedule(after, Happening::Disturbs);
    }

    fn delete(&mut self) {
        if self.stored.take().is_some() {
            self.version += 1;
            for index in 0..REPLICAS {
                if self.replicas[index].cut_off_until <= self.now {
                    let after = self.delay();
                    let gone = Event::WatchedGone { resource_version: self.version };
                    self.schedule(after, Happening::Reaches(index, gone));
                }
            }
        }
    }

    fn edit(&mut self) {
        let Some(mut lease) = self.stored.clone() else { return };
        let what = self.rng.random_range(0..4);
        let spec = lease.spec.get_or_insert_default();
        match what {
            0 => spec.holder_identity = Some(String::new()),
            1 => spec.holder_identity = Some("bob".to_owned()),
            2 => spec.lease_duration_seconds = Some(1),
            _ => {
                lease.metadata.labels.get_or_insert_default().insert("touched".to_owned(), self.now.to_string());
            }
        }
        self.commit(lease);
    }
}

fn write_of(request: &Request) -> Option<u64> {
    match request {
        Request::Read { .. } => None,
        Request::Create { write, .. } | Request::Replace { write, .. } => Some(*write),
    }
}

fn read(lease: Lease) -> Record {
    Record::read(lease).expect("a stored Lease can be read")
}

/// One simulated hour per seed.
const HOUR: Instant = 3_600 * SECOND;

#[test]
fn no_two_guards_say_yes_whatever_happens_to_messages_clocks_and_the_lease() {
    let base: u64 = std::env::var("TENURE_MODEL_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let seeds: u64 = std::env::var("TENURE_MODEL_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let mut terms = 0;
    for seed in base..base + seeds {
        let mut world = World::new(seed);
        world.run(HOUR);
        assert!(world.terms > 20, "seed {seed}: only {} terms in an hour", world.terms);
        terms += world.terms;
    }
    println!("seeds {base}..{}: {terms} terms", base + seeds);
}
