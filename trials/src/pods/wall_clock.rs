//! A replica with a wrong time of day: it leads, finds out, hands over, and the others go on.
//!
//! Pods have the clock of their node, so the replica is a pod of its own beside the Deployment's: made of the same template,
//! from an image whose C library tells another time of day (`tests/cluster/images/skew.c`). The boot clock stays right, as
//! it does on a machine whose time of day was set wrong. For it to lead, the others leave; they come back at once.

use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::json;

use super::{AwaitWithin, LOOK_EVERY, Leader, PodsError, SELECTOR, Session, api, is_ready, trial::Struck};
use crate::{
    clock::At,
    judge::{Family, WrongClock},
    wait,
};

/// How far the time of day is off, in turn.
const OFF: [SignedDuration; 2] = [SignedDuration::from_hours(1), SignedDuration::from_hours(-1)];
/// What marks the pods of a wrong clock beside the label that all replicas have.
const SKEWED: &str = "tenure.test/clock=skewed";
/// How long the pod may take to be ready.
const READY_LIMIT: Duration = Duration::from_mins(1);
/// How long it may take to lead once the others leave: their drain, and a lease if one of them did not release it.
const LEADS_LIMIT: Duration = Duration::from_secs(50);
/// How long it may take to tell that its clock is wrong: it has to be wrong for 10 s.
const TELL_LIMIT: Duration = Duration::from_secs(30);
/// How long the pod may take to be gone: its grace period.
const GONE_LIMIT: Duration = Duration::from_mins(1);

impl Session {
    pub(super) async fn lead_by_a_wrong_clock(&self, number: u32, leader: &Leader) -> Result<Struck, PodsError> {
        let off = OFF[(number as usize - 1) % OFF.len()];
        let pod = self.start_skewed(off).await?;
        let at = At::now();
        self.scale(0).await?;
        let first_term = self.first_term_of(&pod, leader.token).await;
        self.scale(self.settings.replicas).await?;
        let (taken_over, token) = first_term?;
        self.note(&format!("{pod} led, its time of day off by {off:#}"));
        let told = self.told_skew(&pod).await;
        self.note(&format!("its metric says {told:?}"));
        self.right_successor(&pod, leader.token).await?;
        self.remove_skewed().await?;
        Ok(Struck { wrong_clock: Some(WrongClock { token, off, told }), ..Struck::taken_over(at, taken_over) })
    }

    async fn start_skewed(&self, off: SignedDuration) -> Result<String, PodsError> {
        let image = self.settings.skewed_image.as_ref();
        let image = image.ok_or(PodsError::NotApplicable { family: Family::WallClock, needs: "--skewed-image" })?;
        let deployment = self.deployment().await?;
        let spec = deployment.spec.and_then(|spec| spec.template.spec);
        let spec = spec.ok_or_else(|| PodsError::Installation("the Deployment has no pod template".to_owned()))?;
        let mut pod = serde_json::to_value(spec).map_err(|error| PodsError::Installation(error.to_string()))?;
        let container = &mut pod["containers"][0];
        container["image"] = json!(image);
        let skew = [("LD_PRELOAD", "/skew.so".to_owned()), ("SKEW_SECONDS", off.as_secs().to_string())];
        if let Some(env) = container["env"].as_array_mut() {
            env.extend(skew.map(|(name, value)| json!({ "name": name, "value": value })));
        }
        let labels: serde_json::Map<_, _> = [SELECTOR, SKEWED]
            .iter()
            .filter_map(|label| label.split_once('='))
            .map(|(k, v)| (k.into(), v.into()))
            .collect();
        let metadata = json!({ "generateName": "skewed-", "labels": labels });
        let pod = serde_json::from_value(json!({ "metadata": metadata, "spec": pod }));
        let pod: Pod = pod.map_err(|error| PodsError::Installation(error.to_string()))?;
        let made = self.pods().create(&PostParams::default(), &pod).await;
        let name = made.map_err(|source| api("making the replica with a wrong clock", source))?.metadata.name;
        let name = name.unwrap_or_default();
        self.note(&format!("made {name}, its time of day off by {off:#}"));
        let ready = async {
            while !self.pods().get(&name).await_within().await.as_ref().is_some_and(is_ready) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        self.in_time("the replica with a wrong clock is ready", READY_LIMIT, ready).await?;
        Ok(name)
    }

    /// Removes the replicas with wrong clocks, those of a run that was cut off too, and waits until they are gone. What they
    /// left of the Deployment is made whole.
    pub(super) async fn remove_skewed(&self) -> Result<(), PodsError> {
        let skewed = ListParams::default().labels(SKEWED);
        let left =
            self.pods().list(&skewed).await.map_err(|source| api("asking for replicas with a wrong clock", source))?;
        let replicas = self.deployment().await?.spec.and_then(|spec| spec.replicas);
        if left.items.is_empty() && replicas.is_some_and(|replicas| replicas > 0) {
            return Ok(());
        }
        for pod in left.items {
            let name = pod.metadata.name.unwrap_or_default();
            let deleted = self.pods().delete(&name, &DeleteParams::default()).await;
            deleted.map_err(|source| api("removing a replica with a wrong clock", source))?;
        }
        let gone = async {
            while self.pods().list(&skewed).await_within().await.is_none_or(|left| !left.items.is_empty()) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        self.in_time("the replica with a wrong clock is gone", GONE_LIMIT, gone).await?;
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
        let found = wait::until("the replica with a wrong clock leads", LEADS_LIMIT, first).await;
        found.map_err(|source| PodsError::Overdue { trial: self.trial, source })
    }

    /// Waits until another pod leads after it.
    async fn right_successor(&self, pod: &str, token: u64) -> Result<(), PodsError> {
        let newer = || {
            self.observers.probe.with_log(|log| {
                let after = log.terms().filter(|term| term.token > token).skip_while(|term| term.identity != pod);
                after.into_iter().any(|term| term.identity != pod).then_some(())
            })
        };
        let found = wait::until("a replica with a right clock leads", LEADS_LIMIT, newer).await;
        found.map_err(|source| PodsError::Overdue { trial: self.trial, source })
    }

    /// What the pod's metric says of its clock, once it says that it is wrong. The API server fetches it, as for a user.
    async fn told_skew(&self, pod: &str) -> Option<SignedDuration> {
        let told = async {
            loop {
                if let Some(text) = self.metrics(pod).await
                    && let Some(skew) = skew_in(&text)
                {
                    return skew;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(TELL_LIMIT, told).await.ok()
    }

    async fn metrics(&self, pod: &str) -> Option<String> {
        let namespace = &self.settings.namespace;
        let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}:8080/proxy/metrics");
        let request = http::Request::get(path).body(Vec::new()).ok()?;
        self.client.request_text(request).await_within().await
    }

    async fn in_time<T>(&self, what: &str, limit: Duration, future: impl Future<Output = T>) -> Result<T, PodsError> {
        wait::within(what, limit, future).await.map_err(|source| PodsError::Overdue { trial: self.trial, source })
    }
}

/// The difference that is not zero in a page of metrics.
fn skew_in(metrics: &str) -> Option<SignedDuration> {
    let line = metrics.lines().find_map(|line| line.strip_prefix("tenure_clock_skew_seconds "))?;
    let seconds: f64 = line.trim().parse().ok()?;
    (seconds != 0.0).then(|| SignedDuration::try_from_secs_f64(seconds).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_of_zero_tells_nothing() {
        let page = |value: &str| {
            format!("# TYPE tenure_clock_skew_seconds gauge\ntenure_clock_skew_seconds {value}\nother 1\n")
        };
        assert_eq!(skew_in(&page("-3600")), Some(SignedDuration::from_hours(-1)));
        assert_eq!(skew_in(&page("0")), None);
        assert_eq!(skew_in("other 1"), None);
    }
}
