//! Electors on the sandbox: who leads, when, and how leadership moves.

use std::time::Duration;

use kube::api::{DeleteParams, Patch, PatchParams};
use sandbox::{Fault, FaultRule, Verb};
use serde_json::json;
use tenure::{
    Released, Standing,
    election::{Place, PlaceError},
    entropy::SeededEntropy,
};

use crate::support::lab::{Drift, LEASE, Lab, NAMESPACE, Replica};

const SECOND: Duration = Duration::from_secs(1);
const LEASE_DURATION: Duration = Duration::from_secs(15);
const FOREIGN_GRACE: Duration = Duration::from_secs(5);

async fn three(lab: &Lab) -> Vec<Replica> {
    let first = lab.first_replica("replica-0");
    lab.wait_for("the first leader", SECOND, || first.leads()).await;
    let others = ["replica-1", "replica-2"].map(|name| lab.replica(name));
    std::iter::once(first).chain(others).collect()
}

fn leaders(replicas: &[Replica]) -> usize {
    replicas.iter().filter(|replica| replica.leads()).count()
}

#[tokio::test(start_paused = true)]
async fn one_of_three_replicas_leads_and_stays_in_office() {
    let lab = Lab::new(1);
    let replicas = three(&lab).await;
    let token = replicas[0].term().expect("leading").token();
    for _ in 0..600 {
        lab.sleep(SECOND).await;
        assert_eq!(leaders(&replicas), 1);
    }
    assert_eq!(replicas[0].term().expect("still leading").token(), token);
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_finds_no_lease_waits_one_lease_duration() {
    let lab = Lab::new(1);
    let began = lab.now();
    let replica = lab.replica("replica-0");
    lab.wait_for("a leader", LEASE_DURATION + SECOND, || replica.leads()).await;
    assert!(lab.now() - began >= LEASE_DURATION, "{:?}", lab.now() - began);
}

#[tokio::test(start_paused = true)]
async fn a_killed_leader_is_replaced_within_a_lease_duration_and_a_second() {
    let lab = Lab::new(1);
    let replicas = three(&lab).await;
    let token = replicas[0].term().expect("leading").token();
    lab.sleep(SECOND * 20).await;
    replicas[0].kill();
    let killed = lab.now();
    let successor = lab.wait_for_leader(&replicas, LEASE_DURATION + SECOND).await;
    assert!(lab.now() - killed >= SECOND * 10, "nobody knew, so nobody could be quicker");
    assert!(successor.term().expect("leading").token() > token);
    assert_eq!(leaders(&replicas), 1);
}

#[tokio::test(start_paused = true)]
async fn a_standby_whose_watch_is_dead_replaces_a_killed_leader_as_soon_as_any_other() {
    let lab = Lab::new(1);
    let first = lab.first_replica("replica-0");
    lab.wait_for("the first leader", SECOND, || first.leads()).await;
    let silent = FaultRule::new(Fault::DropRequest { hang: true }).client("replica-1").verb(Verb::Watch).times(1);
    lab.sandbox.faults().add(silent);
    let standby = lab.replica("replica-1");
    // It would look again when the lease that it saw first has run out, and wait for another one from there.
    lab.sleep(SECOND * 12).await;
    first.kill();
    lab.wait_for("a successor", LEASE_DURATION + SECOND, || standby.leads()).await;
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_meets_no_lease_does_not_bring_it_back() {
    let lab = Lab::new(1);
    // It does not hear of the deletion before it renews.
    let silent = FaultRule::new(Fault::DropRequest { hang: true }).client("replica-0").verb(Verb::Watch);
    lab.sandbox.faults().add(silent);
    let replica = lab.first_replica("replica-0");
    lab.wait_for("the first leader", SECOND, || replica.leads()).await;
    lab.leases().delete(LEASE, &DeleteParams::default()).await.expect("it is there");
    lab.wait_for("the end of the term", LEASE_DURATION, || !replica.leads()).await;
    lab.sleep(SECOND).await;
    let lease = lab.leases().get(LEASE).await.expect("it puts an empty one there");
    assert_eq!(lease.spec.expect("a spec").holder_identity.as_deref(), Some(""));
}

#[tokio::test(start_paused = true)]
async fn a_container_that_is_restarted_in_its_pod_leads_again_at_once_and_a_second_one_in_it_waits() {
    let lab = Lab::new(1);
    let volume = tempfile::tempdir().expect("a temporary directory");
    let place = || Place::take("uid", volume.path());
    // Processes of one pod draw names of their own.
    let process = |seed, place: Option<Place>| {
        lab.replica_with("pod-0", Drift::NONE, |builder| {
            let builder = builder.entropy(SeededEntropy::shared(seed));
            if let Some(place) = place { builder.place(place) } else { builder }
        })
    };
    let first = process(1, Some(place().expect("it is free")));
    lab.wait_for("the first leader", LEASE_DURATION + SECOND, || first.leads()).await;
    let token = first.term().expect("leading").token();
    assert!(matches!(place(), Err(PlaceError::Taken(_))));
    let by_exec = process(2, None);
    let standby = lab.replica("pod-1");
    lab.sleep(SECOND * 20).await;
    assert_eq!(first.term().expect("still leading").token(), token, "it was not taken for dead");

    first.kill();
    lab.sleep(Duration::from_millis(10)).await;
    let restarted = process(3, Some(place().expect("the kernel has freed it")));
    lab.wait_for("the restarted one", SECOND, || restarted.leads()).await;
    assert!(!by_exec.leads() && !standby.leads());
    assert!(restarted.term().expect("leading").token() > token);
}

#[tokio::test(start_paused = true)]
async fn a_planned_hand_over_takes_milliseconds_and_waits_for_work_in_hand() {
    let lab = Lab::new(1);
    let replicas = three(&lab).await;
    let work = replicas[0].term().expect("leading").hold().expect("the term is valid");
    let released = replicas[0].terminate(SECOND * 27);
    lab.sleep(SECOND * 3).await;
    assert!(replicas[0].leads(), "it leads while its work goes on");
    drop(work);
    let done = lab.now();
    lab.wait_for("a successor", SECOND, || replicas[1].leads() || replicas[2].leads()).await;
    assert!(lab.now() - done <= Duration::from_millis(50), "{:?}", lab.now() - done);
    assert_eq!(released.await.expect("no panic"), Some(Released::Free));
}

#[tokio::test(start_paused = true)]
async fn a_hand_over_does_not_wait_for_ever() {
    let lab = Lab::new(1);
    let replicas = three(&lab).await;
    let _work = replicas[0].term().expect("leading").hold().expect("the term is valid");
    let released = replicas[0].terminate(SECOND * 5);
    lab.sleep(SECOND * 6).await;
    assert!(!replicas[0].leads());
    assert_eq!(released.await.expect("no panic"), Some(Released::Free));
    assert_eq!(leaders(&replicas), 1);
}

#[tokio::test(start_paused = true)]
async fn an_elector_that_is_dropped_before_it_has_begun_leaves_the_election() {
    let lab = Lab::new(1);
    let replica = lab.first_replica("replica-0");
    let standing = replica.leadership().watch();
    drop(replica);
    lab.wait_for("the end", SECOND * 5, || *standing.borrow() == Standing::Stopped).await;
    assert!(lab.leases().get_opt(LEASE).await.expect("an answer").is_none(), "it never led");
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_asked_a_second_time_to_stand_aside_hands_over() {
    let lab = Lab::new(1);
    let replicas = three(&lab).await;
    let work = replicas[0].term().expect("leading").hold().expect("the term is valid");
    replicas[0].elector.stand_aside(SECOND * 27);
    lab.sleep(SECOND).await;
    replicas[0].elector.contend();
    lab.sleep(SECOND).await;
    drop(work);
    lab.sleep(SECOND).await;
    assert!(replicas[0].leads(), "it may lead again");
    replicas[0].elector.stand_aside(SECOND * 27);
    lab.wait_for("a successor", SECOND, || replicas[1].leads() || replicas[2].leads()).await;
    assert!(!replicas[0].leads());
}

#[tokio::test(start_paused = true)]
async fn a_frozen_leader_finds_its_guard_shut_and_comes_back_as_a_standby() {
    let lab = Lab::new(1);
    let replicas = three(&lab).await;
    let old = replicas[0].term().expect("leading");
    replicas[0].freezer.freeze();
    lab.wait_for("a successor", LEASE_DURATION + SECOND, || replicas[1].leads() || replicas[2].leads()).await;
    assert!(replicas[0].shows_leading(), "frozen, it shows what it last knew");
    assert!(old.check().is_err(), "but its guard is shut");
    replicas[0].freezer.thaw();
    lab.wait_for("a standby", SECOND, || !replicas[0].shows_leading()).await;
    for _ in 0..60 {
        lab.sleep(SECOND).await;
        assert_eq!(leaders(&replicas), 1);
        assert!(!replicas[0].leads());
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_shorter_than_the_validity_costs_nobody_the_term() {
    let lab = Lab::new(1);
    let replicas = three(&lab).await;
    let token = replicas[0].term().expect("leading").token();
    lab.sleep(SECOND * 5).await;
    for replica in &replicas {
        lab.sandbox.faults().partition(&replica.name);
    }
    lab.sleep(Duration::from_millis(5_500)).await;
    for replica in &replicas {
        lab.sandbox.faults().heal(&replica.name);
    }
    lab.sleep(SECOND * 30).await;
    assert_eq!(replicas[0].term().expect("still leading").token(), token);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_stops_before_its_successor_starts_and_rejoins() {
    let lab = Lab::new(1);
    let replicas = three(&lab).await;
    lab.sandbox.faults().partition("replica-0");
    let mut stopped = None;
    while stopped.is_none() || leaders(&replicas) == 0 {
        lab.sleep(Duration::from_millis(10)).await;
        assert!(leaders(&replicas) <= 1);
        if stopped.is_none() && !replicas[0].leads() {
            stopped = Some(lab.now());
        }
    }
    lab.sandbox.faults().heal("replica-0");
    lab.sleep(SECOND * 10).await;
    replicas[1].kill();
    replicas[2].kill();
    lab.wait_for("the old leader to lead again", LEASE_DURATION + SECOND, || replicas[0].leads()).await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_lease_hands_over_no_earlier_than_the_leader_stops() {
    let lab = Lab::new(1);
    let replicas = three(&lab).await;
    lab.sandbox.faults().partition("replica-0");
    lab.leases().delete(LEASE, &DeleteParams::default()).await.expect("it is there");
    let deleted = lab.now();
    while !(replicas[1].leads() || replicas[2].leads()) {
        lab.sleep(Duration::from_millis(10)).await;
        assert!(leaders(&replicas) <= 1);
        assert!(lab.now() - deleted < LEASE_DURATION + SECOND, "a vanished Lease costs at most this");
    }
    assert!(!replicas[0].leads());
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_lease_was_edited_leaves_office_at_once() {
    let lab = Lab::new(1);
    let replicas = three(&lab).await;
    let edit = Patch::Merge(json!({"spec": {"holderIdentity": "bob"}}));
    lab.leases().patch(LEASE, &PatchParams::default(), &edit).await.expect("it is there");
    lab.wait_for("the leader to leave", Duration::from_millis(50), || !replicas[0].leads()).await;
    // Bob is a holder of another make.
    let edited = lab.now();
    lab.wait_for_leader(&replicas, LEASE_DURATION + FOREIGN_GRACE + SECOND).await;
    assert!(lab.now() - edited >= LEASE_DURATION + FOREIGN_GRACE, "{:?}", lab.now() - edited);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_another_client_gives_up_is_taken_after_the_grace_for_its_work() {
    let lab = Lab::new(1);
    let replicas = three(&lab).await;
    let leases = lab.leases();
    let write = async |spec: serde_json::Value| {
        let patch = Patch::Merge(json!({ "spec": spec }));
        leases.patch(LEASE, &PatchParams::default(), &patch).await.expect("it is there")
    };
    // As client-go does: it takes over, renews every two seconds, and releases with an empty holder and a second's lease.
    write(json!({ "holderIdentity": "host_uuid", "leaseTransitions": 9 })).await;
    for renewal in 0..20 {
        lab.sleep(SECOND * 2).await;
        write(json!({ "renewTime": format!("2026-03-01T01:00:{renewal:02}.000000Z") })).await;
        assert_eq!(leaders(&replicas), 0);
    }
    write(json!({ "holderIdentity": "", "leaseDurationSeconds": 1 })).await;
    let released = lab.now();
    lab.wait_for_leader(&replicas, FOREIGN_GRACE + SECOND).await;
    assert!(lab.now() - released >= FOREIGN_GRACE, "{:?}", lab.now() - released);
}

#[tokio::test(start_paused = true)]
async fn a_label_on_the_lease_disturbs_nobody() {
    let lab = Lab::new(1);
    let replicas = three(&lab).await;
    let token = replicas[0].term().expect("leading").token();
    for minute in 0..10 {
        let label = Patch::Merge(json!({"metadata": {"labels": {"minute": minute.to_string()}}}));
        lab.leases().patch(LEASE, &PatchParams::default(), &label).await.expect("it is there");
        lab.sleep(SECOND * 7).await;
    }
    assert_eq!(replicas[0].term().expect("still leading").token(), token);
}

#[tokio::test(start_paused = true)]
async fn a_slow_clock_beside_a_fast_one_never_makes_two_leaders() {
    let lab = Lab::new(1);
    let slow = lab.replica_with("slow", Drift::rate(900_000), |builder| {
        builder.stop_margin(Duration::ZERO).fresh_installation(|_| async { true })
    });
    lab.wait_for("the slow one to lead", SECOND, || slow.leads()).await;
    let fast = lab.replica_with("fast", Drift::rate(1_100_000), |builder| builder.stop_margin(Duration::ZERO));
    lab.sleep(SECOND).await;
    lab.sandbox.faults().partition("slow");
    lab.wait_for("the fast one to lead", SECOND * 20, || {
        assert!(!(slow.leads() && fast.leads()));
        fast.leads()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_hour_costs_twelve_writes_a_minute_and_a_watch_per_standby() {
    let lab = Lab::new(1);
    let _replicas = three(&lab).await;
    lab.sleep(SECOND * 60).await;
    let before = lab.sandbox.resource_version();
    lab.sleep(SECOND * 600).await;
    let writes = lab.sandbox.resource_version() - before;
    assert!((115..=121).contains(&writes), "{writes} writes in ten minutes");
    assert_eq!(lab.leases().get(LEASE).await.expect("it is there").metadata.namespace.as_deref(), Some(NAMESPACE));
}
