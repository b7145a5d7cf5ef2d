//! What the loop does about attempts: it makes those whose time has come, takes up how they ended, and cancels those of runs
//! that give way to a newer slot or whose job is gone.

use std::time::Duration;

use super::{
    engine::{Engine, Event},
    job::{Acting, Job, Planning, Reading, Run, RunState},
    observer::{AttemptFailure, AttemptStart, Urgency},
    record::RunEnd,
    run::{self, After, Ended},
};
use crate::{
    action::{ActionSpec, Attempt, AttemptEnd, EndKind, JobRef},
    api::{ConcurrencyPolicy, Instant, Outcome},
    election::TermEnded,
};

impl Engine {
    /// Makes the attempts whose time has come. Their intents are stored; the guard is asked here once more, and by the
    /// action as the last step before its first byte.
    pub(super) fn start_due_attempts(&mut self, job: &mut Job) {
        let Some(office) = &self.office else { return };
        if office.term.check().is_err() || job.doubtful {
            return;
        }
        let now = self.now();
        let (action, left_running) = (job.compiled.policy.action, &job.left_running);
        let is_due = |id: &str, run: &Run| {
            let may_start = self.planning == Planning::Open || run.intent.attempt == 1;
            matches!(run.state, RunState::Waiting)
                && run.intent.term == office.name
                && run.intent.not_before <= now
                && may_start
                && !run.waits_for_another_action(id, left_running, action)
        };
        let due: Vec<String> = job.runs.iter().filter(|(id, run)| is_due(id, run)).map(|(id, _)| id.clone()).collect();
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
            run.hold = office.term.hold_on().ok();
        }
        let cut = acting.cut.clone();
        run.state = RunState::Acting(acting);
        let (term, action) = (office.term.clone(), self.action.clone());
        let task = self.tasks.spawn("attempt", async move {
            tokio::select! {
                biased;
                () = cut.cancelled() => Ended::Stopped,
                end = term.go_on(action.attempt(attempt)) => match end {
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

    pub(super) fn on_ended(&mut self, key: &JobRef, uid: &str, run_id: &str, ended: &Ended) {
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
        if job.reading == Reading::Unreadable {
            job.let_go_of_what_is_over();
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

fn lateness(now: jiff::Timestamp, slot: Instant) -> Duration {
    Duration::try_from(now.duration_since(slot.timestamp())).unwrap_or_default()
}
