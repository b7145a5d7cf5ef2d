//! One replica with all its parts, in this process and under paused time, with a job that is all right.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use clap::Parser;
use futures::{FutureExt, future::BoxFuture};
use k8s_openapi::{
    api::{core::v1::Secret, events::v1::Event},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
};
use sandbox::{Fault, FaultRule};
use serde_json::{Value, json};
use tenure::{
    api::{PeriodicJob, PeriodicJobStatus},
    apiserver::ApiServer,
    clock::{SharedClock, sleep},
    dial::{Dial, SharedDial, Stream},
    entropy::SeededEntropy,
    replica::{Ground, Replica},
    settings::Settings,
    tasks::Tasks,
};
use tokio::net::TcpListener;

use crate::support::{
    freeze::Freezer,
    lab::{Drift, Lab, NAMESPACE, TaskWatchdog},
    ledger::Ledger,
};

/// How long, in simulated time, the test waits for what it expects.
const SOON: Duration = Duration::from_mins(2);

/// How the replica is called, here and by the sandbox's faults.
const REPLICA: &str = "one";

const HEALTHY: &str = "healthy";

/// The job that a row is about.
pub const WRONG: &str = "wrong";

pub struct World {
    pub lab: Lab,
    ledger: Ledger,
    jobs: Api<DynamicObject>,
    replica: Replica,
}

#[derive(Parser)]
struct CommandLine {
    #[command(flatten)]
    settings: Settings,
}

/// The ledger, and names and literals that lead elsewhere.
#[derive(Debug)]
struct Names(SharedDial);

impl Dial for Names {
    fn resolve(&self, host: String, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        let literal = if host == "metadata.test" { "169.254.169.254" } else { &host };
        match literal.parse() {
            Ok(address) => async move { Ok(vec![SocketAddr::new(address, port)]) }.boxed(),
            Err(_) => self.0.resolve(host, port),
        }
    }

    fn connect(&self, address: SocketAddr) -> BoxFuture<'static, io::Result<Box<dyn Stream>>> {
        self.0.connect(address)
    }
}

impl World {
    /// A leader in office, and the healthy job in its second run.
    pub async fn start(seed: u64) -> Self {
        println!("seed {seed}");
        let lab = Lab::new(seed);
        let definitions: Api<CustomResourceDefinition> = Api::all(lab.client());
        for definition in tenure::api::crds().unwrap() {
            definitions.create(&PostParams::default(), &definition).await.unwrap();
        }
        let secret: Secret = serde_json::from_value(json!({
            "metadata": { "name": "credentials" }, "data": { "token": "dDBrZW4=", "binary": "/w==" },
        }))
        .unwrap();
        Api::namespaced(lab.client(), NAMESPACE).create(&PostParams::default(), &secret).await.unwrap();
        lab.sandbox
            .faults()
            .add(FaultRule::new(Fault::Refuse { code: 403, retry_after: None }).resource("secrets").name("forbidden"));
        let ledger = Ledger::new(lab.clock.clone(), seed);
        let replica = replica(&lab, &ledger).await;
        let jobs = Api::namespaced_with(lab.client(), NAMESPACE, &ApiResource::erase::<PeriodicJob>(&()));
        let world = Self { lab, ledger, jobs, replica };
        let (lab, leadership) = (&world.lab, world.replica.leadership());
        lab.wait_for("a leader", SOON, || leadership.term().is_some()).await;
        world
            .create(HEALTHY, json!({ "interval": "1s", "http": { "url": "http://target.test/" } }), true)
            .await
            .unwrap();
        world.healthy_goes_on().await;
        world
    }

    /// Creates a job as kubectl does, which asks for strict validation, or as most other clients do.
    pub async fn create(&self, name: &str, spec: Value, strict: bool) -> Result<(), String> {
        let job = json!({
            "apiVersion": "tenure.dev/v1alpha1", "kind": "PeriodicJob",
            "metadata": { "name": name, "namespace": NAMESPACE }, "spec": spec,
        });
        let validation = if strict { "Strict" } else { "Ignore" };
        let path =
            format!("/apis/tenure.dev/v1alpha1/namespaces/{NAMESPACE}/periodicjobs?fieldValidation={validation}");
        let request = http::Request::post(path).header("content-type", "application/json");
        let request = request.body(serde_json::to_vec(&job).unwrap()).unwrap();
        match self.lab.client().request::<Value>(request).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) => Err(status.message.clone()),
            Err(error) => panic!("{error}"),
        }
    }

    pub async fn delete(&self, name: &str) {
        self.jobs.delete(name, &DeleteParams::default()).await.unwrap();
    }

    /// Makes the schema accept `catchUp: All`, as that of a newer version would.
    pub async fn install_a_newer_definition(&self) {
        let definitions: Api<CustomResourceDefinition> = Api::all(self.lab.client());
        let mut definition = definitions.get("periodicjobs.tenure.dev").await.unwrap();
        let text = serde_json::to_string(&definition.spec).unwrap();
        let newer = text.replace(r#"["None","Latest"]"#, r#"["None","Latest","All"]"#);
        assert_ne!(newer, text);
        definition.spec = serde_json::from_str(&newer).unwrap();
        definitions.replace("periodicjobs.tenure.dev", &PostParams::default(), &definition).await.unwrap();
    }

    pub async fn edit(&self, name: &str, change: Value) {
        self.jobs.patch(name, &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
    }

    /// The message of the condition `kind` of the wrong job, once it is False.
    pub async fn message_of_false(&self, kind: &str) -> String {
        let what = format!("{kind}=False");
        self.eventually(&what, async || {
            let job = self.jobs.get(WRONG).await.unwrap();
            let conditions = job.data["status"]["conditions"].as_array()?;
            let found = conditions.iter().find(|known| known["type"] == kind && known["status"] == "False")?;
            found["message"].as_str().map(str::to_owned)
        })
        .await
    }

    /// The note of the Event with that reason about the wrong job.
    pub async fn note_of_event(&self, reason: &str) -> String {
        let events: Api<Event> = Api::namespaced(self.lab.client(), NAMESPACE);
        self.eventually(reason, async || {
            let events = events.list(&ListParams::default()).await.unwrap();
            let about = |event: &Event| event.regarding.as_ref().and_then(|object| object.name.clone());
            let mut found = events.items.into_iter().filter(|event| about(event).as_deref() == Some(WRONG));
            found.find(|event| event.reason.as_deref() == Some(reason)).and_then(|event| event.note)
        })
        .await
    }

    /// Waits until the wrong job, which is none any more, runs.
    pub async fn wrong_runs(&self) {
        let job = format!("{NAMESPACE}/{WRONG}");
        self.lab.wait_for("a run", SOON, || !self.ledger.lines_of(&job).is_empty()).await;
    }

    /// Whether the wrong job has called anybody.
    pub fn wrong_has_called(&self) -> bool {
        !self.ledger.lines_of(&format!("{NAMESPACE}/{WRONG}")).is_empty()
    }

    /// Waits until the healthy job has run twice more.
    pub async fn healthy_goes_on(&self) {
        let runs = || self.ledger.lines_of(&format!("{NAMESPACE}/{HEALTHY}")).len();
        let before = runs();
        self.lab.wait_for("two runs of the healthy job", Duration::from_secs(5), || runs() >= before + 2).await;
    }

    /// The API server is gone for a while.
    pub async fn cut_off_for(&self, time: Duration) {
        self.lab.sandbox.faults().unreachable(REPLICA);
        self.lab.sleep(time).await;
        self.lab.sandbox.faults().heal(REPLICA);
    }

    /// The healthy job's status, and how many slots of its interval are in (origin, mark], counted one by one.
    pub async fn healthy(&self) -> (PeriodicJobStatus, usize) {
        let job = self.jobs.get(HEALTHY).await.unwrap();
        let status: PeriodicJobStatus = serde_json::from_value(job.data["status"].clone()).unwrap();
        let (origin, mark) = (status.origin.timestamp(), status.mark.timestamp());
        let slots = (origin.as_millisecond() + 1..=mark.as_millisecond()).filter(|millis| millis % 1_000 == 0).count();
        (status, slots)
    }

    /// The run ids of the healthy job that the target has seen, each once.
    pub fn healthy_runs(&self) -> (usize, usize) {
        let lines = self.ledger.lines_of(&format!("{NAMESPACE}/{HEALTHY}"));
        let slots: std::collections::BTreeSet<_> = lines.iter().map(|line| line.slot.clone()).collect();
        (lines.len(), slots.len())
    }

    async fn eventually<T>(&self, what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
        let deadline = self.lab.now() + SOON;
        loop {
            if let Some(found) = ask().await {
                return found;
            }
            assert!(self.lab.now() < deadline, "{what}: not within {SOON:?}");
            sleep(&*self.lab.clock, Duration::from_millis(20)).await;
        }
    }
}

async fn replica(lab: &Lab, ledger: &Ledger) -> Replica {
    let flags = ["tenure", "--admin-address", "127.0.0.1:0", "--identity", REPLICA];
    let settings = CommandLine::parse_from(flags).settings;
    let clock: SharedClock = lab.machine_clock(Drift::NONE);
    let api = || ApiServer::from_service(lab.sandbox.service(REPLICA), NAMESPACE, clock.clone());
    let freezer = Freezer::default();
    let ground = Ground {
        entropy: SeededEntropy::shared(lab.seed),
        dial: Arc::new(Names(ledger.dial(REPLICA))),
        watchdog: Arc::new(TaskWatchdog { freezer: freezer.clone(), aborted: Arc::default() }),
        election_api: api(),
        api: api(),
        admin: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        tasks: Tasks::new(Arc::new(freezer)),
        clock,
    };
    Replica::start(&settings, ground).await.unwrap()
}
