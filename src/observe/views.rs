//! What the admin port shows: views of the state that the parts of a replica publish.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    events::{EventCounts, Events},
    metrics::{Metrics, MetricsError},
};
use crate::{
    apiserver::DateSeen,
    clock::{BootTime, SharedClock},
    election::{ElectorReport, Leadership, Standing},
    periodic::SchedulerState,
    server::{AdminViews, Check, Checks, Probe},
};

/// Where the views look.
#[derive(Debug)]
pub struct Views {
    /// The name of the replica.
    pub identity: String,
    /// The name of the Lease, which is the label of the election's metrics.
    pub lease_name: String,
    /// The replica's clock.
    pub clock: SharedClock,
    /// When the replica was started.
    pub started: BootTime,
    /// Where the replica stands.
    pub leadership: Leadership,
    /// What the elector tells.
    pub election: watch::Receiver<ElectorReport>,
    /// The API server's last answer to the elector.
    pub election_date: watch::Receiver<Option<DateSeen>>,
    /// The metrics.
    pub metrics: Metrics,
    /// The Events.
    pub events: Events,
    /// What the scheduler shows.
    pub scheduler: watch::Receiver<SchedulerState>,
    /// Cancelled when the replica is asked to stop.
    pub stopping: CancellationToken,
}

/// The document of `/status`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The name of the replica.
    pub identity: String,
    /// Its version.
    pub version: &'static str,
    /// Its process id.
    pub pid: u32,
    /// Since when it runs.
    pub started_at: Timestamp,
    /// Whether it has been asked to stop.
    pub stopping: bool,
    /// The election.
    pub election: ElectionStatus,
    /// The scheduler.
    pub scheduler: SchedulerStatus,
    /// What became of the Events it has posted.
    pub events: EventCounts,
}

/// The scheduler of this replica, which follows the jobs also while it is a standby.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SchedulerStatus {
    /// Whether the jobs have been listed.
    pub synced: bool,
    /// How many jobs are known.
    pub jobs: usize,
    /// How many of them another Lease owns.
    pub foreign: usize,
    /// How many of them are of another class.
    pub other_class: usize,
    /// How many objects this version cannot read.
    pub unreadable: usize,
    /// How many attempts are going on.
    pub acting: usize,
    /// How many results are to be stored.
    pub unrecorded: usize,
    /// By how much the wall clock is wrong, if by too much to lead while anybody else can.
    pub clock_skew_seconds: Option<f64>,
    /// Whether this replica contends and plans all the same, by the API server's time, because nobody else led.
    pub clock_skew_overruled: bool,
}

/// The election as this replica sees it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ElectionStatus {
    /// The Lease, as `namespace/name`.
    pub lease: String,
    /// `leading`, `standby` or `stopped`.
    pub standing: &'static str,
    /// Since when.
    pub since: Timestamp,
    /// Who holds the Lease, as it was last seen.
    pub holder: Option<String>,
    /// The fencing token, while leading.
    pub token: Option<u64>,
    /// How long this replica may still act without another renewal, while leading.
    pub valid_for_seconds: Option<f64>,
    /// Why the last term of this replica ended.
    pub last_lost: Option<&'static str>,
    /// When the API server last answered the elector.
    pub last_answer_at: Option<Timestamp>,
    /// Why the API server does not serve the Lease, if it does not.
    pub last_error: Option<String>,
}

/// The elector takes a turn every few seconds. One that has not for this long is stuck, and only a restart repairs that.
const STUCK_AFTER: Duration = Duration::from_secs(30);

/// The API server has taken none of this replica's credentials for so long, though they were loaded anew: whatever gives
/// them out has to begin from the beginning. A restart does that, and shows that something is wrong.
const UNAUTHORIZED_MAX: Duration = Duration::from_mins(3);

impl Views {
    /// The views as the admin port takes them.
    pub fn for_admin(self) -> AdminViews {
        let views = Arc::new(self);
        let (for_metrics, for_status, for_checks) = (views.clone(), views.clone(), views);
        AdminViews {
            checks: checks(&for_checks),
            metrics: Arc::new(move || for_metrics.metrics()),
            status: Arc::new(move || serde_json::to_value(for_status.status())),
        }
    }

    fn metrics(&self) -> Result<String, MetricsError> {
        let valid_for = self.valid_for().unwrap_or_default();
        self.metrics.lease_valid(&self.lease_name, valid_for);
        {
            let state = self.scheduler.borrow();
            let skew = state.clock_skew.map_or(0.0, |skew| skew.by.as_secs_f64());
            self.metrics.scheduler(state.synced, state.foreign, state.regressed, skew);
        }
        self.metrics.render()
    }

    fn valid_for(&self) -> Option<Duration> {
        let until = self.election.borrow().valid_until?;
        self.leadership.term().map(|_| until.saturating_since(self.clock.boot()))
    }

    fn status(&self) -> Status {
        let report = self.election.borrow().clone();
        let term = self.leadership.term();
        let standing = match (&term, &*self.leadership.watch().borrow()) {
            (Some(_), _) => "leading",
            (None, Standing::Stopped) => "stopped",
            (None, _) => "standby",
        };
        let election = ElectionStatus {
            lease: report.lease,
            standing,
            since: self.wall(report.since),
            holder: report.holder,
            token: term.map(|term| term.token()),
            valid_for_seconds: self.valid_for().map(|left| left.as_secs_f64()),
            last_lost: report.last_lost.map(crate::election::Lost::reason),
            last_answer_at: self.election_date.borrow().map(|date| self.wall(date.received)),
            last_error: report.last_error,
        };
        Status {
            identity: self.identity.clone(),
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            started_at: self.wall(self.started),
            stopping: self.stopping.is_cancelled(),
            election,
            scheduler: self.scheduler_status(),
            events: self.events.counts(),
        }
    }

    fn scheduler_status(&self) -> SchedulerStatus {
        let state = self.scheduler.borrow();
        SchedulerStatus {
            synced: state.synced,
            jobs: state.jobs,
            foreign: state.foreign,
            other_class: state.other_class,
            unreadable: state.unreadable,
            acting: state.acting,
            unrecorded: state.unrecorded,
            clock_skew_seconds: state.clock_skew.map(|skew| skew.by.as_secs_f64()),
            clock_skew_overruled: state.clock_skew.is_some_and(|skew| skew.overruled),
        }
    }

    /// The time of day at which the boot clock showed `at`, by today's wall clock: for people.
    fn wall(&self, at: BootTime) -> Timestamp {
        let ago = SignedDuration::try_from(self.clock.boot() - at).unwrap_or(SignedDuration::ZERO);
        self.clock.wall().checked_sub(ago).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    fn election_moves(&self) -> Result<(), String> {
        let report = self.election.borrow();
        if matches!(*self.leadership.watch().borrow(), Standing::Stopped) {
            return if self.stopping.is_cancelled() { Ok(()) } else { Err("the elector has ended".to_owned()) };
        }
        let silent = self.clock.boot() - report.last_turn;
        if silent < STUCK_AFTER { Ok(()) } else { Err(format!("its loop has not moved for {} s", silent.as_secs())) }
    }

    fn scheduler_runs(&self) -> Result<(), String> {
        let ended = self.scheduler.has_changed().is_err() && !self.stopping.is_cancelled();
        if ended { Err("the scheduler has ended".to_owned()) } else { Ok(()) }
    }

    fn credentials_hold(&self) -> Result<(), String> {
        credentials_hold(&self.election.borrow(), self.clock.boot())
    }

    /// Once is enough: when the API server goes away later, a standby still does its part by waiting.
    fn lease_served(&self) -> Result<(), String> {
        let report = self.election.borrow();
        match &report.last_error {
            _ if report.served => Ok(()),
            Some(error) => Err(error.clone()),
            None => Err("the API server has not answered yet".to_owned()),
        }
    }

    /// Once is enough, too: who has listed the jobs knows what to run, and a watch that breaks is told in the log.
    fn jobs_listed(&self) -> Result<(), String> {
        let listed = self.scheduler.borrow().synced;
        if listed { Ok(()) } else { Err("the PeriodicJobs in scope have not been listed yet".to_owned()) }
    }
}

/// Credentials that were never taken have to be put right, and a restart does not do that.
fn credentials_hold(report: &ElectorReport, now: BootTime) -> Result<(), String> {
    let refused = report.unauthorized_since.filter(|_| report.served).map(|since| now - since);
    match refused {
        Some(refused) if refused >= UNAUTHORIZED_MAX => {
            Err(format!("the API server has answered 401 for {} s", refused.as_secs()))
        }
        _ => Ok(()),
    }
}

fn checks(views: &Arc<Views>) -> Checks {
    let ask = |views: &Arc<Views>, ask: fn(&Views) -> Result<(), String>| {
        let views = views.clone();
        move || ask(&views)
    };
    let running =
        |views: &Views| if views.stopping.is_cancelled() { Err("the replica is stopping".to_owned()) } else { Ok(()) };
    Checks::new(vec![
        Check::new("elector", Probe::Live, ask(views, Views::election_moves)),
        Check::new("credentials", Probe::Live, ask(views, Views::credentials_hold)),
        Check::new("scheduler", Probe::Live, ask(views, Views::scheduler_runs)),
        Check::new("lease", Probe::Ready, ask(views, Views::lease_served)),
        Check::new("jobs", Probe::Ready, ask(views, Views::jobs_listed)),
        Check::new("shutdown", Probe::Ready, ask(views, running)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(served: bool, unauthorized_since: Option<BootTime>) -> ElectorReport {
        ElectorReport {
            lease: "ns/main".to_owned(),
            holder: None,
            valid_until: None,
            since: BootTime::default(),
            last_lost: None,
            served,
            unauthorized_since,
            last_error: None,
            last_turn: BootTime::default(),
        }
    }

    #[test]
    fn credentials_that_were_taken_and_are_refused_for_long_end_liveness() {
        let since = BootTime::from_origin(Duration::from_secs(100));
        let soon = (since + UNAUTHORIZED_MAX).saturating_sub(Duration::from_secs(1));
        assert_eq!(credentials_hold(&report(true, Some(since)), soon), Ok(()));
        assert!(credentials_hold(&report(true, Some(since)), since + UNAUTHORIZED_MAX).is_err());
        assert_eq!(credentials_hold(&report(false, Some(since)), since + UNAUTHORIZED_MAX), Ok(()), "never taken");
        assert_eq!(credentials_hold(&report(true, None), since + UNAUTHORIZED_MAX), Ok(()));
    }
}
