//! Each condition is shown evidence that must pass and evidence that must not.

mod cut;
mod liveness;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{
    Evidence, Family, Freeze, Guarantee, Job, Outage, PACE_AT_MOST, RanShare, Trial, Window, WrongClock, judge, render,
    summary,
};
use crate::{
    clock::{At, Timeline},
    ledger::{Entry, Request, Verdict},
    probe::ProbeLog,
    watcher::History,
};

/// Boot instant 0 of the synthetic session; slots are named by seconds after it.
const START: &str = "2026-03-01T00:00:00Z";
const A: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11));
const B: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 12));

fn wall(second: i64) -> Timestamp {
    START.parse::<Timestamp>().unwrap() + SignedDuration::from_secs(second)
}

fn millis(millis: u64) -> At {
    At::from_millis(millis)
}

fn entry(at: u64, job: &str, second: i64, token: u64, replica: IpAddr) -> Entry {
    let request =
        Request { run_id: format!("{job}-{second}"), job: job.into(), slot: Some(wall(second)), attempt: 1, token };
    let answered = Some(millis(at + 100));
    Entry { first_byte: millis(at), replica, path: "/lease".into(), request, verdict: Verdict::Accepted, answered }
}

/// Three slots at 1, 2 and 3 s of an at-least-once and an at-most-once job: the first run by token 5 on A, which is then
/// killed; the second coalesced; the third run by token 8 on B.
fn clean(family: Family) -> Evidence {
    let job = |name: &str, guarantee| Job { name: name.into(), period: Duration::from_secs(1), guarantee };
    let mut evidence = Evidence {
        family,
        jobs: vec![job("least", Guarantee::AtLeastOnce), job("most", Guarantee::AtMostOnce)],
        entries: Vec::new(),
        probe: ProbeLog::default(),
        history: History::default(),
        gaps: 0,
        trials: vec![Trial {
            number: 1,
            victim: "a".into(),
            victim_address: A,
            token: 5,
            window: Some(Window::Acting),
            armed: millis(1_300),
            struck: millis(1_400),
            calm: millis(2_800),
            freeze: (family == Family::Stop).then_some(Freeze {
                stop: millis(1_400),
                cont: millis(4_000),
                thawed: millis(4_000),
            }),
            outage: None,
            taken_over: Some(millis(2_500)),
            limit: None,
            cut: Vec::new(),
            wrong_clock: None,
            pace: None,
        }],
        leaderless_limit: None,
        complaints: Vec::new(),
        slow: Vec::new(),
        timeline: Timeline::fixed(millis(0), wall(0)),
        until: wall(3),
        bad_ends: Some(Vec::new()),
    };
    for at in [500, 1_400] {
        evidence.probe.take(millis(at), b"5 a 0");
    }
    for at in [2_500, 3_500] {
        evidence.probe.take(millis(at), b"8 b 0");
    }
    for (offset, job) in [(0, "least"), (5, "most")] {
        evidence.entries.push(entry(1_010 + offset, job, 1, 5, A));
        evidence.entries.push(entry(3_010 + offset, job, 3, 8, B));
        version(&mut evidence, 400, job, &json!({ "mark": wall(0), "counts": {} }));
        let first = json!({ "mark": wall(1), "counts": { "ran": 1 }, "active": { format!("{job}-1"): intent(1) } });
        version(&mut evidence, 1_002, job, &first);
        version(&mut evidence, 1_200, job, &json!({ "mark": wall(1), "counts": { "ran": 1 } }));
        version(&mut evidence, 3_002, job, &coalesced(&json!({ format!("{job}-3"): intent(3) })));
        version(&mut evidence, 3_200, job, &coalesced(&json!({})));
    }
    evidence
}

fn intent(second: i64) -> Value {
    json!({ "slot": wall(second), "attempt": 1 })
}

fn coalesced(active: &Value) -> Value {
    json!({
        "term": { "token": 8 },
        "mark": wall(3), "counts": { "ran": 2, "coalesced": 1, "triggered": 4 }, "active": active,
        "ranges": [{ "from": wall(2), "to": wall(2), "count": 1, "reason": "Coalesced" }],
    })
}

fn version(evidence: &mut Evidence, at: u64, job: &str, status: &Value) {
    let mut status = status.clone();
    status["origin"] = json!(wall(0));
    let object = json!({ "metadata": { "name": job, "creationTimestamp": wall(0) }, "status": status });
    evidence.history.take(millis(at), at, &object);
}

fn failures(evidence: &Evidence) -> Vec<String> {
    judge(evidence).failures()
}

/// Exactly one failure, which speaks of `about`.
#[track_caller]
fn fails(evidence: &Evidence, about: &str) {
    let failures = failures(evidence);
    assert!(failures.len() == 1 && failures[0].contains(about), "expected only {about:?}, found {failures:?}");
}

#[test]
fn evidence_without_a_fault_passes_in_every_family() {
    for family in Family::OF_PROCESSES {
        let evidence = clean(family);
        assert_eq!(failures(&evidence), Vec::<String>::new());
        let findings = judge(&evidence);
        assert_eq!((findings.due, findings.decided), (6, 6));
        assert_eq!(findings.ran_share, RanShare { unhindered: 4, ran: 4 });
        assert_eq!(findings.worst_overlap(), Some(SignedDuration::from_millis(-1_100)));
        assert_eq!(findings.take_overs, [Duration::from_millis(1_100)]);
    }
}

#[test]
fn a_slot_that_the_mark_never_passed_is_lost() {
    let mut evidence = clean(Family::Kill);
    evidence.until = wall(4);
    fails(&evidence, "2 slots lost, first Some(Undecided(\"least\"");
}

#[test]
fn a_job_without_any_status_has_lost_its_slots() {
    let mut evidence = clean(Family::Kill);
    evidence.jobs.push(Job { name: "never".into(), period: Duration::from_secs(1), guarantee: Guarantee::AtLeastOnce });
    fails(&evidence, "Undecided(\"never\"");
}

#[test]
fn dispositions_that_do_not_add_up_in_one_version_are_a_lost_slot() {
    for counts in [json!({ "ran": 2 }), json!({ "ran": 2, "coalesced": 2 })] {
        let mut evidence = clean(Family::Kill);
        let mut status = coalesced(&json!({}));
        status["counts"] = counts;
        version(&mut evidence, 3_300, "least", &status);
        version(&mut evidence, 3_400, "least", &coalesced(&json!({})));
        fails(&evidence, "Miscounted");
    }
}

#[test]
fn a_slot_counted_as_run_without_an_intent_is_lost() {
    let mut evidence = clean(Family::Kill);
    let mut status = coalesced(&json!({}));
    status["counts"] = json!({ "ran": 3 });
    version(&mut evidence, 3_400, "least", &status);
    fails(&evidence, "Unintended");
    evidence.gaps = 1;
    assert_eq!(
        judge(&evidence).failures(),
        Vec::<String>::new(),
        "its intent may be among the versions that were missed"
    );
}

#[test]
fn an_intent_that_was_never_run_is_lost_unless_it_is_in_doubt_or_at_most_once() {
    let mut evidence = clean(Family::Kill);
    evidence.entries.retain(|entry| entry.request.slot != Some(wall(1)));
    evidence.trials[0].armed = millis(900);
    fails(&evidence, "1 slots lost, first Some(NeverRan(\"least\"");
    let mut status = coalesced(&json!({}));
    status["lastRuns"] = json!([{ "id": "least-1", "outcome": "Indeterminate" }]);
    version(&mut evidence, 3_400, "least", &status);
    assert_eq!(failures(&evidence), Vec::<String>::new());
}

#[test]
fn a_run_that_is_open_at_the_end_is_lost() {
    let mut evidence = clean(Family::Kill);
    version(&mut evidence, 3_400, "most", &coalesced(&json!({ "most-3": intent(3) })));
    fails(&evidence, "Open(\"most\"");
}

/// The version that shows the end of this run is seen after everything else.
fn still_open(evidence: &mut Evidence, job: &str, second: i64) {
    let id = format!("{job}-{second}");
    let known = evidence.history.job(job).unwrap().versions.clone();
    let mut history = History::default();
    for other in evidence.jobs.iter().filter(|other| other.name != job) {
        for version in &evidence.history.job(&other.name).unwrap().versions {
            let object =
                json!({ "metadata": { "name": other.name, "creationTimestamp": wall(0) }, "status": version.status });
            history.take(version.at, version.resource_version, &object);
        }
    }
    let last = known.len() - 1;
    for (place, version) in known.into_iter().enumerate() {
        let mut status = serde_json::to_value(&version.status).unwrap();
        if place > 0 && place < last {
            status["active"][&id] = intent(second);
        }
        let object = json!({ "metadata": { "name": job, "creationTimestamp": wall(0) }, "status": status });
        history.take(version.at, version.resource_version, &object);
    }
    evidence.history = history;
}

#[test]
fn a_doubled_run_fails_a_planned_hand_over_and_is_only_counted_after_a_crash() {
    for family in Family::OF_PROCESSES {
        let mut evidence = clean(family);
        still_open(&mut evidence, "least", 1);
        evidence.entries.push(entry(2_900, "least", 1, 8, B));
        assert_eq!(judge(&evidence).doubled.len(), 1);
        if family == Family::Term {
            fails(&evidence, "1 runs doubled");
        } else {
            assert_eq!(failures(&evidence), Vec::<String>::new());
        }
    }
}

#[test]
fn a_run_that_is_doubled_though_it_was_not_open_at_any_fault_fails_after_a_crash_too() {
    let about = "1 runs doubled that no fault excuses";
    let mut evidence = clean(Family::Kill);
    evidence.entries.push(entry(3_400, "least", 3, 8, B));
    fails(&evidence, about);

    let mut recorded_before = clean(Family::Kill);
    recorded_before.entries.push(entry(2_900, "least", 1, 8, B));
    fails(&recorded_before, about);

    // The successor doubles a run of its own while the fault is still on.
    let mut own = clean(Family::Kill);
    own.trials[0].calm = millis(3_500);
    own.entries.push(entry(3_100, "least", 3, 8, B));
    assert!(failures(&own).iter().any(|failure| failure.contains(about)), "{:?}", failures(&own));
}

#[test]
fn a_slot_run_under_two_run_ids_is_doubled_too() {
    let mut evidence = clean(Family::Term);
    let mut again = entry(2_900, "least", 1, 8, B);
    again.request.run_id = "another".into();
    evidence.entries.push(again);
    fails(&evidence, "1 runs doubled");
}

#[test]
fn an_at_most_once_run_made_twice_fails_in_every_family() {
    for family in Family::OF_PROCESSES {
        let mut evidence = clean(family);
        evidence.entries.push(entry(2_900, "most", 1, 8, B));
        fails(&evidence, "1 at-most-once runs made twice");
    }
}

#[test]
fn an_accepted_old_token_fails_even_as_a_replica_thaws() {
    let mut evidence = clean(Family::Stop);
    evidence.entries.push(entry(4_001, "least", 4, 5, A));
    fails(&evidence, "1 effects of an old token accepted");
}

fn refused(at: u64, second: i64, replica: IpAddr) -> Entry {
    Entry { verdict: Verdict::Refused, ..entry(at, "least", second, 5, replica) }
}

#[test]
fn a_refused_old_token_fails_after_a_kill_or_a_hand_over() {
    for family in [Family::Kill, Family::Term] {
        let mut evidence = clean(family);
        evidence.entries.push(refused(4_001, 4, A));
        fails(&evidence, "1 effects of an old token refused");
    }
}

#[test]
fn a_freeze_excuses_one_refused_request_of_the_frozen_replica_as_it_thaws() {
    let mut evidence = clean(Family::Stop);
    evidence.entries.push(refused(4_005, 4, A));
    assert_eq!(failures(&evidence), Vec::<String>::new());
    assert_eq!(judge(&evidence).old_refused.len(), 1);

    let mut second = evidence.clone();
    second.entries.push(refused(4_005, 3, A));
    fails(&second, "1 effects of an old token refused");

    for (at, replica) in [(4_006, A), (3_999, A), (4_001, B)] {
        let mut other = clean(Family::Stop);
        other.entries.push(refused(at, 4, replica));
        let found = failures(&other);
        assert!(found.iter().any(|failure| failure.contains("1 effects of an old token refused")), "{found:?}");
    }
}

#[test]
fn a_datagram_of_an_older_term_is_an_overlap_unless_a_freeze_excuses_it() {
    for family in Family::OF_PROCESSES {
        let mut evidence = clean(family);
        evidence.probe.take(millis(4_002), b"5 a 1");
        if family == Family::Stop {
            assert_eq!(failures(&evidence), Vec::<String>::new());
            assert_eq!(judge(&evidence).excused_datagrams, 1);
            evidence.probe.take(millis(4_003), b"5 a 2");
        }
        fails(&evidence, "1 terms overlap their successor");
    }
}

#[test]
fn too_few_unhindered_slots_run_fail() {
    let mut evidence = clean(Family::Kill);
    let mut entries = evidence.entries.iter_mut();
    let third = entries.find(|entry| entry.request.job == "most" && entry.request.slot == Some(wall(3))).unwrap();
    third.request.slot = None;
    fails(&evidence, "3 of 4 unhindered slots were run");
}

#[test]
fn a_slot_due_under_a_fault_without_a_leader_or_during_a_run_is_not_unhindered() {
    let mut evidence = clean(Family::Kill);
    evidence.trials[0].calm = millis(3_100);
    assert_eq!(judge(&evidence).ran_share, RanShare { unhindered: 2, ran: 2 });

    let mut evidence = clean(Family::Kill);
    evidence.probe = ProbeLog::default();
    assert_eq!(judge(&evidence).ran_share, RanShare::default());

    let mut evidence = clean(Family::Kill);
    evidence.history = History::default();
    version(&mut evidence, 900, "most", &json!({ "mark": wall(0), "active": { "most-0": intent(0) } }));
    assert_eq!(judge(&evidence).ran_share, RanShare::default());
}

#[test]
fn a_slot_due_while_an_earlier_slots_intent_was_under_way_is_not_unhindered_and_one_due_long_before_it_is() {
    for (stored, unhindered) in [(3_050, 3), (3_150, 4)] {
        let mut evidence = clean(Family::Kill);
        evidence.entries.iter_mut().find(|entry| entry.request.run_id == "least-3").unwrap().request.slot = None;
        evidence.history = History::default();
        for job in ["least", "most"] {
            version(&mut evidence, 400, job, &json!({ "mark": wall(0) }));
        }
        version(&mut evidence, stored, "least", &json!({ "mark": wall(3), "active": { "least-2": intent(2) } }));
        let share = judge(&evidence).ran_share;
        assert_eq!((share.unhindered, share.ran), (unhindered, 3));
    }
}

#[test]
fn a_real_store_has_a_second_for_an_intent_and_a_slot_that_nobody_was_at_work_on_counts_all_the_same() {
    for (stored, unhindered) in [(3_900, 3), (4_100, 4)] {
        let mut evidence = clean(Family::Kill);
        evidence.family = Family::PodDeleted;
        evidence.history = History::default();
        for job in ["least", "most"] {
            version(&mut evidence, 400, job, &json!({ "mark": wall(0) }));
        }
        version(&mut evidence, stored, "least", &json!({ "mark": wall(3), "active": { "least-2": intent(2) } }));
        assert_eq!(judge(&evidence).ran_share.unhindered, unhindered, "stored at {stored} ms");
    }

    let mut idle = clean(Family::Kill);
    idle.family = Family::PodDeleted;
    idle.entries.retain(|entry| entry.request.run_id != "least-3");
    assert_eq!(judge(&idle).ran_share, RanShare { unhindered: 4, ran: 3 });
}

#[test]
fn a_run_whose_intent_may_have_been_missed_hinders_until_the_next_version_that_was_seen() {
    for (gaps, next, unhindered) in [(0, 3_500, 4), (1, 3_500, 3), (1, 2_500, 4)] {
        let mut evidence = clean(Family::Kill);
        evidence.gaps = gaps;
        evidence.entries.iter_mut().find(|entry| entry.request.run_id == "least-3").unwrap().request.slot = None;
        evidence.history = History::default();
        for job in ["least", "most"] {
            version(&mut evidence, 400, job, &json!({ "mark": wall(0) }));
        }
        version(&mut evidence, next, "least", &json!({ "mark": wall(3) }));
        version(&mut evidence, 2_500, "most", &json!({ "mark": wall(2) }));
        let share = judge(&evidence).ran_share;
        assert_eq!(share.unhindered, unhindered, "{gaps} gaps, seen again at {next} ms");
    }
}

#[test]
fn a_control_plane_that_was_too_slow_for_the_harness_hinders_slots_and_one_that_was_slow_at_another_time_does_not() {
    for (from, to, unhindered) in [(2_900, 3_000, 2), (3_000, 3_100, 2), (3_001, 3_900, 4)] {
        let mut evidence = clean(Family::Kill);
        evidence.slow.push((millis(from), millis(to)));
        assert_eq!(judge(&evidence).ran_share.unhindered, unhindered, "slow from {from} to {to} ms");
    }
}

#[test]
fn a_request_shows_that_its_run_is_active_before_a_late_watch_does() {
    let mut evidence = clean(Family::Kill);
    evidence.history = History::default();
    for job in ["least", "most"] {
        version(&mut evidence, 400, job, &json!({ "mark": wall(0) }));
    }
    evidence.entries.push(entry(2_990, "least", 2, 8, B));
    version(&mut evidence, 3_500, "least", &json!({ "mark": wall(3), "active": { "least-2": intent(2) } }));
    assert_eq!(judge(&evidence).ran_share.unhindered, 3);
}

#[test]
fn a_run_before_its_slot_fails_unless_its_replica_had_a_wrong_clock_and_it_is_within_what_that_is_held_to() {
    for (token, early, allowed) in [(5, 9, true), (5, 11, false), (8, 2_000, true), (8, 2_600, false)] {
        let mut evidence = clean(Family::Kill);
        let off = SignedDuration::from_hours(1);
        evidence.trials[0].wrong_clock = Some(WrongClock { token: 8, off, told: Some(off) });
        evidence.entries.push(entry(60_000 - early, "least", 60, token, if token == 5 { A } else { B }));
        assert_eq!(judge(&evidence).early.is_empty(), allowed, "token {token}, {early} ms");
        assert_eq!(failures(&evidence).iter().any(|failure| failure.contains("before their slot")), !allowed);
    }
}

#[test]
fn a_wrong_clock_that_is_not_told_fails() {
    let off = SignedDuration::from_hours(-1);
    for (told, passes) in [(Some(off), true), (Some(-off), false), (None, false)] {
        let mut evidence = clean(Family::Term);
        evidence.trials[0].wrong_clock = Some(WrongClock { token: 8, off, told });
        assert_eq!(failures(&evidence).is_empty(), passes, "{told:?}");
    }
}

#[test]
fn a_hand_over_is_measured_where_each_change_of_leader_is_one() {
    assert_eq!(judge(&clean(Family::Term)).hand_overs, [Duration::from_millis(1_100)]);
    assert_eq!(judge(&clean(Family::Kill)).hand_overs, Vec::<Duration>::new());
}

#[test]
fn the_share_may_be_exactly_the_floor() {
    assert!(!RanShare { unhindered: 100, ran: 95 }.is_too_small());
    assert!(RanShare { unhindered: 100, ran: 94 }.is_too_small());
    assert!(RanShare::default().is_too_small(), "no slot to run shows nothing");
}

#[test]
fn a_token_of_two_replicas_fails() {
    let about = "two replicas led with the tokens [8]";
    let mut evidence = clean(Family::Kill);
    evidence.entries.push(entry(4_005, "least", 4, 8, A));
    fails(&evidence, about);
    let mut evidence = clean(Family::Kill);
    evidence.probe.take(millis(3_600), b"8 a 0");
    fails(&evidence, about);
}

#[test]
fn evidence_with_a_hole_fails() {
    let mut evidence = clean(Family::Kill);
    evidence.complaints.push("3 datagrams thrown away".into());
    fails(&evidence, "3 datagrams thrown away");
}

#[test]
fn a_slot_coalesced_after_its_terms_first_request_fails() {
    let mut evidence = clean(Family::Kill);
    // A run that was recovered is a request too: who makes one is at work.
    let mut recovered = entry(1_990, "least", 0, 8, B);
    recovered.request.attempt = 2;
    evidence.entries.push(recovered);
    evidence.trials[0].calm = millis(1_500);
    let outside = judge(&evidence).coalesced_in_office;
    assert_eq!(outside, [("least".to_owned(), wall(2))]);
    assert!(failures(&evidence).iter().any(|failure| failure.contains("1 slots coalesced outside a leaderless gap")));

    evidence.entries.last_mut().unwrap().first_byte = millis(2_010);
    assert_eq!(judge(&evidence).coalesced_in_office, []);
}

#[test]
fn what_is_due_within_the_time_that_a_clock_may_be_ahead_may_be_missed() {
    for (first_request, outside) in [(0, 1), (1_000, 0)] {
        let mut evidence = clean(Family::Kill);
        let off = SignedDuration::from_hours(1);
        evidence.trials[0].wrong_clock = Some(WrongClock { token: 8, off, told: Some(off) });
        evidence.entries.push(entry(first_request, "least", 0, 8, B));
        evidence.until = wall(3);
        // The second slot is due at 2 s: two seconds and a half after its term's first request, or less.
        evidence.timeline = Timeline::fixed(millis(600), wall(0));
        assert_eq!(judge(&evidence).coalesced_in_office.len(), outside, "first request at {first_request} ms");
    }
}

#[test]
fn a_slot_that_was_due_before_an_older_terms_last_request_may_be_missed() {
    let mut evidence = clean(Family::Kill);
    // The first run of the older term arrived late, after the second slot was due; then its leader was killed.
    for entry in evidence.entries.iter_mut().filter(|entry| entry.request.token == 5) {
        entry.first_byte = millis(2_200);
    }
    assert_eq!(failures(&evidence), Vec::<String>::new());
}

#[test]
fn percentiles_are_nearest_ranks() {
    let spans: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
    let expected = [1, 50, 99, 100].map(Duration::from_millis);
    assert_eq!(summary(&spans), Some(expected));
    assert_eq!(summary(&spans[..1]), Some([Duration::from_millis(100); 4]));
    assert_eq!(summary(&[]), None);
}

#[test]
fn the_table_names_every_figure() {
    let evidence = clean(Family::Stop);
    let table = render(&evidence, &judge(&evidence));
    for line in [
        "SIGSTOP\n",
        "struck acting                              1",
        "slots due                                  6",
        "-1100.0 ms to -1100.0 ms",
        "1.100 s / 1.100 s / 1.100 s / 1.100 s",
    ] {
        assert!(table.contains(line), "{line:?} is missing in\n{table}");
    }
}
