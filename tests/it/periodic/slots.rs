//! What becomes of slots: schedules, policies, edits, suspension, triggers, deletion, input that is not valid.

use std::time::Duration;

use jiff::SignedDuration;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use tenure::api::{ConditionStatus, ConditionType, Disposition, Outcome, PeriodicJobStatus};

use super::stage::{BROKEN, Stage};

fn condition(status: &PeriodicJobStatus, kind: ConditionType) -> (ConditionStatus, &str) {
    let condition = status.conditions.iter().find(|condition| condition.kind == kind).unwrap();
    (condition.status, condition.reason.as_str())
}

#[tokio::test(start_paused = true)]
async fn a_job_runs_at_each_of_its_slots_under_one_id_each_and_never_early() {
    let stage = Stage::new(1).await;
    let replica = stage.replica("one");
    replica.lead(10);
    stage.create("tick", json!({ "interval": "200ms" })).await;
    let status = stage.until("tick", "ten runs", |status| status.counts.ran >= 10).await;
    Stage::assert_sum(&status, Duration::from_millis(200));
    let seen = stage.target.seen();
    assert!(seen.iter().all(|seen| seen.at >= seen.slot), "never early: {seen:#?}");
    let mut ids: Vec<_> = seen.iter().map(|seen| seen.run_id.clone()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), seen.len(), "a slot runs once");
    let late = seen.iter().skip(1).map(|seen| seen.at.duration_since(seen.slot)).max().unwrap();
    assert!(late <= SignedDuration::from_millis(5), "{late}");
    assert_eq!(condition(&status, ConditionType::Ready), (ConditionStatus::True, "Scheduled"));
}

#[tokio::test(start_paused = true)]
async fn a_run_costs_two_writes() {
    let stage = Stage::new(2).await;
    let replica = stage.replica("one");
    replica.lead(10);
    stage.create("tick", json!({ "interval": "1s" })).await;
    stage.until("tick", "a start", |status| status.counts.ran >= 1 && status.active.is_empty()).await;
    let before = (stage.writes("tick"), stage.status("tick").await.counts.ran);
    let after =
        stage.until("tick", "more", |status| status.counts.ran >= before.1 + 20 && status.active.is_empty()).await;
    assert_eq!(stage.writes("tick") - before.0, 2 * usize::try_from(after.counts.ran - before.1).unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_slot_due_while_a_run_is_active_is_an_overlap_and_the_cadence_stays_on_its_grid() {
    let stage = Stage::new(3).await;
    let replica = stage.replica("one");
    replica.lead(10);
    stage.target.usually_takes(Duration::from_millis(2_500));
    stage.create("slow", json!({ "interval": "1s" })).await;
    let status = stage.until("slow", "runs", |status| status.counts.ran >= 6).await;
    Stage::assert_sum(&status, Duration::from_secs(1));
    assert!(status.counts.overlap >= 8, "{:?}", status.counts);
    let seen = stage.target.seen();
    assert!(seen.windows(2).all(|two| two[1].at.duration_since(two[0].at) >= SignedDuration::from_millis(2_500)));
    let late = seen.iter().skip(1).map(|seen| seen.at.duration_since(seen.slot)).max().unwrap();
    assert!(late <= SignedDuration::from_millis(5), "a slot that was an overlap is never run late: {late}");
}

#[tokio::test(start_paused = true)]
async fn under_allow_runs_go_side_by_side_up_to_their_bound() {
    let stage = Stage::new(4).await;
    let replica = stage.replica("one");
    replica.lead(10);
    stage.target.usually_takes(Duration::from_secs(10));
    stage.create("wide", json!({ "interval": "1s", "concurrencyPolicy": "Allow", "maxActive": 3 })).await;
    let status = stage.until("wide", "three at once", |status| status.active.len() == 3).await;
    assert_eq!(status.counts.overlap, 0);
    let status = stage.until("wide", "overlaps", |status| status.counts.overlap >= 3).await;
    assert_eq!(status.active.len(), 3);
    Stage::assert_sum(&status, Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_failed_run_is_tried_again_under_its_id_within_growing_bounds_and_its_end_is_recorded() {
    let stage = Stage::new(5).await;
    let replica = stage.replica("one");
    replica.lead(10);
    (0..3).for_each(|_| stage.target.next(Duration::ZERO, BROKEN));
    stage.create("flaky", json!({ "schedule": "1 * * * *", "retry": { "maxAttempts": 10 } })).await;
    let bounds = std::cell::RefCell::new(std::collections::BTreeSet::new());
    let status = stage
        .until("flaky", "recovery", |status| {
            bounds.borrow_mut().extend(status.active.values().filter_map(|run| run.wait_bound));
            status.last_successful_time.is_some()
        })
        .await;
    let bounds: Vec<u64> = bounds.into_inner().iter().map(|bound| bound.get().as_secs()).collect();
    assert_eq!(bounds, [2, 4, 8], "the status shows what the waits were drawn from");
    let seen = stage.target.seen();
    assert_eq!(seen.iter().map(|seen| seen.attempt).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert!(seen.iter().all(|attempt| attempt.run_id == seen[0].run_id));
    assert_eq!((status.last_runs[0].outcome, status.last_runs[0].attempt), (Outcome::Succeeded, 4));
    assert_eq!(status.consecutive_failures, 0);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_fails_to_the_end_says_so_and_the_next_slot_begins_anew() {
    let stage = Stage::new(6).await;
    let replica = stage.replica("one");
    replica.lead(10);
    (0..2).for_each(|_| stage.target.next(Duration::ZERO, BROKEN));
    stage.create("flaky", json!({ "schedule": "* * * * *", "retry": { "maxAttempts": 2 } })).await;
    let status = stage.until("flaky", "a failure", |status| status.consecutive_failures == 1).await;
    assert_eq!(condition(&status, ConditionType::LastRunSucceeded), (ConditionStatus::False, "Failed"));
    assert_eq!(condition(&status, ConditionType::Ready).0, ConditionStatus::True, "Ready never reports an outcome");
    let status = stage.until("flaky", "a success", |status| status.consecutive_failures == 0).await;
    assert_eq!(condition(&status, ConditionType::LastRunSucceeded).0, ConditionStatus::True);
    assert_eq!(stage.target.seen().last().unwrap().attempt, 1);
    assert_eq!(replica.listener.reasons(), ["RunFailed", "RunSucceeded"]);
}

#[tokio::test(start_paused = true)]
async fn an_edit_never_back_runs_and_the_old_schedule_ends_where_it_was_seen() {
    let stage = Stage::new(7).await;
    let replica = stage.replica("one");
    replica.lead(10);
    stage.create("edited", json!({ "schedule": "0 0 1 1 *" })).await;
    stage.until("edited", "a status", |status| status.planned.is_some()).await;
    stage.pass(Duration::from_millis(90_500)).await;
    stage.edit("edited", json!({ "spec": { "schedule": null, "interval": "1s" } })).await;
    let now = stage.until("edited", "runs", |status| status.counts.ran >= 3).await;
    assert_eq!((now.counts.slots(), now.observed_generation), (now.counts.ran, 2));
    let first = &stage.target.seen()[0];
    assert!(first.at.duration_since(first.slot) < SignedDuration::from_millis(50));
}

#[tokio::test(start_paused = true)]
async fn a_suspended_job_runs_nothing_but_its_trigger_and_resuming_does_not_catch_up() {
    let stage = Stage::new(8).await;
    let replica = stage.replica("one");
    replica.lead(10);
    stage.create("paused", json!({ "interval": "1s", "suspend": true })).await;
    stage.pass(Duration::from_secs(10)).await;
    assert!(stage.target.seen().is_empty());
    stage.edit("paused", json!({ "metadata": { "annotations": { "tenure.dev/trigger": "now" } } })).await;
    let status = stage.until("paused", "the trigger", |status| !status.last_runs.is_empty()).await;
    assert_eq!((status.counts.triggered, status.counts.ran), (1, 0));
    assert_eq!(status.last_runs[0].trigger.as_deref(), Some("now"));
    stage.pass(Duration::from_secs(10)).await;
    assert_eq!(stage.target.seen().len(), 1, "a trigger is handled once");
    stage.edit("paused", json!({ "spec": { "suspend": false } })).await;
    let status = stage.until("paused", "runs", |status| status.counts.ran >= 2).await;
    Stage::assert_sum(&status, Duration::from_secs(1));
    assert!(status.counts.suspended >= 20 && status.counts.coalesced == 0, "{:?}", status.counts);
}

#[tokio::test(start_paused = true)]
async fn a_trigger_is_refused_while_a_run_is_active_and_says_so() {
    let stage = Stage::new(9).await;
    let replica = stage.replica("one");
    replica.lead(10);
    stage.target.usually_takes(Duration::from_secs(5));
    stage.create("busy", json!({ "schedule": "* * * * *" })).await;
    stage.until_seen(1).await;
    stage.edit("busy", json!({ "metadata": { "annotations": { "tenure.dev/trigger": "now" } } })).await;
    let status = stage.until("busy", "the trigger", |status| status.last_trigger.is_some()).await;
    assert_eq!(status.counts.triggered, 0);
    assert!(replica.listener.reasons().contains(&"TriggerRefused"));
}

#[tokio::test(start_paused = true)]
async fn a_spec_that_is_not_valid_says_why_and_stops_no_other_job() {
    let stage = Stage::new(10).await;
    let replica = stage.replica("one");
    replica.lead(10);
    stage.create("bad", json!({ "schedule": "61 * * * *" })).await;
    stage.create("lost", json!({ "schedule": "* * * * *", "timeZone": "Mars/Olympus" })).await;
    stage.create("good", json!({ "interval": "1s" })).await;
    let bad = stage.until("bad", "a condition", |status| !status.conditions.is_empty()).await;
    assert_eq!(condition(&bad, ConditionType::Ready), (ConditionStatus::False, "InvalidSchedule"));
    assert!(bad.conditions[0].message.contains("schedule"), "{}", bad.conditions[0].message);
    let lost = stage.until("lost", "a condition", |status| !status.conditions.is_empty()).await;
    assert!(lost.conditions[0].message.contains("Mars/Olympus"), "{}", lost.conditions[0].message);
    stage.until("good", "runs", |status| status.counts.ran >= 2).await;
    stage.edit("bad", json!({ "spec": { "schedule": "* * * * *" } })).await;
    let fixed = stage.until("bad", "a run", |status| status.counts.ran == 1).await;
    assert_eq!(condition(&fixed, ConditionType::Ready).0, ConditionStatus::True);
    assert_eq!(fixed.counts.slots(), 1, "a spec that was never valid had no slots");
}

#[tokio::test(start_paused = true)]
async fn deleting_a_job_cancels_its_run_and_its_namesake_waits_for_the_end_of_it() {
    let stage = Stage::new(11).await;
    let replica = stage.replica("one");
    replica.lead(10);
    stage.target.usually_takes(Duration::from_secs(20));
    stage.create("brief", json!({ "interval": "1s" })).await;
    let first = stage.until_seen(1).await;
    stage.jobs.delete("brief", &DeleteParams::default()).await.unwrap();
    let again = stage.create("brief", json!({ "interval": "1s" })).await;
    let second = stage.until_seen(2).await;
    assert_ne!(first[0].run_id, second[1].run_id);
    assert_eq!(replica.listener.ended.lock().unwrap()[0], (first[0].run_id.clone(), Outcome::Cancelled));
    assert_eq!(stage.jobs.get("brief").await.unwrap().metadata.uid, again.metadata.uid);
    assert!(replica.listener.reasons().contains(&"RunCancelled"));
}

#[tokio::test(start_paused = true)]
async fn a_run_goes_on_while_its_object_cannot_be_read_and_is_recorded_when_it_can() {
    let stage = Stage::new(13).await;
    stage.accept_catch_up_all().await;
    let replica = stage.replica("one");
    replica.lead(10);
    stage.target.usually_takes(Duration::from_secs(5));
    stage.create("job", json!({ "schedule": "* * * * *", "guarantee": "AtMostOnce" })).await;
    stage.until("job", "a run", |status| status.active.len() == 1).await;
    let catch_up = async |value: &str| {
        let change = Patch::Merge(json!({ "spec": { "catchUp": value } }));
        stage.raw_jobs().patch("job", &PatchParams::default(), &change).await.unwrap();
    };
    catch_up("All").await;
    stage.pass(Duration::from_secs(10)).await;
    assert_eq!(replica.listener.reasons(), ["Unreadable"], "nothing is cancelled");
    assert_eq!(stage.target.seen().len(), 1);
    catch_up("Latest").await;
    let status = stage.until("job", "the end", |status| !status.last_runs.is_empty()).await;
    assert_eq!((status.last_runs[0].outcome, status.last_runs[0].attempt), (Outcome::Succeeded, 1));
    assert_eq!(stage.target.seen().len(), 1, "it is not made again");
    stage.until("job", "the next run", |status| status.counts.ran == 2).await;
}

#[tokio::test(start_paused = true)]
async fn an_object_from_a_newer_version_stops_no_other_job() {
    let stage = Stage::new(12).await;
    stage.accept_catch_up_all().await;
    let replica = stage.replica("one");
    replica.lead(10);
    let newer = json!({
        "apiVersion": "tenure.dev/v1alpha1", "kind": "PeriodicJob", "metadata": { "name": "newer" },
        "spec": { "interval": "1s", "catchUp": "All", "http": { "url": "http://example.com/" } },
    });
    stage.raw_jobs().create(&PostParams::default(), &serde_json::from_value(newer).unwrap()).await.unwrap();
    stage.create("good", json!({ "interval": "1s" })).await;
    stage.until("good", "runs", |status| status.counts.ran >= 3).await;
    assert_eq!(replica.listener.reasons()[0], "Unreadable");
    assert!(replica.listener.decided.lock().unwrap().iter().all(|(job, _, _)| job == "good"));
    assert!(replica.listener.decided.lock().unwrap().iter().any(|(_, what, _)| *what == Disposition::Ran));
}
