//! What the scheduler tells about itself: facts, for metrics, Events and whoever else looks.

use std::{fmt, time::Duration};

use crate::{
    action::JobRef,
    api::{Disposition, Instant, Outcome},
};

/// Hears what happens. Calls come from the scheduler's own task: they must not block.
pub trait Observer: fmt::Debug + Send + Sync + 'static {
    /// `count` slots of `job` have got a disposition, durably.
    fn slots_decided(&self, job: &JobRef, disposition: Disposition, count: u64);

    /// An attempt begins.
    fn attempt_started(&self, job: &JobRef, start: &AttemptStart<'_>);

    /// An attempt has failed and another one will be made.
    fn attempt_failed(&self, job: &JobRef, failure: &AttemptFailure<'_>);

    /// A run has ended, or was cut off and stays open ([`Outcome::Interrupted`]).
    fn run_ended(&self, job: &JobRef, end: &RunReport<'_>);

    /// What a job's gauges show now. Told only while leading.
    fn job_changed(&self, job: &JobRef, gauges: JobGauges);

    /// A job is gone, or no longer this leader's.
    fn job_forgotten(&self, job: &JobRef);

    /// The term is over: nothing about jobs is known here any more.
    fn office_left(&self);

    /// Something that people should find at the object.
    fn notice(&self, notice: Notice);
}

/// An attempt begins.
#[derive(Debug, Clone, Copy)]
pub struct AttemptStart<'a> {
    /// The run's id.
    pub run_id: &'a str,
    /// When the run was due.
    pub slot: Instant,
    /// The number of the attempt.
    pub attempt: u32,
    /// How long after its slot the first attempt of a slot's run began; none for later attempts and triggered runs, and
    /// none for a missed slot that is caught up.
    pub lateness: Option<Duration>,
}

/// An attempt has failed.
#[derive(Debug, Clone, Copy)]
pub struct AttemptFailure<'a> {
    /// The run's id.
    pub run_id: &'a str,
    /// The number of the attempt.
    pub attempt: u32,
    /// Why.
    pub message: &'a str,
    /// How long the next attempt waits.
    pub wait: Duration,
    /// What the wait was drawn from: [0, bound].
    pub bound: Duration,
}

/// A run has ended.
#[derive(Debug, Clone, Copy)]
pub struct RunReport<'a> {
    /// The run's id.
    pub run_id: &'a str,
    /// When it was due.
    pub slot: Instant,
    /// The kind of action: `http` or `jobTemplate`.
    pub action: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// The number of its last attempt.
    pub attempt: u32,
    /// From the first attempt's intent to the end.
    pub took: Duration,
    /// For people.
    pub message: &'a str,
}

/// A job's gauges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct JobGauges {
    /// When a run last succeeded.
    pub last_success: Option<Instant>,
    /// When the next slot is due.
    pub next_slot: Option<Instant>,
    /// How many runs in a row did not succeed.
    pub consecutive_failures: u32,
    /// How many runs are open.
    pub active_runs: usize,
}

/// Something that people should find at an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The object.
    pub job: JobRef,
    /// Its UID.
    pub uid: String,
    /// Whether somebody should look at it.
    pub urgency: Urgency,
    /// Why, in one CamelCase word.
    pub reason: &'static str,
    /// The sentence for people.
    pub note: String,
}

/// Whether somebody should look at a notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// All is as it should be.
    Normal,
    /// It is not.
    Warning,
}
