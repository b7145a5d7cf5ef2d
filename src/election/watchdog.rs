//! The watchdog: looks at the clock even when nothing else of the process gets to run.
//!
//! In production it is a thread of the operating system, so that a starved runtime or a blocked worker cannot work on
//! beside a successor. In a simulation it is whatever the simulation drives.

use std::{
    fmt, io,
    sync::{Arc, Mutex, PoisonError, Weak},
    thread,
};

use super::guard::{Office, Verdict, WATCHDOG_PERIOD};
use crate::clock::{BootTime, SharedClock};

/// Runs a [`Watchdog`] for as long as its elector lives.
pub trait WatchdogDriver: fmt::Debug + Send + Sync + 'static {
    /// Starts looking, until [`Watchdog::look`] says [`Look::Over`].
    ///
    /// # Errors
    /// When nothing can be started; the elector then does not start either.
    fn start(&self, watchdog: Watchdog) -> io::Result<()>;
}

/// What there is to look after: the term in office of one elector.
#[derive(Debug)]
pub struct Watchdog {
    post: Weak<Post>,
    clock: SharedClock,
}

/// What the watchdog's driver has to do next. It stays exhaustive: a driver must not compile that does not know what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Look again no later than this.
    AgainAt(BootTime),
    /// End the process: work of an ended term did not end.
    Abort,
    /// The elector is gone: stop looking.
    Over,
}

/// The watchdog as a thread of the operating system, which aborts the process (status 134) if it must.
#[derive(Debug, Clone, Copy, Default)]
pub struct ThreadWatchdog;

/// Where the elector puts the term that is to be looked after.
#[derive(Debug, Default)]
pub(super) struct Post(Mutex<Option<Arc<Office>>>);

impl Post {
    pub(super) fn put(&self, office: Option<Arc<Office>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = office;
    }

    pub(super) fn watchdog(self: &Arc<Self>, clock: SharedClock) -> Watchdog {
        Watchdog { post: Arc::downgrade(self), clock }
    }
}

impl Drop for Post {
    /// The elector is gone. If a panic ended it, it has not ended its term: gated work must not go on without a watchdog.
    fn drop(&mut self) {
        if let Some(office) = self.0.get_mut().unwrap_or_else(PoisonError::into_inner) {
            office.revoke();
        }
    }
}

impl Watchdog {
    /// Reads the clock, ends the term if its validity has passed, and says what to do.
    pub fn look(&self) -> Look {
        let Some(post) = self.post.upgrade() else { return Look::Over };
        let now = self.clock.boot();
        let office = post.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match office.map(|office| office.look(now)) {
            None => Look::AgainAt(now + WATCHDOG_PERIOD),
            Some(Verdict::LookAgainAt(at) | Verdict::Revoked(at)) => Look::AgainAt(at),
            Some(Verdict::Abort) => Look::Abort,
        }
    }

    /// The clock that this watchdog looks at.
    pub fn clock(&self) -> &SharedClock {
        &self.clock
    }
}

impl WatchdogDriver for ThreadWatchdog {
    fn start(&self, watchdog: Watchdog) -> io::Result<()> {
        let body = move || {
            loop {
                match watchdog.look() {
                    Look::AgainAt(at) => {
                        thread::sleep(at.saturating_since(watchdog.clock().boot()).min(WATCHDOG_PERIOD));
                    }
                    Look::Abort => {
                        tracing::error!("Aborting: work of a term that has ended is still running");
                        std::process::abort();
                    }
                    Look::Over => return,
                }
            }
        };
        thread::Builder::new().name("lease-watchdog".to_owned()).spawn(body).map(drop)
    }
}
