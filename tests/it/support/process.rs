//! The binary as a process: started, listened to, stopped.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use assert_cmd::cargo::cargo_bin;
use kube::{Api, Client, api::PostParams};
use rustix::process::{Pid, Signal, kill_process};
use sandbox::Sandbox;

/// The binary without what this machine's environment would tell it.
pub fn tenure(arguments: &[&str]) -> Command {
    let mut command = Command::new(cargo_bin!("tenure"));
    command.env_clear().env("HOME", "/nonexistent").env("COLUMNS", "110").args(arguments);
    command
}

/// A kubeconfig for an API server at `address`.
pub fn kubeconfig(folder: &Path, address: SocketAddr, token: &str) -> PathBuf {
    let path = folder.join("kubeconfig");
    Sandbox::write_kubeconfig(&path, address, token).expect("the folder can be written to");
    path
}

/// An address on which nothing listens.
pub fn dead_end() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("there is a free port")
}

/// Posts the definitions, as an installation begins.
pub async fn install(client: &Client) {
    let definitions = Api::all(client.clone());
    for definition in tenure::api::crds().expect("the definitions can be made") {
        definitions.create(&PostParams::default(), &definition).await.expect("the definition is valid");
    }
}

/// A replica as a process, and its log.
pub struct Process {
    pub child: Child,
    log: Receiver<String>,
    /// Lines that nobody has asked for yet.
    passed: Vec<String>,
    pub seen: String,
}

/// A process that has not done what it should by then never will.
pub const DEADLINE: Duration = Duration::from_secs(20);

impl Process {
    pub fn start(arguments: &[&str]) -> Self {
        let mut child = tenure(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let lines = BufReader::new(child.stderr.take().expect("it is piped"));
        let (sender, log) = channel();
        // It ends with the process, or when nobody listens any more.
        std::thread::spawn(move || lines.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, log, passed: Vec::new(), seen: String::new() }
    }

    /// Waits for a line of the log with `text`, and returns it. Each line is found once; the order does not matter.
    pub fn log_line(&mut self, text: &str) -> String {
        let start = Instant::now();
        loop {
            if let Some(index) = self.passed.iter().position(|line| line.contains(text)) {
                return self.passed.remove(index);
            }
            let Ok(line) = self.log.recv_timeout(DEADLINE.saturating_sub(start.elapsed())) else {
                panic!("there is no line with {text:?}:\n{}", self.seen);
            };
            self.seen.push_str(&line);
            self.seen.push('\n');
            self.passed.push(line);
        }
    }

    pub fn admin_address(&mut self) -> String {
        let line = self.log_line("Admin server listens");
        let (_, address) = line.trim_end().split_once("address=").expect("the line names the address");
        address.to_owned()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("it is running");
    }

    pub fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        while start.elapsed() < DEADLINE {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return status;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the process has not ended; its log so far:\n{}", self.seen);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has usually ended by now.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The status code and the body of an answer.
pub fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n").expect("the request is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the answer is text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    (head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line"), body.to_owned())
}

/// Asks until the answer is as it should be.
pub fn get_until(address: &str, path: &str, right: impl Fn(u16, &str) -> bool) -> (u16, String) {
    let start = Instant::now();
    loop {
        let (code, body) = get(address, path);
        if right(code, &body) {
            return (code, body);
        }
        assert!(start.elapsed() < DEADLINE, "{path} still answers {code}: {body}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
