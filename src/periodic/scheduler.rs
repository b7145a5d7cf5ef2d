//! The scheduler of one replica: its parts, its handle, and what it shows of itself.
//!
//! It watches the jobs all the time, so that a standby takes over warm, and acts on them only while a term is in office.
//! What it does is decided in [`super::job`] and [`super::run`]; the loop is in [`super::engine`].

use std::{sync::Arc, time::Duration};

use jiff::SignedDuration;
use tokio::sync::watch;

use super::{adoption::LeaseName, engine::Engine, observer::Observer};
use crate::{
    action::Action,
    apiserver::{ApiServer, DateSeen},
    clock::{self, BootTime, SharedClock},
    election::Leadership,
    entropy::SharedEntropy,
    tasks::Tasks,
};

/// What a scheduler is made of.
#[derive(Debug)]
pub struct SchedulerParts {
    /// The API server.
    pub api: ApiServer,
    /// Further clients' view of the API server's time of day: the elector asks most often.
    pub dates: Vec<watch::Receiver<Option<DateSeen>>>,
    /// When to act.
    pub leadership: Leadership,
    /// How a run is done.
    pub action: Arc<dyn Action>,
    /// Time.
    pub clock: SharedClock,
    /// Randomness.
    pub entropy: SharedEntropy,
    /// The owner of the scheduler's tasks.
    pub tasks: Tasks,
    /// Who hears what happens.
    pub observer: Arc<dyn Observer>,
    /// Which Lease this scheduler works for, as namespace/name: it acts on no object that another one owns.
    pub controller: String,
    /// Its class: it acts on no object of another one.
    pub class: Option<String>,
    /// The Leases whose jobs it takes over once they are free.
    pub adopt_from: Vec<LeaseName>,
    /// How long a Lease that shows nobody and no release is waited for: no less than a holder may go on.
    pub adopt_patience: Duration,
    /// Which jobs it looks at.
    pub scope: Scope,
    /// Its settings.
    pub settings: SchedulerSettings,
}

/// Which jobs a scheduler looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Those of every namespace.
    All,
    /// Those of one.
    Namespace(String),
}

/// The settings of a scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerSettings {
    /// How many catch-up runs may start in a second.
    pub catch_up_rate: u32,
    /// How far the wall clock may be from the API server's time of day; zero switches the comparison off.
    pub max_clock_skew: Duration,
}

/// What a scheduler shows of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SchedulerState {
    /// Whether the jobs have been listed.
    pub synced: bool,
    /// How many jobs are known.
    pub jobs: usize,
    /// How many of them another Lease owns.
    pub foreign: usize,
    /// How many of them are of another class.
    pub other_class: usize,
    /// How many of them name a later term than the one in office, which therefore does not act on them.
    pub regressed: usize,
    /// How many objects this version cannot read.
    pub unreadable: usize,
    /// How many attempts are going on.
    pub acting: usize,
    /// How many results are to be stored.
    pub unrecorded: usize,
    /// Whether the wall clock is wrong: while it is, this replica should not lead.
    pub clock_skew: Option<ClockSkew>,
    /// Whether a term of this Lease that begins now could take over jobs that the one in office cannot.
    pub wants_new_term: bool,
    /// Whether a drain has been asked for and everything that was going on has ended and is recorded.
    pub drained: bool,
}

/// A wall clock that is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockSkew {
    /// By how much.
    pub by: SignedDuration,
    /// Whether this replica plans all the same, by the API server's time: nothing new is planned otherwise.
    pub overruled: bool,
}

/// The scheduler.
#[derive(Debug)]
pub struct Scheduler;

/// A running scheduler.
#[derive(Debug, Clone)]
pub struct SchedulerHandle {
    state: watch::Receiver<SchedulerState>,
    drain: watch::Sender<Option<BootTime>>,
    anyway: watch::Sender<bool>,
    clock: SharedClock,
}

impl Scheduler {
    /// Starts a scheduler. It ends after [`SchedulerHandle::drained`], or when its elector has ended.
    pub fn start(parts: SchedulerParts) -> SchedulerHandle {
        let (state_sender, state) = watch::channel(SchedulerState::default());
        let (drain, drain_wanted) = watch::channel(None);
        let (anyway, anyway_wanted) = watch::channel(false);
        let (clock, tasks) = (parts.clock.clone(), parts.tasks.clone());
        let engine = Engine::new(parts, state_sender, drain_wanted, anyway_wanted);
        tasks.spawn("scheduler", engine.run()).detach();
        SchedulerHandle { state, drain, anyway, clock }
    }
}

impl SchedulerHandle {
    /// A handle without a scheduler, and what it shows.
    #[cfg(test)]
    pub(crate) fn detached(clock: SharedClock) -> (Self, watch::Sender<SchedulerState>) {
        let (sender, state) = watch::channel(SchedulerState::default());
        (Self { state, drain: watch::Sender::new(None), anyway: watch::Sender::new(false), clock }, sender)
    }

    /// What [`SchedulerHandle::plan_anyway`] has said last.
    #[cfg(test)]
    pub(crate) fn plans_anyway(&self) -> bool {
        *self.anyway.borrow()
    }

    /// What the scheduler shows of itself.
    pub fn state(&self) -> watch::Receiver<SchedulerState> {
        self.state.clone()
    }

    /// Says whether to plan though the wall clock is wrong, by the API server's time.
    pub fn plan_anyway(&self, anyway: bool) {
        self.anyway.send_replace(anyway);
    }

    /// Stops new runs, waits for those that are going on, cuts off what would not end in time to be recorded, and returns
    /// when everything is recorded, at `deadline` at the latest. To be called before the elector is asked to release.
    pub async fn drained(&self, deadline: BootTime) {
        self.drain.send_replace(Some(deadline));
        let mut state = self.state.clone();
        let drained = state.wait_for(|state| state.drained);
        // A scheduler that has ended has nothing left to drain; past the deadline nothing more can be done.
        drop(clock::timeout_at(&*self.clock, deadline, drained).await);
    }
}
