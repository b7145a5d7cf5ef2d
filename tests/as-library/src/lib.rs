//! A service that embeds Tenure: it names every type it holds, so that this stops compiling when one of them goes away.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use k8s_openapi::{api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::OwnerReference};
use tenure::{
    Elector, FirstTick, Leadership, PeriodicTimer, Released, Standing, Term, TermEnded, Tick,
    backoff::Backoff,
    election::{
        ConfigError, ElectorObserver, ElectorReport, GatedWork, Health, Leader, Lost, StopSignal, TryFailure, Unhealthy,
    },
};

/// Work in hand may go on for this long when the service is asked to let others lead.
const DRAIN: Duration = Duration::from_secs(20);

/// Work that may be done by one replica at a time.
#[derive(Debug)]
pub struct Service {
    elector: Elector,
    leadership: Leadership,
    health: Health,
    news: Arc<News>,
    retry: Backoff,
}

/// What the service shows of its election.
#[derive(Debug, Default)]
pub struct News {
    terms: AtomicU32,
    failures: AtomicU32,
}

impl ElectorObserver for News {
    fn term_ended(&self, lost: Lost) {
        println!("no longer leading: {}", lost.reason());
        self.terms.fetch_add(1, Ordering::Relaxed);
    }

    fn try_failed(&self, why: TryFailure) {
        println!("the Lease could not be reached: {}", why.reason());
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    fn leader_changed(&self, leader: Option<&Leader>) {
        println!("the leader is {}", leader.map_or("nobody", |leader| &leader.identity));
    }
}

impl Service {
    /// Contends for the Lease that `lease` names, and which is deleted with `owner`.
    ///
    /// # Errors
    /// Timings that contradict each other.
    pub fn start(lease: &Lease, owner: OwnerReference, config: tenure::kube::Config) -> Result<Self, ConfigError> {
        let name = lease.metadata.name.as_deref().unwrap_or("as-library");
        let news = Arc::new(News::default());
        let elector = Elector::builder(name)
            .lease_duration(Duration::from_secs(15))
            .renew_deadline(Duration::from_secs(10))
            .retry_period(Duration::from_secs(2))
            .labels([("app.kubernetes.io/name", "as-library")])
            .annotations([("example.com/page", "night")])
            .owner(owner)
            .observer(news.clone())
            .own_thread()
            .start(config)?;
        let (leadership, health) = (elector.leadership(), elector.health());
        let retry = Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(60) };
        Ok(Self { elector, leadership, health, news, retry })
    }

    /// Works once a minute, until asked to stop.
    pub async fn work(&self) {
        let mut timer = PeriodicTimer::every(Duration::from_secs(60), &self.leadership).first_tick(FirstTick::OnGrid);
        while let Some(tick) = timer.tick().await {
            if self.once(tick).await.is_err() {
                println!("{}: the term ended", self.describe());
                timer.reset();
            }
        }
    }

    /// Computes in every term, and is waited for when the term is handed over.
    pub async fn compute(&self) {
        let compute = async |term: Term, stop: StopSignal| {
            let steps = move |work: &GatedWork| {
                while !stop.is_asked() {
                    work.check()?;
                }
                Ok::<(), TermEnded>(())
            };
            if let Err(ended) = term.spawn_blocking(steps).await {
                println!("{ended}");
            }
        };
        self.leadership.while_leading_gracefully(compute).await;
    }

    /// Sends what a term has to tell, from a task that the caller spawns.
    ///
    /// # Errors
    /// The term is over.
    pub fn send(term: &Term) -> Result<impl Future<Output = Result<u64, TermEnded>> + Send + 'static, TermEnded> {
        let (work, token): (GatedWork, u64) = (term.begin()?, term.token());
        Ok(work.run(async move { token }))
    }

    /// Lets others lead while this replica is looked after.
    pub async fn maintain<F: Future>(&self, maintenance: F) -> F::Output {
        self.elector.stand_aside(DRAIN);
        let output = maintenance.await;
        self.elector.contend();
        output
    }

    /// Whether a restart would help.
    ///
    /// # Errors
    /// It would.
    pub fn alive(&self) -> Result<(), Unhealthy> {
        self.health.check(Duration::from_secs(5))
    }

    /// What a report may show.
    pub fn report(&self) -> Option<String> {
        let report: ElectorReport = self.elector.report().borrow().clone();
        println!("{} terms, {} failed tries", self.news.terms.load(Ordering::Relaxed), self.news.failures.load(Ordering::Relaxed));
        report.holder
    }

    /// Hands over.
    pub async fn stop(&self) -> Released {
        self.elector.release(DRAIN).await
    }

    async fn once(&self, tick: Tick) -> Result<Duration, TermEnded> {
        tick.run(|_term| async { self.retry.bound(1) }).await
    }

    fn describe(&self) -> String {
        match &*self.leadership.watch().borrow() {
            Standing::Leading(term) => format!("leading with token {}", term.token()),
            Standing::Standby => "standby".to_owned(),
            Standing::Stopped => "stopped".to_owned(),
            other => format!("{other:?}"),
        }
    }
}
