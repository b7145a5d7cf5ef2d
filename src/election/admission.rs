//! Whether new work may begin: not while a term is being handed over, because the elector was asked to stop or to stand
//! aside.
//!
//! Whoever asks is refused from the very call of [`super::Elector::release`] or [`super::Elector::stand_aside`] on, before
//! the elector's loop has heard of it. So the loop, which then waits until no work is left, waits for an end that comes.

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock::BootTime;

/// Until when work in hand may end, while this replica stands aside.
pub(super) type Aside = Option<BootTime>;

/// Says whether new work is admitted. Clones say the same.
#[derive(Debug, Clone)]
pub(crate) struct Admission {
    aside: watch::Receiver<Aside>,
    stopping: CancellationToken,
}

/// Tells work that it should end, because its term is being handed over or has ended. Clones tell of the same.
///
/// Once it says so it stays so, though the hand-over may be called off: the work is then called anew.
#[derive(Debug, Clone)]
pub struct StopSignal(CancellationToken);

impl Admission {
    pub(super) fn new(aside: watch::Receiver<Aside>, stopping: CancellationToken) -> Self {
        Self { aside, stopping }
    }

    /// Whether the elector was asked to leave the election.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }

    /// Waits until the elector is asked to leave the election. Cancel-safe.
    pub(super) async fn stopping(&self) {
        self.stopping.cancelled().await;
    }

    /// Whether new work is refused.
    pub(super) fn is_closed(&self) -> bool {
        self.is_stopping() || self.aside.borrow().is_some()
    }

    /// Waits until new work is refused. Cancel-safe.
    pub(super) async fn closed(&self) {
        let mut aside = self.aside.clone();
        let stands_aside = async {
            if aside.wait_for(Option::is_some).await.is_err() {
                // The elector is gone, which the token has told.
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            () = self.stopping.cancelled() => {}
            () = stands_aside => {}
        }
    }

    /// A view that tells of the next change.
    pub(super) fn watch(&self) -> watch::Receiver<Aside> {
        self.aside.clone()
    }
}

#[cfg(test)]
impl Admission {
    /// One that admits everything.
    pub(super) fn open() -> Self {
        Self::new(watch::channel(None).1, CancellationToken::new())
    }
}

impl StopSignal {
    pub(super) fn new(token: CancellationToken) -> Self {
        Self(token)
    }

    /// Whether the work should end.
    pub fn is_asked(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits until the work should end. Cancel-safe.
    pub async fn asked(&self) {
        self.0.cancelled().await;
    }
}
