//! The processes around the replicas: the sandbox, and a ledger that writes down what it saw.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::Deserialize;
use thiserror::Error;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, Command},
};

use crate::{
    journal::write_lines,
    ledger::{Entry, Ledger, LedgerError, Pace},
    replicas::ledger_address,
    wait::{self, Overdue},
};

/// How long a process of the harness may take to start or to leave.
const PROCESS_LIMIT: Duration = Duration::from_secs(20);

/// Why a process around the replicas did not work.
#[derive(Debug, Error)]
pub enum OutsideError {
    /// It could not be started, read or awaited.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// It took too long.
    #[error(transparent)]
    Overdue(#[from] Overdue),
    /// Its kubeconfig cannot be used.
    #[error("the sandbox's kubeconfig: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// A client or a request failed.
    #[error("the sandbox: {0}")]
    Kube(Box<kube::Error>),
    /// The ledger could not start.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// What a process printed is not what it should print.
    #[error("{0}")]
    Unexpected(String),
}

impl From<kube::Error> for OutsideError {
    fn from(error: kube::Error) -> Self {
        Self::Kube(Box::new(error))
    }
}

/// A process that ends when its standard input is closed.
#[derive(Debug)]
struct Helper {
    name: &'static str,
    child: Child,
    first_line: String,
}

/// The sandbox as a process.
#[derive(Debug)]
pub(super) struct SandboxProcess {
    helper: Helper,
    kubeconfig: PathBuf,
}

/// A ledger as a process. It writes its entries to a file when it ends.
#[derive(Debug)]
pub(super) struct LedgerProcess {
    helper: Helper,
    entries: PathBuf,
    pub(super) port: u16,
}

/// How often a client made a request.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct RequestCount {
    pub(super) client: String,
    pub(super) verb: String,
    pub(super) resource: String,
    pub(super) count: u64,
}

/// Requests by client, verb and resource.
pub(super) type Requests = BTreeMap<(String, String, String), u64>;

impl Helper {
    /// Starts it and waits for its first line, which says where it listens.
    async fn start(name: &'static str, mut command: Command) -> Result<Self, OutsideError> {
        let failed = |what: &str| {
            let what = format!("{what} {name}");
            move |source| OutsideError::Io { what, source }
        };
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(failed("starting"))?;
        let output = child.stdout.take().expect("the output of a child is piped");
        let mut first_line = String::new();
        let mut reader = BufReader::new(output);
        let read = reader.read_line(&mut first_line);
        let what = format!("{name} says where it listens");
        wait::within(&what, PROCESS_LIMIT, read).await?.map_err(failed("reading the output of"))?;
        if first_line.is_empty() {
            return Err(OutsideError::Unexpected(format!("{name} ended before it said where it listens")));
        }
        Ok(Self { name, child, first_line: first_line.trim().to_owned() })
    }

    /// Closes its standard input and waits for its end.
    async fn stop(mut self) -> Result<(), OutsideError> {
        drop(self.child.stdin.take());
        let what = format!("{} ends", self.name);
        let ended = wait::within(&what, PROCESS_LIMIT, self.child.wait()).await?;
        ended.map_err(|source| OutsideError::Io { what, source })?;
        Ok(())
    }
}

impl SandboxProcess {
    pub(super) async fn start(binary: &Path, directory: &Path, clients: &[String]) -> Result<Self, OutsideError> {
        let kubeconfig = directory.join("kubeconfig");
        let mut command = Command::new(binary);
        command
            .arg("--kubeconfig")
            .arg(&kubeconfig)
            .arg("--clients")
            .arg(clients.join(","))
            .arg("--until-stdin-closes");
        Ok(Self { helper: Helper::start("the sandbox", command).await?, kubeconfig })
    }

    /// The kubeconfig of a client.
    pub(super) fn kubeconfig_of(&self, client: &str) -> PathBuf {
        let mut name = self.kubeconfig.clone().into_os_string();
        name.push(format!(".{client}"));
        name.into()
    }

    /// The harness's own client.
    pub(super) async fn client(&self) -> Result<Client, OutsideError> {
        let kubeconfig = Kubeconfig::read_from(&self.kubeconfig)?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(Client::try_from(config)?)
    }

    pub(super) async fn stop(self) -> Result<(), OutsideError> {
        self.helper.stop().await
    }
}

impl LedgerProcess {
    /// Starts `binary --serve-ledger FILE`.
    pub(super) async fn start(binary: &Path, directory: &Path) -> Result<Self, OutsideError> {
        let entries = directory.join("ledger.jsonl");
        let mut command = Command::new(binary);
        command.arg("--serve-ledger").arg(&entries);
        let helper = Helper::start("the ledger", command).await?;
        let port = helper.first_line.parse();
        let port =
            port.map_err(|_| OutsideError::Unexpected(format!("the ledger's port is {:?}", helper.first_line)))?;
        Ok(Self { helper, entries, port })
    }

    /// Ends it and reads what it saw.
    pub(super) async fn stop(self) -> Result<Vec<Entry>, OutsideError> {
        self.helper.stop().await?;
        let what = format!("reading {}", self.entries.display());
        let text = std::fs::read_to_string(&self.entries).map_err(|source| OutsideError::Io { what, source })?;
        text.lines()
            .map(|line| serde_json::from_str(line).map_err(|error| OutsideError::Unexpected(error.to_string())))
            .collect()
    }
}

/// What the sandbox has been asked so far.
pub(super) async fn requests(client: &Client) -> Result<Requests, OutsideError> {
    let request = http::Request::get("/sandbox/requests").body(Vec::new());
    let request = request.map_err(|error| OutsideError::Unexpected(error.to_string()))?;
    let counts: Vec<RequestCount> = client.request(request).await?;
    Ok(counts.into_iter().map(|count| ((count.client, count.verb, count.resource), count.count)).collect())
}

/// Serves a ledger that answers at once, prints its port, and writes its entries when standard input is closed.
pub async fn serve_ledger(entries: &Path) -> Result<(), OutsideError> {
    let addresses: Vec<_> = (0..3).map(ledger_address).collect();
    let ledger = Ledger::start(&addresses, Pace::default()).await?;
    println!("{}", SocketAddr::new(addresses[0], ledger.port()).port());
    let mut ignored = Vec::new();
    let closed = tokio::io::stdin().read_to_end(&mut ignored).await;
    closed.map_err(|source| OutsideError::Io { what: "reading standard input".to_owned(), source })?;
    let log = ledger.log();
    ledger.stop().await;
    write_lines(entries, log.entries())
        .map_err(|source| OutsideError::Io { what: format!("writing {}", entries.display()), source })
}
