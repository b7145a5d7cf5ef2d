//! The judge of slots: it follows each version of each job's status from outside, and compares it with what it counts
//! itself and with what the ledger saw. It uses nothing of the code that it judges.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use sandbox::{Change, ChangeKind};
use serde_json::Value;
use tenure::clock::BootTime;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::support::ledger::Line;

/// When the slots of a job are due, in the plainest words there are.
#[derive(Debug, Clone, Copy)]
pub enum Grid {
    /// Each multiple of so many milliseconds since the epoch.
    Millis(i64),
    /// Each second of a minute that is a multiple of this.
    SecondsOfTheMinute(i64),
}

/// A job, as the judge knows what to ask of it.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    pub grid: Grid,
    pub at_most_once: bool,
    pub most_active: usize,
}

/// A time in which an unplanned change was under way.
#[derive(Debug, Clone, Copy)]
pub struct Disturbance {
    pub from: BootTime,
    pub to: BootTime,
}

/// What has to be known of the faults.
#[derive(Debug, Default)]
pub struct Around {
    /// When changes were under way that nobody had planned.
    pub changes: Vec<Disturbance>,
    /// When a replica could not reach the ledger.
    pub out_of_reach: Vec<(Timestamp, Timestamp)>,
}

impl Around {
    /// Whether a run of this slot may have met a ledger out of reach.
    fn was_out_of_reach(&self, slot: &str) -> bool {
        let slot: Timestamp = slot.parse().unwrap();
        self.out_of_reach.iter().any(|(from, to)| (*from - RUN_LASTS_MAX..=*to + WALL_CLOCKS_AHEAD_MAX).contains(&slot))
    }
}

/// What the judge has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    pub due: u64,
    pub ran: u64,
    pub overlap: u64,
    pub late: u64,
    pub coalesced: u64,
    pub runs: u64,
    pub doubled: u64,
    pub indeterminate: u64,
    pub requests: u64,
    pub statuses: u64,
}

pub struct Judge {
    changes: UnboundedReceiver<Change>,
    jobs: BTreeMap<String, Seen>,
    statuses: u64,
    pub violations: Vec<String>,
}

struct Seen {
    rules: Rules,
    mark: Option<Timestamp>,
    due: u64,
    dispositions: BTreeMap<&'static str, u64>,
    runs: BTreeMap<String, Run>,
}

#[derive(Debug, Default)]
struct Run {
    slot: String,
    /// How it ended; none while it is open.
    outcome: Option<String>,
}

const DISPOSITIONS: [&str; 5] = ["ran", "overlap", "late", "suspended", "coalesced"];

/// The mark never passes the API server's time by more than this.
const MARK_AHEAD_MAX: SignedDuration = SignedDuration::from_secs(2);

/// No run of these jobs is still trying this long after its slot.
const RUN_LASTS_MAX: SignedDuration = SignedDuration::from_secs(20);

/// A replica whose wall clock is ahead runs a slot this much before its time at most.
const WALL_CLOCKS_AHEAD_MAX: SignedDuration = SignedDuration::from_millis(1_500);

impl Grid {
    /// How many slots are due in (from, to].
    fn count(self, from: Timestamp, to: Timestamp) -> u64 {
        let count = match self {
            Self::Millis(period) => to.as_millisecond().div_euclid(period) - from.as_millisecond().div_euclid(period),
            Self::SecondsOfTheMinute(step) => {
                let seconds = from.as_second() + 1..=to.as_second();
                i64::try_from(seconds.filter(|second| second.rem_euclid(60) % step == 0).count()).unwrap()
            }
        };
        u64::try_from(count).unwrap()
    }
}

impl Judge {
    pub fn new(changes: UnboundedReceiver<Change>, jobs: impl IntoIterator<Item = (String, Rules)>) -> Self {
        let seen = |rules| Seen { rules, mark: None, due: 0, dispositions: BTreeMap::new(), runs: BTreeMap::new() };
        let jobs = jobs.into_iter().map(|(name, rules)| (name, seen(rules))).collect();
        Self { changes, jobs, statuses: 0, violations: Vec::new() }
    }

    /// Looks at what was written since the last look.
    pub fn look(&mut self) {
        while let Ok(change) = self.changes.try_recv() {
            if change.resource != "periodicjobs.tenure.dev" || change.kind == ChangeKind::Deleted {
                continue;
            }
            let status = &change.object["status"];
            let Some(seen) = self.jobs.get_mut(&change.name).filter(|_| status.is_object()) else { continue };
            self.statuses += 1;
            for wrong in seen.status(status, change.at) {
                self.violations.push(format!("{} version {} by {}: {wrong}", change.name, change.rv, change.client));
            }
        }
    }

    /// Whether every run that was ever stored has ended.
    pub fn everything_has_ended(&self) -> bool {
        self.jobs.values().all(|job| job.runs.values().all(|run| run.outcome.is_some()))
    }

    /// Compares the runs with what the ledger saw, and counts.
    pub fn verdict(&mut self, lines: &[Line], around: &Around) -> Counted {
        let mut counted = Counted { statuses: self.statuses, requests: lines.len() as u64, ..Counted::default() };
        let mut by_run: BTreeMap<&str, Vec<&Line>> = BTreeMap::new();
        for line in lines {
            by_run.entry(&line.run).or_default().push(line);
        }
        for (id, lines) in &by_run {
            if !self.jobs.values().any(|job| job.runs.contains_key(*id)) {
                self.violations.push(format!("a request without an intent: {lines:?}"));
            }
        }
        for (name, job) in &self.jobs {
            counted.due += job.due;
            let of = |what: &str| job.dispositions.get(what).copied().unwrap_or(0);
            counted.ran += of("ran");
            counted.overlap += of("overlap");
            counted.late += of("late");
            counted.coalesced += of("coalesced");
            counted.runs += job.runs.len() as u64;
            for (id, run) in &job.runs {
                let lines = by_run.get(id.as_str()).map_or(&[][..], Vec::as_slice);
                counted.doubled += u64::from(lines.len() > 1);
                counted.indeterminate += u64::from(run.outcome.as_deref() == Some("Indeterminate"));
                for wrong in run.verdict(job.rules, lines, around) {
                    self.violations.push(format!("{name}, slot {}, run {id}: {wrong}: {run:?} {lines:#?}", run.slot));
                }
            }
        }
        counted
    }
}

impl Seen {
    fn status(&mut self, status: &Value, now: Timestamp) -> Vec<String> {
        let mut wrong = Vec::new();
        let time = |field: &str| status[field].as_str().and_then(|text| text.parse::<Timestamp>().ok());
        let (Some(origin), Some(mark)) = (time("origin"), time("mark")) else {
            return vec![format!("no origin or no mark: {status}")];
        };
        let before = self.mark.replace(mark).unwrap_or(origin);
        if mark < before {
            wrong.push(format!("the mark goes back from {before} to {mark}"));
            return wrong;
        }
        if mark > now + MARK_AHEAD_MAX {
            wrong.push(format!("the mark {mark} is ahead of the time {now}"));
        }
        self.due += self.rules.grid.count(before, mark);
        let mut sum = 0;
        for disposition in DISPOSITIONS {
            let count = status["counts"][disposition].as_u64().unwrap_or(0);
            if self.dispositions.insert(disposition, count).is_some_and(|before| before > count) {
                wrong.push(format!("the count of {disposition} goes back"));
            }
            sum += count;
        }
        if sum != self.due {
            wrong.push(format!("{sum} slots have a disposition, {} are due from {origin} to {mark}", self.due));
        }
        wrong.extend(self.runs(status));
        wrong
    }

    fn runs(&mut self, status: &Value) -> Vec<String> {
        let mut wrong = Vec::new();
        let none = serde_json::Map::new();
        let active = status["active"].as_object().unwrap_or(&none);
        if active.len() > self.rules.most_active {
            wrong.push(format!("{} runs are active at once", active.len()));
        }
        for (id, run) in active {
            let slot = run["slot"].as_str().unwrap_or_default().to_owned();
            let known = self.runs.entry(id.clone()).or_insert_with(|| Run { slot, outcome: None });
            if let Some(outcome) = &known.outcome {
                wrong.push(format!("run {id} is open again after it ended: {outcome}"));
            }
        }
        let ended = status["lastRuns"].as_array().map_or(&[][..], Vec::as_slice);
        for (id, run) in self.runs.iter_mut().filter(|(id, run)| run.outcome.is_none() && !active.contains_key(*id)) {
            match ended.iter().find(|record| record["id"] == **id) {
                Some(record) => run.outcome = record["outcome"].as_str().map(str::to_owned),
                None => wrong.push(format!("run {id} is gone without a record")),
            }
        }
        let ran = self.dispositions.get("ran").copied().unwrap_or(0);
        if ran != self.runs.len() as u64 {
            wrong.push(format!("{ran} slots are counted as run, {} runs were stored", self.runs.len()));
        }
        wrong
    }
}

impl Run {
    fn verdict(&self, rules: Rules, lines: &[&Line], around: &Around) -> Vec<String> {
        let mut wrong = Vec::new();
        let outcome = self.outcome.as_deref().unwrap_or("open");
        if outcome == "Succeeded" && !lines.iter().any(|line| line.is_success()) {
            wrong.push("it is recorded as a success, and the ledger answered none".to_owned());
        }
        if rules.at_most_once && lines.len() > 1 {
            wrong.push(format!("at most once, and {} requests", lines.len()));
        }
        let known_failure = ["Failed", "TimedOut"].contains(&outcome) && around.was_out_of_reach(&self.slot);
        if lines.is_empty() && outcome != "Indeterminate" && !known_failure {
            wrong.push("it was never made, and nothing says so".to_owned());
        }
        for pair in lines.windows(2) {
            let [first, second] = pair else { continue };
            let disturbed = around.changes.iter().any(|change| change.from <= second.at && first.at <= change.to);
            if first.is_success() && !disturbed {
                wrong.push("it was answered with success in quiet times, and made again".to_owned());
            }
            if first.attempt >= second.attempt {
                wrong.push(format!("attempt {} follows attempt {}", second.attempt, first.attempt));
            }
        }
        wrong
    }
}
