//! One job as the scheduler knows it, and what is to be done about it next: the decision, without I/O.
//!
//! [`Job::next_step`] is asked whenever something has changed and no request for this job is under way: there is never
//! more than one. It looks at the object as it was last read or written, and at the runs that are going on in this process.
//! After an answer in doubt the object is read before anything else.

use std::collections::BTreeMap;

use json_patch::Patch;
use kube::ResourceExt;
use tokio_util::sync::CancellationToken;

use super::{
    compiled::{Compiled, timetable_of},
    patch::{self, ActiveFence, PatchError},
    plan::{self, Edit, Plan, PlanInput, Timetable},
    record::{self, Blueprint, NextAttempt, Readiness, RunEnd, Writer},
    run::{self, Recovery, Retry},
};
use crate::{
    action::JobRef,
    api::{
        ActiveRun, ConcurrencyPolicy, Condition, ConditionType, Counts, Disposition, Guarantee, Instant, Outcome,
        PeriodicJob, PeriodicJobStatus, Planned, TRIGGER_ANNOTATION, TermRef,
    },
    clock::BootTime,
    election::Work,
};

/// One job.
#[derive(Debug)]
pub struct Job {
    /// Its name.
    pub key: JobRef,
    /// Which object of that name.
    pub uid: String,
    /// Its spec.
    pub compiled: Compiled,
    /// Its status as it was last read or written.
    pub status: Option<PeriodicJobStatus>,
    /// The runs of this process that are not over and recorded.
    pub runs: BTreeMap<String, Run>,
    /// Whether a request for it is under way.
    pub busy: bool,
    /// Whether what is known of it may be out of date.
    pub doubtful: bool,
    /// How many requests in a row came to nothing.
    pub setbacks: u32,
    /// No request before then.
    pub pause_until: Option<BootTime>,
    /// When to look at it again, by the time of day.
    pub wake: Option<Instant>,
    /// When its catch-up may start; set when it has taken its place in the queue.
    pub catch_up_at: Option<BootTime>,
    /// When this term first planned it.
    pub first_plan: Option<Instant>,
    /// Under Forbid, when the run that was active last has ended.
    pub occupied_until: Option<Instant>,
    /// The object is gone or going.
    pub deleted: bool,
    /// Another object has its name now; it is taken up when the runs of this one have ended.
    pub successor: Option<Box<PeriodicJob>>,
    /// Why nothing is done about it, as far as that has been said.
    pub said: Option<Standoff>,
    resource_version: String,
    version: u64,
    created: Instant,
    trigger: Option<String>,
    edit_seen: Instant,
    stored: Option<(Planned, Timetable)>,
    overlaps_written: Option<Instant>,
}

/// One run of this process.
#[derive(Debug)]
pub struct Run {
    /// Its intent as this process stored it.
    pub intent: ActiveRun,
    /// Where it stands.
    pub state: RunState,
    /// Keeps a planned hand-over waiting until the run is over and recorded.
    pub hold: Option<Work>,
}

/// What a new version of an object brings.
#[derive(Debug, Default)]
pub struct News {
    /// Slots that were decided since the version before.
    pub decided: Vec<(Disposition, u64)>,
    /// Conditions whose status has changed.
    pub turned: Vec<Condition>,
}

/// Where a run stands.
#[derive(Debug)]
pub enum RunState {
    /// The next attempt is stored and waits for its time.
    Waiting,
    /// An attempt is going on.
    Acting(CancellationToken),
    /// An attempt has failed; the next one is to be stored.
    Failed(Retry),
    /// It has ended; that is to be stored.
    Finished(RunEnd),
    /// Its attempt was cut off or will not be made by this term; that is to be stored, and the run stays open.
    LeftOpen(RunEnd),
}

/// Why nothing is done about a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standoff {
    /// Another Lease owns it.
    Foreign,
    /// It was claimed by a term with a larger token than ours, or by another one with the same.
    TokenRegressed,
}

/// What surrounds a decision.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// The time of day for decisions.
    pub now: Instant,
    /// The latest time that it may be at the API server; none if that is not known.
    pub latest: Option<Instant>,
    /// The term in office; none on a standby.
    pub term: Option<&'a TermRef>,
    /// Which Lease owns what this scheduler runs.
    pub controller: &'a str,
    /// Whether new runs may be planned.
    pub planning: Planning,
    /// A name for the next write.
    pub write_id: &'a str,
}

/// Whether new runs may be planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planning {
    /// They may.
    Open,
    /// The replica stops, or its clock is wrong: what is going on is brought to its end.
    Closed,
}

/// What is to be done next.
#[derive(Debug)]
pub enum Step {
    /// Nothing, until something changes or `wake` comes.
    Rest,
    /// Read the object.
    Read,
    /// Write its status.
    Write(Box<Write>),
    /// Nothing, and for a reason that people should know.
    StandOff(Standoff),
}

/// A write to a job's status.
#[derive(Debug)]
pub struct Write {
    /// What is sent.
    pub patch: Patch,
    /// What it is for.
    pub kind: WriteKind,
    /// Whether it starts a catch-up, which is paced.
    pub catches_up: bool,
}

/// What a write is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteKind {
    /// The first status.
    First,
    /// The claim for this term.
    Claim,
    /// Decided slots, and the runs that are to start.
    Intent {
        /// The run ids.
        starts: Vec<String>,
        /// Whether a trigger was refused.
        trigger_refused: Option<String>,
    },
    /// The next attempt of a run, or the taking over of one.
    Attempt(String),
    /// A run of an earlier term ends without being tried again.
    GiveUp(String, RunEnd),
    /// A run has ended: a fact.
    Finished(String),
    /// An attempt was cut off: a fact.
    LeftOpen(String),
}

impl WriteKind {
    /// Whether it may be sent when no term is in office.
    pub const fn is_fact(&self) -> bool {
        matches!(self, Self::Finished(_) | Self::LeftOpen(_))
    }
}

/// Under Forbid, slots that come due while a run is active start nothing: writing each of them would cost a fast job more
/// requests than its runs do. What is not yet written when the run ends is decided then.
const OVERLAPS_WRITTEN_EVERY: std::time::Duration = std::time::Duration::from_secs(1);

/// How many coming slots a status shows.
const NEXT_SLOTS: usize = 3;

impl Job {
    /// The job that `object` describes, seen at `now`. None for an object without a name, namespace or UID, which the API
    /// server never sends.
    pub fn new(object: &PeriodicJob, now: Instant) -> Option<Self> {
        let key = JobRef { namespace: object.namespace()?, name: object.metadata.name.clone()? };
        let mut job = Self {
            key,
            uid: object.uid()?,
            compiled: Compiled::of(&object.spec, object.metadata.generation.unwrap_or_default()),
            status: None,
            runs: BTreeMap::new(),
            busy: false,
            doubtful: false,
            setbacks: 0,
            pause_until: None,
            wake: None,
            catch_up_at: None,
            first_plan: None,
            occupied_until: None,
            deleted: false,
            successor: None,
            said: None,
            resource_version: String::new(),
            version: 0,
            created: now,
            trigger: None,
            edit_seen: now,
            stored: None,
            overlaps_written: None,
        };
        job.take_in(object, now);
        Some(job)
    }

    /// The newest version that is known.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Whether a newer version than this one is known.
    pub fn is_newer_than(&self, object: &PeriodicJob) -> bool {
        version_of(object) < self.version
    }

    /// Takes note of a read past every cache. What it brings cannot be older than what was known when it was sent, which is
    /// `floor`, unless the store itself went back: then what is known is no more.
    pub fn note_read(&mut self, object: &PeriodicJob, floor: u64) {
        if version_of(object) < floor {
            tracing::warn!(periodicjob = %self.key, "The API server's store has gone back: it was restored from a backup");
            self.version = 0;
        }
    }

    /// Takes in a version of the object, unless a newer one is known, and says what is new in it.
    pub fn absorb(&mut self, object: &PeriodicJob, now: Instant) -> News {
        if version_of(object) < self.version {
            return News::default();
        }
        let before = self.status.take();
        self.take_in(object, now);
        let Some(after) = &self.status else { return News::default() };
        let known = |kind| before.iter().flat_map(|status| &status.conditions).find(move |known| known.kind == kind);
        let turned =
            |condition: &&Condition| known(condition.kind).is_none_or(|known| known.status != condition.status);
        News {
            decided: before.as_ref().map_or_else(Vec::new, |before| gained(before.counts, after.counts)),
            turned: after.conditions.iter().filter(turned).cloned().collect(),
        }
    }

    fn take_in(&mut self, object: &PeriodicJob, now: Instant) {
        let generation = object.metadata.generation.unwrap_or_default();
        if generation != self.compiled.planned.generation {
            self.compiled = Compiled::of(&object.spec, generation);
            self.edit_seen = now;
        }
        self.resource_version = object.resource_version().unwrap_or_default();
        self.version = version_of(object);
        let created = object.metadata.creation_timestamp.as_ref();
        self.created = created.map_or(self.created, |time| Instant::new(time.0));
        self.trigger = object.annotations().get(TRIGGER_ANNOTATION).cloned();
        self.deleted |= object.metadata.deletion_timestamp.is_some();
        self.status.clone_from(&object.status);
        let planned = self.status.as_ref().and_then(|status| status.planned.as_ref());
        if self.stored.as_ref().map(|(stored, _)| stored) != planned {
            self.stored = planned.map(|planned| (planned.clone(), timetable_of(planned)));
        }
    }

    /// What begins with a term.
    pub fn term_began(&mut self) {
        self.first_plan = None;
        self.catch_up_at = None;
        self.occupied_until = None;
        self.overlaps_written = None;
        self.said = None;
        self.wake = None;
    }

    /// What ends with a term or with the planning: attempts that are stored and not made are given back. Under
    /// `AtLeastOnce` the next leader finds all it needs in the stored attempt; under `AtMostOnce` it must be told that
    /// nothing of it was sent. Attempts of the term `but_of` are kept.
    pub fn give_back_waiting(&mut self, now: Instant, but_of: Option<&TermRef>) {
        let guarantee = self.compiled.policy.guarantee;
        self.runs.retain(|_, run| {
            if but_of == Some(&run.intent.term) {
                return true;
            }
            let message = match &run.state {
                RunState::Waiting => "the leader's term ended before the attempt was made".to_owned(),
                RunState::Failed(retry) => retry.message.clone(),
                _ => return true,
            };
            if guarantee == Guarantee::AtLeastOnce && matches!(run.state, RunState::Waiting) {
                return false;
            }
            run.state = RunState::LeftOpen(RunEnd { outcome: Outcome::Interrupted, message, at: now });
            true
        });
    }

    /// Under Forbid, the next slot after `now`: a retry that would begin later is not made.
    pub fn retry_until(&self, now: Instant) -> Option<Instant> {
        let forbids = self.compiled.rules.concurrency == ConcurrencyPolicy::Forbid && !self.compiled.timetable.suspend;
        let schedule = self.compiled.timetable.schedule.as_ref().filter(|_| forbids)?;
        schedule.next_after(now.timestamp()).map(Instant::new)
    }

    /// What is to be done next. Sets `wake`.
    ///
    /// # Errors
    /// [`PatchError`], never for the types of this crate.
    pub fn next_step(&mut self, around: &Surroundings<'_>) -> Result<Step, PatchError> {
        self.wake = None;
        if self.doubtful {
            return Ok(Step::Read);
        }
        if self.deleted {
            return Ok(Step::Rest);
        }
        if let Some(write) = self.fact(around)? {
            return Ok(write);
        }
        let Some(term) = around.term.filter(|_| around.planning == Planning::Open) else { return Ok(Step::Rest) };
        let writer = Writer { term, write_id: around.write_id, now: around.now };
        let Some(status) = self.status.clone() else { return self.first_status(around, writer) };
        if let Some(standoff) = standoff(&status, around.controller, term) {
            return Ok(Step::StandOff(standoff));
        }
        if status.term != *term && (!status.active.is_empty() || self.is_due(&status, around.now)) {
            let next = record::claimed(&status, writer);
            return Ok(Step::write(patch::claim(&self.uid, &status, &next)?, WriteKind::Claim));
        }
        if let Some(write) = self.settle(&status, around.latest, writer)? {
            return Ok(write);
        }
        self.adopt_own(&status, term);
        if let Some(write) = self.next_attempt(&status, writer)? {
            return Ok(write);
        }
        self.plan(&status, writer)
    }

    fn fact(&mut self, around: &Surroundings<'_>) -> Result<Option<Step>, PatchError> {
        let Some(status) = &self.status else { return Ok(None) };
        // What is no longer stored as this process stored it has been settled by somebody else: the fact is void.
        self.runs.retain(|id, run| {
            let acting = matches!(run.state, RunState::Acting(_));
            acting || status.active.get(id).is_some_and(|stored| is_same_attempt(stored, &run.intent))
        });
        for (id, run) in &self.runs {
            let (limits, write_id) = (self.compiled.limits, around.write_id);
            let (next, kind) = match &run.state {
                RunState::Finished(end) => {
                    (record::ended(status, id, end, limits, write_id), WriteKind::Finished(id.clone()))
                }
                RunState::LeftOpen(end) => {
                    (record::interrupted(status, id, end, limits, write_id), WriteKind::LeftOpen(id.clone()))
                }
                _ => continue,
            };
            return Ok(Some(Step::write(patch::result(&self.uid, status, &next, id)?, kind)));
        }
        Ok(None)
    }

    fn first_status(&self, around: &Surroundings<'_>, writer: Writer<'_>) -> Result<Step, PatchError> {
        let mut status = record::initial(around.controller, self.created, writer, &self.compiled.readiness);
        let generation = self.compiled.planned.generation;
        record::set_ready(&mut status, &self.compiled.readiness, generation, writer.now);
        status.planned = Some(self.compiled.planned.clone());
        status.next_slots = next_slots(&self.compiled.timetable, status.mark.max(writer.now));
        let patch = patch::first_status(&self.uid, &self.resource_version, &status)?;
        Ok(Step::write(patch, WriteKind::First))
    }

    /// Whether a slot may have come due.
    fn is_due(&self, status: &PeriodicJobStatus, now: Instant) -> bool {
        let timetable = self.stored.as_ref().map_or(&self.compiled.timetable, |(_, timetable)| timetable);
        let next = timetable.schedule.as_ref().and_then(|schedule| schedule.next_after(status.mark.timestamp()));
        next.is_some_and(|next| Instant::new(next) <= now)
    }

    /// An intent of an earlier term is settled by the job's guarantee.
    fn settle(
        &self,
        status: &PeriodicJobStatus,
        latest: Option<Instant>,
        writer: Writer<'_>,
    ) -> Result<Option<Step>, PatchError> {
        let is_left = |run: &ActiveRun| run.term != *writer.term || run.ended_at.is_some();
        let mut left = status.active.iter().filter(|(id, run)| is_left(run) && !self.runs.contains_key(*id));
        let Some((id, run)) = left.next() else { return Ok(None) };
        let generation = self.compiled.planned.generation;
        let (next, kind) = match run::recovery(run, generation, &self.compiled.policy, writer.now, latest) {
            Recovery::GiveUp(end) => {
                let next = record::ended(status, id, &end, self.compiled.limits, writer.write_id);
                let patch = patch::result(&self.uid, status, &next, id)?;
                return Ok(Some(Step::write(patch, WriteKind::GiveUp(id.clone(), end))));
            }
            // A spec that is not valid cannot be run: the run waits for one that is.
            Recovery::TryAgain(_) if self.compiled.action.is_none() => return Ok(None),
            Recovery::TryAgain(attempt) => {
                (record::next_attempt(status, id, &attempt, writer), WriteKind::Attempt(id.clone()))
            }
            Recovery::TakeOver => (record::taken_over(status, id, writer), WriteKind::Attempt(id.clone())),
        };
        let patch = patch::attempt(&self.uid, generation, status, &next, id)?;
        Ok(Some(Step::write(patch, kind)))
    }

    /// An intent of this term that nobody is acting on was stored by a write whose answer was lost.
    fn adopt_own(&mut self, status: &PeriodicJobStatus, term: &TermRef) {
        for (id, run) in status.active.iter().filter(|(_, run)| run.term == *term && run.ended_at.is_none()) {
            self.runs.entry(id.clone()).or_insert_with(|| Run {
                intent: run.clone(),
                state: RunState::Waiting,
                hold: None,
            });
        }
    }

    fn next_attempt(&self, status: &PeriodicJobStatus, writer: Writer<'_>) -> Result<Option<Step>, PatchError> {
        let generation = self.compiled.planned.generation;
        for (id, run) in &self.runs {
            let RunState::Failed(retry) = &run.state else { continue };
            let attempt = NextAttempt {
                generation,
                not_before: retry.not_before,
                timeout: self.compiled.policy.timeout,
                wait_bound: Some(retry.bound),
                last_failure: retry.message.clone(),
                recovers: false,
            };
            let next = record::next_attempt(status, id, &attempt, writer);
            let patch = patch::attempt(&self.uid, generation, status, &next, id)?;
            return Ok(Some(Step::write(patch, WriteKind::Attempt(id.clone()))));
        }
        Ok(None)
    }

    fn plan(&mut self, status: &PeriodicJobStatus, writer: Writer<'_>) -> Result<Step, PatchError> {
        let trigger = self.trigger.clone().filter(|trigger| Some(trigger) != status.last_trigger.as_ref());
        let plan = self.make_plan(status, writer.now, trigger.is_some());
        self.wake = plan.wake;
        let nothing_new = plan.is_empty() && !ready_differs(status, &self.compiled.readiness);
        if nothing_new || self.overlaps_can_wait(&plan, writer.now) {
            self.first_plan.get_or_insert(writer.now);
            return Ok(Step::Rest);
        }
        let readiness = &self.compiled.readiness;
        let blueprint = Blueprint {
            uid: &self.uid,
            planned: &self.compiled.planned,
            timeout: self.compiled.policy.timeout,
            active_deadline: self.compiled.active_deadline,
            trigger: trigger.as_deref(),
        };
        let (mut next, starts) = record::planned(status, &plan, blueprint, writer);
        if ready_differs(status, readiness) || plan.adopts_edit {
            record::set_ready(&mut next, readiness, self.compiled.planned.generation, writer.now);
        }
        next.next_slots = next_slots(&self.compiled.timetable, next.mark.max(writer.now));
        let forbids = self.compiled.rules.concurrency == ConcurrencyPolicy::Forbid;
        let fence = if forbids && !starts.is_empty() { ActiveFence::MustBeEmpty } else { ActiveFence::MayHoldRuns };
        let generation = self.compiled.planned.generation;
        let patch = patch::intent(&self.uid, generation, status, &next, fence)?;
        let refused = (plan.trigger == Some(plan::Trigger::Refused)).then_some(trigger).flatten();
        let kind = WriteKind::Intent { starts, trigger_refused: refused };
        Ok(Step::Write(Box::new(Write { patch, kind, catches_up: plan.catches_up })))
    }

    fn make_plan(&self, status: &PeriodicJobStatus, now: Instant, triggered: bool) -> Plan {
        let is_current = status.planned.as_ref() == Some(&self.compiled.planned);
        let before = self.stored.as_ref().map(|(_, timetable)| timetable);
        plan::plan(&PlanInput {
            now,
            mark: status.mark,
            first_plan: self.first_plan.unwrap_or(now),
            timetable: &self.compiled.timetable,
            edit: (!is_current).then_some(Edit { before, seen: self.edit_seen.min(now) }),
            rules: &self.compiled.rules,
            active: status.active.len(),
            occupied_until: self.occupied_until,
            triggered,
        })
    }

    fn overlaps_can_wait(&mut self, plan: &Plan, now: Instant) -> bool {
        let only_overlaps = !plan.decided.is_empty()
            && plan.trigger.is_none()
            && !plan.adopts_edit
            && self.compiled.rules.concurrency == ConcurrencyPolicy::Forbid
            && plan.decided.iter().all(|range| range.reason == Disposition::Overlap);
        if !only_overlaps {
            return false;
        }
        let write_at = *self.overlaps_written.get_or_insert(now);
        let write_at = write_at.plus(OVERLAPS_WRITTEN_EVERY);
        if now < write_at {
            // The next slot may be due before that, and is to start on time if the run has ended by then.
            self.wake = Some(self.wake.map_or(write_at, |wake| wake.min(write_at)));
            return true;
        }
        self.overlaps_written = Some(now);
        false
    }
}

impl Step {
    fn write(patch: Patch, kind: WriteKind) -> Self {
        Self::Write(Box::new(Write { patch, kind, catches_up: false }))
    }
}

fn standoff(status: &PeriodicJobStatus, controller: &str, term: &TermRef) -> Option<Standoff> {
    if status.controller != controller {
        return Some(Standoff::Foreign);
    }
    let same_token = status.term.token == term.token && status.term.nonce != term.nonce;
    (status.term.token > term.token || same_token).then_some(Standoff::TokenRegressed)
}

fn is_same_attempt(stored: &ActiveRun, own: &ActiveRun) -> bool {
    stored.term == own.term && stored.attempt == own.attempt && stored.ended_at.is_none()
}

fn ready_differs(status: &PeriodicJobStatus, readiness: &Readiness) -> bool {
    let ready = status.conditions.iter().find(|condition| condition.kind == ConditionType::Ready);
    ready.is_none_or(|ready| {
        ready.status != readiness.ready || ready.reason != readiness.reason || ready.message != readiness.message
    })
}

fn next_slots(timetable: &Timetable, after: Instant) -> Vec<Instant> {
    let Some(schedule) = timetable.schedule.as_ref().filter(|_| !timetable.suspend) else { return Vec::new() };
    let slots = std::iter::successors(schedule.next_after(after.timestamp()), |slot| schedule.next_after(*slot));
    slots.take(NEXT_SLOTS).map(Instant::new).collect()
}

fn version_of(object: &PeriodicJob) -> u64 {
    object.resource_version().and_then(|version| version.parse().ok()).unwrap_or(0)
}

fn gained(before: Counts, after: Counts) -> Vec<(Disposition, u64)> {
    let all = [
        (Disposition::Ran, before.ran, after.ran),
        (Disposition::Overlap, before.overlap, after.overlap),
        (Disposition::Late, before.late, after.late),
        (Disposition::Suspended, before.suspended, after.suspended),
        (Disposition::Coalesced, before.coalesced, after.coalesced),
    ];
    all.into_iter().filter(|(_, before, after)| after > before).map(|(what, b, a)| (what, a - b)).collect()
}

#[cfg(test)]
mod tests;
