//! The reader's terminals: one shell that runs commands in turn, and commands that stay open beside it.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group};

/// A command that stays is asked to end and has this long: a replica drains for up to 27 s.
const ENDING_LIMIT: Duration = Duration::from_secs(40);

/// What went wrong with a shell rather than with what it printed.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    /// bash did not start.
    #[error("bash could not be started")]
    Start(#[source] std::io::Error),
    /// The shell took no more commands.
    #[error("the shell has ended")]
    Ended(#[source] std::io::Error),
    /// The command did not end in time.
    #[error("`{0}` did not end within {limit} s", limit = .1.as_secs())]
    Hangs(String, Duration),
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Its exit status.
    pub status: i32,
    /// Both its streams, in the order written.
    pub printed: String,
}

/// A shell that keeps its variables between commands.
#[derive(Debug)]
pub struct Terminal {
    shell: Process,
    input: ChildStdin,
    commands: u64,
}

/// A command that keeps running.
#[derive(Debug)]
pub struct Staying {
    typed: String,
    process: Process,
    /// Held open: a command that reads its input to know that its terminal lives must go on.
    _input: ChildStdin,
    fresh: Vec<String>,
}

/// A process group of ours and the lines it prints; ended when dropped.
#[derive(Debug)]
struct Process {
    child: Child,
    lines: Receiver<String>,
}

impl Terminal {
    /// Starts the shell.
    ///
    /// # Errors
    /// [`ShellError::Start`].
    pub fn open() -> Result<Self, ShellError> {
        let (shell, input) = Process::start(&["--noprofile", "--norc"])?;
        Ok(Self { shell, input, commands: 0 })
    }

    /// Runs one command to its end.
    ///
    /// # Errors
    /// [`ShellError`] when the shell is gone or the command hangs.
    pub fn run(&mut self, typed: &str, limit: Duration) -> Result<Ran, ShellError> {
        self.commands += 1;
        // A line of its own tells the end; the number keeps an earlier command's late output from passing as this one's.
        let end = format!("walkthrough-end-{}-{}", std::process::id(), self.commands);
        let quoted = typed.replace('\'', r"'\''");
        writeln!(self.input, "eval '{quoted}' </dev/null\nprintf '\\n%s %d\\n' {end} $?").map_err(ShellError::Ended)?;
        let deadline = Instant::now() + limit;
        let mut printed: Vec<String> = Vec::new();
        while let Some(line) = self.shell.line_before(deadline) {
            if let Some(status) = line.strip_prefix(&end) {
                // The marker starts with a line break: an empty line before it is ours, unless the output's last line
                // was not ended, in which case the break has ended it.
                if printed.last().is_some_and(String::is_empty) {
                    printed.pop();
                }
                return Ok(Ran { status: status.trim().parse().unwrap_or(-1), printed: printed.join("\n") });
            }
            printed.push(line);
        }
        Err(ShellError::Hangs(typed.to_owned(), limit))
    }

    /// Starts a command that keeps running, in a shell of its own.
    ///
    /// # Errors
    /// [`ShellError::Start`].
    pub fn open_staying(&self, typed: &str) -> Result<Staying, ShellError> {
        let (process, input) = Process::start(&["--noprofile", "--norc", "-c", typed])?;
        Ok(Staying { typed: typed.to_owned(), process, _input: input, fresh: Vec::new() })
    }
}

impl Staying {
    /// As typed.
    pub fn typed(&self) -> &str {
        &self.typed
    }

    /// What it has printed since the last [`Self::forget_fresh`].
    pub fn fresh(&self) -> &[String] {
        &self.fresh
    }

    /// Starts afresh: what was printed until now has been looked at.
    pub fn forget_fresh(&mut self) {
        self.fresh.clear();
    }

    /// Waits for one more line; false if there is none by the deadline.
    pub fn read_line(&mut self, deadline: Instant) -> bool {
        let line = self.process.line_before(deadline);
        let found = line.is_some();
        self.fresh.extend(line);
        found
    }
}

impl Process {
    fn start(arguments: &[&str]) -> Result<(Self, ChildStdin), ShellError> {
        // Both streams through one pipe: the order in which a reader sees them is part of what is compared.
        let (output, writer) = std::io::pipe().map_err(ShellError::Start)?;
        let mut child = Command::new("bash")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(writer.try_clone().map_err(ShellError::Start)?)
            .stderr(writer)
            .process_group(0)
            .spawn()
            .map_err(ShellError::Start)?;
        let input = child.stdin.take().expect("stdin is piped, three lines above");
        let (sender, lines) = channel();
        // Ends when the pipe closes or nobody listens any more.
        thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                let Ok(line) = line else { return };
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok((Self { child, lines }, input))
    }

    fn line_before(&self, deadline: Instant) -> Option<String> {
        self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // A group that has ended already is what is wanted.
            let _already_gone = kill_process_group(pid, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let deadline = Instant::now() + ENDING_LIMIT;
        self.signal(Signal::TERM);
        while Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(None) => thread::sleep(Duration::from_millis(20)),
                Ok(Some(_)) | Err(_) => break,
            }
        }
        // What the shell's children left behind goes with their group.
        self.signal(Signal::KILL);
        let _status = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    #[test]
    fn variables_live_from_one_command_to_the_next_and_both_streams_are_read_in_order() {
        let mut terminal = Terminal::open().unwrap();
        assert_eq!(terminal.run("export WORD=\"it's\"", LIMIT).unwrap(), Ran { status: 0, printed: String::new() });
        let ran = terminal.run("echo \"$WORD\"; echo two >&2; printf three", LIMIT).unwrap();
        assert_eq!(ran, Ran { status: 0, printed: "it's\ntwo\nthree".into() });
        assert_eq!(terminal.run("false", LIMIT).unwrap().status, 1);
    }

    #[test]
    fn a_command_that_does_not_end_is_named() {
        let mut terminal = Terminal::open().unwrap();
        let error = terminal.run("while :; do :; done", Duration::from_millis(100)).unwrap_err();
        assert!(matches!(error, ShellError::Hangs(command, _) if command.starts_with("while")));
    }

    #[test]
    fn a_command_that_stays_prints_on_and_ends_with_its_terminal() {
        let terminal = Terminal::open().unwrap();
        let mut staying = terminal.open_staying("echo $$; read -r line; echo $line").unwrap();
        let deadline = Instant::now() + LIMIT;
        assert!(staying.read_line(deadline));
        let pid = staying.fresh()[0].parse().ok().and_then(Pid::from_raw).unwrap();
        assert!(rustix::process::test_kill_process(pid).is_ok(), "it waits for its input");
        drop(staying);
        assert!(rustix::process::test_kill_process(pid).is_err(), "nothing is left behind");
    }
}
