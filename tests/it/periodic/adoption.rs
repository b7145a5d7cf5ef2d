//! Jobs that change their owner: two installations with a Lease each look at the same objects.

use std::{collections::BTreeMap, time::Duration};

use jiff::SignedDuration;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use rstest::rstest;
use sandbox::Fault;
use serde_json::json;
use tenure::{Standing, api::Outcome, clock::Clock, election::RELEASED_ANNOTATION};

use super::stage::{BROKEN, LEASE_DURATION, Replica, SOON, Seen, Stage};

/// The Lease of the replicas that a stage makes by default.
const OLD: &str = "default/main";
const NEW: &str = "default/second";

/// Puts the Lease of the old installation there, held by `holder` or released.
async fn old_lease(stage: &Stage, holder: Option<&str>, released: bool) {
    let annotations = released.then(|| BTreeMap::from([(RELEASED_ANNOTATION.to_owned(), "nonce@1".to_owned())]));
    let lease = Lease {
        metadata: ObjectMeta { name: Some("main".to_owned()), annotations, ..ObjectMeta::default() },
        spec: Some(LeaseSpec {
            holder_identity: Some(holder.unwrap_or_default().to_owned()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(1),
            ..LeaseSpec::default()
        }),
    };
    let leases: Api<Lease> = stage.lab.leases();
    drop(leases.delete("main", &DeleteParams::default()).await);
    leases.create(&PostParams::default(), &lease).await.unwrap();
}

/// Renews the Lease of the old installation while `old` leads.
fn renews(stage: &Stage, old: &Replica) {
    let (leases, standing, stopping) = (stage.lab.leases(), old.standing.subscribe(), old.stopping.clone());
    tokio::spawn(async move {
        for number in 0.. {
            tokio::time::sleep(LEASE_DURATION / 3).await;
            if stopping.is_cancelled() || !matches!(*standing.borrow(), Standing::Leading(_)) {
                return;
            }
            let write = json!({ "metadata": { "annotations": { "tenure.dev/write": number.to_string() } } });
            drop(leases.patch("main", &PatchParams::default(), &Patch::Merge(write)).await);
        }
    });
}

async fn old_lease_is_gone(stage: &Stage) {
    stage.lab.leases().delete("main", &DeleteParams::default()).await.unwrap();
}

/// An old installation that runs `tick` each second, under the token 10, and a new one that is to take it over.
async fn two_installations(seed: u64, token: u64) -> (Stage, Replica, Replica) {
    let stage = Stage::new(seed).await;
    old_lease(&stage, Some("old-pod_boot_nonce"), false).await;
    let old = stage.replica_of("old", OLD);
    old.lead(10);
    renews(&stage, &old);
    stage.create("tick", json!({ "interval": "1s" })).await;
    stage.until("tick", "a run", |status| status.counts.ran >= 2).await;
    let new = stage.replica_with("new", NEW, None, &[OLD]);
    new.lead(token);
    (stage, old, new)
}

async fn wants_new_term(replica: &Replica, wants: bool) {
    let mut state = replica.handle.state();
    let waited = tokio::time::timeout(SOON, state.wait_for(|state| state.wants_new_term == wants)).await;
    waited.expect("it says so before long").expect("the scheduler runs");
}

fn run_ids_are_unique(seen: &[Seen]) {
    let mut ids: Vec<_> = seen.iter().map(|seen| &seen.run_id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), seen.len(), "{seen:#?}");
}

/// How often `client` has tried to write to a job.
fn writes_of(stage: &Stage, client: &str) -> u64 {
    let counts = stage.lab.sandbox.requests();
    let writes = counts.iter().filter(|row| row.client == client && row.resource.starts_with("periodicjobs"));
    writes.filter(|row| !["get", "list", "watch"].contains(&row.verb)).map(|row| row.count).sum()
}

#[tokio::test(start_paused = true)]
async fn of_two_installations_on_the_same_objects_the_second_writes_nothing_and_says_so_once() {
    let stage = Stage::new(60).await;
    let (first, second) = (stage.replica_of("first", OLD), stage.replica_of("second", NEW));
    first.lead(10);
    stage.create("tick", json!({ "interval": "1s" })).await;
    stage.until("tick", "a run", |status| status.counts.ran >= 1).await;
    second.lead(20);
    stage.target.next(Duration::ZERO, BROKEN);
    stage.edit("tick", json!({ "spec": { "retry": { "maxAttempts": 1 } } })).await;
    let status = stage.until("tick", "more runs", |status| status.counts.ran >= 10).await;
    Stage::assert_sum(&status, Duration::from_secs(1));
    run_ids_are_unique(&stage.target.seen());
    assert!(stage.target.seen().iter().all(|seen| seen.token == 10));
    assert_eq!(writes_of(&stage, "second"), 0);
    assert_eq!(second.handle.state().borrow().foreign, 1);
    assert_eq!(second.listener.reasons(), ["ForeignController"], "not what the other one's runs came to");
    assert!(second.listener.decided.lock().unwrap().is_empty(), "nor the slots that it decided");
}

#[tokio::test(start_paused = true)]
async fn a_job_is_adopted_when_nobody_has_renewed_its_lease_for_as_long_as_it_lasts_and_not_before() {
    let (stage, old, new) = two_installations(61, 20).await;
    stage.pass(Duration::from_hours(1)).await;
    assert_eq!(stage.status("tick").await.controller, OLD);
    assert_eq!(writes_of(&stage, "new"), 0);
    assert_eq!(new.listener.reasons(), ["ForeignController"]);
    assert_eq!(new.handle.state().borrow().foreign, 1);
    old.vanish(&stage, "old").await;
    let last_renewed = new.clock.boot();
    stage.until("tick", "the new owner", |status| status.controller == NEW).await;
    let took = new.clock.boot().saturating_since(last_renewed);
    // It may have been renewed up to five seconds before, and is looked at every five.
    assert!(took + Duration::from_secs(5) >= LEASE_DURATION, "adopted after {took:?}");
    assert!(took <= LEASE_DURATION + Duration::from_secs(6), "adopted after {took:?}");
    run_ids_are_unique(&stage.target.seen());
}

#[tokio::test(start_paused = true)]
async fn a_job_is_adopted_once_its_lease_is_released_and_goes_on_where_it_was() {
    let (stage, old, new) = two_installations(62, 20).await;
    stage.pass(Duration::from_secs(20)).await;
    old.handle.drained(tenure::clock::Clock::boot(&*old.clock) + Duration::from_secs(5)).await;
    old.lose();
    let left = stage.status("tick").await;
    old_lease(&stage, None, true).await;
    let status = stage.until("tick", "runs of the new owner", |status| status.counts.ran > left.counts.ran + 5).await;
    assert_eq!((status.controller.as_str(), status.term.token), (NEW, 20));
    assert_eq!(status.origin, left.origin);
    Stage::assert_sum(&status, Duration::from_secs(1));
    let seen = stage.target.seen();
    run_ids_are_unique(&seen);
    assert!(seen.is_sorted_by_key(|seen| seen.token), "{seen:#?}");
    let adopted = |notice: &&tenure::periodic::Notice| notice.reason == "Adopted";
    let notices = new.listener.notices.lock().unwrap();
    let told: Vec<_> = notices.iter().filter(adopted).map(|notice| notice.note.as_str()).collect();
    assert_eq!(told, ["the Lease default/main owned this job; now the Lease default/second does"]);
    assert_eq!(new.handle.state().borrow().foreign, 0);
}

#[rstest]
#[case::deleted(true)]
#[case::emptied(false)]
#[tokio::test(start_paused = true)]
async fn a_lease_that_is_wiped_out_is_adopted_from_when_its_last_holder_must_have_ended(#[case] deleted: bool) {
    let (stage, old, _new) = two_installations(63, 20).await;
    stage.pass(Duration::from_secs(20)).await;
    // It is cut off from the API server, and not from its targets.
    old.vanish(&stage, "old").await;
    if deleted {
        old_lease_is_gone(&stage).await;
    } else {
        old_lease(&stage, None, false).await;
    }
    stage.pass(LEASE_DURATION.saturating_sub(Duration::from_secs(1))).await;
    assert_eq!(stage.status("tick").await.controller, OLD);
    stage.pass(Duration::from_secs(7)).await;
    assert_eq!(stage.status("tick").await.controller, NEW);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_taken_again_between_look_and_claim_is_not_adopted_from() {
    let (stage, old, _new) = two_installations(64, 20).await;
    stage.pass(Duration::from_secs(20)).await;
    old.lose();
    // The look that shows the release is answered; the one before the claim comes when the Lease is held again.
    let first = stage.hold_look("new");
    first.wait_reached().await;
    old_lease(&stage, None, true).await;
    let second = stage.hold_look("new");
    first.release();
    second.wait_reached().await;
    old_lease(&stage, Some("old-pod_boot_again"), false).await;
    second.release();
    stage.pass(LEASE_DURATION.saturating_sub(Duration::from_secs(1))).await;
    assert_eq!(stage.status("tick").await.controller, OLD);
    assert_eq!(writes_of(&stage, "new"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_comes_after_one_of_the_old_lease_adopts_nothing() {
    let (stage, old, _new) = two_installations(65, 20).await;
    stage.pass(Duration::from_secs(20)).await;
    old.lose();
    old_lease(&stage, None, true).await;
    let hold = stage.lab.sandbox.faults().new_hold();
    stage.fault("new", NEW, Fault::HoldRequest(hold.id()));
    hold.wait_reached().await;
    old_lease(&stage, Some("old-pod_boot_again"), false).await;
    old.lead(15);
    stage.until("tick", "the claim of the old installation", |status| status.term.token == 15).await;
    hold.release();
    stage.pass(Duration::from_mins(1)).await;
    assert_eq!(stage.status("tick").await.controller, OLD);
    run_ids_are_unique(&stage.target.seen());
}

#[tokio::test(start_paused = true)]
async fn a_run_that_the_old_installation_left_open_follows_its_guarantee() {
    for (guarantee, outcome, attempts) in
        [("AtLeastOnce", Outcome::Succeeded, 2), ("AtMostOnce", Outcome::Indeterminate, 1)]
    {
        let stage = Stage::new(66).await;
        old_lease(&stage, Some("old-pod_boot_nonce"), false).await;
        let old = stage.replica_of("old", OLD);
        old.lead(10);
        stage.target.usually_takes(Duration::from_secs(3));
        stage.create("run", json!({ "schedule": "* * * * *", "guarantee": guarantee })).await;
        let first = stage.until_seen(1).await;
        old.vanish(&stage, "old").await;
        let new = stage.replica_with("new", NEW, None, &[OLD]);
        new.lead(20);
        old_lease_is_gone(&stage).await;
        let status = stage.until("run", "the end", |status| !status.last_runs.is_empty()).await;
        assert_eq!((status.last_runs[0].outcome, status.controller.as_str()), (outcome, NEW), "{guarantee}");
        let seen = stage.target.seen();
        let of_first = seen.iter().filter(|seen| seen.run_id == first[0].run_id);
        assert_eq!(of_first.count(), attempts, "{guarantee}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_a_newer_term_has_claimed_is_adopted_by_the_next_term_only() {
    // The old installation's last term began after the new one's.
    let (stage, old, new) = two_installations(67, 5).await;
    old.lose();
    old_lease(&stage, None, true).await;
    wants_new_term(&new, true).await;
    stage.pass(Duration::from_secs(30)).await;
    assert_eq!(stage.status("tick").await.controller, OLD, "a target would refuse token 5 after token 10");
    assert!(new.listener.reasons().contains(&"AdoptionWaits"));
    new.lose();
    wants_new_term(&new, false).await;
    new.lead(30);
    stage.until("tick", "the next term", |status| status.controller == NEW && status.term.token == 30).await;
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_no_version_of_this_store_asks_for_no_new_term() {
    let (stage, old, new) = two_installations(68, 5).await;
    old.lose();
    let from_elsewhere = json!({ "status": { "term": { "token": 1_000_000_000_000_u64, "nonce": "other" } } });
    stage.edit_status("tick", from_elsewhere).await;
    old_lease(&stage, None, true).await;
    stage.pass(Duration::from_secs(30)).await;
    assert!(!new.handle.state().borrow().wants_new_term, "another term would have no larger token either");
    assert!(new.listener.reasons().contains(&"TokenRegressed"));
    assert_eq!(stage.status("tick").await.controller, OLD);
}

#[tokio::test(start_paused = true)]
async fn a_new_term_is_not_asked_for_while_a_run_may_go_on_for_long() {
    let (stage, old, new) = two_installations(69, 5).await;
    stage.target.usually_takes(Duration::from_secs(50));
    stage.create("long", json!({ "schedule": "* * * * *", "timeout": "1m" })).await;
    // Its own job, and no longer the old one's.
    stage.until("long", "a status", |_| true).await;
    stage
        .edit_status("long", json!({ "status": { "controller": NEW, "term": { "token": 1, "nonce": "before" } } }))
        .await;
    stage.until("long", "a run", |status| status.active.values().any(|run| run.term.token == 5)).await;
    old.lose();
    old_lease(&stage, None, true).await;
    stage.pass(Duration::from_secs(20)).await;
    assert!(!new.handle.state().borrow().wants_new_term);
    wants_new_term(&new, true).await;
    let now = new.clock.wall();
    let status = stage.status("long").await;
    let left = status.active.values().map(|run| run.deadline.timestamp().duration_since(now));
    assert!(left.max() <= Some(SignedDuration::from_secs(30)), "it is asked for when the run has to end soon");
    assert_eq!(status.active.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn each_installation_runs_the_jobs_of_its_class_and_counts_no_others_as_foreign() {
    let stage = Stage::new(70).await;
    let plain = stage.replica_of("plain", OLD);
    let night = stage.replica_with("night", NEW, Some("night"), &[]);
    plain.lead(10);
    night.lead(20);
    stage.create("day", json!({ "interval": "1s" })).await;
    stage.create("late", json!({ "interval": "1s", "class": "night" })).await;
    stage.create("nobody", json!({ "interval": "1s", "class": "weekend" })).await;
    let day = stage.until("day", "runs", |status| status.counts.ran >= 5).await;
    let late = stage.until("late", "runs", |status| status.counts.ran >= 5).await;
    assert_eq!((day.controller.as_str(), late.controller.as_str()), (OLD, NEW));
    assert!(stage.jobs.get("nobody").await.unwrap().status.is_none());
    run_ids_are_unique(&stage.target.seen());
    for replica in [&plain, &night] {
        let told = replica.listener.reasons();
        assert!(!told.is_empty() && told.iter().all(|reason| *reason == "RunSucceeded"), "{told:?}");
        assert_eq!(replica.handle.state().borrow().foreign, 0);
        assert_eq!(replica.handle.state().borrow().other_class, 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_class_is_edited_is_let_go_after_its_run_and_taken_up_by_the_other_installation() {
    let stage = Stage::new(71).await;
    let plain = stage.replica_of("plain", OLD);
    let night = stage.replica_with("night", NEW, Some("night"), &[]);
    plain.lead(2);
    night.lead(4);
    stage.target.usually_takes(Duration::from_secs(10));
    stage.create("tick", json!({ "schedule": "* * * * *" })).await;
    let first = stage.until_seen(1).await;
    stage.edit("tick", json!({ "spec": { "class": "night" } })).await;
    stage.pass(Duration::from_secs(5)).await;
    assert_eq!(stage.status("tick").await.controller, OLD, "its run goes on");
    let status = stage.until("tick", "the other owner", |status| status.controller == NEW).await;
    assert_eq!(
        (status.last_runs[0].id.as_str(), status.last_runs[0].outcome),
        (first[0].run_id.as_str(), Outcome::Succeeded)
    );
    let seen = stage.until_seen(3).await;
    run_ids_are_unique(&seen);
    assert_eq!(seen.iter().map(|seen| seen.token).collect::<Vec<_>>(), [2, 4, 4]);
    assert_eq!(plain.listener.reasons().iter().filter(|reason| **reason == "LetGo").count(), 1);
    assert_eq!(night.listener.reasons().iter().filter(|reason| **reason == "Adopted").count(), 1);
    // And back again: the plain installation's term is the older one now.
    stage.edit("tick", json!({ "spec": { "class": null } })).await;
    wants_new_term(&plain, true).await;
    plain.lose();
    plain.lead(6);
    let status = stage.until("tick", "the first owner", |status| status.controller == OLD).await;
    assert_eq!(status.term.token, 6);
    assert_eq!(status.counts.slots(), status.counts.ran + status.counts.coalesced);
}

#[tokio::test(start_paused = true)]
async fn a_retry_of_a_job_that_has_left_its_class_is_made_by_the_owner_of_the_run() {
    let stage = Stage::new(72).await;
    let plain = stage.replica_of("plain", OLD);
    plain.lead(10);
    stage.target.next(Duration::ZERO, BROKEN);
    stage.create("tick", json!({ "schedule": "* * * * *", "retry": { "initial": "5s" } })).await;
    stage.until_seen(1).await;
    stage.edit("tick", json!({ "spec": { "class": "night" } })).await;
    let status = stage.until("tick", "nobody", |status| status.controller.is_empty()).await;
    assert_eq!(status.last_runs[0].outcome, Outcome::Succeeded);
    assert_eq!((status.last_runs[0].attempt, status.counts.ran), (2, 1));
    stage.pass(Duration::from_mins(5)).await;
    assert_eq!(stage.status("tick").await, status, "nobody runs it");
}
