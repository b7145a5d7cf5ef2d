//! Runs that were made to last longer than the drain of a leader that leaves in order.
//!
//! The end of the drain cuts them off, and that is recorded before the Lease is released. Then each goes on as its guarantee
//! says: at least once, so the successor makes it again; or at most once, so it ends as one of which nobody knows.

use jiff::Timestamp;

use super::evidence::{Evidence, Guarantee};

/// Whether the runs of this slot are one run, and one that was to be cut off.
pub(super) fn was_cut(evidence: &Evidence, job: &str, slot: Timestamp) -> bool {
    let mut requests =
        evidence.entries.iter().filter(|entry| entry.request.job == job && entry.request.slot == Some(slot));
    requests.all(|entry| evidence.trials.iter().any(|trial| trial.cut.contains(&entry.request.run_id)))
}

/// What did not go on as it must have, one sentence each.
pub(super) fn badly_cut(evidence: &Evidence) -> Vec<String> {
    let cut = evidence.trials.iter().flat_map(|trial| &trial.cut);
    cut.filter_map(|run| complaint(evidence, run).map(|complaint| format!("run {run} {complaint}"))).collect()
}

fn complaint(evidence: &Evidence, run: &str) -> Option<String> {
    let requests: Vec<_> = evidence.entries.iter().filter(|entry| entry.request.run_id == run).collect();
    let Some(first) = requests.first() else { return Some("never reached the target".to_owned()) };
    if first.answered.is_some() {
        return Some("was to be cut off by the end of the drain, and was answered".to_owned());
    }
    let Some(job) = evidence.jobs.iter().find(|job| job.name == first.request.job) else {
        return Some(format!("is of an unknown job {}", first.request.job));
    };
    let ended = |outcome: &str| {
        let versions = evidence.history.job(&job.name).into_iter().flat_map(|history| &history.versions);
        versions.flat_map(|version| &version.status.last_runs).any(|end| end.id == run && end.outcome == outcome)
    };
    match job.guarantee {
        Guarantee::AtLeastOnce if !ended("Interrupted") => Some("was cut off without a record of it".to_owned()),
        Guarantee::AtLeastOnce if requests.len() < 2 => Some("was cut off and not made again".to_owned()),
        Guarantee::AtMostOnce if !ended("Indeterminate") => {
            Some("was cut off and did not end as one of which nobody knows".to_owned())
        }
        Guarantee::AtLeastOnce | Guarantee::AtMostOnce => None,
    }
}
