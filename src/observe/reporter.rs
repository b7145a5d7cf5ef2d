//! Turns what the parts of a replica tell into metrics and Events.

use std::{fmt, time::Duration};

use k8s_openapi::api::core::v1::ObjectReference;

use super::{
    events::{Events, Fact, Weight},
    metrics::Metrics,
};
use crate::election::{ElectorObserver, Lost};

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
