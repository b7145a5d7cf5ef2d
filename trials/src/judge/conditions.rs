//! Each condition, as a function of the evidence.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::evidence::{Evidence, Family, Guarantee, Job};
use crate::{
    clock::At,
    ledger::{Entry, Verdict},
    probe::{Late, Overlap},
    slots,
    watcher::JobHistory,
};

/// Of the slots that nothing stood in the way of, the share that must have been run, in percent.
const RAN_SHARE_FLOOR: u64 = 95;

/// A run is active from the moment its leader decides on it. Its intent reaches the store, where it is seen from outside, well
/// within half of the shortest period.
const INTENT_UNDER_WAY: Duration = Duration::from_millis(100);

/// A slot of which nobody can say what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LostSlot {
    /// It was due, and the mark never passed it.
    Undecided(String, Timestamp),
    /// At some version the dispositions did not add up to the slots in (origin, mark].
    Miscounted {
        /// The job.
        job: String,
        /// The version.
        resource_version: u64,
        /// The slots in (origin, mark], counted one by one.
        due: u64,
        /// The sum of the dispositions.
        decided: u64,
    },
    /// More or fewer runs were counted than slots were intended. Not judged where versions were missed.
    Unintended {
        /// The job.
        job: String,
        /// The slots counted as run.
        counted: u64,
        /// The slots that had an intent in some version.
        intended: u64,
    },
    /// An intent of an at-least-once job came to an end, and no request of that run ever arrived.
    NeverRan(String, Timestamp),
    /// Its run was still open at the end.
    Open(String, Timestamp),
}

/// How many of the slots that nothing stood in the way of were run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RanShare {
    /// Slots due while a leader was in office, no run was active and no fault was on.
    pub unhindered: u64,
    /// How many of them were run.
    pub ran: u64,
}

/// What the evidence comes to.
#[derive(Debug, Clone)]
pub struct Findings {
    /// The family.
    pub family: Family,
    /// Slots due.
    pub due: u64,
    /// Slots that the marks passed.
    pub decided: u64,
    /// Slots lost.
    pub lost: Vec<LostSlot>,
    /// Slots of at-least-once jobs whose run reached the target more than once.
    pub doubled: Vec<(String, Timestamp)>,
    /// Slots of at-most-once jobs whose run reached the target more than once.
    pub at_most_once_twice: Vec<(String, Timestamp)>,
    /// Requests with an old token that the target took.
    pub old_accepted: Vec<Entry>,
    /// Requests with an old token that the target refused.
    pub old_refused: Vec<Entry>,
    /// Those of them that a freeze does not excuse.
    pub old_refused_unexcused: Vec<Entry>,
    /// The distance of successive terms, with what a freeze excuses left out.
    pub overlaps: Vec<Overlap>,
    /// Late datagrams that a freeze excuses.
    pub excused_datagrams: u64,
    /// The share of unhindered slots that were run.
    pub ran_share: RanShare,
    /// Unhindered slots that were not run.
    pub unhindered_not_run: Vec<(String, Timestamp)>,
    /// Slots counted as coalesced though a leader was at work.
    pub coalesced_in_office: Vec<(String, Timestamp)>,
    /// From the signal to the first sign of the successor.
    pub take_overs: Vec<Duration>,
    /// Those that took longer than is promised.
    pub late_take_overs: Vec<Duration>,
}

/// Judges a family.
pub fn judge(evidence: &Evidence) -> Findings {
    let (due, decided) = due_and_decided(evidence);
    let (old_accepted, old_refused) = old_tokens(evidence);
    let excused = excused_datagrams(evidence);
    let (ran_share, unhindered_not_run) = ran_share(evidence);
    let take_over = |struck: At, taken: Option<At>| taken.map(|taken| taken.since(struck));
    let take_overs: Vec<Duration> =
        evidence.trials.iter().filter_map(|trial| take_over(trial.struck, trial.taken_over)).collect();
    let is_late = |took: &&Duration| evidence.take_over_limit.is_some_and(|limit| **took > limit);
    Findings {
        family: evidence.family,
        due,
        decided,
        lost: lost_slots(evidence),
        doubled: run_more_than_once(evidence, Guarantee::AtLeastOnce),
        at_most_once_twice: run_more_than_once(evidence, Guarantee::AtMostOnce),
        old_refused_unexcused: unexcused(evidence, &old_refused),
        old_accepted,
        old_refused,
        overlaps: evidence.probe.overlaps(|late| excused.contains(late)),
        excused_datagrams: excused.len() as u64,
        ran_share,
        unhindered_not_run,
        coalesced_in_office: coalesced_in_office(evidence),
        late_take_overs: take_overs.iter().filter(is_late).copied().collect(),
        take_overs,
    }
}

impl Findings {
    /// What must not be, one sentence each. Empty means that the family passed.
    pub fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        let mut fail = |failed: bool, sentence: String| {
            if failed {
                failures.push(format!("{}: {sentence}", self.family));
            }
        };
        fail(!self.lost.is_empty(), format!("{} slots lost, first {:?}", self.lost.len(), self.lost.first()));
        fail(
            self.family.is_planned() && !self.doubled.is_empty(),
            format!("{} runs doubled by a planned hand-over, first {:?}", self.doubled.len(), self.doubled.first()),
        );
        fail(
            !self.at_most_once_twice.is_empty(),
            format!(
                "{} at-most-once runs made twice, first {:?}",
                self.at_most_once_twice.len(),
                self.at_most_once_twice.first()
            ),
        );
        fail(!self.old_accepted.is_empty(), format!("{} effects of an old token accepted", self.old_accepted.len()));
        fail(
            !self.old_refused_unexcused.is_empty(),
            format!(
                "{} effects of an old token refused, beyond what a freeze excuses",
                self.old_refused_unexcused.len()
            ),
        );
        let overlapping = self.overlaps.iter().filter(|overlap| overlap.distance > SignedDuration::ZERO).count();
        fail(overlapping > 0, format!("{overlapping} terms overlap their successor, worst {:?}", self.worst_overlap()));
        fail(
            self.ran_share.is_too_small(),
            format!(
                "{} of {} unhindered slots were run, fewer than {RAN_SHARE_FLOOR} %; first not run {:?}",
                self.ran_share.ran,
                self.ran_share.unhindered,
                self.unhindered_not_run.first()
            ),
        );
        fail(
            !self.coalesced_in_office.is_empty(),
            format!(
                "{} slots coalesced outside a leaderless gap, first {:?}",
                self.coalesced_in_office.len(),
                self.coalesced_in_office.first()
            ),
        );
        fail(
            !self.late_take_overs.is_empty(),
            format!(
                "{} successors came later than is promised, the last of them after {:?}",
                self.late_take_overs.len(),
                self.late_take_overs.iter().max()
            ),
        );
        failures
    }

    /// The greatest signed distance between two successive terms.
    pub fn worst_overlap(&self) -> Option<SignedDuration> {
        self.overlaps.iter().map(|overlap| overlap.distance).max()
    }
}

impl RanShare {
    /// Whether fewer were run than must have been.
    pub const fn is_too_small(self) -> bool {
        self.ran * 100 < self.unhindered * RAN_SHARE_FLOOR
    }
}

fn due_and_decided(evidence: &Evidence) -> (u64, u64) {
    let mut sums = (0, 0);
    for job in &evidence.jobs {
        let (Some(grid), Some(origin)) = (evidence.grid(job), evidence.origin(job)) else { continue };
        let mark = evidence.history.newest(&job.name).and_then(|status| status.mark).unwrap_or(origin);
        sums.0 += grid.count(origin, evidence.until);
        sums.1 += grid.count(origin, mark.min(evidence.until));
    }
    sums
}

/// I3: every slot is decided, the dispositions add up in every version, and every intent of an at-least-once job was run.
pub(super) fn lost_slots(evidence: &Evidence) -> Vec<LostSlot> {
    evidence.jobs.iter().flat_map(|job| lost_slots_of(evidence, job)).collect()
}

fn lost_slots_of(evidence: &Evidence, job: &Job) -> Vec<LostSlot> {
    let (Some(history), Some(origin)) = (evidence.history.job(&job.name), evidence.origin(job)) else {
        return vec![LostSlot::Undecided(job.name.clone(), evidence.until)];
    };
    let mark = history.versions.last().and_then(|version| version.status.mark).unwrap_or(origin);
    let mut lost: Vec<LostSlot> = slots::Grid::between(job.period, mark.max(origin), evidence.until)
        .iter()
        .map(|slot| LostSlot::Undecided(job.name.clone(), slot))
        .collect();
    // The mark may have gone on beyond the end of the family, so its versions are counted on a grid that reaches that far.
    let grid = slots::Grid::between(job.period, origin, mark.max(evidence.until));
    lost.extend(miscounted(job, history, &grid));
    lost.extend(intents_without_a_run(evidence, job, history));
    lost
}

fn miscounted<'a>(job: &'a Job, history: &'a JobHistory, grid: &'a slots::Grid) -> impl Iterator<Item = LostSlot> + 'a {
    history.versions.iter().filter_map(|version| {
        let status = &version.status;
        let (origin, mark) = (status.origin?, status.mark?);
        let (due, decided) = (grid.count(origin, mark), status.slots_decided());
        (due != decided).then(|| LostSlot::Miscounted {
            job: job.name.clone(),
            resource_version: version.resource_version,
            due,
            decided,
        })
    })
}

fn intents_without_a_run(evidence: &Evidence, job: &Job, history: &JobHistory) -> Vec<LostSlot> {
    let mut intents = BTreeMap::new();
    let mut indeterminate = BTreeSet::new();
    for version in &history.versions {
        let runs = version.status.active.iter().filter(|(_, run)| run.trigger.is_none());
        intents.extend(runs.map(|(id, run)| (id.as_str(), run.slot)));
        let ended = version.status.last_runs.iter().filter(|run| run.outcome == "Indeterminate");
        indeterminate.extend(ended.map(|run| run.id.as_str()));
    }
    let Some(newest) = history.versions.last().map(|version| &version.status) else { return Vec::new() };
    let mut lost = Vec::new();
    let (counted, intended) = (newest.counts.get("ran").copied().unwrap_or_default(), intents.len() as u64);
    // Intents of versions that were missed are not known, and their runs arrived all the same.
    if counted != intended && evidence.gaps == 0 {
        lost.push(LostSlot::Unintended { job: job.name.clone(), counted, intended });
    }
    let arrived: BTreeSet<&str> = evidence.entries.iter().map(|entry| entry.request.run_id.as_str()).collect();
    for (id, slot) in intents {
        if newest.active.contains_key(id) {
            if slot <= evidence.until {
                lost.push(LostSlot::Open(job.name.clone(), slot));
            }
        } else if job.guarantee == Guarantee::AtLeastOnce && !arrived.contains(id) && !indeterminate.contains(id) {
            lost.push(LostSlot::NeverRan(job.name.clone(), slot));
        }
    }
    lost
}

/// Slots whose run reached the target more than once, whatever the target said to it and whatever it called the run.
pub(super) fn run_more_than_once(evidence: &Evidence, guarantee: Guarantee) -> Vec<(String, Timestamp)> {
    let mut arrivals: BTreeMap<(&str, Timestamp), u32> = BTreeMap::new();
    for entry in &evidence.entries {
        if let Some(slot) = entry.request.slot
            && evidence.jobs.iter().any(|job| job.name == entry.request.job && job.guarantee == guarantee)
        {
            *arrivals.entry((&entry.request.job, slot)).or_default() += 1;
        }
    }
    let twice = arrivals.into_iter().filter(|(_, count)| *count > 1);
    twice.map(|((job, slot), _)| (job.to_owned(), slot)).collect()
}

/// I1: requests whose first byte came after the first one with a higher token under the same path, accepted and refused.
pub(super) fn old_tokens(evidence: &Evidence) -> (Vec<Entry>, Vec<Entry>) {
    let mut entries: Vec<&Entry> = evidence.entries.iter().collect();
    entries.sort_by_key(|entry| entry.first_byte);
    let mut highest: BTreeMap<&str, u64> = BTreeMap::new();
    let (mut accepted, mut refused) = (Vec::new(), Vec::new());
    for entry in entries {
        let highest = highest.entry(&entry.path).or_default();
        match entry.verdict {
            Verdict::Refused => refused.push(entry.clone()),
            Verdict::Accepted if entry.request.token < *highest => accepted.push(entry.clone()),
            Verdict::Accepted => {}
        }
        *highest = entry.request.token.max(*highest);
    }
    (accepted, refused)
}

/// The refused requests that no freeze excuses: each freeze excuses one, of the frozen replica, as it thaws.
pub(super) fn unexcused(evidence: &Evidence, refused: &[Entry]) -> Vec<Entry> {
    let mut used = BTreeSet::new();
    let excused = |entry: &Entry| {
        let thaw = evidence.thaw_of(entry.first_byte, |trial| trial.victim_address == entry.replica);
        evidence.family.freezes() && thaw.is_some_and(|trial| used.insert(trial))
    };
    let mut excused = excused;
    refused.iter().filter(|entry| !excused(entry)).cloned().collect()
}

/// The late datagrams that a freeze excuses: each freeze excuses one, of the frozen replica, as it thaws.
pub(super) fn excused_datagrams(evidence: &Evidence) -> Vec<Late> {
    if !evidence.family.freezes() {
        return Vec::new();
    }
    let mut used = BTreeSet::new();
    let late = evidence.probe.late().iter();
    late.filter(|late| {
        let thaw = evidence.thaw_of(late.at, |trial| trial.victim == late.identity);
        thaw.is_some_and(|trial| used.insert(trial))
    })
    .cloned()
    .collect()
}

/// How many of the slots due while a leader was in office, no run was active and no fault was on were run.
pub(super) fn ran_share(evidence: &Evidence) -> (RanShare, Vec<(String, Timestamp)>) {
    let ran: BTreeSet<(&str, Timestamp)> = evidence
        .entries
        .iter()
        .filter_map(|entry| entry.request.slot.map(|slot| (entry.request.job.as_str(), slot)))
        .collect();
    let in_office = |at: At| evidence.probe.terms().any(|term| term.first <= at && at <= term.last);
    let fault_on = |at: At| evidence.trials.iter().any(|trial| trial.armed <= at && at <= trial.calm);
    let (mut share, mut not_run) = (RanShare::default(), Vec::new());
    for job in &evidence.jobs {
        let (Some(grid), Some(history)) = (evidence.grid(job), evidence.history.job(&job.name)) else { continue };
        for slot in grid.iter() {
            let at = evidence.timeline.at(slot);
            if in_office(at) && !fault_on(at) && idle_at(history, at) && !intent_under_way(history, at, slot) {
                share.unhindered += 1;
                if ran.contains(&(job.name.as_str(), slot)) {
                    share.ran += 1;
                } else {
                    not_run.push((job.name.clone(), slot));
                }
            }
        }
    }
    (share, not_run)
}

/// Whether no run of the job was open in the status in force at that instant.
fn idle_at(history: &JobHistory, at: At) -> bool {
    let seen = history.versions.partition_point(|version| version.at <= at);
    seen > 0 && history.versions[seen - 1].status.active.is_empty()
}

/// Whether the intent of an earlier slot was on its way to the store at that instant: to its leader that run was active.
fn intent_under_way(history: &JobHistory, at: At, slot: Timestamp) -> bool {
    let seen = history.versions.partition_point(|version| version.at <= at);
    let soon = history.versions[seen..].iter().take_while(|version| version.at.since(at) <= INTENT_UNDER_WAY);
    soon.flat_map(|version| version.status.active.values()).any(|run| run.slot < slot)
}

/// Slots that a term called coalesced though they were due after its own first request for that job: it was at work by then,
/// and only what was due before a term's first look at a job can have been missed.
pub(super) fn coalesced_in_office(evidence: &Evidence) -> Vec<(String, Timestamp)> {
    let mut outside = Vec::new();
    for job in &evidence.jobs {
        let mut at_work: BTreeMap<u64, At> = BTreeMap::new();
        let accepted = |entry: &&Entry| entry.request.job == job.name && entry.verdict == Verdict::Accepted;
        for entry in evidence.entries.iter().filter(accepted) {
            let first = at_work.entry(entry.request.token).or_insert(entry.first_byte);
            *first = entry.first_byte.min(*first);
        }
        for (slot, token) in coalesced(evidence, job) {
            let at = evidence.timeline.at(slot);
            let at_work_before = |token: u64| at_work.get(&token).is_some_and(|began| *began <= at);
            if token.is_none_or(at_work_before) {
                outside.push((job.name.clone(), slot));
            }
        }
    }
    outside
}

/// The coalesced slots of a job, each with the token of the term that called it so.
fn coalesced(evidence: &Evidence, job: &Job) -> BTreeMap<Timestamp, Option<u64>> {
    let mut ranges: BTreeSet<(Timestamp, Timestamp)> = BTreeSet::new();
    let mut slots = BTreeMap::new();
    for version in evidence.history.job(&job.name).into_iter().flat_map(|history| &history.versions) {
        let token = version.status.term.as_ref().map(|term| term.token);
        for range in version.status.ranges.iter().filter(|range| range.reason == "Coalesced") {
            if ranges.insert((range.from, range.to)) {
                for slot in slots::in_range(job.period, range.from, range.to) {
                    slots.entry(slot).or_insert(token);
                }
            }
        }
    }
    slots
}
