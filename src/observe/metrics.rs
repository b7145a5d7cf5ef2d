//! The metrics of one replica, on a registry of their own.
//!
//! Gauges with an object's name exist only on the leader and only during its term: [`Metrics::forget_objects`] removes
//! them when it ends, so that a standby never shows values that have stopped moving. Everything else has labels from
//! closed lists, which exist from the start with the value 0, so that a first increment is visible to `rate()`.
//!
//! No label is called `job`, `namespace`, `pod` or `instance`: those belong to the scrape.

use std::time::Duration;

use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::election::TryFailure;

/// The metrics of one replica. Clones write to the same registry.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    leader: IntGaugeVec,
    transitions: IntCounterVec,
    lease_valid: GaugeVec,
    lease_renew: HistogramVec,
    lease_tries_failed: IntCounterVec,
    slots: IntCounterVec,
    runs: IntCounterVec,
    start_lateness: Histogram,
    run_duration: HistogramVec,
    synced: IntGauge,
    foreign_objects: IntGauge,
    regressed_objects: IntGauge,
    clock_skew: Gauge,
    last_success: GaugeVec,
    next_slot: GaugeVec,
    consecutive_failures: IntGaugeVec,
    active_runs: IntGaugeVec,
}

/// The gauges of one object, as they are now.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ObjectGauges {
    /// Unix time of the last successful run, in seconds.
    pub last_success: Option<f64>,
    /// Unix time of the next slot, in seconds.
    pub next_slot: Option<f64>,
    /// Runs that have failed since the last success.
    pub consecutive_failures: i64,
    /// Runs with an intent and without a result.
    pub active_runs: i64,
}

/// The metrics cannot be set up or printed.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// A metric could not be made or registered.
    #[error("the metrics cannot be registered: {0}")]
    Register(#[source] prometheus::Error),
    /// The registry could not be printed.
    #[error("the metrics cannot be printed: {0}")]
    Print(#[source] prometheus::Error),
}

/// The media type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// A renewal is one small write: from a fast API server on the same machine to one that is about to cost the term.
const RENEW_BUCKETS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The aim is a median of 5 ms; the upper end is a take-over.
const LATENESS_BUCKETS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0];

/// From a heartbeat on the same machine to the longest run that the default deadline allows.
const RUN_BUCKETS: &[f64] = &[0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0];

/// What may become of a slot.
const DISPOSITIONS: &[&str] = &["Ran", "Overlap", "Late", "Suspended", "Coalesced", "Replaced"];

/// How a run may end.
const OUTCOMES: &[&str] = &["Succeeded", "Failed", "TimedOut", "Interrupted", "Cancelled", "Indeterminate"];

/// What can be executed.
const ACTIONS: &[&str] = &["http", "jobTemplate"];

const OBJECT: &[&str] = &["periodicjob", "periodicjob_namespace"];

impl Metrics {
    /// The metrics of a replica that contends for the Lease `name`.
    ///
    /// # Errors
    /// [`MetricsError::Register`] if two metrics have the same name.
    pub fn new(name: &str) -> Result<Self, MetricsError> {
        let metrics = Self::register(name).map_err(MetricsError::Register)?;
        metrics.leader.with_label_values(&[name]).set(0);
        metrics.lease_valid.with_label_values(&[name]).set(0.0);
        metrics.lease_renew.with_label_values(&[name]);
        for failure in TryFailure::ALL {
            metrics.lease_tries_failed.with_label_values(&[name, failure.reason()]);
        }
        for disposition in DISPOSITIONS {
            metrics.slots.with_label_values(&[disposition]);
        }
        for action in ACTIONS {
            metrics.run_duration.with_label_values(&[action]);
            for outcome in OUTCOMES {
                metrics.runs.with_label_values(&[action, outcome]);
            }
        }
        Ok(metrics)
    }

    fn register(name: &str) -> Result<Self, prometheus::Error> {
        let build = IntGaugeVec::new(
            Opts::new("tenure_build_info", "The version of this replica; the value is always 1."),
            &["version"],
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let gauge = |name: &str, help: &str, labels: &[&str]| GaugeVec::new(Opts::new(name, help), labels);
        let count = |name: &str, help: &str, labels: &[&str]| IntCounterVec::new(Opts::new(name, help), labels);
        let whole = |name: &str, help: &str, labels: &[&str]| IntGaugeVec::new(Opts::new(name, help), labels);
        let spread = |name: &str, help: &str, buckets: &[f64]| HistogramOpts::new(name, help).buckets(buckets.to_vec());
        let metrics = Self {
            registry: Registry::new(),
            leader: whole("leader_election_master_status", "1 while this replica leads, else 0.", &["name"])?,
            transitions: count(
                "tenure_leader_transitions_total",
                "Terms that this replica began (reason acquired) or ended, by reason.",
                &["name", "reason"],
            )?,
            lease_valid: gauge(
                "tenure_lease_valid_seconds",
                "How long this replica may still act as the leader without another renewal; 0 on a standby.",
                &["name"],
            )?,
            lease_renew: HistogramVec::new(
                spread("tenure_lease_renew_seconds", "From sending a renewal to its confirmation.", RENEW_BUCKETS),
                &["name"],
            )?,
            lease_tries_failed: count(
                "tenure_lease_tries_failed_total",
                "Reads and writes of the Lease that failed, by reason.",
                &["name", "reason"],
            )?,
            slots: count("tenure_periodicjob_slots_total", "Slots decided, by disposition.", &["disposition"])?,
            runs: count(
                "tenure_periodicjob_runs_total",
                "Runs that ended, by action and outcome.",
                &["action", "outcome"],
            )?,
            start_lateness: Histogram::with_opts(spread(
                "tenure_periodicjob_start_lateness_seconds",
                "From a slot to the first attempt of its run.",
                LATENESS_BUCKETS,
            ))?,
            run_duration: HistogramVec::new(
                spread(
                    "tenure_periodicjob_run_duration_seconds",
                    "From the first attempt of a run to its end.",
                    RUN_BUCKETS,
                ),
                &["action"],
            )?,
            synced: IntGauge::new(
                "tenure_periodicjobs_synced",
                "1 once this replica has listed the PeriodicJobs in its scope, which it has to before it leads; else 0.",
            )?,
            foreign_objects: IntGauge::new(
                "tenure_foreign_objects",
                "Objects in scope that belong to another installation, which this one leaves alone.",
            )?,
            regressed_objects: IntGauge::new(
                "tenure_token_regressed_objects",
                "Objects whose status names a later term than the leader's own, which it does not act on. Leader only.",
            )?,
            clock_skew: Gauge::new(
                "tenure_clock_skew_seconds",
                "By how much this replica's time of day is off the API server's, while that is too much to lead beside others; else 0.",
            )?,
            last_success: gauge(
                "tenure_periodicjob_last_success_timestamp_seconds",
                "When a run of this job last succeeded. Leader only.",
                OBJECT,
            )?,
            next_slot: gauge(
                "tenure_periodicjob_next_slot_timestamp_seconds",
                "When this job is next due. Leader only.",
                OBJECT,
            )?,
            consecutive_failures: whole(
                "tenure_periodicjob_consecutive_failures",
                "Runs of this job that have failed since one succeeded. Leader only.",
                OBJECT,
            )?,
            active_runs: whole("tenure_periodicjob_active_runs", "Runs of this job going on. Leader only.", OBJECT)?,
        };
        metrics.register_all(build)?;
        metrics.transitions.with_label_values(&[name, "acquired"]);
        Ok(metrics)
    }

    fn register_all(&self, build: IntGaugeVec) -> Result<(), prometheus::Error> {
        let registry = &self.registry;
        registry.register(Box::new(build))?;
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        registry.register(Box::new(self.leader.clone()))?;
        registry.register(Box::new(self.transitions.clone()))?;
        registry.register(Box::new(self.lease_valid.clone()))?;
        registry.register(Box::new(self.lease_renew.clone()))?;
        registry.register(Box::new(self.lease_tries_failed.clone()))?;
        registry.register(Box::new(self.slots.clone()))?;
        registry.register(Box::new(self.runs.clone()))?;
        registry.register(Box::new(self.start_lateness.clone()))?;
        registry.register(Box::new(self.run_duration.clone()))?;
        registry.register(Box::new(self.synced.clone()))?;
        registry.register(Box::new(self.foreign_objects.clone()))?;
        registry.register(Box::new(self.regressed_objects.clone()))?;
        registry.register(Box::new(self.clock_skew.clone()))?;
        registry.register(Box::new(self.last_success.clone()))?;
        registry.register(Box::new(self.next_slot.clone()))?;
        registry.register(Box::new(self.consecutive_failures.clone()))?;
        registry.register(Box::new(self.active_runs.clone()))
    }

    /// A term of the Lease `name` began.
    pub fn term_began(&self, name: &str) {
        self.leader.with_label_values(&[name]).set(1);
        self.transitions.with_label_values(&[name, "acquired"]).inc();
    }

    /// A term of the Lease `name` ended, for `reason`.
    pub fn term_ended(&self, name: &str, reason: &str) {
        self.leader.with_label_values(&[name]).set(0);
        self.lease_valid.with_label_values(&[name]).set(0.0);
        self.transitions.with_label_values(&[name, reason]).inc();
        self.forget_objects();
    }

    /// How long the leader of the Lease `name` may still act.
    pub fn lease_valid(&self, name: &str, left: Duration) {
        self.lease_valid.with_label_values(&[name]).set(left.as_secs_f64());
    }

    /// A read or a write of the Lease `name` has failed, for `reason`.
    pub fn lease_try_failed(&self, name: &str, reason: &str) {
        self.lease_tries_failed.with_label_values(&[name, reason]).inc();
    }

    /// A renewal of the Lease `name` was confirmed this long after it was sent.
    pub fn lease_renewed(&self, name: &str, took: Duration) {
        self.lease_renew.with_label_values(&[name]).observe(took.as_secs_f64());
    }

    /// `count` slots were given this disposition.
    pub fn slots_decided(&self, disposition: &str, count: u64) {
        self.slots.with_label_values(&[disposition]).inc_by(count);
    }

    /// The first attempt of a run started this long after its slot.
    pub fn run_started(&self, lateness: Duration) {
        self.start_lateness.observe(lateness.as_secs_f64());
    }

    /// A run ended.
    pub fn run_ended(&self, action: &str, outcome: &str, took: Duration) {
        self.runs.with_label_values(&[action, outcome]).inc();
        self.run_duration.with_label_values(&[action]).observe(took.as_secs_f64());
    }

    /// The gauges of one object.
    pub fn object(&self, namespace: &str, name: &str, gauges: ObjectGauges) {
        let labels = &[name, namespace];
        let set = |vec: &GaugeVec, value: Option<f64>| match value {
            Some(value) => vec.with_label_values(labels).set(value),
            // A series that was never there cannot be removed, and that is all the error says.
            None => drop(vec.remove_label_values(labels)),
        };
        set(&self.last_success, gauges.last_success);
        set(&self.next_slot, gauges.next_slot);
        self.consecutive_failures.with_label_values(labels).set(gauges.consecutive_failures);
        self.active_runs.with_label_values(labels).set(gauges.active_runs);
    }

    /// Removes the gauges of an object that is gone.
    pub fn forget_object(&self, namespace: &str, name: &str) {
        let labels = &[name, namespace];
        for vec in [&self.last_success, &self.next_slot] {
            // As above: the error says that the series was never there.
            drop(vec.remove_label_values(labels));
        }
        for vec in [&self.consecutive_failures, &self.active_runs] {
            drop(vec.remove_label_values(labels));
        }
    }

    /// What the scheduler shows of itself.
    pub fn scheduler(&self, synced: bool, foreign: usize, regressed: usize, clock_skew_seconds: f64) {
        self.synced.set(i64::from(synced));
        self.foreign_objects.set(i64::try_from(foreign).unwrap_or(i64::MAX));
        self.regressed_objects.set(i64::try_from(regressed).unwrap_or(i64::MAX));
        self.clock_skew.set(clock_skew_seconds);
    }

    /// Removes the gauges of all objects: what this replica knew of them ended with its term.
    pub fn forget_objects(&self) {
        self.last_success.reset();
        self.next_slot.reset();
        self.consecutive_failures.reset();
        self.active_runs.reset();
    }

    /// All of it in the text format, version 0.0.4.
    ///
    /// # Errors
    /// [`MetricsError::Print`] if a metric cannot be printed.
    pub fn render(&self) -> Result<String, MetricsError> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).map_err(MetricsError::Print)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the contract names; `process_*` is the collector's business, and its values change.
    fn ours(metrics: &Metrics) -> String {
        let text = metrics.render().expect("the registry prints");
        text.lines().filter(|line| !line.contains("process_")).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_metrics_of_a_leader_follow_the_contract() {
        let metrics = Metrics::new("tenure").expect("the metrics register");
        metrics.term_began("tenure");
        metrics.lease_valid("tenure", Duration::from_millis(11_250));
        metrics.lease_renewed("tenure", Duration::from_millis(4));
        metrics.slots_decided("Ran", 3);
        metrics.slots_decided("Coalesced", 2);
        metrics.run_started(Duration::from_millis(3));
        metrics.run_ended("http", "Succeeded", Duration::from_millis(20));
        metrics.scheduler(true, 1, 2, -3_600.5);
        let gauges = ObjectGauges {
            last_success: Some(1_700_000_000.25),
            next_slot: Some(1_700_000_060.0),
            consecutive_failures: 0,
            active_runs: 1,
        };
        metrics.object("default", "heartbeat", gauges);
        insta::assert_snapshot!(ours(&metrics));
    }

    #[test]
    fn no_object_is_left_in_the_metrics_when_the_term_has_ended() {
        let metrics = Metrics::new("tenure").expect("the metrics register");
        metrics.term_began("tenure");
        metrics.object("default", "one", ObjectGauges { last_success: Some(1.0), ..Default::default() });
        metrics.object("default", "two", ObjectGauges { next_slot: Some(1.0), ..Default::default() });
        metrics.forget_object("default", "one");
        let text = ours(&metrics);
        assert!(!text.contains("periodicjob=\"one\"") && text.contains("periodicjob=\"two\""), "{text}");
        metrics.term_ended("tenure", "expired");
        let text = ours(&metrics);
        assert!(!text.contains("periodicjob=\""), "{text}");
        assert!(text.contains("leader_election_master_status{name=\"tenure\"} 0"), "{text}");
        assert!(text.contains("tenure_leader_transitions_total{name=\"tenure\",reason=\"expired\"} 1"), "{text}");
    }

    #[test]
    fn no_label_is_one_that_the_scrape_sets() {
        let metrics = Metrics::new("tenure").expect("the metrics register");
        metrics.object("default", "heartbeat", ObjectGauges { last_success: Some(1.0), ..Default::default() });
        let text = metrics.render().expect("the registry prints");
        for label in ["job", "namespace", "pod", "instance"] {
            assert!(!text.contains(&format!("{{{label}=")) && !text.contains(&format!(",{label}=")), "{label}\n{text}");
        }
    }
}
