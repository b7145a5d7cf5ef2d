//! Jobs that change their owner: looks at the Leases whose jobs are taken over, and what is told about it.

use std::time::Duration;

use futures::FutureExt;

use super::{
    super::{
        adoption::{self, LeaseName, Predecessors, Seen},
        job::{Job, Planning},
        observer::Urgency,
    },
    Engine, Event,
};
use crate::{action::JobRef, clock::BootTime};

/// What decides whose a job is, beside the Lease that this scheduler works for.
pub(in super::super) struct Ownership {
    /// The class of the jobs that are ours.
    pub(in super::super) class: Option<String>,
    /// From whom jobs are taken over.
    pub(in super::super) predecessors: Predecessors,
    /// The term in office is too old for what there is to take over: it is to end.
    pub(in super::super) yields: bool,
}

impl Ownership {
    pub(super) fn new(class: Option<String>, adopt_from: Vec<LeaseName>, patience: Duration) -> Self {
        Self { class, predecessors: Predecessors::new(adopt_from, patience), yields: false }
    }
}

impl Engine {
    /// Looks at the Leases whose jobs wait to be taken over. These looks are apart from the requests for jobs: there is at
    /// most one per Lease.
    pub(super) fn look_at_predecessors(&mut self) {
        if self.office.is_none() || self.planning == Planning::Closed {
            return;
        }
        let (jobs, class, sent) = (&self.jobs, self.ownership.class.as_deref(), self.clock.boot());
        let owns = |lease: &str| jobs.values().any(|job| job.is_owned_by(lease) && job.is_of_class(class));
        for lease in self.ownership.predecessors.due(sent, owns) {
            let (client, clock) = (self.facts.clone(), self.clock.clone());
            let look = async move {
                let seen = adoption::look(client, &clock, &lease).await;
                Event::Looked { lease, sent, seen, job: None }
            };
            self.doings.push(look.boxed());
        }
    }

    pub(in super::super) fn on_looked(
        &mut self,
        lease: &LeaseName,
        sent: BootTime,
        seen: &Result<Seen, String>,
        waits: Option<&(JobRef, String)>,
    ) {
        let name = lease.to_string();
        let before = self.ownership.predecessors.leave(&name);
        self.ownership.predecessors.note(lease, seen, sent, self.clock.boot());
        if let Some((key, uid)) = waits {
            if let Some(job) = self.jobs.get_mut(key).filter(|job| job.uid == *uid) {
                job.busy = false;
            }
            self.advance(key);
        }
        if self.ownership.predecessors.leave(&name) != before {
            let owned = self.jobs.values().filter(|job| job.is_owned_by(&name)).map(|job| job.key.clone());
            for job in owned.collect::<Vec<_>>() {
                self.advance(&job);
            }
        }
        if waits.is_some() {
            self.request_ended();
        }
    }

    pub(in super::super) fn tell_adopted(&self, job: &Job, from: &str) {
        let own = &self.controller;
        let before = if from.is_empty() { "nobody".to_owned() } else { format!("the Lease {from}") };
        tracing::info!(periodicjob = %job.key, from, "A job is adopted");
        let note = format!("{before} owned this job; now the Lease {own} does");
        self.notice(&job.key, &job.uid, Urgency::Normal, "Adopted", note);
    }

    pub(in super::super) fn tell_let_go(&self, job: &Job) {
        let own = &self.controller;
        tracing::info!(periodicjob = %job.key, "A job of another class is let go");
        let note = format!("spec.class is not that of the Lease {own}, which owned this job and has let it go");
        self.notice(&job.key, &job.uid, Urgency::Normal, "LetGo", note);
    }
}
