//! Runs that were made more than once.
//!
//! A crash may double what was open at it, and nothing else: the second request is of another term, and the end of the run
//! was not on record yet. Whatever the target said to it and whatever it was called, a slot's second request is one.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::evidence::{Evidence, Guarantee, Trial};
use crate::ledger::Entry;

/// Slots whose run reached the target more than once.
pub(super) fn run_more_than_once(evidence: &Evidence, guarantee: Guarantee) -> Vec<(String, Timestamp)> {
    let twice = arrivals(evidence, guarantee).into_iter().filter(|(_, arrivals)| arrivals.len() > 1);
    twice.map(|((job, slot), _)| (job.to_owned(), slot)).collect()
}

/// Of those, the ones that no fault excuses.
pub(super) fn doubled_without_excuse(evidence: &Evidence) -> Vec<(String, Timestamp)> {
    let arrivals = arrivals(evidence, Guarantee::AtLeastOnce).into_iter();
    let doubled = arrivals.filter(|(_, entries)| entries.windows(2).any(|two| !was_open(evidence, two[0], two[1])));
    doubled.map(|((job, slot), _)| (job.to_owned(), slot)).collect()
}

/// Whether a run of which these are two requests, one after the other, was open at a fault.
fn was_open(evidence: &Evidence, first: &Entry, second: &Entry) -> bool {
    let over = |trial: &Trial| trial.freeze.map_or(trial.calm, |freeze| freeze.thawed.max(trial.calm));
    let at_a_fault = |trial: &Trial| first.first_byte <= over(trial) && second.first_byte >= trial.armed;
    let tokens = (first.request.token, second.request.token);
    // A second request of an older term is one that should not have been sent: another condition's business.
    tokens.0 != tokens.1
        && evidence.trials.iter().any(at_a_fault)
        && (tokens.0 > tokens.1 || !was_recorded(evidence, first, second))
}

/// Whether a version that was seen before the second request shows that the run of the first had ended.
fn was_recorded(evidence: &Evidence, first: &Entry, second: &Entry) -> bool {
    let history = evidence.history.job(&first.request.job);
    let seen_before = history.into_iter().flat_map(|history| &history.versions).filter(|it| it.at < second.first_byte);
    let mut begun = seen_before.skip_while(|version| !version.status.active.contains_key(&first.request.run_id));
    begun.any(|version| !version.status.active.contains_key(&first.request.run_id))
}

/// Each slot's requests, as they arrived.
fn arrivals(evidence: &Evidence, guarantee: Guarantee) -> BTreeMap<(&str, Timestamp), Vec<&Entry>> {
    let mut arrivals: BTreeMap<(&str, Timestamp), Vec<&Entry>> = BTreeMap::new();
    for entry in &evidence.entries {
        if let Some(slot) = entry.request.slot
            && evidence.jobs.iter().any(|job| job.name == entry.request.job && job.guarantee == guarantee)
        {
            arrivals.entry((&entry.request.job, slot)).or_default().push(entry);
        }
    }
    for arrivals in arrivals.values_mut() {
        arrivals.sort_by_key(|entry| entry.first_byte);
    }
    arrivals
}
