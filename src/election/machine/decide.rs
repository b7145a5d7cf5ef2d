//! Deciding what to do next, from the state and the time alone.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;

use super::{
    super::{
        record::{self, Holder, Record},
        timing::Timing,
    },
    Action, Contention, Effort, Latest, Lost, Machine, OPEN_WRITES_MAX, OpenWrite, Phase, Way,
};
use crate::clock::BootTime;

impl Machine {
    pub(super) fn drive(&mut self, now: BootTime, wall: Timestamp) {
        if let Phase::Leading(office) = &self.phase {
            if now >= self.timing.valid_until(office.confirmed_sent) {
                self.revoke(Lost::Expired);
            } else if office.drained && self.must_not_lead() {
                self.revoke(Lost::Released);
                self.effort = Effort::Rest { until: now };
            }
        }
        if self.stopping && matches!(self.phase, Phase::Standby) {
            self.phase = Phase::Retired;
            self.actions.push(Action::Retire);
            return;
        }
        match self.effort {
            Effort::Write { deadline, .. } if now >= deadline => self.read(now),
            Effort::Read { deadline, .. } if now >= deadline => self.pause(now),
            _ => {}
        }
        let Effort::Rest { until } = self.effort else { return };
        match &self.phase {
            Phase::Retired => {}
            Phase::Standby => self.drive_standby(until, now, wall),
            Phase::Acquiring { holder } => {
                let holder = holder.clone();
                if now >= until {
                    self.drive_acquiring(&holder, now, wall);
                }
            }
            Phase::Leading(office) => {
                if now >= self.renewal_due(office) {
                    let record = office.record.clone();
                    let lease = record.renewed(self.writes + 1, wall);
                    self.replace(&record, lease, now);
                }
            }
            Phase::Leaving { holder, work_ended } => {
                if *work_ended {
                    let holder = holder.clone();
                    self.drive_leaving(&holder, until, now, wall);
                }
            }
        }
    }

    pub(super) fn drive_standby(&mut self, until: BootTime, now: BootTime, wall: Timestamp) {
        if now >= until && matches!(self.latest, Latest::Unread) {
            self.read(now);
        } else if now >= until && matches!(self.latest, Latest::Absent) && self.fresh_until.is_none() {
            self.make_vacancy(now, wall);
        } else if now >= until && self.contention == Contention::Contend {
            match self.way(now) {
                Way::Wait(_) if now < self.silent_at() => {}
                Way::Wait(_) | Way::Look => self.read(now),
                Way::Go => {
                    let nonce = (self.nonces)();
                    let holder = self.identity.holder(&nonce);
                    self.phase = Phase::Acquiring { holder: holder.clone() };
                    self.acquire(&holder, now, wall);
                }
            }
        }
    }

    /// Puts an empty Lease where there is none. Whoever led may not know yet that it is gone, so this replica has to wait;
    /// and it has to wait on a version, for else it would not notice a Lease that came and went in the meantime.
    pub(super) fn make_vacancy(&mut self, now: BootTime, wall: Timestamp) {
        let write = self.writes + 1;
        let lease = record::vacant(&self.name, &self.namespace, write, self.timing.lease_seconds(), wall);
        self.note_write(None, now);
        self.actions.push(Action::Create { write, lease: Box::new(lease) });
    }

    /// A try to acquire has failed, or nobody knows.
    pub(super) fn drive_acquiring(&mut self, holder: &Holder, now: BootTime, wall: Timestamp) {
        match self.way(now) {
            _ if self.must_not_lead() => self.read(now),
            Way::Wait(until) => self.effort = Effort::Rest { until },
            Way::Look => self.read(now),
            Way::Go => self.acquire(holder, now, wall),
        }
    }

    pub(super) fn way(&self, now: BootTime) -> Way {
        match self.ready_at() {
            Some(ready_at) if now < ready_at => Way::Wait(ready_at),
            // The watch may be silent because it is dead: look before the leap.
            Some(ready_at) if self.heard_at < ready_at => Way::Look,
            _ => Way::Go,
        }
    }

    pub(super) fn drive_leaving(&mut self, leaving: &Holder, until: BootTime, now: BootTime, wall: Timestamp) {
        let standing = match &self.latest {
            Latest::Found(record) if record.content.holder.as_ref() == Some(leaving) => Some(record.clone()),
            _ => None,
        };
        if standing.is_none() && self.open.is_empty() {
            self.phase = Phase::Standby;
            self.effort = Effort::Rest { until: now };
            self.drive(now, wall);
        } else if now >= until {
            match standing {
                Some(record) => {
                    let lease = record.released_by(leaving.nonce(), self.writes + 1, wall);
                    self.replace(&record, lease, now);
                }
                None => self.read(now),
            }
        }
    }

    pub(super) fn acquire(&mut self, holder: &Holder, now: BootTime, wall: Timestamp) {
        let (write, seconds) = (self.writes + 1, self.timing.lease_seconds());
        match &self.latest {
            Latest::Found(record) => {
                let (record, lease) = (record.clone(), record.acquired(&self.identity, holder, write, seconds, wall));
                self.replace(&record, lease, now);
            }
            // Only a fresh installation gets here.
            Latest::Absent | Latest::Unread => {
                let named = (self.namespace.as_str(), self.name.as_str());
                let lease = record::created(named, &self.identity, holder, write, seconds, wall);
                self.note_write(None, now);
                self.actions.push(Action::Create { write, lease: Box::new(lease) });
            }
        }
    }

    pub(super) fn replace(&mut self, base: &Record, lease: Lease, now: BootTime) {
        self.note_write(Some(base.resource_version), now);
        self.actions.push(Action::Replace { write: self.writes, lease: Box::new(lease) });
    }

    pub(super) fn note_write(&mut self, base: Option<u64>, now: BootTime) {
        self.writes += 1;
        if self.open.len() >= OPEN_WRITES_MAX {
            self.open.pop_first();
        }
        self.open.insert(self.writes, OpenWrite { sent: now, base });
        self.effort = Effort::Write { write: self.writes, deadline: now + self.try_deadline(now) };
    }

    pub(super) fn read(&mut self, now: BootTime) {
        self.reads += 1;
        let deadline = now + self.try_deadline(now);
        self.effort = Effort::Read { id: self.reads, deadline, floor: self.newest };
        self.actions.push(Action::Read { id: self.reads });
    }

    pub(super) fn pause(&mut self, now: BootTime) {
        let pause = self.remains(now).map_or_else(|| self.timing.retry_period(), |remains| self.timing.pause(remains));
        self.effort = Effort::Rest { until: now + pause };
    }

    pub(super) fn try_deadline(&self, now: BootTime) -> Duration {
        self.remains(now).map_or_else(|| self.timing.calm_deadline(), Timing::try_deadline)
    }

    /// What is left of the term in office.
    pub(super) fn remains(&self, now: BootTime) -> Option<Duration> {
        match &self.phase {
            Phase::Leading(office) => Some(self.timing.valid_until(office.confirmed_sent).saturating_since(now)),
            _ => None,
        }
    }
}
