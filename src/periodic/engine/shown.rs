//! What the scheduler shows of itself, and what follows from looking at every job at once.

use super::{
    super::{
        job::{Job, Planning, RunState, Standoff},
        scheduler::SchedulerState,
    },
    Engine, SHOWN_EVERY,
};

impl Engine {
    pub(super) fn is_idle(&self) -> bool {
        let in_doubt = |job: &Job| job.doubtful && !job.deleted && self.office.is_some();
        let is_busy = |job: &Job| {
            in_doubt(job) || job.busy || job.runs.values().any(|run| !matches!(run.state, RunState::Waiting))
        };
        !self.jobs.values().any(is_busy)
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
        let mut outranked = 0;
        for job in self.jobs.values() {
            outranked += usize::from(job.said == Some(Standoff::Outranked));
            state.foreign += usize::from(matches!(job.said, Some(Standoff::Foreign | Standoff::Outranked)));
            state.other_class += usize::from(job.said == Some(Standoff::OtherClass));
            state.regressed += usize::from(job.said == Some(Standoff::TokenRegressed));
            for run in job.runs.values() {
                match run.state {
                    RunState::Acting(_) => state.acting += 1,
                    RunState::Waiting => {}
                    _ => state.unrecorded += 1,
                }
            }
        }
        // Not while anything is going on: a hand-over would wait for it, with nothing new being planned meanwhile.
        self.ownership.yields |= outranked > 0 && self.office.is_some() && state.acting + state.unrecorded == 0;
        self.state.send_if_modified(|shown| {
            let changed = *shown != state;
            *shown = state;
            changed
        });
    }
}
