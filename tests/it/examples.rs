//! The example programs, run as their readers run them: two processes against an API server, the first ended by Ctrl-C.

use std::{path::PathBuf, process::Stdio, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use sandbox::{Sandbox, ServeOptions, new_token};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines},
    net::{TcpListener, TcpStream},
    process::{Child, ChildStdout, Command},
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// A replica that finds no Lease waits one lease duration, 5 s in the examples; the rest is a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

/// A hand-over needs no lease to expire.
const HANDOVER_LIMIT: Duration = Duration::from_secs(4);

/// An API server on loopback, and how to reach it.
struct Cluster {
    folder: TempDir,
    _shutdown: DropGuard,
}

impl Cluster {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let token = new_token();
        Sandbox::write_kubeconfig(&folder.path().join("config"), listener.local_addr().unwrap(), &token).unwrap();
        let shutdown = CancellationToken::new();
        let options = ServeOptions { listener, token, shutdown: shutdown.clone() };
        tokio::spawn(async move { Sandbox::new().serve(options).await });
        Self { folder, _shutdown: shutdown.drop_guard() }
    }

    fn run(&self, example: &str, pod: &str, argument: Option<&str>) -> Program {
        let mut child = Command::new(built(example))
            .args(argument)
            .env("KUBECONFIG", self.folder.path().join("config"))
            .env("POD_NAME", pod)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Program { child, lines }
    }
}

/// One running example.
struct Program {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Program {
    /// The rest of the next line that begins with `start`.
    async fn says(&mut self, start: &str, limit: Duration) -> String {
        let found = timeout(limit, async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                if let Some(rest) = line.strip_prefix(start) {
                    return rest.to_owned();
                }
            }
            panic!("the program has ended without printing {start:?}");
        });
        found.await.unwrap_or_else(|_| panic!("{start:?} was not printed within {limit:?}"))
    }

    /// The token in the next line that begins with `start`.
    async fn token(&mut self, start: &str, limit: Duration) -> u64 {
        self.says(start, limit).await.parse().unwrap()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().unwrap().try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Ctrl-C; the program hands over and ends well.
    async fn stop(&mut self) {
        self.signal(Signal::INT);
        assert_eq!(self.says("stopped: ", LIMIT).await, "Free");
        assert!(timeout(LIMIT, self.child.wait()).await.unwrap().unwrap().success());
    }
}

/// Cargo builds the examples beside the tests, unless only one of them was asked for.
fn built(example: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(|deps| deps.parent()).unwrap().join("examples").join(example);
    assert!(path.exists(), "{} is not built: run `cargo build --examples` first, or `make test`", path.display());
    path
}

async fn ask(address: &str) -> String {
    let mut answer = String::new();
    TcpStream::connect(address).await.unwrap().read_to_string(&mut answer).await.unwrap();
    answer.trim().to_owned()
}

#[tokio::test]
async fn a_leader_gated_timer_ticks_in_one_process_and_goes_on_in_the_other() {
    let cluster = Cluster::start().await;
    let mut one = cluster.run("leader_gated_timer", "one", Some("1"));
    let first = one.token("report made with token ", LIMIT).await;
    let mut two = cluster.run("leader_gated_timer", "two", Some("1"));
    assert_eq!(one.token("report made with token ", LIMIT).await, first);
    one.stop().await;
    // All that the second has printed is from its own, later term.
    assert!(two.token("report made with token ", HANDOVER_LIMIT).await > first);
    two.stop().await;
}

#[tokio::test]
async fn work_without_an_end_is_stopped_for_a_hand_over_and_begun_anew_by_the_next() {
    let cluster = Cluster::start().await;
    let mut one = cluster.run("while_leading", "one", None);
    let first = one.token("observing with token ", LIMIT).await;
    let mut two = cluster.run("while_leading", "two", None);
    one.stop().await;
    assert!(two.token("observing with token ", HANDOVER_LIMIT).await > first);
    two.stop().await;
}

#[tokio::test]
async fn of_an_active_passive_service_both_answer_and_one_works() {
    let cluster = Cluster::start().await;
    let mut one = cluster.run("active_passive", "one", None);
    let one_address = one.says("answering on ", LIMIT).await;
    let first = one.token("active with token ", LIMIT).await;
    assert_eq!(ask(&one_address).await, format!("active {first}"));

    let mut two = cluster.run("active_passive", "two", None);
    let two_address = two.says("answering on ", LIMIT).await;
    two.says("passive, ready to take over", LIMIT).await;
    two.says("the active one is one_", LIMIT).await;
    assert_eq!(ask(&two_address).await, "passive");

    one.stop().await;
    let second = two.token("active with token ", HANDOVER_LIMIT).await;
    assert!(second > first);
    assert_eq!(ask(&two_address).await, format!("active {second}"));
    two.stop().await;
}

#[tokio::test]
async fn work_that_blocks_is_handed_over_while_it_goes_on() {
    let cluster = Cluster::start().await;
    let mut one = cluster.run("blocking_work", "one", None);
    let first = one.token("computing with token ", LIMIT).await;
    let mut two = cluster.run("blocking_work", "two", None);
    // The second one sees the Lease only a moment after its start.
    one.signal(Signal::USR1);
    let second = two.token("computing with token ", LIMIT).await;
    assert!(second > first);
    one.signal(Signal::USR2);
    two.stop().await;
    assert!(one.token("computing with token ", HANDOVER_LIMIT).await > second);
    one.stop().await;
}
