//! `jobTemplate`: one Job per slot, whatever becomes of the leader that creates it and of those after it.

use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use rstest::rstest;
use sandbox::{Fault, FaultRule, Verb};
use serde_json::{Value, json};
use tenure::{
    api::{ConditionStatus, ConditionType, Outcome, PeriodicJobStatus},
    clock::Clock,
};

use super::stage::{SOON, Stage};
use crate::support::lab::NAMESPACE;

pub fn template() -> Value {
    json!({ "spec": { "backoffLimit": 0, "template": { "spec": {
        "restartPolicy": "Never", "containers": [{ "name": "main", "image": "busybox" }],
    } } } })
}

pub fn jobs(stage: &Stage) -> Api<Job> {
    Api::namespaced(stage.lab.client(), NAMESPACE)
}

/// Waits until there are so many Jobs.
pub async fn until_jobs(stage: &Stage, count: usize) -> Vec<Job> {
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        let found = jobs(stage).list(&ListParams::default()).await.unwrap().items;
        if found.len() == count {
            return found;
        }
        let names: Vec<_> = found.iter().map(ResourceExt::name_any).collect();
        assert!(tokio::time::Instant::now() < deadline, "not {count} Jobs within {SOON:?}: {names:?}");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

async fn conclude(stage: &Stage, name: &str, condition: Value) {
    let change = json!({ "status": { "conditions": [condition] } });
    jobs(stage).patch_status(name, &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
}

/// The Job has completed, as its controller would say.
pub async fn complete(stage: &Stage, name: &str) {
    conclude(stage, name, json!({ "type": "Complete", "status": "True" })).await;
}

async fn fail(stage: &Stage, name: &str) {
    let condition = json!({ "type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "no" });
    conclude(stage, name, condition).await;
}

/// How many Jobs were ever created.
pub fn created(stage: &Stage) -> usize {
    let history = stage.lab.sandbox.history();
    history.iter().filter(|change| change.resource == "jobs.batch" && change.verb == Verb::Create).count()
}

fn condition(status: &PeriodicJobStatus, kind: ConditionType) -> (ConditionStatus, &str, &str) {
    let condition = status.conditions.iter().find(|condition| condition.kind == kind).unwrap();
    (condition.status, condition.reason.as_str(), condition.message.as_str())
}

/// Lets a fault befall the next creation of a Job by `client`.
fn fault(stage: &Stage, client: &str, fault: Fault) {
    stage.lab.sandbox.faults().add(FaultRule::new(fault).client(client).verb(Verb::Create).resource("jobs").times(1));
}

/// A job whose only slot for a day is run by a trigger.
async fn triggered(stage: &Stage, name: &str, fields: Value) {
    let mut spec = json!({ "schedule": "0 0 * * *", "jobTemplate": template() });
    spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    stage.create(name, spec).await;
    stage.until(name, "a status", |status| !status.conditions.is_empty()).await;
    stage.edit(name, json!({ "metadata": { "annotations": { "tenure.dev/trigger": "1" } } })).await;
}

#[tokio::test(start_paused = true)]
async fn each_slot_has_one_job_and_its_end_is_the_end_of_the_run() {
    let stage = Stage::new(61).await;
    let replica = stage.replica("one");
    replica.lead(10);
    let owner = stage.create("report", json!({ "interval": "10s", "jobTemplate": template() })).await;
    let first = until_jobs(&stage, 1).await.remove(0);
    let status = stage.status("report").await;
    let (run_id, run) = status.active.first_key_value().unwrap();
    assert_eq!(first.labels()["tenure.dev/run-id"], *run_id);
    assert_eq!(first.labels()["tenure.dev/token"], "10");
    assert_eq!(first.annotations()["tenure.dev/scheduled-at"], run.slot.to_string());
    assert_eq!(first.owner_references()[0].uid, owner.metadata.uid.unwrap());
    stage.pass(Duration::from_secs(25)).await;
    assert_eq!(created(&stage), 1, "the slots that were due meanwhile are overlaps");

    complete(&stage, &first.name_any()).await;
    let status = stage.until("report", "the end", |status| !status.last_runs.is_empty()).await;
    assert_eq!((status.last_runs[0].id.as_str(), status.last_runs[0].outcome), (run_id.as_str(), Outcome::Succeeded));
    let both = until_jobs(&stage, 2).await;
    let second = both.iter().find(|job| job.name_any() != first.name_any()).unwrap();
    fail(&stage, &second.name_any()).await;
    let status = stage.until("report", "the failure", |status| status.consecutive_failures == 1).await;
    assert_eq!(status.last_runs[0].outcome, Outcome::Failed);
    assert!(status.last_runs[0].message.contains("BackoffLimitExceeded"), "{:?}", status.last_runs[0]);
    Stage::assert_sum(&status, Duration::from_secs(10));
}

#[rstest]
#[case::request_lost(Fault::DropRequest { hang: true })]
#[case::answer_lost(Fault::DropAnswer { hang: true })]
#[case::connection_lost(Fault::DropAnswer { hang: false })]
#[case::server_error(Fault::Refuse { code: 503, retry_after: None })]
#[case::too_many(Fault::Refuse { code: 429, retry_after: None })]
#[tokio::test(start_paused = true)]
async fn a_creation_in_doubt_is_settled_by_its_name(#[case] what: Fault) {
    let stage = Stage::new(62).await;
    let replica = stage.replica("one");
    replica.lead(10);
    stage.create("report", json!({ "schedule": "0 0 * * *", "jobTemplate": template() })).await;
    stage.until("report", "a status", |status| !status.conditions.is_empty()).await;
    fault(&stage, "one", what);
    stage.edit("report", json!({ "metadata": { "annotations": { "tenure.dev/trigger": "1" } } })).await;
    let job = until_jobs(&stage, 1).await.remove(0);
    complete(&stage, &job.name_any()).await;
    let status = stage.until("report", "the end", |status| !status.last_runs.is_empty()).await;
    assert_eq!((status.last_runs[0].outcome, status.last_runs[0].attempt), (Outcome::Succeeded, 1));
    assert_eq!(created(&stage), 1);
}

#[rstest]
#[case::at_least_once("AtLeastOnce")]
#[case::at_most_once("AtMostOnce")]
#[tokio::test(start_paused = true)]
async fn a_leader_that_vanishes_before_its_creation_leaves_a_job_or_a_doubt_by_the_guarantee(#[case] guarantee: &str) {
    let stage = Stage::new(63).await;
    let (one, two) = (stage.replica("one"), stage.replica("two"));
    one.lead(10);
    stage.create("report", json!({ "schedule": "0 0 * * *", "guarantee": guarantee, "jobTemplate": template() })).await;
    stage.until("report", "a status", |status| !status.conditions.is_empty()).await;
    fault(&stage, "one", Fault::DropRequest { hang: true });
    stage.edit("report", json!({ "metadata": { "annotations": { "tenure.dev/trigger": "1" } } })).await;
    stage.until("report", "the intent", |status| status.active.len() == 1).await;
    one.vanish(&stage, "one").await;
    two.lead(20);
    if guarantee == "AtLeastOnce" {
        let job = until_jobs(&stage, 1).await.remove(0);
        assert_eq!(job.labels()["tenure.dev/token"], "20");
        complete(&stage, &job.name_any()).await;
    }
    let status = stage.until("report", "the end", |status| status.active.is_empty()).await;
    let expected = if guarantee == "AtLeastOnce" { Outcome::Succeeded } else { Outcome::Indeterminate };
    assert_eq!(status.last_runs[0].outcome, expected, "{:?}", status.last_runs);
    assert_eq!(created(&stage), usize::from(guarantee == "AtLeastOnce"));
}

#[rstest]
#[case::at_least_once("AtLeastOnce")]
#[case::at_most_once("AtMostOnce")]
#[tokio::test(start_paused = true)]
async fn the_job_of_a_leader_that_vanished_after_its_creation_goes_on_and_is_followed_by_the_next(
    #[case] guarantee: &str,
) {
    let stage = Stage::new(64).await;
    let (one, two) = (stage.replica("one"), stage.replica("two"));
    one.lead(10);
    stage.create("report", json!({ "schedule": "0 0 * * *", "guarantee": guarantee, "jobTemplate": template() })).await;
    stage.until("report", "a status", |status| !status.conditions.is_empty()).await;
    fault(&stage, "one", Fault::DropAnswer { hang: true });
    stage.edit("report", json!({ "metadata": { "annotations": { "tenure.dev/trigger": "1" } } })).await;
    let job = until_jobs(&stage, 1).await.remove(0);
    one.vanish(&stage, "one").await;
    two.lead(20);
    let status = stage.until("report", "the taking over", |status| {
        status.active.values().any(|run| run.taken_over && run.term.token == 20)
    });
    assert_eq!(status.await.active.values().next().unwrap().attempt, 1);
    stage.pass(Duration::from_secs(30)).await;
    complete(&stage, &job.name_any()).await;
    let status = stage.until("report", "the end", |status| status.active.is_empty()).await;
    assert_eq!((status.last_runs[0].outcome, status.last_runs[0].attempt), (Outcome::Succeeded, 1));
    assert_eq!((created(&stage), status.last_runs.len()), (1, 1), "neither doubled nor interrupted");
}

#[tokio::test(start_paused = true)]
async fn a_job_goes_on_through_any_number_of_planned_hand_overs_and_none_waits_for_it() {
    let stage = Stage::new(65).await;
    let mut leader = stage.replica("zero");
    leader.lead(10);
    triggered(&stage, "report", json!({})).await;
    let job = until_jobs(&stage, 1).await.remove(0);
    for (name, token) in [("one", 20), ("two", 30), ("three", 40), ("four", 50), ("five", 60)] {
        let before = leader.clock.boot();
        leader.handle.drained(before + Duration::from_secs(20)).await;
        let took = leader.clock.boot().saturating_since(before);
        assert!(took < Duration::from_secs(1), "the hand-over took {took:?}");
        leader.lose();
        leader = stage.replica(name);
        leader.lead(token);
        let taken = |status: &PeriodicJobStatus| status.active.values().any(|run| run.term.token == token);
        let status = stage.until("report", "the taking over", taken).await;
        assert!(status.last_runs.is_empty(), "nothing was interrupted: {:?}", status.last_runs);
    }
    complete(&stage, &job.name_any()).await;
    let status = stage.until("report", "the end", |status| status.active.is_empty()).await;
    assert_eq!((status.last_runs[0].outcome, status.last_runs[0].attempt), (Outcome::Succeeded, 1));
    assert_eq!(created(&stage), 1);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_ended_while_nobody_led_is_found_by_the_next_leader() {
    let stage = Stage::new(66).await;
    let (one, two) = (stage.replica("one"), stage.replica("two"));
    one.lead(10);
    triggered(&stage, "report", json!({ "guarantee": "AtMostOnce" })).await;
    let job = until_jobs(&stage, 1).await.remove(0);
    one.vanish(&stage, "one").await;
    fail(&stage, &job.name_any()).await;
    two.lead(20);
    let status = stage.until("report", "the end", |status| status.active.is_empty()).await;
    assert_eq!(status.last_runs[0].outcome, Outcome::Failed);
}

#[tokio::test(start_paused = true)]
async fn a_job_of_somebody_else_is_not_adopted_and_the_run_says_so() {
    let stage = Stage::new(67).await;
    let replica = stage.replica("one");
    replica.lead(10);
    stage.create("report", json!({ "schedule": "0 0 * * *", "jobTemplate": template() })).await;
    stage.until("report", "a status", |status| !status.conditions.is_empty()).await;
    let hold = stage.lab.sandbox.faults().new_hold();
    fault(&stage, "one", Fault::HoldRequest(hold.id()));
    stage.edit("report", json!({ "metadata": { "annotations": { "tenure.dev/trigger": "1" } } })).await;
    hold.wait_reached().await;
    let status = stage.status("report").await;
    let name = tenure::action::job_name("report", status.active.first_key_value().unwrap().0);
    let mut taken = template();
    taken["metadata"] = json!({ "name": name });
    jobs(&stage).create(&PostParams::default(), &serde_json::from_value(taken).unwrap()).await.unwrap();
    hold.release();
    let status = stage.until("report", "the end", |status| !status.last_runs.is_empty()).await;
    let (holds, reason, message) = condition(&status, ConditionType::LastRunSucceeded);
    assert_eq!((holds, reason), (ConditionStatus::False, "NameTaken"), "{message}");
    assert_eq!(status.last_runs[0].outcome, Outcome::Failed);
    complete(&stage, &name).await;
    stage.pass(Duration::from_secs(10)).await;
    assert_eq!(jobs(&stage).list(&ListParams::default()).await.unwrap().items.len(), 1, "it is left alone");
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_deleted_from_outside_leaves_its_run_in_doubt() {
    let stage = Stage::new(68).await;
    let replica = stage.replica("one");
    replica.lead(10);
    triggered(&stage, "report", json!({})).await;
    let job = until_jobs(&stage, 1).await.remove(0);
    jobs(&stage).delete(&job.name_any(), &DeleteParams::background()).await.unwrap();
    let status = stage.until("report", "the end", |status| !status.last_runs.is_empty()).await;
    assert_eq!(status.last_runs[0].outcome, Outcome::Indeterminate);
    assert_eq!(condition(&status, ConditionType::LastRunSucceeded).1, "JobGone");
    stage.pass(Duration::from_mins(1)).await;
    assert_eq!(created(&stage), 1, "it is not created again");
}

#[tokio::test(start_paused = true)]
async fn ended_jobs_are_kept_as_the_history_limits_say() {
    let stage = Stage::new(69).await;
    let replica = stage.replica("one");
    replica.lead(10);
    let limits = json!({
        "interval": "5s", "successfulJobsHistoryLimit": 2, "failedJobsHistoryLimit": 1, "jobTemplate": template(),
    });
    stage.create("report", limits).await;
    for round in 0..6 {
        let is_open = |job: &Job| job.status.as_ref().and_then(|status| status.conditions.as_ref()).is_none();
        let open = loop {
            let all = jobs(&stage).list(&ListParams::default()).await.unwrap().items;
            match all.into_iter().find(is_open) {
                Some(open) => break open.name_any(),
                None => stage.pass(Duration::from_millis(50)).await,
            }
        };
        if round % 2 == 0 {
            complete(&stage, &open).await;
        } else {
            fail(&stage, &open).await;
        }
        stage.until("report", "the end", |status| status.active.is_empty()).await;
    }
    stage.edit("report", json!({ "spec": { "suspend": true } })).await;
    stage.until("report", "nothing active", |status| status.active.is_empty()).await;
    let left = until_jobs(&stage, 3).await;
    let completed =
        |job: &&Job| job.status.as_ref().and_then(|status| status.conditions.as_ref()).unwrap()[0].type_ == "Complete";
    assert_eq!(left.iter().filter(completed).count(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_the_api_server_would_refuse_is_not_planned_and_its_words_are_the_ready_message() {
    let stage = Stage::new(70).await;
    let replica = stage.replica("one");
    replica.lead(10);
    let mut wrong = template();
    wrong["spec"]["template"]["spec"]["restartPolicy"] = json!("Always");
    stage.create("report", json!({ "interval": "1s", "jobTemplate": wrong })).await;
    let status = stage.until("report", "a condition", |status| !status.conditions.is_empty()).await;
    let (holds, reason, message) = condition(&status, ConditionType::Ready);
    assert_eq!((holds, reason), (ConditionStatus::False, "InvalidJobTemplate"));
    assert!(message.ends_with(r#"Required value: valid values: "OnFailure", "Never""#), "{message}");
    stage.pass(Duration::from_secs(90)).await;
    assert_eq!((created(&stage), stage.status("report").await.counts.slots()), (0, 0));
    stage.edit("report", json!({ "spec": { "jobTemplate": template() } })).await;
    until_jobs(&stage, 1).await;
    assert_eq!(condition(&stage.status("report").await, ConditionType::Ready).0, ConditionStatus::True);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_passes_is_asked_about_again_and_nothing_from_before_is_run() {
    let stage = Stage::new(71).await;
    let rule = FaultRule::new(Fault::Refuse { code: 403, retry_after: None }).verb(Verb::Create).resource("jobs");
    let rule = stage.lab.sandbox.faults().add(rule);
    let replica = stage.replica("one");
    replica.lead(10);
    let spec = json!({ "interval": "1s", "concurrencyPolicy": "Allow", "jobTemplate": template() });
    stage.create("report", spec).await;
    let status = stage.until("report", "a condition", |status| !status.conditions.is_empty()).await;
    assert_eq!(condition(&status, ConditionType::Ready).0, ConditionStatus::False);
    stage.pass(Duration::from_secs(10)).await;
    stage.lab.sandbox.faults().remove(rule);
    let status = stage.until("report", "a run", |status| status.counts.ran >= 1).await;
    assert_eq!(condition(&status, ConditionType::Ready).0, ConditionStatus::True);
    assert!(status.counts.ran <= 2 && status.counts.coalesced == 0, "{:?}", status.counts);
}

#[tokio::test(start_paused = true)]
async fn a_spec_is_tried_out_once_for_each_generation_whoever_leads() {
    let stage = Stage::new(72).await;
    let one = stage.replica("one");
    one.lead(10);
    stage.create("report", json!({ "schedule": "0 0 * * *", "jobTemplate": template() })).await;
    stage.until("report", "a status", |status| !status.conditions.is_empty()).await;
    one.lose();
    let two = stage.replica("two");
    two.lead(20);
    stage.edit("report", json!({ "metadata": { "annotations": { "tenure.dev/trigger": "1" } } })).await;
    until_jobs(&stage, 1).await;
    let requests = stage.lab.sandbox.requests();
    let creations = |client: &str| -> u64 {
        let of = |count: &&sandbox::RequestCount| {
            count.client == client && count.verb == "create" && count.resource == "jobs"
        };
        requests.iter().filter(of).map(|count| count.count).sum()
    };
    assert_eq!((creations("one"), creations("two")), (1, 1), "one was tried, one was made");
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_cronjobs_spec_pastes_in(#[files("examples/manifests/from-cronjob/*.yaml")] manifest: std::path::PathBuf) {
    let stage = Stage::new(74).await;
    let replica = stage.replica("one");
    replica.lead(10);
    let object: Value = serde_saphyr::from_str(&std::fs::read_to_string(manifest).unwrap()).unwrap();
    let name = object["metadata"]["name"].as_str().unwrap();
    let path = format!("/apis/tenure.dev/v1alpha1/namespaces/{NAMESPACE}/periodicjobs?fieldValidation=Strict");
    let request = http::Request::post(path).header("content-type", "application/json");
    let request = request.body(serde_json::to_vec(&object).unwrap()).unwrap();
    stage.lab.client().request::<Value>(request).await.unwrap();
    stage.edit(name, json!({ "metadata": { "annotations": { "tenure.dev/trigger": "1" } } })).await;
    let job = until_jobs(&stage, 1).await.remove(0);
    assert_eq!(condition(&stage.status(name).await, ConditionType::Ready).0, ConditionStatus::True);
    let pod = job.spec.unwrap().template.spec.unwrap();
    let containers = pod.containers.iter().chain(pod.init_containers.iter().flatten());
    for container in containers {
        let names: Vec<_> = container.env.iter().flatten().map(|variable| variable.name.as_str()).collect();
        assert!(names.starts_with(&["RUN_ID", "RUN_SLOT", "RUN_ATTEMPT", "RUN_TOKEN"]), "{names:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn at_most_once_with_pods_that_are_tried_again_is_not_ready() {
    let stage = Stage::new(73).await;
    let replica = stage.replica("one");
    replica.lead(10);
    let mut often = template();
    often["spec"]["backoffLimit"] = json!(6);
    stage.create("report", json!({ "interval": "1s", "guarantee": "AtMostOnce", "jobTemplate": often })).await;
    let status = stage.until("report", "a condition", |status| !status.conditions.is_empty()).await;
    let (holds, reason, message) = condition(&status, ConditionType::Ready);
    assert_eq!((holds, reason), (ConditionStatus::False, "InvalidAction"));
    assert!(message.contains("spec.jobTemplate.spec.backoffLimit: expected 0"), "{message}");
    stage.pass(Duration::from_secs(5)).await;
    assert_eq!(created(&stage), 0);
}
