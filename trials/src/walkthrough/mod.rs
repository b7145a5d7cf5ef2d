//! Runs the console blocks of a Markdown page as a reader would type them, and compares what is printed.
//!
//! A block is fenced as `console`. Lines that start with `$ ` are commands (`> ` continues one), taken exactly as they
//! stand; the lines below a command are what it must print, where `[..]` stands for any text within a line and a line
//! of `...` for any lines. Words after `console` say how a block is lived through:
//!
//! - `stays`: the command keeps running, as in a terminal of its own, and the next block goes on beside it;
//! - `goes-on`: no command, only what the command that stays must print from here on;
//! - `within=30s`: looked at again until it is so, at most so long. Without it a command has one try;
//! - `clear-of-five-minutes=100s`: begun only when the next full five minutes are at least so far away, because a job of
//!   the page is due then and would run into what the block shows.
//!
//! All commands share one shell, so that an `export` holds for the rest of the page, and end with status 0.
//!
//! By hand, because the crates for it (trycmd, snapbox) run each command in a process and folder of its own and have no
//! commands that stay; the wildcards are theirs.

mod page;
mod shell;

use std::time::{Duration, Instant};

pub use page::{Block, Command, Mode, PageError, matches, parse};
pub use shell::{ShellError, Staying, Terminal};

/// A command that says nothing for so long is taken to hang. The slowest on the page builds the binary.
const COMMAND_LIMIT: Duration = Duration::from_mins(15);

/// Between two looks of a `within` block: what a patient reader would leave.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// How often the page's job is due.
const FIVE_MINUTES: Duration = Duration::from_mins(5);

/// What did not go as the page says.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// The shell or a command could not be used at all.
    #[error("line {line}: {source}")]
    Shell {
        /// Of the page.
        line: usize,
        /// What failed.
        source: ShellError,
    },
    /// The output differs.
    #[error(
        "line {line}: `{command}` did not print what the page says\n--- the page\n{expected}\n--- printed\n{printed}"
    )]
    Differs {
        /// Of the page.
        line: usize,
        /// The command as typed.
        command: String,
        /// The page's output.
        expected: String,
        /// The real output.
        printed: String,
    },
    /// The command failed.
    #[error("line {line}: `{command}` ended with status {status}\n{printed}")]
    Failed {
        /// Of the page.
        line: usize,
        /// The command as typed.
        command: String,
        /// Its exit status.
        status: i32,
        /// What it printed.
        printed: String,
    },
    /// A `goes-on` block with no command that stays before it.
    #[error("line {line}: no command stays that could print this")]
    NothingStays {
        /// Of the page.
        line: usize,
    },
}

/// Runs `blocks` in order and stops at the first that differs. Commands that stay are ended before it returns.
///
/// # Errors
/// [`WalkError`] names the line of the page and shows both texts.
pub fn walk(blocks: &[Block], said: &mut dyn FnMut(&str)) -> Result<(), WalkError> {
    let mut terminal = Terminal::open().map_err(|source| WalkError::Shell { line: 0, source })?;
    let mut staying: Option<Staying> = None;
    for block in blocks {
        if let Some(least) = block.clear_of_five_minutes {
            std::thread::sleep(until_clear(since_epoch(), least));
        }
        match block.mode {
            Mode::GoesOn => {
                let running = staying.as_mut().ok_or(WalkError::NothingStays { line: block.line })?;
                printed_by_staying(running, block.line, &block.preamble, block.within)?;
                said(&format!("ok   line {:>3}  it goes on to print {} lines", block.line, block.preamble.len()));
            }
            Mode::Stays => {
                for command in &block.commands {
                    let opened = terminal.open_staying(&command.typed);
                    let running =
                        staying.insert(opened.map_err(|source| WalkError::Shell { line: command.line, source })?);
                    let within = block.within.or(Some(COMMAND_LIMIT));
                    printed_by_staying(running, command.line, &command.expected, within)?;
                    said(&format!("ok   line {:>3}  $ {}", command.line, command.typed));
                }
            }
            Mode::Runs => {
                for command in &block.commands {
                    run(&mut terminal, command, block.within)?;
                    said(&format!("ok   line {:>3}  $ {}", command.line, command.typed));
                }
            }
        }
    }
    Ok(())
}

fn since_epoch() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

/// How long to wait at `now`, a time since the epoch, until the next full five minutes are at least `least` away.
fn until_clear(now: Duration, least: Duration) -> Duration {
    let past = Duration::from_secs(now.as_secs() % FIVE_MINUTES.as_secs());
    let left = FIVE_MINUTES.saturating_sub(past);
    // A second more than what is left: the due run itself must have begun.
    if left < least { left + Duration::from_secs(1) } else { Duration::ZERO }
}

fn run(terminal: &mut Terminal, command: &Command, within: Option<Duration>) -> Result<(), WalkError> {
    let deadline = Instant::now() + within.unwrap_or(Duration::ZERO);
    loop {
        let ran = terminal
            .run(&command.typed, COMMAND_LIMIT)
            .map_err(|source| WalkError::Shell { line: command.line, source })?;
        let lines: Vec<&str> = ran.printed.lines().collect();
        if ran.status == 0 && matches(&command.expected, &lines) {
            return Ok(());
        }
        if Instant::now() < deadline {
            std::thread::sleep(LOOK_AGAIN);
            continue;
        }
        let (line, typed) = (command.line, command.typed.clone());
        return Err(if ran.status == 0 {
            WalkError::Differs { line, command: typed, expected: command.expected.join("\n"), printed: ran.printed }
        } else {
            WalkError::Failed { line, command: typed, status: ran.status, printed: ran.printed }
        });
    }
}

/// Waits until what the staying command has printed since the last look holds `expected`, with anything after it.
fn printed_by_staying(
    running: &mut Staying,
    line: usize,
    expected: &[String],
    within: Option<Duration>,
) -> Result<(), WalkError> {
    let mut pattern = expected.to_vec();
    pattern.push("...".into());
    let deadline = Instant::now() + within.unwrap_or(COMMAND_LIMIT);
    while !matches(&pattern, running.fresh()) {
        if !running.read_line(deadline) {
            return Err(WalkError::Differs {
                line,
                command: running.typed().to_owned(),
                expected: expected.join("\n"),
                printed: running.fresh().join("\n"),
            });
        }
    }
    running.forget_fresh();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_waits_for_the_full_five_minutes_only_when_they_are_near() {
        let least = Duration::from_secs(100);
        assert_eq!(until_clear(FIVE_MINUTES * 7, least), Duration::ZERO);
        assert_eq!(until_clear(FIVE_MINUTES * 7 + Duration::from_secs(200), least), Duration::ZERO);
        assert_eq!(until_clear(FIVE_MINUTES * 7 + Duration::from_secs(201), least), Duration::from_secs(100));
    }
}
