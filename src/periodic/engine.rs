//! The loop of the scheduler: it hears the watch, the election, the clock and the answers, and takes each job's next step.
//!
//! It is one task that owns everything it knows about jobs, so that there is nothing to lock and the order of decisions
//! follows from the order of events. Requests and attempts run beside it and come back as events. A wake-up by the time of
//! day re-reads the clock at least every second, because the wall clock may be stepped.

mod intake;
mod ownership;
mod requests;
mod shown;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use kube::{Client, runtime::watcher};
use tokio::sync::watch;

use ownership::Ownership;

use super::{
    adoption::{LeaseName, Seen},
    alarms::Alarms,
    feed::Feed,
    job::{Job, Planning, Reading, Run, RunState, Step, Surroundings, WriteKind},
    observer::Observer,
    run::Ended,
    scheduler::{ClockSkew, SchedulerParts, SchedulerState},
    skew::Skew,
    store::{ReadAnswer, WriteAnswer},
};
use crate::{
    action::{Action, JobRef, Trial},
    api::{Instant, PeriodicJob, TermRef},
    apiserver::{ApiServer, DateSeen},
    clock::{BootTime, SharedClock},
    election::{Leadership, Standing, Term, Work},
    entropy::SharedEntropy,
    item::Item,
    tasks::Tasks,
};

/// The loop's state.
pub(super) struct Engine {
    pub(super) clock: SharedClock,
    pub(super) entropy: SharedEntropy,
    pub(super) tasks: Tasks,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) action: Arc<dyn Action>,
    pub(super) jobs: BTreeMap<JobRef, Job>,
    pub(super) office: Option<Office>,
    pub(super) doings: FuturesUnordered<BoxFuture<'static, Event>>,
    pub(super) planning: Planning,
    pub(super) unreadable: BTreeSet<JobRef>,
    api: ApiServer,
    facts: Client,
    leadership: Leadership,
    standing: watch::Receiver<Standing>,
    dates: Vec<watch::Receiver<Option<DateSeen>>>,
    feed: Feed,
    pub(super) controller: String,
    pub(super) ownership: Ownership,
    catch_up_pause: Duration,
    next_catch_up: BootTime,
    alarms: Alarms,
    requests: usize,
    /// Those of them that are creations which are only tried.
    pub(super) trials: usize,
    /// Since when the replica stops.
    pub(super) draining_since: Option<BootTime>,
    queue: VecDeque<JobRef>,
    queued: BTreeSet<JobRef>,
    listed: Option<BTreeSet<JobRef>>,
    skew: Skew,
    state: watch::Sender<SchedulerState>,
    pub(super) drain: watch::Receiver<Option<BootTime>>,
    /// Whether to plan though the wall clock is wrong.
    anyway: watch::Receiver<bool>,
    cut_off: bool,
    elector_gone: bool,
    published: BootTime,
    shown_is_stale: bool,
    write_prefix: String,
    writes: u64,
}

/// A term in office.
pub(super) struct Office {
    pub(super) term: Term,
    pub(super) name: TermRef,
    gated: Client,
}

/// What comes back from a request or an attempt.
#[derive(Debug)]
pub(super) enum Event {
    /// `floor` is the newest version that was known when the read was sent.
    Read {
        job: JobRef,
        uid: String,
        floor: u64,
        answer: ReadAnswer,
    },
    /// `hold` is let go when what the answer says has been taken in, and holds of its own.
    Wrote {
        job: JobRef,
        uid: String,
        kind: WriteKind,
        answer: WriteAnswer,
        hold: Option<Work>,
    },
    Ended {
        job: JobRef,
        uid: String,
        run_id: String,
        ended: Ended,
    },
    TriedOut {
        job: JobRef,
        uid: String,
        generation: i64,
        trial: Trial,
    },
    /// `job` is the one, with its UID, that was not claimed because of what was seen.
    Looked {
        lease: LeaseName,
        sent: BootTime,
        seen: Result<Seen, String>,
        job: Option<(JobRef, String)>,
    },
}

#[derive(Debug)]
enum Turn {
    Standing,
    ElectorGone,
    Drain,
    Event(Box<Event>),
    Watch(Box<watcher::Event<Item<PeriodicJob>>>),
    Tick,
}

/// How many requests may be under way at once: enough to keep a leader of 10,000 jobs busy, and few enough that an API
/// server's fairness queue does not stretch each answer.
const REQUESTS_MAX: usize = 64;

/// A wake-up by the time of day re-reads the clock at least this often.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How often the state is shown at most.
const SHOWN_EVERY: Duration = Duration::from_millis(250);

/// What remains of the drain time for recording what was cut off.
const RECORDING_TIME: Duration = Duration::from_secs(1);

impl Engine {
    pub(super) fn new(
        parts: SchedulerParts,
        state: watch::Sender<SchedulerState>,
        drain: watch::Receiver<Option<BootTime>>,
        anyway: watch::Receiver<bool>,
    ) -> Self {
        let mut dates = parts.dates;
        dates.push(parts.api.date());
        let rate = parts.settings.catch_up_rate.max(1);
        Self {
            jobs: BTreeMap::new(),
            office: None,
            doings: FuturesUnordered::new(),
            planning: Planning::Open,
            unreadable: BTreeSet::new(),
            facts: parts.api.client(),
            standing: parts.leadership.watch(),
            leadership: parts.leadership,
            dates,
            feed: Feed::new(&parts.api, &parts.scope, parts.clock.clone(), parts.entropy.clone()),
            controller: parts.controller,
            ownership: Ownership::new(parts.class, parts.adopt_from, parts.adopt_patience),
            catch_up_pause: Duration::from_secs(1) / rate,
            next_catch_up: parts.clock.boot(),
            alarms: Alarms::default(),
            requests: 0,
            trials: 0,
            draining_since: None,
            queue: VecDeque::new(),
            queued: BTreeSet::new(),
            listed: None,
            skew: Skew::new(parts.settings.max_clock_skew),
            state,
            drain,
            anyway,
            cut_off: false,
            elector_gone: false,
            published: parts.clock.boot(),
            shown_is_stale: true,
            write_prefix: parts.entropy.nonce(),
            writes: 0,
            api: parts.api,
            clock: parts.clock,
            entropy: parts.entropy,
            tasks: parts.tasks,
            observer: parts.observer,
            action: parts.action,
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            self.hear_the_time();
            self.look_at_the_election();
            self.look_at_the_clock();
            self.look_at_predecessors();
            self.publish();
            if self.is_over() {
                return;
            }
            match self.next_turn().await {
                Turn::Standing | Turn::Drain => {}
                Turn::ElectorGone => self.elector_gone = true,
                Turn::Event(event) => self.on_event(*event),
                Turn::Watch(event) => self.on_watch(*event),
                Turn::Tick => {
                    for job in self.alarms.take_due(self.now(), self.clock.boot()) {
                        self.advance(&job);
                    }
                }
            }
        }
    }

    async fn next_turn(&mut self) -> Turn {
        let sleep = self.sleep();
        let term = self.office.as_ref().map(|office| office.term.clone());
        tokio::select! {
            biased;
            () = self.leadership.stopping(), if self.planning == Planning::Open => Turn::Drain,
            changed = self.standing.changed(), if !self.elector_gone => if changed.is_ok() { Turn::Standing } else { Turn::ElectorGone },
            () = ended(term) => Turn::Standing,
            Ok(()) = self.drain.changed() => Turn::Drain,
            Ok(()) = self.anyway.changed() => Turn::Standing,
            Some(event) = self.doings.next() => Turn::Event(Box::new(event)),
            event = self.feed.next() => Turn::Watch(Box::new(event)),
            () = sleep => Turn::Tick,
        }
    }

    /// Waits until the first alarm. By the time of day it waits a second at most: that clock may be stepped.
    fn sleep(&self) -> BoxFuture<'static, ()> {
        let boot = self.clock.boot();
        let mut until = self.alarms.first_boot();
        let mut sooner = |at: BootTime| until = Some(until.map_or(at, |known| known.min(at)));
        if let Some(first) = self.alarms.first_wall() {
            let left = first.timestamp().duration_since(self.skew.now(&*self.clock));
            let left = Duration::try_from(left).unwrap_or_default();
            sooner(boot + left.min(LOOK_AGAIN));
        }
        if self.office.is_some() || self.state.borrow().clock_skew.is_some() || self.shown_is_stale {
            sooner(boot + LOOK_AGAIN);
        }
        if let Some(deadline) = *self.drain.borrow() {
            let cut_at = deadline.saturating_sub(RECORDING_TIME);
            sooner(if self.cut_off { deadline } else { cut_at });
        }
        match until {
            Some(until) => self.clock.sleep_until(until),
            None => std::future::pending().boxed(),
        }
    }

    /// The time of day for decisions.
    pub(super) fn now(&self) -> Instant {
        Instant::new(self.skew.now(&*self.clock))
    }

    fn look_at_the_election(&mut self) {
        let in_office = match &*self.standing.borrow_and_update() {
            Standing::Leading(term) if term.check().is_ok() => Some(term.clone()),
            _ => None,
        };
        if self.office.as_ref().map(|office| &office.term) == in_office.as_ref() {
            return;
        }
        if self.office.take().is_some() {
            self.leave_office();
        }
        if let Some(term) = in_office {
            self.enter_office(term);
        }
    }

    fn enter_office(&mut self, term: Term) {
        let name = TermRef { token: term.token(), nonce: term.nonce().to_owned() };
        tracing::info!(token = name.token, jobs = self.jobs.len(), "Jobs are scheduled here");
        self.office = Some(Office { gated: self.api.gated_client(&term.guard()), name, term });
        self.next_catch_up = self.clock.boot();
        self.ownership.predecessors.forget();
        self.jobs.values_mut().for_each(Job::term_began);
        self.advance_all();
    }

    fn leave_office(&mut self) {
        tracing::info!("Jobs are no longer scheduled here");
        let now = self.now();
        self.ownership.yields = false;
        self.jobs.values_mut().for_each(|job| job.give_back_waiting(now, None));
        self.observer.office_left();
        self.advance_all();
    }

    fn advance_all(&mut self) {
        let jobs: Vec<JobRef> = self.jobs.keys().cloned().collect();
        for job in &jobs {
            self.advance(job);
        }
    }

    /// Takes in what the API server last said of the time: before a term begins, that of the write that won it.
    fn hear_the_time(&mut self) {
        for (client, date) in self.dates.iter_mut().enumerate() {
            if let Some(seen) = *date.borrow_and_update() {
                self.skew.note(client, seen);
            }
        }
    }

    /// Whether new runs may be planned: not while the replica stops, nor while its clock is wrong, unless nobody else leads.
    fn look_at_the_clock(&mut self) {
        let overruled = *self.anyway.borrow();
        let skew = self.skew.look(&*self.clock).map(|by| ClockSkew { by, overruled });
        let changed = self.state.borrow().clock_skew.is_some() != skew.is_some();
        if changed {
            if let Some(skew) = skew {
                let seconds = skew.by.as_secs_f64();
                tracing::error!(
                    seconds,
                    "ClockSkew: the time of day here is not the API server's; nothing new is planned"
                );
            } else {
                tracing::info!("The time of day here is the API server's again");
            }
        }
        if self.drain.borrow().is_some() {
            self.draining_since.get_or_insert(self.clock.boot());
        }
        let stopping = self.drain.borrow().is_some() || self.leadership.is_stopping();
        let closed = stopping || skew.is_some_and(|skew| !skew.overruled) || self.ownership.yields;
        let planning = if closed { Planning::Closed } else { Planning::Open };
        if self.state.borrow().clock_skew != skew {
            self.state.send_modify(|state| state.clock_skew = skew);
        }
        if planning != self.planning {
            self.planning = planning;
            let now = self.now();
            if planning == Planning::Closed {
                self.jobs.values_mut().for_each(|job| job.give_back_waiting(now, None));
                self.leave_what_goes_on();
            }
            self.advance_all();
        }
        self.cut_off_at_the_end_of_the_drain();
    }

    /// A hand-over does not wait for what goes on without this replica.
    fn leave_what_goes_on(&self) {
        for run in self.jobs.values().flat_map(|job| job.runs.values()) {
            if let RunState::Acting(acting) = &run.state {
                acting.wishes.leave.cancel();
            }
        }
    }

    fn cut_off_at_the_end_of_the_drain(&mut self) {
        let Some(deadline) = *self.drain.borrow() else { return };
        if self.cut_off || self.clock.boot() < deadline.saturating_sub(RECORDING_TIME) {
            return;
        }
        self.cut_off = true;
        for run in self.jobs.values().flat_map(|job| job.runs.values()) {
            if let RunState::Acting(acting) = &run.state {
                acting.cut.cancel();
            }
        }
    }

    fn is_over(&self) -> bool {
        let past_deadline = self.drain.borrow().is_some_and(|deadline| self.clock.boot() >= deadline);
        let elector_gone = self.elector_gone || matches!(*self.standing.borrow(), Standing::Stopped);
        past_deadline || self.state.borrow().drained || (elector_gone && self.is_idle())
    }

    /// Takes the next step for a job, if nothing is under way for it.
    pub(super) fn advance(&mut self, key: &JobRef) {
        let Some(mut job) = self.jobs.remove(key) else { return };
        self.alarms.clear(key);
        if job.deleted {
            self.bury(key, job);
            return;
        }
        if job.reading == Reading::Unreadable {
            self.jobs.insert(key.clone(), job);
            return;
        }
        self.start_due_attempts(&mut job);
        if !job.busy {
            self.step(&mut job);
        }
        self.set_alarms(&job);
        self.tell_gauges(&job);
        self.jobs.insert(key.clone(), job);
    }

    fn step(&mut self, job: &mut Job) {
        let boot = self.clock.boot();
        if job.pause_until.is_some_and(|until| boot < until) {
            return;
        }
        job.pause_until = None;
        if self.office.is_some() && job.trial_again_at().is_some_and(|at| at <= boot) {
            let now = self.now();
            job.try_again(now);
        }
        if self.requests >= REQUESTS_MAX {
            if self.queued.insert(job.key.clone()) {
                self.queue.push_back(job.key.clone());
            }
            return;
        }
        self.writes += 1;
        let write_id = format!("{}-{}", self.write_prefix, self.writes);
        let around = Surroundings {
            now: self.now(),
            latest: self.skew.latest(&*self.clock).map(Instant::new),
            term: self.office.as_ref().map(|office| &office.name),
            controller: &self.controller,
            class: self.ownership.class.as_deref(),
            predecessors: &self.ownership.predecessors,
            planning: self.planning,
            write_id: &write_id,
        };
        match job.next_step(&around) {
            // While nothing is planned, nothing has been found out about it either.
            Ok(Step::Rest) if self.planning == Planning::Closed && self.office.is_some() => {}
            Ok(Step::Rest) => job.said = None,
            Ok(Step::Read) => self.read(job),
            Ok(Step::Write(write)) => {
                job.said = None;
                self.write_when_it_is_its_turn(job, *write, boot);
            }
            Ok(Step::TryOut) => self.try_out(job),
            Ok(Step::Replace { waits_long }) => {
                if waits_long {
                    self.tell_replace_waits(job);
                }
                if self.replace_runs(job) {
                    self.step(job);
                }
            }
            Ok(Step::StandOff(standoff)) => self.stand_off(job, standoff),
            Err(error) => tracing::error!(periodicjob = %job.key, %error, "A write cannot be built"),
        }
    }

    fn set_alarms(&mut self, job: &Job) {
        let in_office = self.office.is_some() && self.planning == Planning::Open;
        let term = self.office.as_ref().map(|office| &office.name);
        let is_ours = |run: &&Run| matches!(run.state, RunState::Waiting) && Some(&run.intent.term) == term;
        // One that waits for another action is written anew by the next step, and has no time of its own until then.
        let action = job.compiled.policy.action;
        let waits = job.runs.iter().filter(|(id, run)| !run.waits_for_another_action(id, &job.left_running, action));
        let waits = waits.map(|(_, run)| run).filter(is_ours);
        let retry = waits.map(|run| run.intent.not_before).min();
        let wall = [job.wake, retry].into_iter().flatten().min().filter(|_| in_office && !job.busy);
        let boot = self.clock.boot();
        let pause = job.pause_until.filter(|until| *until > boot);
        // Until the pause is over, or its place in the queue has come, nothing is done about the job: a slot that is due
        // would only wake the loop again and again.
        let wall = wall.filter(|_| pause.is_none() && !self.queued.contains(&job.key));
        let catch_up = job.catch_up_at.filter(|turn| *turn > boot);
        let trial = job.trial_again_at().filter(|at| in_office && *at > boot);
        self.alarms.set(&job.key, wall, [pause, catch_up, trial].into_iter().flatten().min());
    }
}

async fn ended(term: Option<Term>) {
    match term {
        Some(term) => term.ended().await,
        None => std::future::pending().await,
    }
}
