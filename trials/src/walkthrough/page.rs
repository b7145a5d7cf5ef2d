//! The page: its console blocks, and when printed lines are what a block says.

use std::time::Duration;

/// How a block is lived through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Each command runs to its end.
    Runs,
    /// The command keeps running.
    Stays,
    /// Output of the command that stays.
    GoesOn,
}

/// One fenced console block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The fence's line, from 1.
    pub line: usize,
    /// How it is lived through.
    pub mode: Mode,
    /// Looked at again until it is so, at most this long.
    pub within: Option<Duration>,
    /// Begun only when no full multiple of five minutes is nearer than this.
    pub clear_of_five_minutes: Option<Duration>,
    /// Lines before the first command: only a `goes-on` block has them.
    pub preamble: Vec<String>,
    /// The commands in order.
    pub commands: Vec<Command>,
}

/// One command and what it must print.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Its line, from 1.
    pub line: usize,
    /// As typed, continuation lines joined by line breaks.
    pub typed: String,
    /// What it must print; none at all means nothing.
    pub expected: Vec<String>,
}

/// A block that cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PageError {
    /// A word after `console` that means nothing.
    #[error("line {0}: `{1}` is not one of stays, goes-on, within=SECONDSs, clear-of-five-minutes=SECONDSs")]
    UnknownWord(usize, String),
    /// Output that no command printed.
    #[error("line {0}: output before the first command; only a goes-on block has that")]
    OutputWithoutCommand(usize),
    /// A `goes-on` block holds output only.
    #[error("line {0}: a goes-on block has no command")]
    CommandInGoesOn(usize),
    /// The fence is not closed.
    #[error("line {0}: this block is not closed")]
    NotClosed(usize),
    /// A page without a block would pass by doing nothing.
    #[error("the page has no console block")]
    Empty,
}

/// Reads the console blocks of a Markdown page.
///
/// # Errors
/// [`PageError`] names the line.
pub fn parse(page: &str) -> Result<Vec<Block>, PageError> {
    let mut blocks = Vec::new();
    let mut lines = page.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let Some(words) = line.strip_prefix("```console") else { continue };
        let mut block = open(index + 1, words)?;
        loop {
            let (index, line) = lines.next().ok_or(PageError::NotClosed(block.line))?;
            if line == "```" {
                break;
            }
            add(&mut block, index + 1, line)?;
        }
        blocks.push(block);
    }
    if blocks.is_empty() { Err(PageError::Empty) } else { Ok(blocks) }
}

/// Whether `printed` is what `expected` says: `[..]` is any text within a line, a line of `...` any lines.
pub fn matches<S: AsRef<str>>(expected: &[String], printed: &[S]) -> bool {
    let Some((first, rest)) = expected.split_first() else { return printed.is_empty() };
    if first.trim() == "..." {
        return (0..=printed.len()).any(|skipped| matches(rest, &printed[skipped..]));
    }
    printed.split_first().is_some_and(|(line, below)| line_matches(first, line.as_ref()) && matches(rest, below))
}

fn open(line: usize, words: &str) -> Result<Block, PageError> {
    let mut block = Block {
        line,
        mode: Mode::Runs,
        within: None,
        clear_of_five_minutes: None,
        preamble: Vec::new(),
        commands: Vec::new(),
    };
    for word in words.split_whitespace() {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let duration = value.strip_suffix('s').and_then(|digits| digits.parse().ok()).map(Duration::from_secs);
        match (name, duration) {
            ("stays", None) if value.is_empty() => block.mode = Mode::Stays,
            ("goes-on", None) if value.is_empty() => block.mode = Mode::GoesOn,
            ("within", Some(most)) => block.within = Some(most),
            ("clear-of-five-minutes", Some(least)) => block.clear_of_five_minutes = Some(least),
            _ => return Err(PageError::UnknownWord(line, word.to_owned())),
        }
    }
    Ok(block)
}

fn add(block: &mut Block, line: usize, text: &str) -> Result<(), PageError> {
    if let Some(typed) = text.strip_prefix("$ ") {
        if block.mode == Mode::GoesOn {
            return Err(PageError::CommandInGoesOn(line));
        }
        block.commands.push(Command { line, typed: typed.to_owned(), expected: Vec::new() });
        return Ok(());
    }
    match (block.commands.last_mut(), block.mode) {
        (Some(command), _) => match text.strip_prefix("> ") {
            Some(more) if command.expected.is_empty() => {
                command.typed.push('\n');
                command.typed.push_str(more);
            }
            _ => command.expected.push(text.to_owned()),
        },
        (None, Mode::GoesOn) => block.preamble.push(text.to_owned()),
        (None, _) => return Err(PageError::OutputWithoutCommand(line)),
    }
    Ok(())
}

/// Trailing blanks do not count: kubectl pads its last column, and an editor cuts the page's.
fn line_matches(expected: &str, printed: &str) -> bool {
    let mut pieces = expected.trim_end().split("[..]");
    let printed = printed.trim_end();
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = printed.strip_prefix(first) else { return false };
    let mut pieces: Vec<&str> = pieces.collect();
    let Some(last) = pieces.pop() else { return rest.is_empty() };
    for piece in pieces {
        let Some(at) = rest.find(piece) else { return false };
        rest = &rest[at + piece.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_wildcard_stands_for_text_within_one_line_only() {
        let expected = lines("NAME  AGE\nheart [..] 5[..]s");
        assert!(matches(&expected, &["NAME  AGE  ", "heart beats 51s"]));
        assert!(matches(&expected, &["NAME  AGE", "heart  5s"]));
        assert!(!matches(&expected, &["NAME  AGE", "heart beats 6s"]));
        assert!(!matches(&expected, &["NAME  AGE", "heart", "5s"]));
        assert!(!matches(&expected, &["NAME  AGE", "heart beats 5s", "more"]));
    }

    #[test]
    fn the_text_after_the_last_wildcard_must_end_the_line() {
        assert!(!matches(&lines("a [..] b"), &["a x b c"]));
        assert!(matches(&lines("a[..]b[..]b"), &["a b b"]));
        assert!(!matches(&lines("a[..]b[..]b"), &["a b"]));
    }

    #[test]
    fn three_dots_stand_for_any_lines_and_nothing_expected_means_nothing_printed() {
        let expected = lines("...\nready in [..] s\n...");
        assert!(matches(&expected, &["building", "", "ready in 4.2 s"]));
        assert!(matches(&expected, &["ready in 4.2 s", "and so on"]));
        assert!(!matches(&expected, &["ready"]));
        assert!(matches::<&str>(&[], &[]));
        assert!(!matches(&[], &["something"]));
    }

    #[test]
    fn a_page_is_read_into_blocks_with_their_commands_and_words() {
        let page = "text\n```console stays within=10s\n$ make run\n...\n```\n```sh\n$ not this\n```\n\
                    ```console\n$ echo \\\n> one\none\n$ true\n```\n```console goes-on\nleader is gone\n```\n";
        let blocks = parse(page).unwrap();
        assert_eq!(blocks.len(), 3);
        assert_eq!((blocks[0].mode, blocks[0].within), (Mode::Stays, Some(Duration::from_secs(10))));
        assert_eq!(blocks[1].commands[0].typed, "echo \\\none");
        assert_eq!(blocks[1].commands[0].expected, ["one"]);
        assert_eq!(blocks[1].commands[1], Command { line: 13, typed: "true".into(), expected: vec![] });
        assert_eq!(blocks[2].preamble, ["leader is gone"]);
    }

    #[test]
    fn what_a_page_cannot_mean_is_refused_with_its_line() {
        assert_eq!(parse("```console sometimes\n```"), Err(PageError::UnknownWord(1, "sometimes".into())));
        assert_eq!(parse("\n```console\nout\n```"), Err(PageError::OutputWithoutCommand(3)));
        assert_eq!(parse("```console goes-on\n$ true\n```"), Err(PageError::CommandInGoesOn(2)));
        assert_eq!(parse("```console\n$ true\n"), Err(PageError::NotClosed(1)));
        assert_eq!(parse("no block"), Err(PageError::Empty));
    }
}
