//! One trial: every contender is calm, all are struck at once, and each is calm again.
//!
//! Whatever is broken is mended, also when something in between fails: nobody leaves while another's pod is frozen.

use std::{collections::BTreeMap, time::Duration};

use futures::future::join_all;

use super::{
    Fault, Fleet, NAMESPACE, PeersError,
    fault::{FOREIGN_GRACE, LEASE},
    fleet::Leader,
    seen::{Blow, Seen},
};
use crate::{
    clock::At,
    journal::Journal,
    pods::{HandError, Hands},
};

/// How long a successor is waited for: the longest that any of them was seen to take is 24 s.
const SUCCESSOR_LIMIT: Duration = Duration::from_secs(35);
/// How long it is where a leader may go on, so that there need be no successor: after its Lease was touched, or once the
/// control plane is back. One that waits takes a lease duration, and Tenure its grace for other makes besides.
const SUCCESSOR_IF_ANY: Duration = LEASE.saturating_add(FOREIGN_GRACE).saturating_add(Duration::from_secs(2));
/// A leader that was cut off and replaced stays cut off for this long: it has to have left by itself.
pub(super) const CUT_OFF_BEYOND: Duration = Duration::from_secs(5);
/// So long after a fault it may still come to light who leads: the longest pause between two looks at the Lease is 5 s.
const AFTERMATH: Duration = Duration::from_secs(7);
/// How long a datagram may be on its way.
const ON_THE_WAY: Duration = Duration::from_millis(20);
/// Who is not calm by itself this long after the aftermath is started anew.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same after its Lease was touched: whoever was to take it over has had the time for it.
const PATIENCE_WITH_A_LEASE: Duration = Duration::from_secs(10);
/// The same where nodes have died or were not heard of: they have to boot, or to say that they are there.
const PATIENCE_WITH_NODES: Duration = Duration::from_secs(90);
/// How often leaders are moved to gather them on one node. One whose pod is deleted may lead again from the same node: after
/// the first time the others follow it there, and are moved until they have come.
const GATHER_TRIES: usize = 6;
/// How often something is mended before it counts as broken for good.
const MENDING_TRIES: u32 = 3;
/// How long the next try of it is put off.
const MEND_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What a trial came to for one contender.
#[derive(Debug, Clone, Copy)]
pub(super) enum Sighting {
    /// It was struck.
    Seen(Seen),
    /// It was not calm before, and has been started anew.
    NotCalm,
    /// It could not be struck: its leader did not come to the node, or the fault failed.
    NotStruck,
}

/// The hands and the log of a trial.
#[derive(Debug)]
pub(super) struct Striker {
    pub(super) hands: Hands,
    pub(super) journal: Journal,
}

/// A contender, and its leader if that is to be struck.
type Target<'a> = (&'a Fleet, Option<Leader>);

impl Striker {
    /// One trial: what was seen of each.
    pub(super) async fn trial(&self, fault: Fault, number: u32, fleets: &[Fleet]) -> Result<Vec<Sighting>, PeersError> {
        let mut targets = self.calm(fleets.iter()).await?;
        let node = if fault.strikes_a_node() { self.gather(&mut targets).await? } else { None };
        let calm: Vec<bool> = targets.iter().map(|(_, leader)| leader.is_some()).collect();
        for (fleet, leader) in &mut targets {
            self.note(fleet, &format!("{fault} {number}: {leader:?}"));
            if let Some(node) = &node {
                leader.take_if(|leader| leader.node != *node);
            }
        }
        let length = fault.length(number);
        // Without anybody to be struck nothing is broken: there would be nothing to see.
        let blows = if targets.iter().all(|(_, leader)| leader.is_none()) {
            vec![None; targets.len()]
        } else if let Some(node) = &node {
            self.strike_node(fault, node, &targets).await?
        } else if fault.strikes_the_control_plane() {
            let blow = self.strike_the_control_plane(fault, length, &targets).await?;
            vec![Some(blow); targets.len()]
        } else {
            join_all(targets.iter().map(|target| self.strike_one(fault, length, target))).await
        };
        let healed = At::now();
        tokio::time::sleep(AFTERMATH).await;
        let anew = join_all(targets.iter().zip(&calm).map(async |((fleet, _), calm)| {
            // Who was not calm before has only just been started anew.
            let anew = if *calm { fleet.anew_unless_calm(patience(fault)).await } else { Ok(None) };
            // It is looked at again before the next trial; what was seen in this one stands.
            anew.unwrap_or_else(|error| {
                self.note(fleet, &format!("could not be started anew: {error}"));
                Some(At::now())
            })
        }));
        let anew = anew.await;
        let sightings = targets.iter().zip(calm).zip(blows).zip(anew).map(|(((target, calm), blow), anew)| {
            let (fleet, Some(leader), Some(blow)) = (target.0, &target.1, blow) else {
                return if calm { Sighting::NotStruck } else { Sighting::NotCalm };
            };
            let mut seen = fleet.probe.with_log(|ticks| Seen::of(ticks, &leader.stint, &blow, healed, anew));
            seen.length = length;
            seen.until_healed &= fault.cuts_off();
            self.note(fleet, &format!("{fault} {number}: {seen:?}"));
            Sighting::Seen(seen)
        });
        Ok(sightings.collect())
    }

    async fn calm<'a>(&self, fleets: impl Iterator<Item = &'a Fleet>) -> Result<Vec<Target<'a>>, PeersError> {
        let calm = join_all(fleets.map(async |fleet| fleet.calm_or_anew().await.map(|leader| (fleet, leader)))).await;
        let calm = calm.into_iter().collect::<Result<Vec<_>, _>>()?;
        for (fleet, _) in calm.iter().filter(|(_, leader)| leader.is_none()) {
            self.note(fleet, "was not calm, and is started anew");
        }
        Ok(calm)
    }

    /// Brings all leaders to one node, at first to that on which most are: the pod of one that is elsewhere is deleted.
    async fn gather(&self, targets: &mut [Target<'_>]) -> Result<Option<String>, PeersError> {
        let nodes = targets.iter().filter_map(|(_, leader)| Some(leader.as_ref()?.node.as_str()));
        let Some(mut node) = most_common(nodes) else { return Ok(None) };
        for tried in 0..GATHER_TRIES {
            let mut moved = Vec::new();
            for (index, (fleet, leader)) in targets.iter().enumerate() {
                if let Some(leader) = leader.as_ref().filter(|leader| leader.node != node) {
                    self.note(fleet, &format!("to be moved to {node}: {}", leader.pod));
                    fleet.delete_pod(&leader.pod).await?;
                    moved.push(index);
                }
            }
            if moved.is_empty() {
                break;
            }
            let calm = self.calm(moved.iter().map(|index| targets[*index].0)).await?;
            moved.into_iter().zip(calm).for_each(|(index, target)| targets[index] = target);
            let stubborn = targets.iter().filter_map(|(_, leader)| leader.as_ref()).find(|leader| leader.node != node);
            if let (0, Some(stubborn)) = (tried, stubborn) {
                node.clone_from(&stubborn.node);
            }
        }
        Ok(Some(node))
    }

    /// A fault that strikes one contender. One that fails is noted, and is no trial.
    async fn strike_one(&self, fault: Fault, length: Duration, (fleet, leader): &Target<'_>) -> Option<Blow> {
        let leader = leader.as_ref()?;
        match self.try_to_strike(fault, length, fleet, leader).await {
            Ok(blow) => Some(blow),
            Err(error) => {
                self.note(fleet, &format!("{fault} failed: {error}"));
                None
            }
        }
    }

    async fn try_to_strike(
        &self,
        fault: Fault,
        length: Duration,
        fleet: &Fleet,
        leader: &Leader,
    ) -> Result<Blow, PeersError> {
        if fault.is_behind_a_front() {
            return self.strike_behind_the_front(fault, length, fleet, leader).await;
        }
        let mut blow = Blow::at(At::now());
        match fault {
            Fault::PodDeleted => fleet.delete_pod(&leader.pod).await?,
            Fault::ContainerKilled => {
                self.hands.run("kill-container", &[NAMESPACE, &leader.pod]).await?;
                blow.fell = Some(last_tick(fleet, leader).await);
            }
            Fault::LeaseDeleted => fleet.delete_lease().await?,
            Fault::LeaseEmptied => fleet.empty_lease().await?,
            Fault::LeaseEdited => fleet.edit_lease().await?,
            _ => {
                self.freeze(length, fleet, leader, &mut blow).await?;
                return Ok(blow);
            }
        }
        let limit = if fault.touches_the_lease() { SUCCESSOR_IF_ANY } else { SUCCESSOR_LIMIT };
        fleet.successor(blow.struck, limit).await;
        Ok(blow)
    }

    async fn freeze(
        &self,
        length: Duration,
        fleet: &Fleet,
        leader: &Leader,
        blow: &mut Blow,
    ) -> Result<(), PeersError> {
        let pod = [NAMESPACE, &leader.pod];
        let frozen = self.hands.run("freeze-pod", &pod).await;
        let fell = last_tick(fleet, leader).await;
        if frozen.is_ok() {
            tokio::time::sleep(length.saturating_sub(At::now().since(fell))).await;
        }
        (blow.fell, blow.thawed) = (Some(fell), Some(At::now()));
        // The kubelet may be about to restart it: then there is nothing to thaw for a moment.
        if let Err(error) = self.mend("thaw-pod", &pod).await {
            self.note(fleet, &error.to_string());
        }
        frozen?;
        Ok(())
    }

    async fn strike_node(
        &self,
        fault: Fault,
        node: &str,
        targets: &[Target<'_>],
    ) -> Result<Vec<Option<Blow>>, PeersError> {
        let (harm, heal) =
            if fault == Fault::NodeDead { ("kill-node", "revive-node") } else { ("cut-node", "heal-node") };
        let struck = At::now();
        let harmed = self.hands.run(harm, &[node]).await;
        // From now on nothing passes; until when something did, nobody can see.
        let cut = At::now();
        let blows = join_all(targets.iter().map(async |(fleet, leader)| {
            let leader = leader.as_ref()?;
            let fell = if fault == Fault::NodeDead { last_tick(fleet, leader).await } else { cut };
            if harmed.is_ok() {
                fleet.successor(struck, SUCCESSOR_LIMIT).await;
            }
            Some(Blow { fell: Some(fell), ..Blow::at(struck) })
        }));
        let blows = blows.await;
        if harmed.is_ok() && fault == Fault::NodeCutOff {
            tokio::time::sleep(CUT_OFF_BEYOND).await;
        }
        let healed = self.mend(heal, &[node]).await;
        harmed?;
        healed?;
        Ok(blows)
    }

    async fn strike_the_control_plane(
        &self,
        fault: Fault,
        length: Duration,
        targets: &[Target<'_>],
    ) -> Result<Blow, PeersError> {
        let (harm, heal) = match fault {
            Fault::ApiServerRestarted => ("restart-apiserver", None),
            Fault::ApiServerPaused => ("pause-apiserver", Some("resume-apiserver")),
            _ => ("pause-etcd", Some("resume-etcd")),
        };
        let struck = At::now();
        let harmed = self.hands.run(harm, &[]).await;
        let healed = match heal {
            Some(heal) => {
                if harmed.is_ok() {
                    tokio::time::sleep(length).await;
                }
                self.mend(heal, &[]).await
            }
            None => Ok(()),
        };
        let resumed = At::now();
        harmed?;
        healed?;
        // One who has stayed the leader is heard at once: only where nobody leads is there somebody to wait for.
        let struck_ones = targets.iter().filter(|(_, leader)| leader.is_some());
        join_all(struck_ones.map(|(fleet, _)| fleet.heard(resumed, SUCCESSOR_IF_ANY))).await;
        Ok(Blow { resumed: Some(resumed), ..Blow::at(struck) })
    }

    /// Undoes a fault: more than once if need be, for what stays broken spoils every trial after it.
    async fn mend(&self, helper: &str, arguments: &[&str]) -> Result<(), HandError> {
        let mut tries = 1;
        loop {
            let Err(error) = self.hands.run(helper, arguments).await else { return Ok(()) };
            if tries == MENDING_TRIES {
                return Err(error);
            }
            self.journal.note(At::now(), &error.to_string());
            tries += 1;
            tokio::time::sleep(MEND_AGAIN_AFTER).await;
        }
    }

    pub(super) fn note(&self, fleet: &Fleet, what: &str) {
        self.journal.note(At::now(), &format!("{}: {what}", fleet.contender.name));
    }
}

fn patience(fault: Fault) -> Duration {
    if fault == Fault::NodeDead || fault.strikes_the_control_plane() {
        PATIENCE_WITH_NODES
    } else if fault.touches_the_lease() {
        PATIENCE_WITH_A_LEASE
    } else {
        PATIENCE
    }
}

/// The last tick of a leader that has just been stopped.
pub(super) async fn last_tick(fleet: &Fleet, leader: &Leader) -> At {
    tokio::time::sleep(ON_THE_WAY).await;
    fleet.probe.with_log(|ticks| ticks.now(&leader.stint).unwrap_or(&leader.stint).last)
}

fn most_common<'a>(nodes: impl Iterator<Item = &'a str>) -> Option<String> {
    let mut counts = BTreeMap::<&str, usize>::new();
    for node in nodes {
        *counts.entry(node).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(_, count)| *count).map(|(node, _)| node.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_leaders_stay_where_they_are() {
        assert_eq!(most_common(["b", "a", "b"].into_iter()).as_deref(), Some("b"));
        assert_eq!(most_common([].into_iter()), None);
    }
}
