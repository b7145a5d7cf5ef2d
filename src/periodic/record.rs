//! What a status looks like after a decision, an attempt or the end of a run: pure functions from a status to the next.
//!
//! Which parts of the status may change is what keeps writers out of each other's way. A plan changes the mark and what
//! belongs to it, and never touches what the end of a run changes (the newest runs, the failures in a row, the condition
//! `LastRunSucceeded`), because a result may be written by a leader whose term has ended while its successor plans. The
//! writes themselves, with their fences, are [`super::patch`].

use std::time::Duration;

use sha2::{Digest, Sha256};

use super::plan::{Plan, Trigger};
use crate::api::{
    self, ActionKind, ActiveRun, Condition, ConditionStatus, ConditionType, Disposition, Instant, Outcome,
    PeriodicJobStatus, Planned, RunRecord, SlotRange, TermRef,
};

/// A status keeps this many ranges of slots that were not run: nearly three weeks of one gap a day.
pub const RANGES_MAX: usize = 20;

/// How many bytes of the hash a run id keeps: 128 bits, which no two slots of a cluster's life share.
const RUN_ID_BYTES: usize = 16;

/// Who writes, and when.
#[derive(Debug, Clone, Copy)]
pub struct Writer<'a> {
    /// The term in office.
    pub term: &'a TermRef,
    /// A name that no other write has.
    pub write_id: &'a str,
    /// The time of day.
    pub now: Instant,
}

/// What a plan's runs follow.
#[derive(Debug, Clone, Copy)]
pub struct Blueprint<'a> {
    /// The job's UID.
    pub uid: &'a str,
    /// The newest generation, as a mark is planned by it.
    pub planned: &'a Planned,
    /// What an attempt does.
    pub action: ActionKind,
    /// How long one attempt may take.
    pub timeout: Duration,
    /// How long a run may take with all its attempts.
    pub active_deadline: Duration,
    /// The value of the trigger annotation, if it is to be handled.
    pub trigger: Option<&'a str>,
}

/// Whether a job is ready, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// Whether the spec is valid, owned and scheduled.
    pub ready: ConditionStatus,
    /// One word for machines.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunEnd {
    /// The outcome.
    pub outcome: Outcome,
    /// For people.
    pub message: String,
    /// One word for machines, where the outcome does not say it all.
    pub reason: Option<&'static str>,
    /// When.
    pub at: Instant,
}

/// How many ended runs are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryLimits {
    /// Those that succeeded.
    pub successful: usize,
    /// The others.
    pub failed: usize,
}

/// The next attempt of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextAttempt {
    /// The generation of the spec that it follows.
    pub generation: i64,
    /// What it does.
    pub action: ActionKind,
    /// It is not made before then.
    pub not_before: Instant,
    /// How long it may take.
    pub timeout: Duration,
    /// The bound that the wait was drawn from; none for an attempt that is made at once.
    pub wait_bound: Option<Duration>,
    /// What the attempt before it came to.
    pub last_failure: String,
    /// Whether the end of the attempt before it is not known.
    pub recovers: bool,
}

/// The run id of a slot: the same over attempts, failovers and edits.
pub fn slot_run_id(uid: &str, slot: Instant) -> String {
    hash(&[uid, &slot.to_string()])
}

/// The run id of a trigger.
pub fn trigger_run_id(uid: &str, value: &str) -> String {
    hash(&[uid, "trigger", value])
}

fn hash(parts: &[&str]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        // The length before each part keeps ("a", "bc") apart from ("ab", "c").
        hasher.update(part.len().to_be_bytes());
        hasher.update(part);
    }
    let digest = hasher.finalize();
    let mut half = [0; RUN_ID_BYTES];
    half.copy_from_slice(&digest[..RUN_ID_BYTES]);
    format!("{:032x}", u128::from_be_bytes(half))
}

/// The status of a job that has none yet: owned, and planned from its creation on.
pub fn initial(controller: &str, origin: Instant, writer: Writer<'_>, readiness: &Readiness) -> PeriodicJobStatus {
    let mut status = PeriodicJobStatus {
        observed_generation: 0,
        conditions: Vec::new(),
        controller: controller.to_owned(),
        term: writer.term.clone(),
        write_id: writer.write_id.to_owned(),
        planned: None,
        origin,
        mark: origin,
        active: std::collections::BTreeMap::new(),
        counts: api::Counts::default(),
        ranges: Vec::new(),
        last_runs: Vec::new(),
        last_trigger: None,
        next_slots: Vec::new(),
        last_schedule_time: None,
        last_successful_time: None,
        consecutive_failures: 0,
    };
    set_ready(&mut status, readiness, 0, writer.now);
    let not_yet = "no run has ended yet".to_owned();
    set_condition(
        &mut status,
        ConditionType::LastRunSucceeded,
        ConditionStatus::Unknown,
        "NoRunYet",
        not_yet,
        0,
        writer.now,
    );
    status
}

/// The status claimed for the writer's term.
pub fn claimed(base: &PeriodicJobStatus, writer: Writer<'_>) -> PeriodicJobStatus {
    let mut next = base.clone();
    sign(&mut next, writer);
    next.term = writer.term.clone();
    next
}

/// The status with another owner, claimed for the writer's term. Nobody is an owner, too.
pub fn owned_by(base: &PeriodicJobStatus, controller: &str, writer: Writer<'_>) -> PeriodicJobStatus {
    let mut next = claimed(base, writer);
    controller.clone_into(&mut next.controller);
    next
}

/// The status with `plan` stored, and the ids of the runs that are to start.
pub fn planned(
    base: &PeriodicJobStatus,
    plan: &Plan,
    blueprint: Blueprint<'_>,
    writer: Writer<'_>,
) -> (PeriodicJobStatus, Vec<String>) {
    let mut next = claimed(base, writer);
    next.mark = plan.mark;
    if plan.adopts_edit {
        next.planned = Some(blueprint.planned.clone());
        next.observed_generation = blueprint.planned.generation;
    }
    for range in &plan.decided {
        next.counts.add(range.reason, range.count);
        push_range(&mut next.ranges, range, base.mark);
    }
    let mut starts = Vec::new();
    for slot in &plan.starts {
        let id = slot_run_id(blueprint.uid, *slot);
        next.active.insert(id.clone(), first_attempt(*slot, None, blueprint, writer));
        next.last_schedule_time = Some(*slot);
        starts.push(id);
    }
    if let (Some(trigger), Some(value)) = (plan.trigger, blueprint.trigger) {
        next.last_trigger = Some(value.to_owned());
        if trigger == Trigger::Start {
            let id = trigger_run_id(blueprint.uid, value);
            let run = first_attempt(writer.now, Some(value.to_owned()), blueprint, writer);
            next.active.insert(id.clone(), run);
            next.counts.triggered = next.counts.triggered.saturating_add(1);
            starts.push(id);
        }
    }
    (next, starts)
}

fn first_attempt(slot: Instant, trigger: Option<String>, blueprint: Blueprint<'_>, writer: Writer<'_>) -> ActiveRun {
    let run_deadline = writer.now.plus(blueprint.active_deadline);
    ActiveRun {
        slot,
        generation: blueprint.planned.generation,
        term: writer.term.clone(),
        attempt: 1,
        deadline: writer.now.plus(blueprint.timeout).min(run_deadline),
        not_before: writer.now,
        recoveries: 0,
        started_at: writer.now,
        run_deadline,
        wait_bound: None,
        last_failure: None,
        ended_at: None,
        trigger,
        action: Some(blueprint.action),
        taken_over: false,
    }
}

/// The status with the next attempt of a run stored.
pub fn next_attempt(
    base: &PeriodicJobStatus,
    run_id: &str,
    attempt: &NextAttempt,
    writer: Writer<'_>,
) -> PeriodicJobStatus {
    let mut next = claimed(base, writer);
    if let Some(run) = next.active.get_mut(run_id) {
        run.generation = attempt.generation;
        run.action = Some(attempt.action);
        run.term = writer.term.clone();
        run.attempt = run.attempt.saturating_add(1);
        run.not_before = attempt.not_before;
        run.wait_bound = attempt.wait_bound.map(api::Duration);
        run.last_failure = Some(attempt.last_failure.clone());
        run.ended_at = None;
        run.taken_over = false;
        let deadline = attempt.not_before.plus(attempt.timeout);
        if attempt.recovers {
            run.recoveries = run.recoveries.saturating_add(1);
            // A recovery is not ended by a deadline that passed while nobody was in office.
            run.run_deadline = run.run_deadline.max(deadline);
        }
        run.deadline = deadline.min(run.run_deadline);
    }
    next
}

/// The status with a waiting attempt of an earlier term taken over as it is. Not made yet, it does what the spec says now.
pub fn taken_over(base: &PeriodicJobStatus, run_id: &str, action: ActionKind, writer: Writer<'_>) -> PeriodicJobStatus {
    let mut next = claimed(base, writer);
    if let Some(run) = next.active.get_mut(run_id) {
        run.term = writer.term.clone();
        run.action = Some(action);
    }
    next
}

/// The status with an attempt of an earlier term taken over, whose work goes on without its leader: the same attempt, with
/// time to find what it has left.
pub fn adopted(base: &PeriodicJobStatus, run_id: &str, timeout: Duration, writer: Writer<'_>) -> PeriodicJobStatus {
    let mut next = claimed(base, writer);
    if let Some(run) = next.active.get_mut(run_id) {
        run.term = writer.term.clone();
        run.taken_over = true;
        run.not_before = run.not_before.min(writer.now);
        run.run_deadline = run.run_deadline.max(writer.now.plus(timeout));
        run.deadline = writer.now.plus(timeout);
    }
    next
}

/// The status with a run ended.
pub fn ended(
    base: &PeriodicJobStatus,
    run_id: &str,
    end: &RunEnd,
    limits: HistoryLimits,
    write_id: &str,
) -> PeriodicJobStatus {
    let mut next = base.clone();
    write_id.clone_into(&mut next.write_id);
    let Some(run) = next.active.remove(run_id) else { return next };
    let succeeded = match end.outcome {
        Outcome::Succeeded => ConditionStatus::True,
        Outcome::Cancelled => ConditionStatus::Unknown,
        _ => ConditionStatus::False,
    };
    match end.outcome {
        Outcome::Succeeded => {
            next.consecutive_failures = 0;
            next.last_successful_time = Some(end.at);
        }
        Outcome::Cancelled => {}
        _ => next.consecutive_failures = next.consecutive_failures.saturating_add(1),
    }
    set_condition(
        &mut next,
        ConditionType::LastRunSucceeded,
        succeeded,
        end.reason.unwrap_or(end.outcome.as_str()),
        end.message.clone(),
        run.generation,
        end.at,
    );
    remember(&mut next.last_runs, record(run_id, &run, end), limits);
    next
}

/// The status with an attempt cut off and the run still open.
pub fn interrupted(
    base: &PeriodicJobStatus,
    run_id: &str,
    end: &RunEnd,
    limits: HistoryLimits,
    write_id: &str,
) -> PeriodicJobStatus {
    let mut next = base.clone();
    write_id.clone_into(&mut next.write_id);
    let Some(run) = next.active.get_mut(run_id) else { return next };
    run.ended_at = Some(end.at);
    run.last_failure = Some(end.message.clone());
    let record = record(run_id, run, end);
    remember(&mut next.last_runs, record, limits);
    next
}

fn record(run_id: &str, run: &ActiveRun, end: &RunEnd) -> RunRecord {
    RunRecord {
        id: run_id.to_owned(),
        slot: run.slot,
        outcome: end.outcome,
        attempt: run.attempt,
        started_at: run.started_at,
        ended_at: end.at,
        message: end.message.clone(),
        trigger: run.trigger.clone(),
    }
}

fn remember(runs: &mut Vec<RunRecord>, record: RunRecord, limits: HistoryLimits) {
    runs.insert(0, record);
    let (mut successful, mut failed) = (0, 0);
    runs.retain(|run| {
        let (kept, limit) = match run.outcome {
            Outcome::Succeeded => (&mut successful, limits.successful),
            _ => (&mut failed, limits.failed),
        };
        *kept += 1;
        *kept <= limit
    });
}

/// Adds a range of slots that were not run; it grows the newest one if it goes on from there.
fn push_range(ranges: &mut Vec<SlotRange>, range: &SlotRange, mark_before: Instant) {
    if range.reason == Disposition::Ran {
        return;
    }
    if let Some(newest) = ranges.last_mut()
        && newest.reason == range.reason
        && newest.to == mark_before
    {
        newest.to = range.to;
        newest.count = newest.count.saturating_add(range.count);
        return;
    }
    ranges.push(range.clone());
    let surplus = ranges.len().saturating_sub(RANGES_MAX);
    ranges.drain(..surplus);
}

/// Says in the status whether the job is ready.
pub fn set_ready(status: &mut PeriodicJobStatus, readiness: &Readiness, generation: i64, now: Instant) {
    let (ready, reason, message) = (readiness.ready, readiness.reason, readiness.message.clone());
    status.observed_generation = generation.max(status.observed_generation);
    set_condition(status, ConditionType::Ready, ready, reason, message, generation, now);
}

fn set_condition(
    status: &mut PeriodicJobStatus,
    kind: ConditionType,
    holds: ConditionStatus,
    reason: &str,
    message: String,
    observed_generation: i64,
    now: Instant,
) {
    let found = status.conditions.iter_mut().find(|condition| condition.kind == kind);
    let Some(condition) = found else {
        let reason = reason.to_owned();
        let last_transition_time = now;
        status.conditions.push(Condition {
            kind,
            status: holds,
            observed_generation,
            last_transition_time,
            reason,
            message,
        });
        return;
    };
    if condition.status != holds {
        condition.status = holds;
        condition.last_transition_time = now;
    }
    condition.observed_generation = observed_generation;
    reason.clone_into(&mut condition.reason);
    condition.message = message;
}

fn sign(status: &mut PeriodicJobStatus, writer: Writer<'_>) {
    writer.write_id.clone_into(&mut status.write_id);
}
