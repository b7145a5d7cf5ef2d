//! `tenure dev` as its user meets it: what it prints, who leads, and what becomes of its replicas.

use std::{
    collections::HashSet,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use assert_cmd::cargo::cargo_bin;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// `tenure dev` with a folder of its own. Its end is the end of its replicas.
struct Dev {
    child: Child,
    lines: Receiver<String>,
    seen: String,
    _folder: tempfile::TempDir,
}

/// What has not happened by then never will.
const DEADLINE: Duration = Duration::from_secs(20);

impl Dev {
    fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut child = Command::new(cargo_bin!("tenure"))
            .args(["dev", "--exit-when-stdin-closes", "--state-dir"])
            .arg(folder.path())
            .args(arguments)
            // A setting of whoever runs the tests: the replicas must not hear of it.
            .env("TENURE_NAMESPACE", "nowhere")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let out = BufReader::new(child.stdout.take().expect("it is piped"));
        let (sender, lines) = channel();
        // It ends with the process, or when nobody listens any more.
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines, seen: String::new(), _folder: folder }
    }

    /// Reads up to the next line that has all of `texts`, and returns it.
    fn line(&mut self, texts: &[&str]) -> String {
        let start = Instant::now();
        loop {
            let Ok(line) = self.lines.recv_timeout(DEADLINE.saturating_sub(start.elapsed())) else {
                panic!("there is no line with {texts:?}:\n{}", self.seen);
            };
            self.seen.push_str(&line);
            self.seen.push('\n');
            if texts.iter().all(|text| line.contains(text)) {
                return line;
            }
        }
    }

    fn stop(mut self) -> String {
        drop(self.child.stdin.take());
        self.line(&["Stopped"]);
        assert!(self.child.wait().expect("it is our child").success(), "{}", self.seen);
        std::mem::take(&mut self.seen)
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().ok();
    }
}

/// The word after `pid`.
fn pid(line: &str) -> Pid {
    let number = line.split_once("pid ").and_then(|(_, rest)| rest.split([' ', ')']).next());
    number.and_then(|number| number.parse().ok()).and_then(Pid::from_raw).expect("the line has a pid")
}

/// The word that names the replica.
fn name(line: &str) -> String {
    line.split_whitespace().find(|word| word.starts_with("replica-")).expect("the line names a replica").to_owned()
}

fn wait_until_gone(pid: Pid) {
    let start = Instant::now();
    while test_kill_process(pid).is_ok() {
        assert!(start.elapsed() < DEADLINE, "process {pid:?} is still there");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_killed_leader_is_replaced_and_started_again_and_all_end_with_the_parent() {
    let mut dev = Dev::start(&[]);
    dev.line(&["for development and tests only"]);
    let path = dev.line(&["kubeconfig"]);
    let path = Path::new(path.split_whitespace().last().expect("the line ends with the path"));
    let mode = std::os::unix::fs::PermissionsExt::mode(&path.metadata().expect("it was written").permissions());
    assert_eq!(mode & 0o777, 0o600);

    let leader = dev.line(&["LEADER, token "]);
    dev.line(&["ready in ", " s"]);
    kill_process(pid(&leader), Signal::KILL).expect("it is running");
    dev.line(&[&name(&leader), "has ended: signal 9; it is started again in 2 s"]);
    let again = dev.line(&[&name(&leader), "standby"]);
    assert_ne!(pid(&again), pid(&leader));
    let next = dev.line(&["LEADER, token "]);
    assert_ne!(name(&next), name(&leader));

    let seen = dev.stop();
    let pids: HashSet<_> =
        seen.lines().filter(|line| line.contains("http://") && line.contains("pid ")).map(pid).collect();
    assert_eq!(pids.len(), 4, "{seen}");
    pids.into_iter().for_each(wait_until_gone);
}

#[test]
fn a_frozen_leader_comes_back_as_a_standby() {
    let mut dev = Dev::start(&[]);
    let leader = dev.line(&["LEADER, token "]);
    kill_process(pid(&leader), Signal::STOP).expect("it is running");
    dev.line(&[&name(&leader), "does not answer"]);
    let next = dev.line(&["LEADER, token "]);
    assert_ne!(name(&next), name(&leader));
    kill_process(pid(&leader), Signal::CONT).expect("it is still there");
    let thawed = dev.line(&[&name(&leader), "standby"]);
    assert_eq!(pid(&thawed), pid(&leader));
    dev.stop();
}

#[test]
fn without_replicas_it_says_how_one_is_started() {
    let mut dev = Dev::start(&["--replicas", "0"]);
    dev.line(&["ready in "]);
    dev.line(&["tenure run --egress-allow 127.0.0.0/8"]);
    dev.stop();
}
