//! What a judge is given.

use std::{fmt, net::IpAddr, str::FromStr, time::Duration};

use jiff::{SignedDuration, Timestamp};

use crate::{
    clock::{At, Timeline},
    ledger::Entry,
    probe::ProbeLog,
    slots::Grid,
    watcher::History,
};

/// How the leader is struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// SIGKILL: it is gone at once.
    Kill,
    /// SIGTERM: it leaves in order.
    Term,
    /// SIGSTOP for longer than a lease, then SIGCONT; in half of the trials SIGTERM arrives while it is frozen.
    Stop,
    /// The leader's pod is deleted: it leaves in order, and another pod takes its place.
    PodDeleted,
    /// The first process of the leader's container is killed: the kubelet starts it anew in the same pod.
    ContainerKilled,
    /// The leader's container is frozen for 5, 20 and 60 s; the kubelet may restart it.
    PodFrozen,
    /// The leader's node does not reach the API server, and reaches the target.
    NodeCutOff,
    /// The leader's node dies.
    NodeDead,
    /// The API server dies and is started again.
    ApiServerRestarted,
    /// The API server is frozen for 5, 20 and 60 s.
    ApiServerPaused,
    /// etcd is frozen for 5, 20 and 60 s.
    EtcdPaused,
    /// The Lease is deleted, emptied and edited.
    LeaseTouched,
    /// All pods are replaced by newer ones, as `kubectl rollout restart` does it.
    RollingUpdate,
    /// The leader's pod is deleted while it runs something that takes longer than the pod's grace period.
    LongRuns,
    /// A replica whose time of day is an hour fast or slow leads, and hands over.
    WallClock,
    /// Every answer of the API server is late, and the leader is gone without a word.
    ApiSlow,
    /// One API server of three answers 500 to everything, the leader's first of all; later the leader is gone.
    OneApiServerErrs,
    /// The watches have gone silent without an end, and the leader is gone right after a renewal.
    WatchHalfOpen,
    /// An older state of the Lease is put back.
    OldManifestPutBack,
    /// The Lease is deleted while a leader with a longer lease duration than the others is cut off from the API server.
    LeaseShortenedAndDeleted,
}

/// What a job promises of a run whose end is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guarantee {
    /// It is run again.
    AtLeastOnce,
    /// It is not.
    AtMostOnce,
}

/// Where in the life of a run the leader is struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Window {
    /// The intent has left the leader and has not reached the store.
    BeforeIntent,
    /// The intent is stored, and the leader does not know it.
    IntentUnanswered,
    /// The request has reached the target, and the target has not answered.
    Acting,
    /// The target has answered, and the result has not reached the store.
    AnsweredUnrecorded,
}

/// A job of a family.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its name.
    pub name: String,
    /// Its interval.
    pub period: Duration,
    /// Its guarantee.
    pub guarantee: Guarantee,
}

/// How long the leader was frozen.
#[derive(Debug, Clone, Copy)]
pub struct Freeze {
    /// SIGSTOP.
    pub stop: At,
    /// When SIGCONT was about to be sent.
    pub cont: At,
    /// When it had been: a helper that sends it takes its time.
    pub thawed: At,
}

/// A time in which the control plane was out of order.
#[derive(Debug, Clone, Copy)]
pub struct Outage {
    /// From then on.
    pub from: At,
    /// When it was in order again.
    pub back: At,
}

/// A wrong time of day, and what the replica that had it said of it.
#[derive(Debug, Clone, Copy)]
pub struct WrongClock {
    /// The token by which that replica led.
    pub token: u64,
    /// How far its time of day was ahead of the right one.
    pub off: SignedDuration,
    /// What its metric said; nothing if it never spoke of it.
    pub told: Option<SignedDuration>,
}

/// One trial.
#[derive(Debug, Clone)]
pub struct Trial {
    /// Its number in the family, from 1.
    pub number: u32,
    /// The identity of the replica that was struck.
    pub victim: String,
    /// The address that the ledger knows that replica by.
    pub victim_address: IpAddr,
    /// The token it led with.
    pub token: u64,
    /// Where in a run's life it was struck; nothing where nobody aimed.
    pub window: Option<Window>,
    /// When the first fault or hold was put in place.
    pub armed: At,
    /// When the signal was sent.
    pub struck: At,
    /// When every replica was ready again, one led, and each job had run under its token.
    pub calm: At,
    /// How long the leader was frozen, in the family that freezes.
    pub freeze: Option<Freeze>,
    /// When the control plane was out of order, in the families in which it is struck.
    pub outage: Option<Outage>,
    /// When the successor was first seen to lead.
    pub taken_over: Option<At>,
    /// Within which time after the fault, or after the return of the control plane, somebody has to lead.
    pub limit: Option<Duration>,
    /// The ids of the runs that were made to last until the end of the drain cut them off.
    pub cut: Vec<String>,
    /// The time of day of a replica that was wrong, in the family that is about it.
    pub wrong_clock: Option<WrongClock>,
    /// The most requests for the Lease, watches left out, that one replica made within [`PACE_WINDOW`], where they are counted.
    pub pace: Option<usize>,
}

/// Within so long requests for the Lease are counted.
pub const PACE_WINDOW: Duration = Duration::from_secs(10);
/// So many of them one replica may make then: three tries in a second, each with a look, and a few as its term runs out.
pub const PACE_AT_MOST: usize = 60;

/// Everything seen of one family.
#[derive(Debug, Clone)]
pub struct Evidence {
    /// The family.
    pub family: Family,
    /// Its jobs.
    pub jobs: Vec<Job>,
    /// What reached the ledger, by first byte.
    pub entries: Vec<Entry>,
    /// What reached the probe.
    pub probe: ProbeLog,
    /// The status versions.
    pub history: History,
    /// How often status versions may be missing from it: the API server no longer had them when it was asked again.
    pub gaps: u64,
    /// The trials.
    pub trials: Vec<Trial>,
    /// How long nobody may lead after a leader's last sign, where that is a promise.
    pub leaderless_limit: Option<Duration>,
    /// What was seen and keeps to no contract, and what the observers lost.
    pub complaints: Vec<String>,
    /// From when to when the control plane took longer for the harness's own writes than Kubernetes promises of itself.
    pub slow: Vec<(At, At)>,
    /// Translates slots to the harness's clock.
    pub timeline: Timeline,
    /// Slots due up to here must be decided, and their runs ended.
    pub until: Timestamp,
    /// Replicas that ended without being asked to, or otherwise than asked, and how. A process that thaws too late aborts on
    /// purpose; the table shows it, and no condition depends on it. A container that was restarted fails its family, unless
    /// the fault was about that. Nothing where nobody watched for it.
    pub bad_ends: Option<Vec<String>>,
}

impl Family {
    /// Those of processes.
    pub const OF_PROCESSES: [Self; 3] = [Self::Kill, Self::Term, Self::Stop];

    /// Those of pods on a cluster.
    pub const OF_PODS: [Self; 17] = [
        Self::PodDeleted,
        Self::ContainerKilled,
        Self::PodFrozen,
        Self::NodeCutOff,
        Self::NodeDead,
        Self::ApiServerRestarted,
        Self::ApiServerPaused,
        Self::EtcdPaused,
        Self::LeaseTouched,
        Self::RollingUpdate,
        Self::LongRuns,
        Self::WallClock,
        Self::ApiSlow,
        Self::OneApiServerErrs,
        Self::WatchHalfOpen,
        Self::OldManifestPutBack,
        Self::LeaseShortenedAndDeleted,
    ];

    /// How many trials make a full family.
    pub const fn full_size(self) -> u32 {
        match self {
            Self::Kill | Self::Term | Self::PodDeleted => 50,
            Self::Stop => 40,
            Self::ContainerKilled => 20,
            Self::PodFrozen => 10,
            Self::NodeCutOff | Self::RollingUpdate => 5,
            Self::WallClock => 4,
            Self::NodeDead
            | Self::ApiServerRestarted
            | Self::ApiServerPaused
            | Self::EtcdPaused
            | Self::LeaseTouched
            | Self::LongRuns
            | Self::WatchHalfOpen
            | Self::OldManifestPutBack => 3,
            Self::ApiSlow | Self::OneApiServerErrs | Self::LeaseShortenedAndDeleted => 2,
        }
    }

    /// A share of a full family, for a short run: at least `least` trials.
    pub fn scaled(self, share: f64, least: u32) -> u32 {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number of trials")]
        let trials = (f64::from(self.full_size()) * share.clamp(0.0, 100.0)).round() as u32;
        trials.max(least)
    }

    /// Whether the leader leaves in order, so that nothing may be made twice but what lasts longer than the drain.
    pub const fn is_planned(self) -> bool {
        matches!(self, Self::Term | Self::PodDeleted | Self::RollingUpdate | Self::LongRuns | Self::WallClock)
    }

    /// Whether each change of leader is a hand-over to a replica that stands by: its length is a figure of its own.
    pub const fn hands_over(self) -> bool {
        matches!(self, Self::Term | Self::PodDeleted | Self::RollingUpdate | Self::LongRuns)
    }

    /// Whether the fault ends the leader, or stops it, in that very moment.
    pub const fn ends_the_leader_at_once(self) -> bool {
        matches!(
            self,
            Self::Kill
                | Self::Stop
                | Self::ContainerKilled
                | Self::PodFrozen
                | Self::NodeDead
                | Self::ApiSlow
                | Self::OneApiServerErrs
                | Self::WatchHalfOpen
        )
    }

    /// Whether a trial may be allowed more time without a leader than a lease duration and a second: a Lease that somebody
    /// has changed, or an API server that is slow, keeps everybody waiting for longer.
    pub const fn may_take_longer(self) -> bool {
        matches!(self, Self::LeaseTouched) || self.needs_a_front()
    }

    /// Whether the replicas have to come by a front before the API server.
    pub const fn needs_a_front(self) -> bool {
        matches!(
            self,
            Self::ApiSlow
                | Self::OneApiServerErrs
                | Self::WatchHalfOpen
                | Self::OldManifestPutBack
                | Self::LeaseShortenedAndDeleted
        )
    }

    /// Whether the leader is frozen: what it was about to send then appears when it thaws.
    pub const fn freezes(self) -> bool {
        matches!(self, Self::Stop | Self::PodFrozen)
    }

    /// How long before its first sign outside a run may have been active: a run is active from the moment its leader decides
    /// on it, and its intent has a way to go to the store. An API server in the same process stores it well within half of
    /// the shortest period. A real one is held to what Kubernetes promises of itself: 99 of 100 writes within a second.
    pub const fn intent_under_way(self) -> Duration {
        match self {
            Self::Kill | Self::Term | Self::Stop => Duration::from_millis(100),
            _ => Duration::from_secs(1),
        }
    }

    /// Whether the fault makes the kubelet start a container anew. Elsewhere a replica that was restarted has failed.
    pub const fn restarts_containers(self) -> bool {
        matches!(self, Self::ContainerKilled | Self::PodFrozen | Self::NodeDead)
    }

    /// Whether a test of it needs hands on the nodes.
    pub const fn needs_the_nodes(self) -> bool {
        !matches!(
            self,
            Self::PodDeleted
                | Self::LeaseTouched
                | Self::RollingUpdate
                | Self::LongRuns
                | Self::WallClock
                | Self::OldManifestPutBack
                | Self::LeaseShortenedAndDeleted
        )
    }

    /// Whether a test of it needs an image whose time of day can be wrong.
    pub const fn needs_a_wrong_clock(self) -> bool {
        matches!(self, Self::WallClock)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kill => "SIGKILL",
            Self::Term => "SIGTERM",
            Self::Stop => "SIGSTOP",
            Self::PodDeleted => "pod-deleted",
            Self::ContainerKilled => "container-killed",
            Self::PodFrozen => "pod-frozen",
            Self::NodeCutOff => "node-cut-off",
            Self::NodeDead => "node-dead",
            Self::ApiServerRestarted => "api-server-restarted",
            Self::ApiServerPaused => "api-server-paused",
            Self::EtcdPaused => "etcd-paused",
            Self::LeaseTouched => "lease-touched",
            Self::RollingUpdate => "rolling-update",
            Self::LongRuns => "long-runs",
            Self::WallClock => "wall-clock",
            Self::ApiSlow => "api-slow",
            Self::OneApiServerErrs => "one-api-server-errs",
            Self::WatchHalfOpen => "watch-half-open",
            Self::OldManifestPutBack => "old-manifest-put-back",
            Self::LeaseShortenedAndDeleted => "lease-shortened-and-deleted",
        })
    }
}

impl FromStr for Family {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "kill" => Ok(Self::Kill),
            "term" => Ok(Self::Term),
            "stop" => Ok(Self::Stop),
            other => Self::OF_PODS.into_iter().find(|family| family.to_string() == other).ok_or_else(|| {
                let of_pods = Self::OF_PODS.map(|family| family.to_string()).join(", ");
                format!("unknown family {other:?}: expected kill, term or stop, or of pods {of_pods}")
            }),
        }
    }
}

impl Window {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::BeforeIntent, Self::IntentUnanswered, Self::Acting, Self::AnsweredUnrecorded];
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::BeforeIntent => "before the intent",
            Self::IntentUnanswered => "intent unanswered",
            Self::Acting => "acting",
            Self::AnsweredUnrecorded => "answered, unrecorded",
        })
    }
}

impl Evidence {
    /// The slots of a job from its origin to the end of the family. Its origin is the one its status says, or its creation.
    pub(super) fn grid(&self, job: &Job) -> Option<Grid> {
        Some(Grid::between(job.period, self.origin(job)?, self.until))
    }

    pub(super) fn origin(&self, job: &Job) -> Option<Timestamp> {
        let history = self.history.job(&job.name)?;
        history.versions.first().and_then(|version| version.status.origin).or(history.created)
    }

    /// How long before its slot a request of this term may arrive. A leader whose time of day is ahead plans by that of the
    /// API server's answers, and by at most two seconds more; the rest is for what an answer was under way. All others have
    /// the very clock that the ledger has, and start nothing early: what is left is for that clock being slewed.
    pub(super) fn early_at_most(&self, token: u64) -> Duration {
        let is_wrong = |trial: &Trial| trial.wrong_clock.as_ref().is_some_and(|clock| clock.token == token);
        Duration::from_millis(if self.trials.iter().any(is_wrong) { 2_500 } else { 10 })
    }

    /// The freeze after which this replica's first byte or datagram at `at` can only be one that it was about to send when
    /// it was frozen.
    pub(super) fn thaw_of(&self, at: At, is_victim: impl Fn(&Trial) -> bool) -> Option<u32> {
        let just_thawed = |freeze: Freeze| freeze.cont <= at && at <= freeze.thawed.plus(THAW_SLACK);
        let mut thawed = self.trials.iter().filter(|trial| is_victim(trial) && trial.freeze.is_some_and(just_thawed));
        thawed.next().map(|trial| trial.number)
    }
}

/// An effect that was on its way between guard and wire when its process was frozen appears at once when it is thawed.
const THAW_SLACK: Duration = Duration::from_millis(5);
