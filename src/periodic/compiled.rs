//! A spec as the scheduler uses it: checked as far as a schema cannot, parsed once per generation.

use std::{num::NonZeroUsize, time::Duration};

use super::{
    plan::{Rules, Timetable},
    record::{HistoryLimits, Readiness},
};
use crate::{
    action,
    api::{self, ConditionStatus, Guarantee, HttpAction, PeriodicJobSpec, Planned},
    backoff::Backoff,
    schedule::{Schedule, ScheduleSpec},
};

/// A spec, ready to be planned and run.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// What the status will say that the mark was planned by.
    pub planned: Planned,
    /// Its slots.
    pub timetable: Timetable,
    /// How they are treated.
    pub rules: Rules,
    /// Whether it is valid.
    pub readiness: Readiness,
    /// What a run does; nothing, if the spec is not valid.
    pub action: Option<HttpAction>,
    /// How a failed run is tried again.
    pub policy: RunPolicy,
    /// How long a run may take with all its attempts.
    pub active_deadline: Duration,
    /// How many ended runs are kept.
    pub limits: HistoryLimits,
}

/// How attempts of a run are made.
#[derive(Debug, Clone, Copy)]
pub struct RunPolicy {
    /// What happens to a run whose end is not known.
    pub guarantee: Guarantee,
    /// How many attempts a run has.
    pub max_attempts: u32,
    /// How long to wait between them.
    pub backoff: Backoff,
    /// How long one may take.
    pub timeout: Duration,
}

impl Compiled {
    /// Checks and parses `spec`. A spec that is not valid has no slots and no action, and says so.
    pub fn of(spec: &PeriodicJobSpec, generation: i64) -> Self {
        let parsed = Schedule::parse(&ScheduleSpec {
            schedule: spec.schedule.as_deref(),
            interval: spec.interval.map(api::Duration::get),
            time_zone: &spec.time_zone,
        });
        let checked = match &spec.http {
            Some(http) => action::check(http).map(|()| http.clone()).map_err(|error| error.to_string()),
            None => Err("no action is set: set http".to_owned()),
        };
        let (schedule, action, readiness) = match (parsed, checked) {
            (Err(error), _) => (None, None, not_ready("InvalidSchedule", error.to_string())),
            (_, Err(message)) => (None, None, not_ready("InvalidAction", message)),
            (Ok(schedule), Ok(http)) => (Some(schedule), Some(http), ready(spec.suspend)),
        };
        let planned = Planned {
            generation,
            schedule: spec.schedule.clone().filter(|_| schedule.is_some()),
            time_zone: spec.time_zone.clone(),
            interval: spec.interval.filter(|_| schedule.is_some()),
            suspend: spec.suspend,
        };
        Self {
            planned,
            timetable: Timetable { schedule, suspend: spec.suspend },
            rules: Rules {
                concurrency: spec.concurrency_policy,
                max_active: at_least_one(spec.max_active),
                starting_deadline: spec.starting_deadline(),
                catch_up: spec.catch_up,
            },
            readiness,
            action,
            policy: RunPolicy {
                guarantee: spec.guarantee,
                max_attempts: u32::try_from(spec.retry.max_attempts).unwrap_or(1).max(1),
                backoff: Backoff { initial: spec.retry.initial.get(), max: spec.retry.max.get() },
                timeout: spec.timeout.get(),
            },
            active_deadline: spec.active_deadline(),
            limits: HistoryLimits {
                successful: usize::try_from(spec.successful_jobs_history_limit).unwrap_or(0),
                failed: usize::try_from(spec.failed_jobs_history_limit).unwrap_or(0),
            },
        }
    }
}

/// The timetable that a mark was planned by. One that no longer parses (its time zone is gone) has no slots.
pub fn timetable_of(planned: &Planned) -> Timetable {
    let parsed = Schedule::parse(&ScheduleSpec {
        schedule: planned.schedule.as_deref(),
        interval: planned.interval.map(api::Duration::get),
        time_zone: &planned.time_zone,
    });
    Timetable { schedule: parsed.ok(), suspend: planned.suspend }
}

fn at_least_one(count: i32) -> NonZeroUsize {
    usize::try_from(count).ok().and_then(NonZeroUsize::new).unwrap_or(NonZeroUsize::MIN)
}

fn ready(suspend: bool) -> Readiness {
    let (reason, message) = if suspend {
        ("Suspended", "the spec is valid; slots are passed over while suspend is true")
    } else {
        ("Scheduled", "the spec is valid and its slots are planned")
    };
    Readiness { ready: ConditionStatus::True, reason, message: message.to_owned() }
}

fn not_ready(reason: &'static str, message: String) -> Readiness {
    Readiness { ready: ConditionStatus::False, reason, message }
}
