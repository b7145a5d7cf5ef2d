//! `concurrencyPolicy: Replace`: a due slot cancels the run before it, and what came of that one is told as it is known.

use std::time::Duration;

use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;
use tenure::api::Outcome;

use super::{
    job_template::{complete, jobs, template, until_jobs},
    stage::{BROKEN, Stage},
};

#[tokio::test(start_paused = true)]
async fn a_due_slot_cancels_the_active_run_and_starts_when_it_has_ended() {
    let stage = Stage::new(81).await;
    let replica = stage.replica("one");
    replica.lead(10);
    stage.target.usually_takes(Duration::from_secs(90));
    stage.create("long", json!({ "interval": "20s", "timeout": "5m", "concurrencyPolicy": "Replace" })).await;
    let status = stage.until("long", "three starts", |status| status.counts.ran >= 3).await;
    Stage::assert_sum(&status, Duration::from_secs(20));
    assert_eq!((status.counts.overlap, status.active.len()), (0, 1));
    let ended = replica.listener.ended.lock().unwrap().clone();
    assert_eq!(ended.iter().map(|(_, outcome)| *outcome).collect::<Vec<_>>(), [Outcome::Indeterminate; 2]);
    let seen = stage.target.seen();
    assert!(seen.windows(2).all(|two| two[0].run_id != two[1].run_id), "{seen:#?}");
    assert!(status.last_runs[0].message.contains("Replaced"), "{:?}", status.last_runs);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_waits_for_its_next_attempt_is_cancelled_for_certain() {
    let stage = Stage::new(82).await;
    let replica = stage.replica("one");
    replica.lead(10);
    stage.target.next(Duration::ZERO, BROKEN);
    let retry = json!({ "maxAttempts": 3, "initial": "10m", "max": "20m" });
    stage.create("flaky", json!({ "interval": "10s", "retry": retry, "concurrencyPolicy": "Replace" })).await;
    let status = stage.until("flaky", "a success", |status| status.last_successful_time.is_some()).await;
    Stage::assert_sum(&status, Duration::from_secs(10));
    let ended = replica.listener.ended.lock().unwrap().clone();
    assert_eq!((ended[0].1, ended[1].1), (Outcome::Cancelled, Outcome::Succeeded));
    assert_eq!(status.consecutive_failures, 0);
}

/// Waits until the Job is being deleted.
pub async fn is_going(stage: &Stage, name: &str) {
    while jobs(stage).get(name).await.unwrap().metadata.deletion_timestamp.is_none() {
        stage.pass(Duration::from_millis(100)).await;
    }
}

/// Does what the garbage collector of a cluster does once the pods are gone.
pub async fn collect(stage: &Stage, name: &str) {
    let change = json!({ "metadata": { "finalizers": null } });
    jobs(stage).patch(name, &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_job_is_deleted_with_its_pods_before_the_next_one_is_created_and_slots_due_meanwhile_are_replaced() {
    let stage = Stage::new(83).await;
    let replica = stage.replica("one");
    replica.lead(10);
    let spec = json!({ "interval": "10s", "concurrencyPolicy": "Replace", "jobTemplate": template() });
    stage.create("report", spec).await;
    let first = until_jobs(&stage, 1).await.remove(0).name_any();
    is_going(&stage, &first).await;
    stage.pass(Duration::from_secs(25)).await;
    assert_eq!(until_jobs(&stage, 1).await.len(), 1, "its pods are still there");
    collect(&stage, &first).await;
    let status = stage.until("report", "the next run", |status| status.counts.ran == 2).await;
    Stage::assert_sum(&status, Duration::from_secs(10));
    assert!(status.counts.replaced >= 2, "{:?}", status.counts);
    assert_eq!(status.last_runs[0].outcome, Outcome::Cancelled, "{:?}", status.last_runs);
    let second = until_jobs(&stage, 1).await.remove(0).name_any();
    assert_ne!(second, first);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_ends_by_itself_before_its_deletion_is_recorded_as_it_ended() {
    let stage = Stage::new(84).await;
    let replica = stage.replica("one");
    replica.lead(10);
    let rule = sandbox::FaultRule::new(sandbox::Fault::Refuse { code: 503, retry_after: None });
    let rule = stage.lab.sandbox.faults().add(rule.client("one").verb(sandbox::Verb::Delete).resource("jobs"));
    let spec = json!({ "interval": "10s", "concurrencyPolicy": "Replace", "jobTemplate": template() });
    stage.create("report", spec).await;
    let first = until_jobs(&stage, 1).await.remove(0).name_any();
    stage.pass(Duration::from_secs(12)).await;
    complete(&stage, &first).await;
    stage.lab.sandbox.faults().remove(rule);
    let status = stage.until("report", "the next run", |status| status.counts.ran == 2).await;
    assert_eq!(status.last_runs[0].outcome, Outcome::Succeeded);
    let all: Api<_> = jobs(&stage);
    all.delete(&first, &DeleteParams::background()).await.ok();
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_taking_over_was_answered_late_is_deleted_before_the_next_one_is_created() {
    let stage = Stage::new(85).await;
    let (one, two) = (stage.replica("one"), stage.replica("two"));
    one.lead(10);
    let spec = json!({ "interval": "10s", "concurrencyPolicy": "Replace", "jobTemplate": template() });
    stage.create("report", spec).await;
    let first = until_jobs(&stage, 1).await.remove(0).name_any();
    one.vanish(&stage, "one").await;
    stage.pass(Duration::from_secs(12)).await;
    stage.fault("two", "takenOver", sandbox::Fault::DropAnswer { hang: false });
    two.lead(20);
    let doomed = async || jobs(&stage).get(&first).await.unwrap().metadata.deletion_timestamp.is_some();
    while !doomed().await {
        assert_eq!(until_jobs(&stage, 1).await.len(), 1, "no other Job is created beside it");
        stage.pass(Duration::from_millis(100)).await;
    }
    collect(&stage, &first).await;
    let status = stage.until("report", "the next run", |status| status.counts.ran == 2).await;
    assert_eq!(status.last_runs[0].outcome, Outcome::Cancelled, "{:?}", status.last_runs);
    Stage::assert_sum(&status, Duration::from_secs(10));
}
