//! `tenure dev`: the whole of it on this machine, without a cluster. For development and tests only, and it says so.
//!
//! In this process: the sandbox (a small Kubernetes API server) and a target for the example jobs, both on loopback. As
//! child processes of the same binary: the replicas, so that `kill -9` and `kill -STOP` mean what they mean in production.
//! A replica that died is started again; all of them end when this process does, however it does.

mod console;
mod folder;
mod ports;
mod replicas;
mod roles;
mod target;
mod world;

use std::{error::Error, path::PathBuf, sync::Arc, time::Duration};

use clap::Args;
use tokio_util::sync::CancellationToken;

use self::{
    console::Console,
    folder::StateFolder,
    replicas::{Launch, Replicas},
    roles::Roles,
    target::Target,
    world::World,
};
use super::run::StopRequests;
use crate::{
    clock::{self, SharedClock, SystemClock},
    settings::duration,
    tasks::Tasks,
};

#[derive(Debug, Args)]
pub(super) struct DevArgs {
    /// How many replicas to start; 0 for those who start `tenure run` themselves
    #[arg(long, value_name = "NUMBER", default_value_t = 3, value_parser = clap::value_parser!(u16).range(0..=9))]
    replicas: u16,

    /// Folder for the kubeconfig and the logs [default: ~/.local/state/tenure/dev]
    #[arg(long, value_name = "PATH")]
    state_dir: Option<PathBuf>,

    /// Lease duration of the replicas, short so that a take-over is soon seen (`tenure run` has 15s)
    #[arg(
        long = "leader-elect-lease-duration",
        value_name = "DURATION",
        default_value = "5s",
        value_parser = duration
    )]
    lease_duration: Duration,

    /// For a parent process: shut down when standard input closes
    #[arg(long, hide = true)]
    exit_when_stdin_closes: bool,
}

/// When it takes longer, somebody should look at the logs.
const READY_TIMEOUT: Duration = Duration::from_mins(1);

/// How often is asked whether the first run is recorded.
const READY_POLL: Duration = Duration::from_millis(50);

pub(super) fn run(args: &DevArgs) -> Result<(), Box<dyn Error>> {
    let clock = SystemClock::shared();
    let console = Console::new(clock.clone());
    let folder = StateFolder::open(args.state_dir.clone())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(serve(args, &folder, &console, clock));
    // What is left, such as a read of standard input, would keep the process.
    runtime.shutdown_background();
    ended
}

async fn serve(
    args: &DevArgs,
    folder: &StateFolder,
    console: &Console,
    clock: SharedClock,
) -> Result<(), Box<dyn Error>> {
    let mut requests = StopRequests::listen(args.exit_when_stdin_closes)?;
    let (tasks, stop) = (Tasks::default(), CancellationToken::new());
    let target = Target::start(clock.clone(), &tasks, stop.clone()).await?;
    let world = World::start(folder, args.replicas, &tasks, stop.clone()).await?;
    world.fill(target.address()).await?;
    console::introduce(&world, &target);

    let launch = Launch { folder, lease_duration: args.lease_duration };
    let replicas = Arc::new(Replicas::start(args.replicas, &launch, console, &clock).await?);
    let roles = Roles::start(replicas.clone(), console.clone(), clock.clone(), &tasks, stop.clone());
    tokio::select! {
        biased;
        reason = requests.next() => console.say(format_args!("Stopping: {reason}")),
        () = until_ready(&world, &replicas, roles, console, &clock) => {
            let reason = requests.next().await;
            console.say(format_args!("Stopping: {reason}"));
        }
    }
    replicas.stop(&clock).await;
    stop.cancel();
    tasks.close_and_wait().await;
    console.say(format_args!("Stopped"));
    Ok(())
}

/// Waits until all replicas are ready, one leads, and the first run is recorded; then says so, and what to try.
async fn until_ready(world: &World, replicas: &Replicas, mut roles: Roles, console: &Console, clock: &SharedClock) {
    if replicas.is_empty() {
        console.ready();
        console::suggest_own_replica(world);
        return;
    }
    let ready = async {
        roles.settled().await;
        while !world.has_recorded_a_run().await {
            clock::sleep(&**clock, READY_POLL).await;
        }
    };
    if clock::timeout(&**clock, READY_TIMEOUT, ready).await.is_err() {
        console.say(format_args!(
            "Not ready after {} s; the logs in {} say why",
            READY_TIMEOUT.as_secs(),
            world.folder()
        ));
        return;
    }
    console.ready();
    console::suggest(&roles.leader_pid(), world);
}
