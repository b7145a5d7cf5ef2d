//! A mixed fleet: Tenure and a contender on client-go hand one Lease to each other.
//!
//! One of each runs. The one that leads is told to stop, and is started again when the other has taken over. So every
//! second hand-over is from Tenure to client-go, and every other one back. Tenure promises that the two never work at once:
//! its own work has ended before it releases, and it waits for what may still go on in a holder of another make
//! (`--foreign-grace`).

use std::{fmt::Write as _, net::IpAddr, path::Path, time::Duration};

use jiff::SignedDuration;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;

use super::{NAMESPACE, PeersError, Stint, Ticks, millis, seconds, spread};
use crate::{
    clock::{At, Timeline},
    journal::{Journal, write_lines},
    probe::Probe,
    wait::{self, Overdue},
};

/// How long the other may take to lead: a lease duration and the grace would be 20 s, and this is with room.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(45);
/// How long a pod may take to be gone or to be ready.
const POD_LIMIT: Duration = Duration::from_mins(1);
/// How long Tenure leads at least before it is stopped.
const OUR_TERM: Duration = Duration::from_secs(1);
/// How long client-go leads at least while Tenure looks on: a lease duration, and a little. After a shorter term Tenure would
/// wait for the rest of it, besides the grace.
const THEIR_TERM: Duration = Duration::from_millis(15_500);
/// How often pods are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A pair on one Lease.
#[derive(Debug, Clone, Copy)]
pub struct Pair {
    /// What this is about, in a few words.
    pub about: &'static str,
    /// The Deployment of Tenure; its pods' names begin with it.
    pub ours: &'static str,
    /// The Deployment on client-go.
    pub theirs: &'static str,
    /// Where the datagrams of both go.
    pub port: u16,
}

/// One hand-over.
#[derive(Debug, Clone, Copy)]
struct HandOver {
    from_ours: bool,
    /// Last tick of the one that was stopped minus first tick of the other.
    overlap: SignedDuration,
    /// From the word to stop to the other's first tick.
    took: Duration,
}

/// All hand-overs of a pair.
#[derive(Debug)]
pub struct HandOvers {
    pair: Pair,
    all: Vec<HandOver>,
    lost: u64,
}

struct Mixed {
    pair: Pair,
    probe: Probe<Ticks>,
    pods: Api<Pod>,
    deployments: Api<Deployment>,
    journal: Journal,
}

impl Pair {
    /// Both are told to stop and do so at once; and one whose work goes on for 3 s, after it has released.
    pub const ALL: [Self; 2] = [
        Self { about: "client-go stops at once", ours: "prompt-tenure", theirs: "prompt-client-go", port: 9915 },
        Self { about: "client-go works on for 3 s", ours: "slow-tenure", theirs: "slow-client-go", port: 9916 },
    ];
}

/// Lets a pair hand over so often in each direction.
pub async fn run(
    client: &Client,
    address: IpAddr,
    directory: &Path,
    pair: Pair,
    times: u32,
) -> Result<HandOvers, PeersError> {
    let io = |what| move |source| PeersError::Io { what, source };
    let journal = Journal::create(&directory.join(format!("{}.log", pair.ours)), Timeline::new())
        .map_err(io("creating the log of the hand-overs"))?;
    let probe = Probe::receiving_at((address, pair.port).into()).map_err(io("starting a probe"))?;
    let mixed = Mixed {
        pair,
        probe,
        pods: Api::namespaced(client.clone(), NAMESPACE),
        deployments: Api::namespaced(client.clone(), NAMESPACE),
        journal,
    };
    let hand_overs = mixed.hand_overs(times).await?;
    let ticks = mixed.probe.with_log(Clone::clone);
    write_lines(&directory.join(format!("terms-{}.jsonl", pair.ours)), ticks.stints())
        .map_err(io("writing the terms"))?;
    Ok(HandOvers { pair, all: hand_overs, lost: ticks.lost() })
}

impl Mixed {
    async fn hand_overs(&self, times: u32) -> Result<Vec<HandOver>, PeersError> {
        let mut hand_overs = Vec::new();
        for _ in 0..times * 2 {
            let leader = self
                .until("one leads", HAND_OVER_LIMIT, || self.probe.with_log(|ticks| ticks.at_work(At::now()).cloned()));
            let leader = leader.await?;
            let from_ours = leader.identity.starts_with(self.pair.ours);
            let (from, to) =
                if from_ours { (self.pair.ours, self.pair.theirs) } else { (self.pair.theirs, self.pair.ours) };
            self.pods_of(to, 1).await?;
            tokio::time::sleep(if from_ours { OUR_TERM } else { THEIR_TERM }).await;
            let hand_over = self.hand_over(&leader, from, to).await?;
            self.journal.note(At::now(), &format!("{from} to {to}: {hand_over:?}"));
            hand_overs.push(hand_over);
        }
        Ok(hand_overs)
    }

    async fn hand_over(&self, leader: &Stint, from: &str, to: &str) -> Result<HandOver, PeersError> {
        let told = At::now();
        self.scale(from, 0).await?;
        let next = || {
            self.probe.with_log(|ticks| ticks.first_since(told).filter(|next| next.identity.starts_with(to)).cloned())
        };
        let next = self.until("the other leads", HAND_OVER_LIMIT, next).await?;
        self.pods_of(from, 0).await?;
        self.scale(from, 1).await?;
        let ended = self.probe.with_log(|ticks| ticks.now(leader).cloned()).unwrap_or_else(|| leader.clone());
        Ok(HandOver {
            from_ours: from == self.pair.ours,
            overlap: ended.overlap(&next, None),
            took: next.first.since(told),
        })
    }

    async fn scale(&self, deployment: &str, replicas: u32) -> Result<(), PeersError> {
        let patch = Patch::Merge(json!({ "spec": { "replicas": replicas } }));
        let scaled = self.deployments.patch_scale(deployment, &PatchParams::default(), &patch).await;
        scaled
            .map(drop)
            .map_err(|source| PeersError::Api { what: format!("scaling {deployment}"), source: Box::new(source) })
    }

    /// Waits until so many pods of a Deployment are there, and all of them ready.
    async fn pods_of(&self, deployment: &str, count: usize) -> Result<(), PeersError> {
        let there = async {
            loop {
                let listed = self.pods.list(&ListParams::default().labels(&format!("peers={deployment}"))).await;
                let pods = listed.map(|listed| listed.items).unwrap_or_default();
                if pods.len() == count && pods.iter().all(crate::pods::is_ready) {
                    return;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let what = format!("{deployment} has {count} pods that are ready");
        wait::within(&what, POD_LIMIT, there).await.map_err(|source| self.overdue(source))
    }

    async fn until<T>(&self, what: &str, limit: Duration, look: impl FnMut() -> Option<T>) -> Result<T, PeersError> {
        wait::until(what, limit, look).await.map_err(|source| self.overdue(source))
    }

    fn overdue(&self, source: Overdue) -> PeersError {
        PeersError::Overdue { fleet: format!("{} and {}", self.pair.ours, self.pair.theirs), source }
    }
}

impl HandOvers {
    /// The table, for people.
    pub fn render(&self) -> String {
        let mut table = format!(
            "{:<34} {:>5} {:>39} {:>31}\n",
            format!("mixed fleet, {}", self.pair.about),
            "times",
            "last tick minus first ms, least/p50/max",
            "hand-over s, least / p50 / max"
        );
        for (name, from_ours) in [("Tenure to client-go", true), ("client-go to Tenure", false)] {
            let those = || self.all.iter().filter(move |hand_over| hand_over.from_ours == from_ours);
            let row =
                |figures: Option<[String; 3]>| figures.map_or_else(|| "none".to_owned(), |figures| figures.join(" / "));
            let overlap = row(spread(those().map(|hand_over| hand_over.overlap)).map(|figures| figures.map(millis)));
            let took = row(spread(those().map(|hand_over| hand_over.took)).map(|figures| figures.map(seconds)));
            let written = writeln!(table, "  {name:<32} {:>5} {overlap:>39} {took:>31}", those().count());
            written.expect("writing to a string cannot fail");
        }
        let written = writeln!(table, "  {:<32} {:>5}", "datagrams lost on the way", self.lost);
        written.expect("writing to a string cannot fail");
        table
    }

    /// What Tenure promises and did not keep, one sentence each.
    pub fn failures(&self) -> Vec<String> {
        let overlapping = self.all.iter().filter(|hand_over| hand_over.overlap > SignedDuration::ZERO);
        let sentence = |hand_over: &HandOver| {
            let direction = if hand_over.from_ours { "from Tenure to client-go" } else { "from client-go to Tenure" };
            format!("mixed fleet, {}: both worked for {} ms, {direction}", self.pair.about, millis(hand_over.overlap))
        };
        overlapping.map(sentence).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_of_both_at_once_fails_the_run_in_either_direction() {
        let hand_over = |from_ours, millis| HandOver {
            from_ours,
            overlap: SignedDuration::from_millis(millis),
            took: Duration::from_secs(2),
        };
        let hand_overs = |hand_overs: &[HandOver]| HandOvers { pair: Pair::ALL[0], all: hand_overs.to_vec(), lost: 0 };
        assert_eq!(hand_overs(&[hand_over(true, -1), hand_over(false, -5_000)]).failures(), Vec::<String>::new());
        let broken = hand_overs(&[hand_over(true, 1), hand_over(false, 2)]);
        assert_eq!(broken.failures().len(), 2);
        let table = broken.render();
        assert!(table.contains("+2.0 / +2.0 / +2.0") && table.contains("2.000 / 2.000 / 2.000"), "{table}");
    }
}
