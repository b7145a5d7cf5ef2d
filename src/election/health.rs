//! Whether an elector does its work: what a liveness probe asks.

use std::time::Duration;

use tokio::sync::watch;

use super::{
    elector::{ElectorReport, TURN_MAX},
    leadership::{Leadership, Standing},
};
use crate::clock::SharedClock;

/// Answers whether an elector does its work. Clones ask the same elector.
///
/// An API server that does not answer is no fault of the process, and a restart would not help: it is not told here. See
/// [`ElectorReport::last_error`].
#[derive(Debug, Clone)]
pub struct Health {
    pub(super) report: watch::Receiver<ElectorReport>,
    pub(super) leadership: Leadership,
    pub(super) clock: SharedClock,
}

/// The elector does not do its work: a restart helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unhealthy {
    /// The validity of the term has passed, and the elector has not left office.
    #[error("this replica believes to lead {0:?} after its term has ended")]
    Overdue(Duration),
    /// The elector's loop does not get to run.
    #[error("the elector has not taken a turn for {0:?}")]
    Stuck(Duration),
    /// The elector has ended, and was not asked to.
    #[error("the elector has ended by a fault of its own")]
    Ended,
}

impl Health {
    /// Whether the elector does its work, as client-go's `HealthzAdaptor` asks. `max_late` is what a busy machine may cost
    /// beyond the times that the elector keeps: some seconds.
    ///
    /// # Errors
    /// [`Unhealthy`] if it does not.
    pub fn check(&self, max_late: Duration) -> Result<(), Unhealthy> {
        if matches!(*self.leadership.watch().borrow(), Standing::Stopped) {
            return if self.leadership.is_stopping() { Ok(()) } else { Err(Unhealthy::Ended) };
        }
        let now = self.clock.boot();
        let report = self.report.borrow();
        if let Some(valid_until) = report.valid_until
            && now > valid_until + max_late
        {
            return Err(Unhealthy::Overdue(now - valid_until));
        }
        if now > report.last_turn + TURN_MAX + max_late {
            return Err(Unhealthy::Stuck(now - report.last_turn));
        }
        Ok(())
    }
}
