//! What everything that may act only while leading reads: [`Standing`] on a watch channel, wrapped as [`Leadership`].

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::guard::Term;

/// Where this replica stands in the election for one Lease.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
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
#[derive(Debug, Clone)]
pub struct Leadership {
    standing: watch::Receiver<Standing>,
    stopping: CancellationToken,
}

impl Leadership {
    pub(crate) fn new(standing: watch::Receiver<Standing>, stopping: CancellationToken) -> Self {
        Self { standing, stopping }
    }

    /// The channel itself. The value changes when a term begins or ends; ask a [`Term`]'s guard before each effect, for a
    /// frozen process reads an old value.
    pub fn watch(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// The term in office, if this replica holds it and it is valid at this instant.
    pub fn term(&self) -> Option<Term> {
        match &*self.standing.borrow() {
            Standing::Leading(term) if term.check().is_ok() => Some(term.clone()),
            _ => None,
        }
    }

    /// Whether the elector has been asked to hand over: nothing new should be started.
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }

    /// Waits until the elector has been asked to hand over. Cancel-safe.
    pub async fn stopping(&self) {
        self.stopping.cancelled().await;
    }

    /// Waits until this replica leads, and returns the term; `None` once the elector is asked to stop. Cancel-safe.
    pub async fn leading(&self) -> Option<Term> {
        let mut standing = self.standing.clone();
        loop {
            let seen = standing.borrow_and_update().clone();
            match seen {
                _ if self.is_stopping() => return None,
                Standing::Stopped => return None,
                Standing::Leading(term) if term.check().is_ok() => return Some(term),
                Standing::Leading(_) | Standing::Standby => {}
            }
            tokio::select! {
                biased;
                () = self.stopping.cancelled() => return None,
                changed = standing.changed() => if changed.is_err() { return None },
            }
        }
    }

    /// Calls `work` anew in every term and drops its future when the term ends. If it returns before the term ends, it is
    /// not called again until the next term. Returns once the elector is asked to stop and the current work has ended or
    /// was cut off by the term's end.
    pub async fn while_leading<W, F>(&self, mut work: W)
    where
        W: FnMut(Term) -> F,
        F: Future<Output = ()>,
    {
        while let Some(term) = self.leading().await {
            let future = work(term.clone());
            if term.run(future).await.is_ok() {
                tokio::select! {
                    biased;
                    () = self.stopping.cancelled() => return,
                    () = term.ended() => {}
                }
            }
        }
    }
}

/// What tests of leader-only code need: a standing that they set themselves.
#[doc(hidden)]
pub(super) mod testing {
    use super::{CancellationToken, Leadership, Standing, watch};

    /// A leadership, the sender that changes it, and the token that asks it to stop.
    pub fn leadership() -> (Leadership, watch::Sender<Standing>, CancellationToken) {
        let (sender, receiver) = watch::channel(Standing::Standby);
        let stopping = CancellationToken::new();
        (Leadership::new(receiver, stopping.clone()), sender, stopping)
    }
}
