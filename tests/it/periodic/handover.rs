//! Leaders that stop, vanish or come back: what their successors do with what they left.

use std::time::Duration;

use jiff::SignedDuration;
use sandbox::Fault;
use serde_json::json;
use tenure::{
    action::EndKind,
    api::{Disposition, Outcome},
    clock::Clock,
};

use super::stage::Stage;

#[tokio::test(start_paused = true)]
async fn a_run_whose_leader_vanished_is_run_again_under_its_id() {
    let stage = Stage::new(41).await;
    let (one, two) = (stage.replica("one"), stage.replica("two"));
    one.lead(10);
    stage.target.usually_takes(Duration::from_secs(2));
    stage.create("tick", json!({ "schedule": "* * * * *" })).await;
    let first = stage.until_seen(1).await;
    one.vanish(&stage, "one").await;
    two.lead(20);
    let both = stage.until_seen(2).await;
    assert_eq!(both[1].run_id, first[0].run_id);
    assert_eq!((both[1].attempt, both[1].token), (2, 20));
    let status = stage.until("tick", "the end", |status| status.active.is_empty()).await;
    assert_eq!((status.last_runs[0].outcome, status.counts.ran), (Outcome::Succeeded, 1));
}

#[tokio::test(start_paused = true)]
async fn an_at_most_once_run_whose_leader_vanished_ends_indeterminate() {
    let stage = Stage::new(42).await;
    let (one, two) = (stage.replica("one"), stage.replica("two"));
    one.lead(10);
    stage.target.usually_takes(Duration::from_secs(2));
    stage.create("once", json!({ "schedule": "* * * * *", "guarantee": "AtMostOnce" })).await;
    let first = stage.until_seen(1).await;
    one.vanish(&stage, "one").await;
    two.lead(20);
    let status = stage.until("once", "the end", |status| status.active.is_empty()).await;
    assert_eq!(
        (status.last_runs[0].id.as_str(), status.last_runs[0].outcome),
        (first[0].run_id.as_str(), Outcome::Indeterminate)
    );
    stage.pass(Duration::from_secs(30)).await;
    assert_eq!(stage.target.seen().len(), 1);
    assert_eq!(two.listener.ended.lock().unwrap()[0].1, Outcome::Indeterminate);
}

#[tokio::test(start_paused = true)]
async fn a_successor_whose_clock_is_behind_takes_no_attempt_for_one_that_still_waits() {
    let stage = Stage::new(58).await;
    let (one, two) = (stage.replica("one"), stage.replica("two"));
    one.lead(10);
    stage.target.usually_takes(Duration::from_secs(2));
    stage.create("once", json!({ "schedule": "* * * * *", "guarantee": "AtMostOnce" })).await;
    stage.until_seen(1).await;
    one.vanish(&stage, "one").await;
    two.clock.step_wall(SignedDuration::from_hours(-1));
    two.lead(20);
    let status = stage.until("once", "the end", |status| status.active.is_empty()).await;
    assert_eq!(status.last_runs[0].outcome, Outcome::Indeterminate);
    assert_eq!(stage.target.seen().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_outlives_its_leaders_is_taken_up_a_bounded_number_of_times() {
    let stage = Stage::new(43).await;
    stage.target.usually_takes(Duration::from_secs(50));
    stage.create("deadly", json!({ "schedule": "0 0 * * *", "timeout": "1m" })).await;
    stage.edit("deadly", json!({ "metadata": { "annotations": { "tenure.dev/trigger": "1" } } })).await;
    for (attempts, name) in (1..).zip(["a", "b", "c", "d"]) {
        let replica = stage.replica(name);
        replica.lead(10 + attempts as u64);
        stage.until_seen(attempts).await;
        replica.vanish(&stage, name).await;
    }
    let last = stage.replica("e");
    last.lead(100);
    let status = stage.until("deadly", "the end", |status| status.active.is_empty()).await;
    assert_eq!(status.last_runs[0].outcome, Outcome::Indeterminate);
    assert_eq!(stage.target.seen().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_deposed_leaders_late_intent_starts_nothing() {
    let stage = Stage::new(44).await;
    let (one, two) = (stage.replica("one"), stage.replica("two"));
    one.lead(10);
    stage.create("tick", json!({ "schedule": "* * * * *" })).await;
    stage.until("tick", "a status", |_| true).await;
    let hold = stage.lab.sandbox.faults().new_hold();
    stage.fault("one", "metadata/generation", Fault::HoldRequest(hold.id()));
    hold.wait_reached().await;
    one.lose();
    two.lead(20);
    let seen = stage.until_seen(1).await;
    hold.release();
    stage.pass(Duration::from_secs(20)).await;
    assert_eq!(stage.target.seen(), seen, "the slot ran once, by the successor");
    assert_eq!(seen[0].token, 20);
    assert_eq!(stage.status("tick").await.counts.slots(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_day_without_a_leader_is_one_line_and_one_catch_up_run() {
    let stage = Stage::new(45).await;
    let one = stage.replica("one");
    one.lead(10);
    stage.create("tick", json!({ "interval": "1s" })).await;
    stage.until("tick", "a run", |status| status.counts.ran >= 2).await;
    one.lose();
    stage.pass(Duration::from_hours(24)).await;
    one.lead(20);
    let status = stage.until("tick", "the catch-up", |status| status.counts.coalesced > 0).await;
    Stage::assert_sum(&status, Duration::from_secs(1));
    let gap = status.ranges.iter().find(|range| range.reason == Disposition::Coalesced && range.count > 1).unwrap();
    assert!((86_397..=86_400).contains(&gap.count), "{gap:?}");
    assert_eq!(status.ranges.len(), 1 + status.ranges.iter().filter(|range| *range != gap).count());
}

#[tokio::test(start_paused = true)]
async fn catch_up_starts_are_paced() {
    let stage = Stage::new(46).await;
    for job in 0..30 {
        stage.create(&format!("job-{job}"), json!({ "schedule": "0 0 * * *" })).await;
        stage.edit(&format!("job-{job}"), json!({ "metadata": { "labels": { "a": "b" } } })).await;
    }
    let one = stage.replica("one");
    one.lead(10);
    stage.until("job-29", "a status", |_| true).await;
    one.lose();
    stage.pass(Duration::from_hours(25)).await;
    one.lead(20);
    let seen = stage.until_seen(30).await;
    let took = seen[29].at.duration_since(seen[0].at);
    assert!(took >= SignedDuration::from_millis(2_890) && took <= SignedDuration::from_millis(3_200), "{took}");
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_runs_that_end_in_time_and_records_them() {
    let stage = Stage::new(47).await;
    let one = stage.replica("one");
    one.lead(10);
    stage.target.usually_takes(Duration::from_secs(2));
    stage.create("tick", json!({ "schedule": "* * * * *" })).await;
    let seen = stage.until_seen(1).await;
    let before = one.clock.boot();
    one.handle.drained(before + Duration::from_secs(20)).await;
    let took = one.clock.boot().saturating_since(before);
    assert!(took < Duration::from_secs(3), "{took:?}");
    let status = stage.status("tick").await;
    assert!(status.active.is_empty() && status.last_runs[0].outcome == Outcome::Succeeded);
    let two = stage.replica("two");
    two.lead(20);
    stage.until("tick", "the next slot", |status| status.counts.ran == 2).await;
    assert_ne!(stage.until_seen(2).await[1].run_id, seen[0].run_id, "a planned hand-over doubles nothing");
}

#[tokio::test(start_paused = true)]
async fn a_run_that_does_not_end_within_the_drain_is_recorded_interrupted_and_goes_on_after_it() {
    let stage = Stage::new(48).await;
    let one = stage.replica("one");
    one.lead(10);
    stage.target.usually_takes(Duration::from_secs(40));
    stage.create("long", json!({ "schedule": "* * * * *", "timeout": "1m" })).await;
    let seen = stage.until_seen(1).await;
    one.handle.drained(one.clock.boot() + Duration::from_secs(5)).await;
    let status = stage.status("long").await;
    assert_eq!(status.last_runs[0].outcome, Outcome::Interrupted);
    assert!(status.active[&seen[0].run_id].ended_at.is_some());
    let two = stage.replica("two");
    two.lead(20);
    let both = stage.until_seen(2).await;
    assert_eq!((both[1].run_id.as_str(), both[1].attempt), (seen[0].run_id.as_str(), 2));
}

#[tokio::test(start_paused = true)]
async fn a_draining_leader_starts_nothing_new() {
    let stage = Stage::new(49).await;
    let one = stage.replica("one");
    one.lead(10);
    stage.target.next(Duration::from_secs(10), super::stage::OK);
    stage.create("long", json!({ "schedule": "* * * * *" })).await;
    stage.until_seen(1).await;
    stage.create("tick", json!({ "interval": "1s" })).await;
    let runs = stage.target.seen().len();
    one.handle.drained(one.clock.boot() + Duration::from_secs(20)).await;
    assert!(stage.target.seen().len() <= runs + 1, "{:#?}", stage.target.seen());
}

#[tokio::test(start_paused = true)]
async fn an_object_of_another_lease_is_left_alone_and_counted() {
    let stage = Stage::new(50).await;
    let ours = stage.replica("one");
    ours.lead(10);
    stage.create("tick", json!({ "interval": "1s" })).await;
    stage.until("tick", "a run", |status| status.counts.ran >= 1).await;
    let theirs = stage.replica_of("two", "other/lease");
    theirs.lead(500);
    stage.until("tick", "more runs", |status| status.counts.ran >= 5).await;
    let seen = stage.target.seen();
    assert!(seen.iter().all(|seen| seen.token == 10));
    assert_eq!(theirs.handle.state().borrow().foreign, 1);
    assert_eq!(theirs.listener.reasons(), ["ForeignController"]);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_went_back_is_not_acted_on() {
    let stage = Stage::new(51).await;
    let one = stage.replica("one");
    one.lead(50);
    stage.create("tick", json!({ "interval": "1s" })).await;
    stage.until("tick", "a run", |status| status.counts.ran >= 1).await;
    one.handle.drained(one.clock.boot() + Duration::from_secs(5)).await;
    one.lose();
    let two = stage.replica("two");
    two.lead(20);
    let runs = stage.target.seen().len();
    stage.pass(Duration::from_secs(10)).await;
    assert_eq!(stage.target.seen().len(), runs);
    assert_eq!(two.listener.reasons(), ["TokenRegressed"]);
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_is_wrong_stops_the_planning_and_never_moves_the_mark_ahead() {
    let stage = Stage::new(52).await;
    let one = stage.replica("one");
    one.lead(10);
    stage.create("tick", json!({ "interval": "1s" })).await;
    stage.until("tick", "a run", |status| status.counts.ran >= 3).await;
    one.clock.step_wall(SignedDuration::from_hours(1));
    stage.pass(Duration::from_secs(12)).await;
    assert!(one.handle.state().borrow().clock_skew.is_some());
    let runs = stage.target.seen().len();
    stage.pass(Duration::from_secs(10)).await;
    assert_eq!(stage.target.seen().len(), runs, "nothing new is planned");
    let status = stage.status("tick").await;
    assert!(status.mark.timestamp() <= stage.lab.clock.wall());
    one.clock.step_wall(SignedDuration::ZERO);
    stage.until("tick", "runs again", |status| status.counts.ran > runs as u64).await;
    assert_eq!(one.handle.state().borrow().clock_skew, None);
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_steps_back_runs_no_slot_twice() {
    let stage = Stage::new(53).await;
    let one = stage.replica("one");
    one.lead(10);
    stage.create("tick", json!({ "interval": "1s" })).await;
    stage.until("tick", "runs", |status| status.counts.ran >= 10).await;
    one.clock.step_wall(SignedDuration::from_secs(-4));
    let status = stage.until("tick", "more runs", |status| status.counts.ran >= 15).await;
    Stage::assert_sum(&status, Duration::from_secs(1));
    let mut ids: Vec<_> = stage.target.seen().into_iter().map(|seen| seen.run_id).collect();
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), count);
}

#[tokio::test(start_paused = true)]
async fn an_at_most_once_retry_that_is_stored_while_the_drain_begins_is_left_to_the_successor() {
    let stage = Stage::new(57).await;
    let (one, two) = (stage.replica("one"), stage.replica("two"));
    one.lead(10);
    stage.target.next(Duration::ZERO, EndKind::Unsent);
    stage.fault("one", "lastFailure", Fault::DelayAnswer(Duration::from_secs(1)));
    let retry = json!({ "maxAttempts": 3 });
    stage.create("once", json!({ "schedule": "* * * * *", "guarantee": "AtMostOnce", "retry": retry })).await;
    stage.until_seen(1).await;
    one.handle.drained(one.clock.boot() + Duration::from_secs(20)).await;
    one.lose();
    two.lead(20);
    let status = stage.until("once", "the end", |status| status.active.is_empty()).await;
    assert_eq!(status.last_runs[0].outcome, Outcome::Succeeded, "nothing of the second attempt was sent");
    assert_eq!(stage.target.seen().len(), 2);
}
