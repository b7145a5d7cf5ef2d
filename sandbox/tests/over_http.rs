//! The sandbox over HTTP: the token, the clients it names, and faults set by another process.
#![allow(
    missing_docs,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "real sockets need real time, and a test fails by panicking"
)]

use std::{net::SocketAddr, os::unix::fs::PermissionsExt, process::Stdio, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use sandbox::{Fault, FaultRule, HoldId, Sandbox, ServeOptions, Verb};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpListener,
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Longer than any answer takes, shorter than a person's patience.
const PATIENCE: Duration = Duration::from_secs(20);

struct Server {
    sandbox: Sandbox,
    address: SocketAddr,
    client: Client<HttpConnector, Full<Bytes>>,
    _shutdown: DropGuard,
}

impl Server {
    async fn start() -> Self {
        let sandbox = Sandbox::builder().seed(1).build();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let options = ServeOptions { listener, token: "secret".to_owned(), shutdown: shutdown.clone() };
        let served = sandbox.clone();
        tokio::spawn(async move { served.serve(options).await });
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { sandbox, address, client, _shutdown: shutdown.drop_guard() }
    }

    async fn ask(&self, token: &str, method: &str, path: &str, body: &Value) -> Option<(StatusCode, Value)> {
        let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address))
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {token}"))
            .body(Full::new(body))
            .unwrap();
        let response = timeout(PATIENCE, self.client.request(request)).await.expect("an answer in time").ok()?;
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        Some((status, serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
    }
}

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/default/leases";

fn lease(name: &str) -> Value {
    json!({ "metadata": { "name": name }, "spec": { "holderIdentity": name } })
}

#[tokio::test]
async fn only_a_token_opens_it() {
    let server = Server::start().await;
    for (token, expected) in [
        ("", StatusCode::UNAUTHORIZED),
        ("secre", StatusCode::UNAUTHORIZED),
        ("secrets", StatusCode::UNAUTHORIZED),
        ("secret.", StatusCode::UNAUTHORIZED),
        ("secret", StatusCode::OK),
        ("secret.replica-0", StatusCode::OK),
    ] {
        let (status, body) = server.ask(token, "GET", LEASES, &Value::Null).await.unwrap();
        assert_eq!(status, expected, "{token:?}");
        if expected == StatusCode::UNAUTHORIZED {
            assert_eq!((&body["kind"], &body["reason"]), (&json!("Status"), &json!("Unauthorized")));
        }
    }
    let (status, _) = server.ask("secret.replica-0", "GET", "/sandbox/faults", &Value::Null).await.unwrap();
    assert_eq!(status, StatusCode::FORBIDDEN, "a client cannot set faults");
    let (status, _) = server.ask("", "GET", "/readyz", &Value::Null).await.unwrap();
    assert_eq!(status, StatusCode::OK, "probes have no token");
}

#[tokio::test]
async fn it_listens_on_loopback_only() {
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let options = ServeOptions { listener, token: "secret".to_owned(), shutdown: CancellationToken::new() };
    let error = Sandbox::new().serve(options).await.unwrap_err();
    assert!(error.to_string().starts_with("the sandbox listens on loopback only"), "{error}");
}

#[tokio::test]
async fn another_process_can_aim_faults_at_one_client() {
    let server = Server::start().await;
    let rule = FaultRule::new(Fault::DropAnswer { hang: false }).client("replica-0").verb(Verb::Create).times(1);
    let (status, added) = server.ask("secret", "POST", "/sandbox/faults", &json!(rule)).await.unwrap();
    assert_eq!(status, StatusCode::OK);
    let (status, _) = server.ask("secret.replica-1", "POST", LEASES, &lease("one")).await.unwrap();
    assert_eq!(status, StatusCode::CREATED, "another client is not befallen");
    assert!(server.ask("secret.replica-0", "POST", LEASES, &lease("two")).await.is_none(), "the connection breaks");
    let written: Vec<_> = server.sandbox.history().into_iter().map(|change| (change.name, change.client)).collect();
    assert!(written.contains(&("two".to_owned(), "replica-0".to_owned())), "and the write is committed: {written:?}");
    let (status, _) = server.ask("secret.replica-0", "POST", LEASES, &lease("three")).await.unwrap();
    assert_eq!(status, StatusCode::CREATED, "the rule counted one request");
    let (_, rules) = server.ask("secret", "GET", "/sandbox/faults", &Value::Null).await.unwrap();
    assert_eq!(rules, json!([]));
    let gone = format!("/sandbox/faults/{}", added["id"]);
    let (status, _) = server.ask("secret", "DELETE", &gone, &Value::Null).await.unwrap();
    assert_eq!(status, StatusCode::NOT_FOUND);
    let unknown = json!({ "fault": { "delay": 5 }, "clinet": "replica-0" });
    let (status, _) = server.ask("secret", "POST", "/sandbox/faults", &unknown).await.unwrap();
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "a rule that is misspelt would befall everybody");
}

#[tokio::test]
async fn another_process_can_hold_an_answer_and_release_it() {
    let server = Server::start().await;
    let rule = FaultRule::new(Fault::Hold(HoldId("h".to_owned()))).client("replica-0").verb(Verb::Create);
    server.ask("secret", "POST", "/sandbox/faults", &json!(rule)).await.unwrap();
    let one = lease("one");
    let held = server.ask("secret.replica-0", "POST", LEASES, &one);
    let release = async {
        let (_, state) = server.ask("secret", "GET", "/sandbox/holds/h/wait", &Value::Null).await.unwrap();
        assert_eq!(state, json!({ "reached": 1, "released": false }));
        let (status, _) = server.ask("secret", "GET", &format!("{LEASES}/one"), &Value::Null).await.unwrap();
        assert_eq!(status, StatusCode::OK, "it is committed while its answer waits");
        server.ask("secret", "POST", "/sandbox/holds/h/release", &Value::Null).await.unwrap();
    };
    let (held, ()) = tokio::join!(held, release);
    assert_eq!(held.unwrap().0, StatusCode::CREATED);
    let (_, holds) = server.ask("secret", "GET", "/sandbox/holds", &Value::Null).await.unwrap();
    assert_eq!(holds, json!({ "h": { "reached": 1, "released": true } }));
}

#[tokio::test]
async fn a_kubeconfig_is_for_its_owners_eyes_and_lets_a_client_in() {
    let server = Server::start().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kubeconfig.replica-0");
    Sandbox::write_kubeconfig(&path, server.address, "secret.replica-0").unwrap();
    Sandbox::write_kubeconfig(&path, server.address, "secret.replica-0").unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    let kubeconfig = kube::config::Kubeconfig::read_from(&path).unwrap();
    let options = kube::config::KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    let client = kube::Client::try_from(config).unwrap();
    assert_eq!(client.default_namespace(), "default");
    let written = std::fs::read_to_string(&path).unwrap();
    assert!(written.contains("server: https://"), "kubectl sends no token over plain HTTP: {written}");
    let leases: kube::Api<k8s_openapi::api::coordination::v1::Lease> = kube::Api::default_namespaced(client);
    leases.create(&kube::api::PostParams::default(), &serde_json::from_value(lease("one")).unwrap()).await.unwrap();
    let last = server.sandbox.history().pop().unwrap();
    assert_eq!((last.name.as_str(), last.client.as_str()), ("one", "replica-0"));
}

#[tokio::test]
async fn requests_are_counted_by_client_verb_and_resource_even_if_they_fail() {
    let server = Server::start().await;
    server.ask("secret.replica-0", "POST", LEASES, &lease("one")).await.unwrap();
    let refuse = FaultRule::new(Fault::Refuse { code: 503, retry_after: None }).client("replica-0").verb(Verb::Get);
    server.sandbox.faults().add(refuse);
    for _ in 0..2 {
        server.ask("secret.replica-0", "GET", &format!("{LEASES}/one"), &Value::Null).await.unwrap();
    }
    let (_, counts) = server.ask("secret", "GET", "/sandbox/requests", &Value::Null).await.unwrap();
    let row =
        |verb: &str, count: u64| json!({ "client": "replica-0", "verb": verb, "resource": "leases", "count": count });
    assert_eq!(counts, json!([row("create", 1), row("get", 2)]));
}

#[tokio::test]
async fn another_process_can_cut_a_client_off_and_heal_it() {
    let server = Server::start().await;
    server.ask("secret", "POST", "/sandbox/partitions/replica-0", &Value::Null).await.unwrap();
    let one = lease("one");
    let lost = server.ask("secret.replica-0", "POST", LEASES, &one);
    // Long enough for an answer to have come.
    assert!(timeout(Duration::from_millis(300), lost).await.is_err(), "nothing tells the client");
    let (status, _) = server.ask("secret.replica-1", "GET", &format!("{LEASES}/one"), &Value::Null).await.unwrap();
    assert_eq!(status, StatusCode::NOT_FOUND, "the request was lost on its way");
    server.ask("secret", "DELETE", "/sandbox/partitions/replica-0", &Value::Null).await.unwrap();
    let (status, _) = server.ask("secret.replica-0", "POST", LEASES, &one).await.unwrap();
    assert_eq!(status, StatusCode::CREATED);
}

#[tokio::test]
async fn the_program_serves_its_clients_until_its_parent_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kubeconfig");
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_sandbox"))
        .args(["--clients", "replica-0", "--until-stdin-closes", "--kubeconfig"])
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let address = timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
    assert!(address.starts_with("https://127.0.0.1:"), "{address}");
    for name in ["kubeconfig", "kubeconfig.replica-0"] {
        let kubeconfig = kube::config::Kubeconfig::read_from(folder.path().join(name)).unwrap();
        let options = kube::config::KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
        let client = kube::Client::try_from(config).unwrap();
        assert_eq!(client.apiserver_version().await.unwrap().git_version, "v1.36.3+sandbox");
        let leases: kube::Api<k8s_openapi::api::coordination::v1::Lease> = kube::Api::default_namespaced(client);
        assert!(leases.list(&kube::api::ListParams::default()).await.unwrap().items.is_empty(), "the token is taken");
    }
    drop(child.stdin.take());
    assert!(timeout(PATIENCE, child.wait()).await.expect("it ends").unwrap().success());
}
