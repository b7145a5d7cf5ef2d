//! What everything that may act only while leading reads: [`Standing`] on a watch channel, wrapped as [`Leadership`].

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    admission::{Admission, StopSignal},
    guard::Term,
};

/// Where this replica stands in the election for one Lease.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Standing {
    /// Another replica leads, or nobody does yet.
    #[default]
    Standby,
    /// This replica leads, for as long as the term lasts.
    Leading(Term),
    /// The elector has ended; this replica will not lead again.
    Stopped,
}

/// A view of one elector's standing. Clones view the same elector.
///
/// An elector that hands over admits no new work: from the call of [`super::Elector::release`] or
/// [`super::Elector::stand_aside`] on, [`Leadership::leading`] returns no term, and [`Term::run`], [`Term::hold`] and
/// [`Term::begin`] refuse. What goes on by then may end, within the time that the call gives.
#[derive(Debug, Clone)]
pub struct Leadership {
    standing: watch::Receiver<Standing>,
    admission: Admission,
}

/// The sending end of a standing. Whatever ends the task that holds it, a panic too, the last standing is
/// [`Standing::Stopped`], and no term outlives it.
#[derive(Debug)]
pub(super) struct Herald(watch::Sender<Standing>);

impl Herald {
    pub(super) fn new(standing: watch::Sender<Standing>) -> Self {
        Self(standing)
    }

    pub(super) fn send_replace(&self, standing: Standing) -> Standing {
        self.0.send_replace(standing)
    }
}

impl Drop for Herald {
    fn drop(&mut self) {
        if let Standing::Leading(term) = self.0.send_replace(Standing::Stopped) {
            term.office().revoke();
        }
    }
}

impl Leadership {
    pub(super) fn new(standing: watch::Receiver<Standing>, admission: Admission) -> Self {
        Self { standing, admission }
    }

    /// The channel itself. The value changes when a term begins or ends; ask a [`Term`]'s guard before each effect, for a
    /// frozen process reads an old value.
    pub fn watch(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// The term in office, if this replica holds it and it is valid at this instant. It may be about to be handed over.
    pub fn term(&self) -> Option<Term> {
        match &*self.standing.borrow() {
            Standing::Leading(term) if term.check().is_ok() => Some(term.clone()),
            _ => None,
        }
    }

    /// Whether the elector has been asked to leave the election: nothing new should be started.
    pub fn is_stopping(&self) -> bool {
        self.admission.is_stopping()
    }

    /// Waits until the elector has been asked to leave the election. Cancel-safe.
    pub async fn stopping(&self) {
        self.admission.stopping().await;
    }

    /// Whether this replica stops or stands aside: no new work is admitted.
    pub fn is_handing_over(&self) -> bool {
        self.admission.is_closed()
    }

    /// Waits until this replica stops or stands aside. Cancel-safe.
    pub async fn handing_over(&self) {
        self.admission.closed().await;
    }

    /// Waits until this replica leads and does not stand aside, and returns the term; `None` once the elector is asked to
    /// stop. Cancel-safe.
    pub async fn leading(&self) -> Option<Term> {
        let (mut standing, mut aside) = (self.standing.clone(), self.admission.watch());
        loop {
            let seen = standing.borrow_and_update().clone();
            let stands_aside = aside.borrow_and_update().is_some();
            match seen {
                _ if self.is_stopping() => return None,
                Standing::Stopped => return None,
                Standing::Leading(term) if term.check().is_ok() && !stands_aside => return Some(term),
                Standing::Leading(_) | Standing::Standby => {}
            }
            tokio::select! {
                biased;
                () = self.admission.stopping() => return None,
                changed = standing.changed() => if changed.is_err() { return None },
                Ok(()) = aside.changed() => {}
            }
        }
    }

    /// Calls `work` anew in every term. Its future is dropped at once when the term ends, and when it is to be handed over,
    /// so that work without an end does not hold up a hand-over. If it returns before, it is not called again until the
    /// next term. Returns once the elector is asked to stop.
    ///
    /// Work that must not be cut off by a planned hand-over takes [`Leadership::while_leading_gracefully`].
    ///
    /// What `work` has detached, by `tokio::spawn` or `spawn_blocking`, is not dropped with it: see [`Term::begin`] and
    /// [`Term::spawn_blocking`].
    pub async fn while_leading<W, F>(&self, mut work: W)
    where
        W: FnMut(Term) -> F,
        F: Future<Output = ()>,
    {
        while let Some(term) = self.leading().await {
            let ended = tokio::select! {
                biased;
                () = self.handing_over() => continue,
                ended = term.run(work(term.clone())) => ended,
            };
            if ended.is_ok() {
                self.end_of(&term).await;
            }
        }
    }

    /// Calls `work` anew in every term, with a signal that asks it to end when the term is to be handed over. The hand-over
    /// waits for it as long as its drain allows; at the term's end its future is dropped.
    ///
    /// If it returns unasked, it is not called again until the next term. Returns once the elector is asked to stop and the
    /// current work has ended or was cut off by the term's end.
    ///
    /// Work that ignores the signal holds up each planned hand-over for the whole drain: [`Leadership::while_leading`] is
    /// for that.
    pub async fn while_leading_gracefully<W, F>(&self, mut work: W)
    where
        W: FnMut(Term, StopSignal) -> F,
        F: Future<Output = ()>,
    {
        while let Some(term) = self.leading().await {
            let stop = CancellationToken::new();
            // Whoever still listens when the work is gone is asked, too.
            let _asked_at_the_end = stop.clone().drop_guard();
            let running = term.run(work(term.clone(), StopSignal::new(stop.clone())));
            tokio::pin!(running);
            let ended = tokio::select! {
                biased;
                () = self.handing_over() => {
                    stop.cancel();
                    running.await
                }
                ended = &mut running => ended,
            };
            // If it was asked and the hand-over is called off, it is called anew in the same term.
            if ended.is_ok() && !stop.is_cancelled() {
                self.end_of(&term).await;
            }
        }
    }

    async fn end_of(&self, term: &Term) {
        tokio::select! {
            biased;
            () = self.stopping() => {}
            () = term.ended() => {}
        }
    }
}

/// What tests of leader-only code need: a standing that they set themselves.
#[doc(hidden)]
pub(super) mod testing {
    use super::{Admission, CancellationToken, Leadership, Standing, watch};

    /// A leadership, the sender that changes it, and the token that asks it to stop.
    pub fn leadership() -> (Leadership, watch::Sender<Standing>, CancellationToken) {
        let (sender, receiver) = watch::channel(Standing::Standby);
        let stopping = CancellationToken::new();
        let admission = Admission::new(watch::channel(None).1, stopping.clone());
        (Leadership::new(receiver, admission), sender, stopping)
    }
}
