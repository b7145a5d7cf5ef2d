//! What a term may do, and until when: [`Guard`], [`Term`], and the watchdog's verdict.
//!
//! A [`Guard`] answers one question by one clock read: is this term still valid *now*? Whoever acts for the term asks it
//! as the last step before the first byte leaves. [`Term::run`] drops a future the moment the term ends. The watchdog
//! makes the end happen even if the elector's task never gets to run again.
//!
//! Not promised: computation between two questions to the guard, and an effect that is already on the wire when the
//! process is frozen. Fencing tokens ([`Term::token`]) are for those.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::admission::Admission;
use crate::clock::{BootTime, SharedClock};

/// The term is over: its validity has passed, or it was revoked. New work is refused by it, too, while the term is being
/// handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the term in office has ended, or takes no new work because it is being handed over")]
pub struct TermEnded;

/// One unbroken time in office, as long as it lasts. Clones are the same term.
#[derive(Clone)]
pub struct Term(Arc<Office>);

/// Says whether a term is still valid. Clones ask about the same term.
#[derive(Clone)]
pub struct Guard(Arc<Office>);

/// Work that a planned hand-over waits for; dropping it says that it has ended. Made by [`Term::hold`].
#[derive(Debug)]
#[must_use = "the work counts as ended when this is dropped"]
pub struct Work {
    office: Arc<Office>,
    kind: WorkKind,
}

/// What the watchdog has to do after a look at the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// Nothing; look again no later than this.
    LookAgainAt(BootTime),
    /// The term has just ended; work is still running, look again no later than this.
    Revoked(BootTime),
    /// Work of an ended term did not end: the process must.
    Abort,
}

/// A thawed process gets this long, from the watchdog's first reading past the end, to drop its futures.
pub const ABORT_GRACE: Duration = Duration::from_millis(200);

/// The watchdog looks at the clock at least this often.
pub const WATCHDOG_PERIOD: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WorkKind {
    /// A future under [`Term::run`], or what was begun by [`Term::begin`]: it must end with the term, or the process does.
    Gated,
    /// A tick or the like: a planned hand-over waits for it, nothing more.
    Held,
}

/// The state of one term, shared by the elector, its guards and the watchdog.
pub(crate) struct Office {
    lease: String,
    token: u64,
    nonce: String,
    clock: SharedClock,
    admission: Admission,
    limits: Mutex<Limits>,
    /// A copy of `limits.valid_until` for the guard, which must not wait for a lock. Zero once revoked.
    valid_until_nanos: AtomicU64,
    ended: CancellationToken,
    gated: AtomicUsize,
    held: AtomicUsize,
    work_ended: Notify,
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    valid_until: BootTime,
    /// When a successor may hold the lease: gated work that is still running by then must not outlive it.
    lease_end: BootTime,
    first_look_past_end: Option<BootTime>,
    revoked: bool,
}

impl Office {
    pub(crate) fn open(
        lease: String,
        token: u64,
        nonce: String,
        clock: SharedClock,
        admission: Admission,
        (valid_until, lease_end): (BootTime, BootTime),
    ) -> Arc<Self> {
        Arc::new(Self {
            lease,
            token,
            nonce,
            clock,
            admission,
            limits: Mutex::new(Limits { valid_until, lease_end, first_look_past_end: None, revoked: false }),
            valid_until_nanos: AtomicU64::new(valid_until.as_nanos()),
            ended: CancellationToken::new(),
            gated: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            work_ended: Notify::new(),
        })
    }

    /// Moves the end of the term later; it never moves earlier, and a term that has ended stays ended.
    pub(crate) fn extend(&self, valid_until: BootTime, lease_end: BootTime) {
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        if !limits.revoked && valid_until > limits.valid_until {
            limits.valid_until = valid_until;
            limits.lease_end = lease_end;
            limits.first_look_past_end = None;
            self.valid_until_nanos.store(valid_until.as_nanos(), Ordering::SeqCst);
        }
    }

    /// Ends the term now.
    pub(crate) fn revoke(&self) {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner).revoked = true;
        self.valid_until_nanos.store(0, Ordering::SeqCst);
        self.ended.cancel();
    }

    /// The watchdog's look at the clock: revokes at the end of validity, and says when the process has to go.
    pub(crate) fn look(&self, now: BootTime) -> Verdict {
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        if now < limits.valid_until && !limits.revoked {
            return Verdict::LookAgainAt(limits.valid_until.min(now + WATCHDOG_PERIOD));
        }
        limits.revoked = true;
        self.valid_until_nanos.store(0, Ordering::SeqCst);
        let first_look = *limits.first_look_past_end.get_or_insert(now);
        let abort_at = limits.lease_end.max(first_look + ABORT_GRACE);
        drop(limits);
        self.ended.cancel();
        if self.gated.load(Ordering::SeqCst) == 0 {
            // No work can begin any more. The elector, which ends this watch, may be long in getting to run.
            return Verdict::Revoked(now + WATCHDOG_PERIOD);
        }
        if now >= abort_at {
            return Verdict::Abort;
        }
        Verdict::Revoked(abort_at.min(now + WATCHDOG_PERIOD))
    }

    pub(crate) fn check(&self) -> Result<(), TermEnded> {
        if self.clock.boot().as_nanos() < self.valid_until_nanos.load(Ordering::SeqCst) {
            Ok(())
        } else {
            Err(TermEnded)
        }
    }

    /// Whether every future under [`Term::run`] and every held tick is gone.
    pub(crate) fn is_idle(&self) -> bool {
        self.gated.load(Ordering::SeqCst) == 0 && self.held.load(Ordering::SeqCst) == 0
    }

    /// Whether every future under [`Term::run`] is gone: what the end of a term waits for.
    pub(crate) fn gated_work_has_ended(&self) -> bool {
        self.gated.load(Ordering::SeqCst) == 0
    }

    /// Waits for work to end, once: ask again afterwards.
    pub(crate) async fn wait_until(&self, condition: impl Fn(&Self) -> bool) {
        loop {
            let changed = self.work_ended.notified();
            if condition(self) {
                return;
            }
            changed.await;
        }
    }

    /// Counts work that begins. It is refused while the term is being handed over: what waits for the end of work must not
    /// wait for ever.
    pub(super) fn enter(self: &Arc<Self>, kind: WorkKind) -> Result<Work, TermEnded> {
        let work = self.go_on(kind)?;
        // Counted first, asked second, here too: the hand-over waits for the work or has already refused it.
        if self.admission.is_closed() { Err(TermEnded) } else { Ok(work) }
    }

    /// Counts a further part of work that was admitted before.
    pub(super) fn go_on(self: &Arc<Self>, kind: WorkKind) -> Result<Work, TermEnded> {
        let work = Work { office: self.clone(), kind };
        work.counter().fetch_add(1, Ordering::SeqCst);
        // Counted first, asked second: the watchdog either sees the work or has already made the answer a no.
        self.check().map(|()| work)
    }

    /// Runs what is counted by the caller, and drops it the moment the term ends.
    async fn run<F: Future>(&self, work: F) -> Result<F::Output, TermEnded> {
        tokio::select! {
            biased;
            () = self.ended.cancelled() => Err(TermEnded),
            output = work => Ok(output),
        }
    }

    /// Waits until the term has ended.
    pub(crate) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    pub(crate) fn valid_until(&self) -> BootTime {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner).valid_until
    }
}

impl fmt::Debug for Office {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Office")
            .field("lease", &self.lease)
            .field("token", &self.token)
            .field("nonce", &self.nonce)
            .finish_non_exhaustive()
    }
}

impl Work {
    /// Runs a part of this work, and drops it the moment the term ends. It is not refused while the term is being handed
    /// over: the hand-over waits for it.
    ///
    /// # Errors
    /// [`TermEnded`] if the term was over before, or ended while `part` was running.
    pub async fn run<F: Future>(&self, part: F) -> Result<F::Output, TermEnded> {
        let _counted = self.office.go_on(WorkKind::Gated)?;
        self.office.run(part).await
    }

    pub(super) fn office(&self) -> &Arc<Office> {
        &self.office
    }

    fn counter(&self) -> &AtomicUsize {
        match self.kind {
            WorkKind::Gated => &self.office.gated,
            WorkKind::Held => &self.office.held,
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.counter().fetch_sub(1, Ordering::SeqCst);
        self.office.work_ended.notify_waiters();
    }
}

impl Term {
    pub(crate) fn new(office: Arc<Office>) -> Self {
        Self(office)
    }

    /// The fencing token: the `resourceVersion` of the write that began this term. It is fixed for the term, and larger
    /// than that of every earlier term of the same Lease.
    pub fn token(&self) -> u64 {
        self.0.token
    }

    /// A name for this term that no other term has.
    pub fn nonce(&self) -> &str {
        &self.0.nonce
    }

    /// The Lease this term was won on, as `namespace/name`.
    pub fn lease(&self) -> &str {
        &self.0.lease
    }

    /// The guard of this term.
    pub fn guard(&self) -> Guard {
        Guard(self.0.clone())
    }

    /// Asks the guard.
    ///
    /// # Errors
    /// [`TermEnded`] when the term is over.
    pub fn check(&self) -> Result<(), TermEnded> {
        self.0.check()
    }

    /// Waits until the term has ended. Cancel-safe.
    pub async fn ended(&self) {
        self.0.ended().await;
    }

    /// Whether the term is to be handed over, because the elector was asked to stop or to stand aside: work should end.
    pub fn is_handing_over(&self) -> bool {
        self.0.admission.is_closed()
    }

    /// Waits until the term is to be handed over or has ended. Cancel-safe.
    pub async fn handing_over(&self) {
        tokio::select! {
            biased;
            () = self.0.ended.cancelled() => {}
            () = self.0.admission.closed() => {}
        }
    }

    /// Runs `work`, and drops it the moment the term ends.
    ///
    /// If `work` blocks its thread and so cannot be dropped by the time a successor may be in office, the process is
    /// aborted (status 134): see [`Verdict::Abort`].
    ///
    /// Dropping `work` does not end what it has detached: a task of `tokio::spawn` and a closure of `spawn_blocking` work on
    /// beside a successor, and the watchdog does not know of them. Use [`Term::begin`] and [`Term::spawn_blocking`] there.
    ///
    /// # Errors
    /// [`TermEnded`] if the term was over before or is being handed over, or ended while `work` was running.
    pub async fn run<F: Future>(&self, work: F) -> Result<F::Output, TermEnded> {
        let _counted = self.0.enter(WorkKind::Gated)?;
        self.0.run(work).await
    }

    /// Marks work that a planned hand-over waits for, without cutting it off at the term's end. Its gated parts run under
    /// [`Work::run`].
    ///
    /// # Errors
    /// [`TermEnded`] if the term is over or is being handed over.
    pub fn hold(&self) -> Result<Work, TermEnded> {
        self.0.enter(WorkKind::Held)
    }

    /// As [`Term::run`], for a part of work that was admitted before: it is not refused while the term is being handed over.
    #[cfg(feature = "controller")]
    pub(crate) async fn go_on<F: Future>(&self, part: F) -> Result<F::Output, TermEnded> {
        let _counted = self.0.go_on(WorkKind::Gated)?;
        self.0.run(part).await
    }

    /// As [`Term::hold`], for a part of work that was admitted before.
    #[cfg(feature = "controller")]
    pub(crate) fn hold_on(&self) -> Result<Work, TermEnded> {
        self.0.go_on(WorkKind::Held)
    }

    pub(crate) fn office(&self) -> &Arc<Office> {
        &self.0
    }
}

impl PartialEq for Term {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Term {}

impl fmt::Debug for Term {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Term")
            .field("lease", &self.0.lease)
            .field("token", &self.0.token)
            .finish_non_exhaustive()
    }
}

impl Guard {
    /// Whether the term is valid at this instant: one clock read.
    ///
    /// # Errors
    /// [`TermEnded`] when it is not.
    pub fn check(&self) -> Result<(), TermEnded> {
        self.0.check()
    }

    /// The token of the guarded term.
    pub fn token(&self) -> u64 {
        self.0.token
    }

    /// Whether `other` asks about the same term.
    pub(crate) fn is_of_the_term_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Guard").field("token", &self.0.token).finish_non_exhaustive()
    }
}

/// What tests of gated code need: a term that lasts as long as they say.
#[doc(hidden)]
pub(super) mod testing {
    use tokio::sync::watch;

    use super::{Admission, BootTime, CancellationToken, Duration, Office, SharedClock, Term};

    /// A term of the Lease `test/lease` that is valid for `validity` from now.
    pub fn term(clock: &SharedClock, token: u64, validity: Duration) -> Term {
        let until: BootTime = clock.boot() + validity;
        let admission = Admission::new(watch::channel(None).1, CancellationToken::new());
        let nonce = format!("nonce-{token}");
        Term::new(Office::open("test/lease".into(), token, nonce, clock.clone(), admission, (until, until)))
    }

    /// Ends the term now.
    pub fn revoke(term: &Term) {
        term.office().revoke();
    }
}

#[cfg(test)]
mod tests;
