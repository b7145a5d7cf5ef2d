//! The decisions of the election: a function of (state, event, now) that returns actions. Pure: no I/O, no clock, no
//! randomness inside. The rules it keeps, each with the failure that it prevents:
//!
//! - **Validity** counts from before the last *confirmed* write was sent ([`Timing`]).
//! - **An unclear answer confirms nothing.** A read that shows write n confirms n only, from n's own send time; a write
//!   stays open until a read or an answer settles it, and a late answer counts.
//! - **Evidence revokes at once**: a newer record of another term, a Lease that is gone, emptied or edited.
//! - **A standby waits** for everything that it has seen ([`Barriers`]), on its own clock, and reads before it acquires on
//!   an expiry.
//! - **A term that has ended is released** by a compare-and-swap, once its work has ended; this process never acquires over
//!   its own unreleased record, and never writes over another's.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;

use super::{
    barriers::{Barriers, Readiness},
    record::{self, Holder, Identity, Record},
    timing::Timing,
};
use crate::clock::BootTime;

/// Writes whose fate is unknown, at most. One is added per failed try; at the shortest pause of a 1 s lease that is seconds
/// without any answer, long after the term has ended.
const OPEN_WRITES_MAX: usize = 64;

/// What happened.
#[derive(Debug, Clone)]
pub(super) enum Event {
    /// A GET was answered, or was not.
    Read { id: u64, outcome: ReadOutcome },
    /// The watch showed a record.
    Watched(Record),
    /// The watch showed that the Lease was deleted, in this version.
    WatchedGone { resource_version: u64 },
    /// A write was answered, or will not be.
    Answered { write: u64, outcome: WriteOutcome },
    /// Time has passed.
    Tick,
    /// The term in office is over: the watchdog was first.
    Ended,
    /// No gated work of the term that ended is left.
    WorkEnded,
    /// No work is left at all: a planned hand-over may go on.
    Drained,
    /// This replica must end, handing over if it leads.
    Stop,
    /// Whether this replica may lead at all.
    Contend(Contention),
}

/// Whether a replica may lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Contention {
    /// It takes part.
    #[default]
    Contend,
    /// It hands over if it leads, and does not acquire.
    StandAside,
}

#[derive(Debug, Clone)]
pub(super) enum ReadOutcome {
    Found(Record),
    Absent,
    Failed,
}

#[derive(Debug, Clone)]
pub(super) enum WriteOutcome {
    /// It was stored; this is what the server answered.
    Stored(Record),
    /// It was certainly not stored: something else was there.
    Conflict,
    /// It was certainly not stored: the server would not take it.
    Refused,
    /// Nobody knows.
    Unclear,
}

/// What to do.
#[derive(Debug, Clone)]
pub(super) enum Action {
    Read { id: u64 },
    Create { write: u64, lease: Box<Lease> },
    Replace { write: u64, lease: Box<Lease> },
    Lead(Tenure),
    Extend { valid_until: BootTime, lease_end: BootTime },
    Revoke(Lost),
    Retire,
}

/// A term that begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tenure {
    pub(super) token: u64,
    pub(super) nonce: String,
    pub(super) valid_until: BootTime,
    pub(super) lease_end: BootTime,
}

/// Why a term ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// No write was confirmed in time.
    Expired,
    /// Another term is in office.
    Superseded,
    /// The Lease was deleted.
    Vanished,
    /// Somebody edited the Lease.
    Edited,
    /// It was handed over as planned.
    Released,
}

impl Lost {
    /// A fixed word for metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Superseded => "superseded",
            Self::Vanished => "vanished",
            Self::Edited => "edited",
            Self::Released => "released",
        }
    }
}

/// Names that no other term has.
pub(super) type Nonces = Box<dyn FnMut() -> String + Send>;

pub(super) struct Machine {
    name: String,
    namespace: String,
    timing: Timing,
    identity: Identity,
    nonces: Nonces,
    fresh_installation: bool,
    phase: Phase,
    latest: Latest,
    /// The newest version seen of the Lease, whether it still exists or not: older news is no news.
    newest: u64,
    /// When `latest` was heard of.
    heard_at: BootTime,
    barriers: Barriers,
    effort: Effort,
    open: BTreeMap<u64, OpenWrite>,
    writes: u64,
    reads: u64,
    stopping: bool,
    contention: Contention,
    actions: Vec<Action>,
}

#[derive(Debug)]
enum Phase {
    Standby,
    Acquiring {
        holder: Holder,
    },
    Leading(Box<InOffice>),
    /// A term of this process has ended; its record may still stand.
    Leaving {
        holder: Holder,
        work_ended: bool,
    },
    Retired,
}

#[derive(Debug)]
struct InOffice {
    holder: Holder,
    /// The newest version of the Lease that is known to be this term's.
    record: Record,
    confirmed: u64,
    confirmed_sent: BootTime,
    drained: bool,
}

#[derive(Debug)]
enum Latest {
    Unread,
    Absent,
    Found(Record),
}

/// The one thing that is being waited for.
#[derive(Debug, Clone, Copy)]
enum Effort {
    Rest { until: BootTime },
    Write { deadline: BootTime, write: u64 },
    Read { deadline: BootTime, id: u64, floor: u64 },
}

/// Whether anything stands in the way of an acquisition.
#[derive(Debug, Clone, Copy)]
enum Way {
    Wait(BootTime),
    Look,
    Go,
}

#[derive(Debug, Clone, Copy)]
struct OpenWrite {
    sent: BootTime,
    /// The version that it replaces; `None` for a create.
    base: Option<u64>,
}

impl Machine {
    pub(super) fn new(
        (namespace, name): (&str, &str),
        timing: Timing,
        identity: Identity,
        nonces: Nonces,
        fresh_installation: bool,
    ) -> Self {
        Self {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            timing,
            identity,
            nonces,
            fresh_installation,
            phase: Phase::Standby,
            latest: Latest::Unread,
            newest: 0,
            heard_at: BootTime::default(),
            barriers: Barriers::default(),
            effort: Effort::Rest { until: BootTime::default() },
            open: BTreeMap::new(),
            writes: 0,
            reads: 0,
            stopping: false,
            contention: Contention::Contend,
            actions: Vec::new(),
        }
    }

    /// Takes an event at `now`, and says what to do. A write among the actions counts as sent at `now`: it must not be sent
    /// earlier.
    pub(super) fn step(&mut self, event: Event, now: BootTime, wall: Timestamp) -> Vec<Action> {
        self.take(event, now);
        self.drive(now, wall);
        std::mem::take(&mut self.actions)
    }

    /// When to send [`Event::Tick`] if nothing else happens before.
    pub(super) fn next_wake(&self) -> Option<BootTime> {
        let effort = match self.effort {
            Effort::Rest { until } => Some(until),
            Effort::Write { deadline, .. } | Effort::Read { deadline, .. } => Some(deadline),
        };
        match &self.phase {
            Phase::Retired => None,
            Phase::Standby if matches!(self.effort, Effort::Rest { .. }) => self.standby_wake(),
            Phase::Leading(office) => {
                let due =
                    if matches!(self.effort, Effort::Rest { .. }) { Some(self.renewal_due(office)) } else { effort };
                due.min(Some(self.timing.valid_until(office.confirmed_sent)))
            }
            Phase::Leaving { work_ended: false, .. } if matches!(self.effort, Effort::Rest { .. }) => None,
            Phase::Standby | Phase::Acquiring { .. } | Phase::Leaving { .. } => effort,
        }
    }

    /// Who holds the Lease, as far as this replica knows.
    pub(super) fn holder(&self) -> Option<&Holder> {
        match &self.latest {
            Latest::Found(record) => record.content.holder.as_ref(),
            Latest::Unread | Latest::Absent => None,
        }
    }

    /// Whether a leader should end its work, because this replica stops or stands aside.
    pub(super) fn wants_drain(&self) -> bool {
        matches!(self.phase, Phase::Leading(_)) && self.must_not_lead()
    }

    fn must_not_lead(&self) -> bool {
        self.stopping || self.contention == Contention::StandAside
    }

    fn standby_wake(&self) -> Option<BootTime> {
        let Effort::Rest { until } = self.effort else { return None };
        let vacate = matches!(self.latest, Latest::Absent) && !self.fresh_installation;
        if matches!(self.latest, Latest::Unread) || vacate {
            return Some(until);
        }
        (self.contention == Contention::Contend).then(|| until.max(self.ready_at().unwrap_or(until)))
    }

    fn ready_at(&self) -> Option<BootTime> {
        match self.barriers.readiness() {
            Readiness::Now => None,
            Readiness::After(expiry) => Some(expiry + self.timing.rank_jitter(self.identity.rank())),
        }
    }

    fn renewal_due(&self, office: &InOffice) -> BootTime {
        let Effort::Rest { until } = self.effort else { return office.confirmed_sent };
        let unsettled = self.open.range(office.confirmed + 1..).next().is_some();
        if unsettled { until } else { until.max(self.timing.renew_at(office.confirmed_sent)) }
    }
}

/// Taking events in.
impl Machine {
    fn take(&mut self, event: Event, now: BootTime) {
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
    fn take_read(&mut self, id: u64, outcome: ReadOutcome, now: BootTime) {
        let Effort::Read { id: expected, floor, .. } = self.effort else { return };
        if id != expected {
            return;
        }
        match outcome {
            ReadOutcome::Failed => self.pause(now),
            ReadOutcome::Absent => {
                self.effort = Effort::Rest { until: now };
                self.observe_absence(now);
            }
            ReadOutcome::Found(record) => {
                self.effort = Effort::Rest { until: now };
                if record.resource_version < floor {
                    // Older than what was known when the read was sent: the store itself went back.
                    self.revoke(Lost::Edited);
                    self.newest = record.resource_version;
                }
                self.observe(record, now);
                if !self.open.is_empty() {
                    self.pause(now);
                }
            }
        }
    }

    fn take_answer(&mut self, write: u64, outcome: WriteOutcome, now: BootTime) {
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
                self.open.remove(&write);
                if awaited {
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

    fn observe(&mut self, record: Record, now: BootTime) {
        if record.resource_version < self.newest {
            return;
        }
        self.heard_at = now;
        self.newest = record.resource_version;
        self.fresh_installation = false;
        match record.content.holder.clone() {
            Some(holder) if self.identity.owns(&holder) => self.observe_own(holder, &record, now),
            _ => self.observe_other(&record, now),
        }
        // A write that names an older version can no longer be stored; a create cannot while there is a Lease.
        self.open.retain(|_, open| open.base.is_some_and(|base| base >= record.resource_version));
        self.latest = Latest::Found(record);
        self.settle();
    }

    fn observe_own(&mut self, holder: Holder, record: &Record, now: BootTime) {
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

    fn observe_other(&mut self, record: &Record, now: BootTime) {
        self.revoke(if record.content.holder.is_some() { Lost::Superseded } else { Lost::Edited });
        self.barriers.observe(record, now, self.timing.lease());
    }

    fn observe_absence(&mut self, now: BootTime) {
        self.heard_at = now;
        self.revoke(Lost::Vanished);
        self.latest = Latest::Absent;
        // They carry the uid of an object that is gone.
        self.open.retain(|_, open| open.base.is_none());
        self.settle();
    }

    /// An attempt to acquire is over when no try of it can still be stored, or none should be.
    fn settle(&mut self) {
        let absent = matches!(self.latest, Latest::Absent) && !self.fresh_installation;
        if matches!(self.phase, Phase::Acquiring { .. }) && (self.open.is_empty() || absent) {
            self.phase = Phase::Standby;
        }
    }

    fn enter_office(&mut self, holder: Holder, record: Record, write: u64, sent: BootTime, now: BootTime) {
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
    fn revoke(&mut self, lost: Lost) {
        let Phase::Leading(office) = &self.phase else { return };
        self.phase = Phase::Leaving { holder: office.holder.clone(), work_ended: false };
        self.actions.push(Action::Revoke(lost));
    }
}

/// Deciding what to do next.
impl Machine {
    fn drive(&mut self, now: BootTime, wall: Timestamp) {
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

    fn drive_standby(&mut self, until: BootTime, now: BootTime, wall: Timestamp) {
        if now >= until && matches!(self.latest, Latest::Unread) {
            self.read(now);
        } else if now >= until && matches!(self.latest, Latest::Absent) && !self.fresh_installation {
            self.make_vacancy(now, wall);
        } else if now >= until && self.contention == Contention::Contend {
            match self.way(now) {
                Way::Wait(_) => {}
                Way::Look => self.read(now),
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
    fn make_vacancy(&mut self, now: BootTime, wall: Timestamp) {
        let write = self.writes + 1;
        let lease = record::vacant(&self.name, &self.namespace, write, self.timing.lease_seconds(), wall);
        self.note_write(None, now);
        self.actions.push(Action::Create { write, lease: Box::new(lease) });
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

    fn way(&self, now: BootTime) -> Way {
        match self.ready_at() {
            Some(ready_at) if now < ready_at => Way::Wait(ready_at),
            // The watch may be silent because it is dead: look before the leap.
            Some(ready_at) if self.heard_at < ready_at => Way::Look,
            _ => Way::Go,
        }
    }

    fn drive_leaving(&mut self, leaving: &Holder, until: BootTime, now: BootTime, wall: Timestamp) {
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

    fn acquire(&mut self, holder: &Holder, now: BootTime, wall: Timestamp) {
        let (write, seconds) = (self.writes + 1, self.timing.lease_seconds());
        match &self.latest {
            Latest::Found(record) => {
                let (record, lease) = (record.clone(), record.acquired(holder, write, seconds, wall));
                self.replace(&record, lease, now);
            }
            // Only a fresh installation gets here.
            Latest::Absent | Latest::Unread => {
                let lease = record::created(&self.name, &self.namespace, holder, write, seconds, wall);
                self.note_write(None, now);
                self.actions.push(Action::Create { write, lease: Box::new(lease) });
            }
        }
    }

    fn replace(&mut self, base: &Record, lease: Lease, now: BootTime) {
        self.note_write(Some(base.resource_version), now);
        self.actions.push(Action::Replace { write: self.writes, lease: Box::new(lease) });
    }

    fn note_write(&mut self, base: Option<u64>, now: BootTime) {
        self.writes += 1;
        if self.open.len() >= OPEN_WRITES_MAX {
            self.open.pop_first();
        }
        self.open.insert(self.writes, OpenWrite { sent: now, base });
        self.effort = Effort::Write { write: self.writes, deadline: now + self.try_deadline(now) };
    }

    fn read(&mut self, now: BootTime) {
        self.reads += 1;
        let deadline = now + self.try_deadline(now);
        self.effort = Effort::Read { id: self.reads, deadline, floor: self.newest };
        self.actions.push(Action::Read { id: self.reads });
    }

    fn pause(&mut self, now: BootTime) {
        let pause = self.remains(now).map_or_else(|| self.timing.retry_period(), |remains| self.timing.pause(remains));
        self.effort = Effort::Rest { until: now + pause };
    }

    fn try_deadline(&self, now: BootTime) -> std::time::Duration {
        self.remains(now).map_or_else(|| self.timing.calm_deadline(), Timing::try_deadline)
    }

    /// What is left of the term in office.
    fn remains(&self, now: BootTime) -> Option<std::time::Duration> {
        match &self.phase {
            Phase::Leading(office) => Some(self.timing.valid_until(office.confirmed_sent).saturating_since(now)),
            _ => None,
        }
    }
}
