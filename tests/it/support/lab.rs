//! Several replicas in one process, on one sandbox, under paused time, each with a clock of its own.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
use sandbox::Sandbox;
use tenure::{
    Elector, Leadership, Standing, Term,
    apiserver::ApiServer,
    clock::{BootTime, Clock, RATE_ONE, SharedClock, SimulatedClock},
    election::{Look, Watchdog, WatchdogDriver},
    entropy::SeededEntropy,
    tasks::Tasks,
};

use super::freeze::Freezer;

pub const NAMESPACE: &str = "default";
pub const LEASE: &str = "main";

/// The time of day at which every simulation begins.
pub fn epoch() -> Timestamp {
    "2026-03-01T00:00:00Z".parse().unwrap()
}

/// One API server and the true time.
pub struct Lab {
    pub sandbox: Sandbox,
    pub clock: Arc<SimulatedClock>,
    pub seed: u64,
    api_clock_is_off: SignedDuration,
}

/// What a simulated machine's clock does.
#[derive(Debug, Clone, Copy)]
pub struct Drift {
    pub rate_ppm: u64,
    pub wall_offset: SignedDuration,
}

/// One replica: its elector, its clock, and the switch that freezes it.
pub struct Replica {
    pub name: String,
    pub clock: Arc<SimulatedClock>,
    pub freezer: Freezer,
    pub elector: Arc<Elector>,
    pub aborted: Arc<AtomicBool>,
}

/// The watchdog as a task of its replica; an abort kills the replica.
#[derive(Debug)]
pub struct TaskWatchdog {
    pub freezer: Freezer,
    pub aborted: Arc<AtomicBool>,
}

impl WatchdogDriver for TaskWatchdog {
    fn start(&self, watchdog: Watchdog) -> std::io::Result<()> {
        use tenure::tasks::Spawn;
        let (freezer, aborted) = (self.freezer.clone(), self.aborted.clone());
        self.freezer.spawn(Box::pin(async move {
            loop {
                match watchdog.look() {
                    Look::AgainAt(at) => watchdog.clock().sleep_until(at).await,
                    Look::Abort => {
                        aborted.store(true, Ordering::SeqCst);
                        freezer.kill();
                        return;
                    }
                    Look::Over => return,
                }
            }
        }));
        Ok(())
    }
}

impl Drift {
    pub const NONE: Self = Self { rate_ppm: RATE_ONE, wall_offset: SignedDuration::ZERO };

    pub const fn rate(rate_ppm: u64) -> Self {
        Self { rate_ppm, wall_offset: SignedDuration::ZERO }
    }
}

impl Lab {
    pub fn new(seed: u64) -> Self {
        Self::with_api_clock_off(seed, SignedDuration::ZERO)
    }

    /// A lab whose API server has another time of day than everybody else.
    pub fn with_api_clock_off(seed: u64, api_clock_is_off: SignedDuration) -> Self {
        let clock = SimulatedClock::new(epoch(), RATE_ONE, SignedDuration::ZERO);
        let wall = clock.clone();
        let api_clock = move || wall.wall() + api_clock_is_off;
        let sandbox = Sandbox::builder().clock(Arc::new(api_clock)).seed(seed).build();
        Self { sandbox, clock, seed, api_clock_is_off }
    }

    /// The API server's time of day when it is `at` on the true time.
    pub fn api_time(&self, at: BootTime) -> Timestamp {
        epoch() + SignedDuration::try_from(at.since_origin()).unwrap() + self.api_clock_is_off
    }

    /// A client that is no replica's.
    pub fn client(&self) -> Client {
        Client::new(self.sandbox.service("outside"), NAMESPACE)
    }

    pub fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.client(), NAMESPACE)
    }

    /// A clock that shows the true time now, and goes its own way from here on.
    pub fn machine_clock(&self, drift: Drift) -> Arc<SimulatedClock> {
        SimulatedClock::new(self.clock.wall(), drift.rate_ppm, drift.wall_offset)
    }

    /// Starts a replica with the default times, changed by `adjust`.
    pub fn replica_with(
        &self,
        name: &str,
        drift: Drift,
        adjust: impl FnOnce(tenure::election::ElectorBuilder) -> tenure::election::ElectorBuilder,
    ) -> Replica {
        let clock = self.machine_clock(drift);
        let api = ApiServer::from_service(self.sandbox.service(name), NAMESPACE, clock.clone());
        self.replica_on(name, clock, api, adjust)
    }

    /// The same, on a machine whose clock is already running, with a way of its own to the API server.
    pub fn replica_on(
        &self,
        name: &str,
        clock: Arc<SimulatedClock>,
        api: ApiServer,
        adjust: impl FnOnce(tenure::election::ElectorBuilder) -> tenure::election::ElectorBuilder,
    ) -> Replica {
        let shared: SharedClock = clock.clone();
        let freezer = Freezer::default();
        let aborted = Arc::new(AtomicBool::new(false));
        let seed = name.bytes().fold(self.seed, |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let builder = Elector::builder(LEASE)
            .namespace(NAMESPACE)
            .identity(name)
            .clock(shared)
            .entropy(SeededEntropy::shared(seed))
            .tasks(Tasks::new(Arc::new(freezer.clone())))
            .watchdog(Arc::new(TaskWatchdog { freezer: freezer.clone(), aborted: aborted.clone() }));
        let elector = adjust(builder).start_with(api).unwrap();
        Replica { name: name.to_owned(), clock, freezer, elector: Arc::new(elector), aborted }
    }

    pub fn replica(&self, name: &str) -> Replica {
        self.replica_with(name, Drift::NONE, |builder| builder)
    }

    /// The first replica of an installation that has never had a leader.
    pub fn first_replica(&self, name: &str) -> Replica {
        self.replica_with(name, Drift::NONE, |builder| builder.fresh_installation(|_| async { true }))
    }

    pub fn now(&self) -> BootTime {
        self.clock.boot()
    }

    pub async fn sleep(&self, duration: Duration) {
        self.clock.sleep_until(self.clock.boot() + duration).await;
    }

    /// Waits until `condition` holds, and fails after `patience` of simulated time.
    pub async fn wait_for(&self, what: &str, patience: Duration, mut condition: impl FnMut() -> bool) {
        let deadline = self.now() + patience;
        while !condition() {
            assert!(self.now() < deadline, "{what}: not within {patience:?}");
            self.sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits until one of `replicas` leads.
    pub async fn wait_for_leader<'a>(&self, replicas: &'a [Replica], patience: Duration) -> &'a Replica {
        self.wait_for("a leader", patience, || replicas.iter().any(Replica::leads)).await;
        replicas.iter().find(|replica| replica.leads()).unwrap()
    }
}

impl Replica {
    pub fn leadership(&self) -> Leadership {
        self.elector.leadership()
    }

    pub fn term(&self) -> Option<Term> {
        self.leadership().term()
    }

    /// What its guard says at this instant, frozen or not.
    pub fn leads(&self) -> bool {
        !self.freezer.is_killed() && self.term().is_some()
    }

    /// What its watch channel shows, which may be old.
    pub fn shows_leading(&self) -> bool {
        matches!(*self.leadership().watch().borrow(), Standing::Leading(_))
    }

    /// SIGTERM: asks it to hand over, as a task of its own.
    pub fn terminate(&self, drain: Duration) -> tokio::task::JoinHandle<Option<tenure::Released>> {
        let (freezer, elector) = (self.freezer.clone(), self.elector.clone());
        tokio::spawn(async move { freezer.within(async move { elector.release(drain).await }).await })
    }

    pub fn kill(&self) {
        self.freezer.kill();
    }
}
