//! A front before a small server, without TLS.

use std::net::Ipv4Addr;

use axum::{Router, body::Body, extract::Request, response::Response};
use bytes::Bytes;
use futures::{StreamExt, channel::mpsc, stream};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use http::{Method, StatusCode, Uri};

use super::*;

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/default/leases/it";
const WATCH: &str = "/apis/coordination.k8s.io/v1/namespaces/default/leases?watch=true";
/// So long at most anything takes that is to happen, and as long is waited for what is not to.
const SOON: Duration = Duration::from_secs(5);
const A_WHILE: Duration = Duration::from_millis(300);

/// What a watch of the server passes on.
type Events = mpsc::UnboundedSender<Bytes>;

async fn front() -> (Front, mpsc::UnboundedReceiver<Events>) {
    let (watches, begun) = mpsc::unbounded();
    let answer = move |request: Request| {
        let watches = watches.clone();
        async move {
            let said = request.headers().get("authorization").map(|it| it.as_bytes().to_vec()).unwrap_or_default();
            if request.uri().query().is_none() {
                return Response::new(Body::from(said));
            }
            let (events, passed) = mpsc::unbounded();
            watches.unbounded_send(events).ok();
            // The head is sent with the first of it.
            let first = stream::iter([Bytes::from_static(b"begun")]);
            Response::new(Body::from_stream(first.chain(passed).map(Ok::<_, std::io::Error>)))
        }
    };
    let listener = TcpListener::bind((HERE, 0)).await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    let front = Front::before(Config::new(uri), (HERE, 0).into(), None).await.unwrap();
    (front, begun)
}

async fn connect(front: &Front) -> SendRequest<Empty<Bytes>> {
    let stream = TcpStream::connect(front.address()).await.unwrap();
    let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn ask(sender: &mut SendRequest<Empty<Bytes>>, method: &str, uri: &str) -> http::Response<hyper::body::Incoming> {
    let request = Request::builder().method(method).uri(uri).header("host", "front").header("authorization", "mine");
    timeout(SOON, sender.ready()).await.unwrap().unwrap();
    timeout(SOON, sender.send_request(request.body(Empty::new()).unwrap())).await.unwrap().unwrap()
}

async fn next(answer: &mut http::Response<hyper::body::Incoming>) -> Option<Bytes> {
    let frame = timeout(SOON, answer.frame()).await.unwrap()?;
    Some(frame.unwrap().into_data().unwrap())
}

#[tokio::test]
async fn an_answer_comes_with_the_credentials_of_who_asked_and_late_if_it_is_to() {
    let (front, _begun) = front().await;
    let mut sender = connect(&front).await;
    let mut answer = ask(&mut sender, "GET", LEASE).await;
    assert_eq!((answer.status(), next(&mut answer).await), (StatusCode::OK, Some(Bytes::from_static(b"mine"))));
    assert_eq!(next(&mut answer).await, None);
    drop(answer);
    front.answer_late(A_WHILE);
    let asked = At::now();
    ask(&mut sender, "PUT", LEASE).await.collect().await.unwrap();
    assert!(At::now().since(asked) >= A_WHILE);
    front.answer_late(SOON * 10);
    let late = ask(&mut sender, "PUT", LEASE);
    let healed = async {
        tokio::time::sleep(A_WHILE).await;
        front.heal();
    };
    assert_eq!(tokio::join!(late, healed).0.status(), StatusCode::OK, "who waits is not kept any longer");
}

#[tokio::test]
async fn one_server_of_three_errs_and_ends_its_watches_cleanly() {
    let (front, mut begun) = front().await;
    let mut senders = Vec::new();
    for _ in 0..4 {
        let mut sender = connect(&front).await;
        ask(&mut sender, "PUT", LEASE).await.collect().await.unwrap();
        senders.push(sender);
    }
    assert_eq!(front.server_of(HERE), Some(0), "the fourth is the first server's again");
    let mut watch = ask(&mut senders[0], "GET", WATCH).await;
    let _events = timeout(SOON, begun.next()).await.unwrap().unwrap();
    assert_eq!(next(&mut watch).await.unwrap(), "begun");
    front.err(0);
    assert_eq!(next(&mut watch).await, None);
    let mut statuses = Vec::new();
    for sender in &mut senders {
        let answer = ask(sender, "GET", LEASE).await;
        statuses.push(answer.status().as_u16());
        answer.collect().await.unwrap();
    }
    assert_eq!(statuses, [500, 200, 200, 500]);
    front.heal();
    assert_eq!(ask(&mut senders[0], "GET", LEASE).await.status(), 200);
}

#[tokio::test]
async fn a_watch_that_went_silent_stays_so_until_it_is_broken_off_and_a_new_one_speaks() {
    let (front, mut begun) = front().await;
    let mut watch = ask(&mut connect(&front).await, "GET", WATCH).await;
    let events = timeout(SOON, begun.next()).await.unwrap().unwrap();
    assert_eq!(next(&mut watch).await.unwrap(), "begun");
    front.silence_open_watches();
    let mut newer = ask(&mut connect(&front).await, "GET", WATCH).await;
    assert_eq!(next(&mut newer).await.unwrap(), "begun");
    events.unbounded_send("swallowed".into()).unwrap();
    // That it ends is swallowed as well.
    drop(events);
    assert!(timeout(A_WHILE, watch.frame()).await.is_err());
    front.heal();
    assert!(timeout(SOON, watch.frame()).await.unwrap().unwrap().is_err(), "it is broken off, not ended");
    assert!(timeout(A_WHILE, newer.frame()).await.is_err(), "one that was never silent goes on");
    front.silence_all_watches();
    let newer_events = timeout(SOON, begun.next()).await.unwrap().unwrap();
    newer_events.unbounded_send("swallowed".into()).unwrap();
    assert!(timeout(A_WHILE, newer.frame()).await.is_err());
    front.heal();
    assert!(timeout(SOON, newer.frame()).await.unwrap().unwrap().is_err());
    let mut newest = ask(&mut connect(&front).await, "GET", WATCH).await;
    assert_eq!(next(&mut newest).await.unwrap(), "begun");
}

#[tokio::test]
async fn who_is_cut_off_gets_no_answer_until_it_is_healed_and_no_other_one_then() {
    let (front, _begun) = front().await;
    let mut sender = connect(&front).await;
    ask(&mut sender, "PUT", LEASE).await.collect().await.unwrap();
    let since = At::now();
    front.cut([HERE]);
    let request = || Request::builder().method("PUT").uri(LEASE).header("host", "front").body(Empty::new()).unwrap();
    let held = sender.send_request(request());
    assert!(timeout(A_WHILE, held).await.is_err());
    assert_eq!(front.with_log(|log| log.renewal_of(HERE, since)), None);
    // It has hung up: what it had asked for is not done afterwards.
    drop(sender);
    tokio::time::sleep(A_WHILE).await;
    front.heal();
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(front.with_log(|log| log.asked().len()), 1);
    let mut sender = connect(&front).await;
    let (renewal, answer) = tokio::join!(front.next_renewal(HERE, SOON), ask(&mut sender, "PUT", LEASE));
    assert_eq!((renewal.is_ok(), answer.status().as_u16()), (true, 200));
}

#[test]
fn requests_are_counted_within_any_window() {
    let at = [0, 1, 2, 9, 10, 11, 30].map(|second| At::from_millis(second * 1_000));
    assert_eq!(most_within(&at, Duration::from_secs(10)), 4, "from 0 to 9, or from 2 to 11");
    assert_eq!(most_within(&at, Duration::from_secs(3)), 3);
    assert_eq!(most_within(&[], Duration::from_secs(10)), 0);
}

#[test]
fn a_request_for_a_lease_is_told_from_another_and_a_watch_from_a_read() {
    let verb = |method: Method, uri: &str| Verb::of(&method, &uri.parse().unwrap());
    assert_eq!(verb(Method::GET, WATCH), Some(Verb::Watch));
    assert_eq!(verb(Method::GET, LEASE), Some(Verb::Get));
    assert_eq!(verb(Method::PUT, LEASE), Some(Verb::Write));
    assert_eq!(verb(Method::GET, "/apis/tenure.dev/v1alpha1/periodicjobs?watch=true"), None);
}

#[test]
fn the_busiest_client_is_counted_from_an_instant_on_and_watches_are_not() {
    let mut log = Log::default();
    let lease: Uri = LEASE.parse().unwrap();
    let other = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
    log.take(HERE, 0, &Method::GET, &lease);
    let since = At::now();
    for client in [HERE, HERE, other] {
        log.take(client, 1, &Method::PUT, &lease);
    }
    log.take(HERE, 2, &Method::GET, &WATCH.parse().unwrap());
    log.take(HERE, 2, &Method::GET, &"/api/v1/namespaces".parse().unwrap());
    assert_eq!(log.most_by_one(since, SOON), 2);
    assert_eq!((log.asked().len(), log.methods()["GET"], log.methods()["PUT"]), (5, 3, 3));
    assert_eq!((log.server_of_last_write(HERE), log.server_of_last_write(other)), (Some(1), Some(1)));
}

#[test]
fn a_container_is_led_by_the_front_through_its_environment_and_back_by_the_removal_of_it() {
    let led = way_patch("tenure", Some("10.89.0.2:9902".parse().unwrap()));
    let container = &led["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["name"], "tenure");
    assert_eq!(container["env"][0], json!({ "name": "KUBERNETES_SERVICE_HOST", "value": "10.89.0.2" }));
    assert_eq!(container["env"][1], json!({ "name": "KUBERNETES_SERVICE_PORT", "value": "9902" }));
    let spec = |template: &Value| serde_json::from_value(template["spec"]["template"]["spec"].clone()).unwrap();
    assert!(is_led_by_a_front(&spec(&led)));
    let back = way_patch("tenure", None);
    let env = &back["spec"]["template"]["spec"]["containers"][0]["env"];
    assert_eq!(env[1], json!({ "name": "KUBERNETES_SERVICE_PORT", "$patch": "delete" }));
}
