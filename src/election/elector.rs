//! The loop around the machine: sends what it decides, tells it what came back, and publishes the standing.
//!
//! The loop never ends but by shutdown. A request goes on when its try has run out of time, for a late answer still
//! counts; it is given up after one lease duration, when it can no longer help.

use std::{io, sync::Arc, time::Duration};

use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, Shared},
    stream::FuturesUnordered,
};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, api::PostParams};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{
    builder::{ElectorBuilder, Fresh},
    guard::{Office, Term},
    leadership::{Leadership, Standing},
    lease_watch,
    machine::{Action, Contention, Event, Lost, Machine, ReadOutcome, Tenure, WriteOutcome},
    observer::ElectorObserver,
    record::{Identity, Record},
    timing::Timing,
    watchdog::{Post, WatchdogDriver},
};
use crate::{
    apiserver::ApiServer,
    clock::{self, BootTime, SharedClock},
    entropy::SharedEntropy,
    explain::explain_answer,
    tasks::Tasks,
};

/// Takes part in the election for one Lease until it is released or dropped. Several fit in one process.
///
/// Dropping it ends the term at once and releases the Lease in the background; [`Elector::release`] waits for both.
#[derive(Debug)]
#[must_use = "dropping it leaves the election"]
pub struct Elector {
    leadership: Leadership,
    report: watch::Receiver<ElectorReport>,
    contention: watch::Sender<Contention>,
    release: watch::Sender<Option<BootTime>>,
    stopping: CancellationToken,
    ended: Shared<BoxFuture<'static, Released>>,
    clock: SharedClock,
}

/// How a release went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Released {
    /// The Lease does not show this replica: another may lead at once.
    Free,
    /// The API server did not confirm it in time: others wait for the expiry.
    Unsettled,
}

/// What there is to tell about an elector.
#[derive(Debug, Clone)]
pub struct ElectorReport {
    /// The Lease, as `namespace/name`.
    pub lease: String,
    /// The holder that the Lease showed last.
    pub holder: Option<String>,
    /// Until when the term in office is valid, if this replica leads.
    pub valid_until: Option<BootTime>,
    /// Since when this replica is leader or standby.
    pub since: BootTime,
    /// Why the last term of this replica ended.
    pub last_lost: Option<Lost>,
    /// Whether the API server has answered about the Lease at least once without an error.
    pub served: bool,
    /// What the API server's last answer was, if it was an error, or why there was none.
    pub last_error: Option<String>,
    /// When the elector's loop last took a turn: it is stuck if that is long ago.
    pub last_turn: BootTime,
}

/// The release has at least this long to be settled after the work has ended.
const SETTLE_MAX: Duration = Duration::from_secs(2);

/// The loop takes a turn at least this often, so that a stuck one can be told from an idle one.
const TURN_MAX: Duration = Duration::from_secs(5);

pub(super) struct Parts {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) timing: Timing,
    pub(super) identity: Identity,
    pub(super) api: ApiServer,
    pub(super) clock: SharedClock,
    pub(super) entropy: SharedEntropy,
    pub(super) tasks: Tasks,
    pub(super) observer: Arc<dyn ElectorObserver>,
    pub(super) fresh: Fresh,
}

impl Elector {
    /// Settings for the election on the Lease `name`.
    pub fn builder(name: &str) -> ElectorBuilder {
        ElectorBuilder::new(name)
    }

    /// A view of this replica's standing, for everything that may act only while leading.
    pub fn leadership(&self) -> Leadership {
        self.leadership.clone()
    }

    /// What there is to tell about the election.
    pub fn report(&self) -> watch::Receiver<ElectorReport> {
        self.report.clone()
    }

    /// Says whether this replica may lead. A leader that is to stand aside hands over once its work has ended.
    pub fn contend(&self, contention: Contention) {
        self.contention.send_replace(contention);
    }

    /// Leaves the election: no new ticks, waits at most `drain` for live work, ends the term, releases the Lease and settles
    /// what is open. Cancel-safe: the election is left all the same.
    pub async fn release(&self, drain: Duration) -> Released {
        let deadline = self.clock.boot() + drain;
        self.release.send_if_modified(|current| {
            let sooner = current.is_none_or(|current| deadline < current);
            if sooner {
                *current = Some(deadline);
            }
            sooner
        });
        self.stopping.cancel();
        self.ended.clone().await
    }

    /// Waits for `signal`, then leaves the election as [`Elector::release`] does, with 27 s for live work: what remains of
    /// Kubernetes' usual grace period of 30 s.
    pub async fn release_on<S: Future>(&self, signal: S) -> Released {
        signal.await;
        self.release(Duration::from_secs(27)).await
    }
}

impl Drop for Elector {
    fn drop(&mut self) {
        self.release.send_if_modified(|deadline| deadline.is_none() && deadline.replace(BootTime::default()).is_none());
        self.stopping.cancel();
    }
}

pub(super) fn start(parts: Parts, watchdog: &dyn WatchdogDriver) -> io::Result<Elector> {
    let Parts { namespace, name, timing, identity, api, clock, entropy, tasks, observer, fresh } = parts;
    let post = Arc::new(Post::default());
    watchdog.start(post.watchdog(clock.clone()))?;

    let stopping = CancellationToken::new();
    let (standing, standing_view) = watch::channel(Standing::Standby);
    let (contention, contention_view) = watch::channel(Contention::Contend);
    let (release, release_view) = watch::channel(None);
    let (report, report_view) = watch::channel(ElectorReport {
        lease: format!("{namespace}/{name}"),
        holder: None,
        valid_until: None,
        since: clock.boot(),
        last_lost: None,
        served: false,
        last_error: None,
        last_turn: clock.boot(),
    });
    let (done, ended) = oneshot::channel();
    let (events, watched) = mpsc::channel(lease_watch::EVENTS_MAX);
    let leases: Api<Lease> = Api::namespaced(api.client(), &namespace);
    let watch_anew = Arc::new(Notify::new());
    let watching = lease_watch::watch(leases.clone(), name.as_str().into(), clock.clone(), watch_anew.clone(), events);
    tasks.spawn("lease-watch", watching).detach();

    let nonces = Box::new(move || entropy.nonce());
    let asking_clock = clock.clone();
    let looping = async move {
        let patience = timing.calm_deadline();
        let is_fresh = clock::timeout(&*asking_clock, patience, fresh(api)).await.unwrap_or(false);
        let fresh_until = is_fresh.then(|| asking_clock.boot() + patience);
        let machine = Machine::new((&namespace, &name), timing, identity, nonces, fresh_until);
        let lease = format!("{namespace}/{name}");
        let run = Loop {
            machine,
            lease,
            leases,
            name,
            timing,
            clock: asking_clock,
            observer,
            office: None,
            last_office: None,
            drain_awaited: false,
            post,
            watch_anew,
            standing,
            report,
            requests: FuturesUnordered::new(),
        };
        run.run(watched, contention_view, release_view, done).await;
    };
    tasks.spawn("elector", looping).detach();
    Ok(Elector {
        leadership: Leadership::new(standing_view, stopping.clone()),
        report: report_view,
        contention,
        release,
        stopping,
        ended: ended.map(|outcome| outcome.unwrap_or(Released::Unsettled)).boxed().shared(),
        clock,
    })
}

struct Loop {
    machine: Machine,
    lease: String,
    leases: Api<Lease>,
    name: String,
    timing: Timing,
    clock: SharedClock,
    observer: Arc<dyn ElectorObserver>,
    office: Option<Arc<Office>>,
    /// The newest term, in office or not.
    last_office: Option<Arc<Office>>,
    /// Whether the end of the work of the term in office is already being waited for.
    drain_awaited: bool,
    post: Arc<Post>,
    watch_anew: Arc<Notify>,
    standing: watch::Sender<Standing>,
    report: watch::Sender<ElectorReport>,
    /// Bounded: the machine starts at most one request per try, a try takes at least
    /// [`super::timing::TRY_DEADLINE_MIN`], and each is given up after one lease duration.
    requests: FuturesUnordered<BoxFuture<'static, News>>,
}

/// What one of the loop's own futures brings.
enum News {
    Answer { event: Box<Event>, took: Duration, error: Option<String> },
    OfficeEnded(Arc<Office>),
    WorkEnded,
    Drained(Arc<Office>),
}

enum Turn {
    News(News),
    Watched(Event),
    Contend(Contention),
    Release,
    DrainOver,
    GiveUp,
    Tick,
}

impl Loop {
    async fn run(
        mut self,
        mut watched: mpsc::Receiver<Event>,
        mut contention: watch::Receiver<Contention>,
        mut release: watch::Receiver<Option<BootTime>>,
        done: oneshot::Sender<Released>,
    ) {
        let mut retired = self.step(Event::Tick);
        let mut drain_until: Option<BootTime> = None;
        let mut give_up_at: Option<BootTime> = None;
        let mut release_closed = false;
        while !retired {
            let now = self.clock.boot();
            let wake = self.machine.next_wake().map_or(now + TURN_MAX, |at| at.min(now + TURN_MAX));
            let turn = tokio::select! {
                biased;
                // Asked for even when the elector is gone: what it said last may not have been seen yet.
                changed = release.changed(), if !release_closed => {
                    if changed.is_err() {
                        release_closed = true;
                        continue;
                    }
                    Turn::Release
                }
                Some(news) = self.requests.next(), if !self.requests.is_empty() => Turn::News(news),
                Some(event) = watched.recv() => Turn::Watched(event),
                Ok(()) = contention.changed() => Turn::Contend(*contention.borrow_and_update()),
                () = until(&self.clock, give_up_at) => Turn::GiveUp,
                () = until(&self.clock, drain_until) => Turn::DrainOver,
                () = self.clock.sleep_until(wake) => Turn::Tick,
            };
            let event = match turn {
                Turn::News(news) => self.hear(news),
                Turn::Watched(event) => Some(event),
                Turn::Contend(contention) => Some(Event::Contend(contention)),
                Turn::Release => {
                    let deadline = release.borrow_and_update().unwrap_or_default();
                    drain_until = Some(deadline);
                    give_up_at = Some(deadline.max(self.clock.boot()) + self.settle_max());
                    Some(Event::Stop)
                }
                Turn::DrainOver => {
                    drain_until = None;
                    Some(Event::Drained)
                }
                Turn::GiveUp => break,
                Turn::Tick => Some(Event::Tick),
            };
            if let Some(event) = event {
                retired = self.step(event);
            }
        }
        self.revoke(Lost::Released);
        self.standing.send_replace(Standing::Stopped);
        let released = if retired { Released::Free } else { Released::Unsettled };
        // Nobody has to wait for the answer; but the watchdog has to stay until gated work has ended.
        if done.send(released).is_err() {
            tracing::debug!("Nobody waits for the release");
        }
        drop(self.requests);
        if let Some(office) = self.last_office {
            office.wait_until(Office::gated_work_has_ended).await;
        }
    }

    fn settle_max(&self) -> Duration {
        SETTLE_MAX.min(self.timing.calm_deadline() * 2).max(Duration::from_millis(500))
    }

    /// Lets the machine decide, and does what it says. True when there is nothing left to do.
    fn step(&mut self, event: Event) -> bool {
        let now = self.clock.boot();
        let actions = self.machine.step(event, now, self.clock.wall());
        let mut retired = false;
        for action in actions {
            match action {
                Action::Read { id } => self.read(id),
                Action::Create { write, lease } => self.write(write, *lease, WriteVerb::Create, now),
                Action::Replace { write, lease } => self.write(write, *lease, WriteVerb::Replace, now),
                Action::Lead(tenure) => self.lead(tenure),
                Action::Extend { valid_until, lease_end } => {
                    if let Some(office) = &self.office {
                        office.extend(valid_until, lease_end);
                    }
                }
                Action::Revoke(lost) => self.revoke(lost),
                Action::WatchAnew => {
                    tracing::info!(lease = %self.lease, "The watch of the Lease has missed a change: it is opened anew");
                    self.watch_anew.notify_one();
                }
                Action::Retire => retired = true,
            }
        }
        if self.machine.wants_drain()
            && !self.drain_awaited
            && let Some(office) = self.office.clone()
        {
            self.drain_awaited = true;
            let waiting = async move {
                office.wait_until(Office::is_idle).await;
                News::Drained(office)
            };
            self.requests.push(waiting.boxed());
        }
        self.tell(now);
        retired
    }

    fn lead(&mut self, tenure: Tenure) {
        let Tenure { token, nonce, valid_until, lease_end } = tenure;
        let office = Office::open(self.lease.clone(), token, nonce, self.clock.clone(), valid_until, lease_end);
        self.post.put(Some(office.clone()));
        self.office = Some(office.clone());
        self.last_office = Some(office.clone());
        self.drain_awaited = false;
        tracing::info!(lease = %self.lease, token, "Took office");
        self.observer.term_began(token);
        self.report.send_modify(|report| report.since = self.clock.boot());
        self.standing.send_replace(Standing::Leading(Term::new(office.clone())));
        let waiting = async move {
            office.ended().await;
            News::OfficeEnded(office)
        };
        self.requests.push(waiting.boxed());
    }

    fn revoke(&mut self, lost: Lost) {
        let Some(office) = self.office.take() else { return };
        office.revoke();
        tracing::info!(lease = %self.lease, reason = lost.reason(), "Left office");
        self.observer.term_ended(lost);
        self.report.send_modify(|report| {
            report.since = self.clock.boot();
            report.last_lost = Some(lost);
        });
        self.standing.send_replace(Standing::Standby);
        let waiting = async move {
            office.wait_until(Office::gated_work_has_ended).await;
            News::WorkEnded
        };
        self.requests.push(waiting.boxed());
    }

    /// What a future of the loop brought, as an event for the machine.
    fn hear(&mut self, news: News) -> Option<Event> {
        let in_office = |office: &Arc<Office>| self.office.as_ref().is_some_and(|current| Arc::ptr_eq(current, office));
        match news {
            News::OfficeEnded(office) => in_office(&office).then_some(Event::Ended),
            News::Drained(office) if in_office(&office) => {
                if self.machine.wants_drain() {
                    return Some(Event::Drained);
                }
                // It was wanted, and no longer is: should it be again, it is to be waited for anew.
                self.drain_awaited = false;
                None
            }
            News::Drained(_) => None,
            News::WorkEnded => {
                // The watchdog looks after the term until its work has ended.
                if self.office.is_none() {
                    self.post.put(None);
                }
                Some(Event::WorkEnded)
            }
            News::Answer { event, took, error } => {
                if matches!(*event, Event::Answered { outcome: WriteOutcome::Stored(_), .. }) {
                    self.observer.write_confirmed(took);
                }
                self.note_error(error);
                Some(*event)
            }
        }
    }

    /// Logs the change between reachable and not, once each.
    fn note_error(&self, error: Option<String>) {
        let known = self.report.borrow().last_error.clone();
        match (&known, &error) {
            (None, Some(error)) => {
                tracing::warn!(lease = %self.lease, %error, "The API server does not serve the Lease");
            }
            (Some(_), None) => {
                tracing::info!(lease = %self.lease, "The API server serves the Lease again");
            }
            _ => {}
        }
        if known != error || (error.is_none() && !self.report.borrow().served) {
            self.report.send_modify(|report| {
                report.served |= error.is_none();
                report.last_error = error;
            });
        }
    }

    fn tell(&self, now: BootTime) {
        let holder = self.machine.holder().map(|holder| holder.as_str().to_owned());
        let valid_until = self.office.as_ref().map(|office| office.valid_until());
        self.report.send_modify(|report| {
            report.holder = holder;
            report.valid_until = valid_until;
            report.last_turn = now;
        });
    }

    fn read(&self, id: u64) {
        let (leases, name) = (self.leases.clone(), self.name.clone());
        self.request(async move { leases.get_opt(&name).await }, move |answer| match answer {
            Ok(Some(lease)) => match Record::read(lease) {
                Ok(record) => (Event::Read { id, outcome: ReadOutcome::Found(record) }, None),
                Err(error) => (Event::Read { id, outcome: ReadOutcome::Failed }, Some(error.to_string())),
            },
            Ok(None) => (Event::Read { id, outcome: ReadOutcome::Absent }, None),
            Err(error) => (Event::Read { id, outcome: ReadOutcome::Failed }, Some(error)),
        });
    }

    fn write(&self, write: u64, lease: Lease, verb: WriteVerb, sent: BootTime) {
        tracing::debug!(lease = %self.lease, write, ?verb, ?sent, "Writing the Lease");
        let (leases, name) = (self.leases.clone(), self.name.clone());
        let params = PostParams { field_manager: Some("tenure".to_owned()), ..PostParams::default() };
        let request = async move {
            match verb {
                WriteVerb::Create => leases.create(&params, &lease).await,
                WriteVerb::Replace => leases.replace(&name, &params, &lease).await,
            }
            .map(Ok)
            .or_else(|error| refusal(error).map(Err))
        };
        self.request(request, move |answer| {
            let (outcome, error) = match answer {
                Ok(Ok(lease)) => match Record::read(lease) {
                    Ok(record) => (WriteOutcome::Stored(record), None),
                    Err(error) => (WriteOutcome::Unclear, Some(error.to_string())),
                },
                Ok(Err(Refusal::Conflict)) => (WriteOutcome::Conflict, None),
                Ok(Err(Refusal::Refused(message))) => (WriteOutcome::Refused, Some(message)),
                Err(message) => (WriteOutcome::Unclear, Some(message)),
            };
            (Event::Answered { write, outcome }, error)
        });
    }

    /// Sends a request of the loop, and gives it up after one lease duration.
    fn request<T: Send + 'static>(
        &self,
        request: impl Future<Output = Result<T, kube::Error>> + Send + 'static,
        interpret: impl FnOnce(Result<T, String>) -> (Event, Option<String>) + Send + 'static,
    ) {
        let (clock, patience) = (self.clock.clone(), self.timing.lease());
        let answering = async move {
            let sent = clock.boot();
            let answer = match clock::timeout(&*clock, patience, request).await {
                Ok(answer) => answer.map_err(|error| explain_answer(&error)),
                Err(elapsed) => Err(elapsed.to_string()),
            };
            let (event, error) = interpret(answer);
            News::Answer { event: Box::new(event), took: clock.boot() - sent, error }
        };
        self.requests.push(answering.boxed());
    }
}

#[derive(Debug, Clone, Copy)]
enum WriteVerb {
    Create,
    Replace,
}

/// An answer that says for certain that nothing was stored.
enum Refusal {
    Conflict,
    Refused(String),
}

/// A status from 400 to 499 means that nothing was stored, except 408, which only says that time ran out. Everything else
/// may have been stored.
fn refusal(error: kube::Error) -> Result<Refusal, kube::Error> {
    match error {
        kube::Error::Api(status) if status.code == 409 => Ok(Refusal::Conflict),
        kube::Error::Api(status) if (400..500).contains(&status.code) && status.code != 408 => {
            Ok(Refusal::Refused(status.message.clone()))
        }
        other => Err(other),
    }
}

async fn until(clock: &SharedClock, at: Option<BootTime>) {
    match at {
        Some(at) => clock.sleep_until(at).await,
        None => std::future::pending().await,
    }
}
