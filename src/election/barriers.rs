//! What a standby has to wait for before it may acquire. Pure.
//!
//! Everything that was seen of other terms becomes a barrier with an expiry on this replica's own clock, counted from when
//! it **received** the record. Only a release written by that very term takes a barrier away early. A Lease that vanished,
//! was emptied or was edited takes none away, and puts up one of its own: whoever led then may not know yet.
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
    /// The holder that was seen last, if it was not Tenure's.
    last_foreign: Option<Holder>,
    /// The empty record that such a holder has left.
    left_by_foreigner: Option<Content>,
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
    content: Content,
    /// The largest duration that this term has shown, and at least this replica's own: an edit that lowers it hurries
    /// nobody, not even a replica that never saw the term as it was before.
    duration: Duration,
    /// When it was first seen in office, with these transitions.
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
        match (&content.holder, &record.released) {
            (Some(holder), _) => {
                self.last_foreign = Some(holder.clone()).filter(Holder::is_foreign);
                self.observe_term(holder, content, now, waits);
            }
            (None, Some(nonce)) => self.terms.retain(|holder, _| holder.nonce() != nonce),
            (None, None) if self.left_by_foreigner.as_ref() == Some(content) => {}
            (None, None) => {
                if !self.observe_foreign_release(content, now, waits) {
                    self.observe_vacancy(record, now + waits.own_lease.max(content.duration));
                }
            }
        }
    }

    fn observe_term(&mut self, holder: &Holder, content: &Content, now: BootTime, waits: Waits) {
        let known = self.terms.get(holder);
        if known.is_some_and(|known| known.content == *content) {
            return;
        }
        let duration = known.map_or(waits.own_lease, |known| known.duration).max(content.duration);
        let same_term = known.filter(|known| known.content.transitions == content.transitions);
        let first_seen = same_term.map_or(now, |known| known.first_seen);
        let grace = if holder.is_foreign() { waits.foreign_grace } else { Duration::ZERO };
        let expires = now + duration + grace;
        self.terms.insert(holder.clone(), Barrier { content: content.clone(), duration, first_seen, expires });
        if self.terms.len() > TERMS_REMEMBERED_MAX {
            let first = self.terms.iter().min_by_key(|(_, barrier)| barrier.expires).map(|(holder, _)| holder.clone());
            first.and_then(|holder| self.terms.remove(&holder));
        }
    }

    /// Whether an empty record is the release of the foreign holder that was seen last.
    fn observe_foreign_release(&mut self, content: &Content, now: BootTime, waits: Waits) -> bool {
        let foreign = self.last_foreign.take();
        let barrier = foreign.and_then(|foreign| self.terms.get_mut(&foreign));
        let Some(barrier) = barrier.filter(|barrier| barrier.content.transitions == content.transitions) else {
            return false;
        };
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
        self.terms.clear();
        self.vacancy = None;
        self.last_foreign = None;
        self.left_by_foreigner = None;
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
