//! Periodic jobs: what a leader decides about slots, stores, runs and records.
//!
//! The road of a slot: `plan` decides what becomes of it, `record` says what the status looks like then, `patch`
//! builds the write with its fences, `store` sends it; once it is stored, the action is asked for an attempt, and `run`
//! decides what its end means. `job` puts the next step for one job together from that, and `engine` is the loop that
//! takes the steps. `adoption` knows when the jobs of another Lease may be taken over. The promises are those of the pure
//! parts; the loop adds that there is never more than one request per job under way, and that after an answer in doubt the
//! object is read before anything else.

mod adoption;
mod alarms;
mod attempts;
mod compiled;
mod engine;
mod events;
mod feed;
mod job;
mod observer;
mod patch;
mod plan;
mod record;
mod run;
mod scheduler;
mod skew;
mod store;

pub use adoption::{LeaseName, LeaseNameError, Seen, look as look_at_lease};
pub use observer::{AttemptFailure, AttemptStart, JobGauges, Notice, Observer, RunReport, Urgency};
pub use run::MAX_RECOVERIES;
pub use scheduler::{ClockSkew, Scheduler, SchedulerHandle, SchedulerParts, SchedulerSettings, SchedulerState, Scope};
