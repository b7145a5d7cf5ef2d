//! One trial: from a calm state, through a fault, back to a calm state.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use rand::Rng;
use serde_json::json;

use super::{Hands, Leader, PodsError, Session, api, no_hands};
use crate::{
    clock::At,
    judge::{Family, Freeze, Outage, Trial, WrongClock},
    ledger::{Hold, Whose},
    wait,
};

/// How long a successor may take. Beyond it something is broken, and the trials cannot go on.
pub(super) const SUCCESSOR_LIMIT: Duration = Duration::from_secs(90);
/// What is promised: no leader for a lease duration and this much more, after a leader that is gone.
pub(super) const LEASE_AND: Duration = Duration::from_secs(1);
/// What a holder of another make gets besides, as the chart installs it.
pub(super) const FOREIGN_GRACE: Duration = Duration::from_secs(5);
/// A leader that was cut off and replaced stays cut off for this long: it has to have left by itself.
pub(super) const CUT_OFF_BEYOND: Duration = Duration::from_secs(5);
/// The lengths of a freeze of a container, in turn. The kubelet restarts one that is silent for too long. A short run has one
/// trial, and that is to be longer than a lease.
const FREEZES_S: [u64; 5] = [20, 5, 20, 5, 60];
/// The lengths of a pause of the control plane, in turn.
const PAUSES_S: [u64; 3] = [20, 5, 60];
/// The jobs of at least this period are held where a run has to be long. The faster one goes on: it may not be doubled.
const SLOW: Duration = Duration::from_secs(1);
/// How long a run of each job may take to be there to be held: a few of the longest period.
const HOLD_LIMIT: Duration = Duration::from_secs(15);

/// What a strike came to.
#[derive(Debug)]
pub(super) struct Struck {
    /// When the leader was struck.
    pub at: At,
    /// How long it was frozen, if it was.
    pub freeze: Option<Freeze>,
    /// When the control plane was out of order, if it was.
    pub outage: Option<Outage>,
    /// When the successor was first seen, where one has to come.
    pub taken_over: Option<At>,
    /// The runs that the end of the drain was to cut off.
    pub cut: Vec<String>,
    /// The wrong time of day of a replica.
    pub wrong_clock: Option<WrongClock>,
    /// Who was struck, if it is another one than the one who led at the beginning.
    pub victim: Option<Leader>,
    /// Within which time somebody has to lead, where the trial itself knows.
    pub limit: Option<Duration>,
}

impl Struck {
    /// Nobody has to come.
    pub fn only(at: At) -> Self {
        Self {
            at,
            freeze: None,
            outage: None,
            taken_over: None,
            cut: Vec::new(),
            wrong_clock: None,
            victim: None,
            limit: None,
        }
    }

    /// The control plane was out of order from `at` until now.
    fn out_of_order(at: At) -> Self {
        Self { outage: Some(Outage { from: at, back: At::now() }), ..Self::only(at) }
    }

    /// A successor has come.
    pub fn taken_over(at: At, successor: At) -> Self {
        Self { taken_over: Some(successor), ..Self::only(at) }
    }
}

/// What is done to the Lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Touch {
    Delete,
    Empty,
    /// It names a holder of another make.
    Edit,
}

/// In turn.
const fn touch_of(number: u32) -> Touch {
    match number % 3 {
        1 => Touch::Delete,
        2 => Touch::Empty,
        _ => Touch::Edit,
    }
}

impl Session {
    pub(super) async fn run_trial(&mut self, number: u32) -> Result<Trial, PodsError> {
        self.calm().await?;
        let pause = Duration::from_millis(self.random.random_range(500..2_000));
        tokio::time::sleep(pause).await;
        let leader = self.calm().await?;
        self.note(&format!("{} {leader:?}", self.settings.family));
        let restarts = self.restarts_of(&leader.pod).await;
        let armed = At::now();
        let struck = self.strike(number, &leader).await?;
        if let Some(taken_over) = struck.taken_over {
            self.note(&format!("successor first seen {:?} after the fault", taken_over.since(struck.at)));
        }
        self.make_whole(&leader).await?;
        if struck.freeze.is_some() {
            self.note_thaw(restarts.is_some() && restarts == self.restarts_of(&leader.pod).await);
        }
        let limit = self.limit(number, &struck);
        let pace = self.pace_since(armed);
        let leader = struck.victim.unwrap_or(leader);
        Ok(Trial {
            number,
            victim: leader.pod,
            victim_address: leader.address,
            token: leader.token,
            window: None,
            armed,
            struck: struck.at,
            calm: At::now(),
            freeze: struck.freeze,
            outage: struck.outage,
            limit,
            taken_over: struck.taken_over,
            cut: struck.cut,
            wrong_clock: struck.wrong_clock,
            pace,
        })
    }

    /// Within which time somebody has to lead after this fault, where that is promised.
    fn limit(&self, number: u32, struck: &Struck) -> Option<Duration> {
        let lease_and = self.settings.lease_duration + LEASE_AND;
        let due = struck.taken_over.is_some() || struck.outage.is_some();
        match self.settings.family {
            // All pods are replaced one by one, and the leader's when it is its turn; a wrong clock leads when the others left.
            Family::RollingUpdate | Family::WallClock => None,
            Family::LeaseTouched if touch_of(number) == Touch::Edit => Some(lease_and + FOREIGN_GRACE),
            // The leader leaves in order by then, and whoever is still there is killed.
            Family::LongRuns => Some(self.grace),
            _ if struck.limit.is_some() => struck.limit,
            _ => due.then_some(lease_and),
        }
    }

    /// How often the kubelet has restarted this pod's container, if the API server says.
    async fn restarts_of(&self, pod: &str) -> Option<i32> {
        self.restarts().await?.get(pod).copied()
    }

    fn note_thaw(&mut self, went_on: bool) {
        self.note(if went_on { "it went on when it was thawed" } else { "the kubelet has restarted it" });
        if went_on {
            self.thawed.0 += 1;
        } else {
            self.thawed.1 += 1;
        }
    }

    /// Comes back to a calm state from which the next trial can begin.
    async fn make_whole(&self, leader: &Leader) -> Result<(), PodsError> {
        self.calm().await?;
        if self.settings.family == Family::ContainerKilled {
            // The kubelet waits longer before each restart of one container; a new pod's is restarted at once.
            self.delete_pod(&leader.pod).await?;
            self.calm().await?;
        }
        Ok(())
    }

    /// Does what the family is about, waits for a successor where one has to come, and undoes it, also when none has come.
    async fn strike(&self, number: u32, leader: &Leader) -> Result<Struck, PodsError> {
        let namespace = self.settings.namespace.clone();
        let in_turn = |lengths: &[u64]| Duration::from_secs(lengths[(number as usize - 1) % lengths.len()]);
        let at = At::now();
        match self.settings.family {
            Family::PodDeleted => self.delete_pod(&leader.pod).await?,
            Family::ContainerKilled => drop(self.hand("kill-container", &[&namespace, &leader.pod]).await?),
            Family::LeaseTouched => self.touch_the_lease(touch_of(number)).await?,
            Family::RollingUpdate => self.restart_rollout().await?,
            Family::PodFrozen => return self.freeze(leader, in_turn(&FREEZES_S), at).await,
            Family::LongRuns => return self.delete_under_long_runs(leader).await,
            Family::WallClock => return self.lead_by_a_wrong_clock(number, leader).await,
            Family::NodeCutOff => {
                self.hand("cut-node", &[&leader.node]).await?;
                // Cutting is the last thing that the helper does.
                let at = At::now();
                let successor = self.successor(leader).await;
                tokio::time::sleep(CUT_OFF_BEYOND).await;
                self.hand("heal-node", &[&leader.node]).await?;
                return Ok(Struck::taken_over(at, successor?));
            }
            Family::NodeDead => {
                self.hand("kill-node", &[&leader.node]).await?;
                let successor = self.successor(leader).await;
                self.hand("revive-node", &[&leader.node]).await?;
                return Ok(Struck::taken_over(at, successor?));
            }
            Family::ApiServerRestarted => {
                self.hand("restart-apiserver", &[]).await?;
                return Ok(Struck::out_of_order(at));
            }
            Family::ApiServerPaused => return self.pause("apiserver", in_turn(&PAUSES_S), at).await,
            Family::EtcdPaused => return self.pause("etcd", in_turn(&PAUSES_S), at).await,
            Family::ApiSlow
            | Family::OneApiServerErrs
            | Family::WatchHalfOpen
            | Family::OldManifestPutBack
            | Family::LeaseShortenedAndDeleted => return Box::pin(self.strike_behind_the_front(number, leader)).await,
            family @ (Family::Kill | Family::Term | Family::Stop) => {
                return Err(PodsError::NotApplicable { family, needs: "processes: make kills" });
            }
        }
        Ok(Struck::taken_over(at, self.successor(leader).await?))
    }

    /// Holds a run of each of the slow jobs open beyond the grace period, and deletes the leader's pod.
    async fn delete_under_long_runs(&self, leader: &Leader) -> Result<Struck, PodsError> {
        let ledger = &self.observers.ledger;
        let slow = self.observers.jobs.iter().filter(|job| job.period >= SLOW);
        let mut holds: Vec<Hold> = slow.map(|job| ledger.hold(Some(&job.name), Whose::Term(leader.token))).collect();
        let mut cut = Vec::new();
        for hold in &mut holds {
            let held = wait::within("a run to be held", HOLD_LIMIT, hold.reached()).await;
            let held = held.map_err(|source| PodsError::Overdue { trial: self.trial, source })?;
            cut.extend(held.map(|entry| entry.request.run_id));
        }
        self.note(&format!("held: {}", cut.join(", ")));
        let at = At::now();
        self.delete_pod(&leader.pod).await?;
        let successor = self.successor(leader).await?;
        // The leader has hung up long since; what is held now is the memory of it.
        drop(holds);
        Ok(Struck { cut, ..Struck::taken_over(at, successor) })
    }

    async fn freeze(&self, leader: &Leader, length: Duration, at: At) -> Result<Struck, PodsError> {
        let target = [&*self.settings.namespace, &*leader.pod];
        self.hand("freeze-pod", &target).await?;
        let stop = At::now();
        let is_long = length > self.settings.lease_duration;
        let successor = if is_long { Some(self.successor(leader).await) } else { None };
        tokio::time::sleep(length.saturating_sub(At::now().since(at))).await;
        let cont = At::now();
        // The kubelet may be about to restart it: then there is nothing to thaw for a moment.
        if let Err(error) = self.hand("thaw-pod", &target).await {
            self.note(&format!("thaw-pod: {error}"));
        }
        let freeze = Freeze { stop, cont, thawed: At::now() };
        Ok(Struck { freeze: Some(freeze), taken_over: successor.transpose()?, ..Struck::only(at) })
    }

    /// Freezes a part of the control plane, and lets it go on.
    async fn pause(&self, part: &str, length: Duration, at: At) -> Result<Struck, PodsError> {
        self.hand(&format!("pause-{part}"), &[]).await?;
        tokio::time::sleep(length).await;
        self.hand(&format!("resume-{part}"), &[]).await?;
        Ok(Struck::out_of_order(at))
    }

    async fn touch_the_lease(&self, touch: Touch) -> Result<(), PodsError> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), &self.settings.namespace);
        let name = &self.settings.lease;
        let edit = async |holder: &str| {
            let patch = Patch::Merge(json!({ "spec": { "holderIdentity": holder } }));
            leases.patch(name, &PatchParams::default(), &patch).await.map(drop)
        };
        let touched = match touch {
            Touch::Delete => leases.delete(name, &DeleteParams::default()).await.map(drop),
            Touch::Empty => edit("").await,
            Touch::Edit => edit("somebody").await,
        };
        touched.map_err(|source| api("touching the Lease", source))
    }

    /// Waits for a leader with a larger token, and returns when it was first seen.
    pub(super) async fn successor(&self, leader: &Leader) -> Result<At, PodsError> {
        let first = || {
            let newer = |log: &crate::probe::ProbeLog| {
                log.terms().find(|term| term.token > leader.token).map(|term| term.first)
            };
            self.observers.probe.with_log(newer)
        };
        let found = wait::until("a successor leads", SUCCESSOR_LIMIT, first).await;
        found.map_err(|source| PodsError::Overdue { trial: self.trial, source })
    }

    pub(super) async fn delete_pod(&self, pod: &str) -> Result<(), PodsError> {
        self.note(&format!("delete {pod}"));
        let deleted = self.pods().delete(pod, &DeleteParams::default()).await;
        deleted.map(drop).map_err(|source| api("deleting a pod", source))
    }

    pub(super) async fn hand(&self, helper: &str, arguments: &[&str]) -> Result<String, PodsError> {
        self.note(&format!("{helper} {}", arguments.join(" ")));
        let hands: &Hands = self.settings.hands.as_ref().ok_or(no_hands(self.settings.family))?;
        Ok(hands.run(helper, arguments).await?)
    }
}
