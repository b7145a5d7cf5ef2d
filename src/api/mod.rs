//! The custom resources and what they share: types only.
//!
//! What a schema can refuse, it refuses here: bounds, enumerations, and CEL rules whose message says what to do. A value
//! that is marked "later" in the documentation is not in its enumeration and its field is not in the schema, so that the
//! API server refuses it by name instead of storing something that nobody acts on. What a schema cannot say (that a cron
//! expression fires, that a time zone exists) is left to [`crate::schedule`] and shows as `Ready=False`.

#[allow(unreachable_pub, reason = "the schema derive makes public twins of the types inside a function")]
mod action;
mod crd;
#[allow(unreachable_pub, reason = "the schema derive makes public twins of the types inside a function")]
mod periodic_job;
mod status;
mod time;

pub use action::{
    BODY_BYTES_MAX, BasicAuth, HttpAction, HttpAuth, HttpHeader, HttpMethod, HttpTls, JobTemplate, SecretKeyRef,
    ValueFrom,
};
pub use crd::{CrdError, crds, crds_yaml};
pub use periodic_job::{
    CatchUp, ConcurrencyPolicy, Guarantee, PeriodicJob, PeriodicJobSpec, RetryPolicy, TRIGGER_ANNOTATION,
};
pub use status::{
    ActionKind, ActiveRun, Condition, ConditionStatus, ConditionType, Counts, Disposition, Outcome, PeriodicJobStatus,
    Planned, RunRecord, SlotRange, TermRef,
};
pub use time::{Duration, Instant, TimeError};
