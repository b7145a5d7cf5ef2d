//! A stage for periodic jobs: the sandbox with their definition, a target that does as it is told, and schedulers whose
//! terms the test begins and ends.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::future::BoxFuture;
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api,
    api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams},
};
use sandbox::{Fault, FaultRule, Hold, Verb};
use serde_json::json;
use tenure::{
    Standing, Term,
    action::{Action, Attempt, AttemptEnd, EndKind, JobRef, JobRunner, Runners},
    api::{Disposition, Outcome, PeriodicJob, PeriodicJobStatus},
    apiserver::ApiServer,
    clock::{Clock, RATE_ONE, SharedClock, SimulatedClock},
    election::testing,
    entropy::SeededEntropy,
    periodic::{
        AttemptFailure, AttemptStart, JobGauges, Notice, Observer, RunReport, Scheduler, SchedulerHandle,
        SchedulerParts, SchedulerSettings, Scope,
    },
    tasks::Tasks,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::support::lab::{Lab, NAMESPACE, epoch};

/// A test waits this long, in virtual time, for what it expects.
pub const SOON: Duration = Duration::from_mins(2);

/// How long the Leases of the stage are.
pub const LEASE_DURATION: Duration = Duration::from_secs(15);

/// How an attempt goes: how long it takes, and how it ends.
#[derive(Debug, Clone)]
pub struct Course {
    pub takes: Duration,
    pub kind: EndKind,
}

/// One attempt as the target saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub run_id: String,
    pub slot: Timestamp,
    pub at: Timestamp,
    pub attempt: u32,
    pub token: u64,
}

/// A target that does as it is told, and succeeds at once when nothing is left to do.
#[derive(Debug)]
pub struct Target {
    clock: SharedClock,
    seen: Mutex<Vec<Seen>>,
    courses: Mutex<VecDeque<Course>>,
    usual: Mutex<Course>,
}

impl Target {
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub fn next(&self, takes: Duration, kind: EndKind) {
        self.courses.lock().unwrap().push_back(Course { takes, kind });
    }

    pub fn usually_takes(&self, takes: Duration) {
        self.usual.lock().unwrap().takes = takes;
    }
}

impl Action for Target {
    fn attempt(&self, attempt: Attempt) -> BoxFuture<'_, AttemptEnd> {
        Box::pin(async move {
            if attempt.guard.check().is_err() {
                return end(EndKind::TermEnded);
            }
            self.seen.lock().unwrap().push(Seen {
                run_id: attempt.run_id,
                slot: attempt.slot,
                at: self.clock.wall(),
                attempt: attempt.attempt,
                token: attempt.guard.token(),
            });
            let planned = self.courses.lock().unwrap().pop_front();
            let course = planned.unwrap_or_else(|| self.usual.lock().unwrap().clone());
            tokio::select! {
                biased;
                () = self.clock.sleep_until(self.clock.boot() + course.takes) => end(course.kind),
                () = attempt.wishes.replace.cancelled() => end(EndKind::Replaced { certain: false }),
            }
        })
    }
}

pub fn end(kind: EndKind) -> AttemptEnd {
    AttemptEnd { kind, message: format!("{kind:?}"), retry_after: None, first_byte: None }
}

pub const OK: EndKind = EndKind::Succeeded { status: StatusCode::OK };
pub const BROKEN: EndKind = EndKind::Refused { status: StatusCode::SERVICE_UNAVAILABLE };

/// Keeps what it hears.
#[derive(Debug, Default)]
pub struct Listener {
    pub decided: Mutex<Vec<(String, Disposition, u64)>>,
    pub ended: Mutex<Vec<(String, Outcome)>>,
    pub notices: Mutex<Vec<Notice>>,
}

impl Listener {
    pub fn reasons(&self) -> Vec<&'static str> {
        self.notices.lock().unwrap().iter().map(|notice| notice.reason).collect()
    }
}

impl Observer for Listener {
    fn slots_decided(&self, job: &JobRef, disposition: Disposition, count: u64) {
        self.decided.lock().unwrap().push((job.name.clone(), disposition, count));
    }
    fn attempt_started(&self, _: &JobRef, _: &AttemptStart<'_>) {}
    fn attempt_failed(&self, _: &JobRef, _: &AttemptFailure<'_>) {}
    fn run_ended(&self, _: &JobRef, end: &RunReport<'_>) {
        self.ended.lock().unwrap().push((end.run_id.to_owned(), end.outcome));
    }
    fn job_changed(&self, _: &JobRef, _: JobGauges) {}
    fn job_forgotten(&self, _: &JobRef) {}
    fn office_left(&self) {}
    fn notice(&self, notice: Notice) {
        self.notices.lock().unwrap().push(notice);
    }
}

/// One replica's scheduler, whose terms the test begins and ends.
pub struct Replica {
    pub handle: SchedulerHandle,
    pub standing: watch::Sender<Standing>,
    pub stopping: CancellationToken,
    pub clock: Arc<SimulatedClock>,
    pub listener: Arc<Listener>,
    pub term: Mutex<Option<Term>>,
}

pub struct Stage {
    pub lab: Lab,
    pub target: Arc<Target>,
    pub jobs: Api<PeriodicJob>,
}

impl Stage {
    pub async fn new(seed: u64) -> Self {
        let lab = Lab::new(seed);
        let definitions: Api<CustomResourceDefinition> = Api::all(lab.client());
        for definition in tenure::api::crds().unwrap() {
            definitions.create(&PostParams::default(), &definition).await.unwrap();
        }
        let clock: SharedClock = lab.clock.clone();
        let usual = Mutex::new(Course { takes: Duration::ZERO, kind: OK });
        let (seen, courses) = (Mutex::default(), Mutex::default());
        let target = Arc::new(Target { clock, seen, courses, usual });
        let jobs = Api::namespaced(lab.client(), NAMESPACE);
        Self { lab, target, jobs }
    }

    pub fn replica(&self, name: &str) -> Replica {
        self.replica_of(name, "default/main")
    }

    pub fn replica_of(&self, name: &str, controller: &str) -> Replica {
        self.replica_with(name, controller, None, &[])
    }

    /// A replica that works for the Lease `controller`, for jobs of `class`, and takes over from these Leases.
    pub fn replica_with(&self, name: &str, controller: &str, class: Option<&str>, adopt_from: &[&str]) -> Replica {
        let clock = SimulatedClock::new(epoch(), RATE_ONE, SignedDuration::ZERO);
        let elapsed = self.lab.clock.boot().since_origin();
        clock.step_wall(SignedDuration::try_from(elapsed).unwrap());
        let shared: SharedClock = clock.clone();
        let (leadership, standing, stopping) = testing::leadership();
        let listener = Arc::new(Listener::default());
        let seed = name.bytes().fold(self.lab.seed, |seed, byte| seed * 31 + u64::from(byte));
        let api = ApiServer::from_service(self.lab.sandbox.service(name), NAMESPACE, shared.clone());
        let (entropy, tasks) = (SeededEntropy::shared(seed), Tasks::default());
        let jobs = JobRunner::new(api.clone(), None, shared.clone(), entropy.clone(), tasks.clone(), stopping.clone());
        let handle = Scheduler::start(SchedulerParts {
            api,
            dates: Vec::new(),
            leadership,
            action: Arc::new(Runners { http: self.target.clone(), jobs: Arc::new(jobs) }),
            clock: shared,
            entropy,
            tasks,
            observer: listener.clone(),
            controller: controller.to_owned(),
            class: class.map(str::to_owned),
            adopt_from: adopt_from.iter().map(|lease| lease.parse().unwrap()).collect(),
            adopt_patience: LEASE_DURATION,
            scope: Scope::All,
            settings: SchedulerSettings { catch_up_rate: 10, max_clock_skew: Duration::from_secs(5) },
        });
        Replica { handle, standing, stopping, clock, listener, term: Mutex::default() }
    }

    /// Creates a job: its spec is a POST to somewhere if `fields` have no other action, with `fields` added.
    pub async fn create(&self, name: &str, fields: serde_json::Value) -> PeriodicJob {
        let mut spec = json!({ "http": { "url": "http://example.com/" } });
        if fields["jobTemplate"].is_object() {
            spec = json!({});
        }
        spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let job = json!({
            "apiVersion": "tenure.dev/v1alpha1", "kind": "PeriodicJob", "metadata": { "name": name }, "spec": spec,
        });
        self.jobs.create(&PostParams::default(), &serde_json::from_value(job).unwrap()).await.unwrap()
    }

    pub async fn status(&self, name: &str) -> PeriodicJobStatus {
        self.jobs.get(name).await.unwrap().status.expect("a status")
    }

    /// Waits until the status of `name` is as `wanted`.
    pub async fn until(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&PeriodicJobStatus) -> bool,
    ) -> PeriodicJobStatus {
        let deadline = tokio::time::Instant::now() + SOON;
        loop {
            let status = self.jobs.get(name).await.unwrap().status;
            if let Some(status) = status.clone().filter(|status| wanted(status)) {
                return status;
            }
            assert!(tokio::time::Instant::now() < deadline, "not within {SOON:?}: {what}; {status:#?}");
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    pub async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    /// The slots in (origin, mark] of an interval, counted one by one, are the dispositions.
    pub fn assert_sum(status: &PeriodicJobStatus, every: Duration) {
        let every = i64::try_from(every.as_millis()).unwrap();
        let (from, to) = (status.origin.timestamp().as_millisecond(), status.mark.timestamp().as_millisecond());
        let slots = (from + 1..=to).filter(|millis| millis % every == 0).count();
        assert_eq!(status.counts.slots(), slots as u64, "{status:#?}");
    }
}

impl Replica {
    pub fn lead(&self, token: u64) {
        let clock: SharedClock = self.clock.clone();
        let term = testing::term(&clock, token, Duration::from_hours(10_000));
        *self.term.lock().unwrap() = Some(term.clone());
        self.standing.send_replace(Standing::Leading(term));
    }

    pub fn lose(&self) {
        if let Some(term) = self.term.lock().unwrap().take() {
            testing::revoke(&term);
        }
        self.standing.send_replace(Standing::Standby);
    }

    /// The process is gone: nothing of it acts or writes again.
    pub async fn vanish(self, stage: &Stage, name: &str) {
        stage.lab.sandbox.faults().partition(name);
        self.lose();
        self.stopping.cancel();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

impl Stage {
    /// The definition as a newer version would have it.
    pub async fn accept_catch_up_all(&self) {
        let definitions: Api<CustomResourceDefinition> = Api::all(self.lab.client());
        let mut definition = definitions.get("periodicjobs.tenure.dev").await.unwrap();
        let text = serde_json::to_string(&definition.spec).unwrap();
        definition.spec =
            serde_json::from_str(&text.replace(r#"["None","Latest"]"#, r#"["None","Latest","All"]"#)).unwrap();
        definitions.replace("periodicjobs.tenure.dev", &PostParams::default(), &definition).await.unwrap();
    }

    /// The jobs without their type.
    pub fn raw_jobs(&self) -> Api<DynamicObject> {
        Api::namespaced_with(self.lab.client(), NAMESPACE, &ApiResource::erase::<PeriodicJob>(&()))
    }

    /// Changes a job's metadata or spec by a merge patch.
    pub async fn edit(&self, name: &str, change: serde_json::Value) {
        self.jobs.patch(name, &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
    }

    /// Changes a job's status by a merge patch, as somebody may who has the right to.
    pub async fn edit_status(&self, name: &str, change: serde_json::Value) {
        self.jobs.patch_status(name, &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
    }

    /// Holds the next look of `client` at a Lease.
    pub fn hold_look(&self, client: &str) -> Hold {
        let hold = self.lab.sandbox.faults().new_hold();
        let rule = FaultRule::new(Fault::HoldRequest(hold.id())).client(client).verb(Verb::Get).resource("leases");
        self.lab.sandbox.faults().add(rule.times(1));
        hold
    }

    /// Lets a fault befall the next write to a status that `text` is part of.
    pub fn fault(&self, client: &str, text: &str, fault: Fault) {
        let rule = FaultRule::new(fault).client(client).verb(Verb::Patch).resource("periodicjobs/status");
        self.lab.sandbox.faults().add(rule.body_contains(text).times(1));
    }

    /// How often anybody has written the status of a job.
    pub fn writes(&self, name: &str) -> usize {
        let history = self.lab.sandbox.history();
        history.iter().filter(|change| change.name == name && change.verb == Verb::Patch).count()
    }

    pub async fn until_seen(&self, count: usize) -> Vec<Seen> {
        let deadline = tokio::time::Instant::now() + SOON;
        loop {
            let seen = self.target.seen();
            if seen.len() >= count {
                return seen;
            }
            assert!(tokio::time::Instant::now() < deadline, "not {count} attempts within {SOON:?}: {seen:#?}");
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }
}
