//! Replicas that stand aside, put together as the binary does it: which of them leads, and when nobody does.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::events::v1::Event;
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams},
};
use rstest::rstest;
use sandbox::{Fault, FaultRule};
use serde_json::{Value, json};
use tenure::api::PeriodicJob;

use crate::support::{
    assembled::Assembled,
    lab::{LEASE, Lab, NAMESPACE},
    ledger::{Ledger, Line},
    whole,
};

const SECOND: Duration = Duration::from_secs(1);
const LEASE_DURATION: Duration = Duration::from_secs(3);
const FLAGS: [&str; 6] = [
    "--leader-elect-lease-duration",
    "3s",
    "--leader-elect-retry-period",
    "300ms",
    "--leader-elect-stop-margin",
    "200ms",
];
/// A clock that is wrong is told apart from one that is late after this long.
const PERSISTS: Duration = Duration::from_secs(10);

struct Stage {
    lab: Lab,
    ledger: Ledger,
    jobs: Api<PeriodicJob>,
}

impl Stage {
    async fn new(api_clock_is_off: SignedDuration) -> Self {
        let lab = Lab::with_api_clock_off(1, api_clock_is_off);
        let client = lab.client();
        whole::install(&client).await;
        let ledger = Ledger::new(lab.clock.clone(), lab.seed);
        Self { lab, ledger, jobs: Api::namespaced(client, NAMESPACE) }
    }

    async fn replica(&self, name: &str) -> Assembled {
        Assembled::start(&self.lab, &self.ledger, name, &FLAGS).await
    }

    async fn create(&self, name: &str, spec: Value) {
        self.jobs.create(&PostParams::default(), &whole::job(name, spec)).await.unwrap();
    }

    fn lines(&self) -> Vec<Line> {
        self.ledger.lines_of(&format!("{NAMESPACE}/tick"))
    }

    async fn requests(&self, more: usize) -> Vec<Line> {
        let known = self.lines().len();
        self.lab.wait_for("requests", SECOND * 10, || self.lines().len() >= known + more).await;
        self.lines()
    }

    async fn leader<'a>(&self, replicas: &'a [Assembled], patience: Duration) -> &'a Assembled {
        self.lab.wait_for("a leader", patience, || replicas.iter().any(Assembled::leads)).await;
        replicas.iter().find(|replica| replica.leads()).unwrap()
    }

    /// Nobody of them leads for so long.
    async fn nobody_leads(&self, replicas: &[&Assembled], time: Duration) {
        let end = self.lab.now() + time;
        while self.lab.now() < end {
            let leaders: Vec<_> =
                replicas.iter().filter(|replica| replica.leads()).map(|leader| &leader.name).collect();
            assert!(leaders.is_empty(), "{leaders:?} leads");
            self.lab.sleep(Duration::from_millis(10)).await;
        }
    }
}

#[rstest]
#[case::ahead(SignedDuration::from_secs(10))]
#[case::behind(SignedDuration::from_secs(-10))]
#[tokio::test(start_paused = true)]
async fn an_api_server_with_a_wrong_clock_does_not_keep_everybody(#[case] off: SignedDuration) {
    let stage = Stage::new(off).await;
    stage.create("tick", json!({ "interval": "1s" })).await;
    let replicas =
        [stage.replica("replica-0").await, stage.replica("replica-1").await, stage.replica("replica-2").await];
    stage.leader(&replicas, SECOND).await;
    let all_stand_aside = || replicas.iter().all(|replica| !replica.leads());
    stage.lab.wait_for("the end of trust", PERSISTS + SECOND * 5, all_stand_aside).await;
    let leader = stage.leader(&replicas, LEASE_DURATION * 4 + SECOND).await;
    stage.requests(3).await;
    let status = leader.status().await;
    assert_eq!(status["scheduler"]["clockSkewOverruled"], true, "{status}");
    let (_, metrics) = leader.ask("/metrics").await;
    assert!(!metrics.contains("tenure_clock_skew_seconds 0\n"), "{metrics}");
    let events: Api<Event> = Api::namespaced(stage.lab.client(), NAMESPACE);
    let overruled = |event: &Event| event.reason.as_deref() == Some("ClockSkewOverruled");
    assert!(events.list(&ListParams::default()).await.unwrap().items.iter().any(overruled));

    let token = leader.leadership().term().unwrap().token();
    stage.lab.sleep(SECOND * 30).await;
    assert_eq!(leader.leadership().term().map(|term| term.token()), Some(token), "it goes on");
    for line in stage.lines() {
        let slot: Timestamp = line.slot.parse().unwrap();
        let api_time = stage.lab.api_time(line.at);
        assert!(slot <= api_time, "{slot} starts at {api_time}");
    }

    for replica in &replicas {
        replica.clock.step_wall(off);
    }
    stage.lab.sleep(SECOND * 3).await;
    let status = leader.status().await;
    assert_eq!(status["scheduler"]["clockSkewSeconds"], Value::Null, "{status}");
    assert_eq!(leader.leadership().term().map(|term| term.token()), Some(token), "it goes on");
    stage.requests(3).await;
}

#[tokio::test(start_paused = true)]
async fn no_jobs_are_no_evidence_that_nobody_has_led() {
    let stage = Stage::new(SignedDuration::ZERO).await;
    let old = stage.replica("replica-0").await;
    stage.nobody_leads(&[&old], LEASE_DURATION).await;
    stage.lab.wait_for("the first leader", SECOND, || old.leads()).await;
    stage.lab.sleep(SECOND).await;
    stage.lab.sandbox.faults().partition("replica-0");
    stage.lab.leases().delete(LEASE, &DeleteParams::default()).await.unwrap();
    assert!(old.leads(), "it has not heard of it");
    let new = stage.replica("replica-1").await;
    stage.nobody_leads(&[&new], LEASE_DURATION).await;
    assert!(!old.leads());
    stage.lab.wait_for("the successor", SECOND, || new.leads()).await;
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_may_not_list_the_jobs_is_not_ready_and_does_not_lead() {
    let stage = Stage::new(SignedDuration::ZERO).await;
    stage.create("tick", json!({ "interval": "1s" })).await;
    let old = stage.replica("replica-0").await;
    stage.lab.wait_for("the first leader", SECOND, || old.leads()).await;
    let forbidden = FaultRule::new(Fault::Refuse { code: 403, retry_after: None }).client("replica-1");
    let rule = stage.lab.sandbox.faults().add(forbidden.resource("periodicjobs"));
    let new = stage.replica("replica-1").await;
    stage.requests(3).await;
    let is_unready = |(code, body): (u16, String)| {
        assert!(code == 503 && body.contains("[+]lease ok") && body.contains("[-]jobs failed: "), "{body}");
    };
    is_unready(new.ask("/readyz").await);
    assert_eq!(new.ask("/livez").await.0, 200, "a restart would repair nothing");
    assert!(new.ask("/metrics").await.1.contains("tenure_periodicjobs_synced 0\n"));
    assert!(old.leads() && old.ask("/readyz").await.0 == 200);
    assert!(old.ask("/metrics").await.1.contains("tenure_periodicjobs_synced 1\n"));

    old.freezer.kill();
    stage.nobody_leads(&[&new], LEASE_DURATION * 4).await;
    is_unready(new.ask("/readyz").await);
    let third = stage.replica("replica-2").await;
    stage.lab.wait_for("one that knows the jobs", LEASE_DURATION + SECOND, || third.leads()).await;
    stage.requests(3).await;
    stage.lab.sandbox.faults().remove(rule);
    third.freezer.kill();
    stage.lab.wait_for("the first one again", SECOND * 20, || new.leads()).await;
    assert_eq!(new.ask("/readyz").await.0, 200);
    stage.requests(3).await;
}
