//! Every contender under every fault.

use std::{
    net::IpAddr,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use futures::future::join_all;
use jiff::SignedDuration;
use kube::Client;

use super::{
    Contender, Fault, Fleet, PeersError, Row, Ticks, millis,
    seen::Seen,
    strike::{Sighting, Striker},
};
use crate::{
    clock::{At, Timeline},
    front::Identity,
    journal::{Journal, write_lines},
    pods::Hands,
};

/// How many trials are added to a family in which somebody has fewer than it is to have: a leader may not come to the node
/// that is struck, and a fault may fail.
const EXTRA_TRIALS: u32 = 2;

/// All contenders, attended to, and the hands to strike them with.
#[derive(Debug)]
pub struct Table {
    fleets: Vec<Fleet>,
    striker: Striker,
    /// Whether they come by their fronts to the API server.
    behind: AtomicBool,
}

/// What was seen of every contender under one fault.
#[derive(Debug)]
pub struct Family {
    fault: Fault,
    /// How many trials each is to have.
    wanted: u32,
    tallies: Vec<Tally>,
    /// Why there are no more trials, if there should be.
    pub error: Option<PeersError>,
}

/// What was seen of one contender under one fault.
#[derive(Debug, Clone)]
struct Tally {
    contender: Contender,
    seen: Vec<Seen>,
    /// Trials that it sat out because it was not calm.
    not_calm: usize,
    /// Datagrams that never arrived.
    lost: u64,
}

impl Table {
    /// Listens to all contenders; logs go into this directory.
    pub async fn attend(
        client: &Client,
        address: IpAddr,
        identity: &Identity,
        hands: Hands,
        directory: &Path,
    ) -> Result<Self, PeersError> {
        let fleets = Contender::OF_THE_TABLE.map(|contender| Fleet::attend(client, address, identity, contender));
        let fleets = join_all(fleets).await.into_iter().collect::<Result<_, _>>()?;
        let journal = Journal::create(&directory.join("table.log"), Timeline::new())
            .map_err(|source| PeersError::Io { what: "creating the log of the trials", source })?;
        Ok(Self { fleets, striker: Striker { hands, journal }, behind: AtomicBool::new(false) })
    }

    /// Strikes them all so often. Who could not be struck that often after a few more trials has fewer.
    pub async fn family(&self, fault: Fault, wanted: u32) -> Family {
        let wanted = fault.trials(wanted);
        let tallies = self.fleets.iter().map(|fleet| Tally::of(fleet.contender)).collect();
        let mut family = Family { fault, wanted, tallies, error: None };
        if let Err(error) = self.go_by_the_fronts(fault.is_behind_a_front()).await {
            family.error = Some(error);
            return family;
        }
        let before = self.lost();
        let mut number = 0;
        while number < wanted || (number < wanted + EXTRA_TRIALS && !family.is_complete()) {
            number += 1;
            match self.striker.trial(fault, number, &self.fleets).await {
                Ok(sightings) => {
                    family.tallies.iter_mut().zip(sightings).for_each(|(tally, sighting)| tally.take(sighting));
                }
                Err(error) => {
                    family.error = Some(error);
                    break;
                }
            }
        }
        let lost = self.lost().into_iter().zip(before).map(|(now, before)| now.saturating_sub(before));
        family.tallies.iter_mut().zip(lost).for_each(|(tally, lost)| tally.lost = lost);
        family
    }

    /// Writes every term that was seen, and returns where two of Tenure's worked at once at any time, one sentence each.
    pub fn finish(&self, families: &[Family], directory: &Path) -> Result<Vec<String>, PeersError> {
        let mut failures = Vec::new();
        for fleet in &self.fleets {
            let ticks = fleet.probe.with_log(Clone::clone);
            write_lines(&directory.join(format!("terms-{}.jsonl", fleet.contender.name)), ticks.stints())
                .map_err(|source| PeersError::Io { what: "writing the terms", source })?;
            if fleet.contender.is_ours {
                failures.extend(two_at_once(&ticks, &thaws_of_ours(families)));
            }
        }
        Ok(failures)
    }

    /// Leads all of them by their fronts, or by the way that the cluster has for all. The fronts end with this program.
    pub async fn go_by_the_fronts(&self, led: bool) -> Result<(), PeersError> {
        if self.behind.swap(led, Ordering::Relaxed) == led {
            return Ok(());
        }
        let led = join_all(self.fleets.iter().map(|fleet| fleet.go_by_the_front(led))).await;
        led.into_iter().collect()
    }

    fn lost(&self) -> Vec<u64> {
        self.fleets.iter().map(|fleet| fleet.probe.with_log(Ticks::lost)).collect()
    }
}

impl Family {
    /// Its rows.
    pub fn rows(&self) -> Vec<Row> {
        self.tallies.iter().map(|tally| tally.row(self.fault, self.wanted)).collect()
    }

    /// What Tenure promises and did not keep, one sentence each.
    pub fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        for tally in self.tallies.iter().filter(|tally| tally.contender.is_ours) {
            failures.extend(tally.seen.iter().flat_map(|seen| seen.broken(self.fault)));
            if tally.not_calm > 0 {
                failures.push(format!("not calm before {} trials", tally.not_calm));
            }
            // Where the trials were broken off, that is what is told.
            failures.extend(tally.too_few(self.wanted).filter(|_| self.error.is_none()));
        }
        failures.into_iter().map(|broken| format!("{}: Tenure: {broken}", self.fault)).collect()
    }

    /// Whether there is nobody left for whom more trials are worth while. Who is not calm is not waited for any more.
    fn is_complete(&self) -> bool {
        self.tallies.iter().all(|tally| tally.seen.len() + tally.not_calm >= self.wanted as usize)
    }
}

impl Tally {
    fn of(contender: Contender) -> Self {
        Self { contender, seen: Vec::new(), not_calm: 0, lost: 0 }
    }

    fn take(&mut self, sighting: Sighting) {
        match sighting {
            Sighting::Seen(seen) => self.seen.push(seen),
            Sighting::NotCalm => self.not_calm += 1,
            Sighting::NotStruck => {}
        }
    }

    fn too_few(&self, wanted: u32) -> Option<String> {
        let too_few = self.seen.len() < wanted as usize;
        too_few.then(|| format!("only {} of {wanted} trials", self.seen.len()))
    }

    fn row(&self, fault: Fault, wanted: u32) -> Row {
        let overlaps = || self.seen.iter().filter_map(|seen| seen.overlap);
        let most = overlaps().max();
        let not_calm = (self.not_calm > 0).then(|| format!("not calm before {} trials", self.not_calm));
        Row {
            fault: fault.with_lengths(wanted),
            contender: self.contender.name.to_owned(),
            trials: self.seen.len(),
            stayed: Some(self.seen.iter().filter(|seen| seen.stayed).count()),
            overlap: overlaps().min().zip(most),
            until_healed: self.seen.iter().any(|seen| seen.until_healed && seen.overlap == most),
            take_overs: self.seen.iter().filter_map(|seen| seen.take_over).collect(),
            lost: self.lost,
            anew: Some(self.seen.iter().filter(|seen| seen.anew).count() + self.not_calm),
            notes: not_calm.into_iter().chain(self.too_few(wanted)).collect(),
        }
    }
}

/// Which terms of Tenure thawed, and when.
fn thaws_of_ours(families: &[Family]) -> Vec<(u64, At)> {
    let ours = families.iter().flat_map(|family| &family.tallies).filter(|tally| tally.contender.is_ours);
    ours.flat_map(|tally| &tally.seen).filter_map(|seen| seen.thawed).collect()
}

/// Tenure's tokens tell one term from another and grow, whatever was struck: so all its terms can be held against each other.
fn two_at_once(ticks: &Ticks, thaws: &[(u64, At)]) -> Vec<String> {
    let broken = ticks.successions(thaws).into_iter().filter_map(|(older, newer, distance)| {
        if older.token == newer.token {
            let (one, other) = (&older.identity, &newer.identity);
            return Some(format!("Tenure: {one} and {other} have led with the same token, {}", older.token));
        }
        let (older, newer) = (older.token, newer.token);
        let overlaps = distance > SignedDuration::ZERO;
        overlaps.then(|| format!("Tenure: terms {older} and {newer} worked at once for {} ms", millis(distance)))
    });
    broken.collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::probe::Datagrams;

    fn seen(overlap: i64) -> Seen {
        let overlap = Some(SignedDuration::from_millis(overlap));
        let length = Fault::PodFrozen.length(1);
        Seen { overlap, length, take_over: Some(Duration::from_millis(1500)), ..Seen::default() }
    }

    fn family(ours: Vec<Seen>, peer: Vec<Seen>) -> Family {
        let [tenure, client_go, ..] = Contender::OF_THE_TABLE;
        let tally = |contender, seen| Tally { seen, ..Tally::of(contender) };
        let tallies = vec![tally(tenure, ours), tally(client_go, peer)];
        Family { fault: Fault::PodFrozen, wanted: 1, tallies, error: None }
    }

    #[test]
    fn an_overlap_of_tenure_fails_the_run_and_one_of_a_peer_does_not() {
        let peer = || vec![Seen { until_healed: true, anew: true, take_over: None, ..seen(10_000) }];
        assert_eq!(family(vec![seen(-3)], peer()).failures(), Vec::<String>::new());
        assert_eq!(family(vec![seen(3)], peer()).failures(), ["pod-frozen: Tenure: two leaders for +3.0 ms"]);
        assert_eq!(family(vec![Seen { anew: true, ..seen(-3) }], peer()).failures().len(), 1);
        assert_eq!(family(Vec::new(), peer()).failures(), ["pod-frozen: Tenure: only 0 of 1 trials"]);
    }

    #[test]
    fn a_peer_that_was_not_calm_or_not_struck_often_enough_has_that_in_its_row() {
        let mut family = family(vec![seen(-3)], Vec::new());
        family.tallies[1].take(Sighting::NotStruck);
        assert!(!family.is_complete(), "it may be struck in another trial");
        family.tallies[1].take(Sighting::NotCalm);
        assert!(family.is_complete(), "nobody waits for it");
        assert_eq!(family.failures(), Vec::<String>::new());
        let row = &family.rows()[1];
        assert_eq!((row.trials, row.anew), (0, Some(1)));
        assert_eq!(row.notes, ["not calm before 1 trials", "only 0 of 1 trials"]);
        family.tallies[0].take(Sighting::NotCalm);
        assert_eq!(family.failures(), ["pod-frozen: Tenure: not calm before 1 trials"]);
    }

    #[test]
    fn any_two_terms_of_tenure_that_overlap_fail_the_run_unless_one_has_just_thawed() {
        let mut ticks = Ticks::default();
        for (millis, datagram) in [(10, "7 a 0"), (600, "9 b 0"), (900, "7 a 1")] {
            ticks.take(At::from_millis(millis), datagram.as_bytes());
        }
        assert_eq!(two_at_once(&ticks, &[]), ["Tenure: terms 7 and 9 worked at once for +300.0 ms"]);
        let frozen = Seen { thawed: Some((7, At::from_millis(850))), ..seen(-590) };
        let families = [family(vec![frozen], Vec::new())];
        assert_eq!(two_at_once(&ticks, &thaws_of_ours(&families)), Vec::<String>::new());
        ticks.take(At::from_millis(2_000), b"9 c 0");
        assert_eq!(two_at_once(&ticks, &thaws_of_ours(&families)).len(), 1, "two have the same token");
    }
}
