//! The cases by which other electors come to have two leaders, each played step by step. In all of them a judge asks,
//! every few milliseconds of true time, how many guards say yes.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{DeleteParams, Patch, PatchParams};
use rstest::rstest;
use sandbox::{Fault, FaultRule, Verb};
use serde_json::json;
use tenure::{Released, election::ElectorBuilder};

use crate::support::lab::{Drift, LEASE, Lab, Replica};

const SECOND: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);
/// How often the judge looks.
const LOOK: Duration = Duration::from_millis(5);
const LEASE_DURATION: Duration = Duration::from_secs(15);

/// A leader whose clock is as slow as it may be, and two standbys whose clocks are as fast as they may be, with no margin.
async fn three_with_the_worst_clocks(lab: &Lab) -> Vec<Replica> {
    let tight = |builder: ElectorBuilder| builder.stop_margin(Duration::ZERO);
    let slow = lab.replica_with("replica-0", Drift::rate(900_000), |builder| {
        tight(builder).fresh_installation(|_| async { true })
    });
    lab.wait_for("the first leader", SECOND, || slow.leads()).await;
    let fast = ["replica-1", "replica-2"].map(|name| lab.replica_with(name, Drift::rate(1_100_000), tight));
    lab.sleep(SECOND).await;
    std::iter::once(slow).chain(fast).collect()
}

fn leaders(replicas: &[Replica]) -> usize {
    replicas.iter().filter(|replica| replica.leads()).count()
}

/// Lets time pass until `condition` holds; at no look may two guards say yes.
async fn judge_until(lab: &Lab, replicas: &[Replica], patience: Duration, what: &str, condition: impl Fn() -> bool) {
    let began = lab.now();
    while !condition() {
        assert!(leaders(replicas) <= 1, "two leaders, {:?} after the case began", lab.now() - began);
        assert!(lab.now() - began < patience, "{what}: not within {patience:?}");
        lab.sleep(LOOK).await;
    }
    assert!(leaders(replicas) <= 1, "two leaders, {:?} after the case began", lab.now() - began);
}

async fn judge_for(lab: &Lab, replicas: &[Replica], time: Duration) {
    let until = lab.now() + time;
    judge_until(lab, replicas, time * 2, "the end of the case", || lab.now() >= until).await;
}

fn others_lead(replicas: &[Replica]) -> bool {
    replicas[1..].iter().any(Replica::leads)
}

async fn lease(lab: &Lab) -> Lease {
    lab.leases().get(LEASE).await.expect("the Lease is there")
}

async fn holder(lab: &Lab) -> String {
    lease(lab).await.spec.and_then(|spec| spec.holder_identity).unwrap_or_default()
}

fn renewals_of_the_leader(fault: Fault) -> FaultRule {
    FaultRule::new(fault).client("replica-0").verb(Verb::Update).resource("leases").times(1)
}

#[tokio::test(start_paused = true)]
async fn an_old_answer_that_arrives_after_the_thaw_does_not_bring_the_term_back() {
    let lab = Lab::new(1);
    let replicas = three_with_the_worst_clocks(&lab).await;
    let hold = lab.sandbox.faults().new_hold();
    lab.sandbox.faults().add(renewals_of_the_leader(Fault::Hold(hold.id())));
    hold.wait_reached().await;
    replicas[0].freezer.freeze();
    judge_until(&lab, &replicas, LEASE_DURATION * 2, "a successor", || others_lead(&replicas)).await;
    hold.release();
    lab.sleep(MILLI).await;
    replicas[0].freezer.thaw();
    judge_for(&lab, &replicas, SECOND * 60).await;
    assert!(!replicas[0].leads());
    assert!(!replicas[0].freezer.is_killed(), "it rejoins without leaving the process");
}

#[tokio::test(start_paused = true)]
async fn a_leader_told_to_stop_while_frozen_does_not_release_its_successors_lease() {
    let lab = Lab::new(1);
    let replicas = three_with_the_worst_clocks(&lab).await;
    replicas[0].freezer.freeze();
    judge_until(&lab, &replicas, LEASE_DURATION * 2, "a successor", || others_lead(&replicas)).await;
    let successor = holder(&lab).await;
    let released = replicas[0].terminate(SECOND * 5);
    lab.sleep(MILLI).await;
    replicas[0].freezer.thaw();
    judge_for(&lab, &replicas, SECOND * 10).await;
    assert_eq!(released.await.expect("no panic"), Some(Released::Free));
    assert_eq!(holder(&lab).await, successor);
    judge_for(&lab, &replicas, SECOND * 60).await;
    assert_eq!(holder(&lab).await, successor);
}

/// The leader hears of its own writes by their answers only.
fn without_a_watch_for_the_leader(lab: &Lab) {
    let silent = FaultRule::new(Fault::StaleWatch(SECOND * 3_600)).client("replica-0").verb(Verb::Watch);
    lab.sandbox.faults().add(silent);
}

#[tokio::test(start_paused = true)]
async fn a_read_back_of_the_write_before_confirms_nothing_of_the_one_that_was_lost() {
    let lab = Lab::new(1);
    without_a_watch_for_the_leader(&lab);
    let replicas = three_with_the_worst_clocks(&lab).await;
    let faults = lab.sandbox.faults();
    // The renewal is lost before the server; the read that settles it passes; then nothing gets through.
    faults.add(renewals_of_the_leader(Fault::DropRequest { hang: true }));
    let read_back = faults.new_hold();
    let reads = FaultRule::new(Fault::Hold(read_back.id())).client("replica-0").verb(Verb::Get).resource("leases");
    faults.add(reads.times(1));
    read_back.wait_reached().await;
    read_back.release();
    judge_for(&lab, &replicas, MILLI * 5).await;
    faults.partition("replica-0");
    judge_until(&lab, &replicas, LEASE_DURATION * 2, "a successor", || others_lead(&replicas)).await;
    judge_for(&lab, &replicas, SECOND * 20).await;
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_prolongs_the_term_from_when_it_was_asked_for() {
    let lab = Lab::new(1);
    without_a_watch_for_the_leader(&lab);
    let replicas = three_with_the_worst_clocks(&lab).await;
    let faults = lab.sandbox.faults();
    // The answer comes just within the try's deadline, a third of what remains; then nothing gets through.
    let answered_after = Duration::from_millis(2_300);
    faults.add(renewals_of_the_leader(Fault::DelayAnswer(answered_after)));
    let version = lab.sandbox.resource_version();
    judge_until(&lab, &replicas, SECOND * 10, "the renewal", || lab.sandbox.resource_version() > version).await;
    judge_for(&lab, &replicas, answered_after + MILLI * 10).await;
    faults.partition("replica-0");
    judge_until(&lab, &replicas, LEASE_DURATION * 2, "a successor", || others_lead(&replicas)).await;
    judge_for(&lab, &replicas, SECOND * 20).await;
}

#[derive(Debug, Clone, Copy)]
enum Tampering {
    Delete,
    DeleteTwice,
    Empty,
    Edit,
    ShortenAndEmpty,
}

#[rstest]
#[case::deleted(Tampering::Delete)]
#[case::deleted_twice(Tampering::DeleteTwice)]
#[case::emptied(Tampering::Empty)]
#[case::edited(Tampering::Edit)]
#[case::shortened(Tampering::ShortenAndEmpty)]
#[tokio::test(start_paused = true)]
async fn tampering_with_the_lease_of_a_leader_that_is_cut_off_makes_no_second_one(#[case] tampering: Tampering) {
    let lab = Lab::new(1);
    let replicas = three_with_the_worst_clocks(&lab).await;
    lab.sandbox.faults().partition("replica-0");
    let edit = |spec| Patch::Merge(json!({ "spec": spec }));
    let (leases, params) = (lab.leases(), PatchParams::default());
    match tampering {
        Tampering::Delete => drop(leases.delete(LEASE, &DeleteParams::default()).await.expect("deleted")),
        Tampering::DeleteTwice => {
            drop(leases.delete(LEASE, &DeleteParams::default()).await.expect("deleted"));
            judge_for(&lab, &replicas, SECOND * 2).await;
            drop(leases.delete(LEASE, &DeleteParams::default()).await.expect("somebody put one there to wait on"));
        }
        Tampering::Empty => {
            drop(leases.patch(LEASE, &params, &edit(json!({"holderIdentity": ""}))).await.expect("patched"));
        }
        Tampering::Edit => {
            drop(leases.patch(LEASE, &params, &edit(json!({"holderIdentity": "bob"}))).await.expect("patched"));
        }
        Tampering::ShortenAndEmpty => {
            drop(leases.patch(LEASE, &params, &edit(json!({"leaseDurationSeconds": 1}))).await.expect("patched"));
            judge_for(&lab, &replicas, SECOND).await;
            drop(leases.patch(LEASE, &params, &edit(json!({"holderIdentity": ""}))).await.expect("patched"));
        }
    }
    judge_until(&lab, &replicas, LEASE_DURATION * 2, "a successor", || others_lead(&replicas)).await;
    lab.sandbox.faults().heal("replica-0");
    judge_for(&lab, &replicas, SECOND * 30).await;
    assert_eq!(leaders(&replicas), 1);
}

#[tokio::test(start_paused = true)]
async fn an_acquire_whose_answer_is_lost_is_recognised_and_counts_from_its_own_sending() {
    let lab = Lab::new(1);
    let replicas = three_with_the_worst_clocks(&lab).await;
    for name in ["replica-1", "replica-2"] {
        let lost = FaultRule::new(Fault::DropAnswer { hang: false }).client(name).verb(Verb::Update).resource("leases");
        lab.sandbox.faults().add(lost.times(1));
        lab.sandbox.faults().add(FaultRule::new(Fault::StaleWatch(SECOND * 30)).client(name));
    }
    replicas[0].kill();
    judge_until(&lab, &replicas, LEASE_DURATION + SECOND, "a successor", || others_lead(&replicas)).await;
    judge_for(&lab, &replicas, SECOND * 60).await;
    assert_eq!(leaders(&replicas), 1);
}

#[tokio::test(start_paused = true)]
async fn labels_on_a_dead_leaders_lease_do_not_keep_its_successor_away() {
    let lab = Lab::new(1);
    let replicas = three_with_the_worst_clocks(&lab).await;
    replicas[0].kill();
    let killed = lab.now();
    let mut touched = 0;
    while !others_lead(&replicas) {
        touched += 1;
        let label = Patch::Merge(json!({"metadata": {"labels": {"touched": touched.to_string()}}}));
        lab.leases().patch(LEASE, &PatchParams::default(), &label).await.expect("the Lease is there");
        lab.sleep(Duration::from_millis(700)).await;
        assert!(lab.now() - killed < LEASE_DURATION + SECOND, "kept away for {:?}", lab.now() - killed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_shows_the_past_revokes_nobody() {
    let lab = Lab::new(1);
    let replicas = three_with_the_worst_clocks(&lab).await;
    let token = replicas[0].term().expect("leading").token();
    lab.sandbox.faults().add(FaultRule::new(Fault::StaleWatch(SECOND * 60)).client("replica-0").verb(Verb::Watch));
    judge_for(&lab, &replicas, SECOND * 400).await;
    assert_eq!(replicas[0].term().expect("still leading").token(), token);
}

#[tokio::test(start_paused = true)]
async fn storms_of_refusals_end_no_elector() {
    let lab = Lab::new(1);
    let replicas = three_with_the_worst_clocks(&lab).await;
    for code in [409, 429, 500, 503, 504, 403] {
        let storm = FaultRule::new(Fault::Refuse { code, retry_after: Some(1) }).resource("leases");
        let storm = lab.sandbox.faults().add(storm);
        judge_for(&lab, &replicas, SECOND * 40).await;
        assert_eq!(leaders(&replicas), 0, "nobody can renew through a storm of {code}");
        assert!(lab.sandbox.faults().remove(storm));
        judge_until(&lab, &replicas, LEASE_DURATION + SECOND, "a leader", || leaders(&replicas) == 1).await;
    }
}

/// Blocks every worker of the runtime past the end of the term, in a process of its own: only the watchdog's thread is
/// left, and it must end the process before a successor can be in office.
#[test]
fn a_process_whose_every_worker_is_blocked_is_aborted_by_the_end_of_its_lease() {
    const CHILD: &str = "TENURE_TEST_BLOCK_EVERY_WORKER";
    if std::env::var_os(CHILD).is_some() {
        block_every_worker();
    }
    let name = "choreographed::a_process_whose_every_worker_is_blocked_is_aborted_by_the_end_of_its_lease";
    let began = std::time::Instant::now();
    let output = std::process::Command::new(std::env::current_exe().expect("a test has a path"))
        .args([name, "--exact", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .expect("this very binary can be started");
    let status = std::os::unix::process::ExitStatusExt::signal(&output.status);
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(status, Some(6), "ended by SIGABRT; it said: {said}");
    assert!(said.contains("every worker is blocked"), "{said}");
    assert!(began.elapsed() < BLOCK, "it ended of its own accord after {:?}", began.elapsed());
}

const BLOCK: Duration = Duration::from_secs(20);

fn block_every_worker() -> ! {
    // The API server keeps threads of its own: it is another machine.
    let world = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let sandbox = sandbox::Sandbox::new();
    let handle = world.handle().clone();
    let service = tower::service_fn(move |request| {
        let service = sandbox.service("replica-0");
        let answering = handle.spawn(tower::ServiceExt::oneshot(service, request));
        async move { answering.await.map_err(tower::BoxError::from)? }
    });
    let workers =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    workers.block_on(async {
        let clock = tenure::clock::SystemClock::shared();
        let api = tenure::apiserver::ApiServer::from_service(service, "default", clock);
        let elector = tenure::Elector::builder("blocked")
            .lease_duration(Duration::from_secs(2))
            .retry_period(Duration::from_millis(500))
            .stop_margin(Duration::from_millis(200))
            .fresh_installation(|_| async { true })
            .start_with(api)
            .expect("the times are safe");
        let term = elector.leadership().leading().await.expect("nobody else contends");
        println!("every worker is blocked");
        for _ in 0..2 {
            let term = term.clone();
            tokio::spawn(async move { term.run(async { std::thread::sleep(BLOCK) }).await });
        }
        std::thread::sleep(BLOCK);
        drop(elector);
    });
    std::process::exit(0)
}
