//! What the scheduler shows of itself, and what follows from looking at every job at once.

use std::time::Duration;

use super::{
    super::{
        job::{Job, Planning, Reading, RunState, Standoff},
        run,
        scheduler::SchedulerState,
    },
    Engine, SHOWN_EVERY,
};

/// A hand-over to a newer term of this replica's own waits this long for runs at most.
const YIELD_WAITS: Duration = Duration::from_secs(30);

impl Engine {
    pub(super) fn is_idle(&self) -> bool {
        let in_doubt = |job: &Job| job.doubtful && !job.deleted && self.office.is_some();
        let is_busy = |job: &Job| {
            in_doubt(job) || job.busy || job.runs.values().any(|run| !matches!(run.state, RunState::Waiting))
        };
        // What cannot be read cannot be recorded either: its runs are left as they are stored.
        !self.jobs.values().filter(|job| job.reading == Reading::Readable || job.busy).any(is_busy)
    }

    /// Shows the state: at once while a drain waits for it, else a few times a second, because it looks at every job.
    pub(super) fn publish(&mut self) {
        let boot = self.clock.boot();
        let draining = self.drain.borrow().is_some();
        self.shown_is_stale = !draining && boot < self.published + SHOWN_EVERY;
        if self.shown_is_stale {
            return;
        }
        self.published = boot;
        let mut state = SchedulerState {
            synced: self.state.borrow().synced,
            jobs: self.jobs.len(),
            unreadable: self.unreadable.len(),
            clock_skew: self.state.borrow().clock_skew,
            wants_new_term: self.ownership.yields && self.planning == Planning::Closed,
            drained: draining && self.is_idle(),
            ..SchedulerState::default()
        };
        let (mut outranked, mut is_long) = (0, false);
        let soon = self.now().plus(YIELD_WAITS);
        for job in self.jobs.values() {
            outranked += usize::from(job.said == Some(Standoff::Outranked));
            state.foreign += usize::from(matches!(job.said, Some(Standoff::Foreign | Standoff::Outranked)));
            state.other_class += usize::from(job.said == Some(Standoff::OtherClass));
            state.regressed += usize::from(job.said == Some(Standoff::TokenRegressed));
            for run in job.runs.values() {
                match run.state {
                    RunState::Acting(_) => {
                        state.acting += 1;
                        is_long |= !run::lives_on(&run.intent, &job.compiled.policy) && run.intent.deadline > soon;
                    }
                    RunState::Waiting => {}
                    _ => {
                        state.unrecorded += 1;
                        is_long |= job.setbacks > 1;
                    }
                }
            }
        }
        // Not while anything goes on for long: a hand-over waits for it, and nothing new is planned meanwhile. It does not
        // wait for Jobs.
        self.ownership.yields |= outranked > 0 && self.office.is_some() && !is_long;
        self.state.send_if_modified(|shown| {
            let changed = *shown != state;
            *shown = state;
            changed
        });
    }
}
