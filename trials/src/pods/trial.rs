//! One trial: from a calm state, through a fault, back to a calm state.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use rand::Rng;
use serde_json::json;

use super::{Hands, Leader, PodsError, Session, api};
use crate::{
    clock::At,
    judge::{Family, Freeze, Trial},
    wait,
};

/// How long a successor may take. Beyond it something is broken, and the trials cannot go on.
const SUCCESSOR_LIMIT: Duration = Duration::from_secs(90);
/// What is promised: no leader for a lease duration and this much more, after a leader that is gone.
const LEASE_AND: Duration = Duration::from_secs(1);
/// What a holder of another make gets besides, as the chart installs it.
const FOREIGN_GRACE: Duration = Duration::from_secs(5);
/// A leader that was cut off and replaced stays cut off for this long: it has to have left by itself.
const CUT_OFF_BEYOND: Duration = Duration::from_secs(5);
/// The lengths of a freeze of a container, in turn. The kubelet restarts one that is silent for too long.
const FREEZES_S: [u64; 5] = [5, 20, 5, 20, 60];
/// The lengths of a pause of the control plane, in turn.
const PAUSES_S: [u64; 3] = [5, 20, 60];

/// The longest that a successor may take, in the families in which that is promised.
pub(super) fn take_over_limit(family: Family, lease: Duration) -> Option<Duration> {
    match family {
        Family::ContainerKilled | Family::PodFrozen | Family::NodeCutOff | Family::NodeDead => Some(lease + LEASE_AND),
        Family::LeaseTouched => Some(lease + FOREIGN_GRACE + LEASE_AND),
        _ => None,
    }
}

impl Session {
    pub(super) async fn run_trial(&mut self, number: u32) -> Result<Trial, PodsError> {
        self.calm().await?;
        let pause = Duration::from_millis(self.random.random_range(500..2_000));
        tokio::time::sleep(pause).await;
        let leader = self.calm().await?;
        self.note(&format!("{} {leader:?}", self.settings.family));
        let armed = At::now();
        let (freeze, taken_over) = self.strike(number, &leader, armed).await?;
        if let Some(taken_over) = taken_over {
            self.note(&format!("successor first seen {:?} after the fault", taken_over.since(armed)));
        }
        self.calm().await?;
        Ok(Trial {
            number,
            victim: leader.pod,
            victim_address: leader.address,
            token: leader.token,
            window: None,
            armed,
            struck: armed,
            calm: At::now(),
            freeze,
            taken_over,
        })
    }

    /// Does what the family is about, waits for a successor where one has to come, and makes everything whole again.
    async fn strike(
        &mut self,
        number: u32,
        leader: &Leader,
        struck: At,
    ) -> Result<(Option<Freeze>, Option<At>), PodsError> {
        let namespace = self.settings.namespace.clone();
        let in_turn = |lengths: &[u64]| Duration::from_secs(lengths[(number as usize - 1) % lengths.len()]);
        match self.settings.family {
            Family::PodDeleted => {
                let deleted = self.pods().delete(&leader.pod, &DeleteParams::default()).await;
                deleted.map_err(|source| api("deleting the leader's pod", source))?;
                Ok((None, Some(self.successor(leader).await?)))
            }
            Family::ContainerKilled => {
                self.hand("kill-container", &[&namespace, &leader.pod]).await?;
                Ok((None, Some(self.successor(leader).await?)))
            }
            Family::PodFrozen => self.freeze(leader, in_turn(&FREEZES_S), struck).await,
            Family::NodeCutOff => {
                self.hand("cut-node", &[&leader.node]).await?;
                let taken_over = self.successor(leader).await?;
                tokio::time::sleep(CUT_OFF_BEYOND).await;
                self.hand("heal-node", &[&leader.node]).await?;
                Ok((None, Some(taken_over)))
            }
            Family::NodeDead => {
                self.hand("kill-node", &[&leader.node]).await?;
                let taken_over = self.successor(leader).await?;
                self.hand("revive-node", &[&leader.node]).await?;
                Ok((None, Some(taken_over)))
            }
            Family::ApiServerRestarted => {
                self.hand("restart-apiserver", &[]).await?;
                Ok((None, None))
            }
            Family::ApiServerPaused => {
                self.pause("pause-apiserver", "resume-apiserver", in_turn(&PAUSES_S)).await?;
                Ok((None, None))
            }
            Family::EtcdPaused => {
                self.pause("pause-etcd", "resume-etcd", in_turn(&PAUSES_S)).await?;
                Ok((None, None))
            }
            Family::LeaseTouched => {
                self.touch_the_lease(number).await?;
                Ok((None, Some(self.successor(leader).await?)))
            }
            Family::Kill | Family::Term | Family::Stop => Err(PodsError::NotApplicable(self.settings.family)),
        }
    }

    async fn freeze(
        &mut self,
        leader: &Leader,
        length: Duration,
        struck: At,
    ) -> Result<(Option<Freeze>, Option<At>), PodsError> {
        let namespace = self.settings.namespace.clone();
        let frozen = self.hand("freeze-pod", &[&namespace, &leader.pod]).await?;
        let stop = At::now();
        let taken_over = if length > self.settings.lease_duration { Some(self.successor(leader).await?) } else { None };
        let left = length.saturating_sub(At::now().since(struck));
        tokio::time::sleep(left).await;
        let cont = At::now();
        // The kubelet may be about to restart it: then there is nothing to thaw for a moment.
        let thawed = self.hand("thaw-pod", &[&namespace, &leader.pod]).await;
        if let Err(error) = &thawed {
            self.note(&format!("thaw-pod: {error}"));
        }
        let went_on = thawed.is_ok_and(|thawed| thawed == frozen);
        self.note(&format!("frozen for {length:?}, {}", if went_on { "went on" } else { "restarted by the kubelet" }));
        if went_on {
            self.thawed.0 += 1;
        } else {
            self.thawed.1 += 1;
        }
        Ok((Some(Freeze { stop, cont }), taken_over))
    }

    async fn pause(&self, pause: &str, resume: &str, length: Duration) -> Result<(), PodsError> {
        self.hand(pause, &[]).await?;
        tokio::time::sleep(length).await;
        self.hand(resume, &[]).await.map(drop)
    }

    async fn touch_the_lease(&self, number: u32) -> Result<(), PodsError> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), &self.settings.namespace);
        let name = &self.settings.lease;
        let edit = async |holder: &str| {
            let patch = Patch::Merge(json!({ "spec": { "holderIdentity": holder } }));
            leases.patch(name, &PatchParams::default(), &patch).await.map(drop)
        };
        let touched = match number % 3 {
            1 => leases.delete(name, &DeleteParams::default()).await.map(drop),
            2 => edit("").await,
            _ => edit("somebody").await,
        };
        touched.map_err(|source| api("touching the Lease", source))
    }

    /// Waits for a leader with a larger token, and returns when it was first seen.
    async fn successor(&self, leader: &Leader) -> Result<At, PodsError> {
        let first = || {
            let newer = |log: &crate::probe::ProbeLog| {
                log.terms().find(|term| term.token > leader.token).map(|term| term.first)
            };
            self.observers.probe.with_log(newer)
        };
        let found = wait::until("a successor leads", SUCCESSOR_LIMIT, first).await;
        found.map_err(|source| PodsError::Overdue { trial: self.trial, source })
    }

    async fn hand(&self, helper: &str, arguments: &[&str]) -> Result<String, PodsError> {
        self.note(&format!("{helper} {}", arguments.join(" ")));
        let hands: &Hands = self.settings.hands.as_ref().ok_or(PodsError::NotApplicable(self.settings.family))?;
        Ok(hands.run(helper, arguments).await?)
    }
}
