//! Single decisions that a simulation does not look at: how often a machine asks, and what it stops waiting for.

use std::time::Duration;

use super::*;
use crate::election::{
    record::testing::{held, nonce, process, stored},
    timing::TimingRequest,
};

const WALL: Timestamp = Timestamp::UNIX_EPOCH;

fn at(millis: u64) -> BootTime {
    BootTime::from_origin(Duration::from_millis(millis))
}

fn identity() -> Identity {
    process("pod-0", 0)
}

fn machine(fresh_installation: bool) -> Machine {
    let timing = Timing::new(TimingRequest::default()).expect("the defaults are safe");
    let mut terms = 0;
    let nonces = move || {
        terms += 1;
        nonce(terms)
    };
    let fresh_until = fresh_installation.then(|| at(2_500));
    Machine::new(("ns", "main"), timing, identity(), Box::new(nonces), fresh_until)
}

fn read_id(actions: &[Action]) -> u64 {
    let [Action::Read { id }] = actions else { panic!("a read was expected, not {actions:?}") };
    *id
}

#[rstest::rstest]
#[case::that_waits(false)]
#[case::that_may_lead_at_once(true)]
fn a_replica_whose_create_fails_pauses_before_the_next(#[case] fresh_installation: bool) {
    let mut machine = machine(fresh_installation);
    let id = read_id(&machine.step(Event::Tick, at(0), WALL));
    let actions = machine.step(Event::Read { id, outcome: ReadOutcome::Absent }, at(1), WALL);
    let [Action::Create { write, .. }] = actions[..] else { panic!("a create was expected, not {actions:?}") };
    let unclear = Event::Answered { write, outcome: WriteOutcome::Unclear };
    let id = read_id(&machine.step(unclear, at(2), WALL));
    let actions = machine.step(Event::Read { id, outcome: ReadOutcome::Absent }, at(3), WALL);
    assert!(actions.is_empty(), "{actions:?}");
    assert!(machine.next_wake() >= Some(at(1_000)), "{:?}", machine.next_wake());
}

#[test]
fn a_store_that_went_back_does_not_keep_a_replica_from_contending() {
    let mut machine = machine(true);
    let id = read_id(&machine.step(Event::Tick, at(0), WALL));
    let actions = machine.step(Event::Read { id, outcome: ReadOutcome::Absent }, at(1), WALL);
    let [Action::Create { write, ref lease }] = actions[..] else { panic!("a create was expected, not {actions:?}") };
    let record = stored((**lease).clone(), "u", 1_000);
    let actions = machine.step(Event::Answered { write, outcome: WriteOutcome::Stored(record) }, at(2), WALL);
    assert!(matches!(actions[..], [Action::Lead(_)]), "{actions:?}");
    // A renewal is on its way when the store is put back to a backup, in which another term is the last.
    let actions = machine.step(Event::Tick, at(5_002), WALL);
    let [Action::Replace { write, .. }] = actions[..] else { panic!("a renewal was expected, not {actions:?}") };
    let unclear = Event::Answered { write, outcome: WriteOutcome::Unclear };
    let id = read_id(&machine.step(unclear, at(5_003), WALL));
    let backup = held(&process("pod-1", 1), 9, 15, 500);
    let actions = machine.step(Event::Read { id, outcome: ReadOutcome::Found(backup) }, at(5_004), WALL);
    assert!(matches!(actions[..], [Action::Revoke(_)]), "{actions:?}");
    let _ = machine.step(Event::WorkEnded, at(5_005), WALL);
    let wake = machine.next_wake().expect("it contends");
    assert!(wake >= at(10_004), "it waits for the other term, and asks only when a renewal is overdue, not {wake:?}");
}

#[test]
fn what_was_known_of_a_fresh_installation_is_not_believed_for_long() {
    let mut machine = machine(true);
    let id = read_id(&machine.step(Event::Tick, at(0), WALL));
    assert!(
        machine.step(Event::Read { id, outcome: ReadOutcome::Failed { retry_after: None } }, at(1), WALL).is_empty()
    );
    // It was cut off: meanwhile somebody may have led, and may be cut off in turn.
    let id = read_id(&machine.step(Event::Tick, at(3_000), WALL));
    let actions = machine.step(Event::Read { id, outcome: ReadOutcome::Absent }, at(3_001), WALL);
    let [Action::Create { lease, .. }] = &actions[..] else { panic!("a create was expected, not {actions:?}") };
    let spec = lease.spec.as_ref().expect("a spec");
    assert_eq!(spec.holder_identity.as_deref(), Some(""), "it puts an empty Lease there and waits");
}

#[test]
fn a_write_that_is_refused_though_nothing_has_changed_is_followed_by_a_pause() {
    let mut machine = machine(true);
    let id = read_id(&machine.step(Event::Tick, at(0), WALL));
    let actions = machine.step(Event::Read { id, outcome: ReadOutcome::Absent }, at(1), WALL);
    let [Action::Create { write, .. }] = actions[..] else { panic!("a create was expected, not {actions:?}") };
    let conflict = Event::Answered { write, outcome: WriteOutcome::Conflict };
    let id = read_id(&machine.step(conflict, at(2), WALL));
    let actions = machine.step(Event::Read { id, outcome: ReadOutcome::Absent }, at(3), WALL);
    assert!(actions.is_empty(), "{actions:?}");
    assert_eq!(machine.next_wake(), Some(at(2_003)));
}

/// A machine that leads since `at(2)`, by the answer to its create of version 1,000.
fn leading() -> (Machine, Record) {
    let mut machine = machine(true);
    let id = read_id(&machine.step(Event::Tick, at(0), WALL));
    let actions = machine.step(Event::Read { id, outcome: ReadOutcome::Absent }, at(1), WALL);
    let [Action::Create { write, ref lease }] = actions[..] else { panic!("a create was expected, not {actions:?}") };
    let record = stored((**lease).clone(), "u", 1_000);
    let actions = machine.step(Event::Answered { write, outcome: WriteOutcome::Stored(record.clone()) }, at(2), WALL);
    assert!(matches!(actions[..], [Action::Lead(_)]), "{actions:?}");
    (machine, record)
}

/// A standby that knows since `at(1)` that another term holds the Lease.
fn standby() -> (Machine, Record) {
    let mut machine = machine(false);
    let id = read_id(&machine.step(Event::Tick, at(0), WALL));
    let leaders = held(&process("pod-1", 1), 9, 15, 500);
    let actions = machine.step(Event::Read { id, outcome: ReadOutcome::Found(leaders.clone()) }, at(1), WALL);
    assert!(actions.is_empty(), "{actions:?}");
    (machine, leaders)
}

/// Ticks whenever the machine wants to be woken, until `end`, and returns when it did what.
fn ticks(machine: &mut Machine, end: BootTime) -> Vec<(BootTime, Action)> {
    let mut done = Vec::new();
    while let Some(wake) = machine.next_wake().filter(|wake| *wake <= end) {
        done.extend(machine.step(Event::Tick, wake, WALL).into_iter().map(|action| (wake, action)));
    }
    done
}

#[test]
fn an_answer_that_takes_longer_than_a_try_is_taken_all_the_same() {
    let (mut machine, record) = standby();
    // Each read is answered 4 s after it was sent, when its try has long failed.
    let mut asked = ticks(&mut machine, at(6_000));
    let mut acquired = None;
    for second in (6_000..20_000).step_by(10) {
        asked.extend(ticks(&mut machine, at(second)));
        for (sent, action) in std::mem::take(&mut asked) {
            match action {
                Action::Read { id } if sent <= at(second - 4_000) => {
                    let outcome = ReadOutcome::Found(record.clone());
                    let actions = machine.step(Event::Read { id, outcome }, at(second), WALL);
                    asked.extend(actions.into_iter().map(|action| (at(second), action)));
                }
                Action::Replace { .. } => acquired = acquired.or(Some(sent)),
                action => asked.push((sent, action)),
            }
        }
    }
    let acquired = acquired.expect("it acquires");
    assert!(acquired >= at(15_001) && acquired <= at(15_300), "{acquired:?}");
}

#[test]
fn a_slow_read_has_one_more_beside_it_and_no_third() {
    let (mut machine, _) = standby();
    let reads = |done: Vec<(BootTime, Action)>| {
        done.into_iter().filter(|(_, action)| matches!(action, Action::Read { .. })).map(|(sent, _)| sent).collect()
    };
    let sent: Vec<BootTime> = reads(ticks(&mut machine, at(60_000)));
    assert!(sent[1] >= sent[0] + Duration::from_millis(2_500), "{sent:?}");
    for three in sent.windows(3) {
        assert!(three[2] >= three[0] + Duration::from_millis(7_500), "{three:?}");
    }
}

#[test]
fn an_absence_that_is_older_than_what_was_seen_since_is_not_believed() {
    let (mut machine, record) = leading();
    // The answer to the renewal is unclear; the read after it was answered before the renewal was stored.
    let actions = machine.step(Event::Tick, at(5_001), WALL);
    let [Action::Replace { write, ref lease }] = actions[..] else { panic!("a renewal was expected, not {actions:?}") };
    let unclear = Event::Answered { write, outcome: WriteOutcome::Unclear };
    let id = read_id(&machine.step(unclear, at(5_002), WALL));
    let renewed = stored((**lease).clone(), "u", record.resource_version + 1);
    let _ = machine.step(Event::Watched(renewed), at(5_003), WALL);
    let actions = machine.step(Event::Read { id, outcome: ReadOutcome::Absent }, at(5_004), WALL);
    assert!(!actions.iter().any(|action| matches!(action, Action::Revoke(_))), "{actions:?}");
}

#[test]
fn a_standby_asks_soon_after_a_renewal_is_overdue_and_opens_its_watch() {
    let (mut machine, record) = standby();
    for (second, number) in [(5_001, 2), (10_001, 3)] {
        let mut lease = record.renewed(&crate::election::record::testing::pen(&process("pod-1", 1), number));
        lease.metadata.resource_version = None;
        let _ = machine.step(Event::Watched(stored(lease, "u", 500 + number)), at(second), WALL);
    }
    let done = ticks(&mut machine, at(15_700));
    let [(watched, Action::WatchAnew), (asked, Action::Read { .. })] = done[..] else { panic!("{done:?}") };
    assert_eq!(watched, asked);
    assert!(asked > at(15_001) && asked <= at(15_001) + Duration::from_millis(800), "{asked:?}");
}

#[test]
fn an_earlier_record_of_the_own_term_ends_it_and_is_waited_for() {
    let (mut machine, record) = leading();
    let actions = machine.step(Event::Tick, at(5_001), WALL);
    let [Action::Replace { write, ref lease }] = actions[..] else { panic!("a renewal was expected, not {actions:?}") };
    let renewed = stored((**lease).clone(), "u", 1_001);
    let _ = machine.step(Event::Answered { write, outcome: WriteOutcome::Stored(renewed) }, at(5_002), WALL);
    let mut put_back = record;
    put_back.resource_version = 1_002;
    let actions = machine.step(Event::Watched(put_back), at(6_000), WALL);
    assert!(matches!(actions[..], [Action::Revoke(Lost::Edited)]), "{actions:?}");
    let _ = machine.step(Event::WorkEnded, at(6_001), WALL);
    let written = ticks(&mut machine, at(20_999));
    assert!(!written.iter().any(|(_, action)| matches!(action, Action::Replace { .. })), "{written:?}");
}

#[test]
fn a_record_of_an_earlier_own_term_ends_the_present_one_for_good() {
    let (mut machine, record) = leading();
    // It hands over and leads again in a second term; then somebody puts the manifest of the first one back.
    let mut first_term = record;
    let _ = machine.step(Event::Contend(Contention::StandAside), at(1_000), WALL);
    let actions = machine.step(Event::Drained, at(1_001), WALL);
    assert!(matches!(actions[..], [Action::Revoke(Lost::Released)]), "{actions:?}");
    let actions = machine.step(Event::WorkEnded, at(1_002), WALL);
    let [Action::Replace { write, ref lease }] = actions[..] else { panic!("a release was expected, not {actions:?}") };
    let released = stored((**lease).clone(), "u", 1_001);
    let _ = machine.step(Event::Answered { write, outcome: WriteOutcome::Stored(released) }, at(1_003), WALL);
    let actions = machine.step(Event::Contend(Contention::Contend), at(1_200), WALL);
    let [Action::Replace { write, ref lease }] = actions[..] else {
        panic!("an acquire was expected, not {actions:?}")
    };
    let acquired = stored((**lease).clone(), "u", 1_002);
    let actions = machine.step(Event::Answered { write, outcome: WriteOutcome::Stored(acquired) }, at(1_201), WALL);
    assert!(matches!(actions[..], [Action::Lead(_)]), "{actions:?}");

    first_term.resource_version = 1_003;
    let actions = machine.step(Event::Watched(first_term), at(2_000), WALL);
    assert!(matches!(actions[..], [Action::Revoke(_)]), "{actions:?}");
    let _ = machine.step(Event::WorkEnded, at(2_001), WALL);
    let written = ticks(&mut machine, at(16_999));
    assert!(!written.iter().any(|(_, action)| matches!(action, Action::Replace { .. })), "{written:?}");
}

#[test]
fn a_renewal_that_is_refused_at_once_is_tried_at_a_pace_and_as_the_server_asks() {
    for (retry_after, most) in [(None, 20), (Some(Duration::from_secs(3)), 12)] {
        let (mut machine, _) = leading();
        let mut sent = Vec::new();
        while let Some(wake) = machine.next_wake().filter(|wake| *wake < at(11_270)) {
            for action in machine.step(Event::Tick, wake, WALL) {
                if let Action::Replace { write, .. } = action {
                    sent.push(wake);
                    let outcome = WriteOutcome::Refused { retry_after };
                    let _ = machine.step(Event::Answered { write, outcome }, wake, WALL);
                }
            }
        }
        assert!(sent.len() > 1 && sent.len() <= most, "{}: {sent:?}", sent.len());
        let closest = sent.windows(2).map(|pair| pair[1] - pair[0]).min();
        assert!(closest >= Some(Duration::from_millis(100)), "{closest:?}");
    }
}
