//! `jobTemplate` where something is in doubt: a Job that nobody sees, a spec that is not valid any more, a replica that
//! stops while it creates one.

use std::time::Duration;

use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use rstest::rstest;
use sandbox::{Fault, FaultRule, Verb};
use serde_json::{Value, json};
use tenure::{
    api::{ActionKind, ConditionStatus, ConditionType, Outcome, PeriodicJobStatus},
    clock::Clock,
};

use super::{
    job_template::{complete, created, jobs, template, until_jobs},
    replace::{collect, is_going},
    stage::{BROKEN, Stage},
};

/// A job whose only slot for a day is run by a trigger.
async fn create(stage: &Stage, fields: Value) {
    let mut spec = json!({ "schedule": "0 0 * * *", "jobTemplate": template() });
    spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    stage.create("report", spec).await;
    stage.until("report", "a status", |status| !status.conditions.is_empty()).await;
}

async fn trigger(stage: &Stage, value: &str) {
    stage.edit("report", json!({ "metadata": { "annotations": { "tenure.dev/trigger": value } } })).await;
}

/// From now on, `fault` befalls each creation of a Job.
fn at_creations(stage: &Stage, fault: Fault) -> sandbox::FaultId {
    stage.lab.sandbox.faults().add(FaultRule::new(fault).verb(Verb::Create).resource("jobs"))
}

fn ready(status: &PeriodicJobStatus) -> (ConditionStatus, &str) {
    let ready = status.conditions.iter().find(|condition| condition.kind == ConditionType::Ready).unwrap();
    (ready.status, ready.reason.as_str())
}

#[tokio::test(start_paused = true)]
async fn the_ended_jobs_of_runs_that_are_taken_over_one_after_the_other_are_not_tidied_away_before_they_are_recorded() {
    let stage = Stage::new(91).await;
    let (one, two) = (stage.replica("one"), stage.replica("two"));
    one.lead(10);
    let limits = json!({ "successfulJobsHistoryLimit": 0, "failedJobsHistoryLimit": 0, "concurrencyPolicy": "Allow" });
    create(&stage, limits).await;
    for value in ["a", "b", "c", "d"] {
        let before = created(&stage);
        trigger(&stage, value).await;
        until_jobs(&stage, before + 1).await;
    }
    one.vanish(&stage, "one").await;
    for job in until_jobs(&stage, 4).await {
        complete(&stage, &job.name_any()).await;
    }
    two.lead(20);
    let status = stage.until("report", "the end of all", |status| status.active.is_empty()).await;
    assert_eq!(created(&stage), 4, "none is created again");
    assert_eq!(status.consecutive_failures, 0);
    let ended = two.listener.ended.lock().unwrap().clone();
    assert_eq!(ended.iter().map(|(_, outcome)| *outcome).collect::<Vec<_>>(), [Outcome::Succeeded; 4]);
    until_jobs(&stage, 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_job_that_somebody_else_deletes_while_it_is_to_make_room_leaves_its_run_in_doubt() {
    let stage = Stage::new(92).await;
    let replica = stage.replica("one");
    replica.lead(10);
    let rule = FaultRule::new(Fault::Refuse { code: 503, retry_after: None });
    let rule = stage.lab.sandbox.faults().add(rule.client("one").verb(Verb::Delete).resource("jobs"));
    let spec = json!({ "interval": "10s", "concurrencyPolicy": "Replace", "jobTemplate": template() });
    stage.create("report", spec).await;
    let first = until_jobs(&stage, 1).await.remove(0).name_any();
    stage.pass(Duration::from_secs(12)).await;
    jobs(&stage).delete(&first, &DeleteParams::background()).await.unwrap();
    stage.lab.sandbox.faults().remove(rule);
    let status = stage.until("report", "the next run", |status| status.counts.ran == 2).await;
    assert_eq!(status.last_runs[0].outcome, Outcome::Indeterminate, "{:?}", status.last_runs);
    assert!(status.last_runs[0].message.contains("deleted by somebody else"), "{:?}", status.last_runs);
    Stage::assert_sum(&status, Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_gone_while_it_may_not_be_deleted_here_makes_room_and_leaves_its_run_in_doubt() {
    let stage = Stage::new(103).await;
    let replica = stage.replica("one");
    replica.lead(10);
    let rule = FaultRule::new(Fault::Refuse { code: 403, retry_after: None });
    stage.lab.sandbox.faults().add(rule.client("one").verb(Verb::Delete).resource("jobs"));
    let spec = json!({ "interval": "10s", "concurrencyPolicy": "Replace", "jobTemplate": template() });
    stage.create("report", spec).await;
    let first = until_jobs(&stage, 1).await.remove(0).name_any();
    stage.pass(Duration::from_secs(12)).await;
    jobs(&stage).delete(&first, &DeleteParams::background()).await.unwrap();
    let status = stage.until("report", "the next run", |status| status.counts.ran == 2).await;
    assert_eq!(status.last_runs[0].outcome, Outcome::Indeterminate, "{:?}", status.last_runs);
}

#[tokio::test(start_paused = true)]
async fn an_at_most_once_run_whose_job_was_certainly_not_created_is_made_by_the_next_leader() {
    let stage = Stage::new(104).await;
    let one = stage.replica("one");
    one.lead(10);
    create(&stage, json!({ "guarantee": "AtMostOnce", "timeout": "10m" })).await;
    let creations = at_creations(&stage, Fault::Refuse { code: 429, retry_after: None });
    trigger(&stage, "1").await;
    stage.until("report", "the intent", |status| status.active.len() == 1).await;
    stage.pass(Duration::from_secs(5)).await;
    one.handle.drained(one.clock.boot() + Duration::from_secs(20)).await;
    one.lose();
    stage.lab.sandbox.faults().remove(creations);
    let two = stage.replica("two");
    two.lead(20);
    let job = until_jobs(&stage, 1).await.remove(0);
    complete(&stage, &job.name_any()).await;
    let status = stage.until("report", "the end", |status| status.active.is_empty()).await;
    assert_eq!((status.last_runs[0].outcome, created(&stage)), (Outcome::Succeeded, 1), "{:?}", status.last_runs);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_waits_while_the_action_is_edited_is_stored_anew_before_it_is_made() {
    let stage = Stage::new(105).await;
    let (one, two) = (stage.replica("one"), stage.replica("two"));
    one.lead(10);
    stage.target.next(Duration::ZERO, BROKEN);
    let retry = json!({ "maxAttempts": 3, "initial": "10s", "max": "10s" });
    stage.create("report", json!({ "schedule": "0 0 * * *", "retry": retry })).await;
    stage.until("report", "a status", |status| !status.conditions.is_empty()).await;
    trigger(&stage, "1").await;
    stage.until("report", "the second attempt", |status| status.active.values().any(|run| run.attempt == 2)).await;
    stage.edit("report", json!({ "spec": { "jobTemplate": template(), "http": null } })).await;
    let job = until_jobs(&stage, 1).await.remove(0);
    let stored = stage.status("report").await;
    assert_eq!(stored.active.values().next().unwrap().action, Some(ActionKind::JobTemplate));
    one.vanish(&stage, "one").await;
    two.lead(20);
    stage.pass(Duration::from_secs(30)).await;
    complete(&stage, &job.name_any()).await;
    let status = stage.until("report", "the end", |status| status.active.is_empty()).await;
    assert_eq!((status.last_runs[0].outcome, status.last_runs[0].attempt), (Outcome::Succeeded, 2));
    assert_eq!((created(&stage), stage.target.seen().len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn the_jobs_of_triggers_are_tidied_away_though_no_slot_has_come_due_since() {
    let stage = Stage::new(106).await;
    let replica = stage.replica("one");
    replica.lead(10);
    stage.pass(Duration::from_mins(1)).await;
    create(&stage, json!({ "successfulJobsHistoryLimit": 0 })).await;
    for (value, takes) in [("a", 20), ("b", 1), ("c", 20), ("d", 1)] {
        trigger(&stage, value).await;
        stage.until("report", "a run", |status| status.active.len() == 1).await;
        stage.pass(Duration::from_secs(takes)).await;
        let all = jobs(&stage).list(&ListParams::default()).await.unwrap().items;
        let open = all.iter().find(|job| job.status.as_ref().is_none_or(|status| status.conditions.is_none())).unwrap();
        complete(&stage, &open.name_any()).await;
        stage.until("report", "its end", |status| status.active.is_empty()).await;
        until_jobs(&stage, 0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn pods_that_are_stopped_for_a_newer_slot_are_no_failure_of_their_job() {
    let stage = Stage::new(93).await;
    let replica = stage.replica("one");
    replica.lead(10);
    let spec = json!({ "interval": "10s", "concurrencyPolicy": "Replace", "jobTemplate": template() });
    stage.create("report", spec).await;
    let first = until_jobs(&stage, 1).await.remove(0).name_any();
    is_going(&stage, &first).await;
    let failed = json!({ "status": { "conditions": [{
        "type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "its pod was stopped",
    }] } });
    jobs(&stage).patch_status(&first, &PatchParams::default(), &Patch::Merge(failed)).await.unwrap();
    stage.pass(Duration::from_secs(3)).await;
    assert!(stage.status("report").await.last_runs.is_empty(), "its pods are still there");
    collect(&stage, &first).await;
    let status = stage.until("report", "the next run", |status| status.counts.ran == 2).await;
    assert_eq!((status.last_runs[0].outcome, status.consecutive_failures), (Outcome::Cancelled, 0));
}

#[tokio::test(start_paused = true)]
async fn a_run_that_was_begun_by_a_leader_before_is_not_cancelled_for_certain_when_nothing_is_seen_of_its_job() {
    let stage = Stage::new(94).await;
    let (one, two) = (stage.replica("one"), stage.replica("two"));
    one.lead(10);
    let spec = json!({ "interval": "10s", "concurrencyPolicy": "Replace", "jobTemplate": template() });
    stage.create("report", spec).await;
    let first = until_jobs(&stage, 1).await.remove(0).name_any();
    one.vanish(&stage, "one").await;
    jobs(&stage).delete(&first, &DeleteParams::background()).await.unwrap();
    stage.pass(Duration::from_secs(12)).await;
    two.lead(20);
    let status = stage.until("report", "the next run", |status| status.counts.ran == 2).await;
    assert_eq!(status.last_runs[0].outcome, Outcome::Indeterminate, "{:?}", status.last_runs);
}

#[tokio::test(start_paused = true)]
async fn a_creation_in_doubt_is_not_sent_again_when_a_newer_slot_waits() {
    let stage = Stage::new(95).await;
    let replica = stage.replica("one");
    replica.lead(10);
    let spec = json!({ "interval": "20s", "timeout": "5m", "concurrencyPolicy": "Replace", "jobTemplate": template() });
    stage.create("report", spec).await;
    stage.until("report", "a status", |status| !status.conditions.is_empty()).await;
    let creations = at_creations(&stage, Fault::DropRequest { hang: false });
    stage.until("report", "the intent", |status| status.counts.ran == 1).await;
    let status = stage.until("report", "its end", |status| !status.last_runs.is_empty()).await;
    assert_eq!(status.last_runs[0].outcome, Outcome::Indeterminate, "{:?}", status.last_runs);
    stage.lab.sandbox.faults().remove(creations);
    let second = until_jobs(&stage, 1).await.remove(0);
    assert_ne!(second.labels()["tenure.dev/run-id"], status.last_runs[0].id);
}

#[rstest]
#[case::refused(Fault::Refuse { code: 503, retry_after: None })]
#[case::hanging(Fault::DropRequest { hang: true })]
#[tokio::test(start_paused = true)]
async fn a_hand_over_does_not_wait_for_a_job_that_cannot_be_created(#[case] fault: Fault) {
    let stage = Stage::new(96).await;
    let replica = stage.replica("one");
    replica.lead(10);
    create(&stage, json!({ "timeout": "10m" })).await;
    let creations = at_creations(&stage, fault);
    trigger(&stage, "1").await;
    stage.until("report", "the intent", |status| status.active.len() == 1).await;
    stage.pass(Duration::from_secs(5)).await;
    let before = replica.clock.boot();
    replica.handle.drained(before + Duration::from_secs(20)).await;
    let took = replica.clock.boot().saturating_since(before);
    assert!(took < Duration::from_secs(3), "the hand-over took {took:?}");
    replica.lose();
    stage.lab.sandbox.faults().remove(creations);
    let two = stage.replica("two");
    two.lead(20);
    let job = until_jobs(&stage, 1).await.remove(0);
    complete(&stage, &job.name_any()).await;
    let status = stage.until("report", "the end", |status| status.active.is_empty()).await;
    assert_eq!(status.last_runs[0].outcome, Outcome::Succeeded);
}

/// The Job that was created goes on or is gone, and the spec is not valid any more when the next leader comes.
#[rstest]
#[case::it_completes(true, "AtLeastOnce", Outcome::Succeeded, 1)]
#[case::it_is_gone(false, "AtLeastOnce", Outcome::Interrupted, 2)]
#[case::it_is_gone_and_at_most_once(false, "AtMostOnce", Outcome::Indeterminate, 1)]
#[tokio::test(start_paused = true)]
async fn a_job_is_followed_though_its_spec_is_not_valid_any_more(
    #[case] completes: bool,
    #[case] guarantee: &str,
    #[case] expected: Outcome,
    #[case] jobs_in_all: usize,
) {
    let stage = Stage::new(97).await;
    let (one, two) = (stage.replica("one"), stage.replica("two"));
    one.lead(10);
    create(&stage, json!({ "guarantee": guarantee })).await;
    trigger(&stage, "1").await;
    let job = until_jobs(&stage, 1).await.remove(0);
    stage.edit("report", json!({ "spec": { "timeZone": "Nowhere/Else" } })).await;
    let invalid = |status: &PeriodicJobStatus| ready(status) == (ConditionStatus::False, "InvalidSchedule");
    stage.until("report", "that it is not valid", invalid).await;
    one.vanish(&stage, "one").await;
    if completes {
        complete(&stage, &job.name_any()).await;
    } else {
        jobs(&stage).delete(&job.name_any(), &DeleteParams::background()).await.unwrap();
    }
    two.lead(20);
    let status = stage.until("report", "the end", |status| !status.last_runs.is_empty()).await;
    assert_eq!(status.last_runs[0].outcome, expected, "{:?}", status.last_runs);
    stage.pass(Duration::from_secs(30)).await;
    assert_eq!(created(&stage), 1, "there is nothing to create it by");
    stage.edit("report", json!({ "spec": { "timeZone": "UTC" } })).await;
    stage.until("report", "that it is valid", |status| ready(status).0 == ConditionStatus::True).await;
    stage.pass(Duration::from_secs(30)).await;
    assert_eq!(created(&stage), jobs_in_all);
}

#[rstest]
#[case::at_least_once("AtLeastOnce")]
#[case::at_most_once("AtMostOnce")]
#[tokio::test(start_paused = true)]
async fn a_job_is_followed_though_its_spec_has_another_action_by_now(#[case] guarantee: &str) {
    let stage = Stage::new(102).await;
    let (one, two) = (stage.replica("one"), stage.replica("two"));
    one.lead(10);
    stage.create("report", json!({ "interval": "10s", "guarantee": guarantee, "jobTemplate": template() })).await;
    let job = until_jobs(&stage, 1).await.remove(0);
    stage.edit("report", json!({ "spec": { "jobTemplate": null, "http": { "url": "http://example.com/" } } })).await;
    one.vanish(&stage, "one").await;
    two.lead(20);
    stage.pass(Duration::from_secs(30)).await;
    assert_eq!(stage.target.seen(), [], "nothing is done beside it");
    complete(&stage, &job.name_any()).await;
    let status = stage.until("report", "the end", |status| !status.last_runs.is_empty()).await;
    let first = status.last_runs.last().unwrap();
    assert_eq!((first.outcome, first.attempt), (Outcome::Succeeded, 1), "{first:?}");
    assert_eq!(first.id, job.labels()["tenure.dev/run-id"]);
    let request = stage.until_seen(1).await.remove(0);
    assert_ne!(request.run_id, first.id, "the next slot has the new action");
}

#[tokio::test(start_paused = true)]
async fn a_trial_without_an_answer_is_told_at_the_object_and_asked_again() {
    let stage = Stage::new(98).await;
    let replica = stage.replica("one");
    let creations = at_creations(&stage, Fault::Refuse { code: 500, retry_after: None });
    replica.lead(10);
    stage.create("report", json!({ "interval": "5s", "jobTemplate": template() })).await;
    let unknown = |status: &PeriodicJobStatus| ready(status) == (ConditionStatus::Unknown, "JobTemplateUntried");
    stage.until("report", "that nobody knows", unknown).await;
    stage.pass(Duration::from_mins(1)).await;
    assert!(stage.writes("report") <= 2, "it is told once: {}", stage.writes("report"));
    stage.lab.sandbox.faults().remove(creations);
    until_jobs(&stage, 1).await;
    assert_eq!(ready(&stage.status("report").await), (ConditionStatus::True, "Scheduled"));

    let creations = at_creations(&stage, Fault::Refuse { code: 500, retry_after: None });
    stage.edit("report", json!({ "spec": { "suspend": true } })).await;
    stage.until("report", "that it is suspended", |status| ready(status).1 == "Suspended").await;
    let mut other = template();
    other["spec"]["backoffLimit"] = json!(1);
    stage.edit("report", json!({ "spec": { "jobTemplate": other } })).await;
    stage.until("report", "that nobody knows of the other template", unknown).await;
    stage.lab.sandbox.faults().remove(creations);
    stage.until("report", "that it can be created", |status| ready(status).1 == "Suspended").await;
}

#[tokio::test(start_paused = true)]
async fn a_webhook_that_hangs_for_many_templates_does_not_hold_up_other_jobs() {
    let stage = Stage::new(99).await;
    let replica = stage.replica("one");
    at_creations(&stage, Fault::DropRequest { hang: true });
    replica.lead(10);
    for index in 0..80 {
        let spec = json!({ "schedule": "0 0 * * *", "jobTemplate": template() });
        stage.create(&format!("report-{index}"), spec).await;
    }
    stage.pass(Duration::from_secs(1)).await;
    stage.create("tick", json!({ "interval": "1s" })).await;
    stage.pass(Duration::from_secs(10)).await;
    assert!(stage.status("tick").await.counts.ran >= 8, "{:?}", stage.status("tick").await.counts);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_does_not_make_room_is_told_once_at_the_object() {
    let stage = Stage::new(100).await;
    let replica = stage.replica("one");
    replica.lead(10);
    let spec = json!({ "interval": "10s", "concurrencyPolicy": "Replace", "jobTemplate": template() });
    stage.create("report", spec).await;
    let first = until_jobs(&stage, 1).await.remove(0).name_any();
    is_going(&stage, &first).await;
    stage.pass(Duration::from_secs(50)).await;
    let told = || replica.listener.reasons().into_iter().filter(|reason| *reason == "ReplaceWaits").count();
    assert_eq!(told(), 0);
    stage.pass(Duration::from_mins(5)).await;
    assert_eq!(told(), 1, "{:?}", replica.listener.reasons());
    collect(&stage, &first).await;
    stage.until("report", "the next run", |status| status.counts.ran == 2).await;
}

#[tokio::test(start_paused = true)]
async fn the_watch_of_jobs_closes_when_nobody_waits_however_many_jobs_others_have() {
    let stage = Stage::new(101).await;
    let (one, two) = (stage.replica("one"), stage.replica("two"));
    one.lead(10);
    create(&stage, json!({})).await;
    trigger(&stage, "1").await;
    let job = until_jobs(&stage, 1).await.remove(0).name_any();
    let asked = |client: &str| -> u64 {
        let requests = stage.lab.sandbox.requests();
        let of = |count: &&sandbox::RequestCount| {
            count.client == client && count.resource == "jobs" && matches!(count.verb, "list" | "watch")
        };
        requests.iter().filter(of).map(|count| count.count).sum()
    };
    assert!(asked("one") > 0);
    one.lose();
    two.lead(20);
    let mut round = 0;
    let mut ten_minutes = async || {
        for _ in 0..12 {
            stage.pass(Duration::from_secs(50)).await;
            round += 1;
            let label = json!({ "metadata": { "labels": { "round": round.to_string() } } });
            jobs(&stage).patch(&job, &PatchParams::default(), &Patch::Merge(label)).await.unwrap();
        }
        (asked("one"), asked("two"))
    };
    let first = ten_minutes().await;
    let second = ten_minutes().await;
    assert_eq!(first.0, second.0, "it has closed");
    assert!(first.1 < second.1, "a watch is opened anew every few minutes");
}
