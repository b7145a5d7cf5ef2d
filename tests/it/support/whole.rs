//! A whole replica in the lab: elector, scheduler and http action, put together as the binary does it.

use std::{sync::Arc, time::Duration};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, Client, api::PostParams};
use serde_json::{Value, json};
use tenure::{
    Released,
    action::{Egress, HttpRunner, KubeSecrets},
    api::PeriodicJob,
    apiserver::ApiServer,
    clock::Clock,
    entropy::SharedEntropy,
    periodic::{LeaseName, Scheduler, SchedulerHandle, SchedulerParts, SchedulerSettings, Scope},
    replica::aside::{Surroundings, Verdict, stand_aside},
    tasks::{Spawn, Tasks},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{
    heard::Heard,
    lab::{LEASE, NAMESPACE, Replica},
    ledger::Ledger,
};

/// Where the ledger is, as a job's URL names it.
pub const LEDGER: &str = "http://ledger/";

/// The Lease whose jobs every replica takes over. Most tests have none of it.
pub const PREDECESSOR: &str = "old/tenure";

/// How long work in hand may go on when a replica stands aside: as with the default grace period.
const DRAIN: Duration = Duration::from_secs(27);

/// A replica with its scheduler.
pub struct Whole {
    pub replica: Replica,
    pub scheduler: SchedulerHandle,
    pub heard: Arc<Heard>,
}

impl Whole {
    /// Starts the scheduler of `replica`. `api` is its way to the API server, `election_api` that of the elector.
    pub fn start(
        replica: Replica,
        api: ApiServer,
        election_api: &ApiServer,
        ledger: &Ledger,
        entropy: SharedEntropy,
        lease_duration: Duration,
    ) -> Self {
        let asked = api.clone();
        let clock: tenure::clock::SharedClock = replica.clock.clone();
        let heard = Arc::new(Heard::default());
        let secrets = Arc::new(KubeSecrets::new(api.client()));
        let dial = ledger.dial(&replica.name);
        let scheduler = Scheduler::start(SchedulerParts {
            api,
            dates: vec![election_api.date()],
            leadership: replica.leadership(),
            action: Arc::new(HttpRunner::new(dial, Egress::default(), secrets, clock.clone())),
            clock: clock.clone(),
            entropy,
            tasks: Tasks::new(Arc::new(replica.freezer.clone())),
            observer: heard.clone(),
            controller: format!("{NAMESPACE}/{LEASE}"),
            class: None,
            adopt_from: vec![PREDECESSOR.parse().unwrap()],
            adopt_patience: Duration::from_secs(15),
            scope: Scope::All,
            settings: SchedulerSettings { catch_up_rate: 10, max_clock_skew: Duration::from_secs(5) },
        });
        let around = Surroundings {
            scheduler: scheduler.clone(),
            leadership: replica.leadership(),
            api: asked,
            lease: LeaseName::new(NAMESPACE, LEASE),
            lease_duration,
            clock,
            stopping: CancellationToken::new(),
        };
        let elector = replica.elector.clone();
        let take_part = move |verdict| match verdict {
            Verdict::StandAside => elector.stand_aside(DRAIN),
            Verdict::Contend | Verdict::ContendAnyway => elector.contend(),
        };
        let aside = stand_aside(around, take_part, |_| {});
        replica.freezer.spawn(Box::pin(aside));
        Self { replica, scheduler, heard }
    }

    /// SIGTERM: what goes on may end within `drain` and is recorded, then the Lease is released.
    pub fn terminate(&self, drain: Duration) -> JoinHandle<Option<Released>> {
        let (freezer, elector) = (self.replica.freezer.clone(), self.replica.elector.clone());
        let (scheduler, clock) = (self.scheduler.clone(), self.replica.clock.clone());
        tokio::spawn(async move {
            let stopping = async move {
                let deadline = clock.boot() + drain;
                scheduler.drained(deadline).await;
                elector.release(deadline - clock.boot()).await
            };
            freezer.within(stopping).await
        })
    }
}

/// Posts Tenure's definitions.
pub async fn install(client: &Client) {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    for definition in tenure::api::crds().unwrap() {
        definitions.create(&PostParams::default(), &definition).await.unwrap();
    }
}

/// A job named `name` that calls the ledger, with these fields in its spec.
pub fn job(name: &str, spec: Value) -> PeriodicJob {
    let mut whole = json!({
        "apiVersion": "tenure.dev/v1alpha1",
        "kind": "PeriodicJob",
        "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": { "http": { "url": LEDGER } },
    });
    let Value::Object(fields) = spec else { panic!("a spec is an object") };
    whole["spec"].as_object_mut().unwrap().extend(fields);
    serde_json::from_value(whole).unwrap()
}
