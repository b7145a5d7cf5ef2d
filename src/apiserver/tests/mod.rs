//! Against servers on the loopback interface, each of which tells what reached it over which connection.

mod credentials;
mod elector;
mod gated;
mod support;

use std::convert::Infallible;

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, api::ListParams};

use super::*;
use crate::clock::{Clock, RATE_ONE, SimulatedClock, SystemClock};
use support::{Said, Stub, config, reply};

#[tokio::test(start_paused = true)]
async fn a_request_that_is_never_answered_ends_with_an_error() {
    let clock = SimulatedClock::new(Timestamp::UNIX_EPOCH, RATE_ONE, SignedDuration::ZERO);
    let silent = tower::service_fn(|_: Request<Body>| {
        std::future::pending::<Result<Response<http_body_util::Empty<bytes::Bytes>>, Infallible>>()
    });
    let api = ApiServer::from_service(silent, "default", clock.clone());
    let maps: Api<ConfigMap> = Api::all(api.client());
    let listed = maps.list(&ListParams::default()).await;
    assert!(listed.is_err());
    assert!(clock.boot().since_origin() >= ANSWER_HEAD_MAX);
}

#[test]
fn a_proxy_is_refused_by_name() {
    let mut config = Config::new(http::Uri::from_static("https://127.0.0.1:6443"));
    config.proxy_url = Some(http::Uri::from_static("http://proxy:3128"));
    let message = ApiServer::from_config(config, SystemClock::shared()).expect_err("a proxy").to_string();
    assert!(message.contains("http://proxy:3128"), "{message}");
}

async fn list(api: &ApiServer) -> Result<(), kube::Error> {
    Api::<ConfigMap>::all(api.client()).list(&ListParams::default()).await.map(drop)
}

#[rstest::rstest]
#[case::too_many_requests(429)]
#[case::internal_error(500)]
#[case::unavailable(503)]
#[tokio::test]
async fn after_an_error_of_the_server_another_connection_is_opened(#[case] status: u16) {
    let stub = Stub::start(move |said: &Said| if said.connection == 0 { reply(status, "") } else { reply(200, LIST) });
    let api = ApiServer::from_config(config(&stub), SystemClock::shared()).expect("a configuration");
    list(&api).await.expect_err("an error");
    for _ in 0..2 {
        list(&api).await.expect("another server");
    }
    let connections: Vec<usize> = stub.said().iter().map(|said| said.connection).collect();
    assert_eq!(connections, [0, 1, 1]);
}

#[tokio::test]
async fn a_renewal_of_connections_does_not_disturb_a_request_under_way() {
    let go_on = Arc::new(tokio::sync::Notify::new());
    let held = go_on.clone();
    let stub = Stub::start_async(move |said: Said| {
        let held = held.clone();
        async move {
            if said.connection == 0 {
                held.notified().await;
            }
            reply(200, LIST)
        }
    });
    let api = ApiServer::from_config(config(&stub), SystemClock::shared()).expect("a configuration");
    let slow = list(&api);
    let beside = async {
        stub.heard(1).await;
        api.renew_connections();
        list(&api).await.expect("a new connection");
        go_on.notify_one();
    };
    let (slow, ()) = tokio::join!(slow, beside);
    slow.expect("it goes on");
}

#[tokio::test]
async fn a_pause_that_is_asked_for_is_believed_up_to_a_bound() {
    let stub = Stub::start(|_: &Said| {
        let mut answer = reply(429, "");
        answer.headers_mut().insert(http::header::RETRY_AFTER, http::HeaderValue::from_static("3600"));
        answer
    });
    let clock = SystemClock::shared();
    let api = ApiServer::from_config(config(&stub), clock.clone()).expect("a configuration");
    assert!(api.not_before() <= clock.boot());
    list(&api).await.expect_err("an error");
    assert!(api.not_before() > clock.boot());
    assert!(api.not_before() <= clock.boot() + date::RETRY_AFTER_MAX);
}

/// An empty list.
const LIST: &str = r#"{"apiVersion":"v1","kind":"ConfigMapList","metadata":{"resourceVersion":"1"},"items":[]}"#;
