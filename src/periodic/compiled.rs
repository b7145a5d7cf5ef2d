//! A spec as the scheduler uses it: checked as far as a schema cannot, parsed once per generation.

use std::{num::NonZeroUsize, time::Duration};

use super::{
    plan::{Rules, Timetable},
    record::{HistoryLimits, Readiness},
};
use crate::{
    action::{self, ActionSpec},
    api::{self, ActionKind, ConditionStatus, Guarantee, PeriodicJobSpec, Planned},
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
    pub action: Option<ActionSpec>,
    /// How a failed run is tried again.
    pub policy: RunPolicy,
    /// How long a run may take with all its attempts.
    pub active_deadline: Duration,
    /// The same, if the spec says so.
    pub given_deadline: Option<Duration>,
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
    /// What an attempt does.
    pub action: ActionKind,
}

/// How long a run may take if the spec does not say: a request that hangs must not hold its place for ever.
const DEADLINE: Duration = Duration::from_hours(1);

/// A Job whose template gives no deadline has none, as under a CronJob; this is what stands for that in the status.
const NO_DEADLINE: Duration = Duration::from_hours(10 * 365 * 24);

impl Compiled {
    /// Checks and parses `spec`. A spec that is not valid has no slots and no action, and says so.
    pub fn of(spec: &PeriodicJobSpec, generation: i64) -> Self {
        let parsed = Schedule::parse(&ScheduleSpec {
            schedule: spec.schedule.as_deref(),
            interval: spec.interval.map(api::Duration::get),
            time_zone: &spec.time_zone,
        });
        let checked = checked_action(spec);
        let lives_on = spec.job_template.is_some();
        let (schedule, action, readiness) = match (parsed, checked) {
            (Err(error), _) => (None, None, not_ready("InvalidSchedule", error.to_string())),
            (_, Err(message)) => (None, None, not_ready("InvalidAction", message)),
            (Ok(schedule), Ok(action)) => (Some(schedule), Some(action), ready(spec.suspend)),
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
                action: if lives_on { ActionKind::JobTemplate } else { ActionKind::Http },
            },
            active_deadline: spec.active_deadline().unwrap_or(if lives_on { NO_DEADLINE } else { DEADLINE }),
            given_deadline: spec.active_deadline(),
            limits: HistoryLimits {
                successful: usize::try_from(spec.successful_jobs_history_limit).unwrap_or(0),
                failed: usize::try_from(spec.failed_jobs_history_limit).unwrap_or(0),
            },
        }
    }
}

impl Compiled {
    /// Whether the API server is asked for the same as by `other`.
    pub fn asks_for_the_same(&self, other: &Self) -> bool {
        self.action == other.action && self.given_deadline == other.given_deadline
    }

    /// The same spec, refused by the API server: it has no slots and no action, and says so.
    pub fn refused(&self, message: String) -> Self {
        let planned = Planned { schedule: None, interval: None, ..self.planned.clone() };
        let timetable = Timetable { schedule: None, ..self.timetable.clone() };
        let readiness = not_ready("InvalidJobTemplate", message);
        Self { planned, timetable, readiness, action: None, ..self.clone() }
    }
}

fn checked_action(spec: &PeriodicJobSpec) -> Result<ActionSpec, String> {
    match (&spec.http, &spec.job_template) {
        (Some(http), None) => match action::check(http) {
            Ok(()) => Ok(ActionSpec::Http(Box::new(http.clone()))),
            Err(error) => Err(error.to_string()),
        },
        (None, Some(template)) => match action::check_template(template, spec.guarantee) {
            Ok(()) => Ok(ActionSpec::Job(template.clone())),
            Err(error) => Err(error.to_string()),
        },
        (None, None) => Err("no action is set: set http or jobTemplate".to_owned()),
        (Some(_), Some(_)) => Err("two actions are set: set either http or jobTemplate".to_owned()),
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
