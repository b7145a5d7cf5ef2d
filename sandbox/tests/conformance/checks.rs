//! The suite itself: what counts as a difference, and what is made equal before it is compared.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::suite::Recording;
use crate::suite::compare::{Known, differences, verdict};
use crate::suite::normal::Normaliser;

fn recording(answer: Value) -> Recording {
    Recording { server: String::new(), scenarios: [("s".to_owned(), vec![answer])].into() }
}

fn listed(at: &str) -> Known {
    serde_json::from_value(json!({"scenario": "s", "at": at, "reason": "a test"}))
        .expect("the literal is an entry of the list")
}

#[test]
fn a_difference_that_nobody_lists_is_told_with_its_place() {
    let found = differences(&recording(json!({"a": [1, {"b": 2}]})), &recording(json!({"a": [1, {"b": 3}]})));
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].step, found[0].at.as_str()), (1, "/a/1/b"));
    assert!(verdict(&found, &[]).contains("s step 1 /a/1/b"));
    assert_eq!(verdict(&found, &[listed("/a/1")]), "");
    assert!(!verdict(&found, &[listed("/a/10")]).is_empty());
}

#[test]
fn an_answer_that_is_missing_or_too_many_is_a_difference() {
    let none = Recording { server: String::new(), scenarios: [("s".to_owned(), vec![])].into() };
    assert_eq!(differences(&recording(json!(1)), &none).len(), 1);
    assert_eq!(differences(&none, &recording(json!(1))).len(), 1);
    assert_eq!(differences(&Recording::default(), &recording(json!(1))).len(), 1);
}

#[test]
fn a_listed_difference_that_is_gone_is_told() {
    let same = differences(&recording(json!({"a": 1})), &recording(json!({"a": 1})));
    assert!(verdict(&same, &[listed("/a")]).contains("no difference any more"));
}

#[test]
fn equal_uids_and_versions_stay_equal_and_different_ones_different() {
    let mut normaliser = Normaliser::default();
    let one = "11111111-1111-1111-1111-111111111111";
    let two = "22222222-2222-2222-2222-222222222222";
    let first = normaliser.document(json!({"metadata": {"uid": one, "resourceVersion": "41"}}));
    let second = normaliser.document(json!({"metadata": {"uid": two, "resourceVersion": "43"}, "message": one}));
    assert_eq!(first["metadata"], json!({"uid": "<uid 1>", "resourceVersion": "<version 1>"}));
    assert_eq!(second["metadata"], json!({"uid": "<uid 2>", "resourceVersion": "<version 2>"}));
    assert_eq!(second["message"], "<uid 1>");
}

#[test]
fn the_version_of_a_list_is_judged_by_what_was_seen() {
    let mut normaliser = Normaliser::default();
    normaliser.document(json!({"metadata": {"resourceVersion": "7"}}));
    let list = |version: &str| json!({"kind": "ThingList", "metadata": {"resourceVersion": version}, "items": []});
    let said = |document: Value| document["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    assert_eq!(said(normaliser.document(list("9"))), "<not older than any seen>");
    assert_eq!(said(normaliser.document(list("6"))), "<older than one seen>");
}

#[test]
fn a_present_instant_keeps_its_precision_and_an_old_one_stays_as_it_is() {
    let mut normaliser = Normaliser::default();
    let now = Timestamp::now();
    let text = |document: Value| document["at"].as_str().unwrap().to_owned();
    assert_eq!(text(normaliser.document(json!({"at": format!("{now:.0}")}))), "<now>");
    assert_eq!(text(normaliser.document(json!({"at": format!("{now:.6}")}))), "<now, 6 digits>");
    assert_eq!(text(normaliser.document(json!({"at": "2020-01-01T00:00:00Z"}))), "2020-01-01T00:00:00Z");
}

#[test]
fn causes_are_told_in_one_order_and_the_message_with_them() {
    let status = |first: &str, second: &str| {
        json!({"kind": "Status", "message": format!("is invalid: [{first}: m, {second}: m]"),
            "details": {"causes": [{"field": first, "message": "m"}, {"field": second, "message": "m"}]}})
    };
    let mut normaliser = Normaliser::default();
    assert_eq!(normaliser.document(status("a", "b")), normaliser.document(status("b", "a")));
}
