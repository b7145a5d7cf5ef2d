//! Jobs in whole replicas, election and HTTP included, against a target that judges from outside.

use std::time::Duration;

use jiff::SignedDuration;
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use rstest::rstest;
use sandbox::{Fault, FaultRule, Verb};
use serde_json::{Value, json};
use tenure::{
    Released,
    api::{Outcome, PeriodicJob, PeriodicJobStatus},
    apiserver::ApiServer,
    entropy::SeededEntropy,
};
use tokio::sync::watch;

use crate::support::{
    lab::{Drift, LEASE, Lab, NAMESPACE},
    ledger::{CutOff, Ledger, Line, Manner},
    whole::{self, PREDECESSOR, Whole},
};

const SECOND: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);
const LEASE_DURATION: Duration = Duration::from_secs(3);
/// What has not happened by then never will.
const SOON: Duration = Duration::from_mins(1);

/// A lab with the definitions, a ledger and one leader.
struct Stage {
    lab: Lab,
    ledger: Ledger,
    jobs: Api<PeriodicJob>,
}

impl Stage {
    async fn new() -> (Self, Whole) {
        let lab = Lab::new(1);
        let client = lab.client();
        whole::install(&client).await;
        let ledger = Ledger::new(lab.clock.clone(), lab.seed);
        let stage = Self { lab, ledger, jobs: Api::namespaced(client, NAMESPACE) };
        let leader = stage.replica("replica-0", true);
        stage.lab.wait_for("the first leader", SECOND, || leader.replica.leads()).await;
        (stage, leader)
    }

    fn replica(&self, name: &str, fresh: bool) -> Whole {
        let clock = self.lab.machine_clock(Drift::NONE);
        let way = || ApiServer::from_service(self.lab.sandbox.service(name), NAMESPACE, clock.clone());
        let election_api = way();
        let replica = self.lab.replica_on(name, clock.clone(), election_api.clone(), |builder| {
            builder
                .lease_duration(LEASE_DURATION)
                .retry_period(MILLI * 300)
                .stop_margin(MILLI * 200)
                .fresh_installation(move |_| async move { fresh })
        });
        let entropy = SeededEntropy::shared(self.lab.seed);
        Whole::start(replica, way(), &election_api, &self.ledger, entropy, LEASE_DURATION)
    }

    async fn create(&self, name: &str, spec: Value) {
        self.jobs.create(&PostParams::default(), &whole::job(name, spec)).await.expect("the job is valid");
    }

    fn manner(&self, job: &str, manner: Manner) {
        self.ledger.manner(&format!("{NAMESPACE}/{job}"), manner);
    }

    /// Lets the ledger hold what comes, until the sender is used or dropped.
    fn hold(&self, job: &str) -> watch::Sender<bool> {
        let (sender, receiver) = watch::channel(false);
        self.manner(job, Manner::Hold(receiver));
        sender
    }

    fn lines(&self, job: &str) -> Vec<Line> {
        self.ledger.lines_of(&format!("{NAMESPACE}/{job}"))
    }

    /// Waits until the ledger has seen `count` requests of `job`, and returns them.
    async fn requests(&self, job: &str, count: usize) -> Vec<Line> {
        self.lab.wait_for("requests at the ledger", SOON, || self.lines(job).len() >= count).await;
        self.lines(job)
    }

    async fn status(&self, job: &str) -> Option<PeriodicJobStatus> {
        self.jobs.get(job).await.expect("the job is there").status
    }

    /// Waits until the status of `job` is as wished.
    async fn until(&self, job: &str, wished: impl Fn(&PeriodicJobStatus) -> bool) -> PeriodicJobStatus {
        let end = self.lab.now() + SOON;
        loop {
            let status = self.status(job).await;
            if let Some(status) = status.as_ref().filter(|status| wished(status)) {
                return status.clone();
            }
            assert!(self.lab.now() < end, "{job} never comes to it: {status:#?}");
            self.lab.sleep(MILLI * 100).await;
        }
    }

    /// Waits until a run of `job` has ended, and returns how the newest one did.
    async fn ended(&self, job: &str) -> (Outcome, String) {
        let status = self.until(job, |status| !status.last_runs.is_empty() && status.active.is_empty()).await;
        (status.last_runs[0].outcome, status.last_runs[0].message.clone())
    }

    /// Nobody was out of order at the ledger.
    fn assert_order(&self) {
        let refused: Vec<_> = self.ledger.lines().into_iter().filter(|line| !line.accepted).collect();
        assert!(refused.is_empty(), "{refused:#?}");
    }

    fn patches_of_the_leader(&self, contains: &str, fault: Fault) {
        let rule = FaultRule::new(fault).client("replica-0").verb(Verb::Patch).body_contains(contains).times(1);
        self.lab.sandbox.faults().add(rule);
    }
}

/// A job with one slot a minute: what happens between two of them belongs to one run.
fn once_a_minute(fields: &Value) -> Value {
    let mut spec = json!({ "schedule": "* * * * *", "retry": { "initial": "100ms", "maxAttempts": 3 } });
    spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    spec
}

fn at_most_once() -> Value {
    once_a_minute(&json!({ "guarantee": "AtMostOnce" }))
}

fn at_least_once() -> Value {
    once_a_minute(&json!({}))
}

#[tokio::test(start_paused = true)]
async fn an_at_most_once_run_whose_connection_is_cut_ends_indeterminate_after_one_request() {
    let (stage, leader) = Stage::new().await;
    stage.manner("careful", Manner::Cut);
    stage.create("careful", at_most_once()).await;
    let (outcome, message) = stage.ended("careful").await;
    assert_eq!(outcome, Outcome::Indeterminate, "{message}");
    stage.lab.sleep(SECOND * 20).await;
    assert_eq!(stage.lines("careful").len(), 1);
    assert_eq!(leader.heard.notices("RunFailed").len(), 1, "people should look at it");
}

#[tokio::test(start_paused = true)]
async fn an_at_least_once_run_whose_connection_is_cut_is_tried_again_under_its_id() {
    let (stage, _leader) = Stage::new().await;
    stage.manner("busy", Manner::Cut);
    stage.create("busy", at_least_once()).await;
    stage.requests("busy", 1).await;
    stage.manner("busy", Manner::Answer { status: 200, within: Duration::ZERO });
    assert_eq!(stage.ended("busy").await.0, Outcome::Succeeded);
    let lines = stage.lines("busy");
    assert_eq!(lines.iter().map(|line| line.attempt).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(lines[0].run, lines[1].run);
}

#[tokio::test(start_paused = true)]
async fn an_at_most_once_run_that_provably_sent_nothing_is_tried_again() {
    let (stage, _leader) = Stage::new().await;
    stage.ledger.cut_off("replica-0", CutOff::Refused);
    stage.create("careful", at_most_once()).await;
    let status = stage.until("careful", |status| status.active.values().any(|run| run.attempt == 2)).await;
    assert!(status.active.values().all(|run| run.last_failure.as_deref().unwrap().contains("cannot be reached")));
    stage.ledger.heal("replica-0");
    assert_eq!(stage.ended("careful").await.0, Outcome::Succeeded);
    assert_eq!(stage.lines("careful").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_500_is_a_failure_and_no_doubt() {
    let (stage, _leader) = Stage::new().await;
    stage.manner("careful", Manner::Answer { status: 500, within: Duration::ZERO });
    stage.create("careful", at_most_once()).await;
    let (outcome, message) = stage.ended("careful").await;
    assert_eq!(outcome, Outcome::Failed);
    assert!(message.contains("500") && message.contains("written down"), "{message}");
    assert_eq!(stage.lines("careful").len(), 1);
}

#[rstest]
#[case::at_least_once(at_least_once(), 2, Outcome::Succeeded)]
#[case::at_most_once(at_most_once(), 1, Outcome::Indeterminate)]
#[tokio::test(start_paused = true)]
async fn the_run_of_a_killed_leader_follows_its_guarantee(
    #[case] spec: Value,
    #[case] requests: usize,
    #[case] expected: Outcome,
) {
    let (stage, leader) = Stage::new().await;
    let standby = stage.replica("replica-1", false);
    let held = stage.hold("job");
    stage.create("job", spec).await;
    stage.requests("job", 1).await;
    leader.replica.kill();
    stage.manner("job", Manner::Answer { status: 200, within: Duration::ZERO });
    assert_eq!(stage.ended("job").await.0, expected);
    assert!(standby.replica.leads());
    let lines = stage.lines("job");
    assert_eq!(lines.len(), requests);
    assert!(lines.iter().all(|line| line.run == lines[0].run));
    stage.assert_order();
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_planned_hand_over_waits_for_a_run_that_ends_within_the_drain_time_and_doubles_nothing() {
    let (stage, leader) = Stage::new().await;
    let standby = stage.replica("replica-1", false);
    let held = stage.hold("job");
    stage.create("job", at_least_once()).await;
    stage.requests("job", 1).await;
    let released = leader.terminate(SECOND * 10);
    stage.lab.sleep(SECOND * 5).await;
    assert!(leader.replica.leads(), "it leads while its run goes on");
    held.send_replace(true);
    let answered = stage.lab.now();
    stage.lab.wait_for("the successor", SECOND, || standby.replica.leads()).await;
    assert!(stage.lab.now() - answered <= MILLI * 50, "{:?}", stage.lab.now() - answered);
    assert_eq!(released.await.unwrap(), Some(Released::Free));
    assert_eq!(stage.ended("job").await.0, Outcome::Succeeded);
    stage.lab.sleep(SECOND * 10).await;
    assert_eq!(stage.lines("job").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_frozen_leader_that_thaws_sends_nothing_and_its_successor_has_taken_up_its_run() {
    let (stage, leader) = Stage::new().await;
    let standby = stage.replica("replica-1", false);
    // Frozen between the intent and the act: the answer of the intent is held.
    let hold = stage.lab.sandbox.faults().new_hold();
    stage.create("job", at_least_once()).await;
    stage.until("job", |_| true).await;
    stage.patches_of_the_leader("metadata/generation", Fault::Hold(hold.id()));
    hold.wait_reached().await;
    leader.replica.freezer.freeze();
    hold.release();
    stage.lab.wait_for("the successor", LEASE_DURATION + SECOND, || standby.replica.leads()).await;
    stage.requests("job", 1).await;
    leader.replica.freezer.thaw();
    assert_eq!(stage.ended("job").await.0, Outcome::Succeeded);
    stage.lab.sleep(SECOND * 10).await;
    let lines = stage.lines("job");
    assert_eq!(lines.iter().map(|line| (line.replica.as_str(), line.attempt)).collect::<Vec<_>>(), [("replica-1", 2)]);
    stage.assert_order();
}

#[tokio::test(start_paused = true)]
async fn an_intent_whose_answer_comes_after_its_term_is_taken_up_by_the_next_term_of_the_same_process() {
    let (stage, leader) = Stage::new().await;
    stage.create("job", at_least_once()).await;
    stage.until("job", |_| true).await;
    let hold = stage.lab.sandbox.faults().new_hold();
    stage.patches_of_the_leader("metadata/generation", Fault::Hold(hold.id()));
    hold.wait_reached().await;
    stage.lab.leases().delete(LEASE, &DeleteParams::default()).await.expect("it is there");
    stage.lab.wait_for("the end of the term", SECOND, || !leader.replica.leads()).await;
    hold.release();
    stage.lab.wait_for("the next term", LEASE_DURATION + SECOND, || leader.replica.leads()).await;
    assert_eq!(stage.ended("job").await.0, Outcome::Succeeded);
    assert_eq!(stage.lines("job").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_clock_is_wrong_hands_over_to_one_whose_clock_is_right() {
    let (stage, leader) = Stage::new().await;
    let standby = stage.replica("replica-1", false);
    stage.create("tick", json!({ "interval": "1s" })).await;
    stage.requests("tick", 3).await;
    leader.replica.clock.step_wall(SignedDuration::from_hours(1));
    stage.lab.wait_for("the successor", SECOND * 20, || standby.replica.leads()).await;
    let from = stage.lines("tick").len();
    stage.requests("tick", from + 3).await;
    let truth = stage.lab.clock.clone();
    let mark = stage.status("tick").await.unwrap().mark;
    assert!(mark.timestamp() <= tenure::clock::Clock::wall(&*truth), "{mark}");
    let (mut seen, all) = (std::collections::BTreeSet::new(), stage.lines("tick"));
    assert!(all.iter().all(|line| seen.insert(line.run.clone())), "a slot was run twice: {all:#?}");
    stage.lab.sleep(SECOND * 20).await;
    assert!(!leader.replica.leads(), "it does not contend while its clock is wrong");
    standby.replica.kill();
    leader.replica.clock.step_wall(SignedDuration::ZERO);
    stage.lab.wait_for("the first one again", SECOND * 20, || leader.replica.leads()).await;
    stage.assert_order();
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_is_missing_fails_the_run_and_not_the_job_nor_its_neighbour() {
    let (stage, _leader) = Stage::new().await;
    let auth = json!({ "bearer": { "secretKeyRef": { "name": "token", "key": "value" } } });
    let http = json!({ "url": whole::LEDGER, "auth": auth });
    stage.create("needy", json!({ "interval": "2s", "http": http, "retry": { "maxAttempts": 1 } })).await;
    stage.create("plain", json!({ "interval": "2s" })).await;
    let (outcome, message) = stage.ended("needy").await;
    assert_eq!(outcome, Outcome::Failed);
    assert!(message.contains("there is no Secret token in the job's namespace default"), "{message}");
    stage.requests("plain", 2).await;
    assert_eq!(stage.lines("needy").len(), 0);
    let secrets: Api<k8s_openapi::api::core::v1::Secret> = Api::namespaced(stage.lab.client(), NAMESPACE);
    let secret = json!({ "metadata": { "name": "token" }, "stringData": { "value": "abc" } });
    secrets.create(&PostParams::default(), &serde_json::from_value(secret).unwrap()).await.expect("created");
    stage.until("needy", |status| status.last_runs[0].outcome == Outcome::Succeeded).await;
}

#[tokio::test(start_paused = true)]
async fn deleting_every_job_in_a_loop_leaves_nothing_behind() {
    let (stage, leader) = Stage::new().await;
    for round in 1..=3 {
        for index in 0..20 {
            stage.create(&format!("job-{index}"), json!({ "interval": "1s" })).await;
        }
        stage.lab.sleep(SECOND * 2).await;
        stage.jobs.delete_collection(&DeleteParams::default(), &ListParams::default()).await.expect("deleted");
        let state = leader.scheduler.state();
        let is_empty = || state.borrow().jobs == 0 && state.borrow().acting == 0;
        stage.lab.wait_for(&format!("an empty table in round {round}"), SECOND * 5, is_empty).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_edit_in_the_middle_of_a_run_is_followed_by_its_next_attempt_under_the_same_id() {
    let (stage, _leader) = Stage::new().await;
    stage.manner("job", Manner::Answer { status: 503, within: Duration::ZERO });
    stage.create("job", once_a_minute(&json!({ "retry": { "initial": "2s", "max": "20s", "maxAttempts": 9 } }))).await;
    let first = stage.requests("job", 1).await;
    let edit = Patch::Merge(json!({ "spec": { "timeout": "7s" } }));
    stage.jobs.patch("job", &PatchParams::default(), &edit).await.expect("patched");
    let both = stage.requests("job", 2).await;
    assert_eq!(both[1].run, first[0].run);
    let status = stage.until("job", |status| status.active.values().all(|run| run.generation == 2)).await;
    assert!(status.counts.ran <= 1, "an edit runs nothing belatedly: {status:#?}");
}

#[tokio::test(start_paused = true)]
async fn outcomes_are_told_as_they_are_stored() {
    let (stage, leader) = Stage::new().await;
    stage.create("tick", json!({ "interval": "1s" })).await;
    stage.requests("tick", 4).await;
    let status = stage.until("tick", |status| status.counts.ran >= 4 && status.active.is_empty()).await;
    let told = leader.heard.ends("default/tick");
    assert_eq!(told.len() as u64, status.counts.ran);
    assert!(told.iter().all(|outcome| outcome == "Succeeded"), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_term_is_older_than_the_last_one_of_a_lease_that_is_gone_hands_over_and_then_adopts() {
    let (stage, leader) = Stage::new().await;
    stage.create("tick", json!({ "interval": "1s" })).await;
    let before = stage.requests("tick", 3).await;
    let job = stage.jobs.get("tick").await.expect("it is there");
    // A version of the same store, as the token of a term that began after ours.
    let version = job.metadata.resource_version.as_deref().and_then(|version| version.parse().ok());
    let token: u64 = version.expect("versions are numbers");
    let theirs = json!({ "status": { "controller": PREDECESSOR, "term": { "token": token, "nonce": "theirs" } } });
    stage.jobs.patch_status("tick", &PatchParams::default(), &Patch::Merge(theirs)).await.expect("it is patched");
    let after = stage.requests("tick", before.len() + 10).await;
    let status = stage.jobs.get("tick").await.expect("it is there").status.expect("it has been run");
    assert_eq!(status.controller, format!("{NAMESPACE}/{LEASE}"));
    assert!(status.term.token > token && before.iter().all(|line| line.token < token), "{status:#?}");
    assert!(after.is_sorted_by_key(|line| line.token), "{after:#?}");
    assert!(leader.replica.leads(), "it is the only replica");
}
