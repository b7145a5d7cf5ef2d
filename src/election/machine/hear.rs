//! Taking events in: what each of them proves, and what it does not.

use std::time::Duration;

use super::{
    super::{
        barriers::Waits,
        record::{Holder, Record},
        timing::Timing,
    },
    Action, Effort, Event, InOffice, Latest, Leaving, Lost, Machine, Phase, ReadOutcome, Tenure, WriteOutcome,
};
use crate::clock::BootTime;

/// How a record became known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// As the answer to this process's own write: it is what that write stored.
    Answer,
    /// From a watch event.
    Watch,
    /// From a read that was sent then.
    Read(BootTime),
}

impl Machine {
    pub(super) fn take(&mut self, event: Event, now: BootTime) {
        match event {
            Event::Read { id, outcome } => self.take_read(id, outcome, now),
            Event::Watched(record) => {
                if record.resource_version > self.newest {
                    self.observe(record, Source::Watch, now);
                }
            }
            Event::WatchedGone { resource_version } => {
                if resource_version > self.newest {
                    self.newest = resource_version;
                    self.observe_absence(now, now);
                }
            }
            Event::Answered { write, outcome } => self.take_answer(write, outcome, now),
            Event::Tick => {}
            Event::Ended => self.revoke(Lost::Expired),
            Event::WorkEnded => {
                if let Phase::Leaving(leaving) = &mut self.phase {
                    leaving.work_ended = true;
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

    /// Every answer counts, however late: what was asked when this replica knew no more than `floor` shows that or
    /// something newer. Only the newest read is waited for.
    fn take_read(&mut self, id: u64, outcome: ReadOutcome, now: BootTime) {
        let Some(read) = self.reading.remove(&id) else { return };
        let awaited = matches!(self.effort, Effort::Read { .. });
        let newest = matches!(self.effort, Effort::Read { id: expected, .. } if expected == id);
        match outcome {
            ReadOutcome::Failed { retry_after } => {
                self.note_failure(read.sent);
                if newest {
                    self.pause(now, retry_after);
                }
            }
            ReadOutcome::Absent => {
                if awaited {
                    self.effort = Effort::Rest { until: now };
                }
                if self.newest > read.floor {
                    // Something newer has been seen since it was asked: which of the two came later, nobody knows.
                    return;
                }
                self.note_miss(matches!(self.latest, Latest::Found(_)));
                let refused = newest && self.conflicted.take().is_some_and(|write| write.base.is_none());
                self.observe_absence(read.sent, now);
                if awaited && (refused || !self.open.is_empty()) {
                    // A create has failed, or is still on its way: the next one, or the next read, is not sent at once.
                    self.pause(now, None);
                }
            }
            ReadOutcome::Found(record) => {
                if awaited {
                    self.effort = Effort::Rest { until: now };
                }
                if record.resource_version < read.floor {
                    self.go_back(&record);
                }
                self.note_miss(record.resource_version > self.newest);
                // Nothing has changed since the conflict: something else refuses the write, and the next one is not sent
                // at once.
                let base = if newest { self.conflicted.take().and_then(|write| write.base) } else { None };
                let refused = base == Some(record.resource_version);
                self.observe(record, Source::Read(read.sent), now);
                if awaited && (refused || !self.open.is_empty()) && matches!(self.effort, Effort::Rest { .. }) {
                    self.pause(now, None);
                }
            }
        }
    }

    /// A read shows less than was known when it was sent: the store itself went back.
    fn go_back(&mut self, record: &Record) {
        self.revoke(Lost::Edited);
        self.newest = record.resource_version;
        // They name versions that this store has not got: waiting for it to reach them could take for ever.
        self.open.clear();
        self.reading.clear();
        if let Phase::Leaving(leaving) = &mut self.phase {
            leaving.proved = None;
        }
    }

    /// The watch has missed something.
    fn note_miss(&mut self, missed: bool) {
        if missed && matches!(self.phase, Phase::Standby) && !matches!(self.latest, Latest::Unread) {
            self.actions.push(Action::WatchAnew);
        }
    }

    fn take_answer(&mut self, write: u64, outcome: WriteOutcome, now: BootTime) {
        let awaited = matches!(self.effort, Effort::Write { write: expected, .. } if expected == write);
        if let Some(open) = self.open.get(&write).filter(|_| !matches!(outcome, WriteOutcome::Stored(_))) {
            let sent = open.sent;
            self.note_failure(sent);
        }
        match outcome {
            WriteOutcome::Stored(record) => {
                if awaited {
                    self.effort = Effort::Rest { until: now };
                }
                self.observe(record, Source::Answer, now);
                self.open.remove(&write);
            }
            WriteOutcome::Conflict => {
                let known = self.open.remove(&write);
                if awaited {
                    self.conflicted = known;
                    self.read(now);
                }
            }
            WriteOutcome::Refused { retry_after } => {
                self.open.remove(&write);
                if awaited {
                    self.pause(now, retry_after);
                }
            }
            WriteOutcome::Unclear => {
                if let Some(open) = self.open.get_mut(&write) {
                    open.lost = true;
                }
                if awaited {
                    self.read(now);
                }
            }
        }
        self.forget_what_is_settled();
    }

    fn observe(&mut self, record: Record, source: Source, now: BootTime) {
        if record.resource_version < self.newest {
            return;
        }
        self.note_sign(&record, source, now);
        self.newest = record.resource_version;
        self.fresh_until = None;
        let own = record.content.holder.clone().filter(|holder| self.is_at_hand(holder));
        match own {
            Some(holder) => self.observe_own(holder, &record, source, now),
            None => self.observe_other(&record, now),
        }
        self.latest = Latest::Found(record);
        self.forget_what_is_settled();
        self.settle();
    }

    /// When the leader was last heard of, and at which pace.
    fn note_sign(&mut self, record: &Record, source: Source, now: BootTime) {
        self.asked_at = self.asked_at.max(match source {
            Source::Read(sent) => sent,
            Source::Answer | Source::Watch => now,
        });
        let known = match &self.latest {
            Latest::Found(known) => Some(&known.content),
            Latest::Unread | Latest::Absent => None,
        };
        if known == Some(&record.content) {
            return;
        }
        let renewed = known.is_some_and(|known| known.holder.is_some() && known.holder == record.content.holder);
        let interval = now - self.heard_at;
        self.intervals = if renewed { [Some(interval), self.intervals[0]] } else { [None; 2] };
        self.heard_at = now;
        self.reopened = false;
    }

    /// A write that names an older version can no longer be stored, and a create cannot while there is a Lease. The one that
    /// the record shows stays open while its answer may still come, if that is to prove that the record is this term's.
    fn forget_what_is_settled(&mut self) {
        let Latest::Found(record) = &self.latest else { return };
        let awaited = match &self.phase {
            Phase::Leaving(leaving)
                if record.content.holder.as_ref() == Some(&leaving.holder)
                    && leaving.proved != Some(record.resource_version) =>
            {
                record.content.write
            }
            _ => None,
        };
        let version = record.resource_version;
        self.open.retain(|write, open| {
            open.base.is_some_and(|base| base >= version) || (awaited == Some(*write) && !open.lost)
        });
    }

    /// Whether this is the term that this process is concerned with: the one in office, being acquired, or being left. An
    /// earlier term of this process is another term: only an old manifest shows it, and somebody may have led since.
    fn is_at_hand(&self, holder: &Holder) -> bool {
        match &self.phase {
            Phase::Acquiring { holder: acquiring } => acquiring == holder,
            Phase::Leading(office) => office.holder == *holder,
            Phase::Leaving(leaving) => leaving.holder == *holder && !leaving.superseded,
            Phase::Standby | Phase::Retired => false,
        }
    }

    fn observe_own(&mut self, holder: Holder, record: &Record, source: Source, now: BootTime) {
        let timing = self.timing;
        let shown = record.content.write;
        let sent = shown.and_then(|write| Some((write, self.open.get(&write)?.sent)));
        match &mut self.phase {
            Phase::Acquiring { .. } => match sent {
                Some(sent) => self.enter_office(holder, record.clone(), sent, source, now),
                // It has been acquired by a try that was given up, or somebody has put its record back.
                None => self.phase = Phase::Leaving(Leaving::of(holder, true, None)),
            },
            Phase::Leading(office) => {
                let sent = sent
                    .or_else(|| Some((office.confirmed, office.confirmed_sent)).filter(|known| shown == Some(known.0)));
                let known = &office.record.content;
                let edited = record.uid != office.record.uid
                    || record.content.transitions != known.transitions
                    || record.content.duration != known.duration;
                let Some((write, sent)) = sent.filter(|_| !edited) else {
                    self.revoke(Lost::Edited);
                    if let Phase::Leaving(leaving) = &mut self.phase {
                        leaving.superseded = true;
                    }
                    self.wait_for(record, now);
                    return;
                };
                office.record = record.clone();
                if proves(timing, source, sent, now) {
                    office.proved = record.resource_version;
                }
                if write > office.confirmed {
                    office.confirmed = write;
                    office.confirmed_sent = sent;
                    self.extend(now);
                }
            }
            Phase::Leaving(leaving) => {
                if sent.is_some_and(|(_, sent)| proves(timing, source, sent, now)) {
                    leaving.proved = Some(record.resource_version);
                }
            }
            Phase::Standby | Phase::Retired => {}
        }
    }

    fn observe_other(&mut self, record: &Record, now: BootTime) {
        self.revoke(if record.content.holder.is_some() { Lost::Superseded } else { Lost::Edited });
        if let Phase::Leaving(leaving) = &mut self.phase {
            leaving.superseded = true;
        }
        // Its holder is dead, and acquired when nothing else stood in the way.
        if !self.identity.succeeds(record, self.timing.lease(), now) {
            self.wait_for(record, now);
        }
    }

    /// Puts up what this record demands to be waited for.
    pub(super) fn wait_for(&mut self, record: &Record, now: BootTime) {
        let waits = Waits { own_lease: self.timing.lease(), foreign_grace: self.timing.foreign_grace() };
        self.barriers.observe(record, now, waits);
    }

    /// There is no Lease, as a question of `asked` showed.
    fn observe_absence(&mut self, asked: BootTime, now: BootTime) {
        self.asked_at = self.asked_at.max(asked);
        self.heard_at = now;
        self.intervals = [None; 2];
        self.revoke(Lost::Vanished);
        if let Phase::Leaving(leaving) = &mut self.phase {
            leaving.superseded = true;
        }
        self.latest = Latest::Absent;
        // They carry the uid of an object that is gone.
        self.open.retain(|_, open| open.base.is_none());
        self.settle();
    }

    /// An attempt to acquire is over when no try of it can still be stored, or none should be.
    fn settle(&mut self) {
        let absent = matches!(self.latest, Latest::Absent) && self.fresh_until.is_none();
        if matches!(self.phase, Phase::Acquiring { .. }) && (self.open.is_empty() || absent) {
            self.phase = Phase::Standby;
        }
    }

    fn enter_office(&mut self, holder: Holder, record: Record, write: (u64, BootTime), source: Source, now: BootTime) {
        let (write, sent) = write;
        let valid_until = self.timing.valid_until(sent);
        let proved = record.resource_version;
        if now >= valid_until || self.must_not_lead() {
            let proved = proves(self.timing, source, sent, now).then_some(proved);
            self.phase = Phase::Leaving(Leaving::of(holder, true, proved));
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
            proved,
            drained: false,
        }));
    }

    fn extend(&mut self, now: BootTime) {
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
        let (holder, proved) = (office.holder.clone(), office.proved);
        self.phase = Phase::Leaving(Leaving::of(holder, false, Some(proved)));
        self.actions.push(Action::Revoke(lost));
    }
}

/// Whether a record that shows this term's write, sent at `sent`, is certainly this term's and not an old manifest of it
/// that somebody has put back after another term. It is, as the answer to the write itself; and as long as nobody else can
/// have acquired since.
fn proves(timing: Timing, source: Source, sent: BootTime, now: BootTime) -> bool {
    source == Source::Answer || now < timing.lease_end(sent)
}

/// The pace that a record has shown, at most as slow as clocks can make that of a sound leader.
pub(super) fn pace(intervals: [Option<Duration>; 2], duration: Duration) -> Duration {
    let shown = intervals.into_iter().flatten().min();
    shown.unwrap_or(duration / 3).min(Timing::pace_max(duration))
}
