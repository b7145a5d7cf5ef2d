//! One job as the scheduler knows it, and what is to be done about it next: the decision, without I/O.
//!
//! [`Job::next_step`], in `step`, is asked whenever something has changed and no request for this job is under way: there is never
//! more than one. It looks at the object as it was last read or written, and at the runs that are going on in this process.
//! After an answer in doubt the object is read before anything else.

mod step;

pub use step::{Planning, Step, Surroundings, Write, WriteKind};

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt;
use tokio_util::sync::CancellationToken;

use super::{
    compiled::{Compiled, timetable_of},
    plan::Timetable,
    record::{Readiness, RunEnd},
    run::Retry,
};
use crate::{
    action::{ActionSpec, JobRef, Wishes},
    api::{
        ActionKind, ActiveRun, ConcurrencyPolicy, Condition, ConditionStatus, ConditionType, Counts, Disposition,
        Guarantee, Instant, Outcome, PeriodicJob, PeriodicJobStatus, Planned, TRIGGER_ANNOTATION, TermRef,
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
    /// Since when the API server has refused requests about it for lack of a right, if it has refused the last one so.
    pub forbidden_since: Option<BootTime>,
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
    /// Whether its newest version can be read.
    pub reading: Reading,
    /// Since when its runs have been asked to make room for a newer slot.
    pub replacing_since: Option<Instant>,
    /// The wait for that which has been told.
    pub replace_told: Option<Instant>,
    /// Another object has its name now; it is taken up when the runs of this one have ended.
    pub successor: Option<Box<PeriodicJob>>,
    /// Why nothing is done about it, as far as that has been said.
    pub said: Option<Standoff>,
    /// The runs of this term that go on and that this process has stopped to follow.
    pub left_running: BTreeSet<String>,
    trial: Trying,
    class: Option<String>,
    resource_version: String,
    version: u64,
    created: Instant,
    trigger: Option<String>,
    edit_seen: Instant,
    stored: Option<(Planned, Timetable)>,
    overlaps_written: Option<Instant>,
}

/// Whether the newest version of an object can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// It can.
    Readable,
    /// It was written for another version of Tenure: nothing is begun and nothing written until one can be read.
    Unreadable,
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
    /// Whether an attempt before this one may have had an effect that nobody knows of.
    pub in_doubt: bool,
}

impl Run {
    /// Whether the attempt was begun before, by another leader or in this term, and may be going on without anybody who
    /// follows it. `left_running` are the runs of this term that are.
    pub fn was_begun(&self, id: &str, left_running: &BTreeSet<String>) -> bool {
        self.intent.taken_over || left_running.contains(id)
    }

    /// Whether its next attempt was stored for another action than `action`, and has not been begun.
    pub fn waits_for_another_action(&self, id: &str, left_running: &BTreeSet<String>, action: ActionKind) -> bool {
        matches!(self.state, RunState::Waiting)
            && !self.was_begun(id, left_running)
            && self.intent.action.is_some_and(|stored| stored != action)
    }
}

/// An attempt that is going on.
#[derive(Debug, Clone, Default)]
pub struct Acting {
    /// Cuts it off.
    pub cut: CancellationToken,
    /// Asks it to end by itself.
    pub wishes: Wishes,
}

/// Whether the API server would take what the spec asks for. It is asked once for each generation.
#[derive(Debug)]
enum Trying {
    Due,
    /// It was asked, and there was no answer that says.
    Unanswered(Readiness),
    Passed,
    /// It would not; the spec as it would be is kept, because the reason may be one that passes.
    Refused {
        sound: Box<Compiled>,
        again_at: BootTime,
    },
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
    Acting(Acting),
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
    /// It is to be taken over, and was claimed by a term that began after the one in office.
    Outranked,
    /// It is of another class, and another installation's on purpose.
    OtherClass,
    /// It was claimed by a term with a larger token than ours, or by another one with the same.
    TokenRegressed,
}

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
            forbidden_since: None,
            pause_until: None,
            wake: None,
            catch_up_at: None,
            first_plan: None,
            occupied_until: None,
            deleted: false,
            reading: Reading::Readable,
            replacing_since: None,
            replace_told: None,
            successor: None,
            said: None,
            left_running: BTreeSet::new(),
            trial: Trying::Due,
            class: None,
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

    /// Whether the Lease `controller` owns it.
    pub fn is_owned_by(&self, controller: &str) -> bool {
        self.status.as_ref().is_some_and(|status| status.controller == controller)
    }

    /// Whether it is of this class.
    pub fn is_of_class(&self, class: Option<&str>) -> bool {
        self.class.as_deref() == class
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
        self.reading = Reading::Readable;
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
            let before = std::mem::replace(&mut self.compiled, Compiled::of(&object.spec, generation));
            // An edit of the schedule needs no new trial of the template.
            let passed = matches!(self.trial, Trying::Passed) && self.compiled.asks_for_the_same(&before);
            self.trial = if passed { Trying::Passed } else { Trying::Due };
            self.edit_seen = now;
        }
        self.resource_version = object.resource_version().unwrap_or_default();
        self.version = version_of(object);
        let created = object.metadata.creation_timestamp.as_ref();
        self.created = created.map_or(self.created, |time| Instant::new(time.0));
        self.class.clone_from(&object.spec.class);
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
        self.replacing_since = None;
        self.left_running.clear();
    }

    /// Whether the API server is to be asked about the action before the spec is planned.
    fn is_untried(&self, status: Option<&PeriodicJobStatus>) -> bool {
        let is_passed = |condition: &&Condition| {
            condition.kind == ConditionType::Ready
                && condition.status == ConditionStatus::True
                && condition.observed_generation == self.compiled.planned.generation
        };
        let passed_before = status.is_some_and(|status| status.conditions.iter().any(|known| is_passed(&known)));
        let asks = matches!(self.compiled.action, Some(ActionSpec::Job(_)));
        asks && matches!(self.trial, Trying::Due | Trying::Unanswered(_)) && !passed_before
    }

    /// What the status says while it is not known whether the API server would take what the spec asks for.
    fn trial_doubt(&self) -> Option<&Readiness> {
        match &self.trial {
            Trying::Unanswered(readiness) => Some(readiness),
            _ => None,
        }
    }

    /// The API server was asked, and its answers say neither yes nor no. It is asked again.
    pub fn doubt_trial(&mut self, error: &str) {
        // One answer is told: the next ones may differ in each word, and would be a write each.
        if self.trial_doubt().is_some() {
            return;
        }
        self.trial = Trying::Unanswered(Readiness {
            ready: ConditionStatus::Unknown,
            reason: "JobTemplateUntried",
            message: format!(
                "whether a Job could be created is not known, and nothing is planned until it is: {error}"
            ),
        });
    }

    /// The API server takes what the spec asks for.
    pub fn passed_trial(&mut self) {
        self.trial = Trying::Passed;
    }

    /// The API server would refuse what the spec asks for. It is asked again at `again_at`.
    pub fn failed_trial(&mut self, message: String, again_at: BootTime) {
        let refused = self.compiled.refused(message);
        let sound = Box::new(std::mem::replace(&mut self.compiled, refused));
        self.trial = Trying::Refused { sound, again_at };
    }

    /// Whether an attempt before the one of this intent, of which nothing else is known, may have had an effect. Under
    /// `AtMostOnce` there is another attempt only if the one before it sent nothing.
    pub fn may_be_in_doubt(&self, intent: &ActiveRun) -> bool {
        intent.attempt > 1 && self.compiled.policy.guarantee == Guarantee::AtLeastOnce
    }

    /// When the API server is to be asked again.
    pub fn trial_again_at(&self) -> Option<BootTime> {
        match &self.trial {
            Trying::Refused { again_at, .. } => Some(*again_at),
            Trying::Due | Trying::Unanswered(_) | Trying::Passed => None,
        }
    }

    /// Takes up a refused spec again: as an edit that is seen now, so that nothing from before is run.
    pub fn try_again(&mut self, now: Instant) {
        if let Trying::Refused { sound, .. } = std::mem::replace(&mut self.trial, Trying::Due) {
            self.compiled = *sound;
            self.edit_seen = now;
        }
    }

    /// What ends with a term or with the planning: attempts that are stored and not made are given back. Under
    /// `AtLeastOnce` the next leader finds all it needs in the stored attempt; under `AtMostOnce` it must be told that
    /// nothing of it was sent, unless it was begun before. Attempts of the term `but_of` are kept.
    pub fn give_back_waiting(&mut self, now: Instant, but_of: Option<&TermRef>) {
        let guarantee = self.compiled.policy.guarantee;
        let left_running = &self.left_running;
        self.runs.retain(|id, run| {
            if but_of == Some(&run.intent.term) {
                return true;
            }
            let message = match &run.state {
                RunState::Waiting => "the leader's term ended before the attempt was made".to_owned(),
                RunState::Failed(retry) => retry.message.clone(),
                _ => return true,
            };
            let is_told = guarantee == Guarantee::AtLeastOnce || run.was_begun(id, left_running);
            if is_told && matches!(run.state, RunState::Waiting) {
                return false;
            }
            run.state = RunState::LeftOpen(RunEnd { outcome: Outcome::Interrupted, message, reason: None, at: now });
            true
        });
    }

    /// Its newest version cannot be read: nothing is begun and nothing written until one can.
    pub fn cannot_be_read(&mut self) {
        self.reading = Reading::Unreadable;
        self.let_go_of_what_is_over();
    }

    /// A hand-over does not wait for what has ended and cannot be recorded.
    pub fn let_go_of_what_is_over(&mut self) {
        for run in self.runs.values_mut().filter(|run| !matches!(run.state, RunState::Acting(_))) {
            run.hold = None;
        }
    }

    /// What has ended is not recorded any more: its intent stays as it is, for the next leader to settle.
    pub fn give_up_recording(&mut self) {
        self.doubtful = false;
        self.runs.retain(|_, run| !matches!(run.state, RunState::Finished(_) | RunState::LeftOpen(_)));
    }

    /// Under Forbid, the next slot after `now`: a retry that would begin later is not made.
    pub fn retry_until(&self, now: Instant) -> Option<Instant> {
        let forbids = self.compiled.rules.concurrency == ConcurrencyPolicy::Forbid && !self.compiled.timetable.suspend;
        let schedule = self.compiled.timetable.schedule.as_ref().filter(|_| forbids)?;
        schedule.next_after(now.timestamp()).map(Instant::new)
    }
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
        (Disposition::Replaced, before.replaced, after.replaced),
    ];
    all.into_iter().filter(|(_, before, after)| after > before).map(|(what, b, a)| (what, a - b)).collect()
}

#[cfg(test)]
mod tests;
