//! The decisions of the election: a function of (state, event, now) that returns actions. Pure: no I/O, no clock, no
//! randomness inside. The rules it keeps, each with the failure that it prevents:
//!
//! - **Validity** counts from before the last *confirmed* write was sent ([`Timing`]).
//! - **An unclear answer confirms nothing.** A read that shows write n confirms n only, from n's own send time; a write
//!   stays open until a read or an answer settles it, and a late answer counts.
//! - **Evidence revokes at once**: a newer record of another term, a Lease that is gone, emptied or edited.
//! - **Every answer counts, however late.** Where answers take longer than a try, a replica that waits for the one it asked
//!   for last would never learn anything.
//! - **A standby waits** for everything that it has seen ([`Barriers`]), on its own clock, and before it acquires on an
//!   expiry it has asked whether the leader is really silent.
//! - **A silent watch is not believed**: a standby that hears of no renewal by the pace of those before asks, goes on asking,
//!   and has the watch opened anew. A dead watch would show it a leader's last sign of life only when the lease has run out,
//!   and it would then wait for another one.
//! - **A term that has ended is released** by a compare-and-swap, once its work has ended, and only over a record that is
//!   certainly its own: one that this process's own write has stored, or that it saw while nobody else can have acquired.
//!   A record of an earlier term of this process, or of this one after another's, is an old manifest that somebody has put
//!   back. It is another term's: it revokes, and it is waited for.
//! - **A try that failed is followed by a pause**, of what the server asks for if that leaves the term time.

mod decide;
mod hear;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;

use super::{
    barriers::{Barriers, Readiness},
    record::{Holder, Identity, Record},
    timing::Timing,
};
use crate::clock::BootTime;

/// Writes whose fate is unknown, at most. One is added per failed try; at the shortest pause of a 1 s lease that is seconds
/// without any answer, long after the term has ended.
const OPEN_WRITES_MAX: usize = 64;

/// Reads that were sent within half of a lease and are under way, at most: a slow one, and one beside it in case that hangs
/// on a dead connection. What takes longer is not waited for, though its answer still counts.
const OPEN_READS_MAX: usize = 2;

/// The same for a leader, whose tries are short: the slow ones of an outage must not keep it from asking what has become of
/// its renewal.
const OPEN_READS_LEADING_MAX: usize = 8;

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
#[allow(clippy::large_enum_variant, reason = "one at a time, on its way from an answer to the machine")]
pub(super) enum ReadOutcome {
    Found(Record),
    Absent,
    Failed { retry_after: Option<Duration> },
}

#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "one at a time, on its way from an answer to the machine")]
pub(super) enum WriteOutcome {
    /// It was stored; this is what the server answered.
    Stored(Record),
    /// It was certainly not stored: something else was there.
    Conflict,
    /// It was certainly not stored: the server would not take it.
    Refused { retry_after: Option<Duration> },
    /// Nobody knows.
    Unclear,
}

/// What to do.
#[derive(Debug, Clone)]
pub(super) enum Action {
    Read {
        id: u64,
    },
    Create {
        write: u64,
        lease: Box<Lease>,
    },
    Replace {
        write: u64,
        lease: Box<Lease>,
    },
    Lead(Tenure),
    Extend {
        valid_until: BootTime,
        lease_end: BootTime,
    },
    Revoke(Lost),
    /// The watch has missed something: it is to be opened anew.
    WatchAnew,
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
#[non_exhaustive]
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
    /// Until then a missing Lease is one that there never was. Later somebody may have led and have been cut off.
    fresh_until: Option<BootTime>,
    /// The write that met a conflict, until the read after it.
    conflicted: Option<OpenWrite>,
    phase: Phase,
    latest: Latest,
    /// The newest version seen of the Lease, whether it still exists or not: older news is no news.
    newest: u64,
    /// When `latest` was heard of: the last sign of whoever holds the Lease.
    heard_at: BootTime,
    /// The last two intervals between such signs of the present holder.
    intervals: [Option<Duration>; 2],
    /// The newest question, or event of the watch, that has shown `latest`.
    asked_at: BootTime,
    /// Whether the watch has been opened anew since the last sign.
    reopened: bool,
    barriers: Barriers,
    effort: Effort,
    /// No write is sent before this: the last one failed a moment ago.
    next_try: BootTime,
    open: BTreeMap<u64, OpenWrite>,
    /// Reads under way.
    reading: BTreeMap<u64, OpenRead>,
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
    Leaving(Leaving),
    Retired,
}

#[derive(Debug)]
struct Leaving {
    holder: Holder,
    work_ended: bool,
    /// The version of the Lease that is certainly this term's: it may be released.
    proved: Option<u64>,
    /// Something else has been seen in the Lease: what shows this term from now on is an old manifest.
    superseded: bool,
}

#[derive(Debug)]
struct InOffice {
    holder: Holder,
    /// The newest version of the Lease that is known to be this term's.
    record: Record,
    confirmed: u64,
    confirmed_sent: BootTime,
    /// The newest version that is certainly this term's.
    proved: u64,
    drained: bool,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "a machine has one")]
enum Latest {
    Unread,
    Absent,
    Found(Record),
}

/// The one thing that is being waited for.
#[derive(Debug, Clone, Copy)]
enum Effort {
    Rest {
        until: BootTime,
    },
    Write {
        deadline: BootTime,
        write: u64,
    },
    /// Slow, if its time is up, and what goes on is the pause after a failed try.
    Read {
        deadline: BootTime,
        id: u64,
        slow: bool,
    },
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
    /// Its answer will not come.
    lost: bool,
}

#[derive(Debug, Clone, Copy)]
struct OpenRead {
    sent: BootTime,
    /// The newest version that was known when it was sent.
    floor: u64,
}

impl Leaving {
    fn of(holder: Holder, work_ended: bool, proved: Option<u64>) -> Self {
        Self { holder, work_ended, proved, superseded: false }
    }
}

impl Machine {
    pub(super) fn new(
        (namespace, name): (&str, &str),
        timing: Timing,
        identity: Identity,
        nonces: Nonces,
        fresh_until: Option<BootTime>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            timing,
            identity,
            nonces,
            fresh_until,
            conflicted: None,
            phase: Phase::Standby,
            latest: Latest::Unread,
            newest: 0,
            heard_at: BootTime::default(),
            intervals: [None; 2],
            asked_at: BootTime::default(),
            reopened: false,
            barriers: Barriers::default(),
            effort: Effort::Rest { until: BootTime::default() },
            next_try: BootTime::default(),
            open: BTreeMap::new(),
            reading: BTreeMap::new(),
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
        self.fresh_until = self.fresh_until.filter(|until| now < *until);
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
            // What a read is to show may be known already: then it ends with the wait.
            Phase::Standby if self.leaps() => effort.min(self.ready_at()),
            Phase::Leading(office) => {
                let due =
                    if matches!(self.effort, Effort::Rest { .. }) { Some(self.renewal_due(office)) } else { effort };
                due.min(Some(self.timing.valid_until(office.confirmed_sent)))
            }
            Phase::Leaving(leaving) if !leaving.work_ended && matches!(self.effort, Effort::Rest { .. }) => None,
            Phase::Standby | Phase::Acquiring { .. } | Phase::Leaving(_) => effort,
        }
    }

    /// This process has another place to itself from now on, or none.
    pub(super) fn move_to(&mut self, place: Option<String>) {
        self.identity = self.identity.clone().in_place(place);
    }

    /// The duration that the Lease shows, if it is longer than this replica's own.
    pub(super) fn longer_lease(&self) -> Option<Duration> {
        let Latest::Found(record) = &self.latest else { return None };
        Some(record.content.duration).filter(|shown| *shown > self.timing.lease())
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

    /// Whether a standby that waits for an answer need not wait for it once everything has expired.
    fn leaps(&self) -> bool {
        matches!(self.effort, Effort::Read { .. })
            && self.contention == Contention::Contend
            && self.ready_at().is_some()
            && self.is_sighted()
    }

    fn standby_wake(&self) -> Option<BootTime> {
        let Effort::Rest { until } = self.effort else { return None };
        let vacate = matches!(self.latest, Latest::Absent) && self.fresh_until.is_none();
        if matches!(self.latest, Latest::Unread) || vacate {
            return Some(until);
        }
        let next = self.ready_at().map_or(until, |ready_at| ready_at.min(self.ask_at()));
        (self.contention == Contention::Contend).then(|| until.max(next))
    }

    /// When a renewal is so late that it may have been missed.
    fn overdue_at(&self) -> Option<BootTime> {
        let Latest::Found(record) = &self.latest else { return None };
        let pace = hear::pace(self.intervals, record.content.duration);
        record.content.holder.is_some().then(|| self.heard_at + pace + self.timing.overdue())
    }

    /// When to ask for a renewal that is late, again and again: it may come at any time, while the watch is dead. Where
    /// nobody renews, for whatever else may come.
    fn ask_at(&self) -> BootTime {
        self.overdue_at().map_or_else(
            || self.heard_at.max(self.asked_at) + self.timing.lease() / 3,
            |overdue_at| overdue_at.max(self.asked_at + self.timing.overdue()),
        )
    }

    /// Whether it is known that the leader is silent, and not only the watch: a question that was sent when a renewal was
    /// overdue has been answered, or one that was sent when there was nothing more to wait for.
    fn is_sighted(&self) -> bool {
        let due = self.overdue_at().into_iter().chain(self.ready_at()).min();
        due.is_none_or(|due| self.asked_at >= due)
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
