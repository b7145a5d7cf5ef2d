//! When a timer ticks, and what becomes of the work of a tick.

use std::sync::Arc;

use futures::FutureExt;
use jiff::{SignedDuration, Timestamp};

use super::*;
use crate::{
    clock::{Clock, RATE_ONE, SimulatedClock, timeout_at},
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
    assert_eq!(late.late(), PERIOD * 5 / 2);
    drop(late);
    assert!(timer.tick().now_or_never().is_none());
    assert_eq!(timer.tick().await.expect("leading").late(), Duration::ZERO);
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
    assert_eq!(timer.tick().await.expect("leading anew").token(), 2);
}

/// The points at which a timer ticks that is made at zero, in a term that begins at `office`, until `until`.
async fn ticks(first: FirstTick, office: Duration, until: Duration) -> Vec<Duration> {
    let clock = clock();
    let shared: SharedClock = clock.clone();
    let (leadership, standing, _stop) = testing::leadership();
    let mut timer = PeriodicTimer::with_clock(PERIOD, &leadership, shared.clone()).first_tick(first);
    let origin = clock.boot();
    clock.sleep_until(origin + office).await;
    standing.send_replace(Standing::Leading(testing::term(&shared, 1, LONG)));
    let mut seen = Vec::new();
    while let Ok(Some(tick)) = timeout_at(&*shared, origin + until, timer.tick()).await {
        seen.push(clock.boot() - origin);
        tick.run(|_| async {}).await.expect("the term lasts");
    }
    seen
}

#[tokio::test(start_paused = true)]
async fn a_point_of_the_grid_just_after_a_tick_at_once_is_left_out() {
    for (office, next) in [(9, 20), (6, 20), (5, 10), (1, 10)] {
        let office = Duration::from_secs(office);
        let seen = ticks(FirstTick::Immediately, office, PERIOD * 5 / 2).await;
        assert_eq!(seen[..2], [office, Duration::from_secs(next)], "{seen:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_timer_whose_first_tick_is_on_the_grid_does_not_tick_before() {
    let seen = ticks(FirstTick::OnGrid, Duration::from_secs(9), PERIOD * 5 / 2).await;
    assert_eq!(seen, [PERIOD, PERIOD * 2]);
}

#[tokio::test(start_paused = true)]
async fn a_timer_that_is_reset_ticks_one_period_later() {
    let clock = clock();
    let shared: SharedClock = clock.clone();
    let (leadership, standing, _stop) = testing::leadership();
    standing.send_replace(Standing::Leading(testing::term(&shared, 1, LONG)));
    let mut timer = PeriodicTimer::with_clock(PERIOD, &leadership, shared);
    drop(timer.tick().await.expect("leading"));
    clock.sleep_until(clock.boot() + PERIOD / 3).await;
    timer.reset();
    let reset = clock.boot();
    for tick in 1..3 {
        drop(timer.tick().await.expect("leading"));
        assert_eq!(clock.boot() - reset, PERIOD * tick);
    }
}

#[tokio::test(start_paused = true)]
async fn the_work_of_a_tick_is_dropped_when_its_term_ends() {
    let clock = clock();
    let shared: SharedClock = clock.clone();
    let (leadership, standing, _stop) = testing::leadership();
    let term = testing::term(&shared, 1, LONG);
    standing.send_replace(Standing::Leading(term.clone()));
    let mut timer = PeriodicTimer::with_clock(PERIOD, &leadership, shared);
    let working = timer.tick().await.expect("leading").run(|_| std::future::pending::<()>());
    tokio::pin!(working);
    assert!(working.as_mut().now_or_never().is_none());
    testing::revoke(&term);
    assert_eq!(working.now_or_never(), Some(Err(TermEnded)), "dropped at once");
}

#[tokio::test(start_paused = true)]
async fn a_tick_that_gates_nothing_is_told_once_in_the_log() {
    let clock = clock();
    let shared: SharedClock = clock.clone();
    let (leadership, standing, _stop) = testing::leadership();
    standing.send_replace(Standing::Leading(testing::term(&shared, 1, LONG)));
    let mut timer = PeriodicTimer::with_clock(PERIOD, &leadership, shared);
    let log = crate::heard::Log::start();
    timer.tick().await.expect("leading").run(|_| async {}).await.expect("the term lasts");
    assert_eq!(log.text(), "");
    for _ in 0..3 {
        let _naive = timer.tick().await.expect("leading");
    }
    assert_eq!(log.text().matches("use Tick::run").count(), 1, "{}", log.text());
}
