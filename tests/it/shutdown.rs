//! How a replica ends when it is asked to: what runs may end, is recorded, and only then is the Lease given up.

use std::{net::SocketAddr, time::Duration};

use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, PostParams},
};
use rustix::process::Signal;
use sandbox::{Fault, FaultRule, Sandbox, ServeOptions, new_token};
use serde_json::json;
use tenure::api::{Outcome, PeriodicJob, PeriodicJobStatus};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_util::sync::CancellationToken;

use crate::support::process::{Process, get, install, kubeconfig};

/// A replica that leads, one job whose run is going on, and the target that lets it end.
struct Scene {
    sandbox: Sandbox,
    process: Process,
    admin: String,
    client: Client,
    answer: watch::Sender<bool>,
    _end: tokio_util::sync::DropGuard,
    _folder: tempfile::TempDir,
}

const PATIENCE: Duration = Duration::from_secs(20);

impl Scene {
    async fn set(grace: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (sandbox, token, end) = (Sandbox::new(), new_token(), CancellationToken::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let path = kubeconfig(folder.path(), listener.local_addr().expect("it has an address"), &token);
        let (served, shutdown) = (sandbox.clone(), end.clone());
        tokio::spawn(async move { served.serve(ServeOptions { listener, token, shutdown }).await });
        let client = Client::new(sandbox.service("test"), "default");
        let (target, mut requests, answer) = slow_target().await;
        post_job(&client, target).await;

        let mut process = Process::start(&[
            "run",
            "--kubeconfig",
            path.to_str().expect("a path in UTF-8"),
            "--admin-address",
            "127.0.0.1:0",
            "--egress-allow",
            "127.0.0.0/8",
            "--termination-grace-period",
            grace,
        ]);
        let admin = process.admin_address();
        tokio::time::timeout(PATIENCE, requests.recv()).await.expect("the job runs").expect("the target lives");
        Self { sandbox, process, admin, client, answer, _end: end.drop_guard(), _folder: folder }
    }

    async fn status(&self) -> PeriodicJobStatus {
        let job = Api::<PeriodicJob>::namespaced(self.client.clone(), "default").get("slow").await;
        job.expect("the job is there").status.expect("it has been run")
    }

    async fn holder(&self) -> Option<String> {
        let lease = Api::<Lease>::namespaced(self.client.clone(), "default").get("tenure").await;
        let spec = lease.expect("there is a Lease").spec.expect("it has a spec");
        spec.holder_identity.filter(|holder| !holder.is_empty())
    }
}

/// Takes requests, tells of each, and answers when it is told to.
async fn slow_target() -> (SocketAddr, mpsc::UnboundedReceiver<()>, watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
    let address = listener.local_addr().expect("it has an address");
    let (seen, requests) = mpsc::unbounded_channel();
    let (answer, may_answer) = watch::channel(false);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (seen, mut may_answer) = (seen.clone(), may_answer.clone());
            tokio::spawn(async move {
                let mut head = [0; 4096];
                if !stream.read(&mut head).await.is_ok_and(|length| length > 0) {
                    return;
                }
                // What the caller does with its connection is not what is tested here.
                seen.send(()).ok();
                if may_answer.wait_for(|may| *may).await.is_ok() {
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").await.ok();
                }
            });
        }
    });
    (address, requests, answer)
}

async fn post_job(client: &Client, target: SocketAddr) {
    install(client).await;
    let kind = ApiResource::erase::<PeriodicJob>(&());
    let spec = json!({ "interval": "1s", "timeout": "1m", "http": { "url": format!("http://{target}/") } });
    let job = DynamicObject::new("slow", &kind).data(json!({ "spec": spec }));
    let jobs = Api::<DynamicObject>::namespaced_with(client.clone(), "default", &kind);
    jobs.create(&PostParams::default(), &job).await.expect("the job is valid");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_ends_within_the_drain_time_is_waited_for_and_recorded_before_the_release() {
    let mut scene = Scene::set("30s").await;
    scene.process.signal(Signal::TERM);
    scene.process.log_line("Stopping");
    let (code, body) = get(&scene.admin, "/readyz");
    assert!(code == 503 && body.contains("[-]shutdown failed: the replica is stopping"), "{body}");
    assert_eq!(get(&scene.admin, "/livez"), (200, "ok".to_owned()));
    assert!(scene.holder().await.is_some(), "the Lease was given up while a run was going on");
    assert_eq!(scene.status().await.active.len(), 1);

    scene.answer.send_replace(true);
    assert_eq!(scene.process.wait().code(), Some(0));
    let status = scene.status().await;
    assert!(status.active.is_empty(), "{:?}", status.active);
    assert_eq!(status.last_runs.first().map(|run| run.outcome), Some(Outcome::Succeeded));
    assert_eq!(status.last_runs.len(), 1, "a new run was started: {:?}", status.last_runs);
    assert_eq!(scene.holder().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_outlasts_the_drain_time_is_cut_off_and_recorded_and_the_lease_released() {
    let mut scene = Scene::set("5s").await;
    scene.process.signal(Signal::TERM);
    assert_eq!(scene.process.wait().code(), Some(0));
    let status = scene.status().await;
    let open: Vec<_> = status.active.values().collect();
    assert!(open.len() == 1 && open[0].ended_at.is_some(), "{open:?}");
    assert_eq!(scene.holder().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_request_to_stop_ends_the_process_at_once() {
    let mut scene = Scene::set("60s").await;
    scene.process.signal(Signal::TERM);
    scene.process.log_line("Stopping");
    scene.process.signal(Signal::TERM);
    scene.process.log_line("error: asked to stop a second time");
    assert_eq!(scene.process.wait().code(), Some(1));
    assert!(scene.holder().await.is_some(), "what was going on was not waited for, and yet the Lease was given up");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_is_forbidden_is_given_up_long_before_the_grace_period_ends() {
    let mut scene = Scene::set("60s").await;
    scene.answer.send_replace(true);
    let forbidden = Fault::Refuse { code: 403, retry_after: None };
    let rule = scene.sandbox.faults().add(FaultRule::new(forbidden).resource("leases"));
    scene.process.signal(Signal::TERM);
    scene.process.log_line("Stopped, but the API server has not confirmed the release");
    scene.process.wait();
    scene.sandbox.faults().remove(rule);
    assert!(scene.holder().await.is_some(), "a forbidden write was stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_may_not_be_recorded_any_more_does_not_hold_up_the_release() {
    let mut scene = Scene::set("60s").await;
    let forbidden = || Fault::Refuse { code: 403, retry_after: None };
    let rules = ["periodicjobs", "periodicjobs/status"]
        .map(|resource| scene.sandbox.faults().add(FaultRule::new(forbidden()).resource(resource)));
    scene.process.signal(Signal::TERM);
    scene.process.log_line("Stopping");
    scene.answer.send_replace(true);
    scene.process.log_line("What became of its runs is not recorded");
    assert_eq!(scene.process.wait().code(), Some(0));
    for rule in rules {
        scene.sandbox.faults().remove(rule);
    }
    assert_eq!(scene.holder().await, None, "the Lease was not given up");
    assert_eq!(scene.status().await.active.len(), 1, "the next leader finds the run open");
}
