//! The name, the object that is created, and what a Job's conditions say.

use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rstest::rstest;

use super::*;
use crate::{
    action::{ActionSpec, JobRef, Wishes},
    clock::{RATE_ONE, SharedClock, SimulatedClock},
    election::testing,
};

const RUN: &str = "0123456789abcdef0123456789abcdef";
const UID: &str = "3f0c";

fn template(value: Value) -> JobTemplate {
    serde_json::from_value(value).expect("a template")
}

fn usual() -> Value {
    json!({
        "metadata": { "labels": { "team": "a", "tenure.dev/token": "forged" }, "annotations": { "note": "b" } },
        "spec": {
            "backoffLimit": 0,
            "futureField": true,
            "template": { "spec": {
                "restartPolicy": "Never",
                "initContainers": [{ "name": "first", "image": "busybox" }],
                "containers": [{
                    "name": "main", "image": "busybox",
                    "env": [{ "name": "OTHER", "value": "$(RUN_ID)" }, { "name": "RUN_ID", "value": "forged" }],
                }],
            } },
        },
    })
}

fn attempt(active_deadline: Option<Duration>) -> Attempt {
    let clock: SharedClock = SimulatedClock::new(jiff::Timestamp::UNIX_EPOCH, RATE_ONE, SignedDuration::ZERO);
    Attempt {
        run_id: RUN.to_owned(),
        job: JobRef { namespace: "team".to_owned(), name: "report".to_owned() },
        uid: UID.to_owned(),
        slot: "2026-01-02T03:04:05.2Z".parse().expect("a timestamp"),
        attempt: 1,
        guard: testing::term(&clock, 42, Duration::from_hours(1)).guard(),
        action: ActionSpec::Job(template(usual())),
        timeout: Duration::from_secs(30),
        active_deadline,
        guarantee: Guarantee::AtLeastOnce,
        begun_before: false,
        wishes: Wishes::default(),
    }
}

#[rstest]
#[case("report", "report-0123456789abcdef")]
#[case("a.report", "a-report-0123456789abcdef")]
fn a_job_is_named_after_its_object_and_its_run(#[case] name: &str, #[case] expected: &str) {
    assert_eq!(job_name(name, RUN), expected);
}

#[test]
fn a_name_fits_into_a_label_of_its_pods_however_long_the_objects_is() {
    for length in 1..=253 {
        for letter in ["x", "x."] {
            let name: String = letter.repeat(length).chars().take(length).collect();
            let job = job_name(&name, RUN);
            assert!(job.len() <= NAME_MAX, "{job}");
            assert!(!job.contains("--") && !job.contains('.') && !job.starts_with('-'), "{job}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_job_says_which_run_it_is_and_who_owns_it() {
    let job = build(&attempt(None), &template(usual()), "report-0123456789abcdef");
    let labels = json!({
        "team": "a", "tenure.dev/periodicjob-uid": UID, "tenure.dev/run-id": RUN, "tenure.dev/token": "42",
        "tenure.dev/slot": "20260102T030405.200Z", "tenure.dev/attempt": "1",
    });
    assert_eq!(job["metadata"]["labels"], labels);
    let annotations = json!({ "note": "b", "tenure.dev/scheduled-at": "2026-01-02T03:04:05.200Z" });
    assert_eq!(job["metadata"]["annotations"], annotations);
    let owner = json!({
        "apiVersion": "tenure.dev/v1alpha1", "kind": "PeriodicJob", "name": "report", "uid": UID, "controller": true,
    });
    assert_eq!(job["metadata"]["ownerReferences"], json!([owner]));
    assert_eq!(job["spec"]["futureField"], true, "what this version does not know is passed on");
    assert!(job["spec"]["activeDeadlineSeconds"].is_null());
}

#[tokio::test(start_paused = true)]
async fn every_container_finds_the_run_in_its_environment_before_its_own_variables() {
    let job = build(&attempt(None), &template(usual()), "a");
    let names = |list: &str| -> Vec<(String, String)> {
        let env = job["spec"]["template"]["spec"][list][0]["env"].as_array().expect("an environment");
        let text = |variable: &Value, field: &str| variable[field].as_str().unwrap_or_default().to_owned();
        env.iter().map(|variable| (text(variable, "name"), text(variable, "value"))).collect()
    };
    let own = [("RUN_ID", RUN), ("RUN_SLOT", "2026-01-02T03:04:05.200Z"), ("RUN_ATTEMPT", "1"), ("RUN_TOKEN", "42")];
    let mut expected: Vec<_> = own.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    assert_eq!(names("initContainers"), expected);
    expected.push(("OTHER".to_owned(), "$(RUN_ID)".to_owned()));
    assert_eq!(names("containers"), expected);
}

#[tokio::test(start_paused = true)]
async fn the_shorter_of_two_deadlines_holds() {
    for (given, expected) in [(None, 60), (Some(30), 30), (Some(600), 60)] {
        let mut written = usual();
        if let Some(given) = given {
            written["spec"]["activeDeadlineSeconds"] = json!(given);
        }
        let job = build(&attempt(Some(Duration::from_mins(1))), &template(written), "a");
        assert_eq!(job["spec"]["activeDeadlineSeconds"], expected);
    }
}

#[test]
fn at_most_once_needs_pods_that_are_not_tried_again() {
    assert_eq!(check(&template(usual()), Guarantee::AtMostOnce), Ok(()));
    let mut often = usual();
    often["spec"]["backoffLimit"] = json!(6);
    let mut unset = usual();
    unset["spec"].as_object_mut().expect("a spec").remove("backoffLimit");
    let mut restarted = usual();
    restarted["spec"]["template"]["spec"]["restartPolicy"] = json!("OnFailure");
    for wrong in [often, unset, restarted] {
        assert!(matches!(
            check(&template(wrong.clone()), Guarantee::AtMostOnce),
            Err(TemplateError::TriesAgain { .. })
        ));
        assert_eq!(check(&template(wrong), Guarantee::AtLeastOnce), Ok(()));
    }
    assert_eq!(check(&template(json!({})), Guarantee::AtLeastOnce), Err(TemplateError::NoSpec));
}

fn object(owner: &str, run: &str, conditions: &Value) -> DynamicObject {
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {
            "name": format!("job-{run}"), "labels": { RUN_ID_LABEL: run, SLOT_LABEL: format!("2026010{run}T000000.000Z") },
            "ownerReferences":
                [{ "apiVersion": "v1", "kind": "PeriodicJob", "name": "x", "uid": owner, "controller": true }],
        },
        "status": { "conditions": conditions },
    });
    serde_json::from_value(job).expect("an object")
}

#[test]
fn a_job_is_adopted_only_from_this_very_object_and_run() {
    let none = json!([]);
    assert_eq!(is_ours(&object(UID, RUN, &none), UID, RUN), Ok(()));
    for other in [object("another", RUN, &none), object(UID, "another", &none)] {
        let message = is_ours(&other, UID, RUN).expect_err("it is somebody else's");
        assert!(message.starts_with("NameTaken: "), "{message}");
    }
    let mut nobodys = object(UID, RUN, &none);
    nobodys.metadata.owner_references = None;
    assert!(is_ours(&nobodys, UID, RUN).is_err());
}

#[rstest]
#[case::running(json!([]), None)]
#[case::criteria_met_and_pods_still_there(json!([{ "type": "SuccessCriteriaMet", "status": "True" }]), None)]
#[case::about_to_fail(json!([{ "type": "FailureTarget", "status": "True" }]), None)]
#[case::not_complete(json!([{ "type": "Complete", "status": "False" }]), None)]
#[case::complete(json!([{ "type": "Complete", "status": "True" }]), Some(EndKind::JobSucceeded))]
#[case::failed(json!([{ "type": "Failed", "status": "True", "reason": "BackoffLimitExceeded" }]), Some(EndKind::JobFailed))]
#[case::out_of_time(json!([{ "type": "Failed", "status": "True", "reason": "DeadlineExceeded" }]), Some(EndKind::JobTimedOut))]
fn a_job_has_ended_when_its_pods_have(#[case] conditions: Value, #[case] expected: Option<EndKind>) {
    assert_eq!(verdict(&object(UID, RUN, &conditions)).map(|verdict| verdict.kind), expected);
}

#[test]
fn of_the_jobs_that_have_ended_the_newest_stay() {
    let complete = json!([{ "type": "Complete", "status": "True" }]);
    let failed = json!([{ "type": "Failed", "status": "True" }]);
    let jobs = [
        object(UID, "1", &complete),
        object(UID, "4", &complete),
        object(UID, "2", &failed),
        object(UID, "3", &complete),
        object(UID, "5", &failed),
        object(UID, "6", &json!([])),
        object("another", "0", &complete),
    ];
    let names = |successful, failed| names(&jobs, &tidy(successful, failed));
    assert_eq!(names(2, 1), ["job-2", "job-1"]);
    assert_eq!(names(0, 2), ["job-4", "job-3", "job-1"]);
    assert!(names(3, 2).is_empty());
}

#[test]
fn the_job_of_a_run_whose_end_is_not_recorded_stays_and_so_does_one_of_a_later_slot_or_of_somebody_else() {
    let complete = json!([{ "type": "Complete", "status": "True" }]);
    let mut jobs = ["1", "2", "3"].map(|run| object(UID, run, &complete));
    assert_eq!(names(&jobs, &tidy(0, 0)), ["job-3", "job-2", "job-1"]);
    let open = Tidy { open: ["2".to_owned()].into(), ..tidy(0, 0) };
    assert_eq!(names(&jobs, &open), ["job-3", "job-1"]);
    let earlier = Tidy { until: "2026-01-02T00:00:00Z".parse().unwrap(), ..tidy(0, 0) };
    assert_eq!(names(&jobs, &earlier), ["job-2", "job-1"]);
    // A triggered run's slot is later than the mark; its Job has been there for long.
    jobs[2].metadata.creation_timestamp = Some(Time("2026-01-03T00:00:01Z".parse().unwrap()));
    let ended = Tidy { ended: "3".to_owned(), ..earlier.clone() };
    assert_eq!(names(&jobs, &ended), ["job-3", "job-2", "job-1"], "its end has just been recorded");
    let by_age = |older_than: &str| Tidy { older_than: older_than.parse().unwrap(), ..earlier.clone() };
    assert_eq!(names(&jobs, &by_age("2026-01-03T00:00:02Z")), ["job-3", "job-2", "job-1"]);
    assert_eq!(names(&jobs, &by_age("2026-01-03T00:00:01Z")), ["job-2", "job-1"]);
    jobs[0].metadata.owner_references.as_mut().unwrap()[0].controller = None;
    assert_eq!(names(&jobs, &tidy(0, 0)), ["job-3", "job-2"]);
}

fn tidy(successful: usize, failed: usize) -> Tidy {
    Tidy {
        job: JobRef { namespace: "default".into(), name: "x".into() },
        uid: UID.into(),
        successful,
        failed,
        ended: "4".to_owned(),
        open: std::collections::BTreeSet::new(),
        until: "2026-02-01T00:00:00Z".parse().unwrap(),
        older_than: Timestamp::UNIX_EPOCH,
        guard: attempt(None).guard,
    }
}

fn names(jobs: &[DynamicObject], tidy: &Tidy) -> Vec<String> {
    surplus(jobs, tidy).iter().map(|job| job.metadata.name.clone().unwrap_or_default()).collect()
}
