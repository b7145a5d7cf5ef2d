//! What goes out to the API server: one request per job at a time, so many in all, and after a failure with a pause.

use std::time::Duration;

use futures::FutureExt;
use jiff::Timestamp;

use super::{
    super::{
        adoption,
        job::{Job, Run, RunState, Write, WriteKind},
        run::CLOCKS_APART_MAX,
        store,
    },
    Engine, Event, REQUESTS_MAX,
};
use crate::{
    action::{Attempt, Tidy, Wishes},
    api::ActionKind,
    backoff::Backoff,
    clock::BootTime,
};

/// The pause after a request that came to nothing.
const SETBACK_PAUSE: Backoff = Backoff { initial: Duration::from_millis(25), max: Duration::from_secs(5) };

/// So many of them at most are creations that are only tried: a webhook that hangs must not hold up everything else.
const TRIALS_MAX: usize = 8;

/// When there are so many, a job waits this long before it asks for its turn again.
const TRIAL_TURN: Duration = Duration::from_millis(500);

/// The run id of an attempt that is only tried out: as long as any, so that names that follow from it are, too.
const SAMPLE_RUN_ID: &str = "00000000000000000000000000000000";

impl Engine {
    /// Catch-up starts are paced: after a take-over, everything that was missed would start at once.
    pub(super) fn write_when_it_is_its_turn(&mut self, job: &mut Job, write: Write, boot: BootTime) {
        if write.catches_up {
            let turn = *job.catch_up_at.get_or_insert_with(|| {
                let turn = self.next_catch_up.max(boot);
                self.next_catch_up = turn + self.catch_up_pause;
                turn
            });
            if boot < turn {
                return;
            }
        }
        if matches!(write.kind, WriteKind::Intent { .. }) {
            let now = self.now();
            job.first_plan.get_or_insert(now);
        }
        let (uid, key, clock) = (job.uid.clone(), job.key.clone(), self.clock.clone());
        let client = match (&self.office, write.kind.is_fact()) {
            (_, true) => self.facts.clone(),
            (Some(office), false) => office.gated.clone(),
            (None, false) => return,
        };
        // The hand-over waits for the answer: a stored intent is then acted on and not left to the successor.
        let hold = self.office.as_ref().and_then(|office| office.term.hold_on().ok());
        let Write { patch, kind, .. } = write;
        let looks = self.facts.clone();
        self.begin(job, async move {
            if let WriteKind::Adopt { leave: Some(leave), .. } = &kind {
                let (lease, sent) = (leave.lease().clone(), clock.boot());
                let seen = adoption::look(looks, &clock, &lease).await;
                if !seen.as_ref().is_ok_and(|seen| leave.holds(seen)) {
                    return Event::Looked { lease, sent, seen, job: Some((key, uid)) };
                }
            }
            let answer = store::write(client, clock, key.clone(), patch).await;
            Event::Wrote { job: key, uid, kind, answer, hold }
        });
    }

    pub(super) fn read(&mut self, job: &mut Job) {
        let (client, clock) = (self.facts.clone(), self.clock.clone());
        let (key, uid, floor) = (job.key.clone(), job.uid.clone(), job.version());
        self.begin(job, async move {
            let answer = store::read(client, clock, key.clone()).await;
            Event::Read { job: key, uid, floor, answer }
        });
    }

    /// Asks whether the API server would take what the spec asks for.
    pub(super) fn try_out(&mut self, job: &mut Job) {
        let (Some(office), Some(spec)) = (&self.office, job.compiled.action.clone()) else { return };
        if self.trials >= TRIALS_MAX {
            job.pause_until = Some(self.clock.boot() + TRIAL_TURN);
            return;
        }
        let sample = Attempt {
            run_id: SAMPLE_RUN_ID.to_owned(),
            job: job.key.clone(),
            uid: job.uid.clone(),
            slot: self.clock.wall(),
            attempt: 1,
            guard: office.term.guard(),
            action: spec,
            timeout: job.compiled.policy.timeout,
            active_deadline: job.compiled.given_deadline,
            guarantee: job.compiled.policy.guarantee,
            begun_before: false,
            wishes: Wishes::default(),
        };
        let (key, uid, generation) = (job.key.clone(), job.uid.clone(), job.compiled.planned.generation);
        let action = self.action.clone();
        self.trials += 1;
        self.begin(job, async move {
            let trial = action.try_out(sample).await;
            Event::TriedOut { job: key, uid, generation, trial }
        });
    }

    /// Removes what runs have left behind whose ends are recorded, beside everything else. `ended` is the newest one.
    pub(in super::super) fn tidy(&self, job: &Job, ended: &str) {
        let (Some(office), Some(status)) = (&self.office, &job.status) else { return };
        if job.compiled.policy.action != ActionKind::JobTemplate {
            return;
        }
        let tidy = Tidy {
            job: job.key.clone(),
            uid: job.uid.clone(),
            successful: job.compiled.limits.successful,
            failed: job.compiled.limits.failed,
            ended: ended.to_owned(),
            open: status.active.keys().cloned().collect(),
            until: status.mark.min(self.now()).timestamp(),
            older_than: self.now().timestamp().saturating_sub(CLOCKS_APART_MAX).unwrap_or(Timestamp::MIN),
            guard: office.term.guard(),
        };
        let (term, action) = (office.term.clone(), self.action.clone());
        self.tasks.spawn("history", async move { term.go_on(action.tidy(tidy)).await }).detach();
    }

    fn begin(&mut self, job: &mut Job, request: impl Future<Output = Event> + Send + 'static) {
        job.busy = true;
        self.requests += 1;
        self.doings.push(request.boxed());
    }

    /// A request has come back: another one may go.
    pub(in super::super) fn request_ended(&mut self) {
        self.requests = self.requests.saturating_sub(1);
        while self.requests < REQUESTS_MAX
            && let Some(next) = self.queue.pop_front()
        {
            self.queued.remove(&next);
            self.advance(&next);
        }
    }

    /// Says no to a job for a while: its request came to nothing.
    pub(in super::super) fn set_back(&self, job: &mut Job) {
        job.setbacks = job.setbacks.saturating_add(1);
        // The first one is nobody's fault: an edit came in between. What was read then is acted on at once.
        let wait = if job.setbacks > 1 { SETBACK_PAUSE.wait(job.setbacks, &*self.entropy) } else { Duration::ZERO };
        job.pause_until = Some(self.clock.boot() + wait);
    }

    pub(in super::super) fn run_is_stored(&self, run_id: &str, job: &Job) -> Option<Run> {
        let intent = job.status.as_ref()?.active.get(run_id)?.clone();
        let in_doubt = job.runs.get(run_id).map_or_else(|| job.may_be_in_doubt(&intent), |run| run.in_doubt);
        let hold = self.office.as_ref().and_then(|office| office.term.hold_on().ok());
        Some(Run { intent, state: RunState::Waiting, hold, in_doubt })
    }
}
