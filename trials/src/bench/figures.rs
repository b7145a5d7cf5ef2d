//! What is measured, and how several runs of it are printed (pure).

use std::{collections::BTreeMap, fmt::Write as _};

use jiff::SignedDuration;

use crate::ledger::Entry;

/// One number that was measured in one run.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// What it is.
    pub name: String,
    /// Its unit.
    pub unit: &'static str,
    /// Its value.
    pub value: f64,
    /// What it should be, for people.
    pub target: &'static str,
}

/// All figures of one run, in the order in which they are printed.
#[derive(Debug, Clone, Default)]
pub struct Measured(pub Vec<Figure>);

/// How late attempts started: from the slot to the first byte at the target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lateness {
    sorted: Vec<SignedDuration>,
}

impl Measured {
    /// Adds a figure.
    pub fn add(&mut self, name: impl Into<String>, value: f64, unit: &'static str, target: &'static str) {
        self.0.push(Figure { name: name.into(), unit, value, target });
    }
}

impl Lateness {
    /// The lateness of every first attempt of a slot; `wall_of` tells the wall-clock time of a first byte.
    pub fn of<'a>(entries: impl Iterator<Item = &'a Entry>, wall_of: impl Fn(&Entry) -> jiff::Timestamp) -> Self {
        let first = entries.filter(|entry| entry.request.attempt == 1);
        let mut sorted: Vec<SignedDuration> =
            first.filter_map(|entry| Some(wall_of(entry).duration_since(entry.request.slot?))).collect();
        sorted.sort_unstable();
        Self { sorted }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.sorted.len()
    }

    /// How many started before they were due.
    pub fn early(&self) -> usize {
        self.sorted.partition_point(|lateness| *lateness < SignedDuration::ZERO)
    }

    /// This percentile, by the nearest rank, in milliseconds.
    pub fn percentile_ms(&self, percent: usize) -> Option<f64> {
        let rank = (self.sorted.len() * percent).div_ceil(100).max(1);
        self.sorted.get(rank - 1).map(|lateness| lateness.as_secs_f64() * 1000.0)
    }
}

/// A table of several runs: median, least and greatest of each figure.
pub fn render(runs: &[Measured]) -> String {
    let mut values: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for figure in runs.iter().flat_map(|run| &run.0) {
        values.entry(&figure.name).or_default().push(figure.value);
    }
    let mut table = format!("{:<52} {:>10} {:>21}  {:<8} {}\n", "figure", "median", "spread", "unit", "target");
    for figure in runs.first().into_iter().flat_map(|run| &run.0) {
        let mut of_runs = values.remove(figure.name.as_str()).unwrap_or_default();
        of_runs.sort_unstable_by(f64::total_cmp);
        let (Some(least), Some(greatest)) = (of_runs.first(), of_runs.last()) else { continue };
        let spread = format!("{least:.2} to {greatest:.2}");
        let (name, median, unit, target) = (&figure.name, of_runs[of_runs.len() / 2], figure.unit, figure.target);
        writeln!(table, "{name:<52} {median:>10.2} {spread:>21}  {unit:<8} {target}")
            .expect("writing to a string cannot fail");
    }
    table
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::{
        clock::At,
        ledger::{Request, Verdict},
    };

    fn entry(millis: i64, attempt: u32) -> Entry {
        let slot = jiff::Timestamp::from_millisecond(1_000_000).unwrap();
        Entry {
            first_byte: At::from_millis(u64::try_from(1_000_000 + millis).unwrap()),
            replica: Ipv4Addr::LOCALHOST.into(),
            path: "/".into(),
            request: Request { run_id: "r".into(), job: "j".into(), slot: Some(slot), attempt, token: 1 },
            verdict: Verdict::Accepted,
            answered: None,
        }
    }

    fn wall(entry: &Entry) -> jiff::Timestamp {
        jiff::Timestamp::from_nanosecond(i128::from(entry.first_byte.nanos())).unwrap()
    }

    #[test]
    fn lateness_counts_first_attempts_and_sees_an_early_start() {
        let entries = [entry(4, 1), entry(-1, 1), entry(2, 1), entry(900, 2)];
        let lateness = Lateness::of(entries.iter(), wall);
        assert_eq!((lateness.count(), lateness.early()), (3, 1));
        assert_eq!(lateness.percentile_ms(50), Some(2.0));
        assert_eq!(lateness.percentile_ms(99), Some(4.0));
        assert_eq!(Lateness::default().percentile_ms(50), None);
    }

    #[test]
    fn a_table_shows_the_median_and_the_spread() {
        let run = |value| {
            let mut measured = Measured::default();
            measured.add("start lateness p50", value, "ms", "at most 5");
            measured
        };
        let table = render(&[run(3.0), run(1.0), run(2.0)]);
        let row: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row, ["start", "lateness", "p50", "2.00", "1.00", "to", "3.00", "ms", "at", "most", "5"]);
    }
}
