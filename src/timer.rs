//! A periodic timer that ticks only while this replica leads.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::{
    clock::{BootTime, SharedClock, SystemClock},
    election::{Leadership, Term, TermEnded, Work},
};

/// Ticks on a fixed grid, only while leading.
///
/// The grid begins when the timer is made and never drifts. A replica that takes office ticks at once, then on its grid,
/// unless [`PeriodicTimer::first_tick`] says otherwise. Ticks that came while the last one was being worked on, or while
/// another replica led, coalesce into one. The timer keeps no durable mark: what must run once per slot over failovers is
/// a job for a `PeriodicJob`.
///
/// ```no_run
/// # use std::time::Duration;
/// # use tenure::{PeriodicTimer, Term};
/// # async fn report(_term: Term) {}
/// # async fn example(leadership: &tenure::Leadership) {
/// let mut timer = PeriodicTimer::every(Duration::from_secs(60), leadership);
/// while let Some(tick) = timer.tick().await {
///     let _ended_early = tick.run(report).await; // dropped the instant the term ends
/// }
/// # }
/// ```
///
/// Work that merely follows a tick is not gated, and this is wrong: `report` goes on beside a successor when the term ends.
/// The first tick that is dropped without its term having been asked for is told in the log.
///
/// ```no_run
/// # async fn report() {}
/// # async fn example(timer: &mut tenure::PeriodicTimer) {
/// while let Some(_tick) = timer.tick().await {
///     report().await; // wrong
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct PeriodicTimer {
    period: Duration,
    first: FirstTick,
    leadership: Leadership,
    clock: SharedClock,
    origin: BootTime,
    next: BootTime,
    last_term: Option<u64>,
    warned: Arc<AtomicBool>,
}

/// When a replica that has taken office ticks for the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum FirstTick {
    /// At once. The point of the grid after that is left out if it is less than half a period away.
    #[default]
    Immediately,
    /// At the next point of the grid.
    OnGrid,
}

/// One tick. A planned hand-over waits until it is dropped: dropping it says that its work is done.
#[must_use = "run its work by `Tick::run`; dropping it says that its work is done"]
pub struct Tick {
    term: Term,
    late: Duration,
    work: Work,
    /// Whether the term was asked for, without which no work can be gated.
    gated: AtomicBool,
    warned: Arc<AtomicBool>,
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
        Self {
            period,
            first: FirstTick::default(),
            leadership: leadership.clone(),
            clock,
            origin,
            next: origin,
            last_term: None,
            warned: Arc::default(),
        }
    }

    /// When a replica that has taken office ticks for the first time: at once, if this is not called.
    #[must_use]
    pub fn first_tick(mut self, first: FirstTick) -> Self {
        self.first = first;
        self
    }

    /// Begins the grid anew: the next tick of this term is one period from now, and a later term goes by the new grid.
    pub fn reset(&mut self) {
        self.origin = self.clock.boot();
        self.next = self.origin + self.period;
        self.last_term = self.leadership.term().map(|term| term.token());
    }

    /// Waits for the next tick; pends while another replica leads or this one stands aside, and returns `None` once the
    /// elector is asked to stop. Drop the last tick first. Cancel-safe: a tick that was not returned is not lost.
    pub async fn tick(&mut self) -> Option<Tick> {
        loop {
            let term = self.leadership.leading().await?;
            if self.last_term.replace(term.token()) != Some(term.token()) {
                self.next = self.first_of_a_term();
            }
            tokio::select! {
                biased;
                () = term.handing_over() => continue,
                () = self.clock.sleep_until(self.next) => {}
            }
            let Ok(work) = term.hold() else { continue };
            let now = self.clock.boot();
            let late = now - self.next;
            self.next = self.after(now);
            return Some(Tick { term, late, work, gated: AtomicBool::new(false), warned: self.warned.clone() });
        }
    }

    fn first_of_a_term(&self) -> BootTime {
        let now = self.clock.boot();
        match self.first {
            FirstTick::Immediately => now,
            FirstTick::OnGrid => self.grid_after(now.saturating_sub(Duration::from_nanos(1))),
        }
    }

    /// When to tick after a tick that was due at `self.next` and came at `now`.
    fn after(&self, now: BootTime) -> BootTime {
        let next = self.grid_after(now);
        let was_on_grid = (self.next - self.origin).as_nanos().is_multiple_of(self.period.as_nanos());
        // A tick at once, when a term began, does the work of a point of the grid that is almost there.
        if !was_on_grid && next - self.next < self.period / 2 { next + self.period } else { next }
    }

    /// The first point of the grid after `now`.
    fn grid_after(&self, now: BootTime) -> BootTime {
        let period = self.period.as_nanos();
        let passed = (now - self.origin).as_nanos() / period + 1;
        self.origin + Duration::from_nanos(u64::try_from(passed * period).unwrap_or(u64::MAX))
    }
}

impl Tick {
    /// Runs the work of this tick, and drops it the moment the term ends. A hand-over that is asked for in the meantime waits
    /// for it.
    ///
    /// # Errors
    /// [`TermEnded`] if the term was over before, or ended while the work was running.
    pub async fn run<W, F>(self, work: W) -> Result<F::Output, TermEnded>
    where
        W: FnOnce(Term) -> F,
        F: Future,
    {
        let term = self.term().clone();
        self.work.run(work(term)).await
    }

    /// The term that this tick belongs to.
    pub fn term(&self) -> &Term {
        self.gated.store(true, Ordering::Relaxed);
        &self.term
    }

    /// The fencing token of that term.
    pub fn token(&self) -> u64 {
        self.term.token()
    }

    /// How much later than due this tick is.
    pub fn late(&self) -> Duration {
        self.late
    }
}

impl Drop for Tick {
    fn drop(&mut self) {
        if !self.gated.load(Ordering::Relaxed) && !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                lease = self.term.lease(),
                "A tick was dropped and nothing was run under its term: work that merely follows a tick goes on beside the \
                 next leader when the term ends; use Tick::run"
            );
        }
    }
}

impl fmt::Debug for Tick {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Tick").field("term", &self.term).field("late", &self.late).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
