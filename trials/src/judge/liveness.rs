//! How long nobody led.
//!
//! Whoever can lead does so within a lease duration and a second: after each leader's last sign, and, where that is promised
//! of a fault, after the fault. A leader that ends at the fault has sent its last sign then, which is known better than when
//! a helper did what it was told to. While the control plane was out of order nobody can take over, so what counts begins
//! when it is back; and while it was too slow for the harness's own writes, it was too slow for theirs.

use std::time::Duration;

use super::evidence::{Evidence, PACE_AT_MOST, PACE_WINDOW, Trial};
use crate::{clock::At, probe::Term};

/// Two successive terms with more time between them than there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaderless {
    /// The older token.
    pub from: u64,
    /// The newer token.
    pub to: u64,
    /// How long nobody led, and could have.
    pub lasted: Duration,
    /// How long that may be.
    pub allowed: Duration,
}

/// From each fault to its successor, in the trials in which one has come. Where the control plane was out of order it is
/// the time from its return to the first sign of a leader, none if the old one led on.
pub(super) fn take_overs(evidence: &Evidence) -> Vec<Duration> {
    evidence.trials.iter().filter_map(|trial| take_over(evidence, trial)).collect()
}

/// What a successor did not keep to, one sentence each.
pub(super) fn broken_take_overs(evidence: &Evidence) -> Vec<String> {
    let complaint = |trial: &Trial| {
        let number = trial.number;
        if trial.taken_over.is_some_and(|taken| taken < trial.struck) {
            return Some(format!("trial {number}: another replica led before the leader was struck"));
        }
        let limit = trial.limit?;
        match take_over(evidence, trial) {
            None => Some(format!("trial {number}: nobody led afterwards, and within {limit:?} somebody must")),
            Some(took) if took > limit => {
                Some(format!("trial {number}: somebody led after {took:?}, later than the {limit:?} that are promised"))
            }
            Some(_) => None,
        }
    };
    evidence.trials.iter().filter_map(complaint).collect()
}

/// The times without a leader that were too long.
pub(super) fn leaderless(evidence: &Evidence) -> Vec<Leaderless> {
    let Some(promised) = evidence.leaderless_limit else { return Vec::new() };
    let terms: Vec<&Term> = evidence.probe.terms().collect();
    let gaps = terms.windows(2).map(|pair| {
        let (last, first) = (pair[0].last, pair[1].first);
        let struck = evidence.trials.iter().find(|trial| trial.armed <= last && last <= trial.calm);
        let of_trial = struck.and_then(|trial| trial.limit).filter(|_| evidence.family.may_take_longer());
        Leaderless {
            from: pair[0].token,
            to: pair[1].token,
            lasted: first.since(could_lead_from(evidence, last, first)),
            allowed: promised.max(of_trial.unwrap_or_default()) + slow_within(evidence, last, first),
        }
    });
    gaps.filter(|gap| gap.lasted > gap.allowed).collect()
}

/// Trials in which a replica asked for the Lease far more often than it has to, one sentence each.
pub(super) fn storms(evidence: &Evidence) -> Vec<String> {
    let storm = |trial: &Trial| {
        let (number, pace) = (trial.number, trial.pace.filter(|pace| *pace > PACE_AT_MOST)?);
        Some(format!(
            "trial {number}: {pace} requests of one replica for the Lease within {PACE_WINDOW:?}, more than {PACE_AT_MOST}"
        ))
    };
    evidence.trials.iter().filter_map(storm).collect()
}

fn take_over(evidence: &Evidence, trial: &Trial) -> Option<Duration> {
    let mut terms = evidence.probe.terms();
    if let Some(outage) = trial.outage {
        return terms.filter(|term| term.last >= outage.back).map(|term| term.first.since(outage.back)).min();
    }
    let last_sign = terms.find(|term| term.token == trial.token).map(|term| term.last);
    let last_sign = last_sign.filter(|_| evidence.family.ends_the_leader_at_once());
    Some(trial.taken_over?.since(last_sign.map_or(trial.struck, |last| last.max(trial.struck))))
}

fn could_lead_from(evidence: &Evidence, last: At, first: At) -> At {
    let outages = evidence.trials.iter().filter_map(|trial| trial.outage);
    let met = outages.filter(|outage| outage.from <= first && last <= outage.back);
    met.map(|outage| outage.back.min(first)).fold(last, At::max)
}

fn slow_within(evidence: &Evidence, last: At, first: At) -> Duration {
    evidence.slow.iter().map(|(from, to)| (*to).min(first).since((*from).max(last))).sum()
}
