//! One trial: every contender is calm, all are struck at once, and each is calm again.

use std::{collections::BTreeMap, time::Duration};

use futures::future::{join_all, try_join_all};
use jiff::SignedDuration;

use super::{Fault, Fleet, NAMESPACE, PeersError, Stint, fleet::Leader};
use crate::{clock::At, journal::Journal, pods::Hands};

/// How long a successor is waited for: the longest that any of them was seen to take is 24 s.
const SUCCESSOR_LIMIT: Duration = Duration::from_secs(35);
/// After its Lease is gone a leader may go on, so that there is no successor to wait for; one that waits takes a lease
/// duration, and Tenure its grace for other makes besides.
const LEASE_DELETED_FOR: Duration = Duration::from_secs(22);
/// How long a container and the API server are frozen.
const FROZEN_FOR: Duration = Duration::from_secs(20);
/// A leader that was cut off and replaced stays cut off for this long: it has to have left by itself.
const CUT_OFF_BEYOND: Duration = Duration::from_secs(5);
/// So long after a fault it may still come to light who leads: the longest pause between two looks at the Lease is 5 s.
const AFTERMATH: Duration = Duration::from_secs(7);
/// How long a datagram may be on its way.
const ON_THE_WAY: Duration = Duration::from_millis(20);
/// Who is not calm by itself after this long is started anew.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same after a node has died: it has to boot.
const PATIENCE_WITH_A_NODE: Duration = Duration::from_secs(90);
/// How often leaders are moved to gather them on one node. One whose pod is deleted may lead again from the same node: after
/// the first time the others follow it there, and are moved until they have come.
const GATHER_TRIES: usize = 6;

/// What was seen of one contender in one trial.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen {
    /// Last tick of the leader that was struck minus first tick of its successor, if there was one.
    pub(super) overlap: Option<SignedDuration>,
    /// Whether it stopped only when its node was healed.
    pub(super) until_healed: bool,
    /// From the fault to the successor's first tick.
    pub(super) take_over: Option<Duration>,
    /// Whether it had to be started anew to lead again.
    pub(super) anew: bool,
    /// Whether the leader that was struck stayed the leader.
    pub(super) stayed: bool,
}

/// A blow: when the harness began to strike, and what came of it.
#[derive(Debug, Clone, Copy)]
struct Blow {
    struck: At,
    /// When it fell, where that can be seen: the victim's last tick. The helpers need a second or more until they strike.
    fell: Option<At>,
    /// When the victim thawed.
    thawed: Option<At>,
}

/// The hands and the log of a trial.
#[derive(Debug)]
pub(super) struct Striker {
    pub(super) hands: Hands,
    pub(super) journal: Journal,
}

impl Striker {
    /// One trial: what was seen of each that was struck.
    pub(super) async fn trial(
        &self,
        fault: Fault,
        number: u32,
        fleets: &[Fleet],
    ) -> Result<Vec<Option<Seen>>, PeersError> {
        let mut leaders = self.calm(fleets).await?;
        let node = if fault.strikes_a_node() { Some(self.gather(fleets, &mut leaders).await?) } else { None };
        for (fleet, leader) in fleets.iter().zip(&leaders) {
            self.note(fleet, &format!("{fault} {number}: {leader:?}"));
        }
        let blows = match fault {
            Fault::ApiServerPaused => self.pause_apiserver(fleets.len()).await?,
            _ if let Some(node) = &node => self.strike_node(fault, node, fleets, &leaders).await?,
            _ => {
                try_join_all(fleets.iter().zip(&leaders).map(|(fleet, leader)| self.strike_one(fault, fleet, leader)))
                    .await?
            }
        };
        let healed = At::now();
        tokio::time::sleep(AFTERMATH).await;
        let patience = if fault == Fault::NodeDead { PATIENCE_WITH_A_NODE } else { PATIENCE };
        let calm = try_join_all(fleets.iter().map(|fleet| fleet.calm_or_anew(patience))).await?;
        let seen = fleets.iter().zip(leaders).zip(blows).zip(calm).map(|(((fleet, leader), blow), (_, anew))| {
            let mut seen = look(fleet, &leader, blow, healed, anew);
            seen.until_healed &= fault == Fault::NodeCutOff;
            self.note(fleet, &format!("{fault} {number}: {seen:?}"));
            node.as_ref().is_none_or(|node| leader.node == *node).then_some(seen)
        });
        Ok(seen.collect())
    }

    async fn calm(&self, fleets: &[Fleet]) -> Result<Vec<Leader>, PeersError> {
        let calm = try_join_all(fleets.iter().map(|fleet| fleet.calm_or_anew(PATIENCE_WITH_A_NODE))).await?;
        Ok(calm.into_iter().map(|(leader, _)| leader).collect())
    }

    /// Brings all leaders to one node, at first to that on which most are: the pod of one that is elsewhere is deleted.
    async fn gather(&self, fleets: &[Fleet], leaders: &mut Vec<Leader>) -> Result<String, PeersError> {
        let mut node = most_common(leaders);
        for tried in 0..GATHER_TRIES {
            let mut moved = Vec::new();
            for (index, (fleet, leader)) in fleets.iter().zip(&*leaders).enumerate() {
                if leader.node != node {
                    self.note(fleet, &format!("to be moved to {node}: {}", leader.pod));
                    fleet.delete_pod(&leader.pod).await?;
                    moved.push(index);
                }
            }
            if moved.is_empty() {
                break;
            }
            *leaders = self.calm(fleets).await?;
            let stubborn = moved.into_iter().map(|index| &leaders[index]).find(|leader| leader.node != node);
            if let (0, Some(stubborn)) = (tried, stubborn) {
                node.clone_from(&stubborn.node);
            }
        }
        Ok(node)
    }

    /// A fault that strikes one contender.
    async fn strike_one(&self, fault: Fault, fleet: &Fleet, leader: &Leader) -> Result<Blow, PeersError> {
        let struck = At::now();
        let (mut fell, mut thawed) = (None, None);
        match fault {
            Fault::PodDeleted => {
                fleet.delete_pod(&leader.pod).await?;
                fleet.successor(struck, SUCCESSOR_LIMIT).await;
            }
            Fault::ContainerKilled => {
                self.hands.run("kill-container", &[NAMESPACE, &leader.pod]).await?;
                fell = Some(last_tick(fleet, leader).await);
                fleet.successor(struck, SUCCESSOR_LIMIT).await;
            }
            Fault::PodFrozen => {
                self.hands.run("freeze-pod", &[NAMESPACE, &leader.pod]).await?;
                let frozen = last_tick(fleet, leader).await;
                fell = Some(frozen);
                tokio::time::sleep(FROZEN_FOR.saturating_sub(At::now().since(frozen))).await;
                thawed = Some(At::now());
                self.hands.run("thaw-pod", &[NAMESPACE, &leader.pod]).await?;
            }
            _ => {
                fleet.delete_lease().await?;
                fleet.successor(struck, LEASE_DELETED_FOR).await;
            }
        }
        Ok(Blow { struck, fell, thawed })
    }

    async fn strike_node(
        &self,
        fault: Fault,
        node: &str,
        fleets: &[Fleet],
        leaders: &[Leader],
    ) -> Result<Vec<Blow>, PeersError> {
        let (harm, heal) =
            if fault == Fault::NodeDead { ("kill-node", "revive-node") } else { ("cut-node", "heal-node") };
        let struck = At::now();
        self.hands.run(harm, &[node]).await?;
        let mut blows = vec![Blow { struck, fell: None, thawed: None }; fleets.len()];
        if fault == Fault::NodeDead {
            let fell = join_all(fleets.iter().zip(leaders).map(|(fleet, leader)| last_tick(fleet, leader))).await;
            blows.iter_mut().zip(fell).for_each(|(blow, fell)| blow.fell = Some(fell));
        }
        let on_it = fleets.iter().zip(leaders).filter(|(_, leader)| leader.node == node);
        join_all(on_it.map(|(fleet, _)| fleet.successor(struck, SUCCESSOR_LIMIT))).await;
        if fault == Fault::NodeCutOff {
            tokio::time::sleep(CUT_OFF_BEYOND).await;
        }
        self.hands.run(heal, &[node]).await?;
        Ok(blows)
    }

    async fn pause_apiserver(&self, fleets: usize) -> Result<Vec<Blow>, PeersError> {
        let struck = At::now();
        self.hands.run("pause-apiserver", &[]).await?;
        tokio::time::sleep(FROZEN_FOR).await;
        self.hands.run("resume-apiserver", &[]).await?;
        Ok(vec![Blow { struck, fell: None, thawed: None }; fleets])
    }

    fn note(&self, fleet: &Fleet, what: &str) {
        self.journal.note(At::now(), &format!("{}: {what}", fleet.contender.name));
    }
}

/// The last tick of a leader that has just been stopped.
async fn last_tick(fleet: &Fleet, leader: &Leader) -> At {
    tokio::time::sleep(ON_THE_WAY).await;
    fleet.probe.with_log(|ticks| ticks.now(&leader.stint).unwrap_or(&leader.stint).last)
}

/// What the probe saw of a leader that was struck, and of the first who led after it.
fn look(fleet: &Fleet, leader: &Leader, blow: Blow, healed: At, anew: Option<At>) -> Seen {
    fleet.probe.with_log(|ticks| {
        let by_itself = |successor: &&Stint| anew.is_none_or(|anew| successor.first < anew);
        let Some(successor) = ticks.first_since(blow.struck).filter(by_itself) else {
            return Seen { stayed: true, anew: anew.is_some(), ..Seen::default() };
        };
        let struck = ticks.now(&leader.stint).unwrap_or(&leader.stint);
        Seen {
            overlap: Some(struck.overlap(successor, blow.thawed)),
            until_healed: struck.last >= healed && successor.first < healed,
            take_over: Some(successor.first.since(blow.fell.unwrap_or(blow.struck))),
            anew: anew.is_some(),
            stayed: false,
        }
    })
}

fn most_common(leaders: &[Leader]) -> String {
    let mut counts = BTreeMap::<&str, usize>::new();
    for leader in leaders {
        *counts.entry(&leader.node).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(_, count)| *count).map(|(node, _)| node.to_owned()).unwrap_or_default()
}
