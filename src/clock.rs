//! Time, as an argument.
//!
//! Everything in this crate that waits or reads a time does it through a [`Clock`], so that a simulated replica can
//! have a clock of its own: with its own rate, its own offset, and seconds that pass in microseconds. Nothing outside
//! this module reads a clock or calls tokio's timers; `clippy.toml` enforces that.
//!
//! A clock has two faces, and they must not be mixed up:
//!
//! - [`Clock::boot`] is `CLOCK_BOOTTIME`: it never steps and goes on while the machine is suspended. Every decision about
//!   *validity* is made on it. `CLOCK_MONOTONIC`, which [`std::time::Instant`] reads, stands still in suspend: a leader
//!   woken from it would believe in a lease that ended long ago.
//! - [`Clock::wall`] is the time of day. It may step, and is used only for what people wrote as a time of day: schedules,
//!   and times that are shown.

use std::{
    fmt,
    ops::{Add, Sub},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};

/// A clock that can be handed around.
pub type SharedClock = Arc<dyn Clock>;

/// A point on the boot clock of one process: the time since an arbitrary origin, at nanosecond resolution.
///
/// Points of two different machines, or of two simulated replicas, cannot be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BootTime(Duration);

/// Where a replica reads the time and waits for it.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// Now, on a clock that never steps and does not stop in suspend.
    fn boot(&self) -> BootTime;

    /// Now, as the time of day. May step in either direction.
    fn wall(&self) -> Timestamp;

    /// Waits until [`Clock::boot`] has reached `at`; returns at once if it has. Never returns early.
    fn sleep_until(&self, at: BootTime) -> BoxFuture<'static, ()>;
}

/// What [`timeout`] reports when the time ran out first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no answer within {0:?}")]
pub struct Elapsed(pub Duration);

/// The machine's own clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

/// A clock that runs on tokio's (usually paused) time, with its own rate and its own offset of the wall clock.
///
/// Several of them in one runtime are several machines whose clocks disagree. For simulations and tests.
#[derive(Debug)]
pub struct SimulatedClock {
    origin: tokio::time::Instant,
    epoch: Timestamp,
    /// How fast this clock runs, in millionths: 1,000,000 is exact, 1,100,000 runs 10 % fast.
    rate_ppm: u64,
    wall_offset_nanos: AtomicI64,
}

impl BootTime {
    /// The point `since_origin` after the clock's origin.
    #[must_use]
    pub const fn from_origin(since_origin: Duration) -> Self {
        Self(since_origin)
    }

    /// The time since the clock's origin.
    #[must_use]
    pub const fn since_origin(self) -> Duration {
        self.0
    }

    /// The time from `earlier` to this point, zero if `earlier` is later.
    #[must_use]
    pub fn saturating_since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// The point `by` before this one, or the origin if that would be before it.
    #[must_use]
    pub fn saturating_sub(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(by))
    }

    /// Nanoseconds since the origin; enough for 584 years.
    #[must_use]
    pub fn as_nanos(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }

    /// The point `nanos` nanoseconds after the origin.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(Duration::from_nanos(nanos))
    }
}

impl Add<Duration> for BootTime {
    type Output = Self;

    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by))
    }
}

impl Sub<Self> for BootTime {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.saturating_since(earlier)
    }
}

/// Waits for `duration` on `clock`.
pub async fn sleep(clock: &dyn Clock, duration: Duration) {
    clock.sleep_until(clock.boot() + duration).await;
}

/// Waits for `future`, but at most `duration` on `clock`. The future is dropped when the time is up.
///
/// # Errors
/// [`Elapsed`] if the time ran out first.
pub async fn timeout<F: Future>(clock: &dyn Clock, duration: Duration, future: F) -> Result<F::Output, Elapsed> {
    timeout_at(clock, clock.boot() + duration, future).await.map_err(|_| Elapsed(duration))
}

/// Waits for `future`, but only until `at` on `clock`. The future is dropped when the time is up.
///
/// # Errors
/// [`Elapsed`], with what was left when the call was made, if the time ran out first.
pub async fn timeout_at<F: Future>(clock: &dyn Clock, at: BootTime, future: F) -> Result<F::Output, Elapsed> {
    let left = at.saturating_since(clock.boot());
    tokio::select! {
        biased;
        output = future => Ok(output),
        () = clock.sleep_until(at) => Err(Elapsed(left)),
    }
}

impl SystemClock {
    /// The system clock, ready to be handed around.
    #[must_use]
    pub fn shared() -> SharedClock {
        Arc::new(Self)
    }
}

/// tokio's timers count `CLOCK_MONOTONIC`, which stands still in suspend: a long sleep is cut into slices of this length,
/// and the boot clock is read again after each.
const SLEEP_SLICE: Duration = Duration::from_secs(1);

#[allow(clippy::disallowed_methods, reason = "this is the one place where clocks are read and timers are made")]
impl Clock for SystemClock {
    fn boot(&self) -> BootTime {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let nanos = u32::try_from(now.tv_nsec).unwrap_or(0);
        BootTime(Duration::new(seconds, nanos))
    }

    fn wall(&self) -> Timestamp {
        Timestamp::now()
    }

    fn sleep_until(&self, at: BootTime) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            loop {
                let left = at.saturating_since(Self.boot());
                if left.is_zero() {
                    return;
                }
                tokio::time::sleep(left.min(SLEEP_SLICE)).await;
            }
        })
    }
}

#[allow(clippy::disallowed_methods, reason = "a simulated clock is made of tokio's paused time")]
impl SimulatedClock {
    /// A clock that starts now, shows `epoch` as the time of day plus `wall_offset`, and runs at `rate_ppm` millionths.
    #[must_use]
    pub fn new(epoch: Timestamp, rate_ppm: u64, wall_offset: SignedDuration) -> Arc<Self> {
        let nanos = i64::try_from(wall_offset.as_nanos()).unwrap_or(0);
        Arc::new(Self {
            origin: tokio::time::Instant::now(),
            epoch,
            rate_ppm: rate_ppm.max(1),
            wall_offset_nanos: AtomicI64::new(nanos),
        })
    }

    /// Steps the wall clock of this replica to be `offset` ahead of the true time.
    pub fn step_wall(&self, offset: SignedDuration) {
        self.wall_offset_nanos.store(i64::try_from(offset.as_nanos()).unwrap_or(0), Ordering::SeqCst);
    }

    fn elapsed(&self) -> Duration {
        scale(self.origin.elapsed(), self.rate_ppm, RATE_ONE)
    }
}

/// The rate of an exact clock, in millionths.
pub const RATE_ONE: u64 = 1_000_000;

fn scale(duration: Duration, times: u64, over: u64) -> Duration {
    let nanos = duration.as_nanos() * u128::from(times) / u128::from(over);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[allow(clippy::disallowed_methods, reason = "a simulated clock is made of tokio's paused time")]
impl Clock for SimulatedClock {
    fn boot(&self) -> BootTime {
        BootTime(self.elapsed())
    }

    fn wall(&self) -> Timestamp {
        let offset = SignedDuration::from_nanos(self.wall_offset_nanos.load(Ordering::SeqCst));
        let elapsed = SignedDuration::try_from(self.elapsed()).unwrap_or(SignedDuration::MAX);
        self.epoch.checked_add(elapsed).and_then(|at| at.checked_add(offset)).unwrap_or(Timestamp::MAX)
    }

    fn sleep_until(&self, at: BootTime) -> BoxFuture<'static, ()> {
        let (origin, rate_ppm) = (self.origin, self.rate_ppm);
        Box::pin(async move {
            // Dividing rounds down, and tokio's timers have a resolution of one millisecond: go on until it is true.
            loop {
                let left = at.0.saturating_sub(scale(origin.elapsed(), rate_ppm, RATE_ONE));
                if left.is_zero() {
                    return;
                }
                tokio::time::sleep(scale(left, RATE_ONE, rate_ppm).max(Duration::from_nanos(1))).await;
            }
        })
    }
}

/// A sleep that can be kept and re-armed in a `select!` loop.
pub type Sleep = Pin<Box<dyn Future<Output = ()> + Send>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_fast_clock_wakes_early_by_true_time_and_never_early_by_its_own() {
        let exact = SimulatedClock::new(Timestamp::UNIX_EPOCH, RATE_ONE, SignedDuration::ZERO);
        let fast = SimulatedClock::new(Timestamp::UNIX_EPOCH, 1_100_000, SignedDuration::ZERO);
        fast.sleep_until(BootTime::from_origin(Duration::from_secs(11))).await;
        assert!(fast.boot().since_origin() >= Duration::from_secs(11));
        let true_time = exact.boot().since_origin();
        assert!(true_time >= Duration::from_secs(10) && true_time < Duration::from_millis(10_010), "{true_time:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_of_the_wall_clock_does_not_touch_the_boot_clock() {
        let clock = SimulatedClock::new(Timestamp::UNIX_EPOCH, RATE_ONE, SignedDuration::ZERO);
        let before = clock.boot();
        clock.step_wall(SignedDuration::from_hours(-1));
        assert_eq!(clock.boot(), before);
        assert_eq!(clock.wall(), Timestamp::UNIX_EPOCH - SignedDuration::from_hours(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_future_that_is_ready_in_time_is_not_timed_out() {
        let clock = SimulatedClock::new(Timestamp::UNIX_EPOCH, RATE_ONE, SignedDuration::ZERO);
        assert_eq!(timeout(&*clock, Duration::from_secs(1), async { 7 }).await, Ok(7));
        let late = timeout(&*clock, Duration::from_secs(1), std::future::pending::<()>()).await;
        assert_eq!(late, Err(Elapsed(Duration::from_secs(1))));
    }

    #[test]
    fn the_system_clock_goes_forward() {
        let first = SystemClock.boot();
        assert!(SystemClock.boot() >= first);
        assert!(first.since_origin() > Duration::ZERO);
    }
}
