//! The Deployment of an installation: what it is made of, how far its rollout has come, and changes to it.

use std::net::SocketAddr;

use k8s_openapi::{api::apps::v1::Deployment, jiff::Timestamp};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{AwaitWithin, CALM_LIMIT, LOOK_EVERY, PodsError, SELECTOR, Session, Settings, api};
use crate::{front, wait};

impl Session {
    fn deployments(&self) -> Api<Deployment> {
        Api::namespaced(self.client.clone(), &self.settings.namespace)
    }

    /// The installation's Deployment.
    pub(super) async fn deployment(&self) -> Result<Deployment, PodsError> {
        let listed = self.deployments().list(&ListParams::default().labels(SELECTOR)).await;
        let mut found = listed.map_err(|source| api("asking for the Deployment", source))?.items;
        match (found.pop(), found.is_empty()) {
            (Some(deployment), true) => Ok(deployment),
            _ => Err(PodsError::Installation(format!(
                "expected one Deployment with {SELECTOR} in {}",
                self.settings.namespace
            ))),
        }
    }

    /// Whether all pods are of the newest template. Nothing if the API server does not say.
    pub(super) async fn is_rolled_out(&self) -> Option<bool> {
        let listed = self.deployments().list(&ListParams::default().labels(SELECTOR)).await_within().await?;
        Some(listed.items.iter().all(is_rolled_out))
    }

    /// What `kubectl rollout restart` does.
    pub(super) async fn restart_rollout(&self) -> Result<(), PodsError> {
        self.note("rollout restart");
        let now = Timestamp::now().to_string();
        let annotations = json!({ "kubectl.kubernetes.io/restartedAt": now });
        let spec = json!({ "template": { "metadata": { "annotations": annotations } } });
        self.change_deployment("restarting the rollout", &spec).await
    }

    /// Sets the number of replicas.
    pub(super) async fn scale(&self, replicas: usize) -> Result<(), PodsError> {
        self.note(&format!("scale to {replicas}"));
        self.change_deployment("scaling the Deployment", &json!({ "replicas": replicas })).await
    }

    async fn change_deployment(&self, what: &'static str, spec: &Value) -> Result<(), PodsError> {
        let name = self.deployment().await?.metadata.name.unwrap_or_default();
        let patch = Patch::Merge(json!({ "spec": spec }));
        let patched = self.deployments().patch(&name, &PatchParams::default(), &patch).await;
        patched.map(drop).map_err(|source| api(what, source))
    }
}

/// Leads the replicas by the front if the family needs that, and else by the way that the cluster has for all, and waits until
/// they are there again.
pub(super) async fn choose_the_way(client: &Client, settings: &Settings) -> Result<(), PodsError> {
    let needed = settings.front.as_ref().filter(|_| settings.family.needs_a_front());
    go_by(client, &settings.namespace, needed.map(|front| front.address())).await?;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), &settings.namespace);
    let there = async {
        let replicas = ListParams::default().labels(SELECTOR);
        while !deployments.list(&replicas).await_within().await.is_some_and(|all| all.items.iter().all(is_rolled_out)) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let there = wait::within("every replica is of the newest template", CALM_LIMIT, there).await;
    there.map_err(|source| PodsError::Overdue { trial: 0, source })
}

/// Leads the replicas by a front, or without one. The harness is no longer there when it has ended, and they are not to look
/// for it then.
pub async fn go_by(client: &Client, namespace: &str, front: Option<SocketAddr>) -> Result<(), PodsError> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let listed = deployments.list(&ListParams::default().labels(SELECTOR)).await;
    for deployment in listed.map_err(|source| api("asking for the Deployment", source))?.items {
        let pod = deployment.spec.and_then(|spec| spec.template.spec);
        let container = pod.as_ref().and_then(|pod| pod.containers.first()).map(|container| container.name.clone());
        let is_led = pod.as_ref().is_some_and(front::is_led_by_a_front);
        let (Some(name), Some(container)) = (deployment.metadata.name, container) else { continue };
        if is_led || front.is_some() {
            let patch = Patch::Strategic(front::way_patch(&container, front));
            let patched = deployments.patch(&name, &PatchParams::default(), &patch).await;
            patched.map_err(|source| api("leading the replicas to the API server", source))?;
        }
    }
    Ok(())
}

pub(crate) fn is_rolled_out(deployment: &Deployment) -> bool {
    let (Some(spec), Some(status)) = (&deployment.spec, &deployment.status) else { return false };
    let all = spec.replicas;
    status.observed_generation >= deployment.metadata.generation
        && [status.updated_replicas, status.available_replicas, status.replicas] == [all; 3]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(observed: i64, status: [i32; 3]) -> Deployment {
        let [updated, available, replicas] = status;
        let value = json!({
            "metadata": { "generation": 2 },
            "spec": { "replicas": 3, "selector": {}, "template": {} },
            "status": {
                "observedGeneration": observed, "updatedReplicas": updated,
                "availableReplicas": available, "replicas": replicas,
            },
        });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_rollout_is_over_when_all_pods_are_new_and_available_and_no_old_one_is_left() {
        assert!(is_rolled_out(&deployment(2, [3, 3, 3])));
        for (observed, status) in [(1, [3, 3, 3]), (2, [2, 3, 3]), (2, [3, 2, 3]), (2, [3, 3, 4])] {
            assert!(!is_rolled_out(&deployment(observed, status)), "{observed} {status:?}");
        }
    }
}
