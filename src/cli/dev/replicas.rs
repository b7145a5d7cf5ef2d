//! The replicas as child processes of the same binary. One that has ended is started again, until the stop.

use std::{
    fs::{self, File, OpenOptions},
    io,
    net::SocketAddr,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use tokio::{
    process::{Child, Command},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use super::{
    console::Console,
    folder::StateFolder,
    ports::{self, Reserved},
};
use crate::{
    clock::{self, SharedClock},
    duration::format_duration,
    tasks::Tasks,
};

/// What a replica is started with.
pub(super) struct Launch<'a> {
    pub(super) folder: &'a StateFolder,
    pub(super) lease_duration: Duration,
}

/// All replicas of this process.
#[derive(Debug)]
pub(super) struct Replicas {
    all: Vec<Replica>,
    tasks: Tasks,
    stop: CancellationToken,
}

/// One replica, over all its processes.
#[derive(Debug, Clone)]
pub(super) struct Replica {
    pub(super) name: String,
    pub(super) admin: SocketAddr,
    /// The process that runs now.
    pub(super) pid: watch::Receiver<Option<u32>>,
}

/// Keeps one replica running.
struct Keeper {
    name: String,
    binary: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    pid_file: PathBuf,
    pid: watch::Sender<Option<u32>>,
    console: Console,
    clock: SharedClock,
    stop: CancellationToken,
    _reserved: Reserved,
}

/// A dead replica is started again after this, as a kubelet's first back-off would be; long enough to see it gone.
const RESTART_PAUSE: Duration = Duration::from_secs(2);

/// The replicas' grace period: nobody who develops wants to wait longer.
const GRACE: Duration = Duration::from_secs(10);

/// What does not end by then, because it is frozen for one, is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(12);

/// The name of replica `number`.
pub(super) fn name(number: u16) -> String {
    format!("replica-{number}")
}

impl Replicas {
    pub(super) async fn start(
        count: u16,
        launch: &Launch<'_>,
        console: &Console,
        clock: &SharedClock,
    ) -> io::Result<Self> {
        let (tasks, stop) = (Tasks::default(), CancellationToken::new());
        let mut replicas = Vec::new();
        for number in 0..count {
            let name = name(number);
            let reserved = ports::reserve(ports::ADMIN + number).await?;
            let admin = reserved.address;
            let (pid, pid_view) = watch::channel(None);
            let log = launch.folder.log(&name);
            File::create(&log)?;
            let keeper = Keeper {
                binary: std::env::current_exe()?,
                arguments: arguments(&name, admin, launch),
                log,
                pid_file: launch.folder.pid(&name),
                pid,
                console: console.clone(),
                clock: clock.clone(),
                stop: stop.clone(),
                name: name.clone(),
                _reserved: reserved,
            };
            tasks.spawn("replica process", keeper.keep()).detach();
            replicas.push(Replica { name, admin, pid: pid_view });
        }
        Ok(Self { all: replicas, tasks, stop })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Replica> {
        self.all.iter()
    }

    /// Asks all of them to stop, waits, and kills what does not.
    pub(super) async fn stop(&self, clock: &SharedClock) {
        self.stop.cancel();
        // The keepers have deadlines of their own; this one is for a keeper that cannot even kill.
        let patience = STOP_TIMEOUT + RESTART_PAUSE;
        if clock::timeout(&**clock, patience, self.tasks.close_and_wait()).await.is_err() {
            tracing::error!("A replica could not be stopped");
        }
    }
}

fn arguments(name: &str, admin: SocketAddr, launch: &Launch<'_>) -> Vec<String> {
    let kubeconfig = launch.folder.kubeconfig(Some(name)).display().to_string();
    let stop_margin = (launch.lease_duration / 10).min(Duration::from_secs(1));
    [
        ("--kubeconfig", kubeconfig),
        ("--identity", name.to_owned()),
        ("--admin-address", admin.to_string()),
        ("--leader-elect-lease-duration", format_duration(launch.lease_duration)),
        ("--leader-elect-stop-margin", format_duration(stop_margin)),
        ("--termination-grace-period", format_duration(GRACE)),
        ("--egress-allow", "127.0.0.0/8".to_owned()),
    ]
    .into_iter()
    .flat_map(|(flag, value)| [flag.to_owned(), value])
    .chain(["--exit-when-stdin-closes".to_owned()])
    .collect()
}

impl Keeper {
    async fn keep(self) {
        loop {
            match self.spawn() {
                Ok(mut child) => {
                    let pid = child.id();
                    self.note(pid);
                    let Some(status) = self.watch(&mut child).await else { return self.note(None) };
                    self.note(None);
                    let pid = pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
                    self.console.say(format_args!("{}{pid} has ended: {}", self.name, describe(status)));
                }
                Err(error) => self.console.say(format_args!("{} cannot be started: {error}", self.name)),
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = clock::sleep(&*self.clock, RESTART_PAUSE) => {}
            }
        }
    }

    /// Tells the rest of this process, and by a file whoever types commands, which process runs now.
    fn note(&self, pid: Option<u32>) {
        self.pid.send_replace(pid);
        let noted = match pid {
            Some(pid) => fs::write(&self.pid_file, format!("{pid}\n")),
            None => fs::remove_file(&self.pid_file),
        };
        if let Err(error) = noted {
            self.console.say(format_args!("{} cannot be written: {error}", self.pid_file.display()));
        }
    }

    fn spawn(&self) -> io::Result<Child> {
        let log = OpenOptions::new().append(true).open(&self.log)?;
        let mut command = Command::new(&self.binary);
        command.arg("run").args(&self.arguments).stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        // The settings of whoever starts `tenure dev` are not meant for the replicas.
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("TENURE_") {
                command.env_remove(variable);
            }
        }
        // Its own group: a Ctrl-C at the keyboard is for this process, which then stops its children in order.
        command.process_group(0).kill_on_drop(true).spawn()
    }

    /// Waits for the end of the process; `None` if it was asked for.
    async fn watch(&self, child: &mut Child) -> Option<ExitStatus> {
        let stdin = child.stdin.take();
        tokio::select! {
            biased;
            () = self.stop.cancelled() => {}
            status = child.wait() => return Some(status.unwrap_or_default()),
        }
        drop(stdin);
        if clock::timeout(&*self.clock, STOP_TIMEOUT, child.wait()).await.is_err() {
            self.console.say(format_args!("{} does not stop and is killed", self.name));
            if let Err(error) = child.kill().await {
                tracing::error!(%error, replica = self.name, "Replica could not be killed");
            }
        }
        None
    }
}

fn describe(status: ExitStatus) -> String {
    let pause = RESTART_PAUSE.as_secs();
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}, see its log; it is started again in {pause} s"),
        (None, Some(signal)) => format!("signal {signal}; it is started again in {pause} s"),
        (None, None) => format!("it is started again in {pause} s"),
    }
}
