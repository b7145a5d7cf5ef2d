//! Every contender under every fault, and the table of it.

use std::{fmt::Write as _, net::IpAddr, path::Path};

use jiff::SignedDuration;
use kube::Client;

use super::{
    Contender, Fault, Fleet, PeersError, millis, seconds, spread,
    strike::{Seen, Striker},
};
use crate::{
    clock::Timeline,
    journal::{Journal, write_lines},
    pods::Hands,
};

/// All contenders, attended to, and the hands to strike them with.
#[derive(Debug)]
pub struct Table {
    fleets: Vec<Fleet>,
    striker: Striker,
}

/// What was seen of every contender under one fault.
#[derive(Debug)]
pub struct Family {
    fault: Fault,
    rows: Vec<(Contender, Vec<Seen>)>,
}

impl Table {
    /// Listens to all contenders; logs go into this directory.
    pub fn attend(client: &Client, address: IpAddr, hands: Hands, directory: &Path) -> Result<Self, PeersError> {
        let fleets = Contender::OF_THE_TABLE.map(|contender| Fleet::attend(client, address, contender));
        let journal = Journal::create(&directory.join("table.log"), Timeline::new())
            .map_err(|source| PeersError::Io { what: "creating the log of the trials", source })?;
        Ok(Self { fleets: fleets.into_iter().collect::<Result<_, _>>()?, striker: Striker { hands, journal } })
    }

    /// Strikes them all so often.
    pub async fn family(&self, fault: Fault, trials: u32) -> Result<Family, PeersError> {
        let mut rows: Vec<_> = self.fleets.iter().map(|fleet| (fleet.contender, Vec::new())).collect();
        for number in 1..=trials {
            let seen = self.striker.trial(fault, number, &self.fleets).await?;
            for (row, seen) in rows.iter_mut().zip(seen) {
                row.1.extend(seen);
            }
        }
        Ok(Family { fault, rows })
    }

    /// Writes every term that was seen, and returns how many datagrams never arrived.
    pub fn finish(&self, directory: &Path) -> Result<u64, PeersError> {
        let mut lost = 0;
        for fleet in &self.fleets {
            let ticks = fleet.probe.with_log(Clone::clone);
            lost += ticks.lost();
            write_lines(&directory.join(format!("terms-{}.jsonl", fleet.contender.name)), ticks.stints())
                .map_err(|source| PeersError::Io { what: "writing the terms", source })?;
        }
        Ok(lost)
    }
}

impl Family {
    /// The table, for people.
    pub fn render(&self) -> String {
        let mut table = format!(
            "{:<22} {:>6} {:>6} {:>27} {:>25} {:>5}\n",
            self.fault.to_string(),
            "trials",
            "stayed",
            "overlap ms, least to most",
            "take-over s, p50 / max",
            "anew"
        );
        for (contender, seen) in &self.rows {
            let stayed = seen.iter().filter(|seen| seen.stayed).count();
            let anew = seen.iter().filter(|seen| seen.anew).count();
            let written = writeln!(
                table,
                "  {:<20} {:>6} {stayed:>6} {:>27} {:>25} {anew:>5}",
                contender.name,
                seen.len(),
                overlap(seen),
                take_over(seen)
            );
            written.expect("writing to a string cannot fail");
        }
        table
    }

    /// What Tenure promises and did not keep, one sentence each.
    pub fn failures(&self) -> Vec<String> {
        let ours = self.rows.iter().filter(|(contender, _)| contender.is_ours).flat_map(|(_, seen)| seen);
        let broken = ours.filter_map(|seen| {
            let distance = seen.overlap.filter(|distance| *distance > SignedDuration::ZERO);
            let overlaps = distance.map(|distance| format!("two leaders for {} ms", millis(distance)));
            overlaps.or_else(|| seen.anew.then(|| "it did not lead again by itself".to_owned()))
        });
        broken.map(|broken| format!("{}: Tenure: {broken}", self.fault)).collect()
    }
}

/// A `>` says that the harness ended it: without that, it would have gone on.
fn overlap(seen: &[Seen]) -> String {
    let Some([least, _, most]) = spread(seen.iter().filter_map(|seen| seen.overlap)) else { return "none".to_owned() };
    let ended = seen.iter().any(|seen| seen.until_healed && seen.overlap == Some(most));
    format!("{} to {}{}", millis(least), if ended { ">" } else { "" }, millis(most))
}

fn take_over(seen: &[Seen]) -> String {
    let figures = spread(seen.iter().filter_map(|seen| seen.take_over));
    figures.map_or_else(|| "none".to_owned(), |[_, median, most]| format!("{} / {}", seconds(median), seconds(most)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn seen(overlap: i64) -> Seen {
        let overlap = Some(SignedDuration::from_millis(overlap));
        Seen { overlap, take_over: Some(Duration::from_millis(1500)), ..Seen::default() }
    }

    #[test]
    fn an_overlap_of_tenure_fails_the_run_and_one_of_a_peer_does_not() {
        let [ours, peer, ..] = Contender::OF_THE_TABLE;
        let family = |ours_seen| Family {
            fault: Fault::PodFrozen,
            rows: vec![(ours, vec![ours_seen]), (peer, vec![Seen { until_healed: true, anew: true, ..seen(10_000) }])],
        };
        assert_eq!(family(seen(-3)).failures(), Vec::<String>::new());
        assert_eq!(family(seen(3)).failures(), ["pod-frozen: Tenure: two leaders for +3.0 ms"]);
        assert_eq!(family(Seen { anew: true, ..seen(-3) }).failures().len(), 1);
        let table = family(seen(-3)).render();
        assert!(table.contains("-3.0 to -3.0") && table.contains(">+10000.0"), "{table}");
    }
}
