//! When: cron expressions in time zones, and intervals.
//!
//! A [`Schedule`] is a set of instants, its slots. It is pure: the same schedule asked about the same instants gives the
//! same answer on every replica, whatever its clock or its machine's time zone files say (the zone database is compiled
//! in). Every question is about a half-open window `(after, upto]`, because that is how a mark moves.
//!
//! Promises: slots are strictly increasing; [`Schedule::next_after`], [`Schedule::latest_in`], [`Schedule::count_in`] and
//! [`Schedule::slots_in`] agree with each other; slots of a cron expression are whole seconds, slots of an interval lie on
//! the grid that starts at the epoch and do not drift. What is due, late or missed is for the caller to decide.

mod civil;
mod dialect;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;
mod zoned;

use std::{sync::LazyLock, time::Duration};

use jiff::{
    Timestamp,
    tz::{TimeZone, TimeZoneDatabase},
};

pub use self::dialect::DialectError;
use self::{civil::CivilCron, zoned::ZonedCron};
use crate::duration::format_duration;

/// The shortest interval. A run costs about two writes to the API server, and ten runs a second of one job are as many as
/// its status can follow.
pub const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// The day from which an expression is asked whether it ever fires. The calendar repeats itself every 400 years, so that
/// any day would do; one in the present is answered by the zone's present rules.
const REFERENCE_SECOND: i64 = 1_767_225_600;

/// A parsed schedule; a clone costs two reference counts.
#[derive(Debug, Clone)]
pub struct Schedule(Kind);

/// The fields of a resource that a schedule is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScheduleSpec<'a> {
    /// A cron expression.
    pub schedule: Option<&'a str>,
    /// The time between two slots.
    pub interval: Option<Duration>,
    /// The zone in which the cron expression is read, a name of the IANA database.
    pub time_zone: &'a str,
}

/// Why there is no schedule. The text names the field, what was expected and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// Neither `schedule` nor `interval` is set.
    #[error("spec: neither schedule nor interval is set: set one, as in schedule: \"*/5 * * * *\" or interval: 30s")]
    Neither,
    /// Both `schedule` and `interval` are set.
    #[error("spec: both schedule and interval are set: remove one of them")]
    Both,
    /// The interval is too short.
    #[error("spec.interval: {} is too short: the shortest interval is {}", shown(*.0), format_duration(MIN_INTERVAL))]
    IntervalTooShort(Duration),
    /// The zone is not in the database.
    #[error(
        "spec.timeZone: \"{0}\" is not a time zone of the IANA database: write a name such as UTC or Europe/Berlin"
    )]
    UnknownTimeZone(String),
    /// The expression cannot be read.
    #[error("spec.schedule: {0}")]
    Dialect(#[from] DialectError),
    /// The expression can be read, but no instant matches it.
    #[error(
        "spec.schedule: \"{schedule}\" never fires in time zone {time_zone}: \
         check its day of month against its month and its hour against changes of daylight saving time"
    )]
    NeverFires {
        /// The expression.
        schedule: String,
        /// The zone in which it was read.
        time_zone: String,
    },
}

#[derive(Debug, Clone)]
enum Kind {
    /// Nanoseconds between two slots.
    Every(i128),
    Cron(ZonedCron),
}

/// The zones as they were compiled in. Those of the machine are not asked: two replicas with zone files of different age
/// would disagree about slots, and the image has none.
static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

impl Schedule {
    /// Makes a schedule of what a resource says.
    ///
    /// # Errors
    /// [`ScheduleError`] if the fields do not make a schedule that fires.
    pub fn parse(spec: &ScheduleSpec<'_>) -> Result<Self, ScheduleError> {
        let zone = zone(spec.time_zone)?;
        match (spec.schedule, spec.interval) {
            (None, None) => Err(ScheduleError::Neither),
            (Some(_), Some(_)) => Err(ScheduleError::Both),
            (None, Some(interval)) if interval < MIN_INTERVAL => Err(ScheduleError::IntervalTooShort(interval)),
            (None, Some(interval)) => {
                let nanos = i128::try_from(interval.as_nanos()).unwrap_or(i128::MAX);
                Ok(Self(Kind::Every(nanos)))
            }
            (Some(schedule), None) => {
                let never = || ScheduleError::NeverFires {
                    schedule: schedule.to_owned(),
                    time_zone: spec.time_zone.to_owned(),
                };
                let expression = dialect::parse(schedule)?;
                // What the dialect lets through, croner can read; an expression that it could not would never fire.
                let cron = CivilCron::interned(&expression.canonical).map_err(|_| never())?;
                let cron = ZonedCron { cron, pace: expression.pace, zone };
                cron.first_from(REFERENCE_SECOND).ok_or_else(never)?;
                Ok(Self(Kind::Cron(cron)))
            }
        }
    }

    /// The first slot strictly after `after`; none where the calendar ends.
    #[must_use]
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        match &self.0 {
            Kind::Every(nanos) => {
                let index = after.as_nanosecond().div_euclid(*nanos) + 1;
                Timestamp::from_nanosecond(index.checked_mul(*nanos)?).ok()
            }
            Kind::Cron(cron) => cron.first_from(second_of(after) + 1).and_then(instant),
        }
    }

    /// The newest slot in `(after, upto]`.
    #[must_use]
    pub fn latest_in(&self, after: Timestamp, upto: Timestamp) -> Option<Timestamp> {
        match &self.0 {
            Kind::Every(nanos) => {
                let index = upto.as_nanosecond().div_euclid(*nanos);
                let latest = Timestamp::from_nanosecond(index.checked_mul(*nanos)?).ok()?;
                Some(latest).filter(|latest| *latest > after)
            }
            Kind::Cron(cron) => cron.last_between(second_of(after) + 1, second_of(upto)).and_then(instant),
        }
    }

    /// The exact number of slots in `(after, upto]`.
    ///
    /// Nothing is walked slot by slot: an interval takes a division, a cron expression one test per day of the window. So
    /// no window needs a bound, and a year of every second costs as much as a year of every midnight.
    #[must_use]
    pub fn count_in(&self, after: Timestamp, upto: Timestamp) -> u64 {
        match &self.0 {
            Kind::Every(nanos) => {
                let index_of = |at: Timestamp| at.as_nanosecond().div_euclid(*nanos);
                u64::try_from(index_of(upto) - index_of(after)).unwrap_or(0)
            }
            Kind::Cron(cron) => cron.count(second_of(after) + 1, second_of(upto) + 1),
        }
    }

    /// The slots in `(after, upto]`, the oldest first. Each step is a search: to learn how many there are, ask
    /// [`Schedule::count_in`].
    pub fn slots_in(&self, after: Timestamp, upto: Timestamp) -> impl Iterator<Item = Timestamp> {
        std::iter::successors(self.next_after(after), |slot| self.next_after(*slot))
            .take_while(move |slot| *slot <= upto)
    }
}

/// The zone of that name. `Etc/Unknown` is in the database, as the name for what is not known.
fn zone(name: &str) -> Result<TimeZone, ScheduleError> {
    ZONES
        .get(name)
        .ok()
        .filter(|zone| !zone.is_unknown())
        .ok_or_else(|| ScheduleError::UnknownTimeZone(name.to_owned()))
}

/// The whole second that `at` is in; `Timestamp::as_second` would round up before the epoch.
fn second_of(at: Timestamp) -> i64 {
    at.as_second() - i64::from(at.subsec_nanosecond() < 0)
}

fn instant(second: i64) -> Option<Timestamp> {
    Timestamp::from_second(second).ok()
}

/// A duration below [`MIN_INTERVAL`], which may be finer than the format of durations.
fn shown(interval: Duration) -> String {
    if interval.subsec_nanos().is_multiple_of(1_000_000) { format_duration(interval) } else { format!("{interval:?}") }
}
