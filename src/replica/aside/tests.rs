use std::sync::{Arc, Mutex};

use http::Response;
use http_body_util::Full;
use jiff::Timestamp;
use kube::client::Body;
use rstest::rstest;
use tokio::sync::watch;

use super::*;
use crate::{
    clock::{Clock, RATE_ONE, SimulatedClock},
    election::testing,
    periodic::ClockSkew,
};

const LEASE: Duration = Duration::from_secs(15);
const SECOND: Duration = Duration::from_secs(1);

fn at(seconds: u64) -> BootTime {
    BootTime::from_origin(SECOND * u32::try_from(seconds).expect("a short time"))
}

fn listed() -> SchedulerState {
    SchedulerState { synced: true, ..SchedulerState::default() }
}

fn wrong() -> SchedulerState {
    let by = SignedDuration::from_secs(10);
    SchedulerState { clock_skew: Some(ClockSkew { by, overruled: false }), ..listed() }
}

fn seen(holder: &str, version: u64) -> Seen {
    let holder = Some(holder.to_owned()).filter(|holder| !holder.is_empty());
    Seen { released: holder.is_none(), holder, version: Some(version), duration: LEASE }
}

#[rstest]
#[case::all_is_well(Some(listed()), Verdict::Contend)]
#[case::the_jobs_are_not_listed(Some(SchedulerState::default()), Verdict::StandAside)]
#[case::a_newer_term_could_do_more(Some(SchedulerState { wants_new_term: true, ..listed() }), Verdict::StandAside)]
#[case::the_clock_is_wrong(Some(wrong()), Verdict::StandAside)]
#[case::the_scheduler_has_ended(None, Verdict::StandAside)]
fn a_replica_contends_while_nothing_speaks_against_it(
    #[case] state: Option<SchedulerState>,
    #[case] expected: Verdict,
) {
    for leads in [false, true] {
        assert_eq!(Aside::new(LEASE).decide(state.as_ref(), leads), expected);
    }
}

#[test]
fn with_a_wrong_clock_it_contends_when_nobody_was_seen_for_three_leases() {
    // What each look shows, when it is answered, and what follows.
    for looks in [
        // Nobody at all.
        &[("", 1, 0, Verdict::StandAside), ("", 1, 44, Verdict::StandAside), ("", 1, 45, Verdict::ContendAnyway)][..],
        // The record of a holder that is dead.
        &[("dead", 1, 0, Verdict::StandAside), ("dead", 1, 45, Verdict::ContendAnyway)],
        // A holder that lives, and dies.
        &[
            ("alive", 1, 0, Verdict::StandAside),
            ("alive", 2, 40, Verdict::StandAside),
            ("alive", 2, 84, Verdict::StandAside),
            ("alive", 2, 85, Verdict::ContendAnyway),
            // Somebody else was first.
            ("other", 3, 86, Verdict::StandAside),
            ("other", 4, 91, Verdict::StandAside),
        ],
        // A Lease that is given up goes on being contended for.
        &[("", 1, 0, Verdict::StandAside), ("", 1, 45, Verdict::ContendAnyway), ("", 2, 46, Verdict::ContendAnyway)],
    ] {
        let mut aside = Aside::new(LEASE);
        for (holder, version, seconds, expected) in looks {
            aside.saw(seen(holder, *version), at(*seconds));
            assert_eq!(aside.decide(Some(&wrong()), false), *expected, "{looks:?} at {seconds}");
        }
    }
}

#[test]
fn a_longer_lease_than_its_own_is_waited_for_three_times() {
    let mut aside = Aside::new(LEASE);
    for (seconds, expected) in [(0, Verdict::StandAside), (179, Verdict::StandAside), (180, Verdict::ContendAnyway)] {
        aside.saw(Seen { duration: LEASE * 4, ..seen("old", 1) }, at(seconds));
        assert_eq!(aside.decide(Some(&wrong()), false), expected, "{seconds}");
    }
}

#[test]
fn who_leads_anyway_goes_on_until_it_is_replaced_or_its_clock_is_right() {
    let mut aside = Aside::new(LEASE);
    aside.saw(seen("", 1), at(0));
    aside.saw(seen("", 1), at(45));
    assert_eq!(aside.decide(Some(&wrong()), false), Verdict::ContendAnyway);
    assert_eq!(aside.decide(Some(&wrong()), true), Verdict::ContendAnyway);
    // Its term was lost: the first look shows its own record, the next one that another has taken the Lease.
    aside.saw(seen("self", 900), at(3_601));
    assert_eq!(aside.decide(Some(&wrong()), false), Verdict::ContendAnyway);
    aside.saw(seen("other", 901), at(3_606));
    assert_eq!(aside.decide(Some(&wrong()), false), Verdict::StandAside);
    assert_eq!(aside.decide(Some(&listed()), false), Verdict::Contend);
    // What was seen before its clock was right says nothing about later.
    assert_eq!(aside.decide(Some(&wrong()), true), Verdict::StandAside);
}

#[test]
fn a_replica_that_has_not_listed_the_jobs_does_not_contend_anyway() {
    let mut aside = Aside::new(LEASE);
    aside.saw(seen("", 1), at(0));
    aside.saw(seen("", 1), at(60));
    let unlisted = SchedulerState { synced: false, ..wrong() };
    assert_eq!(aside.decide(Some(&unlisted), false), Verdict::StandAside);
}

/// A loop whose words are heard.
struct Stage {
    clock: Arc<SimulatedClock>,
    state: watch::Sender<SchedulerState>,
    scheduler: SchedulerHandle,
    stopping: CancellationToken,
    heard: Arc<Mutex<Vec<Verdict>>>,
    overruled: Arc<Mutex<u32>>,
}

impl Stage {
    fn new() -> Self {
        let clock = SimulatedClock::new(Timestamp::UNIX_EPOCH, RATE_ONE, SignedDuration::ZERO);
        let (scheduler, state) = SchedulerHandle::detached(clock.clone());
        let (heard, overruled) = (Arc::default(), Arc::default());
        Self { clock, state, scheduler, stopping: CancellationToken::new(), heard, overruled }
    }

    /// The loop, with a Lease that nobody holds.
    fn aside(&self) -> impl Future<Output = ()> + Send + 'static {
        let lease = r#"{"kind":"Lease","apiVersion":"coordination.k8s.io/v1","metadata":{"name":"main","uid":"1","resourceVersion":"7"}}"#;
        let service = tower::service_fn(move |_: http::Request<Body>| {
            std::future::ready(Ok::<_, std::convert::Infallible>(Response::new(Full::<bytes::Bytes>::from(lease))))
        });
        let (leadership, _standing, _stop) = testing::leadership();
        let around = Surroundings {
            scheduler: self.scheduler.clone(),
            leadership,
            api: ApiServer::from_service(service, "default", self.clock.clone()),
            lease: LeaseName::new("default", "main"),
            lease_duration: LEASE,
            clock: self.clock.clone(),
            stopping: self.stopping.clone(),
        };
        let (heard, overruled) = (self.heard.clone(), self.overruled.clone());
        stand_aside(
            around,
            move |verdict| heard.lock().expect("not poisoned").push(verdict),
            move |_| *overruled.lock().expect("not poisoned") += 1,
        )
    }

    fn heard(&self) -> Vec<Verdict> {
        self.heard.lock().expect("not poisoned").clone()
    }

    async fn pass(&self, time: Duration) {
        self.clock.sleep_until(self.clock.boot() + time).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_elector_hears_each_change_once_and_first_that_it_is_too_early() {
    use Verdict::{Contend, StandAside};
    let stage = Stage::new();
    let aside = stage.aside();
    assert_eq!(stage.heard(), [StandAside]);
    let story = async {
        stage.pass(SECOND).await;
        assert_eq!(stage.heard(), [StandAside]);
        stage.state.send_replace(listed());
        stage.pass(SECOND).await;
        stage.state.send_modify(|state| state.wants_new_term = true);
        stage.pass(SECOND).await;
        stage.state.send_modify(|state| state.foreign = 1);
        stage.state.send_modify(|state| state.wants_new_term = false);
        stage.pass(SECOND).await;
        stage.stopping.cancel();
    };
    tokio::join!(aside, story);
    assert_eq!(stage.heard(), [StandAside, Contend, StandAside, Contend]);
}

#[tokio::test(start_paused = true)]
async fn a_replica_whose_scheduler_has_ended_by_itself_stands_aside() {
    use Verdict::{Contend, StandAside};
    for (stops, expected) in [(false, &[StandAside, Contend, StandAside][..]), (true, &[StandAside, Contend])] {
        let stage = Stage::new();
        stage.state.send_replace(listed());
        let aside = stage.aside();
        let Stage { clock, state, stopping, heard, .. } = stage;
        let story = async {
            clock.sleep_until(clock.boot() + SECOND).await;
            if stops {
                stopping.cancel();
            }
            drop(state);
        };
        tokio::join!(aside, story);
        assert_eq!(*heard.lock().expect("not poisoned"), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_overruled_is_told_once_and_the_scheduler_plans() {
    use Verdict::{Contend, ContendAnyway, StandAside};
    let stage = Stage::new();
    stage.state.send_replace(wrong());
    let aside = stage.aside();
    let story = async {
        stage.pass(LEASE * 2).await;
        assert!(!stage.scheduler.plans_anyway());
        stage.pass(LEASE + LEASE / 3).await;
        assert!(stage.scheduler.plans_anyway());
        stage.pass(LEASE * 10).await;
        stage.state.send_replace(listed());
        stage.pass(SECOND).await;
        assert!(!stage.scheduler.plans_anyway());
        stage.stopping.cancel();
    };
    tokio::join!(aside, story);
    assert_eq!(stage.heard(), [StandAside, ContendAnyway, Contend]);
    assert_eq!(*stage.overruled.lock().expect("not poisoned"), 1);
}
