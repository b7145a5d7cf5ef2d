//! The settings of one replica: every flag of `tenure run`, each with its environment twin.
//!
//! This is the one place where a setting is named, described and given its default. Settings that contradict each other
//! are found by the part that they belong to (the elector refuses unsafe timings), not here.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

use crate::{
    action::{Cidr, HostAddress},
    duration::parse_duration,
    periodic::LeaseName,
};

/// Everything that one replica can be told.
#[derive(Debug, Clone, Args)]
pub struct Settings {
    /// Which cluster, which namespace.
    #[command(flatten)]
    pub cluster: ClusterSettings,
    /// Who leads, and for how long.
    #[command(flatten)]
    pub election: ElectionSettings,
    /// How jobs are run.
    #[command(flatten)]
    pub jobs: JobSettings,
    /// How the process is watched and stopped.
    #[command(flatten)]
    pub process: ProcessSettings,
}

/// Which cluster, which namespace.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterSettings {
    /// Kubeconfig file to use; without it, the KUBECONFIG variable, ~/.kube/config, then the pod's service account
    #[arg(long, env = "TENURE_KUBECONFIG", value_name = "PATH")]
    pub kubeconfig: Option<PathBuf>,

    /// Namespace this installation lives in [default: the namespace of the pod or of the kubeconfig's context]
    #[arg(long, env = "TENURE_NAMESPACE", value_name = "NAME")]
    pub namespace: Option<String>,

    /// Run only the jobs of this namespace [default: those of every namespace]
    #[arg(long, env = "TENURE_WATCH_NAMESPACE", value_name = "NAME")]
    pub watch_namespace: Option<String>,

    /// Run only jobs with this spec.class [default: only jobs without a class]
    #[arg(long, env = "TENURE_CLASS", value_name = "NAME", value_parser = class_name)]
    pub class: Option<String>,

    /// Name of this replica, unique among its peers [default: the pod's name, else the host's]
    #[arg(long, env = "TENURE_IDENTITY", value_name = "NAME")]
    pub identity: Option<String>,
}

/// Who leads, and for how long.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Leader election")]
pub struct ElectionSettings {
    /// How long a standby waits after the leader's last sign of life, in whole seconds
    #[arg(
        long = "leader-elect-lease-duration",
        env = "TENURE_LEADER_ELECT_LEASE_DURATION",
        value_name = "DURATION",
        default_value = "15s",
        value_parser = duration
    )]
    pub lease_duration: Duration,

    /// How long the leader works on without a confirmed renewal [default: as long as the lease duration safely allows]
    #[arg(
        long = "leader-elect-renew-deadline",
        env = "TENURE_LEADER_ELECT_RENEW_DEADLINE",
        value_name = "DURATION",
        value_parser = duration
    )]
    pub renew_deadline: Option<Duration>,

    /// Pause after a failed try
    #[arg(
        long = "leader-elect-retry-period",
        env = "TENURE_LEADER_ELECT_RETRY_PERIOD",
        value_name = "DURATION",
        default_value = "2s",
        value_parser = duration
    )]
    pub retry_period: Duration,

    /// Time in which running work has really stopped when a term ends
    #[arg(
        long = "leader-elect-stop-margin",
        env = "TENURE_LEADER_ELECT_STOP_MARGIN",
        value_name = "DURATION",
        default_value = "1s",
        value_parser = duration
    )]
    pub stop_margin: Duration,

    /// Time that a holder of another make, such as client-go, gets after its expiry and after its release
    #[arg(
        long = "foreign-grace",
        env = "TENURE_FOREIGN_GRACE",
        value_name = "DURATION",
        default_value = "5s",
        value_parser = duration
    )]
    pub foreign_grace: Duration,

    /// Name of the Lease that the replicas contend for
    #[arg(
        long = "leader-elect-resource-name",
        env = "TENURE_LEADER_ELECT_RESOURCE_NAME",
        value_name = "NAME",
        default_value = "tenure"
    )]
    pub resource_name: String,

    /// Namespace of that Lease [default: the namespace of this installation]
    #[arg(
        long = "leader-elect-resource-namespace",
        env = "TENURE_LEADER_ELECT_RESOURCE_NAMESPACE",
        value_name = "NAME"
    )]
    pub resource_namespace: Option<String>,

    /// Take over the jobs that this Lease owns, once nobody holds it any more; may be repeated
    #[arg(long, env = "TENURE_ADOPT_FROM", value_name = "NAMESPACE/LEASE", value_delimiter = ',')]
    pub adopt_from: Vec<LeaseName>,
}

/// How jobs are run.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Jobs")]
pub struct JobSettings {
    /// Catch-up runs that may start in one second after a new leader has taken over
    #[arg(
        long,
        env = "TENURE_CATCH_UP_RATE",
        value_name = "RUNS",
        default_value_t = 10,
        value_parser = clap::value_parser!(u32).range(1..=1000)
    )]
    pub catch_up_rate: u32,

    /// Difference to the API server's time of day at which a leader stops planning and hands over; 0 switches this off
    #[arg(
        long,
        env = "TENURE_MAX_CLOCK_SKEW",
        value_name = "DURATION",
        default_value = "5s",
        value_parser = duration_or_zero
    )]
    pub max_clock_skew: Duration,

    /// Allow HTTP calls to an address range that is refused otherwise (loopback, link-local, metadata); may be repeated
    #[arg(long, env = "TENURE_EGRESS_ALLOW", value_name = "CIDR", value_delimiter = ',')]
    pub egress_allow: Vec<Cidr>,

    /// Reach a host of an HTTP call at this address instead of asking DNS; may be repeated
    #[arg(long, env = "TENURE_RESOLVE", value_name = "HOST=ADDRESS", value_delimiter = ',')]
    pub resolve: Vec<HostAddress>,
}

/// How the process is watched and stopped.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Process")]
pub struct ProcessSettings {
    /// Address of the probes, /metrics and /status; port 0 takes a free one and logs it
    #[arg(long, env = "TENURE_ADMIN_ADDRESS", value_name = "ADDRESS", default_value = "0.0.0.0:8080")]
    pub admin_address: SocketAddr,

    /// The pod's terminationGracePeriodSeconds: what is still running 3 seconds before its end is aborted and recorded
    #[arg(
        long,
        env = "TENURE_TERMINATION_GRACE_PERIOD",
        value_name = "DURATION",
        default_value = "30s",
        value_parser = duration
    )]
    pub termination_grace_period: Duration,

    /// UID of the pod: with --lock-directory, a container that is restarted in its pod leads again at once
    #[arg(long, env = "TENURE_POD_UID", value_name = "UID", requires = "lock_directory")]
    pub pod_uid: Option<String>,

    /// Directory that only this pod has, such as an emptyDir, for the lock that proves that a predecessor has died
    #[arg(long, env = "TENURE_LOCK_DIRECTORY", value_name = "PATH", requires = "pod_uid")]
    pub lock_directory: Option<PathBuf>,

    /// Form of the log, which is written to standard error
    #[arg(long, env = "TENURE_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,

    /// Least level that is logged, or directives such as `info,tenure::election=debug`
    #[arg(long, env = "TENURE_LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    pub log_level: String,

    /// For measurements: while leading, send one datagram `TOKEN IDENTITY NUMBER` to this address each millisecond
    #[arg(long, env = "TENURE_PROBE", value_name = "ADDRESS", hide = true)]
    pub probe: Option<SocketAddr>,

    /// For a parent process: shut down when standard input closes
    #[arg(long, env = "TENURE_EXIT_WHEN_STDIN_CLOSES", hide = true)]
    pub exit_when_stdin_closes: bool,
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// The whole grace period is not ours: the last of it is for the release, and for what the kernel takes to end us.
pub const GRACE_RESERVE: Duration = Duration::from_secs(3);

impl ProcessSettings {
    /// How long running work may go on after the request to stop.
    pub fn drain_budget(&self) -> Duration {
        self.termination_grace_period.saturating_sub(GRACE_RESERVE)
    }
}

impl ClusterSettings {
    /// The name of this replica: the one that was given, else the pod's, else the host's.
    pub fn replica_name(&self) -> String {
        let variable = |name: &str| std::env::var(name).ok();
        let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
        let named = |name: &String| !name.trim().is_empty();
        let candidates = [self.identity.clone(), variable("POD_NAME"), variable("HOSTNAME"), host()];
        let found = candidates.into_iter().flatten().find(named);
        found.map_or_else(|| "tenure".to_owned(), |name| name.trim().to_owned())
    }
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| error.to_string())
}

/// A class is a DNS label, as the schema of `spec.class` says.
const CLASS_MAX: usize = 63;

fn class_name(text: &str) -> Result<String, String> {
    let edge = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let (first, last) = (text.as_bytes().first(), text.as_bytes().last());
    let fits = text.len() <= CLASS_MAX && text.bytes().all(|byte| edge(&byte) || byte == b'-');
    if fits && first.is_some_and(edge) && last.is_some_and(edge) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{text:?} cannot be a class: write lowercase letters, digits and '-', at most {CLASS_MAX}, such as night"
    ))
}

pub(crate) fn duration_or_zero(text: &str) -> Result<Duration, String> {
    if text == "0" { Ok(Duration::ZERO) } else { duration(text) }
}
