//! Turns what the parts of a replica tell into metrics and Events.

use std::{fmt, time::Duration};

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource;

use super::{
    events::{Events, Fact, Weight},
    metrics::{Metrics, ObjectGauges},
};
use crate::{
    action::JobRef,
    api::{Disposition, Instant, PeriodicJob},
    election::{ElectorObserver, Lost, TryFailure},
    periodic::{AttemptFailure, AttemptStart, JobGauges, Notice, Observer, RunReport, Urgency},
};

/// Is told of everything that a replica does, and shows it.
pub struct Reporter {
    metrics: Metrics,
    events: Events,
    /// The name of the replica.
    identity: String,
    /// The Lease: its name is the label of the election's metrics.
    lease: String,
    lease_reference: ObjectReference,
}

impl Reporter {
    /// A reporter for the replica `identity`, which contends for the Lease `name` in `namespace`.
    pub fn new(metrics: Metrics, events: Events, identity: &str, namespace: &str, name: &str) -> Self {
        let lease_reference = ObjectReference {
            api_version: Some("coordination.k8s.io/v1".to_owned()),
            kind: Some("Lease".to_owned()),
            namespace: Some(namespace.to_owned()),
            name: Some(name.to_owned()),
            ..Default::default()
        };
        Self { metrics, events, identity: identity.to_owned(), lease: name.to_owned(), lease_reference }
    }

    /// This replica contends though its clock is wrong by so much, because nobody else leads.
    pub fn clock_overruled(&self, by: SignedDuration) {
        let note = format!(
            "the time of day of {} is off the API server's by {:.1} s; nobody has held the Lease for long, so it contends \
             all the same and plans by the API server's time",
            self.identity,
            by.as_secs_f64()
        );
        self.lease_event(Weight::Warning, "ClockSkewOverruled", "Contend", note);
    }

    fn lease_event(&self, weight: Weight, reason: &'static str, action: &'static str, note: String) {
        self.events.post(Fact { regarding: self.lease_reference.clone(), weight, reason, action, note });
    }
}

impl ElectorObserver for Reporter {
    fn term_began(&self, token: u64) {
        self.metrics.term_began(&self.lease);
        let note = format!("{} leads, with token {token}", self.identity);
        self.lease_event(Weight::Normal, "BecameLeader", "Acquire", note);
    }

    fn term_ended(&self, lost: Lost) {
        self.metrics.term_ended(&self.lease, lost.reason());
        let weight = if lost == Lost::Released { Weight::Normal } else { Weight::Warning };
        let note = format!("{} no longer leads: {}", self.identity, lost.reason());
        self.lease_event(weight, "StoppedLeading", "Release", note);
    }

    fn write_confirmed(&self, took: Duration) {
        self.metrics.lease_renewed(&self.lease, took);
    }

    fn try_failed(&self, why: TryFailure) {
        self.metrics.lease_try_failed(&self.lease, why.reason());
    }
}

impl Observer for Reporter {
    fn slots_decided(&self, _job: &JobRef, disposition: Disposition, count: u64) {
        self.metrics.slots_decided(disposition.as_str(), count);
    }

    fn attempt_started(&self, _job: &JobRef, start: &AttemptStart<'_>) {
        if let Some(lateness) = start.lateness {
            self.metrics.run_started(lateness);
        }
    }

    // The status and the log have each failed attempt; a metric of its own would be one more than the contract names.
    fn attempt_failed(&self, _job: &JobRef, _failure: &AttemptFailure<'_>) {}

    fn run_ended(&self, _job: &JobRef, end: &RunReport<'_>) {
        self.metrics.run_ended(end.action, end.outcome.as_str(), end.took);
    }

    fn job_changed(&self, job: &JobRef, gauges: JobGauges) {
        let gauges = ObjectGauges {
            last_success: gauges.last_success.map(unix_seconds),
            next_slot: gauges.next_slot.map(unix_seconds),
            consecutive_failures: gauges.consecutive_failures.into(),
            active_runs: i64::try_from(gauges.active_runs).unwrap_or(i64::MAX),
        };
        self.metrics.object(&job.namespace, &job.name, gauges);
    }

    fn job_forgotten(&self, job: &JobRef) {
        self.metrics.forget_object(&job.namespace, &job.name);
    }

    fn office_left(&self) {
        self.metrics.forget_objects();
    }

    fn notice(&self, notice: Notice) {
        let regarding = ObjectReference {
            api_version: Some(PeriodicJob::api_version(&()).into_owned()),
            kind: Some(PeriodicJob::kind(&()).into_owned()),
            namespace: Some(notice.job.namespace),
            name: Some(notice.job.name),
            uid: Some(notice.uid),
            ..Default::default()
        };
        let weight = match notice.urgency {
            Urgency::Normal => Weight::Normal,
            Urgency::Warning => Weight::Warning,
        };
        self.events.post(Fact { regarding, weight, reason: notice.reason, action: "Reconcile", note: notice.note });
    }
}

fn unix_seconds(at: Instant) -> f64 {
    // Exact to the millisecond for the next few thousand years.
    at.timestamp().duration_since(jiff::Timestamp::UNIX_EPOCH).as_secs_f64()
}

impl fmt::Debug for Reporter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Reporter")
            .field("identity", &self.identity)
            .field("lease", &self.lease)
            .finish_non_exhaustive()
    }
}
