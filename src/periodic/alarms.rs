//! When to look at which job again: by the time of day for slots and waits, by the boot clock for pauses.

use std::collections::{BTreeMap, BTreeSet};

use crate::{action::JobRef, api::Instant, clock::BootTime};

/// The alarms of all jobs, at most one of each kind per job.
#[derive(Debug, Default)]
pub struct Alarms {
    wall: BTreeSet<(Instant, JobRef)>,
    boot: BTreeSet<(BootTime, JobRef)>,
    set: BTreeMap<JobRef, (Option<Instant>, Option<BootTime>)>,
}

impl Alarms {
    /// Sets the alarms of `job` in place of those that are set.
    pub fn set(&mut self, job: &JobRef, wall: Option<Instant>, boot: Option<BootTime>) {
        self.clear(job);
        if let Some(at) = wall {
            self.wall.insert((at, job.clone()));
        }
        if let Some(at) = boot {
            self.boot.insert((at, job.clone()));
        }
        if wall.is_some() || boot.is_some() {
            self.set.insert(job.clone(), (wall, boot));
        }
    }

    /// Takes back the alarms of `job`.
    pub fn clear(&mut self, job: &JobRef) {
        let Some((wall, boot)) = self.set.remove(job) else { return };
        if let Some(at) = wall {
            self.wall.remove(&(at, job.clone()));
        }
        if let Some(at) = boot {
            self.boot.remove(&(at, job.clone()));
        }
    }

    /// The jobs whose alarm has come; their alarms are taken back.
    pub fn take_due(&mut self, now: Instant, boot: BootTime) -> Vec<JobRef> {
        let wall = self.wall.iter().take_while(|(at, _)| *at <= now).map(|(_, job)| job.clone());
        let mut due: Vec<JobRef> = wall.collect();
        due.extend(self.boot.iter().take_while(|(at, _)| *at <= boot).map(|(_, job)| job.clone()));
        due.sort_unstable();
        due.dedup();
        for job in &due {
            self.clear(job);
        }
        due
    }

    /// The first alarm by the time of day.
    pub fn first_wall(&self) -> Option<Instant> {
        self.wall.first().map(|(at, _)| *at)
    }

    /// The first alarm by the boot clock.
    pub fn first_boot(&self) -> Option<BootTime> {
        self.boot.first().map(|(at, _)| *at)
    }
}
