//! The table of `docs/wrong-input.md`, which is both what people read and what the tests run.

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// What is wrong, in words.
    pub case: String,
    /// What is given: fields of a spec, flags, or the name of a fault.
    pub input: String,
    pub refused_by: RefusedBy,
    /// What is said, to the letter.
    pub message: String,
}

/// Who says no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusedBy {
    Kubectl,
    Schema,
    Ready,
    Run,
    Event,
    StartUp,
    /// Nobody: the replica says it in its log and waits.
    Waits,
}

const PAGE: &str = include_str!("../../../docs/wrong-input.md");

/// The rows that `refused_by` says no to. There is at least one.
pub fn rows(refused_by: &[RefusedBy]) -> Vec<Row> {
    let rows: Vec<_> = all().into_iter().filter(|row| refused_by.contains(&row.refused_by)).collect();
    assert!(refused_by.iter().all(|wanted| rows.iter().any(|row| row.refused_by == *wanted)), "{refused_by:?}");
    rows
}

fn all() -> Vec<Row> {
    let lines = PAGE.lines().skip_while(|line| !line.starts_with("|---")).skip(1);
    lines.take_while(|line| line.starts_with('|')).map(row).collect()
}

fn row(line: &str) -> Row {
    let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
    let [case, input, refused_by, message] = cells[..] else { panic!("expected four cells: {line}") };
    let refused_by = match refused_by {
        "kubectl" => RefusedBy::Kubectl,
        "schema" => RefusedBy::Schema,
        "`Ready=False`" => RefusedBy::Ready,
        "`LastRunSucceeded=False`" => RefusedBy::Run,
        "Event `Unreadable`" => RefusedBy::Event,
        "start-up" => RefusedBy::StartUp,
        "log, and waits" => RefusedBy::Waits,
        other => panic!("nobody is called {other:?}: {line}"),
    };
    Row { case: case.to_owned(), input: code(input), refused_by, message: code(message) }
}

/// The text of a code span, which is fenced by as many backquotes as it takes. In a table, a bar is written `\\|`.
fn code(cell: &str) -> String {
    let fence = cell.bytes().take_while(|byte| *byte == b'`').count();
    assert!(fence > 0 && cell.len() > 2 * fence && cell.ends_with(&cell[..fence]), "not in backquotes: {cell}");
    let inner = &cell[fence..cell.len() - fence];
    let unpadded = inner.strip_prefix(' ').and_then(|text| text.strip_suffix(' ')).filter(|_| fence > 1);
    unpadded.unwrap_or(inner).replace("\\|", "|")
}
