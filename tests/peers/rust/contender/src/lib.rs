//! What the contenders share: their flags, the signal that ends them, and the probe.
//!
//! The probe is that of Tenure's replicas: one datagram `TOKEN IDENTITY NUMBER` per millisecond while the contender believes
//! that it leads. The identity is new for each process, so that a token need only be new within one.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use clap::Parser;
use rand::Rng as _;
use tokio::{
    net::UdpSocket,
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep_until},
};

/// The resolution of the probe.
const TICK: Duration = Duration::from_millis(1);

/// The flags of every contender.
#[derive(Debug, Clone, Parser)]
pub struct Arguments {
    /// Namespace of the Lease.
    #[arg(long, default_value = "default")]
    pub namespace: String,
    /// Name of the Lease.
    #[arg(long)]
    pub lease: String,
    /// What the identity begins with.
    #[arg(long, env = "POD_NAME")]
    pub pod: String,
    /// Address that a datagram is sent to each millisecond while leading.
    #[arg(long, env = "TENURE_PROBE")]
    pub probe: SocketAddr,
    /// How long the Lease is valid after a renewal.
    #[arg(long, default_value = "15s", value_parser = humantime::parse_duration)]
    pub lease_duration: Duration,
    /// When the leader has to have renewed it.
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    pub renew_deadline: Duration,
    /// Pause between two tries.
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    pub retry_period: Duration,
    /// Release the Lease when told to stop.
    #[arg(long)]
    pub release_on_cancel: bool,
    /// Work on this long after leadership is lost or the process is told to stop.
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
    pub stop_takes: Duration,
}

/// The work of a leader: datagrams.
#[derive(Debug)]
pub struct Worker {
    standing: watch::Sender<Option<u64>>,
    working: JoinHandle<()>,
}

/// The flags of this process, and a log that is set up.
pub fn begin() -> Arguments {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    Arguments::parse()
}

/// Returns when the process is told to stop.
pub async fn told_to_stop() -> anyhow::Result<()> {
    let mut terminated = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupted = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    tokio::select! {
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
    }
    Ok(())
}

impl Arguments {
    /// A new identity of this pod.
    pub fn identity(&self) -> String {
        format!("{}_{:08x}", self.pod, rand::rng().random::<u32>())
    }
}

impl Worker {
    /// Starts it; it does nothing until it is told to lead.
    pub async fn start(arguments: &Arguments, identity: String) -> anyhow::Result<Self> {
        let local: SocketAddr =
            if arguments.probe.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
        let socket = UdpSocket::bind(local).await.context("a socket for the probe")?;
        socket.connect(arguments.probe).await.context("the probe's address")?;
        // Until the runtime has heard from the kernel once, a send without waiting is refused: the first would be lost.
        socket.writable().await.context("the probe's socket")?;
        let (standing, told) = watch::channel(None);
        let working = tokio::spawn(work(socket, identity, told, arguments.stop_takes));
        Ok(Self { standing, working })
    }

    /// It leads under this token from now on, or it does not.
    pub fn set(&self, token: Option<u64>) {
        self.standing.send_if_modified(|standing| std::mem::replace(standing, token) != token);
    }

    /// Tells it to stop, and waits until it has.
    pub async fn stopped(self) -> anyhow::Result<()> {
        drop(self.standing);
        self.working.await.context("the work ended badly")
    }
}

async fn work(socket: UdpSocket, identity: String, mut told: watch::Receiver<Option<u64>>, stop_takes: Duration) {
    let mut number = 0_u64;
    loop {
        let standing = *told.borrow_and_update();
        if let Some(token) = standing {
            let mut stop: Option<Instant> = None;
            let mut next = Instant::now();
            loop {
                // Once it was told to stop, that stands, even if it is told otherwise meanwhile.
                if stop.is_none() && (told.has_changed().is_err() || *told.borrow() != standing) {
                    stop = Some(Instant::now() + stop_takes);
                }
                if stop.is_some_and(|stop| Instant::now() >= stop) {
                    break;
                }
                // Nobody may be listening yet, or any more: what is measured is what arrives.
                drop(socket.try_send(format!("{token} {identity} {number}").as_bytes()));
                number += 1;
                next = (next + TICK).max(Instant::now());
                sleep_until(next).await;
            }
            if told.has_changed().is_err() {
                return;
            }
        } else if told.changed().await.is_err() {
            return;
        }
    }
}
