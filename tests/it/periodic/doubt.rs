//! Answers that are lost, late or a no: a slot is run once all the same.

use std::time::Duration;

use jiff::SignedDuration;
use sandbox::Fault;
use serde_json::json;
use tenure::api::Outcome;

use super::stage::{OK, Seen, Stage};

fn assert_each_slot_ran_once(seen: &[Seen]) {
    let mut ids: Vec<_> = seen.iter().map(|seen| &seen.run_id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), seen.len(), "{seen:#?}");
}

/// Lets `fault` befall one intent and one result of a job that runs each second.
async fn run_through(seed: u64, fault: Fault) {
    let stage = Stage::new(seed).await;
    let replica = stage.replica("one");
    replica.lead(10);
    stage.create("tick", json!({ "interval": "1s" })).await;
    stage.until("tick", "a run", |status| status.counts.ran >= 2).await;
    stage.fault("one", "metadata/generation", fault.clone());
    let before = stage.status("tick").await.counts.ran;
    stage.until("tick", "runs after the lost intent", |status| status.counts.ran >= before + 3).await;
    stage.fault("one", "consecutiveFailures", fault);
    let before = stage.status("tick").await.counts.ran;
    let status = stage.until("tick", "runs after the lost result", |status| status.counts.ran >= before + 3).await;
    Stage::assert_sum(&status, Duration::from_secs(1));
    let seen = stage.target.seen();
    assert_each_slot_ran_once(&seen);
    assert_eq!(seen.iter().filter(|seen| seen.attempt != 1).count(), 0, "nothing was in doubt at the target");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_lost_after_the_commit_doubles_nothing() {
    run_through(21, Fault::DropAnswer { hang: true }).await;
    run_through(22, Fault::DropAnswer { hang: false }).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_lost_before_the_commit_loses_nothing() {
    run_through(23, Fault::DropRequest { hang: true }).await;
    run_through(24, Fault::DropRequest { hang: false }).await;
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_server_is_taken_for_doubt_and_a_refusal_for_a_no() {
    for (seed, code) in [(25, 500), (26, 503), (27, 504), (28, 429), (29, 409)] {
        run_through(seed, Fault::Refuse { code, retry_after: None }).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_later_than_its_deadline_doubles_nothing() {
    run_through(30, Fault::DelayAnswer(Duration::from_secs(5))).await;
    run_through(31, Fault::Delay(Duration::from_secs(5))).await;
}

#[tokio::test(start_paused = true)]
async fn a_label_does_not_disturb_a_running_job() {
    let stage = Stage::new(32).await;
    let replica = stage.replica("one");
    replica.lead(10);
    stage.create("tick", json!({ "interval": "1s" })).await;
    for round in 0..20 {
        stage.edit("tick", json!({ "metadata": { "labels": { "round": round.to_string() } } })).await;
        stage.pass(Duration::from_millis(311)).await;
    }
    let seen = stage.target.seen();
    assert_each_slot_ran_once(&seen);
    assert!(seen.iter().skip(1).all(|seen| seen.at.duration_since(seen.slot) <= SignedDuration::from_millis(5)));
}

#[tokio::test(start_paused = true)]
async fn a_stale_watch_does_not_bring_back_a_run_that_is_over() {
    let stage = Stage::new(33).await;
    let rule = sandbox::FaultRule::new(Fault::StaleWatch(Duration::from_secs(3))).client("one");
    stage.lab.sandbox.faults().add(rule);
    let replica = stage.replica("one");
    replica.lead(10);
    stage.create("tick", json!({ "interval": "200ms" })).await;
    stage.until("tick", "runs", |status| status.counts.ran >= 50).await;
    assert_each_slot_ran_once(&stage.target.seen());
}

#[tokio::test(start_paused = true)]
async fn a_result_that_could_not_be_stored_is_stored_after_the_term_and_is_not_run_again() {
    let stage = Stage::new(34).await;
    let one = stage.replica("one");
    one.lead(10);
    stage.target.next(Duration::from_millis(300), OK);
    stage.create("tick", json!({ "schedule": "* * * * *" })).await;
    let seen = stage.until_seen(1).await;
    let rule = sandbox::FaultRule::new(Fault::Refuse { code: 503, retry_after: None });
    let rule = stage.lab.sandbox.faults().add(rule.client("one").verb(sandbox::Verb::Patch));
    stage.pass(Duration::from_millis(500)).await;
    one.lose();
    stage.pass(Duration::from_millis(100)).await;
    assert_eq!(stage.status("tick").await.active.len(), 1);
    stage.lab.sandbox.faults().remove(rule);
    let status = stage.until("tick", "the result", |status| status.active.is_empty()).await;
    assert_eq!(
        (status.last_runs[0].id.as_str(), status.last_runs[0].outcome),
        (seen[0].run_id.as_str(), Outcome::Succeeded)
    );
    let two = stage.replica("two");
    two.lead(20);
    stage.until("tick", "the next slot", |status| status.counts.ran == 2).await;
    assert_each_slot_ran_once(&stage.target.seen());
}
