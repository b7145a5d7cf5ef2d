//! The sandbox through a `kube::Client`, in the process and under paused time.
#![allow(
    missing_docs,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests wait on tokio's paused time, and fail by panicking"
)]

use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, Client, Error,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions, WatchEvent, WatchParams},
    runtime::{WatchStreamExt, watcher},
};
use sandbox::{ChangeKind, Fault, FaultRule, Sandbox, Verb};
use serde_json::json;
use tokio::time::{Instant, timeout};

fn leases(sandbox: &Sandbox, client: &str) -> Api<Lease> {
    Api::namespaced(Client::new(sandbox.service(client), "default"), "default")
}

fn lease(holder: &str) -> Lease {
    serde_json::from_value(json!({
        "metadata": { "name": "main" },
        "spec": {
            "holderIdentity": holder, "leaseDurationSeconds": 15, "leaseTransitions": 1,
            "renewTime": "2026-01-01T00:00:00.123456Z",
        },
    }))
    .unwrap()
}

fn refusal(result: Result<impl std::fmt::Debug, Error>) -> Box<kube::core::Status> {
    match result {
        Err(Error::Api(status)) => status,
        other => panic!("expected a Status, got {other:?}"),
    }
}

fn put(api_lease: &Lease, change: impl FnOnce(&mut Lease)) -> Lease {
    let mut lease = api_lease.clone();
    change(&mut lease);
    lease
}

#[tokio::test(start_paused = true)]
async fn a_lease_lives_by_compare_and_swap() {
    let sandbox = Sandbox::builder().seed(1).build();
    let api = leases(&sandbox, "a");
    let created = api.create(&PostParams::default(), &lease("a")).await.unwrap();
    assert!(created.metadata.uid.as_ref().is_some_and(|uid| uid.len() == 36));
    let again = refusal(api.create(&PostParams::default(), &lease("b")).await);
    assert_eq!((again.code, again.reason.as_str()), (409, "AlreadyExists"));
    assert_eq!(again.message, "leases.coordination.k8s.io \"main\" already exists");

    let renewed = put(&created, |lease| lease.spec.as_mut().unwrap().lease_transitions = Some(2));
    let renewed = api.replace("main", &PostParams::default(), &renewed).await.unwrap();
    assert_ne!(renewed.metadata.resource_version, created.metadata.resource_version);
    let same = api.replace("main", &PostParams::default(), &renewed).await.unwrap();
    assert_eq!(same, renewed, "a write that changes nothing keeps the version");

    let stale = refusal(api.replace("main", &PostParams::default(), &created).await);
    assert_eq!((stale.code, stale.reason.as_str()), (409, "Conflict"));
    assert_eq!(
        stale.message,
        "Operation cannot be fulfilled on leases.coordination.k8s.io \"main\": the object has been modified; please \
         apply your changes to the latest version and try again"
    );
    let unversioned = put(&renewed, |lease| lease.metadata.resource_version = None);
    let unversioned = refusal(api.replace("main", &PostParams::default(), &unversioned).await);
    assert_eq!((unversioned.code, unversioned.reason.as_str()), (422, "Invalid"));
}

#[tokio::test(start_paused = true)]
async fn a_put_creates_a_missing_lease_unless_it_names_a_uid() {
    let sandbox = Sandbox::builder().seed(1).build();
    let api = leases(&sandbox, "a");
    let created = api.replace("main", &PostParams::default(), &lease("a")).await.unwrap();
    api.delete("main", &DeleteParams::default()).await.unwrap();
    let status = refusal(api.replace("main", &PostParams::default(), &created).await);
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
    assert!(status.message.contains("Precondition failed: UID in precondition"), "{}", status.message);
}

#[tokio::test(start_paused = true)]
async fn a_time_without_six_fraction_digits_is_refused() {
    let sandbox = Sandbox::builder().seed(1).build();
    let client = Client::new(sandbox.service("a"), "default");
    for (time, accepted) in [
        ("2026-01-01T00:00:00.123456Z", true),
        ("2026-01-01T00:00:00.123456+02:00", true),
        ("2026-01-01T00:00:00Z", false),
        ("2026-01-01T00:00:00.123Z", false),
        ("2026-01-01T00:00:00.123456789Z", false),
        ("2026-01-01T00:00:00.123456", false),
    ] {
        let body = json!({ "metadata": { "generateName": "l-" }, "spec": { "renewTime": time } });
        let request = http::Request::post("/apis/coordination.k8s.io/v1/namespaces/default/leases");
        let result = client.request::<Lease>(request.body(body.to_string().into_bytes()).unwrap()).await;
        match result {
            Ok(_) => assert!(accepted, "{time} was accepted"),
            Err(Error::Api(status)) => {
                assert!(!accepted, "{time}: {}", status.message);
                assert_eq!((status.code, status.reason.as_str()), (400, "BadRequest"));
                assert!(status.message.contains("2006-01-02T15:04:05.000000Z07:00"), "{}", status.message);
            }
            Err(other) => panic!("{other}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_deletion_honours_its_preconditions() {
    let sandbox = Sandbox::builder().seed(1).build();
    let api = leases(&sandbox, "a");
    let created = api.create(&PostParams::default(), &lease("a")).await.unwrap();
    let with = |uid: Option<&str>, version: Option<&str>| DeleteParams {
        preconditions: Some(Preconditions {
            uid: uid.map(str::to_owned),
            resource_version: version.map(str::to_owned),
        }),
        ..DeleteParams::default()
    };
    let wrong = refusal(api.delete("main", &with(Some("other"), None)).await);
    assert_eq!(wrong.code, 409);
    assert!(wrong.message.starts_with("Operation cannot be fulfilled on Lease.coordination.k8s.io \"main\": the UID"));
    assert_eq!(refusal(api.delete("main", &with(None, Some("1"))).await).code, 409);
    let right = with(created.metadata.uid.as_deref(), created.metadata.resource_version.as_deref());
    api.delete("main", &right).await.unwrap();
    assert!(api.get_opt("main").await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_json_patch_whose_test_fails_changes_nothing() {
    let sandbox = Sandbox::builder().seed(1).build();
    let api = leases(&sandbox, "a");
    let created = api.create(&PostParams::default(), &lease("a")).await.unwrap();
    let before = sandbox.resource_version();
    for operations in [
        json!([{ "op": "test", "path": "/metadata/uid", "value": "x" }]),
        json!([{ "op": "test", "path": "/spec/strategy", "value": "x" }]),
        json!([{ "op": "remove", "path": "/spec/strategy" }]),
        json!([{ "op": "add", "path": "/status/x", "value": 1 }]),
    ] {
        let patch = Patch::Json::<()>(serde_json::from_value(operations.clone()).unwrap());
        let status = refusal(api.patch("main", &PatchParams::default(), &patch).await);
        assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"), "{operations}");
        assert_eq!(status.message, "the server rejected our request due to an error in our request");
    }
    assert_eq!(sandbox.resource_version(), before);
    let operations = json!([
        { "op": "test", "path": "/metadata/uid", "value": created.metadata.uid },
        { "op": "replace", "path": "/spec/holderIdentity", "value": "b" },
    ]);
    let patch = Patch::Json::<()>(serde_json::from_value(operations).unwrap());
    let patched = api.patch("main", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(patched.spec.unwrap().holder_identity.as_deref(), Some("b"));
}

#[tokio::test(start_paused = true)]
async fn a_watch_replays_then_follows_and_ends_in_its_time() {
    let sandbox = Sandbox::builder().seed(1).build();
    let api = leases(&sandbox, "a");
    let created = api.create(&PostParams::default(), &lease("a")).await.unwrap();
    let parameters = WatchParams::default().fields("metadata.name=main").timeout(290);
    let started = Instant::now();
    let stream = api.watch(&parameters, created.metadata.resource_version.as_ref().unwrap()).await.unwrap();
    let changed = put(&created, |lease| lease.spec.as_mut().unwrap().holder_identity = Some("b".into()));
    api.replace("main", &PostParams::default(), &changed).await.unwrap();
    api.create(&PostParams::default(), &put(&lease("x"), |l| l.metadata.name = Some("other".into()))).await.unwrap();
    api.delete("main", &DeleteParams::default()).await.unwrap();
    let events: Vec<_> = stream.try_collect().await.unwrap();
    assert_eq!(started.elapsed(), Duration::from_secs(290));
    let kinds: Vec<_> = events
        .iter()
        .map(|event| match event {
            WatchEvent::Added(_) => "ADDED",
            WatchEvent::Modified(_) => "MODIFIED",
            WatchEvent::Deleted(_) => "DELETED",
            WatchEvent::Bookmark(_) => "BOOKMARK",
            WatchEvent::Error(_) => "ERROR",
        })
        .collect();
    // At 60, 120, 180 and 240 s, and just before the end.
    assert_eq!(kinds, ["MODIFIED", "DELETED", "BOOKMARK", "BOOKMARK", "BOOKMARK", "BOOKMARK", "BOOKMARK"]);
    let Some(WatchEvent::Deleted(last)) = events.get(1) else { panic!("{events:?}") };
    assert_eq!(last.metadata.resource_version.as_deref(), Some(sandbox.resource_version().to_string().as_str()));
    assert_eq!(last.spec.as_ref().unwrap().holder_identity.as_deref(), Some("b"));
}

#[tokio::test(start_paused = true)]
async fn a_watch_of_forgotten_history_is_told_so_in_a_frame() {
    let sandbox = Sandbox::builder().seed(1).build();
    let api = leases(&sandbox, "a");
    api.create(&PostParams::default(), &lease("a")).await.unwrap();
    sandbox.compact();
    let mut stream = api.watch(&WatchParams::default(), "1").await.unwrap().boxed();
    let Some(Ok(WatchEvent::Error(status))) = stream.next().await else { panic!("no error frame") };
    assert_eq!((status.code, status.reason.as_str()), (410, "Expired"));
    assert!(stream.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_watcher_sees_every_change_across_its_own_reconnections() {
    let sandbox = Sandbox::builder().seed(1).build();
    let api = leases(&sandbox, "a");
    let mut created = api.create(&PostParams::default(), &lease("a")).await.unwrap();
    let seen = watcher(leases(&sandbox, "b"), watcher::Config::default()).default_backoff().applied_objects();
    // The cut itself is an error that the watcher reports and gets over.
    let mut seen = std::pin::pin!(seen.filter_map(async |event| event.ok()));
    assert!(seen.next().await.is_some());
    for turn in 0..20 {
        // A watch lives for 290 s, so these pauses cross several ends.
        tokio::time::sleep(Duration::from_secs(97)).await;
        if turn == 5 {
            sandbox.faults().add(FaultRule::new(Fault::CutWatch).client("b").times(1));
        }
        created.spec.as_mut().unwrap().lease_transitions = Some(turn + 10);
        created = api.replace("main", &PostParams::default(), &created).await.unwrap();
        let next = timeout(Duration::from_mins(1), seen.next()).await.expect("an event").unwrap();
        assert_eq!(next.spec.unwrap().lease_transitions, Some(turn + 10));
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_a_committed_write() {
    let sandbox = Sandbox::builder().seed(1).build();
    let api = leases(&sandbox, "a");
    sandbox.faults().add(
        FaultRule::new(Fault::DropAnswer { hang: true }).client("a").verb(Verb::Create).resource("leases").times(1),
    );
    assert!(timeout(Duration::from_secs(5), api.create(&PostParams::default(), &lease("a"))).await.is_err());
    let found = leases(&sandbox, "b").get("main").await.unwrap();
    assert_eq!(found.spec.unwrap().holder_identity.as_deref(), Some("a"));
    let refused = api.create(&PostParams::default(), &lease("a")).await;
    assert_eq!(refusal(refused).code, 409, "the rule counted one request");
}

#[tokio::test(start_paused = true)]
async fn a_request_outlives_its_caller() {
    let sandbox = Sandbox::builder().seed(1).build();
    let api = leases(&sandbox, "a");
    sandbox.faults().add(FaultRule::new(Fault::Delay(Duration::from_secs(10))).verb(Verb::Create));
    let mut changes = sandbox.follow();
    assert!(timeout(Duration::from_secs(1), api.create(&PostParams::default(), &lease("a"))).await.is_err());
    let change = timeout(Duration::from_mins(1), changes.recv()).await.expect("a commit").unwrap();
    assert_eq!((change.kind, change.client.as_str(), change.name.as_str()), (ChangeKind::Added, "a", "main"));
    assert_eq!(change.resource, "leases.coordination.k8s.io");
}

#[tokio::test(start_paused = true)]
async fn a_held_answer_arrives_when_it_is_released() {
    let sandbox = Sandbox::builder().seed(1).build();
    let hold = sandbox.faults().new_hold();
    sandbox.faults().add(FaultRule::new(Fault::Hold(hold.id())).client("a").verb(Verb::Create).body_contains("\"a\""));
    let api = leases(&sandbox, "a");
    let pending = tokio::spawn(async move { api.create(&PostParams::default(), &lease("a")).await });
    hold.wait_reached().await;
    assert!(leases(&sandbox, "b").get_opt("main").await.unwrap().is_some(), "it is committed");
    assert!(!pending.is_finished());
    hold.release();
    pending.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_partition_loses_requests_and_withholds_events() {
    let sandbox = Sandbox::builder().seed(1).build();
    let (a, b) = (leases(&sandbox, "a"), leases(&sandbox, "b"));
    let created = b.create(&PostParams::default(), &lease("b")).await.unwrap();
    let stream = a.watch(&WatchParams::default(), created.metadata.resource_version.as_ref().unwrap()).await.unwrap();
    let mut stream = stream.boxed();
    sandbox.faults().partition("a");
    let lost = put(&created, |lease| lease.spec.as_mut().unwrap().holder_identity = Some("a".into()));
    assert!(timeout(Duration::from_secs(30), a.replace("main", &PostParams::default(), &lost)).await.is_err());
    b.delete("main", &DeleteParams::default()).await.unwrap();
    assert!(timeout(Duration::from_secs(30), stream.next()).await.is_err());
    sandbox.faults().heal("a");
    assert!(matches!(stream.next().await, Some(Ok(WatchEvent::Deleted(last))) if last.spec == created.spec));
    sandbox.faults().unreachable("a");
    let broken = a.get("main").await.unwrap_err();
    assert!(matches!(broken, Error::Service(_)), "{broken:?}");
    sandbox.faults().clear();
    assert_eq!(refusal(a.get("main").await).code, 404);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_a_status_with_its_retry_after() {
    let sandbox = Sandbox::builder().seed(1).build();
    sandbox.faults().add(FaultRule::new(Fault::Refuse { code: 429, retry_after: Some(7) }).verb(Verb::Get).times(1));
    let status = refusal(leases(&sandbox, "a").get("main").await);
    assert_eq!((status.code, status.reason.as_str()), (429, "TooManyRequests"));
    assert_eq!(status.details.as_ref().and_then(|details| details.retry_after_seconds.into()), Some(7));
    sandbox.faults().add(FaultRule::new(Fault::Refuse { code: 403, retry_after: None }).resource("leases").times(1));
    let status = refusal(leases(&sandbox, "a").list(&kube::api::ListParams::default()).await);
    assert_eq!((status.code, status.reason.as_str()), (403, "Forbidden"));
    let denied = r#"leases.coordination.k8s.io is forbidden: User "sandbox" cannot list resource "leases" in API group "coordination.k8s.io" in the namespace "default""#;
    assert_eq!(status.message, denied);
}

#[tokio::test(start_paused = true)]
async fn every_answer_carries_the_sandboxs_own_time() {
    let at: jiff::Timestamp = "2031-02-03T04:05:06Z".parse().unwrap();
    let sandbox = Sandbox::builder().clock(std::sync::Arc::new(move || at)).seed(1).build();
    let request = http::Request::get("/api/v1/namespaces/default").body(axum::body::Body::empty()).unwrap();
    let response = tower::ServiceExt::oneshot(sandbox.service("a"), request).await.unwrap();
    assert_eq!(response.headers()["date"], "Mon, 03 Feb 2031 04:05:06 GMT");
}
