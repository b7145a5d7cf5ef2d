//! The table of a family, for people.

use std::{fmt::Write as _, time::Duration};

use jiff::SignedDuration;

use super::{
    conditions::Findings,
    evidence::{Evidence, PACE_AT_MOST, PACE_WINDOW, Window},
};

/// The figure for the hand-over from leader to leader: printed beside what was measured, and no condition.
pub const HAND_OVER_P99: Duration = Duration::from_millis(250);

/// The table of one family.
pub fn render(evidence: &Evidence, findings: &Findings) -> String {
    let mut table = String::new();
    let mut row = |name: &str, value: String| {
        let written = writeln!(table, "  {name:<42} {value}");
        written.expect("writing to a string cannot fail");
    };
    row("trials", evidence.trials.len().to_string());
    let aimed = evidence.trials.iter().any(|trial| trial.window.is_some());
    for window in Window::ALL.into_iter().filter(|_| aimed) {
        let count = evidence.trials.iter().filter(|trial| trial.window == Some(window)).count();
        row(&format!("struck {window}"), count.to_string());
    }
    row("slots due", findings.due.to_string());
    row("slots decided", findings.decided.to_string());
    row("slots lost", findings.lost.len().to_string());
    row("runs doubled", findings.doubled.len().to_string());
    if let Some(cut) = Some(evidence.trials.iter().map(|trial| trial.cut.len()).sum::<usize>()).filter(|cut| *cut > 0) {
        row("runs cut off by the end of the drain", format!("{cut}, {} not as promised", findings.badly_cut.len()));
    }
    let early = format!("{} by more than is allowed; the earliest by {:?}", findings.early.len(), findings.earliest);
    row("runs before their slot", early);
    row("at-most-once runs made twice", findings.at_most_once_twice.len().to_string());
    row("old-token effects accepted", findings.old_accepted.len().to_string());
    let refused = (findings.old_refused.len(), findings.old_refused.len() - findings.old_refused_unexcused.len());
    row("old-token effects refused", format!("{} ({} as a frozen replica thawed)", refused.0, refused.1));
    row("overlap (signed; a gap is negative)", overlap(findings));
    let (late, lost) = (evidence.probe.late_total(), evidence.probe.lost());
    row("late datagrams", format!("{late} ({} as a frozen replica thawed)", findings.excused_datagrams));
    row("datagrams lost on the way", lost.to_string());
    row("take-over min / p50 / p99 / max", spans(&findings.take_overs));
    if evidence.family.hands_over() {
        row(
            "hand-over min / p50 / p99 / max",
            format!("{} (p99 is to be at most {HAND_OVER_P99:?})", spans(&findings.hand_overs)),
        );
    }
    row("start lateness min / p50 / p99 / max", spans(&findings.lateness));
    let share = findings.ran_share;
    row("unhindered slots run", format!("{} of {}", share.ran, share.unhindered));
    let slow: Duration = evidence.slow.iter().map(|(from, to)| to.since(*from)).sum();
    row("control plane too slow for anything", format!("{} times, {:.1} s", evidence.slow.len(), slow.as_secs_f64()));
    if let Some(pace) = evidence.trials.iter().filter_map(|trial| trial.pace).max() {
        row(
            &format!("requests for the Lease within {PACE_WINDOW:?}"),
            format!("{pace} at most, by one replica (to be at most {PACE_AT_MOST})"),
        );
    }
    row("nobody led for too long", findings.leaderless.len().to_string());
    row("seen, and proves nothing", findings.complaints.len().to_string());
    row("coalesced outside a leaderless gap", findings.coalesced_in_office.len().to_string());
    row("times when versions were missed", evidence.gaps.to_string());
    let bad_ends = evidence.bad_ends.as_ref().map_or_else(|| "not watched".to_owned(), |ends| ends.len().to_string());
    row("replicas that ended otherwise than asked", bad_ends);
    for end in evidence.bad_ends.iter().flatten() {
        row("", end.clone());
    }
    format!("{}\n{table}", findings.family)
}

/// Smallest, median, 99th percentile (nearest rank) and largest of some durations.
pub fn summary(durations: &[Duration]) -> Option<[Duration; 4]> {
    let mut sorted = durations.to_vec();
    sorted.sort_unstable();
    let rank = |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).max(1) - 1).copied();
    Some([*sorted.first()?, rank(50)?, rank(99)?, *sorted.last()?])
}

fn spans(durations: &[Duration]) -> String {
    summary(durations).map_or_else(
        || "none".to_owned(),
        |figures| figures.map(|figure| format!("{:.3} s", figure.as_secs_f64())).join(" / "),
    )
}

fn overlap(findings: &Findings) -> String {
    let millis = |distance: SignedDuration| format!("{:+.1} ms", distance.as_secs_f64() * 1000.0);
    let distances = || findings.overlaps.iter().map(|overlap| overlap.distance);
    match (distances().min(), distances().max()) {
        (Some(least), Some(greatest)) => format!("{} to {}", millis(least), millis(greatest)),
        _ => "no second term".to_owned(),
    }
}
