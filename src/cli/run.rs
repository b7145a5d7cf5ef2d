//! `tenure run`: one replica, until it is asked to stop.

use std::{error::Error, io};

use clap::Args;
use futures::future::{self, Either};
use tokio::{
    io::AsyncReadExt,
    signal::unix::{Signal, SignalKind, signal},
};

use crate::{
    observe::logs,
    replica::{Ground, Replica},
    settings::Settings,
};

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    settings: Settings,
}

/// A second request to stop came before the first was done.
#[derive(Debug, thiserror::Error)]
#[error("asked to stop a second time: ended without waiting for what was running")]
struct Aborted;

pub(super) fn run(args: &RunArgs) -> Result<(), Box<dyn Error>> {
    let process = &args.settings.process;
    logs::start(process.log_format, &process.log_level)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(serve(&args.settings));
    // What is left, such as a read of standard input, would keep the process.
    runtime.shutdown_background();
    ended
}

async fn serve(settings: &Settings) -> Result<(), Box<dyn Error>> {
    let mut requests = StopRequests::listen(settings.process.exit_when_stdin_closes)?;
    let ground = Ground::of_this_machine(settings).await?;
    let replica = Replica::start(settings, ground).await?;
    let reason = requests.next().await;
    tracing::info!(reason, "Asked to stop");
    let second = std::pin::pin!(requests.next());
    match future::select(Box::pin(replica.stop()), second).await {
        Either::Left(_) => Ok(()),
        Either::Right((_, stopping)) => {
            // Dropped, it would give up the Lease in the background, and what was not waited for may still be on its way.
            std::mem::forget(stopping);
            Err(Aborted.into())
        }
    }
}

/// The ways in which this process is asked to stop.
pub(super) struct StopRequests {
    terminate: Signal,
    interrupt: Signal,
    watch_stdin: bool,
}

impl StopRequests {
    pub(super) fn listen(watch_stdin: bool) -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            watch_stdin,
        })
    }

    /// The next request, in one word. The end of standard input counts once.
    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            () = stdin_closes(self.watch_stdin) => {
                self.watch_stdin = false;
                "standard input closed"
            }
        }
    }
}

async fn stdin_closes(watch: bool) {
    if !watch {
        return std::future::pending().await;
    }
    let (mut stdin, mut buffer) = (tokio::io::stdin(), [0; 64]);
    // An error is an end, too: nobody can write to it any more.
    while stdin.read(&mut buffer).await.is_ok_and(|length| length > 0) {}
}
