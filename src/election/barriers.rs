//! What a standby has to wait for before it may acquire. Pure.
//!
//! Everything that was seen of other terms becomes a barrier with an expiry on this replica's own clock, counted from when
//! it **received** the record. Only a release written by that very term takes a barrier away early. A Lease that vanished,
//! was emptied or was edited takes none away, and puts up one of its own: whoever led then may not know yet.

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
}

#[derive(Debug)]
struct Barrier {
    content: Content,
    /// The largest duration that this term has shown, and at least this replica's own: an edit that lowers it hurries
    /// nobody, not even a replica that never saw the term as it was before.
    duration: Duration,
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
    /// Takes note of a record that another term holds, or none does. `own_lease` is this replica's own lease duration.
    pub(super) fn observe(&mut self, record: &Record, now: BootTime, own_lease: Duration) {
        let content = &record.content;
        match (&content.holder, &record.released) {
            (Some(holder), _) => self.observe_term(holder, content, now, own_lease),
            (None, Some(nonce)) => self.terms.retain(|holder, _| holder.nonce() != nonce),
            (None, None) => self.observe_vacancy(record, now + own_lease.max(content.duration)),
        }
    }

    fn observe_term(&mut self, holder: &Holder, content: &Content, now: BootTime, own_lease: Duration) {
        let known = self.terms.get(holder);
        if known.is_some_and(|known| known.content == *content) {
            return;
        }
        let duration = known.map_or(own_lease, |known| known.duration).max(content.duration);
        self.terms.insert(holder.clone(), Barrier { content: content.clone(), duration, expires: now + duration });
        if self.terms.len() > TERMS_REMEMBERED_MAX {
            let first = self.terms.iter().min_by_key(|(_, barrier)| barrier.expires).map(|(holder, _)| holder.clone());
            first.and_then(|holder| self.terms.remove(&holder));
        }
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
    }

    /// When the last barrier expires.
    pub(super) fn readiness(&self) -> Readiness {
        let terms = self.terms.values().map(|barrier| barrier.expires);
        let vacancy = self.vacancy.iter().map(|vacancy| vacancy.expires);
        terms.chain(vacancy).max().map_or(Readiness::Now, Readiness::After)
    }
}
