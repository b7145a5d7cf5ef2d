//! The pods of one contender on their Lease, seen from outside.

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use k8s_openapi::api::{apps::v1::Deployment, coordination::v1::Lease, core::v1::Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::json;

use super::{NAMESPACE, PeersError, Stint, Ticks};
use crate::{
    clock::At,
    front::{Front, Identity},
    probe::Probe,
    wait::{self, Overdue},
};

/// How many pods each contender has: one leads, one waits, each on its own node.
const REPLICAS: usize = 2;
/// How long a pod has to have run: by then it has looked at the Lease, so that its wait has begun.
const STANDBY_AGE: Duration = Duration::from_secs(5);
/// How long a contender may take to be calm, also after it was started anew or with a node that boots.
const CALM_LIMIT: Duration = Duration::from_mins(2);
/// The same for one that has sat out the last trial: it had that trial, too, and the others are not to wait for it for long.
const CALM_AGAIN_LIMIT: Duration = Duration::from_secs(30);
/// How often the state of the pods is looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long one request of the harness may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// How often a request that changes nothing when it is repeated is made before it counts as refused: the first one after a
/// fault of the control plane may fail with its connection.
pub(super) const REQUEST_TRIES: u32 = 3;
/// How long such a request is put off.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// The holder that is written into a Lease to edit it.
const SOMEBODY: &str = "somebody";

/// The front of each listens so many ports after its probe.
const FRONTS_AFTER: u16 = 20;

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
    pub(super) deployments: Api<Deployment>,
    /// What it comes by to the API server under some faults.
    pub(super) front: Front,
    /// Whether it was not calm when it was last to be.
    sat_out: AtomicBool,
}

/// The leader of the moment.
#[derive(Debug, Clone)]
pub(super) struct Leader {
    pub(super) pod: String,
    pub(super) node: String,
    pub(super) address: IpAddr,
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
    pub async fn attend(
        client: &Client,
        address: IpAddr,
        identity: &Identity,
        contender: Contender,
    ) -> Result<Self, PeersError> {
        let front = Front::start(SocketAddr::new(address, contender.port + FRONTS_AFTER), identity).await?;
        let probe = Probe::receiving_at(SocketAddr::new(address, contender.port))
            .map_err(|source| PeersError::Io { what: "starting a probe", source })?;
        let pods = Api::namespaced(client.clone(), NAMESPACE);
        let leases = Api::namespaced(client.clone(), NAMESPACE);
        let deployments = Api::namespaced(client.clone(), NAMESPACE);
        Ok(Self { contender, probe, pods, leases, deployments, front, sat_out: AtomicBool::new(false) })
    }

    /// Waits until it is calm. One that is not is started anew, and sits out what is to come.
    pub(super) async fn calm_or_anew(&self) -> Result<Option<Leader>, PeersError> {
        let limit = if self.sat_out.load(Ordering::Relaxed) { CALM_AGAIN_LIMIT } else { CALM_LIMIT };
        let calm = self.calm(limit).await.ok();
        self.sat_out.store(calm.is_none(), Ordering::Relaxed);
        if calm.is_none() {
            self.start_anew().await?;
        }
        Ok(calm)
    }

    /// Starts it anew unless it is calm within `patience`, and returns when that was. Nobody waits here until it is calm.
    pub(super) async fn anew_unless_calm(&self, patience: Duration) -> Result<Option<At>, PeersError> {
        if self.calm(patience).await.is_ok() {
            return Ok(None);
        }
        let anew = At::now();
        self.start_anew().await.map(|()| Some(anew))
    }

    async fn start_anew(&self) -> Result<(), PeersError> {
        self.delete_pods(|_| true).await
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

    /// Waits until somebody leads after this instant, whoever it is.
    pub(super) async fn heard(&self, since: At, limit: Duration) {
        let heard = || self.probe.with_log(|ticks| ticks.heard_since(since));
        wait::until("somebody leads", limit, heard).await.ok();
    }

    pub(super) async fn delete_pod(&self, name: &str) -> Result<(), PeersError> {
        let delete = async || match self.pods.delete(name, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            deleted => deleted.map(drop),
        };
        self.request("deleting a pod", REQUEST_TRIES, delete).await
    }

    pub(super) async fn delete_lease(&self) -> Result<(), PeersError> {
        let delete = async || self.leases.delete(self.contender.name, &DeleteParams::default()).await.map(drop);
        self.request("deleting the Lease", 1, delete).await
    }

    pub(super) async fn empty_lease(&self) -> Result<(), PeersError> {
        self.write_holder("").await
    }

    pub(super) async fn edit_lease(&self) -> Result<(), PeersError> {
        self.write_holder(SOMEBODY).await
    }

    async fn write_holder(&self, holder: &str) -> Result<(), PeersError> {
        let patch = Patch::Merge(json!({ "spec": { "holderIdentity": holder } }));
        let write = async || self.leases.patch(self.contender.name, &PatchParams::default(), &patch).await.map(drop);
        self.request("editing the Lease", 1, write).await
    }

    async fn delete_pods(&self, which: impl Fn(&Pod) -> bool) -> Result<(), PeersError> {
        let parameters = ListParams::default().labels(self.contender.selector);
        let listed = self.request("listing pods", REQUEST_TRIES, async || self.pods.list(&parameters).await).await?;
        for pod in listed.items.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none() && which(pod)) {
            self.delete_pod(&pod.name_any()).await?;
        }
        Ok(())
    }

    /// Makes a request until it succeeds, so often at most.
    pub(super) async fn request<T>(
        &self,
        what: &str,
        tries: u32,
        request: impl AsyncFn() -> Result<T, kube::Error>,
    ) -> Result<T, PeersError> {
        let mut tried = 1;
        loop {
            let failed = match wait::within(what, REQUEST_LIMIT, request()).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(source)) => self.api(what, source),
                Err(overdue) => self.overdue(overdue),
            };
            if tried >= tries {
                return Err(failed);
            }
            tried += 1;
            tokio::time::sleep(RETRY_AFTER).await;
        }
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
        lease.spec?.holder_identity.filter(|holder| !holder.is_empty() && holder != SOMEBODY)?;
        let stint = self.probe.with_log(|ticks| ticks.at_work(At::now()).cloned())?;
        leader_among(&listed.items, stint)
    }

    /// Waits until exactly one works, whatever the state of the others.
    pub(super) async fn leading(&self, limit: Duration) -> Option<Leader> {
        let leading = async {
            loop {
                if let Some(stint) = self.probe.with_log(|ticks| ticks.at_work(At::now()).cloned())
                    && let Some(listed) =
                        asked(self.pods.list(&ListParams::default().labels(self.contender.selector))).await
                    && let Some(leader) = leader_among(&listed.items, stint)
                {
                    return leader;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        wait::within("somebody leads", limit, leading).await.ok()
    }

    pub(super) fn overdue(&self, source: Overdue) -> PeersError {
        PeersError::Overdue { fleet: self.contender.name.to_owned(), source }
    }

    fn api(&self, what: &str, source: kube::Error) -> PeersError {
        PeersError::Api { what: format!("{}: {what}", self.contender.name), source: Box::new(source) }
    }
}

fn leader_among(pods: &[Pod], stint: Stint) -> Option<Leader> {
    let led_by = |pod: &&Pod| stint.identity.split('_').next() == pod.metadata.name.as_deref();
    let pod = pods.iter().find(led_by)?;
    let node = pod.spec.as_ref()?.node_name.clone()?;
    let address = pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?;
    Some(Leader { pod: pod.name_any(), node, address, stint })
}

/// A request of the harness has a deadline; one that fails is made again by whoever needs it.
pub(super) async fn asked<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Option<T> {
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
