//! A replica beside those of the Deployment: a pod of its own, made of the same template but for what it is about.
//!
//! For it to lead, the others leave; they come back at once.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::{Value, json};

use super::{AwaitWithin, LOOK_EVERY, PodsError, SELECTOR, Session, api, is_ready};
use crate::{clock::At, wait};

/// What marks such pods beside the label that all replicas have.
const BESIDE: &str = "tenure.test/replica=beside";
/// How long the pod may take to be ready.
const READY_LIMIT: Duration = Duration::from_mins(1);
/// How long it may take to lead once the others leave: their drain, and a lease if one of them did not release it.
const LEADS_LIMIT: Duration = Duration::from_secs(50);
/// How long the pod may take to be gone: its grace period.
const GONE_LIMIT: Duration = Duration::from_mins(1);

impl Session {
    /// Starts one whose container was changed so, and waits until it is ready.
    pub(super) async fn start_beside(&self, change: impl FnOnce(&mut Value)) -> Result<String, PodsError> {
        let deployment = self.deployment().await?;
        let spec = deployment.spec.and_then(|spec| spec.template.spec);
        let spec = spec.ok_or_else(|| PodsError::Installation("the Deployment has no pod template".to_owned()))?;
        let mut pod = serde_json::to_value(spec).map_err(|error| PodsError::Installation(error.to_string()))?;
        change(&mut pod["containers"][0]);
        let labels: serde_json::Map<_, _> = [SELECTOR, BESIDE]
            .iter()
            .filter_map(|label| label.split_once('='))
            .map(|(k, v)| (k.into(), v.into()))
            .collect();
        let metadata = json!({ "generateName": "beside-", "labels": labels });
        let pod = serde_json::from_value(json!({ "metadata": metadata, "spec": pod }));
        let pod: Pod = pod.map_err(|error| PodsError::Installation(error.to_string()))?;
        let made = self.pods().create(&PostParams::default(), &pod).await;
        let name = made.map_err(|source| api("making the replica beside the others", source))?.metadata.name;
        let name = name.unwrap_or_default();
        self.note(&format!("made {name}"));
        let ready = async {
            while !self.pods().get(&name).await_within().await.as_ref().is_some_and(is_ready) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        self.in_time("the replica beside the others is ready", READY_LIMIT, ready).await?;
        Ok(name)
    }

    /// Lets the others leave until it leads after that token, and returns when it was first seen to, and by which token.
    pub(super) async fn lead_beside(&self, pod: &str, token: u64) -> Result<(At, u64), PodsError> {
        self.scale(0).await?;
        let first_term = self.first_term_of(pod, token).await;
        self.scale(self.settings.replicas).await?;
        first_term
    }

    /// Removes such replicas, those of a run that was cut off too, and waits until they are gone. What they left of the
    /// Deployment is made whole.
    pub(super) async fn remove_beside(&self) -> Result<(), PodsError> {
        let beside = ListParams::default().labels(BESIDE);
        let left =
            self.pods().list(&beside).await.map_err(|source| api("asking for replicas beside the others", source))?;
        let replicas = self.deployment().await?.spec.and_then(|spec| spec.replicas);
        if left.items.is_empty() && replicas.is_some_and(|replicas| replicas > 0) {
            return Ok(());
        }
        for pod in left.items {
            let name = pod.metadata.name.unwrap_or_default();
            let deleted = self.pods().delete(&name, &DeleteParams::default()).await;
            deleted.map_err(|source| api("removing a replica beside the others", source))?;
        }
        let gone = async {
            while self.pods().list(&beside).await_within().await.is_none_or(|left| !left.items.is_empty()) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        self.in_time("the replica beside the others is gone", GONE_LIMIT, gone).await?;
        self.scale(self.settings.replicas).await
    }

    /// When this pod was first seen to lead after that token, and by which.
    async fn first_term_of(&self, pod: &str, token: u64) -> Result<(At, u64), PodsError> {
        let first = || {
            self.observers.probe.with_log(|log| {
                let mut terms = log.terms().filter(|term| term.token > token && term.identity == pod);
                terms.next().map(|term| (term.first, term.token))
            })
        };
        let found = wait::until("the replica beside the others leads", LEADS_LIMIT, first).await;
        found.map_err(|source| PodsError::Overdue { trial: self.trial, source })
    }

    pub(super) async fn in_time<T>(
        &self,
        what: &str,
        limit: Duration,
        future: impl Future<Output = T>,
    ) -> Result<T, PodsError> {
        wait::within(what, limit, future).await.map_err(|source| PodsError::Overdue { trial: self.trial, source })
    }
}
