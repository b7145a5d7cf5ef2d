//! Trials in which the replicas come by a front to the API server, which strikes them and nobody else.

use std::{collections::BTreeMap, io, net::IpAddr, sync::Arc, time::Duration};

use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::json;

use super::{
    AwaitWithin, LOOK_EVERY, Leader, PodsError, SELECTOR, Session, api, is_ready,
    trial::{CUT_OFF_BEYOND, FOREIGN_GRACE, LEASE_AND, Struck},
};
use crate::{
    clock::At,
    front::Front,
    journal::write_lines,
    judge::{Family, Outage, PACE_WINDOW},
    wait,
};

/// An answer is late by the lease duration divided by this, in turn.
const LATE_BY_A: [u32; 2] = [4, 2];
/// What a look, an acquisition and the connection before it take longer where each answer is late.
const LATE_ANSWERS: u32 = 3;
/// So many tries may fail before one comes to a server that does not err.
const FAILED_TRIES: u32 = 2;
/// The pause after a failed try, as the chart installs it.
const RETRY_PERIOD: Duration = Duration::from_secs(2);
/// How much longer than a lease one server errs before the leader of the moment is ended: by then one that was kept there has
/// lost its term and was replaced.
const KEPT_BEYOND: Duration = Duration::from_secs(5);
/// How long a leader may take to renew: what is left of its pace of a third of a lease, and a late answer.
const RENEWAL_LIMIT: Duration = Duration::from_secs(30);
/// How long the news of a renewal may be on its way to a watch.
const NEWS_WITHIN: Duration = Duration::from_millis(100);
/// How much longer than it may take a successor is waited for.
const SUCCESSOR_BEYOND: Duration = Duration::from_secs(10);
/// How often somebody else may have written to the Lease between a look at it and its replacement.
const PUT_BACK_TRIES: u32 = 10;
/// The longer lease duration, in seconds: that of a replica which a rolling update has not yet come to.
const LONGER_LEASE_S: u64 = 30;
/// How long the others may take to be there again after it leads.
const STANDBYS_LIMIT: Duration = Duration::from_mins(1);
/// A replica that hears of nothing by its watch looks at the Lease at least this often.
const LOOKS_WITHIN: Duration = Duration::from_secs(15);

/// Which older state of the Lease is put back, in turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Older {
    /// That of the term before, whose leader was cut off, while the leader is cut off; then that of a leader's own.
    EarlierTerm,
    /// That of the same term, while the leader is well.
    ThisTerm,
    /// That of the same term, while the leader is cut off.
    ThisTermWhileCutOff,
}

impl Older {
    const IN_TURN: [Self; 3] = [Self::EarlierTerm, Self::ThisTerm, Self::ThisTermWhileCutOff];
}

impl Session {
    /// Does what the family is about, and ends what the front does, also when something in between has failed.
    pub(super) async fn strike_behind_the_front(&self, number: u32, leader: &Leader) -> Result<Struck, PodsError> {
        let front = self.front()?;
        let struck = match self.settings.family {
            Family::ApiSlow => self.end_under_late_answers(&front, number).await,
            Family::OneApiServerErrs => self.end_while_one_errs(&front, leader).await,
            Family::WatchHalfOpen => self.end_unheard(&front, leader).await,
            Family::OldManifestPutBack => self.put_older_back(&front, number, leader).await,
            _ => self.delete_under_a_longer_lease(&front, leader).await,
        };
        front.heal();
        self.remove_beside().await?;
        if self.settings.family == Family::OneApiServerErrs {
            // Watches that have failed for so long are tried again after a pause, which is no matter of the next trial.
            self.restart_rollout().await?;
        }
        struck
    }

    /// Every answer is late, and the leader ends.
    async fn end_under_late_answers(&self, front: &Front, number: u32) -> Result<Struck, PodsError> {
        let lease = self.settings.lease_duration;
        let late = lease / LATE_BY_A[(number as usize - 1) % LATE_BY_A.len()];
        self.note(&format!("every answer late by {late:?}"));
        front.answer_late(late);
        // By then every answer that is under way is late, and the leader has written under that.
        tokio::time::sleep(lease / 2 + late).await;
        self.end_the_leader(lease + LEASE_AND + late * LATE_ANSWERS).await
    }

    /// The server that the leader's renewals go to answers nothing but errors; later whoever leads then ends.
    async fn end_while_one_errs(&self, front: &Front, leader: &Leader) -> Result<Struck, PodsError> {
        let lease = self.settings.lease_duration;
        let server = front.server_of(leader.address).unwrap_or_default();
        self.note(&format!("server {server} of the front errs"));
        front.err(server);
        tokio::time::sleep(lease + KEPT_BEYOND).await;
        self.end_the_leader(lease + LEASE_AND + RETRY_PERIOD * FAILED_TRIES).await
    }

    /// The watches hear of one renewal and not of the next one, right after which the leader ends.
    async fn end_unheard(&self, front: &Front, leader: &Leader) -> Result<Struck, PodsError> {
        self.next_renewal(front, leader).await?;
        tokio::time::sleep(NEWS_WITHIN).await;
        self.note("the watches that are open go silent");
        front.silence_open_watches();
        let process = self.process_of(leader).await?;
        self.next_renewal(front, leader).await?;
        self.end(leader.clone(), &process, self.settings.lease_duration + LEASE_AND).await
    }

    async fn put_older_back(&self, front: &Front, number: u32, leader: &Leader) -> Result<Struck, PodsError> {
        let saved = self.lease().await?;
        let limit = self.settings.lease_duration * 2 + FOREIGN_GRACE + LEASE_AND;
        let older = Older::IN_TURN[(number as usize - 1) % Older::IN_TURN.len()];
        self.note(&format!("{older:?}"));
        match older {
            Older::EarlierTerm => return self.put_earlier_term_back(front, leader, &saved, limit).await,
            Older::ThisTerm | Older::ThisTermWhileCutOff => self.next_renewal(front, leader).await?,
        };
        let is_cut_off = older == Older::ThisTermWhileCutOff;
        if is_cut_off {
            front.cut([leader.address]);
        }
        let at = At::now();
        self.put_back(&saved).await?;
        if !is_cut_off {
            // What a leader makes of it ends with its term, and that is shorter than its lease.
            tokio::time::sleep(self.settings.lease_duration).await;
            // Whoever leads then may be the same one: how long nobody led is judged in any case.
            return Ok(Struck { limit: Some(limit), outage: Some(Outage { from: at, back: at }), ..Struck::only(at) });
        }
        let taken_over = self.successor_of_who_is_cut_off(leader.token, limit).await;
        Ok(Struck { taken_over, limit: Some(limit), ..Struck::only(at) })
    }

    /// The first leader is cut off until a second one leads. Then the others are cut off, and what the Lease said of the first
    /// one's term is put back: the first one, which is let through again, is not to believe that it may lead, or release what
    /// the second one holds. Once it leads again, what the Lease said of its earlier term is put back once more.
    async fn put_earlier_term_back(
        &self,
        front: &Front,
        first: &Leader,
        saved: &Lease,
        limit: Duration,
    ) -> Result<Struck, PodsError> {
        front.cut([first.address]);
        self.successor(first).await?;
        let second = self.leading(limit).await?;
        let all: Vec<IpAddr> = self.addresses().await?.into_values().collect();
        front.cut(all.iter().copied());
        let at = At::now();
        self.put_back(saved).await?;
        front.cut(all.into_iter().filter(|address| *address != first.address));
        let taken_over = self.successor_of_who_is_cut_off(second.token, limit).await;
        if taken_over.is_some() {
            self.note("once more, to the one whose earlier term it was");
            front.heal();
            self.put_back(saved).await?;
            tokio::time::sleep(self.settings.lease_duration).await;
        }
        Ok(Struck { taken_over, limit: Some(limit), victim: Some(second), ..Struck::only(at) })
    }

    /// A replica that the rolling update to a shorter lease has not yet come to leads. The others hear of one renewal and not
    /// of the next one, right after which it is cut off from the API server, and the Lease is deleted.
    async fn delete_under_a_longer_lease(&self, front: &Front, leader: &Leader) -> Result<Struck, PodsError> {
        let longer = Duration::from_secs(LONGER_LEASE_S);
        let pod = self.start_beside(|container| lengthen(container, longer)).await?;
        let (_, token) = self.lead_beside(&pod, leader.token).await?;
        let there = async {
            while self.ready().await != Some(self.settings.replicas + 1) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        self.in_time("the replicas with the shorter lease are ready", STANDBYS_LIMIT, there).await?;
        let victim = self.leading(longer).await?;
        if victim.token != token {
            let error = format!("{pod} led with token {token}, and then {} with {}", victim.pod, victim.token);
            return Err(PodsError::Installation(error));
        }
        self.next_renewal(front, &victim).await?;
        tokio::time::sleep(NEWS_WITHIN).await;
        self.note("all watches go silent");
        front.silence_all_watches();
        self.next_renewal(front, &victim).await?;
        front.cut([victim.address]);
        let at = At::now();
        self.note("cut off, and the Lease deleted");
        let deleted = self.leases().delete(&self.settings.lease, &DeleteParams::default()).await;
        deleted.map_err(|source| api("deleting the Lease", source))?;
        let limit = longer + LOOKS_WITHIN + LEASE_AND;
        let taken_over = self.successor_of_who_is_cut_off(token, limit).await;
        Ok(Struck { taken_over, limit: Some(limit), victim: Some(victim), ..Struck::only(at) })
    }

    /// Ends whoever leads by now. If nobody does, nobody is ended, and the judge is told that nobody came.
    async fn end_the_leader(&self, limit: Duration) -> Result<Struck, PodsError> {
        let at = At::now();
        let Ok(victim) = self.leading(limit).await else {
            self.note("nobody leads who could be ended");
            return Ok(Struck { limit: Some(limit), ..Struck::only(at) });
        };
        let process = self.process_of(&victim).await?;
        self.end(victim, &process, limit).await
    }

    /// The process of a replica, and its node.
    async fn process_of(&self, leader: &Leader) -> Result<(String, String), PodsError> {
        let found = self.hand("process-of", &[&self.settings.namespace, &leader.pod]).await?;
        let mut words = found.split_whitespace();
        let process = words.next().zip(words.nth(1)).map(|(node, process)| (node.to_owned(), process.to_owned()));
        process.ok_or_else(|| PodsError::Installation(format!("process-of printed {found:?}")))
    }

    /// Ends a leader for good and without a word: its process stops, and never goes on. Waits for a successor, but no longer
    /// than something is to be learned from that; then its pod is deleted. Before that a new pod would take its place, which
    /// has not waited for anything; and to restart its container, the kubelet would need longer than that.
    async fn end(&self, victim: Leader, process: &(String, String), limit: Duration) -> Result<Struck, PodsError> {
        self.note(&format!("to end: {victim:?}"));
        let at = At::now();
        self.hand("on", &[&process.0, "kill", "-STOP", &process.1]).await?;
        let taken_over = self.successor_within(victim.token, limit).await;
        let now = DeleteParams::default().grace_period(0);
        let deleted = self.pods().delete(&victim.pod, &now).await;
        deleted.map_err(|source| api("deleting a pod at once", source))?;
        Ok(Struck { taken_over, limit: Some(limit), victim: Some(victim), ..Struck::only(at) })
    }

    /// The leader of the moment, whatever the state of the others. That there is none for so long is a finding.
    async fn leading(&self, limit: Duration) -> Result<Leader, PodsError> {
        let leading = async {
            loop {
                if let Some(leader) = self.leader_of_the_moment().await {
                    return leader;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        self.in_time("somebody leads", limit, leading).await
    }

    async fn leader_of_the_moment(&self) -> Option<Leader> {
        let (name, token) = self.observers.leader()?;
        let pod = self.pods().get(&name).await_within().await?;
        let address = pod.status?.pod_ip?.parse().ok()?;
        let node = pod.spec?.node_name?;
        Some(Leader { pod: name, node, address, token, grace: self.grace })
    }

    /// When somebody was first seen to lead by a larger token; nothing if that takes too long.
    async fn successor_within(&self, token: u64, limit: Duration) -> Option<At> {
        let newer = || {
            let first =
                |log: &crate::probe::ProbeLog| log.terms().find(|term| term.token > token).map(|term| term.first);
            self.observers.probe.with_log(first)
        };
        wait::until("a successor leads", limit + SUCCESSOR_BEYOND, newer).await.ok()
    }

    /// The same; the old leader stays cut off a little longer, for it has to leave by itself.
    async fn successor_of_who_is_cut_off(&self, token: u64, limit: Duration) -> Option<At> {
        let taken_over = self.successor_within(token, limit).await;
        tokio::time::sleep(CUT_OFF_BEYOND).await;
        taken_over
    }

    async fn next_renewal(&self, front: &Front, leader: &Leader) -> Result<At, PodsError> {
        let renewed = front.next_renewal(leader.address, RENEWAL_LIMIT).await;
        renewed.map_err(|source| PodsError::Overdue { trial: self.trial, source })
    }

    fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), &self.settings.namespace)
    }

    async fn lease(&self) -> Result<Lease, PodsError> {
        self.leases().get(&self.settings.lease).await.map_err(|source| api("saving the Lease", source))
    }

    /// What `kubectl replace` does with a manifest that was saved earlier: whatever it says now is replaced.
    async fn put_back(&self, saved: &Lease) -> Result<(), PodsError> {
        self.note(&format!("put back: {:?}", saved.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref())));
        let mut tries = 1;
        loop {
            let mut lease = saved.clone();
            lease.metadata.managed_fields = None;
            let now = self.lease().await?.metadata;
            (lease.metadata.resource_version, lease.metadata.uid) = (now.resource_version, now.uid);
            match self.leases().replace(&self.settings.lease, &PostParams::default(), &lease).await {
                Err(kube::Error::Api(status)) if status.code == 409 && tries < PUT_BACK_TRIES => tries += 1,
                replaced => return replaced.map(drop).map_err(|source| api("putting the Lease back", source)),
            }
        }
    }

    async fn addresses(&self) -> Result<BTreeMap<String, IpAddr>, PodsError> {
        let listed = self.pods().list(&ListParams::default().labels(SELECTOR)).await;
        let pods = listed.map_err(|source| api("asking for the pods", source))?.items.into_iter();
        Ok(pods.filter_map(|pod| Some((pod.metadata.name?, pod.status?.pod_ip?.parse().ok()?))).collect())
    }

    async fn ready(&self) -> Option<usize> {
        let listed = self.pods().list(&ListParams::default().labels(SELECTOR)).await_within().await?;
        Some(listed.items.iter().filter(|pod| is_ready(pod)).count())
    }

    fn front(&self) -> Result<Arc<Front>, PodsError> {
        let needs = "--front-certificate";
        self.settings.front.clone().ok_or(PodsError::NotApplicable { family: self.settings.family, needs })
    }

    /// The most requests for the Lease that one replica made within a window, if they come by the front.
    pub(super) fn pace_since(&self, since: At) -> Option<usize> {
        let front = self.settings.front.as_ref().filter(|_| self.settings.family.needs_a_front())?;
        Some(front.with_log(|log| log.most_by_one(since, PACE_WINDOW)))
    }

    /// Writes down who asked for the Lease, where that is known.
    pub(super) fn write_requests(&self) -> io::Result<()> {
        let Some(front) = self.settings.front.as_ref().filter(|_| self.settings.family.needs_a_front()) else {
            return Ok(());
        };
        let requests = front.with_log(|log| log.asked().to_vec());
        write_lines(&self.settings.directory.join("lease-requests.jsonl"), requests)
    }
}

/// Gives a container of Tenure another lease duration.
fn lengthen(container: &mut serde_json::Value, lease: Duration) {
    const FLAG: &str = "--leader-elect-lease-duration=";
    let Some(arguments) = container["args"].as_array_mut() else { return };
    arguments.retain(|argument| !argument.as_str().is_some_and(|argument| argument.starts_with(FLAG)));
    arguments.push(json!(format!("{FLAG}{}s", lease.as_secs())));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_gets_the_longer_lease_in_place_of_the_one_it_has() {
        let mut container = json!({ "args": ["run", "--leader-elect-lease-duration=15s", "--log-level=info"] });
        lengthen(&mut container, Duration::from_secs(LONGER_LEASE_S));
        assert_eq!(container["args"], json!(["run", "--log-level=info", "--leader-elect-lease-duration=30s"]));
    }
}
