use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::{clock::SystemClock, server::Check};

struct Server {
    admin: Admin,
    stopping: Arc<AtomicBool>,
    stuck: Arc<AtomicBool>,
}

async fn server() -> Server {
    let (stopping, stuck) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (asked_stopping, asked_stuck) = (stopping.clone(), stuck.clone());
    let ask = |flag: Arc<AtomicBool>, reason: &'static str| {
        move || if flag.load(Ordering::SeqCst) { Err(reason.to_owned()) } else { Ok(()) }
    };
    let views = AdminViews {
        checks: Checks::new(vec![
            Check::new("election", Probe::Live, ask(asked_stuck, "its loop has not moved for 30s")),
            Check::new("shutdown", Probe::Ready, ask(asked_stopping, "the replica is stopping")),
        ]),
        metrics: Arc::new(|| Ok("tenure_build_info 1\n".to_owned())),
        status: Arc::new(|| Ok(json!({ "identity": "replica-0" }))),
    };
    let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a free port");
    let admin = Admin::start(listener, views, SystemClock::shared(), &Tasks::default()).expect("it has an address");
    Server { admin, stopping, stuck }
}

/// The status code and the body.
async fn ask(admin: &Admin, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(admin.address()).await.expect("it listens");
    let head = format!("GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("the request is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("the answer is text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
    (code, body.to_owned())
}

#[tokio::test]
async fn a_replica_that_stops_is_live_and_not_ready() {
    let server = server().await;
    assert_eq!(ask(&server.admin, "/readyz").await, (200, "ok".to_owned()));
    server.stopping.store(true, Ordering::SeqCst);
    assert_eq!(ask(&server.admin, "/livez").await, (200, "ok".to_owned()));
    assert_eq!(ask(&server.admin, "/healthz").await, (200, "ok".to_owned()));
    let expected = "[+]election ok\n[-]shutdown failed: the replica is stopping\nreadyz check failed\n";
    assert_eq!(ask(&server.admin, "/readyz").await, (503, expected.to_owned()));
    server.admin.stop().await;
}

#[tokio::test]
async fn what_a_restart_repairs_fails_liveness_and_readiness() {
    let server = server().await;
    server.stuck.store(true, Ordering::SeqCst);
    for path in ["/livez", "/healthz", "/readyz"] {
        let (code, body) = ask(&server.admin, path).await;
        assert_eq!(code, 503, "{path}");
        assert!(body.starts_with("[-]election failed: its loop has not moved for 30s\n"), "{path}: {body}");
    }
    server.admin.stop().await;
}

#[tokio::test]
async fn checks_can_be_listed_left_out_and_asked_one_by_one() {
    let server = server().await;
    server.stopping.store(true, Ordering::SeqCst);
    let (code, body) = ask(&server.admin, "/readyz?verbose&exclude=shutdown&exclude=moon").await;
    let expected = "[+]election ok\n[+]shutdown excluded: ok\n\
                    warn: some health checks cannot be excluded: no matches for \"moon\"\nreadyz check passed\n";
    assert_eq!((code, body.as_str()), (200, expected));
    assert_eq!(ask(&server.admin, "/readyz/election").await, (200, "ok".to_owned()));
    let stopping = "shutdown failed: the replica is stopping\n".to_owned();
    assert_eq!(ask(&server.admin, "/readyz/shutdown").await, (503, stopping));
    let unknown = "there is no check called \"shutdown\" here; there are: election\n".to_owned();
    assert_eq!(ask(&server.admin, "/livez/shutdown").await, (404, unknown));
    server.admin.stop().await;
}

#[tokio::test]
async fn metrics_and_status_are_served_and_other_paths_say_what_there_is() {
    let server = server().await;
    assert_eq!(ask(&server.admin, "/metrics").await, (200, "tenure_build_info 1\n".to_owned()));
    assert_eq!(ask(&server.admin, "/status").await, (200, "{\"identity\":\"replica-0\"}".to_owned()));
    let (code, body) = ask(&server.admin, "/").await;
    assert!(code == 404 && body.contains("/readyz"), "{body}");
    server.admin.stop().await;
}

#[tokio::test]
async fn an_address_in_use_is_an_error_that_says_what_to_do() {
    let server = server().await;
    let address = server.admin.address();
    let error = listen(address).await.expect_err("it is in use").to_string();
    assert!(error.contains(&format!("--admin-address {address} is already in use")), "{error}");
    server.admin.stop().await;
    listen(address).await.expect("a stopped server has left its address");
}
