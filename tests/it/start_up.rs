//! The binary as an operator meets it: its help, and what it says to wrong input at the start.

use std::net::TcpListener;

use kube::Client;
use rstest::rstest;
use rustix::process::Signal;
use sandbox::{Fault, FaultRule, Sandbox, ServeOptions, new_token};
use tokio_util::sync::CancellationToken;

use crate::support::process::{Process, dead_end, get, get_until, install, kubeconfig, tenure};

/// How it ended, and what it wrote to standard output and to standard error.
fn output(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = tenure(arguments).output().expect("the binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("it writes text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[rstest]
#[case::all(&["--help"], "help")]
#[case::run(&["run", "--help"], "help_run")]
#[case::status(&["status", "--help"], "help_status")]
fn the_help_names_every_verb_flag_and_variable(#[case] arguments: &[&str], #[case] name: &str) {
    let (code, help, _) = output(arguments);
    assert_eq!(code, Some(0));
    insta::assert_snapshot!(name, help);
}

#[test]
fn the_definitions_are_printed_as_they_are_in_deploy() {
    let (code, printed, _) = output(&["crds"]);
    let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/crds/periodicjobs.tenure.dev.yaml");
    assert_eq!(code, Some(0));
    assert_eq!(printed, std::fs::read_to_string(committed).expect("it is committed"));
}

#[rstest]
#[case::no_unit(&["--leader-elect-lease-duration", "15"], "--leader-elect-lease-duration <DURATION>': every number")]
#[case::no_range(&["--egress-allow", "loopback"], "\"loopback\" is not a range of addresses: write ADDRESS/PREFIX")]
#[case::no_address(&["--resolve", "ledger.test"], "\"ledger.test\" is not HOST=ADDRESS")]
#[case::no_rate(&["--catch-up-rate", "0"], "0 is not in 1..=1000")]
#[case::no_lease(&["--adopt-from", "tenure"], "\"tenure\" is not NAMESPACE/LEASE: write the namespace and the name")]
#[case::no_class(&["--class", "Night"], "\"Night\" cannot be a class: write lowercase letters, digits and '-'")]
#[case::no_such_flag(&["--leader-election"], "unexpected argument '--leader-election'")]
fn a_setting_that_cannot_be_read_is_refused_by_name(#[case] arguments: &[&str], #[case] message: &str) {
    let (code, _, error) = output(&[&["run"], arguments].concat());
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains(message), "{error}");
}

#[rstest]
#[case::stop_margin(
    &["--leader-elect-lease-duration", "3s"],
    "stop margin 1s leaves a validity of 1.454545454s with lease duration 3s"
)]
#[case::renew_deadline(
    &["--leader-elect-renew-deadline", "14s"],
    "renew deadline 14s"
)]
#[case::fraction(&["--leader-elect-lease-duration", "1500ms"], "lease duration 1.5s")]
#[case::name(&["--leader-elect-resource-name", "My_Lease"], "Lease name \"My_Lease\": expected")]
#[case::own_lease(
    &["--namespace", "here", "--adopt-from", "there/tenure,here/tenure"],
    "--adopt-from here/tenure: this is the Lease of this very installation"
)]
#[case::level(&["--log-level", "info,tenure=loud"], "--log-level `info,tenure=loud` cannot be used")]
fn settings_that_contradict_each_other_end_the_start_with_both_names(
    #[case] arguments: &[&str],
    #[case] message: &str,
) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = kubeconfig(folder.path(), dead_end(), "token");
    let fixed = ["run", "--admin-address", "127.0.0.1:0", "--kubeconfig", path.to_str().expect("a path in UTF-8")];
    let (code, _, error) = output(&[&fixed[..], arguments].concat());
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains(&format!("error: {message}")), "{error}");
}

#[test]
fn an_admin_address_in_use_ends_the_start_and_says_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    let address = taken.local_addr().expect("it has an address").to_string();
    let (code, _, error) = output(&["run", "--admin-address", &address]);
    assert_eq!(code, Some(1), "{error}");
    let message = format!(
        "error: --admin-address {address} is already in use; end the process that listens there, or choose another \
         address (port 0 takes a free one)\n"
    );
    assert_eq!(error, message);
}

#[rstest]
#[case::absent(None, "failed to read kubeconfig")]
#[case::not_yaml(Some("{"), "failed to parse kubeconfig YAML")]
#[case::no_context(Some("apiVersion: v1\nkind: Config\ncurrent-context: moon\n"), "moon")]
fn a_kubeconfig_that_cannot_be_used_ends_the_start_and_is_named(#[case] content: Option<&str>, #[case] message: &str) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("config");
    if let Some(content) = content {
        std::fs::write(&path, content).expect("the folder can be written to");
    }
    let path = path.to_str().expect("a path in UTF-8");
    let (code, _, error) = output(&["run", "--admin-address", "127.0.0.1:0", "--kubeconfig", path]);
    assert_eq!(code, Some(1), "{error}");
    assert!(error.starts_with(&format!("error: --kubeconfig {path}: ")) && error.contains(message), "{error}");
}

#[test]
fn without_a_cluster_the_start_ends_and_says_how_one_is_named() {
    let (code, _, error) = output(&["run", "--admin-address", "127.0.0.1:0"]);
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("no cluster to work in") && error.contains("--kubeconfig"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_is_not_there_is_waited_for_and_said_once() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (address, token) = (dead_end(), new_token());
    let path = kubeconfig(folder.path(), address, &token);
    let path = path.to_str().expect("a path in UTF-8");
    let mut process = Process::start(&["run", "--admin-address", "127.0.0.1:0", "--kubeconfig", path]);
    let admin = process.admin_address();
    process.log_line("The API server does not serve the Lease");
    let (code, body) = get(&admin, "/readyz");
    assert!(code == 503 && body.contains("[-]lease failed: "), "{body}");
    assert_eq!(get(&admin, "/livez"), (200, "ok".to_owned()));

    let listener = tokio::net::TcpListener::bind(address).await.expect("the port is still free");
    let shutdown = CancellationToken::new();
    let sandbox = Sandbox::new();
    install(&Client::new(sandbox.service("test"), "default")).await;
    let options = ServeOptions { listener, token, shutdown: shutdown.clone() };
    let serving = tokio::spawn(async move { sandbox.serve(options).await });
    get_until(&admin, "/readyz", |code, _| code == 200);
    process.log_line("The API server serves the Lease again");
    process.log_line("Jobs can be watched again");
    for told in ["The API server does not serve the Lease", "Jobs cannot be watched"] {
        assert_eq!(process.seen.matches(told).count(), 1, "{}", process.seen);
    }
    assert!(process.seen.contains("Connection refused"), "{}", process.seen);

    shutdown.cancel();
    serving.await.expect("the sandbox did not panic").expect("the sandbox served");
    process.log_line("The API server does not serve the Lease");
    // Who was ready once stays ready: a restart would repair nothing.
    assert_eq!(get(&admin, "/readyz").0, 200);
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_permission_on_leases_a_replica_waits_unready_and_says_so_once() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (sandbox, token, shutdown) = (Sandbox::new(), new_token(), CancellationToken::new());
    let rule = sandbox.faults().add(FaultRule::new(Fault::Refuse { code: 403, retry_after: None }).resource("leases"));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
    let path = kubeconfig(folder.path(), listener.local_addr().expect("it has an address"), &token);
    let options = ServeOptions { listener, token, shutdown: shutdown.clone() };
    install(&Client::new(sandbox.service("test"), "default")).await;
    let served = sandbox.clone();
    let serving = tokio::spawn(async move { served.serve(options).await });

    let path = path.to_str().expect("a path in UTF-8");
    let mut process = Process::start(&["run", "--admin-address", "127.0.0.1:0", "--kubeconfig", path]);
    let admin = process.admin_address();
    let line = process.log_line("The API server does not serve the Lease");
    assert!(line.contains("forbidden"), "{line}");
    let (_, body) = get_until(&admin, "/readyz", |code, body| code == 503 && body.contains("forbidden"));
    assert!(body.contains("[-]lease failed: "), "{body}");

    sandbox.faults().remove(rule);
    get_until(&admin, "/readyz", |code, _| code == 200);
    process.log_line("The API server serves the Lease again");
    let told = process.seen.matches("The API server does not serve the Lease").count();
    assert_eq!(told, 1, "{}", process.seen);
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code(), Some(0));
    shutdown.cancel();
    serving.await.expect("the sandbox did not panic").expect("the sandbox served");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_prints_who_leads_or_says_what_is_missing() {
    let nobody = dead_end().to_string();
    let (code, _, error) = output(&["status", "--admin-address", &nobody]);
    assert_eq!(code, Some(1), "{error}");
    assert!(error.starts_with(&format!("error: {nobody} cannot be asked: Connection refused")), "{error}");
    let (code, _, error) = output(&["status", "--admin-address", "8080"]);
    assert!(code == Some(2) && error.contains("expected HOST:PORT"), "{error}");

    let folder = tempfile::tempdir().expect("a temporary folder");
    let (sandbox, token, shutdown) = (Sandbox::new(), new_token(), CancellationToken::new());
    let rule = sandbox.faults().add(FaultRule::new(Fault::Refuse { code: 403, retry_after: None }).resource("leases"));
    install(&Client::new(sandbox.service("test"), "default")).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
    let path = kubeconfig(folder.path(), listener.local_addr().expect("it has an address"), &token);
    let options = ServeOptions { listener, token, shutdown: shutdown.clone() };
    let served = sandbox.clone();
    let serving = tokio::spawn(async move { served.serve(options).await });
    let path = path.to_str().expect("a path in UTF-8");
    let fixed = ["run", "--admin-address", "127.0.0.1:0", "--kubeconfig", path];
    // Without jobs, the first leader is waited for as long as a Lease lasts.
    let short = ["--leader-elect-lease-duration", "3s", "--leader-elect-stop-margin", "200ms"];
    let mut process = Process::start(
        &[&fixed[..], &short, &["--leader-elect-retry-period", "300ms", "--identity", "alone"]].concat(),
    );
    let admin = process.admin_address();
    let (code, _, error) = output(&["status", "--admin-address", &admin]);
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains(" is not ready:\n") && error.contains("[-]lease failed: "), "{error}");

    sandbox.faults().remove(rule);
    let (code, printed, error) = output(&["status", "--admin-address", &admin, "--wait", "20s"]);
    assert_eq!(code, Some(0), "{error}");
    let status: serde_json::Value = serde_json::from_str(&printed).expect("it is JSON");
    let holder = status["election"]["holder"].as_str().expect("somebody leads");
    assert!(holder.starts_with("alone_"), "{printed}");
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code(), Some(0));
    shutdown.cancel();
    serving.await.expect("the sandbox did not panic").expect("the sandbox served");
}

#[test]
fn the_end_of_standard_input_stops_a_child_in_an_orderly_way() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = kubeconfig(folder.path(), dead_end(), "token");
    let path = path.to_str().expect("a path in UTF-8");
    let fixed = ["run", "--admin-address", "127.0.0.1:0", "--kubeconfig", path];
    let mut process = Process::start(&[&fixed[..], &["--exit-when-stdin-closes"]].concat());
    process.admin_address();
    drop(process.child.stdin.take());
    process.log_line("Asked to stop reason=\"standard input closed\"");
    assert_eq!(process.wait().code(), Some(0));
}
