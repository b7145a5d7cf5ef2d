//! Each condition, as a function of the evidence.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};

use super::{
    cut,
    doubled::{doubled_without_excuse, run_more_than_once},
    evidence::{Evidence, Family, Guarantee, Job},
    liveness::{self, Leaderless},
    share::{RAN_SHARE_FLOOR, RanShare, Unhindered},
};
use crate::{
    clock::At,
    ledger::{Entry, Verdict},
    probe::{Late, Overlap},
    slots,
    watcher::JobHistory,
};

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
    /// Those of them that had not been made to last longer than the drain.
    pub doubled_uncut: Vec<(String, Timestamp)>,
    /// Those of them that no fault excuses.
    pub doubled_without_excuse: Vec<(String, Timestamp)>,
    /// Runs that the end of the drain cut off and that did not go on as their guarantee says.
    pub badly_cut: Vec<String>,
    /// Runs that reached the target earlier before their slot than the family allows, and by how much before it.
    pub early: Vec<(String, Timestamp, Duration)>,
    /// The most that a request came before its slot.
    pub earliest: Duration,
    /// Wrong clocks that their replica did not tell of, or by another difference.
    pub untold_clocks: Vec<String>,
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
    /// From each fault, or from the return of the control plane, to the first sign of whoever led then.
    pub take_overs: Vec<Duration>,
    /// What successors did not keep to.
    pub broken_take_overs: Vec<String>,
    /// Replicas that asked for the Lease far too often.
    pub storms: Vec<String>,
    /// Times without a leader that were too long.
    pub leaderless: Vec<Leaderless>,
    /// Tokens that two replicas led with.
    pub shared_tokens: Vec<u64>,
    /// What was seen and keeps to no contract, and what the observers lost.
    pub complaints: Vec<String>,
    /// From the last sign of a leader to the first of its successor, in the families in which each change is a hand-over.
    pub hand_overs: Vec<Duration>,
    /// From a slot to its first request, of the unhindered slots that were run.
    pub lateness: Vec<Duration>,
}

/// Judges a family.
pub fn judge(evidence: &Evidence) -> Findings {
    let (due, decided) = due_and_decided(evidence);
    let (old_accepted, old_refused) = old_tokens(evidence);
    let excused = excused_datagrams(evidence);
    let Unhindered { share: ran_share, not_run: unhindered_not_run, lateness } = Unhindered::of(evidence);
    let doubled = run_more_than_once(evidence, Guarantee::AtLeastOnce);
    let overlaps = evidence.probe.overlaps(|late| excused.contains(late));
    Findings {
        family: evidence.family,
        due,
        decided,
        lost: lost_slots(evidence),
        doubled_uncut: doubled.iter().filter(|(job, slot)| !cut::was_cut(evidence, job, *slot)).cloned().collect(),
        doubled,
        doubled_without_excuse: doubled_without_excuse(evidence),
        badly_cut: cut::badly_cut(evidence),
        early: early(evidence),
        earliest: evidence.entries.iter().map(|entry| before_slot(evidence, entry)).max().unwrap_or_default(),
        untold_clocks: untold_clocks(evidence),
        at_most_once_twice: run_more_than_once(evidence, Guarantee::AtMostOnce),
        old_refused_unexcused: unexcused(evidence, &old_refused),
        old_accepted,
        old_refused,
        hand_overs: if evidence.family.hands_over() { hand_overs(&overlaps) } else { Vec::new() },
        overlaps,
        excused_datagrams: excused.len() as u64,
        ran_share,
        unhindered_not_run,
        coalesced_in_office: coalesced_in_office(evidence),
        take_overs: liveness::take_overs(evidence),
        broken_take_overs: liveness::broken_take_overs(evidence),
        storms: liveness::storms(evidence),
        leaderless: liveness::leaderless(evidence),
        shared_tokens: shared_tokens(evidence),
        complaints: evidence.complaints.clone(),
        lateness,
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
            self.is_planned_and_doubled(),
            format!(
                "{} runs doubled by a planned hand-over, first {:?}",
                self.doubled_uncut.len(),
                self.doubled_uncut.first()
            ),
        );
        fail(
            !self.is_planned_and_doubled() && !self.doubled_without_excuse.is_empty(),
            format!(
                "{} runs doubled that no fault excuses, first {:?}",
                self.doubled_without_excuse.len(),
                self.doubled_without_excuse.first()
            ),
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
            !self.leaderless.is_empty(),
            format!("nobody led for too long {} times, first {:?}", self.leaderless.len(), self.leaderless.first()),
        );
        fail(!self.shared_tokens.is_empty(), format!("two replicas led with the tokens {:?}", self.shared_tokens));
        fail(
            !self.complaints.is_empty(),
            format!("{} things seen prove nothing, first: {}", self.complaints.len(), self.complaints.join("; ")),
        );
        for broken in
            self.badly_cut.iter().chain(&self.untold_clocks).chain(&self.broken_take_overs).chain(&self.storms)
        {
            fail(true, broken.clone());
        }
        fail(
            !self.early.is_empty(),
            format!("{} runs came before their slot, first {:?}", self.early.len(), self.early.first()),
        );
        failures
    }

    fn is_planned_and_doubled(&self) -> bool {
        self.family.is_planned() && !self.doubled_uncut.is_empty()
    }

    /// The greatest signed distance between two successive terms.
    pub fn worst_overlap(&self) -> Option<SignedDuration> {
        self.overlaps.iter().map(|overlap| overlap.distance).max()
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

/// How long before its slot a request's first byte came; zero if it did not.
fn before_slot(evidence: &Evidence, entry: &Entry) -> Duration {
    entry.request.slot.map(|slot| evidence.timeline.at(slot).since(entry.first_byte)).unwrap_or_default()
}

fn early(evidence: &Evidence) -> Vec<(String, Timestamp, Duration)> {
    let early = |entry: &Entry| {
        let before = before_slot(evidence, entry);
        let is_early = before > evidence.early_at_most(entry.request.token);
        is_early.then_some((entry.request.job.clone(), entry.request.slot?, before))
    };
    evidence.entries.iter().filter_map(early).collect()
}

/// A token belongs to one term of one replica: whoever else sends a datagram or a request with it leads beside it.
fn shared_tokens(evidence: &Evidence) -> Vec<u64> {
    let mut senders: BTreeMap<u64, BTreeSet<IpAddr>> = BTreeMap::new();
    for entry in &evidence.entries {
        senders.entry(entry.request.token).or_default().insert(entry.replica);
    }
    let of_requests = senders.into_iter().filter(|(_, replicas)| replicas.len() > 1).map(|(token, _)| token);
    of_requests.chain(evidence.probe.shared_tokens()).collect::<BTreeSet<_>>().into_iter().collect()
}

/// A replica whose time of day is wrong knows the difference to within the whole seconds of a date and the time of an answer.
const TOLD_WITHIN: SignedDuration = SignedDuration::from_secs(5);

fn untold_clocks(evidence: &Evidence) -> Vec<String> {
    let wrong = evidence.trials.iter().filter_map(|trial| Some((trial.number, trial.wrong_clock.as_ref()?)));
    let untold = wrong.filter(|(_, clock)| clock.told.is_none_or(|told| (told - clock.off).abs() > TOLD_WITHIN));
    untold
        .map(|(number, clock)| format!("trial {number}: a clock off by {:?} was told as {:?}", clock.off, clock.told))
        .collect()
}

fn hand_overs(overlaps: &[Overlap]) -> Vec<Duration> {
    overlaps.iter().map(|overlap| Duration::try_from(-overlap.distance).unwrap_or_default()).collect()
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
            // A leader whose time of day is ahead takes for missed what is due within that.
            let at_work_before =
                |token: u64| at_work.get(&token).is_some_and(|began| began.plus(evidence.early_at_most(token)) <= at);
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
