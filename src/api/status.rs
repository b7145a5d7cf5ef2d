//! The status of a `PeriodicJob`: what was decided, what is going on, what came of it.
//!
//! The status is the store of the scheduler, not only a display: the mark, the open runs and their attempts survive a
//! leader in it. Every field that a write tests is always present, an empty map included, because a JSON Patch cannot
//! test what is absent.

#![allow(clippy::doc_markdown, reason = "these texts are what `kubectl explain` shows")]

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::{Duration, Instant};

/// What the leader has decided and seen. Written by Tenure alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PeriodicJobStatus {
    /// The generation that the conditions speak about.
    #[serde(default)]
    pub observed_generation: i64,
    /// Ready (the spec is valid, owned and scheduled) and LastRunSucceeded.
    #[serde(default)]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
    /// The Lease, as namespace/name, whose leader runs this job. No other leader acts on it. Empty: nobody does, because
    /// the leader that did has let the job go, and whoever is meant by the job's class may take it over.
    pub controller: String,
    /// The term that last claimed this job.
    pub term: TermRef,
    /// A name of the last write, by which its writer recognises it when the answer was lost.
    pub write_id: String,
    /// The schedule that the mark was planned by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planned: Option<Planned>,
    /// Slots are counted from here on, exclusive: the creation of the job.
    pub origin: Instant,
    /// Every slot up to here has its disposition.
    pub mark: Instant,
    /// The open runs, by run id.
    #[serde(default)]
    pub active: BTreeMap<String, ActiveRun>,
    /// How many slots ended in each disposition. Their sum is the number of slots in (origin, mark].
    #[serde(default)]
    pub counts: Counts,
    /// The newest slots that were not run, as ranges.
    #[serde(default)]
    pub ranges: Vec<SlotRange>,
    /// The newest ended runs, as many as the history limits say.
    #[serde(default)]
    pub last_runs: Vec<RunRecord>,
    /// The value of the trigger annotation that was handled last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_trigger: Option<String>,
    /// The next slots.
    #[serde(default)]
    pub next_slots: Vec<Instant>,
    /// The newest slot that was run. A display copy: decisions are made by the mark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_schedule_time: Option<Instant>,
    /// When a run last succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_successful_time: Option<Instant>,
    /// How many runs in a row did not succeed.
    #[serde(default)]
    #[schemars(range(max = 2_147_483_647))]
    pub consecutive_failures: u32,
}

/// One unbroken time in office: its fencing token and a name that no other term has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TermRef {
    /// The fencing token; it grows with each term of the same Lease.
    pub token: u64,
    /// The name.
    pub nonce: String,
}

/// The schedule that a mark was planned by: slots up to an edit belong to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Planned {
    /// The generation of the spec.
    pub generation: i64,
    /// Its cron expression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// Its time zone.
    pub time_zone: String,
    /// Its interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Duration>,
    /// Whether it was suspended.
    #[serde(default)]
    pub suspend: bool,
}

/// A run that has not ended: the intent to make an attempt, stored before the attempt is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ActiveRun {
    /// When the run was due; for a triggered run, when the trigger was seen.
    pub slot: Instant,
    /// The generation of the spec that this attempt follows.
    pub generation: i64,
    /// The term that stored this intent.
    pub term: TermRef,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// When this attempt must have ended.
    pub deadline: Instant,
    /// This attempt is not made before then.
    pub not_before: Instant,
    /// How often the run was taken up again after its attempt's end had remained unknown.
    #[serde(default)]
    pub recoveries: u32,
    /// When the first attempt was stored.
    pub started_at: Instant,
    /// When the run must have ended, with all its attempts.
    pub run_deadline: Instant,
    /// The bound of the wait before this attempt; the wait itself was drawn from [0, bound].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_bound: Option<Duration>,
    /// What the attempt before this one came to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
    /// When the attempt ended, where it ended without an end of the run: cut off with its leader, or failed provably. The
    /// next leader makes the next attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Instant>,
    /// The trigger that asked for this run; absent for a slot's run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger: Option<String>,
    /// What this attempt does. The spec may have another action by now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<ActionKind>,
    /// Whether a leader after the one that stored this attempt has taken it over, because what an attempt began goes on
    /// without its leader: a Job that was created. It is looked for before anything else is done.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub taken_over: bool,
}

/// What is done for a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[allow(
    missing_docs,
    reason = "text on a variant would make it a schema of its own; the fields of the spec document each"
)]
pub enum ActionKind {
    Http,
    JobTemplate,
}

/// What became of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "text on a variant would make it a schema of its own; `Counts` documents each")]
pub enum Disposition {
    Ran,
    Overlap,
    Late,
    Suspended,
    Coalesced,
    Replaced,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[allow(
    missing_docs,
    reason = "text on a variant would make it a schema of its own; `RunRecord::outcome` documents each"
)]
pub enum Outcome {
    Succeeded,
    Failed,
    TimedOut,
    Interrupted,
    Cancelled,
    Indeterminate,
}

/// How many slots ended in each disposition since the origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Counts {
    /// A run was started for the slot.
    pub ran: u64,
    /// The slot was due while as many runs were active as may be.
    pub overlap: u64,
    /// The slot was missed and is not caught up, or its starting deadline had passed.
    pub late: u64,
    /// The slot was due while the job was suspended.
    pub suspended: u64,
    /// The slot was missed, and a newer one was run in its place.
    pub coalesced: u64,
    /// The slot was due while a run was active under Replace, and a newer one came due before that run had ended.
    pub replaced: u64,
    /// Runs started by the trigger annotation. They belong to no slot and are not part of the sum.
    pub triggered: u64,
}

/// Neighbouring slots with the same disposition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SlotRange {
    /// The first slot.
    pub from: Instant,
    /// The last slot.
    pub to: Instant,
    /// How many slots.
    pub count: u64,
    /// Why they were not run.
    pub reason: Disposition,
}

/// A run that has ended, or an attempt that was cut off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunRecord {
    /// The run id.
    pub id: String,
    /// When the run was due.
    pub slot: Instant,
    /// Succeeded; Failed and TimedOut (the last attempt came to that); Interrupted (cut off by the end of a term or of a
    /// replica; the run is taken up again by its guarantee); Cancelled (the job was deleted, or a newer slot replaced the
    /// run); Indeterminate (whether it had an effect, or all of it, is not known).
    pub outcome: Outcome,
    /// The number of the last attempt.
    pub attempt: u32,
    /// When the first attempt was stored.
    pub started_at: Instant,
    /// When it ended.
    pub ended_at: Instant,
    /// The status code and the first 256 bytes of the answer, or why there was none.
    pub message: String,
    /// The trigger that asked for this run; absent for a slot's run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger: Option<String>,
}

/// A condition, with the fields of `metav1.Condition`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Which condition.
    #[serde(rename = "type")]
    pub kind: ConditionType,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// The generation that it speaks about.
    #[serde(default)]
    pub observed_generation: i64,
    /// When the status last changed.
    pub last_transition_time: Instant,
    /// One word for machines.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
}

/// The conditions of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "text on a variant would make it a schema of its own; the field documents each")]
pub enum ConditionType {
    Ready,
    LastRunSucceeded,
}

/// Whether a condition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "text on a variant would make it a schema of its own")]
pub enum ConditionStatus {
    True,
    False,
    Unknown,
}

impl Counts {
    /// The number of slots that have a disposition.
    pub fn slots(&self) -> u64 {
        self.ran + self.overlap + self.late + self.suspended + self.coalesced + self.replaced
    }

    /// Counts `slots` more slots with `disposition`.
    pub fn add(&mut self, disposition: Disposition, slots: u64) {
        let counter = match disposition {
            Disposition::Ran => &mut self.ran,
            Disposition::Overlap => &mut self.overlap,
            Disposition::Late => &mut self.late,
            Disposition::Suspended => &mut self.suspended,
            Disposition::Coalesced => &mut self.coalesced,
            Disposition::Replaced => &mut self.replaced,
        };
        *counter = counter.saturating_add(slots);
    }
}

impl Disposition {
    /// The word used in metrics labels and messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ran => "Ran",
            Self::Overlap => "Overlap",
            Self::Late => "Late",
            Self::Suspended => "Suspended",
            Self::Coalesced => "Coalesced",
            Self::Replaced => "Replaced",
        }
    }
}

impl ActionKind {
    /// The name of the field that says it, which is also its word in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::JobTemplate => "jobTemplate",
        }
    }
}

impl Outcome {
    /// The word used in metrics labels and messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::TimedOut => "TimedOut",
            Self::Interrupted => "Interrupted",
            Self::Cancelled => "Cancelled",
            Self::Indeterminate => "Indeterminate",
        }
    }
}

/// A list that server-side apply and clients merge by `type`, as for every kind of Kubernetes.
fn conditions_schema(generator: &mut SchemaGenerator) -> Schema {
    let item = generator.subschema_for::<Condition>();
    json_schema!({
        "type": "array",
        "items": item,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_slots_leaves_out_triggered_runs() {
        let mut counts = Counts { triggered: 7, ..Counts::default() };
        for disposition in [
            Disposition::Ran,
            Disposition::Overlap,
            Disposition::Late,
            Disposition::Suspended,
            Disposition::Coalesced,
            Disposition::Replaced,
        ] {
            counts.add(disposition, 2);
        }
        assert_eq!(counts.slots(), 12);
    }
}
