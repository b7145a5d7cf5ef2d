//! Custom objects and namespaces through raw requests: what the recorded conformance suite does not reach.
#![allow(
    missing_docs,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests wait on tokio's paused time, and fail by panicking"
)]

use std::time::Duration;

use axum::body::Body;
use http::{HeaderMap, Request};
use http_body_util::BodyExt;
use rstest::rstest;
use sandbox::{Fault, FaultRule, Sandbox, Verb};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use tower::ServiceExt;

struct Answer {
    code: u16,
    headers: HeaderMap,
    body: Value,
}

async fn ask(sandbox: &Sandbox, method: &str, path: &str, kind: &str, body: &Value) -> Answer {
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    let request = Request::builder().method(method).uri(path).header("content-type", kind).body(body).unwrap();
    let response = sandbox.service("test").oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    Answer { code: parts.status.as_u16(), headers: parts.headers, body }
}

async fn get(sandbox: &Sandbox, path: &str) -> Answer {
    ask(sandbox, "GET", path, "application/json", &Value::Null).await
}

async fn post(sandbox: &Sandbox, path: &str, body: &Value) -> Answer {
    ask(sandbox, "POST", path, "application/json", body).await
}

async fn merge(sandbox: &Sandbox, path: &str, body: &Value) -> Answer {
    ask(sandbox, "PATCH", path, "application/merge-patch+json", body).await
}

async fn delete(sandbox: &Sandbox, path: &str) -> Answer {
    ask(sandbox, "DELETE", path, "application/json", &Value::Null).await
}

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const TOYS: &str = "/apis/test.example/v1/namespaces/default/toys";

fn definition(spec: &Value) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "toys.test.example" },
        "spec": {
            "group": "test.example", "scope": "Namespaced", "names": { "plural": "toys", "kind": "Toy" },
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": { "status": {} },
                "schema": { "openAPIV3Schema": { "type": "object", "properties": {
                    "spec": spec,
                    "status": { "type": "object", "properties": { "seen": { "type": "boolean" } } },
                } } },
            }],
        },
    })
}

fn toy(name: &str, spec: &Value) -> Value {
    json!({ "apiVersion": "test.example/v1", "kind": "Toy", "metadata": { "name": name }, "spec": spec })
}

fn loose() -> Value {
    json!({ "type": "object", "properties": { "size": { "type": "integer" }, "name": { "type": "string" } } })
}

async fn with_toys(spec: &Value) -> Sandbox {
    let sandbox = Sandbox::builder().seed(1).build();
    let created = post(&sandbox, DEFINITIONS, &definition(spec)).await;
    assert_eq!(created.code, 201, "{}", created.body);
    sandbox
}

/// The frames of a watch until it ends.
async fn frames(sandbox: &Sandbox, path: &str) -> Vec<Value> {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let response = sandbox.service("watcher").oneshot(request).await.unwrap();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

#[tokio::test(start_paused = true)]
async fn an_unchanged_value_that_a_stricter_schema_refuses_does_not_block_other_changes() {
    let sandbox = with_toys(&loose()).await;
    assert_eq!(post(&sandbox, TOYS, &toy("a", &json!({ "size": 20, "name": "x" }))).await.code, 201);
    let strict = json!({
        "type": "object",
        "properties": { "size": { "type": "integer", "maximum": 10 }, "name": {
            "type": "string", "x-kubernetes-validations": [{ "rule": "self != 'x'", "message": "not x" }],
        }, "more": { "type": "string" } },
        "x-kubernetes-validations": [{ "rule": "self.name != 'y'", "message": "not y" }],
    });
    let changed =
        merge(&sandbox, &format!("{DEFINITIONS}/toys.test.example"), &json!({ "spec": definition(&strict)["spec"] }))
            .await;
    assert_eq!(changed.code, 200, "{}", changed.body);
    let path = format!("{TOYS}/a");
    assert_eq!(
        merge(&sandbox, &path, &json!({ "spec": { "more": "m" } })).await.code,
        200,
        "size and name are as they were"
    );
    assert_eq!(merge(&sandbox, &path, &json!({ "spec": { "name": "z" } })).await.code, 200);
    let worse = merge(&sandbox, &path, &json!({ "spec": { "size": 21 } })).await;
    assert_eq!(worse.code, 422);
    assert_eq!(worse.body["details"]["causes"][0]["field"], "spec.size");
    assert_eq!(
        merge(&sandbox, &path, &json!({ "spec": { "name": "y" } })).await.code,
        422,
        "a rule of the changed part"
    );
    assert_eq!(post(&sandbox, TOYS, &toy("b", &json!({ "size": 20 }))).await.code, 422, "a new object has no past");
}

#[tokio::test(start_paused = true)]
async fn a_default_that_comes_later_is_read_without_a_new_version() {
    let sandbox = with_toys(&loose()).await;
    let created = post(&sandbox, TOYS, &toy("a", &json!({ "size": 1 }))).await.body;
    let mut later = loose();
    later["properties"]["name"]["default"] = json!("given");
    merge(&sandbox, &format!("{DEFINITIONS}/toys.test.example"), &json!({ "spec": definition(&later)["spec"] })).await;
    let read = get(&sandbox, &format!("{TOYS}/a")).await.body;
    assert_eq!(read["spec"]["name"], "given");
    assert_eq!(read["metadata"]["resourceVersion"], created["metadata"]["resourceVersion"]);
}

#[rstest]
#[case::rule(json!({ "type": "object", "x-kubernetes-validations": [{ "rule": "self.size >" }] }), "spec.versions[0].schema.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule")]
#[case::pattern(json!({ "type": "string", "pattern": "(" }), "spec.versions[0].schema.openAPIV3Schema.properties[spec].pattern")]
#[case::format(json!({ "type": "string", "format": "uuid" }), "spec.versions[0].schema.openAPIV3Schema.properties[spec].format")]
#[tokio::test(start_paused = true)]
async fn a_definition_that_could_not_be_enforced_is_refused(#[case] spec: Value, #[case] field: &str) {
    let sandbox = Sandbox::builder().seed(1).build();
    let refused = post(&sandbox, DEFINITIONS, &definition(&spec)).await;
    assert_eq!(refused.code, 422, "{}", refused.body);
    assert_eq!(refused.body["details"]["causes"][0]["field"], field);
    assert_eq!(get(&sandbox, TOYS).await.code, 404);
}

#[rstest]
#[case::scale("/spec/versions/0/subresources", json!({ "scale": {} }), "spec.versions[0].subresources.scale")]
#[case::fields("/spec/versions/0", json!({ "selectableFields": [{ "jsonPath": ".spec.size" }] }), "spec.versions[0].selectableFields")]
#[case::webhook("/spec", json!({ "conversion": { "strategy": "Webhook" } }), "spec.conversion.strategy")]
#[tokio::test(start_paused = true)]
async fn a_definition_that_asks_for_what_is_not_there_is_refused(
    #[case] place: &str,
    #[case] addition: Value,
    #[case] field: &str,
) {
    let sandbox = Sandbox::builder().seed(1).build();
    let mut definition = definition(&loose());
    let part = definition.pointer_mut(place).and_then(Value::as_object_mut).unwrap();
    part.extend(addition.as_object().unwrap().clone());
    let refused = post(&sandbox, DEFINITIONS, &definition).await;
    assert_eq!((refused.code, &refused.body["details"]["causes"][0]["field"]), (422, &json!(field)));
}

#[tokio::test(start_paused = true)]
async fn deleting_a_definition_deletes_its_objects_and_ends_their_watches() {
    let sandbox = with_toys(&loose()).await;
    post(&sandbox, TOYS, &toy("a", &json!({}))).await;
    let watch = tokio::spawn({
        let sandbox = sandbox.clone();
        async move { frames(&sandbox, &format!("{TOYS}?watch=true")).await }
    });
    tokio::task::yield_now().await;
    let started = Instant::now();
    assert_eq!(delete(&sandbox, &format!("{DEFINITIONS}/toys.test.example")).await.code, 200);
    let seen = watch.await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(1), "the watch did not wait for its time");
    assert_eq!(seen.last().unwrap()["type"], "DELETED", "{seen:?}");
    let gone = get(&sandbox, TOYS).await;
    assert_eq!((gone.code, gone.headers["content-type"].as_bytes()), (404, &b"text/plain; charset=utf-8"[..]));
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_is_deleted_takes_nothing_new_and_goes_when_it_is_empty() {
    let sandbox = with_toys(&loose()).await;
    let home = json!({ "metadata": { "name": "home" } });
    assert_eq!(post(&sandbox, "/api/v1/namespaces", &home).await.code, 201);
    let toys = TOYS.replace("default", "home");
    let mut held = toy("held", &json!({}));
    held["metadata"]["finalizers"] = json!(["test.example/f"]);
    assert_eq!(post(&sandbox, &toys, &held).await.code, 201);
    assert_eq!(post(&sandbox, &toys, &toy("free", &json!({}))).await.code, 201);
    let deleted = delete(&sandbox, "/api/v1/namespaces/home").await;
    assert_eq!((deleted.code, &deleted.body["status"]["phase"]), (200, &json!("Terminating")));
    assert_eq!(get(&sandbox, &format!("{toys}/free")).await.code, 404);
    let late = post(&sandbox, &toys, &toy("late", &json!({}))).await;
    assert_eq!((late.code, &late.body["details"]["causes"][0]["reason"]), (403, &json!("NamespaceTerminating")));
    let more = merge(
        &sandbox,
        &format!("{toys}/held"),
        &json!({ "metadata": { "finalizers": ["test.example/f", "test.example/g"] } }),
    )
    .await;
    assert_eq!(more.code, 422, "no finalizer is added to what is going");
    let freed = merge(&sandbox, &format!("{toys}/held"), &json!({ "metadata": { "finalizers": null } })).await;
    assert_eq!(freed.code, 200);
    assert_eq!(get(&sandbox, "/api/v1/namespaces/home").await.code, 404);
}

#[rstest]
#[case::limit("?limit=1")]
#[case::manager("?fieldManager=me")]
#[case::timeout("?timeout=5s")]
#[case::pretty("?pretty=true")]
#[case::empty_pairs("?&limit=500")]
#[tokio::test(start_paused = true)]
async fn some_options_are_accepted_without_effect(#[case] query: &str) {
    let sandbox = with_toys(&loose()).await;
    for name in ["a", "b", "c"] {
        assert_eq!(post(&sandbox, &format!("{TOYS}{query}"), &toy(name, &json!({}))).await.code, 201);
    }
    let list = get(&sandbox, &format!("{TOYS}{query}")).await.body;
    assert_eq!((list["items"].as_array().unwrap().len(), &list["metadata"]["continue"]), (3, &json!("")));
    let body = json!({ "propagationPolicy": "Background", "gracePeriodSeconds": 30 });
    let gone = ask(&sandbox, "DELETE", &format!("{TOYS}/a{query}"), "application/json", &body).await;
    assert_eq!((gone.code, &gone.body["status"]), (200, &json!("Success")));
    assert_eq!(get(&sandbox, &format!("{TOYS}/a")).await.code, 404);
}

#[rstest]
#[case::apply("PATCH", "/a", "application/apply-patch+yaml", json!({}), 415, "server-side apply")]
#[case::dry_patch("PATCH", "/a?dryRun=All", "application/merge-patch+json", json!({}), 422, "dryRun")]
#[case::dry_delete("DELETE", "/a", "application/json", json!({ "dryRun": ["All"] }), 422, "dryRun")]
#[case::orphans("DELETE", "/a", "application/json", json!({ "propagationPolicy": "Orphan" }), 422, "propagationPolicy=Orphan")]
#[case::orphans_by_query(
    "DELETE",
    "/a?propagationPolicy=Orphan",
    "application/json",
    Value::Null,
    422,
    "propagationPolicy=Orphan"
)]
#[case::pages("GET", "?continue=abc", "application/json", Value::Null, 422, "continue")]
#[case::exact(
    "GET",
    "?resourceVersion=1&resourceVersionMatch=Exact",
    "application/json",
    Value::Null,
    422,
    "resourceVersionMatch=Exact"
)]
#[case::streaming(
    "GET",
    "?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan",
    "application/json",
    Value::Null,
    422,
    "sendInitialEvents"
)]
#[case::protobuf("POST", "", "application/vnd.kubernetes.protobuf", json!({}), 415, "unknown format")]
#[tokio::test(start_paused = true)]
async fn what_is_not_there_is_refused_by_name(
    #[case] method: &str,
    #[case] rest: &str,
    #[case] kind: &str,
    #[case] body: Value,
    #[case] code: u16,
    #[case] named: &str,
) {
    let sandbox = with_toys(&loose()).await;
    post(&sandbox, TOYS, &toy("a", &json!({}))).await;
    let before = sandbox.resource_version();
    let refused = ask(&sandbox, method, &format!("{TOYS}{rest}"), kind, &body).await;
    assert_eq!((refused.code, &refused.body["kind"]), (code, &json!("Status")), "{}", refused.body);
    assert!(refused.body["message"].as_str().unwrap().contains(named), "{}", refused.body["message"]);
    assert_eq!(sandbox.resource_version(), before);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_held_reaches_the_store_when_it_is_released() {
    let sandbox = with_toys(&loose()).await;
    let hold = sandbox.faults().new_hold();
    sandbox.faults().add(FaultRule::new(Fault::HoldRequest(hold.id())).verb(Verb::Create).times(1));
    let pending = tokio::spawn({
        let sandbox = sandbox.clone();
        async move { post(&sandbox, TOYS, &toy("a", &json!({}))).await.code }
    });
    hold.wait_reached().await;
    assert_eq!(get(&sandbox, &format!("{TOYS}/a")).await.code, 404);
    hold.release();
    assert_eq!(pending.await.unwrap(), 201);
}

#[tokio::test(start_paused = true)]
async fn delays_fall_before_or_after_the_commit() {
    let sandbox = with_toys(&loose()).await;
    let delay = Duration::from_secs(10);
    for (fault, name, committed) in [(Fault::Delay(delay), "a", false), (Fault::DelayAnswer(delay), "b", true)] {
        let rule = sandbox.faults().add(FaultRule::new(fault).resource("toys").verb(Verb::Create));
        let body = toy(name, &json!({}));
        let mut slow = std::pin::pin!(post(&sandbox, TOYS, &body));
        assert!(timeout(Duration::from_secs(9), &mut slow).await.is_err());
        assert_eq!(get(&sandbox, &format!("{TOYS}/{name}")).await.code == 200, committed);
        assert_eq!(timeout(Duration::from_secs(2), slow).await.unwrap().code, 201);
        assert!(sandbox.faults().remove(rule));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stale_watch_tells_everything_late() {
    let sandbox = with_toys(&loose()).await;
    let from = sandbox.resource_version();
    sandbox
        .faults()
        .add(FaultRule::new(Fault::StaleWatch(Duration::from_mins(1))).client("watcher").resource("toys").times(1));
    let path = format!("{TOYS}?watch=true&timeoutSeconds=70&resourceVersion={from}");
    let request = Request::get(path).body(Body::empty()).unwrap();
    let mut body = sandbox.service("watcher").oneshot(request).await.unwrap().into_body();
    post(&sandbox, TOYS, &toy("a", &json!({}))).await;
    let waiting = Instant::now();
    assert!(timeout(Duration::from_secs(59), body.frame()).await.is_err(), "nothing for a minute");
    post(&sandbox, TOYS, &toy("b", &json!({}))).await;
    let mut names = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        let frame: Value = serde_json::from_slice(&frame.into_data().unwrap()).unwrap();
        names.push(frame["object"]["metadata"]["name"].as_str().unwrap_or_default().to_owned());
        assert!(waiting.elapsed() >= Duration::from_mins(1));
    }
    assert_eq!(names, ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn rules_are_aimed_at_subresources_names_and_bodies() {
    let sandbox = with_toys(&loose()).await;
    for name in ["a", "b"] {
        post(&sandbox, TOYS, &toy(name, &json!({}))).await;
    }
    let refuse = || FaultRule::new(Fault::Refuse { code: 500, retry_after: None });
    sandbox.faults().add(refuse().resource("toys/status").name("a"));
    sandbox.faults().add(refuse().verb(Verb::Patch).body_contains("\"size\":7"));
    let status = json!({ "status": { "seen": true } });
    assert_eq!(merge(&sandbox, &format!("{TOYS}/a/status"), &status).await.code, 500);
    assert_eq!(merge(&sandbox, &format!("{TOYS}/b/status"), &status).await.code, 200);
    assert_eq!(merge(&sandbox, &format!("{TOYS}/a"), &json!({ "spec": { "size": 6 } })).await.code, 200);
    assert_eq!(merge(&sandbox, &format!("{TOYS}/a"), &json!({ "spec": { "size": 7 } })).await.code, 500);
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_gives_the_same_uids_and_names() {
    let run = async |seed| {
        let sandbox = Sandbox::builder().seed(seed).build();
        let lease = json!({ "metadata": { "generateName": "l-" } });
        let path = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
        let made = post(&sandbox, path, &lease).await.body;
        (made["metadata"]["uid"].clone(), made["metadata"]["name"].clone())
    };
    let (first, same, other) = (run(7).await, run(7).await, run(8).await);
    assert_eq!(first, same);
    assert_ne!(first, other);
}
