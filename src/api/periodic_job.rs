//! `PeriodicJob`: what is to run when, and how it is treated when it fails, overlaps or is missed.

#![allow(clippy::doc_markdown, reason = "these texts are what `kubectl explain` shows")]
#![allow(clippy::duplicated_attributes, reason = "each printer column has its own name, type and path")]

use std::time;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Duration, HttpAction, JobTemplate, PeriodicJobStatus};

/// The annotation that runs a job now: handled once for each new value.
pub const TRIGGER_ANNOTATION: &str = "tenure.dev/trigger";

/// A job that runs at the instants of a schedule, in exactly one place at a time.
#[derive(Debug, Clone, PartialEq, CustomResource, KubeSchema, Serialize, Deserialize)]
#[kube(
    group = "tenure.dev",
    version = "v1alpha1",
    kind = "PeriodicJob",
    plural = "periodicjobs",
    shortname = "pj",
    category = "tenure",
    namespaced,
    status = "PeriodicJobStatus",
    derive = "PartialEq",
    doc = "A job that runs at the instants of a schedule, in exactly one place at a time.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#,
        description = "Whether the spec is valid, owned and scheduled"
    ),
    printcolumn(
        name = "Schedule",
        type_ = "string",
        json_path = ".spec.schedule",
        description = "The cron expression"
    ),
    printcolumn(name = "Interval", type_ = "string", json_path = ".spec.interval", description = "The interval"),
    printcolumn(
        name = "Last Run OK",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="LastRunSucceeded")].status"#,
        description = "Whether the run that ended last succeeded"
    ),
    printcolumn(
        name = "Last Schedule",
        type_ = "date",
        json_path = ".status.lastScheduleTime",
        description = "How long ago the newest slot that was run was due"
    ),
    printcolumn(
        name = "Next",
        type_ = "string",
        json_path = ".status.nextSlots[0]",
        description = "When the next slot is due"
    ),
    printcolumn(
        name = "Suspend",
        type_ = "boolean",
        json_path = ".spec.suspend",
        description = "Whether no slot is run",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.schedule) != has(self.interval)")
        .message("set exactly one of schedule (a cron expression) and interval (a duration)"),
    validation = Rule::new("[has(self.http), has(self.jobTemplate)].filter(set, set).size() == 1")
        .message("set exactly one action: http or jobTemplate"),
    validation = Rule::new("!has(self.interval) || self.timeZone == 'UTC'")
        .message("an interval lies on the grid of the epoch and has no time zone: remove timeZone, or use schedule")
)]
pub struct PeriodicJobSpec {
    /// Which installation runs this job: the one that was started with this class, or without a class if this is absent.
    /// May be changed: the installation that owns the job brings its open runs to their end, starts no new one and lets
    /// the job go; then that of the new class takes it over, with everything that its status says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub class: Option<String>,

    /// A cron expression of 5 fields, of 6 with seconds first, or @hourly and the like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub schedule: Option<String>,

    /// The time between two slots, from 100ms. Slots lie on the grid of the Unix epoch, so that the cadence never drifts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('100ms')").message("interval must be at least 100ms"))]
    pub interval: Option<Duration>,

    /// The IANA name of the time zone that schedule is read in.
    #[serde(default = "utc")]
    #[schemars(length(min = 1, max = 64))]
    pub time_zone: String,

    /// What happens to a slot that is due while a run is active. Forbid: it is not run, and counted as Overlap. Allow: it
    /// runs beside it, up to maxActive. Replace: the active run is cancelled, and the slot is run when that has ended; of
    /// several slots that come due meanwhile the newest is run, and the others are counted as Replaced. (BufferOne and
    /// BufferAll come later.)
    #[serde(default)]
    pub concurrency_policy: ConcurrencyPolicy,

    /// How late, in seconds, a slot may still be started. Unset: there is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub starting_deadline_seconds: Option<i64>,

    /// What happens to slots that were missed because there was no leader. Latest: the newest one is run. None: none is.
    /// (All comes later.)
    #[serde(default)]
    pub catch_up: CatchUp,

    /// What happens to a run that was started and whose end is not known, because its leader died or no answer came.
    /// AtLeastOnce: it is run again under the same run id. AtMostOnce: it is not, unless it provably never began; it ends
    /// as Indeterminate.
    #[serde(default)]
    pub guarantee: Guarantee,

    /// How long one attempt may take. With jobTemplate: how long creating the Job may take.
    #[serde(default = "default_timeout")]
    #[x_kube(
        validation = Rule::new("duration(self) >= duration('10ms') && duration(self) <= duration('24h')")
            .message("timeout must be from 10ms to 24h")
    )]
    pub timeout: Duration,

    /// How long, in seconds, a run may take with all its attempts. Unset: 3600 with http; with jobTemplate, what the
    /// template says, as with a CronJob. With jobTemplate it becomes the Job's own activeDeadlineSeconds, if the template
    /// does not give a shorter one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 604_800))]
    pub active_deadline_seconds: Option<i64>,

    /// How a failed run is tried again. With jobTemplate: how a Job that could not be created is; pods that fail are tried
    /// again by the Job itself, up to its backoffLimit.
    #[serde(default)]
    pub retry: RetryPolicy,

    /// Whether slots are passed over. A suspended job can still be triggered.
    #[serde(default)]
    pub suspend: bool,

    /// How many successful runs are kept in the status, and how many Jobs that completed are kept with jobTemplate.
    #[serde(default = "default_successful_history")]
    #[schemars(range(min = 0, max = 20))]
    pub successful_jobs_history_limit: i32,

    /// How many runs that did not succeed are kept in the status, and how many failed Jobs are kept with jobTemplate.
    #[serde(default = "default_failed_history")]
    #[schemars(range(min = 0, max = 20))]
    pub failed_jobs_history_limit: i32,

    /// How many runs may be active at once under Allow.
    #[serde(default = "default_max_active")]
    #[schemars(range(min = 1, max = 100))]
    pub max_active: i32,

    /// The action: an HTTP request. (command and enqueue come later.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpAction>,

    /// The action: a Kubernetes Job, as a CronJob's jobTemplate describes it (metadata with labels and annotations, and the
    /// spec of a Job of batch/v1). Each slot has one Job, named after this object and the run; its containers find RUN_ID,
    /// RUN_SLOT, RUN_TOKEN and RUN_ATTEMPT in their environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_template: Option<JobTemplate>,
}

/// What happens to a slot that is due while a run is active.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "text on a variant would make it a schema of its own; the field documents each")]
pub enum ConcurrencyPolicy {
    #[default]
    Forbid,
    Allow,
    Replace,
}

/// What happens to slots that were missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "text on a variant would make it a schema of its own; the field documents each")]
pub enum CatchUp {
    None,
    #[default]
    Latest,
}

/// What happens to a run whose end is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "text on a variant would make it a schema of its own; the field documents each")]
pub enum Guarantee {
    #[default]
    AtLeastOnce,
    AtMostOnce,
}

/// How a failed run is tried again: after attempt n, a wait drawn uniformly from [0, min(max, initial · 2^n)].
#[derive(Debug, Clone, Copy, PartialEq, Eq, KubeSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("duration(self.initial) <= duration(self.max)")
        .message("retry.initial must not be longer than retry.max")
)]
pub struct RetryPolicy {
    /// How many attempts a run has, the first included.
    #[serde(default = "default_max_attempts")]
    #[schemars(range(min = 1, max = 100))]
    pub max_attempts: i32,

    /// The unit of the growing wait.
    #[serde(default = "default_retry_initial")]
    #[x_kube(
        validation = Rule::new("duration(self) >= duration('1ms')").message("retry.initial must be at least 1ms")
    )]
    pub initial: Duration,

    /// The longest wait.
    #[serde(default = "default_retry_max")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('24h')").message("retry.max must be at most 24h"))]
    pub max: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { max_attempts: default_max_attempts(), initial: default_retry_initial(), max: default_retry_max() }
    }
}

impl PeriodicJobSpec {
    /// How long a run may take with all its attempts, if the spec says so.
    pub fn active_deadline(&self) -> Option<time::Duration> {
        self.active_deadline_seconds.map(|seconds| time::Duration::from_secs(u64::try_from(seconds).unwrap_or(1)))
    }

    /// How late a slot may still be started, if there is a limit.
    pub fn starting_deadline(&self) -> Option<time::Duration> {
        self.starting_deadline_seconds.map(|seconds| time::Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
    }
}

fn utc() -> String {
    "UTC".to_owned()
}

fn default_timeout() -> Duration {
    Duration(time::Duration::from_secs(30))
}

fn default_successful_history() -> i32 {
    3
}

fn default_failed_history() -> i32 {
    1
}

fn default_max_active() -> i32 {
    10
}

fn default_max_attempts() -> i32 {
    5
}

fn default_retry_initial() -> Duration {
    Duration(time::Duration::from_secs(1))
}

fn default_retry_max() -> Duration {
    Duration(time::Duration::from_mins(5))
}
