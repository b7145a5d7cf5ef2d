//! A mixed fleet: Tenure and a contender on client-go hand one Lease to each other.
//!
//! One of each runs. The one that leads is told to stop, and is started again when the other has taken over. So every
//! second hand-over is from Tenure to client-go, and every other one back. Tenure promises that the two never work at once:
//! its own work has ended before it releases, and it waits for what may still go on in a holder of another make
//! (`--foreign-grace`).

use std::{net::IpAddr, path::Path, time::Duration};

use jiff::SignedDuration;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;

use super::{NAMESPACE, PeersError, Row, Ticks, millis, seconds};
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
/// How many hand-overs are added where some have not come about.
const EXTRA_HAND_OVERS: u32 = 4;
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
    /// How many there are to be in each direction.
    wanted: u32,
    all: Vec<HandOver>,
    /// Those that did not come about: whether Tenure was the one that stopped.
    missed: Vec<bool>,
    /// Whether a time came in which nobody led, or both did, until nobody waited any more.
    stuck: bool,
    /// How many datagrams of Tenure and of client-go never arrived.
    lost: [u64; 2],
    /// Why there are no more of them, if there should be.
    pub error: Option<PeersError>,
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
    wanted: u32,
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
    let mut hand_overs =
        HandOvers { pair, wanted, all: Vec::new(), missed: Vec::new(), stuck: false, lost: [0; 2], error: None };
    hand_overs.error = mixed.hand_overs(&mut hand_overs).await.err();
    let ticks = mixed.probe.with_log(Clone::clone);
    hand_overs.lost = [pair.ours, pair.theirs].map(|side| ticks.lost_of(side));
    write_lines(&directory.join(format!("terms-{}.jsonl", pair.ours)), ticks.stints())
        .map_err(io("writing the terms"))?;
    Ok(hand_overs)
}

impl Mixed {
    async fn hand_overs(&self, found: &mut HandOvers) -> Result<(), PeersError> {
        for tried in 0..found.wanted * 2 + EXTRA_HAND_OVERS {
            if tried >= found.wanted * 2 && found.is_complete() {
                break;
            }
            let leader = || self.probe.with_log(|ticks| ticks.at_work(At::now()).cloned());
            let Ok(leader) = wait::until("one leads", HAND_OVER_LIMIT, leader).await else {
                found.stuck = true;
                break;
            };
            let alone = At::now();
            let from_ours = leader.identity.starts_with(self.pair.ours);
            let (from, to) =
                if from_ours { (self.pair.ours, self.pair.theirs) } else { (self.pair.theirs, self.pair.ours) };
            self.pods_of(to, 1).await?;
            tokio::time::sleep(if from_ours { OUR_TERM } else { THEIR_TERM }).await;
            let hand_over = self.hand_over(alone, from, to).await?;
            self.journal.note(At::now(), &format!("{from} to {to}: {hand_over:?}"));
            match hand_over {
                Some(hand_over) => found.all.push(hand_over),
                None => found.missed.push(from_ours),
            }
        }
        Ok(())
    }

    /// Stops the one that has led alone at that instant; nothing if the other does not lead in time.
    async fn hand_over(&self, alone: At, from: &str, to: &str) -> Result<Option<HandOver>, PeersError> {
        let told = At::now();
        self.scale(from, 0).await?;
        let next = || self.probe.with_log(|ticks| ticks.first_of(to, alone).cloned());
        let next = wait::until("the other leads", HAND_OVER_LIMIT, next).await;
        self.pods_of(from, 0).await?;
        // Whatever it has begun since it was seen to lead counts, until the last of its pods is gone.
        let last = self.probe.with_log(|ticks| ticks.last_of(from));
        self.scale(from, 1).await?;
        Ok(next.ok().zip(last).map(|(next, last)| HandOver {
            from_ours: from == self.pair.ours,
            overlap: last.signed_since(next.first),
            took: next.first.since(told),
        }))
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

    fn overdue(&self, source: Overdue) -> PeersError {
        PeersError::Overdue { fleet: format!("{} and {}", self.pair.ours, self.pair.theirs), source }
    }
}

impl HandOvers {
    /// Its rows, one for each direction.
    pub fn rows(&self) -> [Row; 2] {
        [(true, self.lost[0]), (false, self.lost[1])].map(|(from_ours, lost)| {
            let those = || self.all.iter().filter(move |hand_over| hand_over.from_ours == from_ours);
            let overlaps = || those().map(|hand_over| hand_over.overlap);
            let trials = those().count();
            let too_few = (trials < self.wanted as usize).then(|| format!("only {trials} of {} trials", self.wanted));
            Row {
                fault: format!("mixed fleet, {}", self.pair.about),
                contender: direction(from_ours).to_owned(),
                trials,
                overlap: overlaps().min().zip(overlaps().max()),
                take_overs: those().map(|hand_over| hand_over.took).collect(),
                lost,
                notes: too_few.into_iter().collect(),
                ..Row::default()
            }
        })
    }

    /// What Tenure promises and did not keep, one sentence each.
    pub fn failures(&self) -> Vec<String> {
        let overlapping = self.all.iter().filter(|hand_over| hand_over.overlap > SignedDuration::ZERO);
        let overlapping = overlapping.map(|hand_over| {
            format!("both worked for {} ms, {}", millis(hand_over.overlap), direction(hand_over.from_ours))
        });
        let missed = self.missed.iter().filter(|from_ours| !**from_ours);
        let missed = missed.map(|_| format!("Tenure did not lead within {} s", seconds(HAND_OVER_LIMIT)));
        let limit = seconds(HAND_OVER_LIMIT);
        let stuck = self.stuck.then(|| format!("nobody led, or both did, for {limit} s"));
        overlapping
            .chain(missed)
            .chain(stuck)
            .map(|broken| format!("mixed fleet, {}: {broken}", self.pair.about))
            .collect()
    }

    fn is_complete(&self) -> bool {
        self.rows().iter().all(|row| row.notes.is_empty())
    }
}

fn direction(from_ours: bool) -> &'static str {
    if from_ours { "Tenure to client-go" } else { "client-go to Tenure" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hand_over(from_ours: bool, millis: i64) -> HandOver {
        HandOver { from_ours, overlap: SignedDuration::from_millis(millis), took: Duration::from_secs(2) }
    }

    fn hand_overs(all: &[HandOver], missed: &[bool]) -> HandOvers {
        let (all, missed) = (all.to_vec(), missed.to_vec());
        HandOvers { pair: Pair::ALL[0], wanted: 1, all, missed, stuck: false, lost: [3, 4], error: None }
    }

    #[test]
    fn work_of_both_at_once_fails_the_run_in_either_direction() {
        assert_eq!(hand_overs(&[hand_over(true, -1), hand_over(false, -5_000)], &[]).failures(), Vec::<String>::new());
        let broken = hand_overs(&[hand_over(true, 1), hand_over(false, 2)], &[]);
        assert_eq!(broken.failures().len(), 2);
        let [ours, theirs] = broken.rows();
        assert_eq!((ours.trials, ours.lost, theirs.trials, theirs.lost), (1, 3, 1, 4));
        assert_eq!(theirs.overlap.map(|(_, most)| millis(most)).as_deref(), Some("+2.0"));
        assert!(broken.is_complete());
    }

    #[test]
    fn tenure_has_to_take_over_and_a_peer_that_does_not_is_only_told_of() {
        let missed = hand_overs(&[hand_over(true, -1)], &[false]);
        assert_eq!(missed.failures().len(), 1);
        assert!(!missed.is_complete());
        assert_eq!(HandOvers { stuck: true, ..missed }.failures().len(), 2);
        let theirs = hand_overs(&[hand_over(false, -1)], &[true]);
        assert_eq!(theirs.failures(), Vec::<String>::new());
        assert_eq!(theirs.rows()[0].notes, ["only 0 of 1 trials"]);
    }
}
