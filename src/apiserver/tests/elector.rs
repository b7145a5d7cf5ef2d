//! An elector before several API servers behind one address.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http_body_util::BodyExt;
use kube::client::Body;
use sandbox::Sandbox;
use tower::ServiceExt;

use super::support::{PATIENCE, Reply, Said, Stub, config, reply};
use crate::{
    Elector, Leadership,
    clock::{self, SystemClock},
};

/// The shortest lease that leaves a try half a second.
const LEASE: Duration = Duration::from_secs(3);

/// Longer than a term that is not renewed.
const STAYS: Duration = Duration::from_secs(5);

async fn forward(sandbox: &Sandbox, said: Said) -> Reply {
    let request = http::Request::builder()
        .method(said.method)
        .uri(said.uri)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Body::from(said.body.to_vec()))
        .expect("a request");
    let answer = sandbox.service("stub").oneshot(request).await.expect("the sandbox answers");
    answer.map(|body| body.map_err(Into::into).boxed_unsync())
}

fn is_watch(said: &Said) -> bool {
    said.uri.query().is_some_and(|query| query.contains("watch=true"))
}

fn elector(stub: &Stub) -> Elector {
    Elector::builder("main")
        .namespace("default")
        .lease_duration(LEASE)
        .stop_margin(Duration::from_millis(100))
        .fresh_installation(|_| futures::future::ready(true))
        .start(config(stub))
        .expect("settings that fit")
}

async fn leads(leadership: &Leadership) {
    let mut standing = leadership.watch();
    let leading = standing.wait_for(|standing| matches!(standing, crate::Standing::Leading(_)));
    clock::timeout(&SystemClock, PATIENCE, leading).await.expect("a leader in time").expect("the elector runs");
}

#[rstest::rstest]
#[case::internal_error(500)]
#[case::too_many_requests(429)]
#[case::forbidden(403)]
#[tokio::test(flavor = "multi_thread")]
async fn one_of_three_api_servers_that_only_errs_keeps_nobody_from_leading(#[case] status: u16) {
    let sandbox = Arc::new(Sandbox::new());
    // Which API server a connection leads to: each in turn, beginning with the bad one; the watch finds a good one.
    let servers: Arc<Mutex<HashMap<usize, usize>>> = Arc::default();
    let stub = Stub::start_async(move |said: Said| {
        let good = {
            let mut servers = servers.lock().expect("not poisoned");
            let next = servers.len();
            is_watch(&said) || !servers.entry(said.connection).or_insert(next).is_multiple_of(3)
        };
        let sandbox = sandbox.clone();
        async move { if good { forward(&sandbox, said).await } else { reply(status, "") } }
    });
    let elector = elector(&stub);
    leads(&elector.leadership()).await;
    let term = elector.leadership().term().expect("leading");
    clock::sleep(&SystemClock, STAYS).await;
    assert_eq!(term.check(), Ok(()), "the same term goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_are_refused_are_reported_until_they_are_taken() {
    let (sandbox, refuses) = (Arc::new(Sandbox::new()), Arc::new(AtomicBool::new(false)));
    let refusing = refuses.clone();
    let stub = Stub::start_async(move |said: Said| {
        let (sandbox, refuse) = (sandbox.clone(), refusing.load(Ordering::SeqCst));
        async move { if refuse { reply(401, "") } else { forward(&sandbox, said).await } }
    });
    let elector = elector(&stub);
    leads(&elector.leadership()).await;
    let mut report = elector.report();
    assert_eq!(report.borrow().unauthorized_since, None);
    for refused in [true, false] {
        refuses.store(refused, Ordering::SeqCst);
        let told = report.wait_for(|report| report.unauthorized_since.is_some() == refused);
        clock::timeout(&SystemClock, PATIENCE, told).await.expect("in time").expect("the elector runs");
    }
    assert!(report.borrow().served);
}
