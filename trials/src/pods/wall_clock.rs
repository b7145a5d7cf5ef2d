//! A replica with a wrong time of day: it leads, finds out, hands over, and the others go on.
//!
//! Pods have the clock of their node, so the replica is a pod of its own beside the Deployment's: made of the same template,
//! from an image whose C library tells another time of day (`tests/cluster/images/skew.c`). The boot clock stays right, as
//! it does on a machine whose time of day was set wrong. For it to lead, the others leave; they come back at once.

use std::time::Duration;

use jiff::SignedDuration;
use serde_json::json;

use super::{AwaitWithin, LOOK_EVERY, Leader, PodsError, Session, trial::Struck};
use crate::{
    clock::At,
    judge::{Family, WrongClock},
    wait,
};

/// How far the time of day is off, in turn.
const OFF: [SignedDuration; 2] = [SignedDuration::from_hours(1), SignedDuration::from_hours(-1)];
/// How long another one may take to lead after it: its drain, and a lease if it did not release it.
const LEADS_LIMIT: Duration = Duration::from_secs(50);
/// How long it may take to tell that its clock is wrong: it has to be wrong for 10 s.
const TELL_LIMIT: Duration = Duration::from_secs(30);

impl Session {
    pub(super) async fn lead_by_a_wrong_clock(&self, number: u32, leader: &Leader) -> Result<Struck, PodsError> {
        let off = OFF[(number as usize - 1) % OFF.len()];
        let pod = self.start_skewed(off).await?;
        let at = At::now();
        let (taken_over, token) = self.lead_beside(&pod, leader.token).await?;
        self.note(&format!("{pod} led, its time of day off by {off:#}"));
        let told = self.told_skew(&pod).await;
        self.note(&format!("its metric says {told:?}"));
        self.right_successor(&pod, leader.token).await?;
        self.remove_beside().await?;
        Ok(Struck { wrong_clock: Some(WrongClock { token, off, told }), ..Struck::taken_over(at, taken_over) })
    }

    async fn start_skewed(&self, off: SignedDuration) -> Result<String, PodsError> {
        let image = self.settings.skewed_image.clone();
        let image = image.ok_or(PodsError::NotApplicable { family: Family::WallClock, needs: "--skewed-image" })?;
        let skew = [("LD_PRELOAD", "/skew.so".to_owned()), ("SKEW_SECONDS", off.as_secs().to_string())];
        let changed = self.start_beside(|container| {
            container["image"] = json!(image);
            if let Some(env) = container["env"].as_array_mut() {
                env.extend(skew.map(|(name, value)| json!({ "name": name, "value": value })));
            }
        });
        changed.await
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
