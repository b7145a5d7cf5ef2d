//! How long holders of another make are waited for.

use jiff::Timestamp;

use super::*;
use crate::election::record::{Identity, created, testing::stored};

const LEASE: Duration = Duration::from_secs(15);
const GRACE: Duration = Duration::from_secs(5);
const WAITS: Waits = Waits { own_lease: LEASE, foreign_grace: GRACE };
const FOREIGN: &str = "host-1_0f8b3a2e-4c51-4a4e-9f0e-1d2c3b4a5f60";

fn at(seconds: u64) -> BootTime {
    BootTime::from_origin(Duration::from_secs(seconds))
}

/// A record as another client writes it: the holder's name in the spec, the metadata as they were.
fn record(version: u64, holder: &str, seconds: i32, transitions: i32) -> Record {
    let ours = Identity::new("pod-0", "b0");
    let mut lease = created(("ns", "main"), &ours, &ours.holder("n1"), 1, seconds, Timestamp::UNIX_EPOCH);
    let spec = lease.spec.get_or_insert_default();
    spec.holder_identity = Some(holder.to_owned());
    spec.lease_transitions = Some(transitions);
    stored(lease, "u", version)
}

#[test]
fn a_foreign_holder_gets_a_grace_after_its_expiry_and_a_tenure_holder_none() {
    for (holder, expected) in [(FOREIGN, 20), ("pod-1_b1_n1", 15), ("somebody", 20)] {
        let mut barriers = Barriers::default();
        barriers.observe(&record(2, holder, 15, 2), at(0), WAITS);
        assert_eq!(barriers.readiness(), Readiness::After(at(expected)), "{holder}");
    }
}

#[test]
fn the_release_of_a_foreign_holder_is_believed_and_followed_by_the_grace_alone() {
    let mut barriers = Barriers::default();
    barriers.observe(&record(2, FOREIGN, 15, 2), at(0), WAITS);
    barriers.observe(&record(3, FOREIGN, 16, 2), at(60), WAITS);
    barriers.observe(&record(4, "", 1, 2), at(64), WAITS);
    assert_eq!(barriers.readiness(), Readiness::After(at(69)));
    // A label that somebody sets on the empty Lease begins nothing anew.
    barriers.observe(&record(5, "", 1, 2), at(68), WAITS);
    assert_eq!(barriers.readiness(), Readiness::After(at(69)));
}

#[test]
fn a_name_that_was_written_into_the_lease_a_moment_ago_does_not_cut_the_wait_short_when_it_is_emptied() {
    let mut barriers = Barriers::default();
    barriers.observe(&record(3, "somebody", 15, 1), at(0), WAITS);
    barriers.observe(&record(4, "", 15, 1), at(2), WAITS);
    assert_eq!(barriers.readiness(), Readiness::After(at(15)), "a term that it never saw may have been in office");
    // The same name again, in the Lease of another term.
    let mut barriers = Barriers::default();
    barriers.observe(&record(2, "somebody", 15, 1), at(0), WAITS);
    barriers.observe(&record(9, "somebody", 15, 2), at(60), WAITS);
    barriers.observe(&record(10, "", 15, 2), at(61), WAITS);
    assert_eq!(barriers.readiness(), Readiness::After(at(75)));
}

#[test]
fn the_release_of_a_foreign_holder_says_nothing_of_the_tenure_term_before_it() {
    let mut barriers = Barriers::default();
    barriers.observe(&record(2, "somebody", 15, 1), at(0), WAITS);
    barriers.observe(&record(3, "pod-1_b1_n1", 15, 1), at(60), WAITS);
    barriers.observe(&record(4, "somebody", 16, 1), at(61), WAITS);
    barriers.observe(&record(5, "", 15, 1), at(62), WAITS);
    assert_eq!(barriers.readiness(), Readiness::After(at(75)), "it may not know yet that its Lease was edited");
}

#[test]
fn an_empty_lease_whose_last_holder_nobody_saw_is_waited_for_in_full() {
    let mut barriers = Barriers::default();
    barriers.observe(&record(3, "", 1, 2), at(4), WAITS);
    assert_eq!(barriers.readiness(), Readiness::After(at(19)));
}
