//! The next step for a job: what to write, or what to wait for.

use json_patch::Patch;

use super::{
    super::{
        adoption::{Leave, Predecessors},
        patch::{self, ActiveFence, PatchError},
        plan::{self, Edit, Plan, PlanInput, Timetable},
        record::{self, Blueprint, NextAttempt, Readiness, RunEnd, Writer},
        run::{self, Recovery},
    },
    Job, Run, RunState, Standoff,
};
use crate::api::{ActiveRun, ConcurrencyPolicy, ConditionType, Disposition, Instant, PeriodicJobStatus, TermRef};

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
    /// The class of what it runs.
    pub class: Option<&'a str>,
    /// From whom it takes over.
    pub predecessors: &'a Predecessors,
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
    /// Ask the API server whether it would take what the spec asks for.
    TryOut,
    /// Cancel its runs: a newer slot takes their place.
    Replace {
        /// Whether they have been asked for so long that people should know.
        waits_long: bool,
    },
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
    /// The claim of a job that another Lease owned, or nobody. The leave is asked for again before it is sent.
    Adopt {
        /// The owner before.
        from: String,
        /// Leave to take over from it; none is needed if it is nobody.
        leave: Option<Leave>,
    },
    /// The job is of another class now: nobody owns it any more.
    LetGo,
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

/// How long a run may take to make room before that is told.
const REPLACE_TOLD_AFTER: std::time::Duration = std::time::Duration::from_mins(1);

/// How many coming slots a status shows.
const NEXT_SLOTS: usize = 3;

impl Job {
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
        let ours = self.is_of_class(around.class);
        if !ours && !self.is_owned_by(around.controller) {
            return Ok(Step::StandOff(Standoff::OtherClass));
        }
        let Some(status) = self.status.clone() else {
            let waits = self.is_untried(None) && self.trial_doubt().is_none();
            return if waits { Ok(Step::TryOut) } else { self.first_status(around, writer) };
        };
        if status.controller != around.controller {
            return self.adopt(&status, around, writer);
        }
        if outranks(&status, term) {
            return Ok(Step::StandOff(Standoff::TokenRegressed));
        }
        if status.term != *term && (!status.active.is_empty() || (ours && self.is_due(&status, around.now))) {
            let next = record::claimed(&status, writer);
            return Ok(Step::write(patch::claim(&self.uid, &status, &next)?, WriteKind::Claim));
        }
        if let Some(write) = self.settle(&status, around.latest, writer)? {
            return Ok(write);
        }
        self.adopt_own(&status, term);
        if let Some(write) = self.other_action(&status, writer)? {
            return Ok(write);
        }
        if let Some(write) = self.next_attempt(&status, writer)? {
            return Ok(write);
        }
        if !ours {
            return self.let_go(&status, writer);
        }
        if self.is_untried(Some(&status)) {
            return self.tell_doubt(&status, writer);
        }
        self.plan(&status, writer)
    }

    /// A job that somebody else owned is claimed once its owner is gone, by a term that began after theirs: else a target
    /// that compares tokens would refuse it.
    fn adopt(
        &self,
        status: &PeriodicJobStatus,
        around: &Surroundings<'_>,
        writer: Writer<'_>,
    ) -> Result<Step, PatchError> {
        let from = status.controller.clone();
        let leave = around.predecessors.leave(&from);
        if leave.is_none() && !from.is_empty() {
            return Ok(Step::StandOff(Standoff::Foreign));
        }
        if outranks(status, writer.term) {
            // Tokens of all Leases are versions of one store. If this one is such a version, a new term has a larger one.
            let newer = status.term.token < self.version;
            return Ok(Step::StandOff(if newer { Standoff::Outranked } else { Standoff::TokenRegressed }));
        }
        let next = record::owned_by(status, around.controller, writer);
        Ok(Step::write(patch::claim(&self.uid, status, &next)?, WriteKind::Adopt { from, leave }))
    }

    /// A job that is of another class now is left to its new owner when the last run has ended.
    fn let_go(&self, status: &PeriodicJobStatus, writer: Writer<'_>) -> Result<Step, PatchError> {
        if !status.active.is_empty() {
            return Ok(Step::Rest);
        }
        let next = record::owned_by(status, "", writer);
        Ok(Step::write(patch::let_go(&self.uid, status, &next)?, WriteKind::LetGo))
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

    /// Says that nobody knows yet whether the spec can be carried out, and asks again.
    fn tell_doubt(&self, status: &PeriodicJobStatus, writer: Writer<'_>) -> Result<Step, PatchError> {
        let Some(doubt) = self.trial_doubt().filter(|doubt| ready_differs(status, doubt)) else {
            return Ok(Step::TryOut);
        };
        let mut next = record::claimed(status, writer);
        let generation = self.compiled.planned.generation;
        record::set_ready(&mut next, doubt, generation, writer.now);
        let patch = patch::intent(&self.uid, generation, status, &next, ActiveFence::MayHoldRuns)?;
        Ok(Step::write(patch, WriteKind::Claim))
    }

    fn first_status(&self, around: &Surroundings<'_>, writer: Writer<'_>) -> Result<Step, PatchError> {
        let readiness = self.trial_doubt().unwrap_or(&self.compiled.readiness);
        let mut status = record::initial(around.controller, self.created, writer, readiness);
        let generation = self.compiled.planned.generation;
        record::set_ready(&mut status, readiness, generation, writer.now);
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
        let left = status.active.iter().filter(|(id, run)| is_left(run) && !self.runs.contains_key(*id));
        let generation = self.compiled.planned.generation;
        // A spec that is not valid cannot be run: the run waits for one that is. What was begun is followed all the same.
        let valid = self.compiled.action.is_some();
        let mut found = left
            .map(|(id, run)| (id, run::recovery(run, generation, &self.compiled.policy, writer.now, latest)))
            .filter(|(_, recovery)| valid || !matches!(recovery, Recovery::TryAgain(_)));
        let Some((id, recovery)) = found.next() else { return Ok(None) };
        let (next, kind) = match recovery {
            Recovery::GiveUp(end) => {
                let next = record::ended(status, id, &end, self.compiled.limits, writer.write_id);
                let patch = patch::result(&self.uid, status, &next, id)?;
                return Ok(Some(Step::write(patch, WriteKind::GiveUp(id.clone(), end))));
            }
            Recovery::Adopt => {
                (record::adopted(status, id, self.compiled.policy.timeout, writer), WriteKind::Attempt(id.clone()))
            }
            Recovery::TryAgain(attempt) => {
                (record::next_attempt(status, id, &attempt, writer), WriteKind::Attempt(id.clone()))
            }
            Recovery::TakeOver => {
                (record::taken_over(status, id, self.compiled.policy.action, writer), WriteKind::Attempt(id.clone()))
            }
        };
        let patch = patch::attempt(&self.uid, generation, status, &next, id)?;
        Ok(Some(Step::write(patch, kind)))
    }

    /// An intent of this term that nobody is acting on was stored by a write whose answer was lost.
    fn adopt_own(&mut self, status: &PeriodicJobStatus, term: &TermRef) {
        for (id, run) in status.active.iter().filter(|(_, run)| run.term == *term && run.ended_at.is_none()) {
            let in_doubt = self.may_be_in_doubt(run);
            let adopted = || Run { intent: run.clone(), state: RunState::Waiting, hold: None, in_doubt };
            self.runs.entry(id.clone()).or_insert_with(adopted);
        }
    }

    /// An attempt that waits, and does something else since an edit: that is stored before it is made.
    fn other_action(&self, status: &PeriodicJobStatus, writer: Writer<'_>) -> Result<Option<Step>, PatchError> {
        let (action, generation) = (self.compiled.policy.action, self.compiled.planned.generation);
        let mut runs =
            self.runs.iter().filter(|(id, run)| run.waits_for_another_action(id, &self.left_running, action));
        let Some((id, _)) = runs.next() else { return Ok(None) };
        let next = record::taken_over(status, id, action, writer);
        let patch = patch::attempt(&self.uid, generation, status, &next, id)?;
        Ok(Some(Step::write(patch, WriteKind::Attempt(id.clone()))))
    }

    fn next_attempt(&self, status: &PeriodicJobStatus, writer: Writer<'_>) -> Result<Option<Step>, PatchError> {
        let generation = self.compiled.planned.generation;
        for (id, run) in &self.runs {
            let RunState::Failed(retry) = &run.state else { continue };
            let attempt = NextAttempt {
                generation,
                action: self.compiled.policy.action,
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
        if plan.replaces {
            self.first_plan.get_or_insert(writer.now);
            let since = *self.replacing_since.get_or_insert(writer.now);
            self.wake = Some(since.plus(REPLACE_TOLD_AFTER)).filter(|tell| *tell > writer.now);
            return Ok(Step::Replace { waits_long: self.wake.is_none() });
        }
        self.replacing_since = None;
        let nothing_new = plan.is_empty() && !ready_differs(status, &self.compiled.readiness);
        if nothing_new || self.overlaps_can_wait(&plan, writer.now) {
            self.first_plan.get_or_insert(writer.now);
            return Ok(Step::Rest);
        }
        let readiness = &self.compiled.readiness;
        let blueprint = Blueprint {
            uid: &self.uid,
            planned: &self.compiled.planned,
            action: self.compiled.policy.action,
            timeout: self.compiled.policy.timeout,
            active_deadline: self.compiled.active_deadline,
            trigger: trigger.as_deref(),
        };
        let (mut next, starts) = record::planned(status, &plan, blueprint, writer);
        if ready_differs(status, readiness) || plan.adopts_edit {
            record::set_ready(&mut next, readiness, self.compiled.planned.generation, writer.now);
        }
        next.next_slots = next_slots(&self.compiled.timetable, next.mark.max(writer.now));
        let alone = self.compiled.rules.concurrency != ConcurrencyPolicy::Allow;
        let fence = if alone && !starts.is_empty() { ActiveFence::MustBeEmpty } else { ActiveFence::MayHoldRuns };
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

/// Whether the job was claimed by a term that is not before this one.
fn outranks(status: &PeriodicJobStatus, term: &TermRef) -> bool {
    let same_token = status.term.token == term.token && status.term.nonce != term.nonce;
    status.term.token > term.token || same_token
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
