//! The verdicts of the guard, of the gate and of the watchdog.

use futures::FutureExt;
use jiff::{SignedDuration, Timestamp};

use super::*;
use crate::clock::{Clock, RATE_ONE, SimulatedClock};

const VALID: Duration = Duration::from_secs(10);
const LEASE: Duration = Duration::from_secs(11);

fn office(clock: &Arc<SimulatedClock>) -> Arc<Office> {
    let shared: SharedClock = clock.clone();
    let now = shared.boot();
    Office::open("ns/lease".into(), 7, "n".into(), shared, Admission::open(), (now + VALID, now + LEASE))
}

fn clock() -> Arc<SimulatedClock> {
    SimulatedClock::new(Timestamp::UNIX_EPOCH, RATE_ONE, SignedDuration::ZERO)
}

#[tokio::test(start_paused = true)]
async fn the_guard_says_no_at_the_end_of_validity_though_nobody_has_looked() {
    let clock = clock();
    let term = Term::new(office(&clock));
    assert_eq!(term.check(), Ok(()));
    clock.sleep_until(clock.boot() + VALID).await;
    assert_eq!(term.check(), Err(TermEnded));
    assert_eq!(term.run(async {}).await, Err(TermEnded));
}

#[tokio::test(start_paused = true)]
async fn a_term_that_has_ended_cannot_be_extended() {
    let clock = clock();
    let office = office(&clock);
    office.revoke();
    office.extend(clock.boot() + VALID * 2, clock.boot() + LEASE * 2);
    assert_eq!(office.check(), Err(TermEnded));
}

#[tokio::test(start_paused = true)]
async fn an_older_confirmation_does_not_shorten_a_term() {
    let clock = clock();
    let office = office(&clock);
    let until = office.valid_until();
    office.extend(clock.boot() + Duration::from_secs(1), clock.boot() + Duration::from_secs(2));
    assert_eq!(office.valid_until(), until);
}

#[tokio::test(start_paused = true)]
async fn work_is_dropped_when_the_watchdog_sees_the_end() {
    let clock = clock();
    let office = office(&clock);
    let term = Term::new(office.clone());
    let running = term.run(std::future::pending::<()>());
    tokio::pin!(running);
    assert!(running.as_mut().now_or_never().is_none());
    clock.sleep_until(clock.boot() + VALID).await;
    assert!(matches!(office.look(clock.boot()), Verdict::Revoked(_)));
    assert_eq!(running.as_mut().now_or_never(), Some(Err(TermEnded)), "dropped at once");
    assert!(office.gated_work_has_ended());
}

#[tokio::test(start_paused = true)]
async fn work_that_does_not_end_by_the_end_of_the_lease_aborts_the_process() {
    let clock = clock();
    let office = office(&clock);
    let _stuck = office.enter(WorkKind::Gated).expect("the term is valid");
    let start = clock.boot();
    assert!(matches!(office.look(start + VALID), Verdict::Revoked(_)));
    assert!(matches!(office.look((start + LEASE).saturating_sub(Duration::from_millis(1))), Verdict::Revoked(_)));
    assert_eq!(office.look(start + LEASE), Verdict::Abort);
}

#[tokio::test(start_paused = true)]
async fn a_thawed_process_gets_its_grace_from_the_first_look() {
    let clock = clock();
    let office = office(&clock);
    let _stuck = office.enter(WorkKind::Gated).expect("the term is valid");
    let thaw = clock.boot() + LEASE * 5;
    assert!(matches!(office.look(thaw), Verdict::Revoked(_)));
    assert!(matches!(office.look(thaw + ABORT_GRACE / 2), Verdict::Revoked(_)));
    assert_eq!(office.look(thaw + ABORT_GRACE), Verdict::Abort);
}

#[tokio::test(start_paused = true)]
async fn the_watchdog_does_not_spin_on_a_term_that_has_ended() {
    let clock = clock();
    let office = office(&clock);
    let late = clock.boot() + LEASE * 2;
    for now in [late, late + ABORT_GRACE, late + LEASE] {
        let Verdict::Revoked(again) = office.look(now) else { panic!("it has ended, and no work is left") };
        assert!(again > now, "{again:?} is not after {now:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_held_tick_never_aborts_the_process() {
    let clock = clock();
    let office = office(&clock);
    let _tick = Term::new(office.clone()).hold().expect("the term is valid");
    assert!(matches!(office.look(clock.boot() + LEASE * 2), Verdict::Revoked(_)));
    assert!(matches!(office.look(clock.boot() + LEASE * 3), Verdict::Revoked(_)));
}

/// In the environment of a child in a time namespace: until when its term is valid, in nanoseconds of the boot clock.
const VALID_UNTIL: &str = "TENURE_TEST_VALID_UNTIL";

/// Set where no time namespace can be had: the test then says that it shows nothing.
const NO_TIME_NAMESPACE: &str = "TENURE_TEST_NO_TIME_NAMESPACE";

/// What a machine spends suspended moves the boot clock and not the monotonic one. A time namespace does the same to its
/// processes, at once. This test is its own child, which looks at a term as a process would that was suspended in office.
#[test]
fn time_that_passes_on_the_boot_clock_alone_ends_a_term() {
    const SUSPENDED: Duration = Duration::from_hours(24);
    let valid = |until: BootTime| {
        let clock = crate::clock::SystemClock::shared();
        Term::new(Office::open("ns/lease".into(), 7, "n".into(), clock, Admission::open(), (until, until)))
            .guard()
            .check()
            .is_ok()
    };
    if let Ok(until) = std::env::var(VALID_UNTIL) {
        let until = BootTime::from_nanos(until.parse().expect("nanoseconds"));
        println!("the guard says {}", if valid(until) { "yes" } else { "no" });
        return;
    }
    if std::env::var_os(NO_TIME_NAMESPACE).is_some() {
        println!("{NO_TIME_NAMESPACE} is set: NOT SHOWN is that a guard follows CLOCK_BOOTTIME");
        return;
    }
    let until = crate::clock::SystemClock.boot() + SUSPENDED / 2;
    assert!(valid(until));
    let child = std::process::Command::new("unshare")
        .args(["--time", "--fork", "--boottime", &SUSPENDED.as_secs().to_string(), "--monotonic", "0"])
        .arg(std::env::current_exe().expect("this program"))
        .args([
            "--exact",
            "--nocapture",
            "election::guard::tests::time_that_passes_on_the_boot_clock_alone_ends_a_term",
        ])
        .env(VALID_UNTIL, until.as_nanos().to_string())
        .output();
    let needed = format!(
        "this test needs a Linux time namespace: run it as root (CAP_SYS_ADMIN) with unshare of util-linux 2.36 or later, \
         or set {NO_TIME_NAMESPACE}=1 to go without what it shows"
    );
    let child = child.unwrap_or_else(|error| panic!("{needed}: {error}"));
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{needed}: {}{said}", String::from_utf8_lossy(&child.stderr));
    assert!(said.contains("the guard says no"), "{said}");
}

#[tokio::test(start_paused = true)]
async fn begun_work_that_outlives_its_term_aborts_the_process() {
    let clock = clock();
    let office = office(&clock);
    let work = Term::new(office.clone()).begin().expect("the term is valid");
    let end = clock.boot() + LEASE;
    assert!(matches!(office.look(clock.boot() + VALID), Verdict::Revoked(_)));
    assert_eq!(work.check(), Err(TermEnded));
    assert_eq!(office.look(end), Verdict::Abort);
    drop(work);
    assert!(matches!(office.look(end + LEASE), Verdict::Revoked(_)));
}

#[tokio::test]
async fn a_blocking_closure_that_outlives_its_term_aborts_the_process() {
    let clock = clock();
    let office = office(&clock);
    let (begun, has_begun) = std::sync::mpsc::channel();
    let (let_end, may_end) = std::sync::mpsc::channel::<()>();
    let blocking = Term::new(office.clone()).spawn_blocking(move |work| {
        begun.send(()).expect("the test listens");
        may_end.recv().expect("the test lets it end");
        work.check()
    });
    has_begun.recv().expect("a thread is free");
    let end = clock.boot() + LEASE;
    // As the end of a term does, which does not end the closure.
    drop(blocking);
    assert!(matches!(office.look(end), Verdict::Revoked(_)));
    assert_eq!(office.look(end + LEASE), Verdict::Abort);
    let_end.send(()).expect("it waits");
    office.wait_until(Office::gated_work_has_ended).await;
}

#[tokio::test]
async fn a_blocking_closure_hands_on_its_output_its_panic_and_its_terms_end() {
    let clock = clock();
    let term = Term::new(office(&clock));
    assert_eq!(term.spawn_blocking(|work| work.check().map(|()| 7)).await, Ok(Ok(7)));
    let panicking = term.spawn_blocking(|_| assert!(std::env::args().count() == 0, "out of luck"));
    assert!(std::panic::AssertUnwindSafe(panicking).catch_unwind().await.is_err());
    term.office().revoke();
    assert_eq!(term.spawn_blocking(|_| ()).await, Err(TermEnded));
}
