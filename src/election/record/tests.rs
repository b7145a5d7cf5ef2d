//! What a Lease shows, and what is written into it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry};
use serde_json::json;

use super::{
    testing::{held, nonce, pen, process, stored, term},
    *,
};

const LEASE: Duration = Duration::from_secs(15);

fn at(seconds: u64) -> BootTime {
    BootTime::from_origin(Duration::from_secs(seconds))
}

fn first() -> (Identity, Record) {
    let identity = process("pod-0", 0);
    let record = held(&identity, 1, 15, 5);
    (identity, record)
}

/// As the API server records it when `manager` has written these fields.
fn edited_by(mut lease: Lease, manager: &str, fields: serde_json::Value) -> Lease {
    lease.metadata.managed_fields = Some(vec![ManagedFieldsEntry {
        manager: Some(manager.to_owned()),
        fields_v1: Some(FieldsV1(fields)),
        ..ManagedFieldsEntry::default()
    }]);
    lease
}

#[test]
fn a_release_speaks_for_its_own_term_only() {
    let (identity, held) = first();
    assert_eq!(held.released, None);
    let released = stored(held.released_by(&pen(&identity, 2), &nonce(1)), "u", 6);
    assert_eq!(released.content.holder, None);
    assert_eq!(released.released, Some(nonce(1)));
    let acquired = stored(released.acquired(&pen(&identity, 3), &term(&identity, 2), 15), "u", 7);
    assert_eq!(acquired.released, None);
    assert_eq!(acquired.content.transitions, 2);
}

#[test]
fn a_release_that_another_client_left_in_the_metadata_is_not_believed() {
    let (identity, held) = first();
    let mut lease = held.released_by(&pen(&identity, 2), &nonce(1));
    let spec = lease.spec.get_or_insert_default();
    spec.lease_transitions = Some(9);
    assert_eq!(stored(lease.clone(), "u", 8).released, None, "other transitions");
    lease.spec.get_or_insert_default().holder_identity = Some("somebody".to_owned());
    lease.spec.get_or_insert_default().lease_transitions = Some(1);
    assert_eq!(stored(lease, "u", 9).released, None, "held");
}

#[rstest::rstest]
#[case::the_holder(json!({"f:spec": {"f:holderIdentity": {}}}))]
#[case::the_transitions(json!({"f:spec": {"f:leaseTransitions": {}}}))]
#[case::the_release(json!({"f:metadata": {"f:annotations": {"f:tenure.dev/released": {}}}}))]
fn a_release_that_somebody_has_put_back_is_not_believed(#[case] fields: serde_json::Value) {
    let (identity, held) = first();
    let released = held.released_by(&pen(&identity, 2), &nonce(1));
    let by = |manager| stored(edited_by(released.clone(), manager, fields.clone()), "u", 6).released;
    assert_eq!(by("kubectl-replace"), None);
    assert_eq!(by(FIELD_MANAGER), Some(nonce(1)));
    let label = json!({"f:metadata": {"f:labels": {"f:team": {}}}, "f:spec": {"f:renewTime": {}}});
    assert_eq!(stored(edited_by(released, "kubectl-edit", label), "u", 7).released, Some(nonce(1)), "a label");
}

#[test]
fn every_write_carries_uid_and_version_of_what_it_replaces() {
    let (identity, held) = first();
    let acquired = held.acquired(&pen(&identity, 2), &term(&identity, 2), 15);
    for lease in [held.renewed(&pen(&identity, 2)), held.released_by(&pen(&identity, 2), &nonce(1)), acquired] {
        assert_eq!(lease.metadata.uid.as_deref(), Some("u"));
        assert_eq!(lease.metadata.resource_version.as_deref(), Some("5"));
    }
}

#[test]
fn a_process_knows_its_own_terms() {
    let (identity, held) = first();
    let holder = held.content.holder.expect("held");
    assert!(identity.owns(&holder));
    assert_eq!(holder.nonce(), nonce(1));
    assert!(!process("pod-0", 1).owns(&holder));
    assert!(!process("od-0", 0).owns(&holder));
    assert!(!Identity::new("pod", "0_00000000").owns(&Holder("bob".to_owned())));
}

#[rstest::rstest]
#[case::ours("pod-0_00000000_0000000000000001", false)]
#[case::of_a_name_with_underscores("my_app_1_0a0b0c0d_0123456789abcdef", false)]
#[case::client_go("pod-0_0f8b3a2e-4c51-4a4e-9f0e-1d2c3b4a5f60", true)]
#[case::client_go_on_a_host_with_an_underscore("my_host_0f8b3a2e-4c51-4a4e-9f0e-1d2c3b4a5f60", true)]
#[case::of_words("a_b_c", true)]
#[case::of_capitals("pod-0_0A0B0C0D_0123456789ABCDEF", true)]
#[case::without_a_pod("_00000000_0000000000000001", true)]
#[case::one_word("bob", true)]
fn a_holder_is_tenures_by_the_very_shape_of_its_name(#[case] name: &str, #[case] foreign: bool) {
    assert_eq!(Holder(name.to_owned()).is_foreign(), foreign);
}

fn in_place(boot: u64, place: &str) -> Identity {
    process("pod-0", boot).in_place(Some(place.to_owned()))
}

#[test]
fn a_restarted_process_knows_its_predecessor_by_the_place_that_it_has_to_itself() {
    let (dead, restarted) = (in_place(0, "uid-1"), in_place(1, "uid-1"));
    let left = held(&dead, 1, 15, 5);
    assert!(restarted.succeeds(&left, LEASE, at(1)));
    assert!(!dead.succeeds(&left, LEASE, at(1)), "it is itself");
    assert!(!in_place(1, "uid-2").succeeds(&left, LEASE, at(1)), "a pod of the same name that was made anew");
    assert!(!process("pod-0", 1).succeeds(&left, LEASE, at(1)), "it has no lock");
    let without = held(&process("pod-0", 0), 1, 15, 5);
    assert!(!restarted.succeeds(&without, LEASE, at(1)), "the holder has no lock");
    // Another client keeps the annotations, and replaces the holder.
    let mut lease = left.renewed(&pen(&dead, 2));
    lease.spec.get_or_insert_default().holder_identity = Some("pod-1_00000007_0000000000000009".to_owned());
    assert!(!restarted.succeeds(&stored(lease, "u", 6), LEASE, at(1)));
    // A term without a place takes the annotation of the one before away.
    let other = process("pod-0", 2);
    let acquired = stored(left.acquired(&pen(&other, 3), &term(&other, 3), 15), "u", 7);
    assert!(!restarted.succeeds(&acquired, LEASE, at(1)));
}

#[test]
fn a_predecessor_is_succeeded_only_while_nobody_else_can_have_acquired() {
    let (dead, restarted) = (in_place(0, "uid-1"), in_place(1, "uid-1"));
    let renewed = |sent, seconds| {
        let mut lease = held(&dead, 1, seconds, 5).renewed(&Pen { sent, ..pen(&dead, 2) });
        lease.spec.get_or_insert_default().lease_duration_seconds = Some(seconds);
        stored(lease, "u", 6)
    };
    assert!(restarted.succeeds(&renewed(at(100), 15), LEASE, at(112)));
    assert!(
        !restarted.succeeds(&renewed(at(100), 15), LEASE, at(113)),
        "an old manifest shows it, for all that is known"
    );
    assert!(!restarted.succeeds(&renewed(at(100), 3600), LEASE, at(113)), "somebody has edited the duration");
    let put_back = edited_by(
        held(&dead, 1, 15, 5).renewed(&Pen { sent: at(100), ..pen(&dead, 2) }),
        "kubectl-replace",
        json!({"f:spec": {"f:holderIdentity": {}}}),
    );
    assert!(!restarted.succeeds(&stored(put_back, "u", 7), LEASE, at(101)), "somebody has put it back");
}

#[test]
fn a_duration_beyond_what_an_elector_can_have_is_not_believed() {
    let (identity, held) = first();
    let mut lease = held.renewed(&pen(&identity, 2));
    lease.spec.get_or_insert_default().lease_duration_seconds = Some(i32::MAX);
    assert_eq!(stored(lease, "u", 6).content.duration, Duration::from_hours(24));
}

#[test]
fn a_lease_without_a_version_is_refused_by_name() {
    let message = Record::read(Lease::default()).expect_err("no version").to_string();
    assert!(message.contains("metadata.resourceVersion is absent"), "{message}");
}
