//! What a front does to those who come by it.

use std::{collections::BTreeSet, future::pending, net::IpAddr, time::Duration};

use tokio::{sync::watch, time::Instant};

/// What it does at this moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rules {
    /// How much later the head of each answer comes.
    pub late: Duration,
    /// The server that answers nothing but errors.
    pub errs: Option<u64>,
    /// Watches with a smaller number than this pass nothing on.
    pub silent_below: u64,
    /// Watches with a smaller number than this are broken off: they were silent.
    pub broken_below: u64,
    /// Who is cut off.
    pub cut: BTreeSet<IpAddr>,
}

/// The rules as one connection sees them change.
#[derive(Debug, Clone)]
pub(super) struct Ruled(pub watch::Receiver<Rules>);

impl Ruled {
    /// What holds now.
    pub fn now(&self) -> Rules {
        self.0.borrow().clone()
    }

    /// Returns once these rules hold.
    pub async fn until(&mut self, hold: impl FnMut(&Rules) -> bool) {
        // Without a front there is nobody to be answered.
        if self.0.wait_for(hold).await.is_err() {
            pending::<()>().await;
        }
    }

    /// Returns once this client is not cut off.
    pub async fn passable(&mut self, client: IpAddr) {
        self.until(|rules| !rules.cut.contains(&client)).await;
    }

    /// Returns once an answer that came at that instant is as late as it is to be.
    pub async fn late_since(&mut self, came: Instant) {
        loop {
            let late = self.0.borrow_and_update().late;
            if came.elapsed() >= late {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(came + late) => return,
                changed = self.0.changed() => if changed.is_err() { pending::<()>().await; },
            }
        }
    }
}
