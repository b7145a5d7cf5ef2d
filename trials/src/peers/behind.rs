//! Faults in which the contenders come by a front before the API server, each by one of its own: what strikes one of them
//! leaves the others, the control plane and the harness alone.

use std::time::Duration;

use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

use super::{
    Fault, Fleet, NAMESPACE, PeersError,
    fault::{LEASE, Promise},
    fleet::{LOOK_EVERY, Leader, REQUEST_TRIES, asked},
    seen::Blow,
    strike::{CUT_OFF_BEYOND, Striker, last_tick},
};
use crate::{clock::At, front, pods::is_rolled_out, wait};

/// How long the replacement of a contender's pods may take when its way to the API server is changed.
const ROLL_OUT_LIMIT: Duration = Duration::from_mins(2);
/// How long a leader may take to renew: the longest pause between two renewals, and a late answer.
const RENEWAL_LIMIT: Duration = Duration::from_secs(30);
/// How long the news of a renewal may be on its way to a watch.
const NEWS_WITHIN: Duration = Duration::from_millis(100);
/// How much longer than a lease one server errs before the leader of the moment is ended.
const KEPT_BEYOND: Duration = Duration::from_secs(5);
/// How much longer than Tenure may take a successor is waited for.
const SUCCESSOR_BEYOND: Duration = Duration::from_secs(15);
/// What the duration of a Lease is lowered to, in seconds.
const SHORTER_LEASE_S: u32 = 5;
/// How often somebody else may have written to the Lease between a look at it and its replacement.
const PUT_BACK_TRIES: u32 = 10;

impl Fleet {
    /// Leads the contender by its front, or without it, and waits until all its pods have been replaced.
    pub(super) async fn go_by_the_front(&self, led: bool) -> Result<(), PeersError> {
        let deployments = &self.deployments;
        let name = self.contender.name;
        let container = if self.contender.is_ours { "tenure" } else { "contender" };
        let patch = Patch::Strategic(front::way_patch(container, led.then(|| self.front.address())));
        let patched = async || deployments.patch(name, &PatchParams::default(), &patch).await.map(drop);
        self.request("leading it to the API server", REQUEST_TRIES, patched).await?;
        let replaced = async {
            while !asked(deployments.get(name)).await.as_ref().is_some_and(is_rolled_out) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let replaced = wait::within("all its pods are replaced", ROLL_OUT_LIMIT, replaced).await;
        replaced.map_err(|source| self.overdue(source))
    }

    async fn next_renewal(&self, leader: &Leader) -> Result<At, PeersError> {
        let renewed = self.front.next_renewal(leader.address, RENEWAL_LIMIT).await;
        renewed.map_err(|source| self.overdue(source))
    }

    /// What `kubectl replace` does with a manifest that was saved earlier.
    async fn put_back(&self, saved: &k8s_openapi::api::coordination::v1::Lease) -> Result<(), PeersError> {
        let name = self.contender.name;
        let put = async || {
            let mut lease = saved.clone();
            lease.metadata.managed_fields = None;
            let now = self.leases.get(name).await?.metadata;
            (lease.metadata.resource_version, lease.metadata.uid) = (now.resource_version, now.uid);
            self.leases.replace(name, &PostParams::default(), &lease).await.map(drop)
        };
        self.request("putting the Lease back", PUT_BACK_TRIES, put).await
    }

    async fn shorten_and_delete(&self) -> Result<(), PeersError> {
        let patch = Patch::Merge(json!({ "spec": { "leaseDurationSeconds": SHORTER_LEASE_S } }));
        let name = self.contender.name;
        let shorten = async || self.leases.patch(name, &PatchParams::default(), &patch).await.map(drop);
        self.request("shortening the Lease", REQUEST_TRIES, shorten).await?;
        self.delete_lease().await
    }
}

impl Striker {
    /// Strikes a contender by its front, and ends what the front does, also when something in between has failed.
    pub(super) async fn strike_behind_the_front(
        &self,
        fault: Fault,
        length: Duration,
        fleet: &Fleet,
        leader: &Leader,
    ) -> Result<Blow, PeersError> {
        let blow = self.strike_by_the_front(fault, length, fleet, leader).await;
        let healed = Some(At::now());
        fleet.front.heal();
        Ok(Blow { healed, ..blow? })
    }

    async fn strike_by_the_front(
        &self,
        fault: Fault,
        length: Duration,
        fleet: &Fleet,
        leader: &Leader,
    ) -> Result<Blow, PeersError> {
        let front = &fleet.front;
        let limit = match fault.promise(length) {
            Promise::Successor(limit) | Promise::Leader(limit) => limit,
            Promise::Nothing => LEASE,
        };
        match fault {
            Fault::ApiSlow => {
                front.answer_late(length);
                tokio::time::sleep(LEASE / 2 + length).await;
            }
            Fault::OneApiServerErrs => {
                front.err(front.server_of(leader.address).unwrap_or_default());
                tokio::time::sleep(LEASE + KEPT_BEYOND).await;
            }
            Fault::WatchHalfOpen => {
                fleet.next_renewal(leader).await?;
                tokio::time::sleep(NEWS_WITHIN).await;
                front.silence_open_watches();
                let process = self.process_of(leader).await?;
                fleet.next_renewal(leader).await?;
                return self.end(limit, fleet, leader.clone(), &process).await;
            }
            _ => {
                let lease = fleet
                    .request("saving the Lease", REQUEST_TRIES, async || fleet.leases.get(fleet.contender.name).await);
                let saved = lease.await?;
                fleet.next_renewal(leader).await?;
                let blow = Blow::at(At::now());
                front.cut([leader.address]);
                match fault {
                    Fault::OldManifestPutBack => fleet.put_back(&saved).await?,
                    _ => fleet.shorten_and_delete().await?,
                }
                fleet.successor(blow.struck, limit + SUCCESSOR_BEYOND).await;
                tokio::time::sleep(CUT_OFF_BEYOND).await;
                return Ok(blow);
            }
        }
        self.end_the_leader(limit, fleet, leader).await
    }

    /// Ends whoever leads by now. If nobody leads any more, nobody is ended.
    async fn end_the_leader(&self, limit: Duration, fleet: &Fleet, leader: &Leader) -> Result<Blow, PeersError> {
        let blow = Blow::at(At::now());
        let Some(victim) = fleet.leading(limit).await else {
            self.note(fleet, "nobody leads who could be ended");
            return Ok(blow);
        };
        self.note(fleet, &format!("to end: {victim:?}; it was {}", leader.pod));
        let process = self.process_of(&victim).await?;
        self.end(limit, fleet, victim, &process).await
    }

    /// The process of a leader, and its node.
    async fn process_of(&self, leader: &Leader) -> Result<(String, String), PeersError> {
        let found = self.hands.run("process-of", &[NAMESPACE, &leader.pod]).await?;
        let mut words = found.split_whitespace();
        let process = words.next().zip(words.nth(1)).map(|(node, process)| (node.to_owned(), process.to_owned()));
        Ok(process.unwrap_or_default())
    }

    /// Ends a leader for good and without a word: its process stops, and its pod is deleted once there is a successor, for the
    /// pod that takes its place has not waited for anything.
    async fn end(
        &self,
        limit: Duration,
        fleet: &Fleet,
        victim: Leader,
        process: &(String, String),
    ) -> Result<Blow, PeersError> {
        let mut blow = Blow::at(At::now());
        self.hands.run("on", &[&process.0, "kill", "-STOP", &process.1]).await?;
        blow.fell = Some(last_tick(fleet, &victim).await);
        fleet.successor(blow.struck, limit + SUCCESSOR_BEYOND).await;
        let now = DeleteParams::default().grace_period(0);
        let end = async || fleet.pods.delete(&victim.pod, &now).await.map(drop);
        fleet.request("deleting a pod at once", 1, end).await?;
        blow.victim = Some(victim.stint);
        Ok(blow)
    }
}
