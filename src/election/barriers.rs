//! What a standby has to wait for before it may acquire. Pure.
//!
//! Everything that was seen of other terms becomes a barrier with an expiry on this replica's own clock, counted from when
//! it **received** the record. Only a release written by that very term takes a barrier away early. A Lease that vanished,
//! was emptied or was edited takes none away, and puts up one of its own: whoever led then may not know yet.
//!
//! A barrier lasts as long as the longest duration that this replica has seen on the Lease, and not only what the record
//! shows now: while a roll-out lowers the duration, a term of the longer one may go on behind a Lease that was deleted or
//! edited. The longest duration is forgotten when nothing from its time can be valid any more: when this replica has
//! acquired itself, when the last term that it knows of has released, and when a term has been seen to renew for that long.
//!
//! A holder that is not Tenure's gets a grace besides: it may work on for a while after its lease, and it says nothing of
//! the end of its work when it releases. Its release is an empty holder: from then on the grace alone is waited for, if the
//! foreign holder was in office for a lease duration before. A name that somebody has just written into the Lease would
//! otherwise cut the wait for a term short that this replica never saw. A foreign holder that is paused or detached keeps
//! no promise that could be waited for; only tokens help against that.

use std::{collections::BTreeMap, time::Duration};

use super::record::{Content, Holder, Record};
use crate::clock::BootTime;

/// More terms than this are not remembered; the one that expires first is forgotten first. A Lease shows one term at a time,
/// and a term that ended without a release is followed by another at most once per lease duration.
const TERMS_REMEMBERED_MAX: usize = 16;

/// When this replica may acquire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readiness {
    /// Not before this time, when something expires.
    After(BootTime),
    /// At once: what stood in the way was released, or there never was anything.
    Now,
}

#[derive(Debug, Default)]
pub(super) struct Barriers {
    terms: BTreeMap<Holder, Barrier>,
    vacancy: Option<Vacancy>,
    /// The holder that was seen last, until the Lease was empty.
    last: Option<Holder>,
    /// The empty record that such a holder has left.
    left_by_foreigner: Option<Content>,
    /// The longest duration of a record from whose time a term may still be valid.
    longest: Duration,
    /// When a record of that duration was seen last.
    longest_seen: BootTime,
}

/// What the barriers are built with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waits {
    /// This replica's own lease duration.
    pub(super) own_lease: Duration,
    /// What a foreign holder gets besides.
    pub(super) foreign_grace: Duration,
}

#[derive(Debug)]
struct Barrier {
    uid: String,
    content: Content,
    /// How long its records have kept this replica away. An edit that lowers the duration hurries nobody, not even a
    /// replica that never saw the term as it was before.
    duration: Duration,
    /// When it was first seen in office, with these transitions and nobody else in between.
    first_seen: BootTime,
    expires: BootTime,
}

/// A Lease without a holder that nobody released.
#[derive(Debug)]
struct Vacancy {
    uid: String,
    content: Content,
    expires: BootTime,
}

impl Barriers {
    /// Takes note of a record that another term holds, or none does.
    pub(super) fn observe(&mut self, record: &Record, now: BootTime, waits: Waits) {
        let content = &record.content;
        if content.duration.max(waits.own_lease) >= self.longest {
            self.longest = content.duration.max(waits.own_lease);
            self.longest_seen = now;
        }
        match (&content.holder, &record.released) {
            (Some(holder), _) => {
                self.observe_term(holder, record, now, waits);
                self.last = Some(holder.clone());
            }
            (None, Some(nonce)) => {
                self.last = None;
                self.terms.retain(|holder, _| holder.nonce() != nonce);
                if self.terms.is_empty() && self.vacancy.is_none() {
                    self.longest = Duration::ZERO;
                }
            }
            (None, None) if self.left_by_foreigner.as_ref() == Some(content) => {}
            (None, None) => {
                if !self.observe_foreign_release(record, now, waits) {
                    self.observe_vacancy(record, now + self.longest);
                }
            }
        }
    }

    fn observe_term(&mut self, holder: &Holder, record: &Record, now: BootTime, waits: Waits) {
        let content = &record.content;
        let known = self.terms.get(holder);
        if known.is_some_and(|known| known.content == *content) {
            return;
        }
        let same_term = known
            .filter(|known| known.content.transitions == content.transitions && self.last.as_ref() == Some(holder));
        let first_seen = same_term.map_or(now, |known| known.first_seen);
        let settled = first_seen.max(self.longest_seen) + self.longest;
        if same_term.is_some_and(|known| content.write > known.content.write) && now >= settled {
            // It has renewed for so long that whoever else was valid when it was first seen has ended.
            self.longest = waits.own_lease.max(content.duration);
        }
        let duration = self.longest;
        let grace = if holder.is_foreign() { waits.foreign_grace } else { Duration::ZERO };
        let expires = now + duration + grace;
        let (uid, content) = (record.uid.clone(), content.clone());
        self.terms.insert(holder.clone(), Barrier { uid, content, duration, first_seen, expires });
        if self.terms.len() > TERMS_REMEMBERED_MAX {
            let first = self.terms.iter().min_by_key(|(_, barrier)| barrier.expires).map(|(holder, _)| holder.clone());
            first.and_then(|holder| self.terms.remove(&holder));
        }
    }

    /// Whether an empty record is the release of the foreign holder that was seen last.
    fn observe_foreign_release(&mut self, record: &Record, now: BootTime, waits: Waits) -> bool {
        let content = &record.content;
        let foreign = self.last.take().filter(Holder::is_foreign);
        let barrier = foreign.and_then(|foreign| self.terms.get_mut(&foreign));
        let same = |barrier: &&mut Barrier| barrier.uid == record.uid && barrier.content.is_left_by_same_hand(content);
        let Some(barrier) = barrier.filter(same) else { return false };
        barrier.expires = (now + waits.foreign_grace).max(barrier.first_seen + barrier.duration);
        self.left_by_foreigner = Some(content.clone());
        true
    }

    fn observe_vacancy(&mut self, record: &Record, expires: BootTime) {
        let known = self.vacancy.as_ref();
        if known.is_none_or(|known| known.uid != record.uid || known.content != record.content) {
            let later = known.map_or(expires, |known| known.expires.max(expires));
            self.vacancy = Some(Vacancy { uid: record.uid.clone(), content: record.content.clone(), expires: later });
        }
    }

    /// Forgets everything: this replica has just acquired, so nothing stands any more.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// The longest duration of a record from whose time a term may still be valid.
    pub(super) fn longest(&self) -> Duration {
        self.longest
    }

    /// When the last barrier expires.
    pub(super) fn readiness(&self) -> Readiness {
        let terms = self.terms.values().map(|barrier| barrier.expires);
        let vacancy = self.vacancy.iter().map(|vacancy| vacancy.expires);
        terms.chain(vacancy).max().map_or(Readiness::Now, Readiness::After)
    }
}

#[cfg(test)]
mod tests;
