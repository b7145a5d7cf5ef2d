//! What the loop does when a request or an attempt has come back, and what it tells about it.

use std::time::Duration;

use super::{
    engine::{Engine, Event},
    job::{Acting, Job, News, Planning, Run, RunState, Standoff, WriteKind},
    observer::{AttemptFailure, AttemptStart, JobGauges, Notice, RunReport, Urgency},
    record::RunEnd,
    run::{self, After, Ended},
    store::{ReadAnswer, WriteAnswer},
};
use crate::{
    action::{ActionSpec, Attempt, AttemptEnd, EndKind, JobRef, Trial},
    api::{ActionKind, ActiveRun, ConcurrencyPolicy, ConditionStatus, ConditionType, Instant, Outcome, PeriodicJob},
    election::TermEnded,
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
                ReadAnswer::Unreadable(error) | ReadAnswer::Failed(error) => {
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
                self.tidy(job);
            }
            WriteKind::LeftOpen(id) => {
                job.runs.remove(id);
            }
        }
    }

    /// Makes the attempts whose time has come. Their intents are stored; the guard is asked here once more, and by the
    /// action as the last step before its first byte.
    pub(super) fn start_due_attempts(&mut self, job: &mut Job) {
        let Some(office) = &self.office else { return };
        if office.term.check().is_err() || job.doubtful {
            return;
        }
        let now = self.now();
        let is_due = |run: &Run| {
            let may_start = self.planning == Planning::Open || run.intent.attempt == 1;
            matches!(run.state, RunState::Waiting)
                && run.intent.term == office.name
                && run.intent.not_before <= now
                && may_start
        };
        let due: Vec<String> = job.runs.iter().filter(|(_, run)| is_due(run)).map(|(id, _)| id.clone()).collect();
        for id in due {
            self.start_attempt(job, id, now);
        }
    }

    fn start_attempt(&mut self, job: &mut Job, run_id: String, now: Instant) {
        let (Some(office), Some(run)) = (&self.office, job.runs.get_mut(&run_id)) else { return };
        let was_begun = run.was_begun(&run_id, &job.left_running);
        let policy = &job.compiled.policy;
        let lives_on = run::lives_on(&run.intent, policy);
        let action = match job.compiled.action.clone() {
            Some(job @ ActionSpec::Job(_)) => Some(job),
            // A Job that was begun is followed, whatever the spec says now.
            _ if lives_on && was_begun => Some(ActionSpec::BegunJob),
            other => other,
        };
        let Some(action) = action else {
            let message = format!("the spec is not valid: {}", job.compiled.readiness.message);
            run.state = RunState::Finished(RunEnd { outcome: Outcome::Failed, message, reason: None, at: now });
            return;
        };
        let intent = &run.intent;
        let acting = Acting::default();
        if self.planning == Planning::Closed {
            acting.wishes.leave.cancel();
        }
        let attempt = Attempt {
            run_id: run_id.clone(),
            job: job.key.clone(),
            uid: job.uid.clone(),
            slot: intent.slot.timestamp(),
            attempt: intent.attempt,
            guard: office.term.guard(),
            action,
            timeout: policy.timeout.min(intent.run_deadline.since(now)),
            active_deadline: job.compiled.given_deadline,
            guarantee: policy.guarantee,
            // The creation of an attempt before this one may still come through.
            begun_before: was_begun || (lives_on && run.in_doubt),
            wishes: acting.wishes.clone(),
        };
        let in_time = intent.attempt == 1 && intent.trigger.is_none() && !attempt.begun_before;
        let missed = job.first_plan.is_none_or(|first| intent.slot <= first);
        let start = AttemptStart {
            run_id: &run_id,
            slot: intent.slot,
            attempt: intent.attempt,
            lateness: (in_time && !missed).then(|| lateness(self.clock.wall(), intent.slot)),
        };
        self.observer.attempt_started(&job.key, &start);
        tracing::debug!(periodicjob = %job.key, run = run_id, slot = %intent.slot, attempt = intent.attempt, "Attempt");
        if run.hold.is_none() {
            run.hold = office.term.hold().ok();
        }
        let cut = acting.cut.clone();
        run.state = RunState::Acting(acting);
        let (term, action) = (office.term.clone(), self.action.clone());
        let task = self.tasks.spawn("attempt", async move {
            tokio::select! {
                biased;
                () = cut.cancelled() => Ended::Stopped,
                end = term.run(action.attempt(attempt)) => match end {
                    Ok(end) => Ended::Attempt(end),
                    Err(TermEnded) => Ended::TermOver,
                },
            }
        });
        let (key, uid) = (job.key.clone(), job.uid.clone());
        self.doings.push(Box::pin(async move {
            let ended = task.await.unwrap_or_else(|panicked| Ended::Panicked(panicked.message));
            Event::Ended { job: key, uid, run_id, ended }
        }));
    }

    fn on_ended(&mut self, key: &JobRef, uid: &str, run_id: &str, ended: &Ended) {
        let now = self.now();
        if let Some(mut job) = self.jobs.remove(key) {
            if job.uid == uid {
                self.attempt_ended(&mut job, run_id, ended, now);
            }
            self.jobs.insert(key.clone(), job);
        }
        self.advance(key);
    }

    fn attempt_ended(&mut self, job: &mut Job, run_id: &str, ended: &Ended, now: Instant) {
        let deleted = job.deleted && *ended == Ended::Stopped;
        let ended = if deleted { &Ended::Deleted } else { ended };
        let (retry_until, action) = (job.retry_until(now), job.compiled.policy.action.as_str());
        let Some(run) = job.runs.get_mut(run_id) else { return };
        let policy = &job.compiled.policy;
        let doubted = doubted(ended, run.in_doubt && !run::lives_on(&run.intent, policy));
        let ended = doubted.as_ref().unwrap_or(ended);
        match run::after_attempt(ended, &run.intent, policy, now, retry_until, &*self.entropy) {
            After::Finish(end) => {
                self.tell_end(&job.key, run_id, &run.intent, &end, action);
                run.state = RunState::Finished(end);
            }
            After::StaysOpen(end) => {
                self.tell_end(&job.key, run_id, &run.intent, &end, action);
                run.state = RunState::LeftOpen(end);
            }
            After::HandOver => {
                tracing::info!(periodicjob = %job.key, run = run_id, "A run goes on and is left to the next leader");
                job.runs.remove(run_id);
                job.left_running.insert(run_id.to_owned());
            }
            After::Retry(retry) => {
                let attempt = run.intent.attempt;
                tracing::info!(
                    periodicjob = %job.key, run = run_id, attempt, reason = retry.message,
                    wait_seconds = retry.wait.as_secs_f64(), bound_seconds = retry.bound.as_secs_f64(),
                    "Attempt failed"
                );
                let (message, wait, bound) = (retry.message.as_str(), retry.wait, retry.bound);
                let failure = AttemptFailure { run_id, attempt, message, wait, bound };
                self.observer.attempt_failed(&job.key, &failure);
                run.in_doubt |= retry.in_doubt;
                run.state = RunState::Failed(retry);
            }
        }
        if job.compiled.rules.concurrency == ConcurrencyPolicy::Forbid {
            job.occupied_until = Some(now);
        }
        if self.planning == Planning::Closed || self.office.is_none() {
            job.give_back_waiting(now, None);
        }
    }

    /// Cancels the runs of a job whose place a newer slot takes. Says whether one of them has ended by that: what is
    /// going on is asked to end, and says itself how it did.
    pub(super) fn replace_runs(&mut self, job: &mut Job) -> bool {
        let (now, action) = (self.now(), job.compiled.policy.action.as_str());
        let mut ended = false;
        for (id, run) in &mut job.runs {
            let failure = match &run.state {
                RunState::Acting(acting) => {
                    acting.wishes.replace.cancel();
                    continue;
                }
                // It is followed from its time on, which has come, and is asked then.
                RunState::Waiting if run.was_begun(id, &job.left_running) => continue,
                RunState::Waiting => run.intent.last_failure.as_deref(),
                RunState::Failed(retry) => Some(retry.message.as_str()),
                RunState::Finished(_) | RunState::LeftOpen(_) => continue,
            };
            let end = run::replaced_while_waiting(failure, run.in_doubt, now);
            self.tell_end(&job.key, id, &run.intent, &end, action);
            run.state = RunState::Finished(end);
            ended = true;
        }
        ended
    }

    /// Cancels what a deleted job has going on; nothing is left to record it in.
    pub(super) fn cancel_runs(&mut self, job: &mut Job) {
        let (now, action) = (self.now(), job.compiled.policy.action.as_str());
        let (key, uid) = (job.key.clone(), job.uid.clone());
        job.runs.retain(|id, run| match &run.state {
            RunState::Acting(acting) => {
                acting.cut.cancel();
                true
            }
            RunState::Finished(end) if end.outcome == Outcome::Cancelled => {
                let note = format!("run {id} was cancelled because the job was deleted");
                self.notice(&key, &uid, Urgency::Normal, "RunCancelled", note);
                false
            }
            RunState::Waiting | RunState::Failed(_) => {
                let message = "the job was deleted".to_owned();
                let end = RunEnd { outcome: Outcome::Cancelled, message, reason: None, at: now };
                self.tell_end(&key, id, &run.intent, &end, action);
                false
            }
            RunState::Finished(_) | RunState::LeftOpen(_) => false,
        });
    }

    fn tell_end(&self, key: &JobRef, run_id: &str, intent: &ActiveRun, end: &RunEnd, action: &'static str) {
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

/// A run that was replaced before its attempt sent anything is in doubt all the same if an attempt before it was.
fn doubted(ended: &Ended, in_doubt: bool) -> Option<Ended> {
    match ended {
        Ended::Attempt(end) if in_doubt && end.kind == (EndKind::Replaced { certain: true }) => {
            Some(Ended::Attempt(AttemptEnd { kind: EndKind::Replaced { certain: false }, ..end.clone() }))
        }
        _ => None,
    }
}

fn owner_of(job: &Job) -> &str {
    job.status.as_ref().map(|status| status.controller.as_str()).unwrap_or_default()
}

fn lateness(now: jiff::Timestamp, slot: Instant) -> Duration {
    Duration::try_from(now.duration_since(slot.timestamp())).unwrap_or_default()
}
