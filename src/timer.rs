//! A periodic timer that ticks only while this replica leads.

use std::time::Duration;

use crate::{
    clock::{BootTime, SharedClock, SystemClock},
    election::{Leadership, Term, Work},
};

/// Ticks on a fixed grid, only while leading.
///
/// The grid begins when the timer is made and never drifts. A replica that takes office ticks at once, then on its grid;
/// ticks that came while the last one was being worked on, or while another replica led, coalesce into one. The timer
/// keeps no durable mark: what must run once per slot over failovers is a job for a `PeriodicJob`.
#[derive(Debug)]
pub struct PeriodicTimer {
    period: Duration,
    leadership: Leadership,
    clock: SharedClock,
    origin: BootTime,
    next: BootTime,
    last_term: Option<u64>,
}

/// One tick. A planned hand-over waits until it is dropped: dropping it says that its work is done.
#[derive(Debug)]
#[must_use = "dropping it says that its work is done"]
pub struct Tick {
    /// The term that this tick belongs to. Run the tick's work by [`Term::run`], which drops it the moment the term ends.
    pub term: Term,
    /// How much later than due this tick is.
    pub late: Duration,
    _work: Work,
}

impl PeriodicTimer {
    /// A timer that ticks each `period`, at least one millisecond, while `leadership` says that this replica leads.
    #[must_use]
    pub fn every(period: Duration, leadership: &Leadership) -> Self {
        Self::with_clock(period, leadership, SystemClock::shared())
    }

    /// The same on another clock, for tests.
    #[must_use]
    pub fn with_clock(period: Duration, leadership: &Leadership, clock: SharedClock) -> Self {
        let origin = clock.boot();
        let period = period.max(Duration::from_millis(1));
        Self { period, leadership: leadership.clone(), clock, origin, next: origin, last_term: None }
    }

    /// Waits for the next tick; pends while another replica leads, and returns `None` once the elector is asked to stop.
    /// Drop the last tick first. Cancel-safe: a tick that was not returned is not lost.
    pub async fn tick(&mut self) -> Option<Tick> {
        loop {
            let term = self.leadership.leading().await?;
            if self.last_term.replace(term.token()) != Some(term.token()) {
                self.next = self.clock.boot();
            }
            tokio::select! {
                biased;
                () = self.leadership.stopping() => return None,
                () = term.ended() => continue,
                () = self.clock.sleep_until(self.next) => {}
            }
            let Ok(work) = term.hold() else { continue };
            let now = self.clock.boot();
            let late = now - self.next;
            self.next = self.grid_after(now);
            return Some(Tick { term, late, _work: work });
        }
    }

    /// The first point of the grid after `now`.
    fn grid_after(&self, now: BootTime) -> BootTime {
        let period = self.period.as_nanos();
        let passed = (now - self.origin).as_nanos() / period + 1;
        self.origin + Duration::from_nanos(u64::try_from(passed * period).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::FutureExt;
    use jiff::{SignedDuration, Timestamp};

    use super::*;
    use crate::{
        clock::{Clock, RATE_ONE, SimulatedClock},
        election::{Standing, testing},
    };

    const PERIOD: Duration = Duration::from_secs(10);
    const LONG: Duration = Duration::from_hours(1);

    fn clock() -> Arc<SimulatedClock> {
        SimulatedClock::new(Timestamp::UNIX_EPOCH, RATE_ONE, SignedDuration::ZERO)
    }

    #[tokio::test(start_paused = true)]
    async fn it_ticks_at_once_on_taking_office_and_then_on_its_grid_without_drift() {
        let clock = clock();
        let shared: SharedClock = clock.clone();
        let (leadership, standing, _stop) = testing::leadership();
        let mut timer = PeriodicTimer::with_clock(PERIOD, &leadership, shared.clone());
        let origin = clock.boot();
        clock.sleep_until(origin + PERIOD * 5 / 2).await;
        assert!(timer.tick().now_or_never().is_none(), "a standby does not tick");
        standing.send_replace(Standing::Leading(testing::term(&shared, 1, LONG)));
        drop(timer.tick().await.expect("leading"));
        assert_eq!(clock.boot() - origin, PERIOD * 5 / 2);
        for tick in 3u32..6 {
            let work = timer.tick().await.expect("leading");
            assert_eq!(clock.boot() - origin, PERIOD * tick);
            clock.sleep_until(clock.boot() + PERIOD / 3).await;
            drop(work);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn ticks_that_were_missed_coalesce_into_one() {
        let clock = clock();
        let shared: SharedClock = clock.clone();
        let (leadership, standing, _stop) = testing::leadership();
        standing.send_replace(Standing::Leading(testing::term(&shared, 1, LONG)));
        let mut timer = PeriodicTimer::with_clock(PERIOD, &leadership, shared);
        drop(timer.tick().await.expect("leading"));
        clock.sleep_until(clock.boot() + PERIOD * 7 / 2).await;
        let late = timer.tick().await.expect("leading");
        assert_eq!(late.late, PERIOD * 5 / 2);
        drop(late);
        assert!(timer.tick().now_or_never().is_none());
        assert_eq!(timer.tick().await.expect("leading").late, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_when_the_elector_is_asked_to_stop() {
        let clock = clock();
        let shared: SharedClock = clock.clone();
        let (leadership, standing, stop) = testing::leadership();
        standing.send_replace(Standing::Leading(testing::term(&shared, 1, LONG)));
        let mut timer = PeriodicTimer::with_clock(PERIOD, &leadership, shared);
        drop(timer.tick().await.expect("leading"));
        stop.cancel();
        assert!(timer.tick().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn it_does_not_tick_in_a_term_that_has_ended() {
        let clock = clock();
        let shared: SharedClock = clock.clone();
        let (leadership, standing, _stop) = testing::leadership();
        let term = testing::term(&shared, 1, LONG);
        standing.send_replace(Standing::Leading(term.clone()));
        let mut timer = PeriodicTimer::with_clock(PERIOD, &leadership, shared.clone());
        drop(timer.tick().await.expect("leading"));
        testing::revoke(&term);
        assert!(timer.tick().now_or_never().is_none());
        standing.send_replace(Standing::Leading(testing::term(&shared, 2, LONG)));
        assert_eq!(timer.tick().await.expect("leading anew").term.token(), 2);
    }
}
