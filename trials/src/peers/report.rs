//! One table for all faults and contenders of a run, and the mixed fleet, in Markdown.

use std::{fmt::Write as _, time::Duration};

use jiff::SignedDuration;

use super::millis;
use crate::{judge::summary, pods::About};

/// One contender under one fault, or one direction of a mixed fleet.
#[derive(Debug, Clone, Default)]
pub struct Row {
    /// What was done.
    pub fault: String,
    /// To whom.
    pub contender: String,
    /// How often.
    pub trials: usize,
    /// How often the leader that was struck stayed the leader; nothing where it could not.
    pub stayed: Option<usize>,
    /// The least and the greatest overlap.
    pub overlap: Option<(SignedDuration, SignedDuration)>,
    /// Whether the greatest one ended only because the harness healed the node.
    pub until_healed: bool,
    /// All take-overs.
    pub take_overs: Vec<Duration>,
    /// Datagrams of it that never arrived.
    pub lost: u64,
    /// How often it had to be started anew; nothing where that is never done.
    pub anew: Option<usize>,
    /// What else is to be known.
    pub notes: Vec<String>,
}

/// The table.
pub fn table(about: &About, rows: &[Row]) -> String {
    let mut text = String::new();
    let mut line = |line: String| writeln!(text, "{line}").expect("writing to a string cannot fail");
    line(format!(
        "Made on {:.0} at commit {}: Kubernetes {}, {}.\n",
        about.date, about.commit, about.kubernetes, about.machine
    ));
    line(
        "| fault | contender | trials | stayed | overlap, ms | take-over p50 / p99 / max, s | lost | anew | notes |"
            .to_owned(),
    );
    line("|---|---|--:|--:|--:|--:|--:|--:|---|".to_owned());
    for row in rows {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
        let count = |count: Option<usize>| or_dash(count.map(|count| count.to_string()));
        line(format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            row.fault,
            row.contender,
            row.trials,
            count(row.stayed),
            or_dash(row.overlap()),
            or_dash(row.take_over()),
            row.lost,
            count(row.anew),
            row.notes.join("; ")
        ));
    }
    for explained in LEGEND {
        line(format!("\n{explained}"));
    }
    text
}

/// What is below the table.
const LEGEND: [&str; 5] = [
    "Stayed: trials in which the leader that was struck stayed the leader.",
    "Overlap: last datagram of a leader minus first datagram of the next one, least … most; a gap is negative. `>`: it ended \
     only because the harness healed the node.",
    "Take-over: from the fault to the next one's first datagram; from the end of a pause or restart of the control plane; in \
     the mixed fleet, from the word to stop.",
    "Lost: datagrams that were sent and never arrived. Anew: how often it had to be started anew to lead again.",
    "Datagrams are stamped by the kernel of the machine on which they arrive; a leader sends one per millisecond.",
];

impl Row {
    fn overlap(&self) -> Option<String> {
        let (least, most) = self.overlap?;
        Some(format!("{} … {}{}", millis(least), if self.until_healed { ">" } else { "" }, millis(most)))
    }

    fn take_over(&self) -> Option<String> {
        let [_, p50, p99, max] = summary(&self.take_overs)?;
        Some([p50, p99, max].map(|span| format!("{:.2}", span.as_secs_f64())).join(" / "))
    }
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
            fault: "node-cut-off".to_owned(),
            contender: "client-go".to_owned(),
            trials: 2,
            stayed: Some(1),
            overlap: Some((SignedDuration::from_millis(-20), SignedDuration::from_micros(500))),
            until_healed: true,
            take_overs: vec![Duration::from_millis(1_500)],
            lost: 3,
            anew: Some(0),
            notes: vec!["one".to_owned(), "two".to_owned()],
        };
        let text = table(&about, &[full, Row { fault: "empty".to_owned(), ..Row::default() }]);
        assert!(
            text.starts_with("Made on 2026-03-01T00:00:00Z at commit abc: Kubernetes v1.36.3, 2 × machine.\n"),
            "{text}"
        );
        let rows: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
        assert!(rows.iter().all(|row| row.matches('|').count() == 10), "{text}");
        let expected = "| node-cut-off | client-go | 2 | 1 | -20.0 … >+0.5 | 1.50 / 1.50 / 1.50 | 3 | 0 | one; two |";
        assert_eq!(rows[2], expected);
        assert_eq!(rows[3], "| empty |  | 0 | – | – | – | 0 | – |  |");
    }
}
