//! The loop around the machine: sends what it decides, tells it what came back, and publishes the standing.
//!
//! The loop never ends but by shutdown. A request goes on when its try has run out of time, for a late answer still
//! counts; it is given up after one lease duration, when it can no longer help.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, api::PostParams, core::Status};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::{
    super::{
        admission::{Admission, Aside},
        guard::{Office, Term},
        leadership::{Herald, Standing},
        machine::{Action, Contention, Event, Lost, Machine, ReadOutcome, Tenure, WriteOutcome},
        metadata::LeaseMetadata,
        observer::{Told, TryFailure},
        place::Place,
        record::{FIELD_MANAGER, Record},
        timing::Timing,
        watchdog::Post,
    },
    ElectorReport, Released,
};
use crate::{
    apiserver::ApiServer,
    clock::{self, BootTime, SharedClock},
    explain::explain_answer,
};

/// The release has at least this long to be settled after the work has ended, or after it was forbidden.
const SETTLE_MAX: Duration = Duration::from_secs(2);

/// The loop takes a turn at least this often, so that a stuck one can be told from an idle one.
pub(in super::super) const TURN_MAX: Duration = Duration::from_secs(5);

pub(super) struct Loop {
    pub(super) machine: Machine,
    pub(super) lease: String,
    pub(super) way: ApiServer,
    /// How many requests have not been answered yet.
    pub(super) unanswered: usize,
    pub(super) leases: Api<Lease>,
    pub(super) name: String,
    pub(super) timing: Timing,
    pub(super) clock: SharedClock,
    pub(super) observer: Told,
    pub(super) metadata: LeaseMetadata,
    pub(super) admission: Admission,
    pub(super) office: Option<Arc<Office>>,
    /// The newest term, in office or not.
    pub(super) last_office: Option<Arc<Office>>,
    /// Whether the end of the work of the term in office is already being waited for.
    pub(super) drain_awaited: bool,
    pub(super) post: Arc<Post>,
    /// Given up when the work of the last term has ended.
    pub(super) place: Option<Place>,
    /// Whether it has been said that the Lease shows a longer duration than this replica's own.
    pub(super) longer_lease_told: bool,
    pub(super) watch_anew: Arc<Notify>,
    pub(super) standing: Herald,
    pub(super) report: watch::Sender<ElectorReport>,
    /// Bounded: the machine starts at most one request per try, a try takes at least
    /// [`super::timing::TRY_DEADLINE_MIN`], and each is given up after one lease duration.
    pub(super) requests: FuturesUnordered<BoxFuture<'static, News>>,
}

/// What the elector's handle asks of the loop: until when work in hand may end, before others may lead for a while, and
/// before this replica leaves the election.
pub(super) struct Orders {
    pub(super) aside: watch::Receiver<Aside>,
    pub(super) release: watch::Receiver<Option<BootTime>>,
}

/// What one of the loop's own futures brings.
pub(super) enum News {
    Answer { event: Box<Event>, took: Duration, error: Option<Failure> },
    OfficeEnded(Arc<Office>),
    WorkEnded,
    Drained(Arc<Office>),
}

enum Turn {
    News(News),
    Watched(Event),
    Aside(Aside),
    Release,
    DrainOver,
    GiveUp,
    Tick,
}

impl Loop {
    pub(super) async fn run(
        mut self,
        mut watched: mpsc::Receiver<Event>,
        orders: Orders,
        done: oneshot::Sender<Released>,
    ) {
        let Orders { mut aside, mut release } = orders;
        let mut retired = self.step(Event::Tick);
        let mut drain_until: Option<BootTime> = None;
        let mut aside_drain_until: Option<BootTime> = None;
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
                Ok(()) = aside.changed() => Turn::Aside(*aside.borrow_and_update()),
                () = until(&self.clock, give_up_at) => Turn::GiveUp,
                () = until(&self.clock, drain_until.into_iter().chain(aside_drain_until).min()) => Turn::DrainOver,
                () = self.clock.sleep_until(wake) => Turn::Tick,
            };
            let event = match turn {
                Turn::News(news) => {
                    // Its rights were taken away, as an uninstallation does: what is refused now is refused later, too. In an
                    // outage it goes on trying, for a release that comes late still helps.
                    if matches!(&news, News::Answer { error: Some(Failure { forbidden: true, .. }), .. })
                        && self.office.is_none()
                    {
                        give_up_at = give_up_at.map(|at| at.min(self.clock.boot() + self.settle_max()));
                    }
                    self.hear(news)
                }
                Turn::Watched(event) => Some(event),
                Turn::Aside(until) => {
                    aside_drain_until = until;
                    Some(Event::Contend(if until.is_some() { Contention::StandAside } else { Contention::Contend }))
                }
                Turn::Release => {
                    let deadline = release.borrow_and_update().unwrap_or_default();
                    drain_until = Some(deadline);
                    give_up_at = Some(deadline.max(self.clock.boot()) + self.settle_max());
                    Some(Event::Stop)
                }
                Turn::DrainOver => {
                    let now = self.clock.boot();
                    drain_until = drain_until.filter(|at| *at > now);
                    aside_drain_until = aside_drain_until.filter(|at| *at > now);
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
                    tracing::debug!(lease = %self.lease, "A renewal is overdue: the watch of the Lease is opened again");
                    // It may be half open, and so may be what else goes to the same API server.
                    self.way.renew_connections();
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
        let office = Office::open(
            self.lease.clone(),
            token,
            nonce,
            self.clock.clone(),
            self.admission.clone(),
            (valid_until, lease_end),
        );
        self.post.put(Some(office.clone()));
        self.office = Some(office.clone());
        self.last_office = Some(office.clone());
        self.drain_awaited = false;
        tracing::info!(lease = %self.lease, token, "Took office");
        self.observer.tell(|observer| observer.term_began(token));
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
        // Before anything else is written: what the Lease shows of this place from now on was not left by a death.
        if let Some(place) = &mut self.place {
            if let Err(error) = place.leave_office() {
                tracing::warn!(lease = %self.lease, %error, "The place of this process keeps the name of a term that ended");
            }
            self.machine.move_to(Some(place.name().to_owned()));
        }
        tracing::info!(lease = %self.lease, reason = lost.reason(), "Left office");
        self.observer.tell(|observer| observer.term_ended(lost));
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
                self.unanswered -= 1;
                if error.is_some() {
                    // The same connection leads to the API server that has just failed; a new one perhaps to another.
                    self.way.renew_connections();
                }
                if matches!(*event, Event::Answered { outcome: WriteOutcome::Stored(_), .. }) {
                    self.observer.tell(|observer| observer.write_confirmed(took));
                }
                if let Some(why) = failure_of(&event, error.as_ref()) {
                    self.observer.tell(|observer| observer.try_failed(why));
                }
                self.note_error(error);
                Some(*event)
            }
        }
    }

    /// Logs the change between reachable and not, once each.
    fn note_error(&self, failure: Option<Failure>) {
        let identified = failure.as_ref().map_or(Some(true), |failure| failure.identified);
        let error = failure.map(|failure| failure.message);
        let (known, unauthorized_since) = {
            let report = self.report.borrow();
            (report.last_error.clone(), report.unauthorized_since)
        };
        match (&known, &error) {
            (None, Some(error)) => {
                tracing::warn!(lease = %self.lease, %error, "The API server does not serve the Lease");
            }
            (Some(_), None) => {
                tracing::info!(lease = %self.lease, "The API server serves the Lease again");
            }
            _ => {}
        }
        // No answer says nothing of the credentials.
        let unauthorized = match identified {
            Some(true) => None,
            Some(false) => unauthorized_since.or_else(|| Some(self.clock.boot())),
            None => unauthorized_since,
        };
        if known != error || unauthorized != unauthorized_since || (error.is_none() && !self.report.borrow().served) {
            self.report.send_modify(|report| {
                report.served |= error.is_none();
                report.unauthorized_since = unauthorized;
                report.last_error = error;
            });
        }
    }

    fn tell(&mut self, now: BootTime) {
        if let Some(shown) = self.machine.longer_lease().filter(|_| !self.longer_lease_told) {
            self.longer_lease_told = true;
            tracing::warn!(
                lease = %self.lease, lease_seconds = shown.as_secs(), own_seconds = self.timing.lease().as_secs(),
                "The Lease shows a longer duration than this replica's: do not delete it before the longer one has passed"
            );
        }
        self.observer.shown(self.machine.holder());
        let holder = self.machine.holder().map(|holder| holder.as_str().to_owned());
        let valid_until = self.office.as_ref().map(|office| office.valid_until());
        self.report.send_modify(|report| {
            report.holder = holder;
            report.valid_until = valid_until;
            report.last_turn = now;
        });
    }

    fn read(&mut self, id: u64) {
        let (leases, name) = (self.leases.clone(), self.name.clone());
        self.request(async move { leases.get_opt(&name).await }, move |answer| match answer {
            Ok(Some(lease)) => match Record::read(lease) {
                Ok(record) => (Event::Read { id, outcome: ReadOutcome::Found(record) }, None),
                Err(error) => {
                    let outcome = ReadOutcome::Failed { retry_after: None };
                    (Event::Read { id, outcome }, Some(Failure::other(TryFailure::Unreadable, &error)))
                }
            },
            Ok(None) => (Event::Read { id, outcome: ReadOutcome::Absent }, None),
            Err(failure) => {
                let outcome = ReadOutcome::Failed { retry_after: failure.retry_after };
                (Event::Read { id, outcome }, Some(failure))
            }
        });
    }

    fn write(&mut self, write: u64, mut lease: Lease, verb: WriteVerb, sent: BootTime) {
        // A renewal leaves them as they are: they may have been edited since the term began.
        if self.office.is_none() {
            self.metadata.put_on(&mut lease);
        }
        tracing::debug!(lease = %self.lease, write, ?verb, ?sent, "Writing the Lease");
        let (leases, name) = (self.leases.clone(), self.name.clone());
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
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
                    Err(error) => (WriteOutcome::Unclear, Some(Failure::other(TryFailure::Unreadable, &error))),
                },
                Ok(Err(Refusal::Conflict)) => (WriteOutcome::Conflict, None),
                Ok(Err(Refusal::Refused(failure))) => {
                    (WriteOutcome::Refused { retry_after: failure.retry_after }, Some(failure))
                }
                Err(failure) => (WriteOutcome::Unclear, Some(failure)),
            };
            (Event::Answered { write, outcome }, error)
        });
    }

    /// Sends a request of the loop, and gives it up after one lease duration.
    fn request<T: Send + 'static>(
        &mut self,
        request: impl Future<Output = Result<T, kube::Error>> + Send + 'static,
        interpret: impl FnOnce(Result<T, Failure>) -> (Event, Option<Failure>) + Send + 'static,
    ) {
        let (clock, way, patience) = (self.clock.clone(), self.way.clone(), self.timing.lease());
        if self.unanswered > 0 {
            // The one before is slow, and goes on. Its connection, or its API server, may be dead.
            self.way.renew_connections();
        }
        self.unanswered += 1;
        let answering = async move {
            let sent = clock.boot();
            let answer = match clock::timeout(&*clock, patience, request).await {
                Ok(answer) => answer.map_err(|error| Failure::of(&error)),
                Err(elapsed) => Err(Failure::other(TryFailure::Unanswered, &elapsed)),
            };
            let (mut event, error) = interpret(answer);
            leave_alone(&mut event, way.not_before().saturating_since(clock.boot()));
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
    Refused(Failure),
}

/// Why the API server does not serve the Lease, and whether it is for lack of a right.
pub(super) struct Failure {
    message: String,
    forbidden: bool,
    /// The pause that the server asks for, as `details.retryAfterSeconds` of its status says.
    retry_after: Option<Duration>,
    /// Whether the API server knew who asked, if it has answered.
    identified: Option<bool>,
    why: TryFailure,
}

impl Failure {
    fn of(error: &kube::Error) -> Self {
        let status = if let kube::Error::Api(status) = error { Some(status) } else { None };
        Self {
            message: explain_answer(error),
            forbidden: status.is_some_and(|status| status.code == 403),
            retry_after: status.and_then(|status| retry_after(status)),
            identified: status.map(|status| status.code != 401),
            why: TryFailure::of(error),
        }
    }

    fn other(why: TryFailure, error: &dyn std::error::Error) -> Self {
        Self { message: error.to_string(), forbidden: false, retry_after: None, identified: None, why }
    }
}

/// Why a try has failed, if it has. A conflict is no error of the API server's, but nothing was stored either.
fn failure_of(event: &Event, error: Option<&Failure>) -> Option<TryFailure> {
    let conflict = matches!(event, Event::Answered { outcome: WriteOutcome::Conflict, .. });
    error.map(|failure| failure.why).or(conflict.then_some(TryFailure::Conflict))
}

/// A status from 400 to 499 means that nothing was stored, except 408, which only says that time ran out. Everything else
/// may have been stored.
fn refusal(error: kube::Error) -> Result<Refusal, kube::Error> {
    match error {
        kube::Error::Api(status) if status.code == 409 => Ok(Refusal::Conflict),
        kube::Error::Api(status) if (400..500).contains(&status.code) && status.code != 408 => {
            let why = TryFailure::of(&kube::Error::Api(status.clone()));
            Ok(Refusal::Refused(Failure {
                message: status.message.clone(),
                forbidden: status.code == 403,
                retry_after: retry_after(&status),
                identified: Some(status.code != 401),
                why,
            }))
        }
        other => Err(other),
    }
}

/// A try that failed is followed by the pause that any answer of the API server asked for in its header.
fn leave_alone(event: &mut Event, asked: Duration) {
    let (Event::Read { outcome: ReadOutcome::Failed { retry_after }, .. }
    | Event::Answered { outcome: WriteOutcome::Refused { retry_after }, .. }) = event
    else {
        return;
    };
    *retry_after = (*retry_after).max(Some(asked).filter(|asked| !asked.is_zero()));
}

fn retry_after(status: &Status) -> Option<Duration> {
    let seconds = status.details.as_ref()?.retry_after_seconds;
    Some(Duration::from_secs(u64::from(seconds))).filter(|pause| !pause.is_zero())
}

async fn until(clock: &SharedClock, at: Option<BootTime>) {
    match at {
        Some(at) => clock.sleep_until(at).await,
        None => std::future::pending().await,
    }
}
