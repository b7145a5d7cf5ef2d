//! Cron on the civil time line: the line of dates and times of day that no zone has touched yet.
//!
//! On it there are no gaps and no repeats, so that croner's search and plain arithmetic give the same answer in both
//! directions. Points on it are counted in seconds from 1970-01-01T00:00:00, ranges are half-open. What a zone makes of
//! the line is the business of [`super::zoned`].

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock, Mutex, PoisonError, Weak},
};

use croner::{Cron, Weekday, errors::CronError};
use jiff::{Timestamp, civil::DateTime, tz::Offset};

const SECONDS_PER_DAY: i64 = 86_400;

/// A parsed expression and what is needed to count with it.
#[derive(Debug)]
pub(super) struct CivilCron {
    cron: Cron,
    canonical: String,
    seconds: Values,
    minutes: Values,
    hours: Values,
}

/// A set of values below 64.
#[derive(Debug, Clone, Copy)]
struct Values(u64);

/// One croner `Cron` is 5.4 KB, and ten thousand jobs share a handful of expressions: equal ones are one object. The
/// table holds no expression alive, and nothing but memory depends on it.
static INTERNED: LazyLock<Mutex<BTreeMap<String, Weak<CivilCron>>>> = LazyLock::new(Mutex::default);

impl CivilCron {
    /// The expression that `canonical` says, six fields as croner reads them; the same object for the same text.
    pub(super) fn interned(canonical: &str) -> Result<Arc<Self>, CronError> {
        let known = || INTERNED.lock().unwrap_or_else(PoisonError::into_inner).get(canonical).and_then(Weak::upgrade);
        if let Some(cron) = known() {
            return Ok(cron);
        }
        let cron = Arc::new(Self::parse(canonical)?);
        let mut interned = INTERNED.lock().unwrap_or_else(PoisonError::into_inner);
        interned.insert(canonical.to_owned(), Arc::downgrade(&cron));
        Ok(cron)
    }

    fn parse(canonical: &str) -> Result<Self, CronError> {
        let cron: Cron = canonical.parse()?;
        Ok(Self {
            seconds: Values::of(&cron.pattern.seconds.values()),
            minutes: Values::of(&cron.pattern.minutes.values()),
            hours: Values::of(&cron.pattern.hours.values()),
            canonical: canonical.to_owned(),
            cron,
        })
    }

    /// The first match at `from` or later.
    pub(super) fn first_from(&self, from: i64) -> Option<i64> {
        self.cron.find_next_occurrence(&date_time(from)?, true).ok().and_then(seconds)
    }

    /// The last match at `upto` or earlier.
    pub(super) fn last_upto(&self, upto: i64) -> Option<i64> {
        self.cron.find_previous_occurrence(&date_time(upto)?, true).ok().and_then(seconds)
    }

    /// Whether `at` matches.
    pub(super) fn contains(&self, at: i64) -> bool {
        self.count(at, at.saturating_add(1)) == 1
    }

    /// How many matches are in `[from, to)`: one test per day, and no more for an expression of every second.
    pub(super) fn count(&self, from: i64, to: i64) -> u64 {
        if from >= to {
            return 0;
        }
        let (first_day, last_day) = (from.div_euclid(SECONDS_PER_DAY), to.div_euclid(SECONDS_PER_DAY));
        let of_day = self.before(SECONDS_PER_DAY);
        let mut count = 0;
        for day in first_day..=last_day {
            if !self.matches_day(day) {
                continue;
            }
            let upto = if day == last_day { self.before(to.rem_euclid(SECONDS_PER_DAY)) } else { of_day };
            let before = if day == first_day { self.before(from.rem_euclid(SECONDS_PER_DAY)) } else { 0 };
            count += upto - before;
        }
        count
    }

    /// How many times of day match before `second`, counted from midnight.
    fn before(&self, second: i64) -> u64 {
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        let in_hour = self.minutes.all() * self.seconds.all();
        let mut count = self.hours.below(hour) * in_hour;
        if self.hours.has(hour) {
            count += self.minutes.below(minute) * self.seconds.all();
            if self.minutes.has(minute) {
                count += self.seconds.below(second);
            }
        }
        count
    }

    fn matches_day(&self, day: i64) -> bool {
        let Some(date) = date_time(day.saturating_mul(SECONDS_PER_DAY)).map(DateTime::date) else { return false };
        let month = u32::from(date.month().unsigned_abs());
        let day = u32::from(date.day().unsigned_abs());
        let weekday = Weekday::from_days_from_sunday(u32::from(date.weekday().to_sunday_zero_offset().unsigned_abs()));
        let pattern = &self.cron.pattern;
        pattern.month_match(month).unwrap_or(false)
            && pattern.day_match(i32::from(date.year()), month, day, weekday).unwrap_or(false)
    }
}

impl Drop for CivilCron {
    fn drop(&mut self) {
        let mut interned = INTERNED.lock().unwrap_or_else(PoisonError::into_inner);
        // Another one may have been made for the same text since the last holder of this one let go.
        if interned.get(&self.canonical).is_some_and(|cron| cron.strong_count() == 0) {
            interned.remove(&self.canonical);
        }
    }
}

impl Values {
    fn of(values: &[u16]) -> Self {
        Self(values.iter().fold(0, |set, value| set | (1 << value)))
    }

    fn all(self) -> u64 {
        u64::from(self.0.count_ones())
    }

    fn has(self, value: i64) -> bool {
        self.0 >> value & 1 == 1
    }

    fn below(self, value: i64) -> u64 {
        u64::from((self.0 & ((1 << value) - 1)).count_ones())
    }
}

/// The civil date and time of a point on the line, if the calendar reaches it.
fn date_time(at: i64) -> Option<DateTime> {
    Timestamp::from_second(at).ok().map(|at| Offset::UTC.to_datetime(at))
}

fn seconds(at: DateTime) -> Option<i64> {
    Offset::UTC.to_timestamp(at).ok().map(Timestamp::as_second)
}
