//! The one clock of the harness.
//!
//! Every observation (a first byte, a datagram, a status version, a signal) is stamped with [`At::now`], on
//! `CLOCK_BOOTTIME`, so that any two of them can be compared. Slots are wall-clock times; a [`Timeline`] translates, on the
//! assumption that nothing steps the machine's wall clock while a session runs.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// An instant of the harness: nanoseconds of `CLOCK_BOOTTIME`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct At(u64);

/// What translates between the harness's clock and wall-clock time.
#[derive(Debug, Clone, Copy)]
pub struct Timeline {
    boot: At,
    wall: Timestamp,
}

impl At {
    /// Now.
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).expect("a machine's uptime is not negative");
        let nanos = u64::try_from(now.tv_nsec).expect("the nanoseconds of a time are not negative");
        Self(seconds * 1_000_000_000 + nanos)
    }

    /// The instant this many nanoseconds after boot.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// The instant this many milliseconds after boot.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis * 1_000_000)
    }

    /// Nanoseconds after boot.
    pub const fn nanos(self) -> u64 {
        self.0
    }

    /// This much later.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How long after `earlier` this is; zero if it is not after it.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// How long after `other` this is, negative if it is before it.
    #[must_use]
    pub fn signed_since(self, other: Self) -> SignedDuration {
        let nanos = i128::from(self.0) - i128::from(other.0);
        SignedDuration::from_nanos(i64::try_from(nanos).expect("two uptimes differ by less than 292 years"))
    }
}

impl Timeline {
    /// Reads both clocks, now.
    pub fn new() -> Self {
        Self { boot: At::now(), wall: Timestamp::now() }
    }

    /// A timeline on which `wall` is `boot`.
    pub const fn fixed(boot: At, wall: Timestamp) -> Self {
        Self { boot, wall }
    }

    /// When a wall-clock time is, on the harness's clock.
    #[must_use]
    pub fn at(&self, wall: Timestamp) -> At {
        let nanos = i128::from(self.boot.0) + (wall.as_nanosecond() - self.wall.as_nanosecond());
        At(u64::try_from(nanos.max(0)).unwrap_or(u64::MAX))
    }

    /// Which wall-clock time an instant was.
    #[must_use]
    pub fn wall(&self, at: At) -> Timestamp {
        let nanos = self.wall.as_nanosecond() + i128::from(at.0) - i128::from(self.boot.0);
        Timestamp::from_nanosecond(nanos).unwrap_or(Timestamp::MAX)
    }
}

impl Default for Timeline {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeline_translates_there_and_back() {
        let wall: Timestamp = "2026-03-01T12:00:00Z".parse().unwrap();
        let timeline = Timeline::fixed(At::from_millis(5_000), wall);
        let later = wall + SignedDuration::from_millis(250);
        assert_eq!(timeline.at(later), At::from_millis(5_250));
        assert_eq!(timeline.wall(At::from_millis(5_250)), later);
        assert_eq!(timeline.at(wall - SignedDuration::from_millis(250)), At::from_millis(4_750));
    }

    #[test]
    fn a_signed_difference_shows_which_came_first() {
        let (early, late) = (At::from_millis(10), At::from_millis(30));
        assert_eq!(late.signed_since(early), SignedDuration::from_millis(20));
        assert_eq!(early.signed_since(late), SignedDuration::from_millis(-20));
        assert_eq!(early.since(late), Duration::ZERO);
    }
}
