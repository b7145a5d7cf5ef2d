//! The pods of one contender on their Lease, seen from outside.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use k8s_openapi::api::{coordination::v1::Lease, core::v1::Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams},
};

use super::{NAMESPACE, PeersError, Stint, Ticks};
use crate::{
    clock::At,
    probe::Probe,
    wait::{self, Overdue},
};

/// How many pods each contender has: one leads, one waits, each on its own node.
const REPLICAS: usize = 2;
/// How long a pod has to have run: by then it has looked at the Lease, so that its wait has begun.
const STANDBY_AGE: Duration = Duration::from_secs(5);
/// How long a contender may take to be calm again after it was started anew.
const CALM_LIMIT: Duration = Duration::from_mins(2);
/// How often the state of the pods is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long one request of the harness may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);

/// Who contends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Contender {
    /// Its name, which its Lease has, too.
    pub name: &'static str,
    /// By this label its pods are known.
    pub selector: &'static str,
    /// Where its datagrams go.
    pub port: u16,
    /// Whether it is Tenure, which is held to its promises.
    pub is_ours: bool,
}

/// A contender's pods.
#[derive(Debug)]
pub struct Fleet {
    /// Who.
    pub contender: Contender,
    pub(super) probe: Probe<Ticks>,
    pub(super) pods: Api<Pod>,
    pub(super) leases: Api<Lease>,
}

/// The leader of the moment.
#[derive(Debug, Clone)]
pub(super) struct Leader {
    pub(super) pod: String,
    pub(super) node: String,
    pub(super) stint: Stint,
}

impl Contender {
    /// Those of the table. Their ports and names are those of `tests/peers/peers.yaml` and `tests/cluster/peers.sh`.
    pub const OF_THE_TABLE: [Self; 4] = [
        Self { name: "tenure", selector: "app.kubernetes.io/instance=tenure", port: 9911, is_ours: true },
        Self { name: "client-go", selector: "app=client-go", port: 9912, is_ours: false },
        Self { name: "kube-lease-manager", selector: "app=kube-lease-manager", port: 9913, is_ours: false },
        Self { name: "kube-leader-election", selector: "app=kube-leader-election", port: 9914, is_ours: false },
    ];
}

impl Fleet {
    /// Listens to a contender that is installed.
    pub fn attend(client: &Client, address: IpAddr, contender: Contender) -> Result<Self, PeersError> {
        let probe = Probe::receiving_at(SocketAddr::new(address, contender.port))
            .map_err(|source| PeersError::Io { what: "starting a probe", source })?;
        let pods = Api::namespaced(client.clone(), NAMESPACE);
        Ok(Self { contender, probe, pods, leases: Api::namespaced(client.clone(), NAMESPACE) })
    }

    /// Waits until it is calm. One that is not within `patience` is started anew: the second part says when.
    pub(super) async fn calm_or_anew(&self, patience: Duration) -> Result<(Leader, Option<At>), PeersError> {
        if let Ok(leader) = self.calm(patience).await {
            return Ok((leader, None));
        }
        let anew = At::now();
        self.delete_pods(|_| true).await?;
        let calm = self.calm(CALM_LIMIT).await.map_err(|source| self.overdue(source))?;
        Ok((calm, Some(anew)))
    }

    /// Waits until every pod runs and is fresh, exactly one works, and the Lease has a holder.
    pub(super) async fn calm(&self, limit: Duration) -> Result<Leader, Overdue> {
        let calm = async {
            loop {
                if let Some(leader) = self.calm_leader().await {
                    return leader;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        wait::within("every pod is ready, one leads, and its Lease says that somebody does", limit, calm).await
    }

    /// Waits for the first term that began after this instant.
    pub(super) async fn successor(&self, since: At, limit: Duration) -> Option<Stint> {
        let first = || self.probe.with_log(|ticks| ticks.first_since(since).cloned());
        wait::until("somebody else leads", limit, first).await.ok()
    }

    pub(super) async fn delete_pod(&self, name: &str) -> Result<(), PeersError> {
        let deleted = self.pods.delete(name, &DeleteParams::default()).await;
        match deleted {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            deleted => deleted.map(drop).map_err(|source| self.api("deleting a pod", source)),
        }
    }

    pub(super) async fn delete_lease(&self) -> Result<(), PeersError> {
        let deleted = self.leases.delete(self.contender.name, &DeleteParams::default()).await;
        deleted.map(drop).map_err(|source| self.api("deleting the Lease", source))
    }

    async fn delete_pods(&self, which: impl Fn(&Pod) -> bool) -> Result<(), PeersError> {
        let listed = self.pods.list(&ListParams::default().labels(self.contender.selector)).await;
        let listed = listed.map_err(|source| self.api("listing pods", source))?;
        for pod in listed.items.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none() && which(pod)) {
            self.delete_pod(&pod.name_any()).await?;
        }
        Ok(())
    }

    async fn calm_leader(&self) -> Option<Leader> {
        // The kubelet lets a container that has ended twice wait longer and longer; a new pod's does not.
        let restarts = |pod: &Pod| statuses(pod).any(|status| status.restart_count > 0);
        let listed = asked(self.pods.list(&ListParams::default().labels(self.contender.selector))).await?;
        if listed.items.iter().any(restarts) {
            self.delete_pods(restarts).await.ok()?;
            return None;
        }
        if listed.items.len() != REPLICAS || !listed.items.iter().all(is_settled) {
            return None;
        }
        let lease = asked(self.leases.get_opt(self.contender.name)).await??;
        lease.spec?.holder_identity.filter(|holder| !holder.is_empty())?;
        let stint = self.probe.with_log(|ticks| ticks.at_work(At::now()).cloned())?;
        let led_by = |pod: &Pod| stint.identity.split('_').next() == pod.metadata.name.as_deref();
        let pod = listed.items.iter().find(|pod| led_by(pod))?;
        let node = pod.spec.as_ref()?.node_name.clone()?;
        Some(Leader { pod: pod.name_any(), node, stint })
    }

    pub(super) fn overdue(&self, source: Overdue) -> PeersError {
        PeersError::Overdue { fleet: self.contender.name.to_owned(), source }
    }

    fn api(&self, what: &str, source: kube::Error) -> PeersError {
        PeersError::Api { what: format!("{}: {what}", self.contender.name), source: Box::new(source) }
    }
}

/// A request of the harness has a deadline; one that fails is made again by whoever needs it.
async fn asked<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Option<T> {
    tokio::time::timeout(REQUEST_LIMIT, request).await.ok()?.ok()
}

fn statuses(pod: &Pod) -> impl Iterator<Item = &k8s_openapi::api::core::v1::ContainerStatus> {
    pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten())
}

/// Ready, not about to go, and old enough to have looked at the Lease.
fn is_settled(pod: &Pod) -> bool {
    let started = |status: &k8s_openapi::api::core::v1::ContainerStatus| {
        let running = status.state.as_ref().and_then(|state| state.running.as_ref());
        let age = running
            .and_then(|running| running.started_at.as_ref())
            .map(|at| jiff::Timestamp::now().duration_since(at.0));
        status.ready && age.is_some_and(|age| age.unsigned_abs() >= STANDBY_AGE)
    };
    pod.metadata.deletion_timestamp.is_none() && statuses(pod).count() == 1 && statuses(pod).all(started)
}
