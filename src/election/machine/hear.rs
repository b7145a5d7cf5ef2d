//! Taking events in: what each of them proves, and what it does not.

use super::{
    super::{
        barriers::Waits,
        record::{Holder, Record},
    },
    Action, Effort, Event, InOffice, Latest, Lost, Machine, Phase, ReadOutcome, Tenure, WriteOutcome,
};
use crate::clock::BootTime;

impl Machine {
    pub(super) fn take(&mut self, event: Event, now: BootTime) {
        match event {
            Event::Read { id, outcome } => self.take_read(id, outcome, now),
            Event::Watched(record) => {
                if record.resource_version > self.newest {
                    self.observe(record, now);
                }
            }
            Event::WatchedGone { resource_version } => {
                if resource_version > self.newest {
                    self.newest = resource_version;
                    self.observe_absence(now);
                }
            }
            Event::Answered { write, outcome } => self.take_answer(write, outcome, now),
            Event::Tick => {}
            Event::Ended => self.revoke(Lost::Expired),
            Event::WorkEnded => {
                if let Phase::Leaving { work_ended, .. } = &mut self.phase {
                    *work_ended = true;
                }
            }
            Event::Drained => {
                if let Phase::Leading(office) = &mut self.phase {
                    office.drained = true;
                }
            }
            Event::Stop => self.stopping = true,
            Event::Contend(contention) => self.contention = contention,
        }
    }

    /// Only the read that is being waited for counts: an older one may show a past that is settled.
    pub(super) fn take_read(&mut self, id: u64, outcome: ReadOutcome, now: BootTime) {
        let Effort::Read { id: expected, floor, .. } = self.effort else { return };
        if id != expected {
            return;
        }
        let missed = match &outcome {
            ReadOutcome::Failed => false,
            ReadOutcome::Absent => matches!(self.latest, Latest::Found(_)),
            ReadOutcome::Found(record) => record.resource_version > self.newest,
        };
        if missed && matches!(self.phase, Phase::Standby) && !matches!(self.latest, Latest::Unread) {
            self.actions.push(Action::WatchAnew);
        }
        match outcome {
            ReadOutcome::Failed => self.pause(now),
            ReadOutcome::Absent => {
                self.effort = Effort::Rest { until: now };
                let refused = self.conflicted.take().is_some_and(|write| write.base.is_none());
                self.observe_absence(now);
                if refused || !self.open.is_empty() {
                    // A create has failed, or is still on its way: the next one, or the next read, is not sent at once.
                    self.pause(now);
                }
            }
            ReadOutcome::Found(record) => {
                self.effort = Effort::Rest { until: now };
                if record.resource_version < floor {
                    // Older than what was known when the read was sent: the store itself went back.
                    self.revoke(Lost::Edited);
                    self.newest = record.resource_version;
                    // They name versions that this store has not got: waiting for it to reach them could take for ever.
                    self.open.clear();
                }
                // Nothing has changed since the conflict: something else refuses the write, and the next one is not sent
                // at once.
                let base = self.conflicted.take().and_then(|write| write.base);
                let refused = base == Some(record.resource_version);
                self.observe(record, now);
                if refused || !self.open.is_empty() {
                    self.pause(now);
                }
            }
        }
    }

    pub(super) fn take_answer(&mut self, write: u64, outcome: WriteOutcome, now: BootTime) {
        let awaited = matches!(self.effort, Effort::Write { write: expected, .. } if expected == write);
        match outcome {
            WriteOutcome::Stored(record) => {
                if awaited {
                    self.effort = Effort::Rest { until: now };
                }
                self.observe(record, now);
                self.open.remove(&write);
            }
            WriteOutcome::Conflict => {
                let known = self.open.remove(&write);
                if awaited {
                    self.conflicted = known;
                    self.read(now);
                }
            }
            WriteOutcome::Refused => {
                self.open.remove(&write);
                if awaited {
                    self.pause(now);
                }
            }
            WriteOutcome::Unclear => {
                if awaited {
                    self.read(now);
                }
            }
        }
    }

    pub(super) fn observe(&mut self, record: Record, now: BootTime) {
        if record.resource_version < self.newest {
            return;
        }
        self.heard_at = now;
        self.newest = record.resource_version;
        self.fresh_until = None;
        match record.content.holder.clone() {
            Some(holder) if self.identity.owns(&holder) => self.observe_own(holder, &record, now),
            _ => self.observe_other(&record, now),
        }
        // A write that names an older version can no longer be stored; a create cannot while there is a Lease.
        self.open.retain(|_, open| open.base.is_some_and(|base| base >= record.resource_version));
        self.latest = Latest::Found(record);
        self.settle();
    }

    pub(super) fn observe_own(&mut self, holder: Holder, record: &Record, now: BootTime) {
        let shown = record.content.write;
        match &mut self.phase {
            Phase::Acquiring { holder: acquiring } if *acquiring == holder => {
                match shown.and_then(|write| Some((write, self.open.get(&write)?.sent))) {
                    Some((write, sent)) => self.enter_office(holder, record.clone(), write, sent, now),
                    None => self.phase = Phase::Leaving { holder, work_ended: true },
                }
            }
            Phase::Leading(office) if office.holder == holder => {
                let sent = match shown {
                    Some(write) if write == office.confirmed => Some(office.confirmed_sent),
                    Some(write) => self.open.get(&write).map(|open| open.sent),
                    None => None,
                };
                let known = &office.record.content;
                let edited = record.uid != office.record.uid
                    || record.content.transitions != known.transitions
                    || record.content.duration != known.duration;
                let Some((write, sent)) = shown.zip(sent).filter(|_| !edited) else {
                    self.revoke(Lost::Edited);
                    return;
                };
                office.record = record.clone();
                if write > office.confirmed {
                    office.confirmed = write;
                    office.confirmed_sent = sent;
                    self.extend(now);
                }
            }
            Phase::Leading(_) | Phase::Retired => {}
            Phase::Leaving { holder: leaving, .. } if *leaving == holder => {}
            Phase::Standby | Phase::Acquiring { .. } | Phase::Leaving { .. } => {
                self.phase = Phase::Leaving { holder, work_ended: true };
            }
        }
    }

    pub(super) fn observe_other(&mut self, record: &Record, now: BootTime) {
        self.revoke(if record.content.holder.is_some() { Lost::Superseded } else { Lost::Edited });
        // Its holder is dead, and acquired when nothing else stood in the way.
        if self.identity.succeeds(&record.content) {
            return;
        }
        let waits = Waits { own_lease: self.timing.lease(), foreign_grace: self.timing.foreign_grace() };
        self.barriers.observe(record, now, waits);
    }

    pub(super) fn observe_absence(&mut self, now: BootTime) {
        self.heard_at = now;
        self.revoke(Lost::Vanished);
        self.latest = Latest::Absent;
        // They carry the uid of an object that is gone.
        self.open.retain(|_, open| open.base.is_none());
        self.settle();
    }

    /// An attempt to acquire is over when no try of it can still be stored, or none should be.
    pub(super) fn settle(&mut self) {
        let absent = matches!(self.latest, Latest::Absent) && self.fresh_until.is_none();
        if matches!(self.phase, Phase::Acquiring { .. }) && (self.open.is_empty() || absent) {
            self.phase = Phase::Standby;
        }
    }

    pub(super) fn enter_office(&mut self, holder: Holder, record: Record, write: u64, sent: BootTime, now: BootTime) {
        let valid_until = self.timing.valid_until(sent);
        if now >= valid_until || self.must_not_lead() {
            self.phase = Phase::Leaving { holder, work_ended: true };
            return;
        }
        self.barriers.clear();
        self.actions.push(Action::Lead(Tenure {
            token: record.resource_version,
            nonce: holder.nonce().to_owned(),
            valid_until,
            lease_end: self.timing.lease_end(sent),
        }));
        self.effort = Effort::Rest { until: now };
        self.phase = Phase::Leading(Box::new(InOffice {
            holder,
            record,
            confirmed: write,
            confirmed_sent: sent,
            drained: false,
        }));
    }

    pub(super) fn extend(&mut self, now: BootTime) {
        let Phase::Leading(office) = &self.phase else { return };
        let sent = office.confirmed_sent;
        self.actions.push(Action::Extend {
            valid_until: self.timing.valid_until(sent),
            lease_end: self.timing.lease_end(sent),
        });
        // Whatever was being waited for is settled by this.
        self.effort = Effort::Rest { until: now };
    }

    /// Ends the term in office, if there is one.
    pub(super) fn revoke(&mut self, lost: Lost) {
        let Phase::Leading(office) = &self.phase else { return };
        self.phase = Phase::Leaving { holder: office.holder.clone(), work_ended: false };
        self.actions.push(Action::Revoke(lost));
    }
}
