//! Single decisions that a simulation does not look at: how often a machine asks, and what it stops waiting for.

use std::time::Duration;

use super::*;
use crate::election::{
    record::{created, testing::stored},
    timing::TimingRequest,
};

const WALL: Timestamp = Timestamp::UNIX_EPOCH;

fn at(millis: u64) -> BootTime {
    BootTime::from_origin(Duration::from_millis(millis))
}

fn identity() -> Identity {
    Identity::new("pod-0", "b0")
}

fn machine(fresh_installation: bool) -> Machine {
    let timing = Timing::new(TimingRequest::default()).expect("the defaults are safe");
    let mut terms = 0;
    let nonces = move || {
        terms += 1;
        format!("n{terms}")
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
    let other = Identity::new("pod-1", "b1").holder("n0");
    let signed = Identity::new("pod-1", "b1");
    let backup = stored(created(("ns", "main"), &signed, &other, 9, 15, WALL), "u", 500);
    let actions = machine.step(Event::Read { id, outcome: ReadOutcome::Found(backup) }, at(5_004), WALL);
    assert!(matches!(actions[..], [Action::Revoke(_)]), "{actions:?}");
    let _ = machine.step(Event::WorkEnded, at(5_005), WALL);
    let wake = machine.next_wake().expect("it contends");
    assert!(wake >= at(12_504), "it waits for the other term, and asks only after a silence, not {wake:?}");
}

#[test]
fn what_was_known_of_a_fresh_installation_is_not_believed_for_long() {
    let mut machine = machine(true);
    let id = read_id(&machine.step(Event::Tick, at(0), WALL));
    assert!(machine.step(Event::Read { id, outcome: ReadOutcome::Failed }, at(1), WALL).is_empty());
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
