//! What each write brings about, and what it refuses to be applied to.

use std::time::Duration;

use json_patch::Patch;
use serde_json::{Value, json};

use super::*;
use crate::{
    api::{ConditionStatus, Instant, Outcome, Planned, TermRef},
    periodic::{
        plan::{Plan, Trigger},
        record::{self, Blueprint, HistoryLimits, NextAttempt, Readiness, RunEnd, Writer},
    },
};

const UID: &str = "8c5b1f52-0c1e-4a3e-9d3c-0d8f5f2b7a10";
const LIMITS: HistoryLimits = HistoryLimits { successful: 3, failed: 1 };

fn at(millis: i64) -> Instant {
    Instant::new(jiff::Timestamp::from_millisecond(1_767_607_200_000 + millis).expect("within range"))
}

fn term(token: u64) -> TermRef {
    TermRef { token, nonce: format!("nonce-{token}") }
}

fn base() -> PeriodicJobStatus {
    let term = term(7);
    let ready = Readiness { ready: ConditionStatus::True, reason: "Scheduled", message: "it is".to_owned() };
    let writer = Writer { term: &term, write_id: "w0", now: at(0) };
    record::initial("tenure/tenure", at(0), writer, &ready)
}

fn object(status: &PeriodicJobStatus) -> Value {
    json!({
        "metadata": { "uid": UID, "generation": 1, "resourceVersion": "41", "labels": { "a": "b" } },
        "status": status,
    })
}

/// What the API server would store, or a refusal.
fn apply(patch: &Patch, object: &Value) -> Result<PeriodicJobStatus, json_patch::PatchError> {
    let mut object = object.clone();
    json_patch::patch(&mut object, patch)?;
    Ok(serde_json::from_value(object["status"].clone()).expect("a status"))
}

fn run_of(slot: i64, term_token: u64) -> (PeriodicJobStatus, PeriodicJobStatus, String) {
    let (base, term) = (base(), term(term_token));
    let planned = Planned {
        generation: 1,
        schedule: None,
        time_zone: "UTC".to_owned(),
        interval: Some(crate::api::Duration(Duration::from_secs(1))),
        suspend: false,
    };
    let blueprint = Blueprint {
        uid: UID,
        planned: &planned,
        action: crate::api::ActionKind::Http,
        timeout: Duration::from_secs(30),
        active_deadline: Duration::from_hours(1),
        trigger: None,
    };
    let plan = Plan {
        mark: at(slot),
        decided: vec![crate::api::SlotRange {
            from: at(slot),
            to: at(slot),
            count: 1,
            reason: crate::api::Disposition::Ran,
        }],
        starts: vec![at(slot)],
        catches_up: false,
        trigger: None::<Trigger>,
        replaces: false,
        adopts_edit: true,
        wake: None,
    };
    let writer = Writer { term: &term, write_id: "w1", now: at(slot + 1) };
    let (next, mut starts) = record::planned(&base, &plan, blueprint, writer);
    (base, next, starts.pop().expect("one run"))
}

fn forbid_intent(base: &PeriodicJobStatus, next: &PeriodicJobStatus) -> Patch {
    intent(UID, 1, base, next, ActiveFence::MustBeEmpty).expect("a patch")
}

#[test]
fn an_intent_moves_the_mark_and_stores_the_run_in_one_write() {
    let (base, next, id) = run_of(1_000, 7);
    let stored = apply(&forbid_intent(&base, &next), &object(&base)).expect("nothing has changed");
    assert_eq!(stored, next);
    assert_eq!((stored.mark, stored.counts.ran), (at(1_000), 1));
    assert_eq!(stored.active[&id].attempt, 1);
    assert_eq!(stored.active[&id].term, term(7));
}

#[test]
fn an_intent_is_refused_after_an_edit_another_term_another_plan_or_beside_a_run() {
    let (base, next, id) = run_of(1_000, 7);
    let patch = forbid_intent(&base, &next);
    let mut edited = object(&base);
    edited["metadata"]["generation"] = json!(2);
    let mut recreated = object(&base);
    recreated["metadata"]["uid"] = json!("another");
    let with = |change: &dyn Fn(&mut PeriodicJobStatus)| {
        let mut status = base.clone();
        change(&mut status);
        object(&status)
    };
    let claimed = with(&|status| status.term = term(8));
    let planned = with(&|status| status.mark = at(500));
    let beside = with(&|status| drop(status.active.insert(id.clone(), next.active[&id].clone())));
    for (what, object) in
        [("edit", edited), ("recreated", recreated), ("claim", claimed), ("mark", planned), ("active", beside)]
    {
        assert!(apply(&patch, &object).is_err(), "the intent ignored: {what}");
    }
}

#[test]
fn a_label_or_an_annotation_does_not_disturb_an_intent() {
    let (base, next, _) = run_of(1_000, 7);
    let mut labelled = object(&base);
    labelled["metadata"]["labels"] = json!({ "changed": "yes" });
    labelled["metadata"]["resourceVersion"] = json!("42");
    assert!(apply(&forbid_intent(&base, &next), &labelled).is_ok());
}

#[test]
fn a_deposed_leaders_intent_fails_on_a_claimed_object() {
    let (base, next, _) = run_of(1_000, 7);
    let late = forbid_intent(&base, &next);
    let successor = term(9);
    let writer = Writer { term: &successor, write_id: "c", now: at(1_500) };
    let claimed = record::claimed(&base, writer);
    let claim = claim(UID, &base, &claimed).expect("a patch");
    let stored = apply(&claim, &object(&base)).expect("nothing has changed");
    assert_eq!(stored.term, successor);
    assert!(apply(&late, &object(&stored)).is_err());
}

#[test]
fn a_trigger_that_arrives_late_does_not_repeat_a_run_that_has_ended() {
    let base = base();
    let term = term(7);
    let triggered = |write_id: &str| {
        let mut next = record::claimed(&base, Writer { term: &term, write_id, now: at(5) });
        let (_, of_slot, id) = run_of(1_000, 7);
        next.active.insert("triggered".to_owned(), of_slot.active[&id].clone());
        next.last_trigger = Some("now".to_owned());
        forbid_intent(&base, &next)
    };
    let (first_try, second_try) = (triggered("w1"), triggered("w2"));
    let running = apply(&second_try, &object(&base)).expect("nothing has changed");
    let over = record::ended(&running, "triggered", &success(), LIMITS, "w3");
    assert!(over.active.is_empty());
    apply(&first_try, &object(&over)).expect_err("the run would be repeated");
}

#[test]
fn a_claim_is_refused_once_another_lease_owns_the_object() {
    let base = base();
    let successor = term(9);
    let claimed = record::claimed(&base, Writer { term: &successor, write_id: "c", now: at(0) });
    let patch = claim(UID, &base, &claimed).expect("a patch");
    let foreign = PeriodicJobStatus { controller: "other/tenure".to_owned(), ..base };
    assert!(apply(&patch, &object(&foreign)).is_err());
}

#[test]
fn a_job_is_not_let_go_beside_an_open_run() {
    let (base, intent, id) = run_of(1_000, 7);
    let nobodys = record::owned_by(&base, "", Writer { term: &term(7), write_id: "g", now: at(0) });
    let patch = let_go(UID, &base, &nobodys).expect("a patch");
    assert_eq!(apply(&patch, &object(&base)).expect("no run is open").controller, "");
    assert!(intent.active.contains_key(&id));
    assert!(apply(&patch, &object(&intent)).is_err());
}

#[test]
fn the_first_status_is_refused_if_anything_was_written_before() {
    let status = base();
    let patch = first_status(UID, "41", &status).expect("a patch");
    let mut object = object(&status);
    object.as_object_mut().expect("an object").remove("status");
    assert_eq!(apply(&patch, &object).expect("it is new"), status);
    object["metadata"]["resourceVersion"] = json!("42");
    assert!(apply(&patch, &object).is_err());
}

fn success() -> RunEnd {
    RunEnd { outcome: Outcome::Succeeded, message: "200 OK".to_owned(), reason: None, at: at(2_000) }
}

#[test]
fn a_result_is_accepted_after_a_claim_and_an_edit() {
    let (_, open, id) = run_of(1_000, 7);
    let done = record::ended(&open, &id, &success(), LIMITS, "r");
    let patch = result(UID, &open, &done, &id).expect("a patch");
    let mut claimed = object(&PeriodicJobStatus { term: term(9), ..open.clone() });
    claimed["metadata"]["generation"] = json!(5);
    let stored = apply(&patch, &claimed).expect("its own intent is untouched");
    assert!(stored.active.is_empty());
    assert_eq!(stored.term, term(9));
    assert_eq!(stored.last_runs[0].outcome, Outcome::Succeeded);
    assert_eq!(stored.last_successful_time, Some(at(2_000)));
}

#[test]
fn a_result_is_refused_once_a_successor_has_taken_the_run_up() {
    let (_, open, id) = run_of(1_000, 7);
    let done = record::ended(&open, &id, &success(), LIMITS, "r");
    let patch = result(UID, &open, &done, &id).expect("a patch");
    let successor = term(9);
    let recovery = NextAttempt {
        generation: 1,
        action: crate::api::ActionKind::Http,
        not_before: at(5_000),
        timeout: Duration::from_secs(30),
        wait_bound: None,
        last_failure: "its leader is gone".to_owned(),
        recovers: true,
    };
    let writer = Writer { term: &successor, write_id: "a", now: at(5_000) };
    let recovered = record::next_attempt(&open, &id, &recovery, writer);
    assert_eq!((recovered.active[&id].attempt, recovered.active[&id].recoveries), (2, 1));
    let taken = attempt(UID, 1, &open, &recovered, &id).expect("a patch");
    let stored = apply(&taken, &object(&open)).expect("nothing has changed");
    assert_eq!(stored, recovered);
    assert!(apply(&patch, &object(&stored)).is_err());
    assert!(apply(&taken, &object(&stored)).is_err(), "an attempt is stored once");
}

#[test]
fn a_result_leaves_alone_what_the_successor_planned_meanwhile() {
    let (_, open, id) = run_of(1_000, 7);
    let done = record::ended(&open, &id, &success(), LIMITS, "r");
    let patch = result(UID, &open, &done, &id).expect("a patch");
    let mut moved = open.clone();
    moved.mark = at(3_000);
    moved.counts.overlap = 2;
    moved.conditions[0].message = "planned by the successor".to_owned();
    let stored = apply(&patch, &object(&moved)).expect("its own intent is untouched");
    assert_eq!((stored.mark, stored.counts.overlap), (at(3_000), 2));
    assert_eq!(stored.conditions[0].message, "planned by the successor");
    assert_eq!(stored.conditions[1].status, ConditionStatus::True);
}

#[test]
fn two_results_never_overwrite_each_other() {
    let (_, open, id) = run_of(1_000, 7);
    let done = record::ended(&open, &id, &success(), LIMITS, "r");
    let patch = result(UID, &open, &done, &id).expect("a patch");
    let other = RunEnd { outcome: Outcome::Failed, message: "500".to_owned(), reason: None, at: at(1_900) };
    let mut both = open.clone();
    both.active.insert("another".to_owned(), open.active[&id].clone());
    let with_other = record::ended(&both, "another", &other, LIMITS, "o");
    assert!(apply(&patch, &object(&with_other)).is_err());
}

#[test]
fn a_field_that_is_no_longer_set_is_removed() {
    let (_, open, id) = run_of(1_000, 7);
    let cut =
        RunEnd { outcome: Outcome::Interrupted, message: "the replica stops".to_owned(), reason: None, at: at(1_500) };
    let interrupted = record::interrupted(&open, &id, &cut, LIMITS, "i");
    let mut triggered = interrupted.clone();
    triggered.last_trigger = Some("now".to_owned());
    let patch = forbid_intent(&triggered, &interrupted);
    assert!(patch.0.iter().any(|op| matches!(op, PatchOperation::Remove(_))), "{patch}");
    assert_eq!(interrupted.active[&id].ended_at, Some(at(1_500)));
    assert_eq!(interrupted.last_runs[0].outcome, Outcome::Interrupted);
}

#[test]
fn run_ids_are_stable_and_differ_by_job_slot_and_trigger() {
    let slot = record::slot_run_id(UID, at(0));
    assert_eq!(slot, record::slot_run_id(UID, at(0)));
    let others = [
        record::slot_run_id(UID, at(200)),
        record::slot_run_id("another", at(0)),
        record::trigger_run_id(UID, "1"),
        record::trigger_run_id(UID, "2"),
    ];
    assert!(others.iter().all(|other| *other != slot && other.len() == 32));
}
