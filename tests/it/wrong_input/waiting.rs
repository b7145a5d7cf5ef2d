//! What a replica cannot do anything about: it says so in its log, waits, and goes on when it can.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use kube::{Api, Client, api::PostParams};
use sandbox::{Fault, FaultRule, Sandbox, ServeOptions, new_token};
use tenure::api::PeriodicJob;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{
    Differences,
    real::{RealServer, account, forward},
    table::{RefusedBy, Row, rows},
};
use crate::support::process::{DEADLINE, Process, get, install, kubeconfig};

/// A Lease that is missing, and might have been deleted, is waited for as long as it would have been valid.
const SHORT_LEASE: [&str; 6] = [
    "--leader-elect-lease-duration",
    "3s",
    "--leader-elect-retry-period",
    "300ms",
    "--leader-elect-stop-margin",
    "200ms",
];

/// An API server at an address of its own, which can be stopped and started: the sandbox, or a real one behind a forwarder.
struct Server {
    sandbox: Sandbox,
    real: Option<RealServer>,
    address: SocketAddr,
    token: String,
    serving: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Server {
    async fn reserve() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let real = RealServer::named_by_the_environment().await;
        Self { sandbox: Sandbox::new(), real, address, token: new_token(), serving: None }
    }

    fn client(&self) -> Client {
        match &self.real {
            Some(real) => real.client(),
            None => Client::new(self.sandbox.service("test"), "default"),
        }
    }

    async fn kubeconfig(&self, folder: &Path) -> PathBuf {
        match &self.real {
            Some(real) => {
                let path = folder.join("kubeconfig");
                real.write_kubeconfig(&path, self.address).await;
                path
            }
            None => kubeconfig(folder, self.address, &self.token),
        }
    }

    async fn start(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        let shutdown = CancellationToken::new();
        let serving = if let Some(real) = &self.real {
            tokio::spawn(forward(listener, real.address(), shutdown.clone()))
        } else {
            let options = ServeOptions { listener, token: self.token.clone(), shutdown: shutdown.clone() };
            let sandbox = self.sandbox.clone();
            tokio::spawn(async move { sandbox.serve(options).await.unwrap() })
        };
        self.serving = Some((shutdown, serving));
    }

    async fn stop(&mut self) {
        let (shutdown, serving) = self.serving.take().unwrap();
        shutdown.cancel();
        serving.await.unwrap();
    }

    async fn install_definitions(&self) {
        match &self.real {
            Some(real) => real.install_definitions().await,
            None => install(&self.client()).await,
        }
    }

    /// The account of the replica may do nothing with `resource`.
    async fn refuse(&self, resource: &str) {
        if let Some(real) = &self.real {
            real.grant(Some(resource)).await;
        } else {
            let fault = Fault::Refuse { code: 403, retry_after: None };
            self.sandbox.faults().add(FaultRule::new(fault).resource(resource));
        }
    }

    /// It may again.
    async fn allow(&self) {
        match &self.real {
            Some(real) => real.grant(None).await,
            None => self.sandbox.faults().clear(),
        }
    }

    /// Waits until slots of a job that is created now are run.
    async fn jobs_run(&self) {
        let jobs: Api<PeriodicJob> = Api::namespaced(self.client(), "default");
        let job = serde_json::from_value(serde_json::json!({
            "apiVersion": "tenure.dev/v1alpha1", "kind": "PeriodicJob", "metadata": { "name": "healthy" },
            "spec": { "interval": "200ms", "http": { "url": "http://127.0.0.1:1/" } },
        }))
        .unwrap();
        jobs.create(&PostParams::default(), &job).await.unwrap();
        let deadline = tokio::time::Instant::now() + DEADLINE;
        while jobs.get("healthy").await.unwrap().status.is_none_or(|status| status.counts.ran < 2) {
            assert!(tokio::time::Instant::now() < deadline, "no slot is run");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Brings about what the row names, and returns the line of the log that ends with what the row says, or the log.
async fn play(row: &Row) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::reserve().await;
    let path = server.kubeconfig(folder.path()).await;
    if row.input != "no definition" {
        server.install_definitions().await;
    }
    match row.input.as_str() {
        "unreachable at the start" => {}
        "403 on leases" | "403 on periodicjobs" => {
            server.refuse(row.input.trim_start_matches("403 on ")).await;
            server.start().await;
        }
        "unreachable later" | "no definition" => server.start().await,
        other => panic!("{other:?} is not known"),
    }
    let fixed = ["run", "--admin-address", "127.0.0.1:0", "--kubeconfig", path.to_str().unwrap()];
    let mut process = Process::start(&[&fixed[..], &SHORT_LEASE].concat());
    let admin = process.admin_address();
    if row.input == "unreachable later" {
        process.log_line("Took office");
        server.stop().await;
    }
    let (words, _) = row.message.split_once(" error=").unwrap_or((&row.message, ""));
    let (words, _) = words.split_once(" lease=").unwrap_or((words, ""));
    let said = process.log_line(words);
    assert_eq!(get(&admin, "/livez").0, 200, "a restart would repair nothing");
    if row.input != "unreachable later" {
        let missing = if row.input == "403 on leases" { "[-]lease failed: " } else { "[-]jobs failed: " };
        let (code, body) = get(&admin, "/readyz");
        assert!(code == 503 && body.contains(missing), "{}: {body}", row.input);
    }
    match row.input.as_str() {
        "403 on leases" | "403 on periodicjobs" => server.allow().await,
        "no definition" => server.install_definitions().await,
        "unreachable at the start" | "unreachable later" => server.start().await,
        _ => {}
    }
    server.jobs_run().await;
    assert_eq!(process.seen.matches(words).count(), 1, "it is said once:\n{}", process.seen);
    let from = said.find(words).unwrap();
    said[from..].to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_replica_can_only_wait_for_is_said_once_as_the_table_says_and_then_jobs_run() {
    let mut differences = Differences::default();
    for row in rows(&[RefusedBy::Waits]) {
        let row = Row { message: row.message.replace("<account>", &account()), ..row };
        let said = play(&row).await;
        // How a connection that was open breaks depends on what was under way.
        let known = row.message.strip_suffix("<cause>").filter(|known| said.len() > known.len());
        let same = known.is_some_and(|known| said.starts_with(known));
        differences.compare(&row, if same { &said } else { &row.message }, &said);
    }
    differences.assert_none();
}
