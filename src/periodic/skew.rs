//! Whether this machine's time of day can be trusted: a comparison with the API server's `Date` headers.
//!
//! A `Date` header has whole seconds and is written at some point between the request and the answer, so each one gives a
//! range for the server's time. The range is carried on by the boot clock, which does not step: a step of the wall clock
//! shows at once, without a new answer.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::{
    apiserver::DateSeen,
    clock::{BootTime, Clock},
};

/// A wall clock that is off by more than the limit for this long is wrong, and not only late.
const PERSISTS: Duration = Duration::from_secs(10);

/// A wall clock that was wrong is trusted again below this difference.
const TRUSTED_BELOW: Duration = Duration::from_secs(2);

/// The mark never passes the API server's time by more than this.
const AHEAD_MAX: SignedDuration = SignedDuration::from_secs(2);

/// A `Date` header has whole seconds: the true time was up to this much later.
const DATE_STEP: SignedDuration = SignedDuration::from_secs(1);

/// What is known about the wall clock.
#[derive(Debug, Clone, Copy)]
pub struct Skew {
    /// The difference that is too much; zero switches the comparison off.
    limit: Duration,
    seen: Option<DateSeen>,
    beyond_since: Option<BootTime>,
    wrong: Option<SignedDuration>,
}

impl Skew {
    /// Nothing is known yet.
    pub const fn new(limit: Duration) -> Self {
        Self { limit, seen: None, beyond_since: None, wrong: None }
    }

    /// Takes in the newest `Date` header.
    pub fn note(&mut self, seen: DateSeen) {
        if self.seen.is_none_or(|known| seen.received > known.received) {
            self.seen = Some(seen);
        }
    }

    /// Compares the clocks, and returns by how much the wall clock is wrong, if it is.
    pub fn look(&mut self, clock: &dyn Clock) -> Option<SignedDuration> {
        if self.limit.is_zero() {
            return None;
        }
        let boot = clock.boot();
        let difference = self.difference(boot, clock.wall())?;
        let beyond = difference.unsigned_abs();
        if beyond <= self.limit {
            self.beyond_since = None;
        }
        if self.wrong.is_some() {
            self.wrong = (beyond >= TRUSTED_BELOW).then_some(difference);
        } else if beyond > self.limit {
            let since = *self.beyond_since.get_or_insert(boot);
            self.wrong = (boot.saturating_since(since) >= PERSISTS).then_some(difference);
        }
        self.wrong
    }

    /// The time of day for decisions: the wall clock's, but not later than the API server's by more than two seconds.
    pub fn now(&self, clock: &dyn Clock) -> Timestamp {
        let wall = clock.wall();
        let Some(seen) = self.seen.filter(|_| !self.limit.is_zero()) else { return wall };
        let passed = signed(clock.boot().saturating_since(seen.sent));
        let latest = seen.server.checked_add(passed).and_then(|server| server.checked_add(AHEAD_MAX));
        latest.map_or(wall, |latest| wall.min(latest))
    }

    /// The latest time that it may be at the API server now, and not before what the wall clock says. None while no answer
    /// has been seen, or with the comparison switched off.
    pub fn latest(&self, clock: &dyn Clock) -> Option<Timestamp> {
        let seen = self.seen.filter(|_| !self.limit.is_zero())?;
        let passed = signed(clock.boot().saturating_since(seen.sent));
        let latest = seen.server.checked_add(passed).and_then(|server| server.checked_add(DATE_STEP)).ok()?;
        Some(latest.max(clock.wall()))
    }

    /// How far the wall clock is outside of the range that the server's time lies in.
    fn difference(&self, boot: BootTime, wall: Timestamp) -> Option<SignedDuration> {
        let seen = self.seen?;
        let earliest = seen.server.checked_add(signed(boot.saturating_since(seen.received))).ok()?;
        let width = signed(seen.received.saturating_since(seen.sent)) + DATE_STEP;
        let latest = earliest.checked_add(width).ok()?;
        Some(if wall < earliest {
            wall.duration_since(earliest)
        } else if wall > latest {
            wall.duration_since(latest)
        } else {
            SignedDuration::ZERO
        })
    }
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::{RATE_ONE, SimulatedClock};

    const LIMIT: Duration = Duration::from_secs(5);

    fn clock() -> Arc<SimulatedClock> {
        SimulatedClock::new(Timestamp::UNIX_EPOCH, RATE_ONE, SignedDuration::ZERO)
    }

    fn answer(clock: &SimulatedClock, server: Timestamp) -> DateSeen {
        DateSeen { server, wall: clock.wall(), sent: clock.boot(), received: clock.boot() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_of_the_wall_clock_counts_as_wrong_after_ten_seconds_and_until_it_is_nearly_right() {
        let clock = clock();
        let mut skew = Skew::new(LIMIT);
        skew.note(answer(&clock, Timestamp::UNIX_EPOCH));
        assert_eq!(skew.look(&*clock), None);
        clock.step_wall(SignedDuration::from_hours(1));
        assert_eq!(skew.look(&*clock), None);
        clock.sleep_until(clock.boot() + PERSISTS).await;
        assert!(skew.look(&*clock).is_some());
        clock.step_wall(SignedDuration::from_secs(4));
        assert!(skew.look(&*clock).is_some(), "it is trusted again only below two seconds");
        clock.step_wall(SignedDuration::from_secs(1));
        assert_eq!(skew.look(&*clock), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_difference_is_not_held_against_the_clock() {
        let clock = clock();
        let mut skew = Skew::new(LIMIT);
        skew.note(answer(&clock, Timestamp::UNIX_EPOCH));
        clock.step_wall(SignedDuration::from_mins(-2));
        assert_eq!(skew.look(&*clock), None);
        clock.sleep_until(clock.boot() + PERSISTS / 2).await;
        clock.step_wall(SignedDuration::ZERO);
        assert_eq!(skew.look(&*clock), None);
        clock.step_wall(SignedDuration::from_mins(-2));
        clock.sleep_until(clock.boot() + PERSISTS / 2).await;
        assert_eq!(skew.look(&*clock), None);
    }

    #[tokio::test(start_paused = true)]
    async fn decisions_never_run_ahead_of_the_servers_time() {
        let clock = clock();
        let mut skew = Skew::new(LIMIT);
        skew.note(answer(&clock, Timestamp::UNIX_EPOCH));
        clock.step_wall(SignedDuration::from_hours(1));
        assert_eq!(skew.now(&*clock), Timestamp::UNIX_EPOCH + AHEAD_MAX);
        assert_eq!(Skew::new(Duration::ZERO).now(&*clock), clock.wall());
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_was_set_back_does_not_make_it_earlier_at_the_server() {
        let clock = clock();
        let mut skew = Skew::new(LIMIT);
        assert_eq!(skew.latest(&*clock), None, "nothing is known");
        skew.note(answer(&clock, Timestamp::UNIX_EPOCH));
        clock.step_wall(SignedDuration::from_hours(-1));
        clock.sleep_until(clock.boot() + Duration::from_secs(3)).await;
        assert_eq!(skew.latest(&*clock), Some(Timestamp::UNIX_EPOCH + SignedDuration::from_secs(4)));
        let mut off = Skew::new(Duration::ZERO);
        off.note(answer(&clock, Timestamp::UNIX_EPOCH));
        assert_eq!(off.latest(&*clock), None);
    }
}
