//! How long holders of another make are waited for.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry};

use super::*;
use crate::election::record::testing::{held, nonce, pen, process, stored};

const LEASE: Duration = Duration::from_secs(15);
const GRACE: Duration = Duration::from_secs(5);
const WAITS: Waits = Waits { own_lease: LEASE, foreign_grace: GRACE };
const TENURE: &str = "pod-1_00000001_0000000000000001";
const FOREIGN: &str = "host-1_0f8b3a2e-4c51-4a4e-9f0e-1d2c3b4a5f60";

fn at(seconds: u64) -> BootTime {
    BootTime::from_origin(Duration::from_secs(seconds))
}

/// A record as another client writes it: the holder's name in the spec, the metadata as they were.
fn record(version: u64, holder: &str, seconds: i32, transitions: i32) -> Record {
    let ours = process("pod-0", 0);
    let mut lease = held(&ours, 1, seconds, 1).renewed(&pen(&ours, 1));
    let spec = lease.spec.get_or_insert_default();
    spec.holder_identity = Some(holder.to_owned());
    spec.lease_transitions = Some(transitions);
    stored(lease, "u", version)
}

#[test]
fn a_foreign_holder_gets_a_grace_after_its_expiry_and_a_tenure_holder_none() {
    for (holder, expected) in [(FOREIGN, 20), (TENURE, 15), ("somebody", 20)] {
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
    barriers.observe(&record(3, TENURE, 15, 1), at(60), WAITS);
    barriers.observe(&record(4, "somebody", 16, 1), at(61), WAITS);
    barriers.observe(&record(5, "", 15, 1), at(62), WAITS);
    // It may not know yet that its Lease was edited, and the foreign name has not been in office for a lease since.
    assert_eq!(barriers.readiness(), Readiness::After(at(77)));
}

#[test]
fn an_empty_lease_whose_last_holder_nobody_saw_is_waited_for_in_full() {
    let mut barriers = Barriers::default();
    barriers.observe(&record(3, "", 1, 2), at(4), WAITS);
    assert_eq!(barriers.readiness(), Readiness::After(at(19)));
}

#[test]
fn a_lease_is_waited_for_as_long_as_the_longest_duration_that_it_has_shown() {
    let mut barriers = Barriers::default();
    barriers.observe(&record(2, TENURE, 60, 2), at(0), WAITS);
    // Its renewal at 20 s is missed, and the Lease deleted and made anew by somebody with a shorter one.
    barriers.observe(&record(4, "", 15, 0), at(21), WAITS);
    assert_eq!(barriers.readiness(), Readiness::After(at(81)));
    let mut barriers = Barriers::default();
    barriers.observe(&record(2, TENURE, 60, 2), at(0), WAITS);
    barriers.observe(&record(4, "pod-2_00000002_0000000000000002", 15, 1), at(21), WAITS);
    assert_eq!(barriers.readiness(), Readiness::After(at(81)), "a name that is new");
}

#[test]
fn a_longer_duration_is_forgotten_with_the_release_of_its_term() {
    let mut barriers = Barriers::default();
    barriers.observe(&record(2, TENURE, 60, 2), at(0), WAITS);
    let ours = process("pod-1", 1);
    let released = record(2, TENURE, 60, 2).released_by(&pen(&ours, 3), &nonce(1));
    barriers.observe(&stored(released, "u", 3), at(1), WAITS);
    assert_eq!(barriers.readiness(), Readiness::Now);
    barriers.observe(&record(4, "pod-2_00000002_0000000000000002", 15, 3), at(2), WAITS);
    assert_eq!(barriers.readiness(), Readiness::After(at(17)));
}

#[test]
fn a_longer_duration_is_forgotten_when_a_shorter_term_has_outlasted_it() {
    let mut barriers = Barriers::default();
    barriers.observe(&record(2, "pod-2_00000002_0000000000000002", 60, 1), at(0), WAITS);
    let mut renewals = (0..).map(|number| {
        let renewing = process("pod-1", 1);
        stored(held(&renewing, 1, 15, 3).renewed(&pen(&renewing, number)), "u", 4 + number)
    });
    for second in (30..90).step_by(5) {
        barriers.observe(&renewals.next().expect("endless"), at(second), WAITS);
        assert_eq!(barriers.readiness(), Readiness::After(at(second + 60)), "{second}");
    }
    barriers.observe(&renewals.next().expect("endless"), at(90), WAITS);
    assert_eq!(barriers.readiness(), Readiness::After(at(105)));
}

#[test]
fn an_empty_lease_is_no_release_of_a_foreign_holder_if_an_elector_wrote_since() {
    let mut barriers = Barriers::default();
    barriers.observe(&record(2, FOREIGN, 15, 1), at(0), WAITS);
    let ours = process("pod-0", 0);
    let mut lease = record(2, FOREIGN, 15, 1).renewed(&pen(&ours, 9));
    lease.spec.get_or_insert_default().holder_identity = Some(String::new());
    barriers.observe(&stored(lease.clone(), "u", 9), at(60), WAITS);
    assert_eq!(barriers.readiness(), Readiness::After(at(75)));
    // So is one of another object, that counts its transitions anew.
    let mut barriers = Barriers::default();
    barriers.observe(&record(2, FOREIGN, 15, 1), at(0), WAITS);
    let mut lease = record(2, "", 15, 1).renewed(&pen(&ours, 1));
    lease.metadata.managed_fields = None;
    barriers.observe(&stored(lease, "v", 9), at(60), WAITS);
    assert_eq!(barriers.readiness(), Readiness::After(at(75)));
}

#[test]
fn an_old_manifest_that_is_put_back_is_waited_for_anew() {
    let mut barriers = Barriers::default();
    let seen = record(2, TENURE, 15, 2);
    barriers.observe(&seen, at(0), WAITS);
    // Somebody acquires, unseen, and somebody else puts the record of the first one back: the same words by another hand.
    let mut lease = seen.renewed(&pen(&process("pod-1", 1), 1));
    lease.spec.clone_from(&record(2, TENURE, 15, 2).renewed(&pen(&process("pod-1", 1), 1)).spec);
    barriers.observe(&stored(lease.clone(), "u", 5), at(14), WAITS);
    assert_eq!(barriers.readiness(), Readiness::After(at(15)), "a label is no sign of life");
    lease.metadata.managed_fields = Some(vec![ManagedFieldsEntry {
        manager: Some("kubectl-replace".to_owned()),
        fields_v1: Some(FieldsV1(serde_json::json!({"f:spec": {"f:holderIdentity": {}}}))),
        ..ManagedFieldsEntry::default()
    }]);
    barriers.observe(&stored(lease, "u", 9), at(14), WAITS);
    assert_eq!(barriers.readiness(), Readiness::After(at(29)));
}
