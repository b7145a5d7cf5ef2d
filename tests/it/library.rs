//! The library as its users write against it: what the obvious code does in a hand-over, beside a fragile observer, on a
//! runtime that is blocked.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use k8s_openapi::{api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::OwnerReference};

use rstest::rstest;
use sandbox::{Fault, FaultRule, Sandbox, ServeOptions, Verb, new_token};
use tenure::{
    Elector, PeriodicTimer, Released, Standing, Term, TermEnded,
    apiserver::ApiServer,
    clock::{self, Clock},
    election::{ConfigError, ElectorObserver, Leader, StopSignal, TryFailure, Unhealthy},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::support::lab::{Drift, LEASE, Lab, Replica};

const SECOND: Duration = Duration::from_secs(1);
const LEASE_DURATION: Duration = Duration::from_secs(15);
const DRAIN: Duration = Duration::from_secs(27);

/// A hand-over that waits for nothing.
const PROMPT: Duration = Duration::from_millis(100);

async fn leader_and_standby(lab: &Lab) -> (Replica, Replica) {
    let leader = lab.first_replica("replica-0");
    lab.wait_for("the first leader", SECOND, || leader.leads()).await;
    (leader, lab.replica("replica-1"))
}

fn observed(lab: &Lab, name: &str, observer: Arc<dyn ElectorObserver>) -> Replica {
    lab.replica_with(name, Drift::NONE, |builder| builder.fresh_installation(|_| async { true }).observer(observer))
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_stands_aside_hands_over_at_the_end_of_its_drain() {
    let lab = Lab::new(1);
    let (leader, standby) = leader_and_standby(&lab).await;
    let _never_ends = leader.term().expect("leading").hold().expect("the term is valid");
    leader.elector.stand_aside(SECOND * 5);
    lab.sleep(SECOND * 4).await;
    assert!(leader.leads(), "work in hand may end");
    lab.wait_for("the successor", SECOND + PROMPT, || standby.leads()).await;
    assert!(!leader.leads());
    leader.elector.contend();
    standby.kill();
    lab.wait_for("the first one to lead again", LEASE_DURATION + SECOND, || leader.leads()).await;
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_stands_aside_takes_no_new_work_and_ends_what_it_has() {
    let lab = Lab::new(1);
    let (leader, _standby) = leader_and_standby(&lab).await;
    let leadership = leader.leadership();
    let mut timer = PeriodicTimer::with_clock(SECOND, &leadership, leader.clock.clone());
    let tick = timer.tick().await.expect("leading");
    let term = tick.term().clone();
    leader.elector.stand_aside(DRAIN);
    assert!(leadership.is_handing_over() && term.is_handing_over());
    assert!(term.hold().is_err() && term.begin().is_err());
    assert_eq!(term.run(async {}).await, Err(TermEnded));
    assert_eq!(term.spawn_blocking(|_| ()).await, Err(TermEnded));
    let waits = clock::timeout(&*lab.clock, SECOND * 5, leadership.leading()).await;
    assert!(waits.is_err(), "{waits:?}");
    assert!(clock::timeout(&*lab.clock, SECOND * 5, timer.tick()).await.is_err());
    assert_eq!(tick.run(|_| async { 7 }).await, Ok(7), "this tick was taken before");

    lab.sleep(PROMPT).await;
    assert!(!leader.leads(), "no work is left");
}

#[tokio::test(start_paused = true)]
async fn a_hand_over_that_is_called_off_begins_the_work_anew_in_the_same_term() {
    let lab = Lab::new(1);
    let (leader, _standby) = leader_and_standby(&lab).await;
    let _held = leader.term().expect("leading").hold().expect("the term is valid");
    let begun = Mutex::new(Vec::new());
    let leadership = leader.leadership();
    let work = leadership.while_leading(|term| {
        begun.lock().unwrap().push(term.token());
        std::future::pending()
    });
    let story = async {
        lab.sleep(SECOND).await;
        leader.elector.stand_aside(DRAIN);
        lab.sleep(SECOND).await;
        leader.elector.contend();
        lab.sleep(SECOND).await;
    };
    tokio::select! { biased; () = work => panic!("nobody has asked it to stop"), () = story => {} }
    let begun = begun.lock().unwrap();
    assert!(begun.len() == 2 && begun[0] == begun[1], "{begun:?}");
}

#[tokio::test(start_paused = true)]
async fn work_that_knows_of_no_signal_does_not_hold_up_a_release() {
    let lab = Lab::new(1);
    let (leader, standby) = leader_and_standby(&lab).await;
    let leadership = leader.leadership();
    let asked = lab.now() + SECOND;
    let work = leadership.while_leading(|_term| std::future::pending());
    let ((), released) = tokio::join!(work, leader.elector.release_on(lab.clock.sleep_until(asked)));
    assert_eq!(released, Released::Free);
    assert!(lab.now() - asked <= PROMPT, "{:?}", lab.now() - asked);
    lab.wait_for("the successor", PROMPT, || standby.leads()).await;
}

#[tokio::test(start_paused = true)]
async fn graceful_work_is_asked_to_end_and_waited_for() {
    let lab = Lab::new(1);
    let (leader, _standby) = leader_and_standby(&lab).await;
    let leadership = leader.leadership();
    let asked = lab.now() + SECOND;
    let last_piece = SECOND * 3;
    let (ended, lab_clock) = (Mutex::new(None), lab.clock.clone());
    let work = leadership.while_leading_gracefully(async |term: Term, stop: StopSignal| {
        stop.asked().await;
        clock::sleep(&*lab_clock, last_piece).await;
        *ended.lock().unwrap() = Some(term.check());
    });
    let ((), released) = tokio::join!(work, leader.elector.release_on(lab.clock.sleep_until(asked)));
    assert_eq!((released, *ended.lock().unwrap()), (Released::Free, Some(Ok(()))));
    assert!((last_piece..last_piece + PROMPT).contains(&(lab.now() - asked)), "{:?}", lab.now() - asked);
}

/// Panics whenever it is told anything.
#[derive(Debug)]
struct Fragile;

impl ElectorObserver for Fragile {
    fn term_began(&self, _token: u64) {
        panic!("an observer that fails");
    }

    fn write_confirmed(&self, _took: Duration) {
        panic!("an observer that fails");
    }

    fn term_ended(&self, _lost: tenure::election::Lost) {
        panic!("an observer that fails");
    }

    fn leader_changed(&self, _leader: Option<&Leader>) {
        panic!("an observer that fails");
    }
}

#[tokio::test(start_paused = true)]
async fn an_observer_that_panics_costs_no_term_and_no_release() {
    let lab = Lab::new(1);
    let replica = observed(&lab, "replica-0", Arc::new(Fragile));
    lab.wait_for("a leader", SECOND, || replica.leads()).await;
    let token = replica.term().expect("leading").token();
    lab.sleep(LEASE_DURATION * 4).await;
    assert_eq!(replica.term().expect("still leading").token(), token);
    assert_eq!(replica.elector.release(DRAIN).await, Released::Free);
}

#[tokio::test(start_paused = true)]
async fn a_question_for_a_fresh_installation_that_panics_is_answered_with_no() {
    let lab = Lab::new(1);
    let replica = lab.replica_with("replica-0", Drift::NONE, |builder| {
        builder.fresh_installation(|_| async { panic!("a question that fails") })
    });
    lab.wait_for("a leader", LEASE_DURATION + SECOND, || replica.leads()).await;
}

#[tokio::test(start_paused = true)]
async fn an_elector_whose_task_is_gone_is_stopped_and_its_term_over() {
    let lab = Lab::new(1);
    let (leader, _standby) = leader_and_standby(&lab).await;
    let term = leader.term().expect("leading");
    let health = leader.elector.health();
    assert_eq!(health.check(SECOND), Ok(()));
    leader.kill();
    lab.wait_for("the end", PROMPT, || *leader.leadership().watch().borrow() == Standing::Stopped).await;
    assert_eq!(term.check(), Err(TermEnded));
    assert_eq!(health.check(SECOND), Err(Unhealthy::Ended));
}

#[tokio::test(start_paused = true)]
async fn a_stuck_elector_is_unhealthy_and_one_that_is_cut_off_is_not() {
    let lab = Lab::new(1);
    let (leader, standby) = leader_and_standby(&lab).await;
    lab.sandbox.faults().partition("replica-1");
    leader.freezer.freeze();
    lab.sleep(LEASE_DURATION * 2).await;
    assert!(matches!(leader.elector.health().check(SECOND * 5), Err(Unhealthy::Overdue(_))));
    assert_eq!(standby.elector.health().check(SECOND * 5), Ok(()));
    leader.freezer.thaw();
    lab.sleep(SECOND).await;
    assert_eq!(leader.elector.health().check(SECOND * 5), Ok(()));
    leader.freezer.freeze();
    lab.sleep(LEASE_DURATION).await;
    assert!(matches!(leader.elector.health().check(SECOND * 5), Err(Unhealthy::Stuck(_))));
}

/// Keeps what it is told.
#[derive(Debug, Default)]
struct Listening {
    leaders: Mutex<Vec<Option<Leader>>>,
    failures: Mutex<BTreeMap<&'static str, u32>>,
}

impl ElectorObserver for Listening {
    fn leader_changed(&self, leader: Option<&Leader>) {
        self.leaders.lock().unwrap().push(leader.cloned());
    }

    fn try_failed(&self, why: TryFailure) {
        *self.failures.lock().unwrap().entry(why.reason()).or_default() += 1;
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_of_leader_is_told_once_to_each_replica() {
    let lab = Lab::new(1);
    let listening = Arc::new(Listening::default());
    let leader = observed(&lab, "replica-0", listening.clone());
    lab.wait_for("a leader", SECOND, || leader.leads()).await;
    let standby = lab.replica("replica-1");
    lab.sleep(LEASE_DURATION * 4).await;
    leader.elector.stand_aside(DRAIN);
    lab.sleep(LEASE_DURATION * 4).await;
    assert!(standby.leads());
    let leaders = listening.leaders.lock().unwrap();
    let told: Vec<_> = leaders.iter().flatten().map(|leader| (&leader.identity[..9], leader.is_self)).collect();
    assert_eq!(told, [("replica-0", true), ("replica-1", false)]);
}

#[tokio::test(start_paused = true)]
async fn each_failed_try_is_told_with_its_reason() {
    let lab = Lab::new(1);
    let listening = Arc::new(Listening::default());
    let leader = observed(&lab, "replica-0", listening.clone());
    lab.wait_for("a leader", SECOND, || leader.leads()).await;
    for (code, reason) in [(500, "unserved"), (403, "forbidden"), (422, "refused")] {
        let rule = FaultRule::new(Fault::Refuse { code, retry_after: None }).resource("leases").verb(Verb::Update);
        lab.sandbox.faults().add(rule.times(1));
        lab.sleep(LEASE_DURATION).await;
        assert_eq!(listening.failures.lock().unwrap().remove(reason), Some(1), "{code}");
    }
    lab.sandbox.faults().partition("replica-0");
    lab.sleep(LEASE_DURATION * 2).await;
    assert!(listening.failures.lock().unwrap().contains_key("unanswered"));
}

fn owner() -> OwnerReference {
    OwnerReference {
        api_version: "apps/v1".into(),
        kind: "Deployment".into(),
        name: "report".into(),
        uid: "5e0f".into(),
        ..OwnerReference::default()
    }
}

#[tokio::test(start_paused = true)]
async fn labels_annotations_and_owner_are_on_the_lease_of_a_leader() {
    let lab = Lab::new(1);
    let adjust = |team: &'static str| {
        lab.replica_with(team, Drift::NONE, |builder| {
            builder.labels([("team", team)]).annotations([("example.com/page", "night")]).owner(owner())
        })
    };
    let first = adjust("reports");
    lab.wait_for("a leader", LEASE_DURATION + SECOND, || first.leads()).await;
    let labels = |lease: &Lease| lease.metadata.labels.clone().unwrap_or_default();
    let lease = lab.leases().get(LEASE).await.expect("it is there");
    assert_eq!(labels(&lease)["team"], "reports");
    assert_eq!(lease.metadata.annotations.as_ref().expect("there are some")["example.com/page"], "night");
    assert_eq!(lease.metadata.owner_references, Some(vec![owner()]));

    let second = adjust("billing");
    lab.sleep(SECOND).await;
    first.elector.stand_aside(DRAIN);
    lab.wait_for("the second", SECOND, || second.leads()).await;
    let lease = lab.leases().get(LEASE).await.expect("it is there");
    assert_eq!(labels(&lease)["team"], "billing");
    assert_eq!(lease.metadata.owner_references, Some(vec![owner()]), "named once");
}

/// A server on loopback and on a thread of its own, so that it answers while the test's runtime is blocked.
fn server(end: CancellationToken) -> kube::Config {
    let (found, address) = std::sync::mpsc::channel();
    let token = new_token();
    let served = token.clone();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            found.send(listener.local_addr().unwrap()).unwrap();
            Sandbox::new().serve(ServeOptions { listener, token: served, shutdown: end }).await
        })
    });
    let mut config = kube::Config::new(format!("http://{}", address.recv().unwrap()).parse().unwrap());
    config.auth_info.token = Some(token.into());
    config
}

fn threads_named(name: &str) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok())
        .filter(|comm| comm.trim() == name)
        .count()
}

#[rstest]
#[case::on_a_thread_of_its_own(true)]
#[case::on_the_users_runtime(false)]
#[tokio::test]
async fn a_term_survives_a_blocked_runtime_if_its_elector_has_a_thread(#[case] own_thread: bool) {
    let end = CancellationToken::new();
    let config = server(end.clone());
    let builder = Elector::builder("main").lease_duration(SECOND * 5);
    let builder = builder.fresh_installation(|_| async { true });
    let builder = if own_thread { builder.own_thread() } else { builder };
    let elector = builder.start(config).expect("the settings are sound");
    let term = elector.leadership().leading().await.expect("nobody else wants to lead");
    // What stands for work that computes without a pause, for longer than a term is valid without a renewal.
    thread::sleep(SECOND * 6);
    assert_eq!(term.check().is_ok(), own_thread);
    assert_eq!(elector.release(SECOND).await, Released::Free);
    while own_thread && threads_named("tenure-elector") > 0 {
        tokio::task::yield_now().await;
    }
    end.cancel();
}

#[tokio::test]
async fn what_cannot_work_is_refused_at_the_start() {
    let lab = Lab::new(1);
    let api = || ApiServer::from_service(lab.sandbox.service("replica-0"), "default", lab.clock.clone());
    let foreign = Elector::builder(LEASE).own_thread().start_with(api());
    assert!(matches!(foreign, Err(ConfigError::ForeignConnection)));
    let own = Elector::builder(LEASE).annotations([("tenure.dev/write", "7")]).start_with(api());
    assert!(matches!(own, Err(ConfigError::Metadata(_))));
}
