//! Of the slots that nothing stood in the way of, how many were run, and how late.
//!
//! Nothing stood in the way of a slot that was due while a leader was in office, no fault was on, and no run of an earlier
//! slot was active. When a run was active to its leader cannot be seen from outside: only its signs can, which are its
//! request and the versions that show its intent. What lies before the first sign is bounded by
//! [`Family::intent_under_way`](super::Family::intent_under_way), and by the slot itself, before which nobody decides on it.
//! While the control plane was slower than that for the harness's own writes, a fault was on that nobody had put in place.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;

use super::evidence::{Evidence, Job};
use crate::{clock::At, watcher::JobHistory};

/// Of the slots that nothing stood in the way of, the share that must have been run, in percent.
pub(super) const RAN_SHARE_FLOOR: u64 = 95;

/// How many of the slots that nothing stood in the way of were run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RanShare {
    /// Slots due while a leader was in office, no run was active and no fault was on.
    pub unhindered: u64,
    /// How many of them were run.
    pub ran: u64,
}

/// The slots that nothing stood in the way of.
#[derive(Debug, Default)]
pub(super) struct Unhindered {
    /// How many there were, and how many were run.
    pub share: RanShare,
    /// Those that were not.
    pub not_run: Vec<(String, Timestamp)>,
    /// Of those that were, from the slot to the first request.
    pub lateness: Vec<Duration>,
}

/// A run as it was seen.
#[derive(Debug)]
struct Seen {
    slot: Timestamp,
    /// Its first request, or the first version with its intent.
    first_sign: At,
    /// The first version after them without its intent; none while it is open.
    gone: Option<At>,
}

impl RanShare {
    /// Whether fewer were run than must have been. Where there was none to be run, nothing is shown.
    pub const fn is_too_small(self) -> bool {
        self.unhindered == 0 || self.ran * 100 < self.unhindered * RAN_SHARE_FLOOR
    }
}

impl Unhindered {
    /// Those of all jobs.
    pub(super) fn of(evidence: &Evidence) -> Self {
        let in_office = |at: At| evidence.probe.terms().any(|term| term.first <= at && at <= term.last);
        let struck = |at: At| evidence.trials.iter().any(|trial| trial.armed <= at && at <= trial.calm);
        let fault_on = |at: At| struck(at) || evidence.slow.iter().any(|(from, to)| *from <= at && at <= *to);
        let mut found = Self::default();
        for job in &evidence.jobs {
            let (Some(grid), Some(history)) = (evidence.grid(job), evidence.history.job(&job.name)) else { continue };
            let Some(first_seen) = history.versions.first().map(|version| version.at) else { continue };
            let (runs, requests) = (runs(evidence, job, history), first_requests(evidence, job));
            for slot in grid.iter() {
                let at = evidence.timeline.at(slot);
                let hindered = runs.values().any(|run| run.slot < slot && run.is_active(evidence, at));
                if at < first_seen || hindered || fault_on(at) || !in_office(at) {
                    continue;
                }
                found.share.unhindered += 1;
                if let Some(request) = requests.get(&slot) {
                    found.share.ran += 1;
                    found.lateness.push(request.since(at));
                } else {
                    found.not_run.push((job.name.clone(), slot));
                }
            }
        }
        found
    }
}

impl Seen {
    /// Whether this run was active to its leader at that instant, or may have been.
    fn is_active(&self, evidence: &Evidence, at: At) -> bool {
        let under_way = at.plus(evidence.family.intent_under_way()) >= self.first_sign;
        under_way && evidence.timeline.at(self.slot) <= at && self.gone.is_none_or(|gone| at < gone)
    }
}

fn first_requests(evidence: &Evidence, job: &Job) -> BTreeMap<Timestamp, At> {
    let mut first: BTreeMap<Timestamp, At> = BTreeMap::new();
    for entry in evidence.entries.iter().filter(|entry| entry.request.job == job.name) {
        if let Some(slot) = entry.request.slot {
            let request = first.entry(slot).or_insert(entry.first_byte);
            *request = entry.first_byte.min(*request);
        }
    }
    first
}

fn runs<'a>(evidence: &'a Evidence, job: &Job, history: &'a JobHistory) -> BTreeMap<&'a str, Seen> {
    let mut runs: BTreeMap<&str, Seen> = BTreeMap::new();
    let mut open: BTreeSet<&str> = BTreeSet::new();
    for version in &history.versions {
        let active = &version.status.active;
        for id in open.iter().filter(|id| !active.contains_key(**id)) {
            runs.entry(id).and_modify(|run| run.gone = Some(version.at));
        }
        open = active.keys().map(String::as_str).collect();
        for (id, run) in active {
            let seen = runs.entry(id).or_insert(Seen { slot: run.slot, first_sign: version.at, gone: None });
            seen.gone = None;
        }
    }
    for entry in evidence.entries.iter().filter(|entry| entry.request.job == job.name) {
        // A request without an intent in any version is not a run that hinders, as the versions say what was active, unless
        // some of them were missed: then it was active until the next one that was seen.
        if let Some(run) = runs.get_mut(entry.request.run_id.as_str()) {
            run.first_sign = run.first_sign.min(entry.first_byte);
        } else if let (Some(slot), true) = (entry.request.slot, evidence.gaps > 0) {
            let next = history.versions.iter().map(|version| version.at).find(|at| *at > entry.first_byte);
            runs.insert(&entry.request.run_id, Seen { slot, first_sign: entry.first_byte, gone: next });
        }
    }
    runs
}
