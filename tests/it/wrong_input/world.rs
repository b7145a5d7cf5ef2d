//! One replica with all its parts, in this process, with a job that is all right: on the sandbox under paused time, or on a
//! real API server.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use clap::Parser;
use futures::{FutureExt, future::BoxFuture};
use k8s_openapi::{
    api::{core::v1::Secret, events::v1::Event},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
};
use sandbox::{Fault, FaultRule};
use serde_json::{Value, json};
use tenure::{
    api::{PeriodicJob, PeriodicJobStatus},
    apiserver::ApiServer,
    clock::{SharedClock, SystemClock, sleep},
    dial::{Dial, SharedDial, Stream},
    entropy::SeededEntropy,
    replica::{Ground, Replica},
    settings::Settings,
    tasks::Tasks,
};
use tokio::{net::TcpListener, runtime::Builder};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::real::{self, RealServer};
use crate::support::{
    freeze::Freezer,
    lab::{Drift, Lab, NAMESPACE, TaskWatchdog},
    ledger::Ledger,
    process::install,
};

/// How long the test waits for what it expects, in simulated time or not.
const SOON: Duration = Duration::from_mins(2);

/// How the replica is called, here and by the sandbox's faults.
const REPLICA: &str = "one";

const HEALTHY: &str = "healthy";

/// Its interval: every row waits for two of its runs.
const HEALTHY_EVERY_MS: i64 = 500;

/// The job that a row is about.
pub const WRONG: &str = "wrong";

pub struct World {
    /// The time, and the sandbox, unless there is a real server.
    lab: Lab,
    real: Option<Behind>,
    ledger: Ledger,
    jobs: Api<DynamicObject>,
    replica: Replica,
}

/// A real server, and the way of the replica to it.
struct Behind {
    server: RealServer,
    forwarder: SocketAddr,
    open: Mutex<Option<DropGuard>>,
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

/// Plays a test in simulated time, or in real time if there is a real server.
pub fn play(test: impl Future<Output = ()>) {
    Builder::new_current_thread().enable_all().start_paused(!real::is_named()).build().unwrap().block_on(test);
}

impl Behind {
    async fn find() -> Option<Self> {
        let server = RealServer::named_by_the_environment().await?;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let behind = Self { server, forwarder: listener.local_addr().unwrap(), open: Mutex::default() };
        behind.open(listener);
        Some(behind)
    }

    fn open(&self, listener: TcpListener) {
        let shutdown = CancellationToken::new();
        tokio::spawn(real::forward(listener, self.server.address(), shutdown.clone()));
        *self.open.lock().unwrap() = Some(shutdown.drop_guard());
    }

    fn close(&self) {
        *self.open.lock().unwrap() = None;
    }

    async fn open_again(&self) {
        // The forwarder that was closed leaves the port at once, but not in the same instant.
        let listener = loop {
            match TcpListener::bind(self.forwarder).await {
                Ok(listener) => break listener,
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        };
        self.open(listener);
    }
}

impl World {
    /// A leader in office, and the healthy job in its second run.
    pub async fn start(seed: u64) -> Self {
        println!("seed {seed}");
        let lab = Lab::new(seed);
        let real = Behind::find().await;
        let client = match &real {
            Some(real) => real.server.client(),
            None => lab.client(),
        };
        match &real {
            Some(real) => real.server.install_definitions().await,
            None => install(&client).await,
        }
        let secret: Secret = serde_json::from_value(json!({
            "metadata": { "name": "credentials" }, "data": { "token": "dDBrZW4=", "binary": "/w==" },
        }))
        .unwrap();
        Api::namespaced(client.clone(), NAMESPACE).create(&PostParams::default(), &secret).await.unwrap();
        lab.sandbox
            .faults()
            .add(FaultRule::new(Fault::Refuse { code: 403, retry_after: None }).resource("secrets").name("forbidden"));
        let ledger = Ledger::new(lab.clock.clone(), seed);
        let replica = replica(&lab, real.as_ref(), &ledger).await;
        let jobs = Api::namespaced_with(client, NAMESPACE, &ApiResource::erase::<PeriodicJob>(&()));
        let world = Self { lab, real, ledger, jobs, replica };
        let (lab, leadership) = (&world.lab, world.replica.leadership());
        lab.wait_for("a leader", SOON, || leadership.term().is_some()).await;
        world
            .create(
                HEALTHY,
                json!({ "interval": format!("{HEALTHY_EVERY_MS}ms"), "http": { "url": "http://target.test/" } }),
                true,
            )
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
        match self.client().request::<Value>(request).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) => Err(status.message.clone()),
            Err(error) => panic!("{error}"),
        }
    }

    pub async fn delete(&self, name: &str) {
        self.jobs.delete(name, &DeleteParams::default()).await.unwrap();
    }

    /// Creates a job as soon as its definition allows it.
    pub async fn create_when_allowed(&self, name: &str, spec: &Value) {
        self.eventually("a job of a newer version", async || self.create(name, spec.clone(), true).await.ok()).await;
    }

    /// Makes the schema accept `catchUp: All`, as that of a newer version would. A real server takes its time for that.
    pub async fn install_a_newer_definition(&self) {
        let definitions: Api<CustomResourceDefinition> = Api::all(self.client());
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
        let events: Api<Event> = Api::namespaced(self.client(), NAMESPACE);
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
        // In real time a busy machine has a say in it.
        let patience = if self.real.is_some() { SOON } else { Duration::from_secs(5) };
        self.lab.wait_for("two runs of the healthy job", patience, || runs() >= before + 2).await;
    }

    /// The API server is gone for a while.
    pub async fn cut_off_for(&self, time: Duration) {
        match &self.real {
            Some(real) => real.close(),
            None => self.lab.sandbox.faults().unreachable(REPLICA),
        }
        self.lab.sleep(time).await;
        match &self.real {
            Some(real) => real.open_again().await,
            None => self.lab.sandbox.faults().heal(REPLICA),
        }
    }

    /// The healthy job's status, and how many slots of its interval are in (origin, mark], counted one by one. A status in
    /// which a slot has begun to run is passed over.
    pub async fn healthy(&self) -> (PeriodicJobStatus, usize) {
        self.eventually("a moment without a run", async || {
            let (status, slots) = self.healthy_now().await;
            status.active.is_empty().then_some((status, slots))
        })
        .await
    }

    fn client(&self) -> Client {
        self.jobs.clone().into_client()
    }

    async fn healthy_now(&self) -> (PeriodicJobStatus, usize) {
        let job = self.jobs.get(HEALTHY).await.unwrap();
        let status: PeriodicJobStatus = serde_json::from_value(job.data["status"].clone()).unwrap();
        let (origin, mark) = (status.origin.timestamp(), status.mark.timestamp());
        let slots = (origin.as_millisecond() + 1..=mark.as_millisecond())
            .filter(|millis| millis % HEALTHY_EVERY_MS == 0)
            .count();
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

async fn replica(lab: &Lab, real: Option<&Behind>, ledger: &Ledger) -> Replica {
    let flags = ["tenure", "--admin-address", "127.0.0.1:0", "--identity", REPLICA];
    let settings = CommandLine::parse_from(flags).settings;
    let freezer = Freezer::default();
    let (clock, election_api, api): (SharedClock, _, _) = if let Some(real) = real {
        let (clock, config) = (SystemClock::shared(), real.server.config(real.forwarder).await);
        let api = || ApiServer::from_config(config.clone(), clock.clone()).unwrap();
        (clock.clone(), api(), api())
    } else {
        let clock: SharedClock = lab.machine_clock(Drift::NONE);
        let api = || ApiServer::from_service(lab.sandbox.service(REPLICA), NAMESPACE, clock.clone());
        (clock.clone(), api(), api())
    };
    let ground = Ground {
        entropy: SeededEntropy::shared(lab.seed),
        dial: Arc::new(Names(ledger.dial(REPLICA))),
        watchdog: Arc::new(TaskWatchdog { freezer: freezer.clone(), aborted: Arc::default() }),
        election_api,
        api,
        admin: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        tasks: Tasks::new(Arc::new(freezer)),
        clock,
    };
    Replica::start(&settings, ground).await.unwrap()
}
