//! A service that embeds Tenure: it names every type it holds, so that this stops compiling when one of them goes away.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use tenure::{
    Elector, Leadership, PeriodicTimer, Released, Standing, Term, TermEnded,
    backoff::Backoff,
    election::{ConfigError, ElectorReport},
};

/// Work that may be done by one replica at a time.
#[derive(Debug)]
pub struct Service {
    elector: Elector,
    leadership: Leadership,
    retry: Backoff,
}

impl Service {
    /// Contends for the Lease that `lease` names.
    ///
    /// # Errors
    /// Timings that contradict each other.
    pub fn start(lease: &Lease, config: tenure::kube::Config) -> Result<Self, ConfigError> {
        let name = lease.metadata.name.as_deref().unwrap_or("as-library");
        let elector = Elector::builder(name)
            .lease_duration(Duration::from_secs(15))
            .renew_deadline(Duration::from_secs(10))
            .retry_period(Duration::from_secs(2))
            .start(config)?;
        let leadership = elector.leadership();
        Ok(Self { elector, leadership, retry: Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(60) } })
    }

    /// Works once a minute, until asked to stop.
    pub async fn work(&self) {
        let mut timer = PeriodicTimer::every(Duration::from_secs(60), &self.leadership);
        while let Some(tick) = timer.tick().await {
            if self.once(&tick.term).await.is_err() {
                println!("{}: the term ended", self.describe());
            }
        }
    }

    /// What a report may show.
    pub fn report(&self) -> Option<String> {
        let report: ElectorReport = self.elector.report().borrow().clone();
        report.holder
    }

    /// Hands over.
    pub async fn stop(&self) -> Released {
        self.elector.release(Duration::from_secs(20)).await
    }

    async fn once(&self, term: &Term) -> Result<Duration, TermEnded> {
        term.run(async { self.retry.bound(1) }).await
    }

    fn describe(&self) -> String {
        match &*self.leadership.watch().borrow() {
            Standing::Leading(term) => format!("leading with token {}", term.token()),
            Standing::Standby => "standby".to_owned(),
            Standing::Stopped => "stopped".to_owned(),
        }
    }
}
