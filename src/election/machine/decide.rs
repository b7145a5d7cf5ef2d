//! Deciding what to do next, from the state and the time alone.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;

use super::{
    super::{
        record::{self, Holder, Pen, Record},
        timing::{TRY_PAUSE_MIN, Timing},
    },
    Action, Contention, Effort, Latest, Lost, Machine, OPEN_READS_LEADING_MAX, OPEN_READS_MAX, OPEN_WRITES_MAX,
    OpenRead, OpenWrite, Phase, Way,
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
        self.end_wait(now);
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
                    let lease = record.renewed(&self.pen(now, wall));
                    self.replace(&record, lease, now);
                }
            }
            Phase::Leaving(leaving) => {
                if leaving.work_ended {
                    let holder = leaving.holder.clone();
                    self.drive_leaving(&holder, until, now, wall);
                }
            }
        }
    }

    /// Ends what is being waited for, if its time is up. What was asked goes on: its answer counts whenever it comes.
    fn end_wait(&mut self, now: BootTime) {
        match self.effort {
            Effort::Write { deadline, .. } if now >= deadline => self.read(now),
            Effort::Read { deadline, id, slow: false } if now >= deadline => {
                // Through the pause after the failed try, the answer is still welcome.
                self.effort = Effort::Read { id, deadline: now + self.pause_after(now, None), slow: true };
            }
            Effort::Read { deadline, .. } if now >= deadline => self.effort = Effort::Rest { until: now },
            // What is asked for is known: the leap need not wait for one more look.
            Effort::Read { .. }
                if matches!(self.phase, Phase::Standby) && self.leaps() && matches!(self.way(now), Way::Go) =>
            {
                self.effort = Effort::Rest { until: now };
            }
            _ => {}
        }
    }

    fn drive_standby(&mut self, until: BootTime, now: BootTime, wall: Timestamp) {
        if now >= until && matches!(self.latest, Latest::Unread) {
            self.read(now);
        } else if now >= until && matches!(self.latest, Latest::Absent) && self.fresh_until.is_none() {
            self.make_vacancy(now, wall);
        } else if now >= until && self.contention == Contention::Contend {
            match self.way(now) {
                Way::Wait(_) if now < self.ask_at() => {}
                Way::Wait(_) | Way::Look => self.ask(now),
                Way::Go => {
                    let nonce = (self.nonces)();
                    let holder = self.identity.holder(&nonce);
                    self.phase = Phase::Acquiring { holder: holder.clone() };
                    self.acquire(&holder, now, wall);
                }
            }
        }
    }

    /// Asks what the watch may have missed, and has it opened anew, once for each sign of the leader: what comes next is to
    /// be heard of at once.
    fn ask(&mut self, now: BootTime) {
        if !std::mem::replace(&mut self.reopened, true) {
            self.actions.push(Action::WatchAnew);
        }
        self.read(now);
    }

    /// Puts an empty Lease where there is none. Whoever led may not know yet that it is gone, so this replica has to wait;
    /// and it has to wait on a version, for else it would not notice a Lease that came and went in the meantime. It shows
    /// the longest duration that this replica knows of, for those who have not seen the one that is gone.
    fn make_vacancy(&mut self, now: BootTime, wall: Timestamp) {
        let seconds = self.timing.lease_seconds().max(Timing::seconds(self.barriers.longest()));
        let lease = record::vacant(self.named(), &self.pen(now, wall), seconds);
        self.create(lease, now);
    }

    /// A try to acquire has failed, or nobody knows.
    fn drive_acquiring(&mut self, holder: &Holder, now: BootTime, wall: Timestamp) {
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
            Some(_) if !self.is_sighted() => Way::Look,
            _ => Way::Go,
        }
    }

    /// The record of the term that has ended is released while it is certainly this term's; else it is left to expire, for
    /// this replica as for any other.
    fn drive_leaving(&mut self, holder: &Holder, until: BootTime, now: BootTime, wall: Timestamp) {
        let Phase::Leaving(leaving) = &self.phase else { return };
        let proved = leaving.proved;
        let shown = match &self.latest {
            Latest::Found(record) if record.content.holder.as_ref() == Some(holder) => Some(record.clone()),
            _ => None,
        };
        match shown {
            Some(record) if proved == Some(record.resource_version) => {
                self.release(&record, holder, until, now, wall);
            }
            shown if self.open.is_empty() => {
                if let Some(record) = shown {
                    self.wait_for(&record, now);
                }
                self.phase = Phase::Standby;
                self.effort = Effort::Rest { until: now };
                self.drive(now, wall);
            }
            _ if now >= until => self.read(now),
            _ => {}
        }
    }

    fn release(&mut self, record: &Record, holder: &Holder, until: BootTime, now: BootTime, wall: Timestamp) {
        if now >= until {
            let lease = record.released_by(&self.pen(now, wall), holder.nonce());
            self.replace(record, lease, now);
        }
    }

    fn acquire(&mut self, holder: &Holder, now: BootTime, wall: Timestamp) {
        let seconds = self.timing.lease_seconds();
        match &self.latest {
            Latest::Found(record) => {
                let (record, lease) = (record.clone(), record.acquired(&self.pen(now, wall), holder, seconds));
                self.replace(&record, lease, now);
            }
            // Only a fresh installation gets here.
            Latest::Absent | Latest::Unread => {
                let lease = record::created(self.named(), &self.pen(now, wall), holder, seconds);
                self.create(lease, now);
            }
        }
    }

    fn named(&self) -> (&str, &str) {
        (&self.namespace, &self.name)
    }

    /// For the next write.
    fn pen(&self, now: BootTime, wall: Timestamp) -> Pen<'_> {
        Pen { identity: &self.identity, write: self.writes + 1, sent: now, wall }
    }

    fn create(&mut self, lease: Lease, now: BootTime) {
        if self.note_write(None, now) {
            self.actions.push(Action::Create { write: self.writes, lease: Box::new(lease) });
        }
    }

    fn replace(&mut self, base: &Record, lease: Lease, now: BootTime) {
        if self.note_write(Some(base.resource_version), now) {
            self.actions.push(Action::Replace { write: self.writes, lease: Box::new(lease) });
        }
    }

    /// Counts a write that is about to be sent. False if the one before it failed a moment ago: it has to wait.
    fn note_write(&mut self, base: Option<u64>, now: BootTime) -> bool {
        if now < self.next_try {
            self.effort = Effort::Rest { until: self.next_try };
            return false;
        }
        self.writes += 1;
        if self.open.len() >= OPEN_WRITES_MAX {
            self.open.pop_first();
        }
        self.open.insert(self.writes, OpenWrite { sent: now, base, lost: false });
        self.effort = Effort::Write { write: self.writes, deadline: now + self.try_deadline(now) };
        true
    }

    /// A try failed that was sent at `sent`: the next one is not sent at once.
    pub(super) fn note_failure(&mut self, sent: BootTime) {
        self.next_try = self.next_try.max(sent + TRY_PAUSE_MIN);
    }

    /// Reads, or waits for a read that is under way: beside a slow one there is at most one more, which goes by a connection
    /// of its own, for the slow one may hang on a dead one.
    pub(super) fn read(&mut self, now: BootTime) {
        let deadline = now + self.try_deadline(now);
        self.reading.retain(|_, read| now < read.sent + self.timing.lease());
        let max = if matches!(self.phase, Phase::Leading(_)) { OPEN_READS_LEADING_MAX } else { OPEN_READS_MAX };
        let fresh = |read: &&OpenRead| now < read.sent + self.timing.lease() / 2;
        if self.reading.values().filter(fresh).count() < max {
            self.reads += 1;
            self.reading.insert(self.reads, OpenRead { floor: self.newest, sent: now });
            self.actions.push(Action::Read { id: self.reads });
        }
        self.effort = Effort::Read { id: self.reads, deadline, slow: false };
    }

    /// After a failed try; `asked` is what the server asked for.
    pub(super) fn pause(&mut self, now: BootTime, asked: Option<Duration>) {
        self.effort = Effort::Rest { until: now + self.pause_after(now, asked) };
    }

    fn pause_after(&self, now: BootTime, asked: Option<Duration>) -> Duration {
        self.remains(now).map_or_else(|| self.timing.calm_pause(asked), |remains| self.timing.pause(remains, asked))
    }

    fn try_deadline(&self, now: BootTime) -> Duration {
        self.remains(now).map_or_else(|| self.timing.calm_deadline(), Timing::try_deadline)
    }

    /// What is left of the term in office.
    fn remains(&self, now: BootTime) -> Option<Duration> {
        match &self.phase {
            Phase::Leading(office) => Some(self.timing.valid_until(office.confirmed_sent).saturating_since(now)),
            _ => None,
        }
    }
}
