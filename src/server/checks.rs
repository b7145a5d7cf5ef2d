//! Named health checks, and how their answers read.
//!
//! The paths, the query parameters and the text are those of the Kubernetes API server: `/livez`, `/readyz`, `/healthz`,
//! `?verbose`, `?exclude=NAME`, `/readyz/NAME`. A failed check answers 503.
//!
//! Liveness fails only for what a restart repairs; readiness never means leadership: a standby is ready.

use std::{fmt, sync::Arc};

/// A named question with a yes or a reason for no. It reads state that is already there: it never waits.
#[derive(Clone)]
pub struct Check {
    name: &'static str,
    probe: Probe,
    ask: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
}

/// What a check belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// A restart repairs it. Such a check counts for readiness too.
    Live,
    /// The replica can do its part, as leader or as standby.
    Ready,
}

/// All checks of a replica.
#[derive(Debug, Clone, Default)]
pub struct Checks(Vec<Check>);

/// The answer of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Whether every check that was asked said yes.
    pub passed: bool,
    /// One line per check, as the API server prints them with `?verbose`.
    pub verbose: String,
}

impl Check {
    /// A check called `name`.
    pub fn new(name: &'static str, probe: Probe, ask: impl Fn() -> Result<(), String> + Send + Sync + 'static) -> Self {
        Self { name, probe, ask: Arc::new(ask) }
    }
}

impl fmt::Debug for Check {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Check").field("name", &self.name).field("probe", &self.probe).finish_non_exhaustive()
    }
}

impl Checks {
    /// These checks, asked in this order.
    pub fn new(checks: Vec<Check>) -> Self {
        Self(checks)
    }

    /// Asks every check that counts for `probe`, but for those in `exclude`.
    pub fn report(&self, probe: Probe, title: &str, exclude: &[String]) -> Report {
        let mut report = Report { passed: true, verbose: String::new() };
        for check in self.of(probe) {
            if exclude.iter().any(|name| name == check.name) {
                report.line(format_args!("[+]{} excluded: ok", check.name));
                continue;
            }
            match (check.ask)() {
                Ok(()) => report.line(format_args!("[+]{} ok", check.name)),
                Err(reason) => {
                    report.passed = false;
                    report.line(format_args!("[-]{} failed: {reason}", check.name));
                }
            }
        }
        for name in exclude.iter().filter(|name| self.of(probe).all(|check| check.name != **name)) {
            report.line(format_args!("warn: some health checks cannot be excluded: no matches for {name:?}"));
        }
        let verdict = if report.passed { "passed" } else { "failed" };
        report.line(format_args!("{title} check {verdict}"));
        report
    }

    /// Asks one check of `probe` by its name; `None` if there is no such check.
    pub fn one(&self, probe: Probe, name: &str) -> Option<Result<(), String>> {
        self.of(probe).find(|check| check.name == name).map(|check| (check.ask)())
    }

    /// The names of the checks that count for `probe`.
    pub fn names(&self, probe: Probe) -> impl Iterator<Item = &'static str> {
        self.of(probe).map(|check| check.name)
    }

    fn of(&self, probe: Probe) -> impl Iterator<Item = &Check> {
        self.0.iter().filter(move |check| probe == Probe::Ready || check.probe == Probe::Live)
    }
}

impl Report {
    fn line(&mut self, line: fmt::Arguments<'_>) {
        self.verbose.push_str(&line.to_string());
        self.verbose.push('\n');
    }
}
