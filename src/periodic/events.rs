//! What the loop does when a request has come back, and what it tells about it and about attempts.

use std::time::Duration;

use super::{
    engine::{Engine, Event},
    job::{Job, News, Planning, Reading, Standoff, WriteKind},
    observer::{JobGauges, Notice, RunReport, Urgency},
    record::RunEnd,
    store::{ReadAnswer, WriteAnswer},
};
use crate::{
    action::{JobRef, Trial},
    api::{ActionKind, ActiveRun, ConditionStatus, ConditionType, Outcome, PeriodicJob},
};

/// What the API server refused is asked about again this much later: a permission or a quota may have come.
const TRIAL_AGAIN: Duration = Duration::from_mins(1);

/// At most this much is added to it, so that a thousand refused jobs do not ask in one moment.
const TRIAL_SPREAD: Duration = Duration::from_secs(15);

/// After so many answers in a row that say neither yes nor no, the object says so.
const TRIALS_UNANSWERED: u32 = 3;

/// While the replica stops, requests that are forbidden are made again for this long.
const FORBIDDEN_FOR: Duration = Duration::from_secs(2);

impl Engine {
    pub(super) fn on_event(&mut self, event: Event) {
        match event {
            Event::Read { job, uid, floor, answer } => self.on_read(&job, &uid, floor, answer),
            Event::Wrote { job, uid, kind, answer, hold } => {
                self.on_wrote(&job, &uid, &kind, answer);
                drop(hold);
            }
            Event::Ended { job, uid, run_id, ended } => self.on_ended(&job, &uid, &run_id, &ended),
            Event::TriedOut { job, uid, generation, trial } => self.on_tried_out(&job, &uid, generation, trial),
            Event::Looked { lease, sent, seen, job } => self.on_looked(&lease, sent, &seen, job.as_ref()),
        }
    }

    fn on_tried_out(&mut self, key: &JobRef, uid: &str, generation: i64, trial: Trial) {
        self.trials = self.trials.saturating_sub(1);
        if let Some(mut job) = self.jobs.remove(key) {
            if job.uid == uid {
                job.busy = false;
                match trial {
                    // It was of a spec that has been edited since.
                    _ if job.compiled.planned.generation != generation => {}
                    Trial::Passed => {
                        job.setbacks = 0;
                        job.passed_trial();
                    }
                    Trial::Refused(message) => {
                        let again = TRIAL_AGAIN + self.entropy.up_to(TRIAL_SPREAD);
                        job.failed_trial(message, self.clock.boot() + again);
                    }
                    Trial::Unknown(error) => {
                        if job.setbacks == 0 {
                            tracing::warn!(periodicjob = %key, error, "Whether a Job could be created is not known");
                        }
                        self.set_back(&mut job);
                        if job.setbacks >= TRIALS_UNANSWERED {
                            job.doubt_trial(&error);
                        }
                    }
                }
            }
            self.jobs.insert(key.clone(), job);
        }
        self.advance(key);
        self.request_ended();
    }

    fn on_read(&mut self, key: &JobRef, uid: &str, floor: u64, answer: ReadAnswer) {
        let mut found = None;
        if let Some(mut job) = self.jobs.remove(key) {
            job.busy = false;
            match answer {
                _ if job.uid != uid => {}
                ReadAnswer::Found(object) => {
                    job.doubtful = false;
                    job.forbidden_since = None;
                    job.note_read(&object, floor);
                    found = Some(object);
                }
                ReadAnswer::Gone => job.deleted = true,
                ReadAnswer::Unreadable(error) => {
                    tracing::warn!(periodicjob = %key, error, "A job cannot be read");
                    job.cannot_be_read();
                }
                ReadAnswer::Failed(error) => {
                    if job.setbacks <= 1 {
                        tracing::warn!(periodicjob = %key, error, "A job cannot be read");
                    }
                    self.set_back(&mut job);
                }
                ReadAnswer::Forbidden(error) => self.forbidden(&mut job, &error),
            }
            self.jobs.insert(key.clone(), job);
        }
        match found {
            Some(object) => self.take_in(key, object),
            None => self.advance(key),
        }
        self.request_ended();
    }

    fn on_wrote(&mut self, key: &JobRef, uid: &str, kind: &WriteKind, answer: WriteAnswer) {
        if let Some(mut job) = self.jobs.remove(key) {
            if job.uid == uid {
                job.busy = false;
                self.take_answer(&mut job, kind, answer);
            }
            self.jobs.insert(key.clone(), job);
        }
        self.advance(key);
        self.request_ended();
    }

    fn take_answer(&mut self, job: &mut Job, kind: &WriteKind, answer: WriteAnswer) {
        match answer {
            WriteAnswer::Written(object) => {
                job.setbacks = 0;
                job.forbidden_since = None;
                self.written(job, kind, &object);
            }
            WriteAnswer::Refused => {
                tracing::debug!(periodicjob = %job.key, ?kind, "A write was refused: it is read and planned again");
                job.doubtful = true;
                self.set_back(job);
            }
            WriteAnswer::Gone => job.deleted = true,
            WriteAnswer::Unsent => {}
            WriteAnswer::NotDone(error) => {
                if job.setbacks == 0 {
                    tracing::warn!(periodicjob = %job.key, error, "A status cannot be written");
                }
                self.set_back(job);
            }
            WriteAnswer::Forbidden(error) => self.forbidden(job, &error),
            WriteAnswer::Unknown(error) => {
                tracing::debug!(periodicjob = %job.key, error, "Whether a status was written is not known");
                job.doubtful = true;
                self.set_back(job);
            }
        }
    }

    /// A right that is lacking may come, so the request is made again; but one that is lacking while this replica stops
    /// was taken away with the installation, and the replica does not wait for it until its grace period ends.
    fn forbidden(&self, job: &mut Job, error: &str) {
        let boot = self.clock.boot();
        let since = *job.forbidden_since.get_or_insert(boot);
        // A right that was lacking long before may be on its way back.
        let since = since.max(self.draining_since.unwrap_or(boot));
        if self.drain.borrow().is_some() && boot >= since + FORBIDDEN_FOR {
            tracing::warn!(periodicjob = %job.key, error, "What became of its runs is not recorded");
            job.give_up_recording();
            return;
        }
        if job.setbacks == 0 {
            tracing::warn!(periodicjob = %job.key, error, "A job may not be read or written");
        }
        self.set_back(job);
    }

    fn written(&mut self, job: &mut Job, kind: &WriteKind, object: &PeriodicJob) {
        let news = job.absorb(object, self.now());
        if self.office.is_some() && job.is_owned_by(&self.controller) {
            self.tell_news(&job.key, &job.uid, &news);
        }
        self.take_up_written(job, kind);
        // An answer may come after its term has ended, even in the next term of this very process: what it stored is not
        // made by this term. Nor is a retry, when nothing new is begun.
        let begun = self.planning == Planning::Open || !matches!(kind, WriteKind::Attempt(_));
        let term = self.office.as_ref().filter(|_| begun).map(|office| office.name.clone());
        job.give_back_waiting(self.now(), term.as_ref());
        if job.reading == Reading::Unreadable {
            job.let_go_of_what_is_over();
        }
    }

    fn take_up_written(&self, job: &mut Job, kind: &WriteKind) {
        match kind {
            WriteKind::First | WriteKind::Claim => {}
            WriteKind::Adopt { from, .. } => self.tell_adopted(job, from),
            WriteKind::LetGo => self.tell_let_go(job),
            WriteKind::Intent { starts, trigger_refused } => {
                for id in starts {
                    if let Some(run) = self.run_is_stored(id, job) {
                        job.runs.insert(id.clone(), run);
                    }
                }
                if let Some(value) = trigger_refused {
                    let note = format!("trigger {value:?} is not run: as many runs are active as may be");
                    self.notice(&job.key, &job.uid, Urgency::Warning, "TriggerRefused", note);
                }
            }
            WriteKind::Attempt(id) => {
                // A new attempt has not been begun by anybody.
                job.left_running.remove(id);
                if let Some(run) = self.run_is_stored(id, job) {
                    job.runs.insert(id.clone(), run);
                }
            }
            WriteKind::GiveUp(id, end) => {
                tracing::warn!(periodicjob = %job.key, run = id, reason = end.message, "A run is given up");
                let report = RunReport {
                    run_id: id,
                    slot: end.at,
                    action: job.compiled.policy.action.as_str(),
                    outcome: end.outcome,
                    attempt: 0,
                    took: Duration::ZERO,
                    message: &end.message,
                };
                self.observer.run_ended(&job.key, &report);
            }
            WriteKind::Finished(id) => {
                job.runs.remove(id);
                self.tidy(job, id);
            }
            WriteKind::LeftOpen(id) => {
                job.runs.remove(id);
            }
        }
    }

    pub(super) fn tell_end(&self, key: &JobRef, run_id: &str, intent: &ActiveRun, end: &RunEnd, action: &'static str) {
        let took = end.at.since(intent.started_at);
        let (outcome, attempt) = (end.outcome, intent.attempt);
        match outcome {
            Outcome::Succeeded | Outcome::Cancelled => {
                tracing::debug!(periodicjob = %key, run = run_id, attempt, outcome = outcome.as_str(), "Run ended");
            }
            _ => tracing::warn!(
                periodicjob = %key, run = run_id, attempt, outcome = outcome.as_str(), reason = end.message, "Run ended"
            ),
        }
        let (slot, message) = (intent.slot, end.message.as_str());
        let report = RunReport { run_id, slot, action, outcome, attempt, took, message };
        self.observer.run_ended(key, &report);
    }

    /// Tells what a new version of an object brought.
    pub(super) fn tell_news(&self, key: &JobRef, uid: &str, news: &News) {
        for (disposition, count) in &news.decided {
            self.observer.slots_decided(key, *disposition, *count);
        }
        for condition in &news.turned {
            let (urgency, reason) = match (condition.kind, condition.status) {
                (ConditionType::Ready, ConditionStatus::False) => (Urgency::Warning, "NotReady"),
                (ConditionType::LastRunSucceeded, ConditionStatus::False) => (Urgency::Warning, "RunFailed"),
                (ConditionType::LastRunSucceeded, ConditionStatus::True) => (Urgency::Normal, "RunSucceeded"),
                _ => continue,
            };
            self.notice(key, uid, urgency, reason, format!("{}: {}", condition.reason, condition.message));
        }
    }

    pub(super) fn stand_off(&self, job: &mut Job, standoff: Standoff) {
        if standoff == Standoff::OtherClass {
            job.said = Some(standoff);
            self.observer.job_forgotten(&job.key);
            return;
        }
        // A deposed leader sees its successor's token: that is no regression, and soon the loop will know.
        let deposed = self.office.as_ref().is_none_or(|office| office.term.check().is_err());
        if deposed || job.said == Some(standoff) {
            return;
        }
        job.said = Some(standoff);
        let (reason, note) = match standoff {
            Standoff::Foreign => {
                let owner = owner_of(job);
                let adopts = self.ownership.predecessors.contains(owner);
                let then = if adopts { ", and is taken over once nobody holds that Lease" } else { "" };
                ("ForeignController", format!("the Lease {owner} owns this job; it is not run here{then}"))
            }
            Standoff::Outranked => {
                let note = "the job was claimed by a term that began after the one in office; it is taken over by the next \
                            term, which begins as soon as nothing is running here";
                ("AdoptionWaits", note.to_owned())
            }
            Standoff::OtherClass => return,
            Standoff::TokenRegressed => (
                "TokenRegressed",
                "the job was claimed by a term that is not before this one: the cluster's store may have been restored from \
                 a backup; the job is not run until status.term is removed"
                    .to_owned(),
            ),
        };
        tracing::warn!(periodicjob = %job.key, reason, "Nothing is done about a job");
        self.notice(&job.key, &job.uid, Urgency::Warning, reason, note);
    }

    /// A run was asked to make room for a newer slot, and has not. Told once for each wait.
    pub(super) fn tell_replace_waits(&self, job: &mut Job) {
        if std::mem::replace(&mut job.replace_told, job.replacing_since) == job.replacing_since {
            return;
        }
        let runs: Vec<&str> = job.runs.keys().map(String::as_str).collect();
        let what = if job.compiled.policy.action == ActionKind::JobTemplate {
            "its Job is gone only when its pods are: look at the pods of the Jobs with the label tenure.dev/run-id, and at the \
             right to delete Jobs"
        } else {
            "its request has not ended"
        };
        let note = format!("a newer slot waits for the run {} to make room, and {what}", runs.join(", "));
        tracing::warn!(periodicjob = %job.key, runs = runs.join(", "), "A run does not make room for a newer slot");
        self.notice(&job.key, &job.uid, Urgency::Warning, "ReplaceWaits", note);
    }

    pub(super) fn tell_gauges(&self, job: &Job) {
        let Some(status) = job.status.as_ref().filter(|_| self.office.is_some() && job.said.is_none()) else { return };
        let gauges = JobGauges {
            last_success: status.last_successful_time,
            next_slot: status.next_slots.first().copied(),
            consecutive_failures: status.consecutive_failures,
            active_runs: status.active.len(),
        };
        self.observer.job_changed(&job.key, gauges);
    }

    pub(super) fn notice(&self, job: &JobRef, uid: &str, urgency: Urgency, reason: &'static str, note: String) {
        self.observer.notice(Notice { job: job.clone(), uid: uid.to_owned(), urgency, reason, note });
    }
}

fn owner_of(job: &Job) -> &str {
    job.status.as_ref().map(|status| status.controller.as_str()).unwrap_or_default()
}
