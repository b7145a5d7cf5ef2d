//! Replicas as processes: `tenure run`, started, signalled, awaited and started again.

use std::{
    fs::OpenOptions,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal, kill_process};
use thiserror::Error;
use tokio::{
    net::TcpStream,
    process::{Child, ChildStdin, Command},
    time::timeout,
};

/// How long an admin port of the same machine may take to answer.
const ADMIN_DEADLINE: Duration = Duration::from_secs(2);

/// Why a replica did not do what the harness asked.
#[derive(Debug, Error)]
pub enum ReplicaError {
    /// It could not be started.
    #[error("cannot start {binary}: {source}")]
    Start {
        /// The binary.
        binary: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not running.
    #[error("{0} is not running")]
    NotRunning(String),
    /// It could not be signalled.
    #[error("cannot signal {identity}: {source}")]
    Signal {
        /// The replica.
        identity: String,
        /// What the system said.
        source: rustix::io::Errno,
    },
    /// It did not exit in time.
    #[error("{identity} was still running {limit:?} after it was asked to leave")]
    Stays {
        /// The replica.
        identity: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// Its log or its end could not be read.
    #[error("{identity}: {source}")]
    Io {
        /// The replica.
        identity: String,
        /// What the system said.
        source: io::Error,
    },
}

/// How replicas are started: the binary and the flags that all of them share.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The binary.
    pub binary: PathBuf,
    /// The flags that all replicas share.
    pub flags: Vec<String>,
    /// The host name under which each replica finds its own ledger address.
    pub ledger_host: String,
    /// Where logs go.
    pub directory: PathBuf,
}

/// One replica. Dropping it kills its process.
#[derive(Debug)]
pub struct Replica {
    /// Its identity, which is also its name as a client of the API server.
    pub identity: String,
    /// The ledger address that it dials.
    pub address: IpAddr,
    admin: SocketAddr,
    flags: Vec<String>,
    log: PathBuf,
    launch: Launch,
    child: Option<Child>,
    /// Held here, because waiting for a child closes the standard input that it holds itself, and that asks it to stop.
    input: Option<ChildStdin>,
}

impl Replica {
    /// A replica that is not started yet.
    pub fn new(launch: &Launch, number: u8, kubeconfig: &Path) -> io::Result<Self> {
        let (identity, address) = (format!("replica-{number}"), ledger_address(number));
        let admin = free_port()?;
        let mut flags = launch.flags.clone();
        flags.extend([
            format!("--identity={identity}"),
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--resolve={}={address}", launch.ledger_host),
            format!("--admin-address={admin}"),
        ]);
        let log = launch.directory.join(format!("{identity}.log"));
        Ok(Self { identity, address, admin, flags, log, launch: launch.clone(), child: None, input: None })
    }

    /// Starts its process, with a standard input that stays open as long as the harness lives.
    pub fn start(&mut self) -> Result<u32, ReplicaError> {
        let failed = |source| ReplicaError::Start { binary: self.launch.binary.clone(), source };
        let log = OpenOptions::new().create(true).append(true).open(&self.log).map_err(failed)?;
        let errors = log.try_clone().map_err(failed)?;
        let mut child = Command::new(&self.launch.binary)
            .arg("run")
            .args(&self.flags)
            .arg("--exit-when-stdin-closes")
            .stdin(Stdio::piped())
            .stdout(log)
            .stderr(errors)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let pid = child.id().unwrap_or_default();
        self.input = child.stdin.take();
        self.child = Some(child);
        Ok(pid)
    }

    /// The process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Where its admin server listens.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Sends a signal to its process.
    pub fn signal(&self, signal: Signal) -> Result<(), ReplicaError> {
        let not_running = || ReplicaError::NotRunning(self.identity.clone());
        let raw = self.pid().and_then(|pid| i32::try_from(pid).ok()).ok_or_else(not_running)?;
        let pid = Pid::from_raw(raw).ok_or_else(not_running)?;
        kill_process(pid, signal).map_err(|source| ReplicaError::Signal { identity: self.identity.clone(), source })
    }

    /// Waits until its process has ended.
    pub async fn ended(&mut self, limit: Duration) -> Result<ExitStatus, ReplicaError> {
        let identity = self.identity.clone();
        let child = self.child.as_mut().ok_or_else(|| ReplicaError::NotRunning(identity.clone()))?;
        let status = timeout(limit, child.wait())
            .await
            .map_err(|_| ReplicaError::Stays { identity: identity.clone(), limit })?
            .map_err(|source| ReplicaError::Io { identity, source })?;
        self.child = None;
        Ok(status)
    }

    /// How its process ended, if it ended on its own since the last look.
    pub fn ended_by_itself(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().ok().flatten();
        if status.is_some() {
            self.child = None;
        }
        status
    }

    /// Whether its readiness probe says yes.
    pub async fn is_ready(&self) -> bool {
        matches!(get(self.admin, "/readyz").await, Some((200, _)))
    }
}

/// The ledger address of a replica: one of its own, so that the ledger need not believe what a request says.
pub const fn ledger_address(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11 + number))
}

/// Reads a page of an admin server: status code and body. Nothing if there is no complete answer in time.
pub async fn get(address: SocketAddr, path: &str) -> Option<(u16, Bytes)> {
    let exchange = async {
        let stream = TcpStream::connect(address).await.ok()?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
        let request = http::Request::get(path).header("Host", "admin").body(Empty::<Bytes>::new()).ok()?;
        let answer = async {
            let response = sender.send_request(request).await.ok()?;
            let status = response.status().as_u16();
            let body = response.into_body().collect().await.ok()?.to_bytes();
            Some((status, body))
        };
        tokio::pin!(answer);
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            // The server may close as soon as it has answered: what it sent is still to be read.
            _ = connection => answer.await,
        }
    };
    timeout(ADMIN_DEADLINE, exchange).await.ok().flatten()
}

/// A port that was free a moment ago. Another process can take it in between; the replica then says so and exits.
fn free_port() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(directory: &Path) -> Launch {
        Launch {
            binary: "/bin/sh".into(),
            flags: vec!["-c".into(), "sleep 60".into()],
            ledger_host: "ledger.test".into(),
            directory: directory.to_owned(),
        }
    }

    #[tokio::test]
    async fn a_binary_that_cannot_be_started_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let launch = Launch { binary: "/no/such/tenure".into(), ..launch(directory.path()) };
        let mut replica = Replica::new(&launch, 0, Path::new("kubeconfig")).unwrap();
        let error = replica.start().unwrap_err().to_string();
        assert!(error.starts_with("cannot start /no/such/tenure: "), "{error}");
        assert!(replica.signal(Signal::TERM).unwrap_err().to_string().contains("replica-0 is not running"));
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        // The shell takes "run" for a script that it cannot find, and ends.
        let mut replica = Replica::new(&launch(directory.path()), 1, Path::new("kubeconfig")).unwrap();
        replica.start().unwrap();
        let status = replica.ended(Duration::from_secs(20)).await.unwrap();
        assert!(!status.success());
        assert_eq!(replica.pid(), None);
        assert!(!replica.is_ready().await);
    }
}
