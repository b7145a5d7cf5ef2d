//! Aiming: the leader is held at one point in the life of one run, so that a signal lands exactly there.

use std::{net::IpAddr, time::Duration};

use rand::{Rng, rngs::StdRng};
use sandbox::{Fault, FaultId, FaultRule, Hold, Sandbox, Verb};

use crate::{
    judge::Window,
    ledger::{self, Ledger, Whose},
};

/// The subresource that intents and results are written to.
const STATUS: &str = "periodicjobs/status";
/// What the patch that stores a new intent has in it, and no other patch.
const INTENT: &str = r#""op":"add","path":"/status/active/"#;
/// What the patch that stores a run's result has in it, and no other patch.
const RESULT: &str = r#""op":"remove","path":"/status/active/"#;

/// A point at which a request of the leader is held.
#[derive(Debug)]
pub enum Aim {
    /// A write to the API server.
    Write(Hold),
    /// A request to the target.
    Act(ledger::Hold),
}

/// What the sandbox does to the leader's answers during a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disturbance {
    /// Nothing.
    None,
    /// Every answer comes this much later.
    Delay(Duration),
    /// One answer to a write is lost after the commit.
    LoseOne {
        /// Whether the connection stays open without an answer, or breaks.
        hang: bool,
    },
}

impl Aim {
    /// Holds the next run of `job` on the replica `client` (which the ledger knows by `address`) in `window`.
    pub fn take(sandbox: &Sandbox, ledger: &Ledger, window: Window, job: &str, client: &str, address: IpAddr) -> Self {
        if window == Window::Acting {
            return Self::Act(ledger.hold(Some(job), Whose::Replica(address)));
        }
        let hold = sandbox.faults().new_hold();
        let (fault, piece) = match window {
            Window::BeforeIntent => (Fault::HoldRequest(hold.id()), INTENT),
            Window::IntentUnanswered => (Fault::Hold(hold.id()), INTENT),
            Window::Acting | Window::AnsweredUnrecorded => (Fault::HoldRequest(hold.id()), RESULT),
        };
        let rule = FaultRule::new(fault).client(client).verb(Verb::Patch).resource(STATUS).name(job);
        sandbox.faults().add(rule.body_contains(piece).times(1));
        Self::Write(hold)
    }

    /// Waits until a request is held.
    pub async fn reached(&mut self) {
        match self {
            Self::Write(hold) => hold.wait_reached().await,
            Self::Act(hold) => {
                // The ledger drops a hold only after a request has met it, so this ends by one being met.
                hold.reached().await;
            }
        }
    }

    /// Lets the request go on.
    pub fn release(&self) {
        match self {
            Self::Write(hold) => hold.release(),
            Self::Act(hold) => hold.release(),
        }
    }
}

impl Disturbance {
    /// Half of all trials have one; of those, half delay by 200 to 800 ms and half lose one answer.
    pub fn draw(random: &mut StdRng) -> Self {
        match random.random_range(0..4) {
            0 => Self::Delay(Duration::from_millis(random.random_range(200..=800))),
            1 => Self::LoseOne { hang: random.random() },
            _ => Self::None,
        }
    }

    /// Puts it in force against one client.
    pub fn arm(self, sandbox: &Sandbox, client: &str, random: &mut StdRng) -> Option<FaultId> {
        let rule = match self {
            Self::None => return None,
            Self::Delay(by) => FaultRule::new(Fault::DelayAnswer(by)),
            Self::LoseOne { hang } => {
                let verb = if random.random() { Verb::Update } else { Verb::Patch };
                FaultRule::new(Fault::DropAnswer { hang }).verb(verb).times(1)
            }
        };
        Some(sandbox.faults().add(rule.client(client)))
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::Ipv4Addr};

    use rand::SeedableRng;
    use serde_json::{Value, json};

    use super::*;
    use crate::ledger::Pace;

    const JOBS: &str = "/apis/tenure.dev/v1alpha1/namespaces/default/periodicjobs";

    async fn send(sandbox: &Sandbox, client: &str, method: &str, path: &str, body: Value) -> u16 {
        try_send(sandbox, client, method, path, body).await.expect("an answer")
    }

    /// The status code of the answer; nothing if the answer was lost.
    async fn try_send(sandbox: &Sandbox, client: &str, method: &str, path: &str, body: Value) -> Option<u16> {
        let client = kube::Client::new(sandbox.service(client), "default");
        let kind = if method == "PATCH" { "application/json-patch+json" } else { "application/json" };
        let request = http::Request::builder().method(method).uri(path).header("content-type", kind);
        let request = request.body(kube::client::Body::from(body.to_string().into_bytes())).unwrap();
        client.send(request).await.ok().map(|response| response.status().as_u16())
    }

    /// A job with a status, as far as the shape of its patches goes.
    async fn sandbox_with_a_job() -> Sandbox {
        let sandbox = Sandbox::new();
        let schema = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
        let version = json!({
            "name": "v1alpha1", "served": true, "storage": true, "subresources": { "status": {} },
            "schema": { "openAPIV3Schema": schema },
        });
        let definition = json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": { "name": "periodicjobs.tenure.dev" },
            "spec": {
                "group": "tenure.dev", "scope": "Namespaced", "versions": [version],
                "names": { "plural": "periodicjobs", "singular": "periodicjob", "kind": "PeriodicJob" },
            },
        });
        let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        assert_eq!(send(&sandbox, "harness", "POST", path, definition).await, 201);
        let job = json!({ "apiVersion": "tenure.dev/v1alpha1", "kind": "PeriodicJob", "metadata": { "name": "fast" } });
        assert_eq!(send(&sandbox, "harness", "POST", JOBS, job).await, 201);
        let status = json!([{ "op": "add", "path": "/status", "value": { "active": {}, "mark": 0 } }]);
        assert_eq!(patch(&sandbox, "harness", status).await, 200);
        sandbox
    }

    async fn patch(sandbox: &Sandbox, client: &str, operations: Value) -> u16 {
        send(sandbox, client, "PATCH", &format!("{JOBS}/fast/status"), operations).await
    }

    fn intent(run: &str) -> Value {
        json!([
            { "op": "test", "path": "/status/mark", "value": 0 },
            { "op": "add", "path": format!("/status/active/{run}"), "value": { "attempt": 1 } },
        ])
    }

    fn result(run: &str) -> Value {
        json!([{ "op": "remove", "path": format!("/status/active/{run}") }])
    }

    /// How many open runs the stored status has.
    fn open_runs(sandbox: &Sandbox) -> usize {
        let newest = sandbox.history().pop().unwrap();
        newest.object.pointer("/status/active").and_then(Value::as_object).map_or(0, serde_json::Map::len)
    }

    async fn aimed(window: Window, sandbox: &Sandbox) -> Aim {
        let ledger =
            Ledger::start(&[Ipv4Addr::LOCALHOST.into()], Pace { seed: 1, periods: BTreeMap::new() }).await.unwrap();
        Aim::take(sandbox, &ledger, window, "fast", "replica-0", Ipv4Addr::LOCALHOST.into())
    }

    #[tokio::test]
    async fn before_the_intent_nothing_is_stored_and_another_client_is_not_held() {
        let sandbox = sandbox_with_a_job().await;
        let mut aim = aimed(Window::BeforeIntent, &sandbox).await;
        assert_eq!(patch(&sandbox, "replica-1", intent("other")).await, 200);
        let held = tokio::spawn({
            let sandbox = sandbox.clone();
            async move { patch(&sandbox, "replica-0", intent("mine")).await }
        });
        aim.reached().await;
        assert_eq!(open_runs(&sandbox), 1);
        aim.release();
        assert_eq!(held.await.unwrap(), 200);
        assert_eq!(open_runs(&sandbox), 2);
    }

    #[tokio::test]
    async fn an_unanswered_intent_is_stored() {
        let sandbox = sandbox_with_a_job().await;
        let mut aim = aimed(Window::IntentUnanswered, &sandbox).await;
        let held = tokio::spawn({
            let sandbox = sandbox.clone();
            async move { patch(&sandbox, "replica-0", intent("mine")).await }
        });
        aim.reached().await;
        assert_eq!(open_runs(&sandbox), 1);
        assert!(!held.is_finished());
        aim.release();
        assert_eq!(held.await.unwrap(), 200);
    }

    #[tokio::test]
    async fn an_unrecorded_result_is_held_and_the_intent_before_it_is_not() {
        let sandbox = sandbox_with_a_job().await;
        let mut aim = aimed(Window::AnsweredUnrecorded, &sandbox).await;
        assert_eq!(patch(&sandbox, "replica-0", intent("mine")).await, 200);
        let held = tokio::spawn({
            let sandbox = sandbox.clone();
            async move { patch(&sandbox, "replica-0", result("mine")).await }
        });
        aim.reached().await;
        assert_eq!(open_runs(&sandbox), 1);
        aim.release();
        assert_eq!(held.await.unwrap(), 200);
        assert_eq!(open_runs(&sandbox), 0);
    }

    #[tokio::test]
    async fn a_request_that_is_aimed_at_and_to_be_lost_is_held_first() {
        let sandbox = sandbox_with_a_job().await;
        let mut aim = aimed(Window::IntentUnanswered, &sandbox).await;
        let lose = FaultRule::new(Fault::DropAnswer { hang: false }).client("replica-0").verb(Verb::Patch).times(1);
        sandbox.faults().add(lose);
        let held = tokio::spawn({
            let sandbox = sandbox.clone();
            let path = format!("{JOBS}/fast/status");
            async move { try_send(&sandbox, "replica-0", "PATCH", &path, intent("mine")).await }
        });
        aim.reached().await;
        aim.release();
        assert_eq!(held.await.unwrap(), None);
        assert_eq!(open_runs(&sandbox), 1);
    }

    #[test]
    fn half_of_the_trials_are_disturbed() {
        let mut random = StdRng::seed_from_u64(7);
        let drawn: Vec<Disturbance> = (0..400).map(|_| Disturbance::draw(&mut random)).collect();
        let count = |wanted: fn(&Disturbance) -> bool| drawn.iter().filter(|one| wanted(one)).count();
        assert!((150..250).contains(&count(|one| *one == Disturbance::None)));
        assert!(count(|one| matches!(one, Disturbance::Delay(_))) > 50);
        assert!(count(|one| matches!(one, Disturbance::LoseOne { hang: true })) > 20);
        assert!(count(|one| matches!(one, Disturbance::LoseOne { hang: false })) > 20);
    }
}
