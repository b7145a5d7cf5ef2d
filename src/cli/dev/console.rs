//! What `tenure dev` prints.

use std::{fmt, io::Write};

use super::{target::Target, world::World};
use crate::clock::{BootTime, SharedClock};

/// Standard output, with the time since the start before each line about something that happened.
#[derive(Debug, Clone)]
pub(super) struct Console {
    clock: SharedClock,
    start: BootTime,
}

impl Console {
    pub(super) fn new(clock: SharedClock) -> Self {
        Self { start: clock.boot(), clock }
    }

    /// Something happened.
    pub(super) fn say(&self, what: fmt::Arguments<'_>) {
        print(format_args!("{:>7.1}s  {what}\n", self.seconds()));
    }

    pub(super) fn ready(&self) {
        print(format_args!("\nready in {:.1} s\n\n", self.seconds()));
    }

    fn seconds(&self) -> f64 {
        (self.clock.boot() - self.start).as_secs_f64()
    }
}

pub(super) fn introduce(world: &World, target: &Target) {
    print(format_args!(
        "Tenure on this machine, for development and tests only: nothing is kept, nothing is protected.\n\n\
         \x20 kubeconfig     {kubeconfig}\n\
         \x20 API server     https://{api}\n\
         \x20 flaky target   http://{target}/  (down: it answers 503 until it is toggled)\n\
         \x20 logs           {folder}/replica-*.log\n\n",
        kubeconfig = world.kubeconfig().display(),
        api = world.address(),
        target = target.address(),
        folder = world.folder(),
    ));
}

pub(super) fn suggest(leader: &str, world: &World) {
    let target = world.target();
    print(format_args!(
        "Try, in another terminal:\n\
         \x20 export KUBECONFIG={kubeconfig}\n\
         \x20 kubectl get periodicjobs --watch\n\
         \x20 kill -9 {leader}\n\
         \x20     the leader dies: another one takes over, and the jobs go on without a gap\n\
         \x20 kill -STOP PID; sleep 10; kill -CONT PID\n\
         \x20     the leader freezes: it comes back as a standby\n\
         \x20 kubectl annotate periodicjob flaky --overwrite tenure.dev/trigger=\"$(date)\"\n\
         \x20     run now: the flaky target is tried again with growing waits\n\
         \x20 curl http://{target}/\n\
         \x20     the attempts as the target saw them\n\
         \x20 curl -X POST http://{target}/toggle\n\
         \x20     repair the target: the run succeeds\n\n",
        kubeconfig = world.kubeconfig().display(),
    ));
}

pub(super) fn suggest_own_replica(world: &World) {
    print(format_args!(
        "Start a replica, in another terminal:\n\
         \x20 export KUBECONFIG={kubeconfig}\n\
         \x20 tenure run --egress-allow 127.0.0.0/8 --admin-address 127.0.0.1:0\n\n",
        kubeconfig = world.kubeconfig().display(),
    ));
}

/// Whoever reads may have gone away; that is no reason to end.
fn print(text: fmt::Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    drop(out.write_fmt(text).and_then(|()| out.flush()));
}
