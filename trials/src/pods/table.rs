//! One table for all families of a run, in Markdown: what was counted, and each latency beside its figure.

use std::{fmt::Write as _, fs, thread, time::Duration};

use jiff::{SignedDuration, Timestamp};
use kube::Client;

use super::{AwaitWithin, Outcome};
use crate::judge::{Findings, HAND_OVER_P99, PACE_AT_MOST, PACE_WINDOW, summary};

/// One family.
#[derive(Debug, Clone, Default)]
pub struct Row {
    /// What was tried.
    pub name: String,
    /// How many trials.
    pub trials: usize,
    /// Slots lost; nothing where there are no slots.
    pub lost: Option<usize>,
    /// Runs doubled; nothing where there are no runs.
    pub doubled: Option<usize>,
    /// The smallest and the greatest distance of two successive terms.
    pub overlap: Option<(SignedDuration, SignedDuration)>,
    /// From the fault to the first sign of the successor.
    pub take_overs: Vec<Duration>,
    /// The longest that this may take, where it is promised.
    pub take_over_limit: Option<Duration>,
    /// From the last sign of a leader that leaves in order to the first of its successor.
    pub hand_overs: Vec<Duration>,
    /// What else is to be known.
    pub notes: Vec<String>,
}

/// Where and of what the table was made.
#[derive(Debug, Clone)]
pub struct About {
    /// The machine that the program ran on.
    pub machine: String,
    /// What the API server says that it is.
    pub kubernetes: String,
    /// The commit of the sources.
    pub commit: String,
    /// When it was made.
    pub date: Timestamp,
    /// What everything random was drawn from.
    pub seed: u64,
}

impl Row {
    /// What a family came to.
    pub fn of(outcome: &Outcome, findings: &Findings) -> Self {
        let evidence = &outcome.evidence;
        let distances = || findings.overlaps.iter().map(|overlap| overlap.distance);
        Self {
            name: evidence.family.to_string(),
            trials: evidence.trials.len(),
            lost: Some(findings.lost.len()),
            doubled: Some(findings.doubled.len()),
            overlap: distances().min().zip(distances().max()),
            take_overs: findings.take_overs.clone(),
            take_over_limit: evidence.trials.iter().filter_map(|trial| trial.limit).max(),
            hand_overs: findings.hand_overs.clone(),
            notes: notes(outcome, findings),
        }
    }
}

fn notes(outcome: &Outcome, findings: &Findings) -> Vec<String> {
    let evidence = &outcome.evidence;
    let mut notes = Vec::new();
    if evidence.family.freezes() {
        notes.push(format!("{} resumed, {} restarted by the kubelet", outcome.thawed.0, outcome.thawed.1));
    }
    let outages = evidence.trials.iter().filter(|trial| trial.outage.is_some()).count();
    if outages > 0 {
        let stayed = findings.take_overs.iter().filter(|took| took.is_zero()).count();
        let over = if evidence.family.needs_a_front() { "what was put back" } else { "the outage" };
        notes.push(format!("{stayed} of {outages} terms went on over {over}"));
    }
    let cut = evidence.trials.iter().map(|trial| trial.cut.len()).sum::<usize>();
    if cut > 0 {
        let doubled = findings.doubled.len() - findings.doubled_uncut.len();
        notes.push(format!("{cut} runs cut off by the end of the drain: {doubled} made again, the others in doubt"));
    }
    let told = evidence.trials.iter().filter_map(|trial| trial.wrong_clock.as_ref()?.told);
    let told: Vec<String> = told.map(|told| format!("{:+.0} s", told.as_secs_f64())).collect();
    if !told.is_empty() {
        notes.push(format!("clock told as {}", told.join(", ")));
        notes.push(format!("earliest run {:.2} s before its slot", findings.earliest.as_secs_f64()));
    }
    let [refused, early] = [findings.old_refused.len(), findings.early.len()];
    if refused > 0 {
        notes.push(format!("{refused} effects of an old token refused"));
    }
    if early > 0 {
        notes.push(format!("{early} runs before their slot"));
    }
    if let Some(pace) = evidence.trials.iter().filter_map(|trial| trial.pace).max() {
        let window = PACE_WINDOW.as_secs();
        notes.push(format!("{pace} requests of one for the Lease in {window} s, at most {PACE_AT_MOST}"));
    }
    let share = findings.ran_share;
    notes.push(format!("{} of {} unhindered slots run", share.ran, share.unhindered));
    let failed = findings.failures().len() + outcome.failures().len();
    if failed > 0 {
        notes.push(format!("FAILED: {failed} conditions"));
    }
    notes
}

impl About {
    /// Asks the machine and the API server.
    pub async fn gather(client: &Client, commit: String, seed: u64) -> Self {
        let version = client.apiserver_version().await_within().await;
        let kubernetes = version.map_or_else(|| "unknown".to_owned(), |version| version.git_version);
        Self { machine: machine(), kubernetes, commit, date: Timestamp::now(), seed }
    }
}

/// Processor, how many of it, memory and kernel, as far as the machine tells.
fn machine() -> String {
    let line = |file: &str, name: &str| {
        let text = fs::read_to_string(file).ok()?;
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_once(':').map(|(_, value)| value.trim().to_owned())
    };
    let processor = line("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".to_owned());
    let processors = thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let memory = line("/proc/meminfo", "MemTotal")
        .and_then(|text| text.split(' ').next()?.parse::<u64>().ok())
        .map_or_else(|| "unknown".to_owned(), |kib| format!("{:.0} GiB", kib_to_gib(kib)));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{processors} × {processor}, {memory}, Linux {}", kernel.trim())
}

#[allow(clippy::cast_precision_loss, reason = "a size of memory in KiB is far below 2^52")]
fn kib_to_gib(kib: u64) -> f64 {
    kib as f64 / f64::from(1 << 20)
}

/// The table.
pub fn table(about: &About, rows: &[Row]) -> String {
    let mut text = String::new();
    let mut line = |line: String| {
        writeln!(text, "{line}").expect("writing to a string cannot fail");
    };
    line(format!(
        "Made on {:.0} at commit {} with seed {}: Kubernetes {}, {}.\n",
        about.date, about.commit, about.seed, about.kubernetes, about.machine
    ));
    line(format!(
        "| family | trials | lost | doubled | overlap, ms | take-over p50 / p99 / max, s | at most, s \
         | hand-over p50 / p99 / max, ms (p99 at most {}) | notes |",
        HAND_OVER_P99.as_millis()
    ));
    line("|---|--:|--:|--:|--:|--:|--:|--:|---|".to_owned());
    for row in rows {
        let count = |count: Option<usize>| count.map_or_else(|| "–".to_owned(), |count| count.to_string());
        let millis = |distance: SignedDuration| format!("{:+.1}", distance.as_secs_f64() * 1000.0);
        let overlap = row.overlap.map(|(least, most)| format!("{} … {}", millis(least), millis(most)));
        let limit = row.take_over_limit.map(|limit| format!("{:.0}", limit.as_secs_f64()));
        line(format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            row.name,
            row.trials,
            count(row.lost),
            count(row.doubled),
            overlap.unwrap_or_else(|| "–".to_owned()),
            spans(&row.take_overs, |span| format!("{:.2}", span.as_secs_f64())),
            limit.unwrap_or_else(|| "–".to_owned()),
            spans(&row.hand_overs, |span| format!("{:.0}", span.as_secs_f64() * 1000.0)),
            row.notes.join("; ")
        ));
    }
    line(
        "\nDoubled: runs made again. After a crash those that were open at it may be, if they are to run at least once; in a \
         planned change only those that the end of the drain cut off."
            .to_owned(),
    );
    line("Overlap: last sign of a leader minus first sign of its successor; a gap is negative.".to_owned());
    line(
        "Take-over: from the fault to the first sign of the successor, the drain of a run that is under way included; from \
         the last sign of a leader that ends at the fault; and from the return of the control plane to the first sign of a \
         leader, 0 if one went on."
            .to_owned(),
    );
    line("Hand-over: from the last sign of a leader that leaves in order to the first of its successor.".to_owned());
    line(
        "Signs are stamped by the kernel of the machine on which they arrive; a leader sends one per millisecond."
            .to_owned(),
    );
    text
}

fn spans(spans: &[Duration], show: impl Fn(Duration) -> String) -> String {
    summary(spans).map_or_else(|| "–".to_owned(), |[_, p50, p99, max]| [p50, p99, max].map(show).join(" / "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_a_cell_for_each_column_and_says_where_there_is_nothing() {
        let about = About {
            machine: "2 × machine".to_owned(),
            kubernetes: "v1.36.3".to_owned(),
            commit: "abc".to_owned(),
            date: "2026-03-01T00:00:00Z".parse().unwrap(),
            seed: 7,
        };
        let full = Row {
            name: "pod-deleted".to_owned(),
            trials: 2,
            lost: Some(0),
            doubled: Some(1),
            overlap: Some((SignedDuration::from_millis(-20), SignedDuration::from_micros(-500))),
            take_overs: vec![Duration::from_millis(1_500)],
            take_over_limit: Some(Duration::from_secs(16)),
            hand_overs: vec![Duration::from_millis(20), Duration::from_millis(30)],
            notes: vec!["one".to_owned(), "two".to_owned()],
        };
        let text = table(&about, &[full, Row { name: "empty".to_owned(), ..Row::default() }]);
        let rows: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
        assert!(rows.iter().all(|row| row.matches('|').count() == 10), "{text}");
        let expected = "| pod-deleted | 2 | 0 | 1 | -20.0 … -0.5 | 1.50 / 1.50 / 1.50 | 16 | 20 / 30 / 30 | one; two |";
        assert_eq!(rows[2], expected);
        assert_eq!(rows[3], "| empty | 0 | – | – | – | – | – | – |  |");
    }
}
