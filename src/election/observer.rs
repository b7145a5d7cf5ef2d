//! Who is told of what an elector does, for metrics.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::{
    machine::Lost,
    record::{Holder, Identity},
};

/// Is told of terms, leaders and writes. Calls come from the elector's loop and must not block. A panic in one of them is
/// told in the log, once, and costs nothing else.
pub trait ElectorObserver: fmt::Debug + Send + Sync + 'static {
    /// A term with this token has begun.
    fn term_began(&self, token: u64) {
        let _ = token;
    }

    /// The term in office has ended.
    fn term_ended(&self, lost: Lost) {
        let _ = lost;
    }

    /// A write of the Lease was answered with success, this long after it was sent.
    fn write_confirmed(&self, took: Duration) {
        let _ = took;
    }

    /// A read or a write of the Lease has failed.
    fn try_failed(&self, why: TryFailure) {
        let _ = why;
    }

    /// The Lease shows another leader than before, or none. Once per change: the renewals of a leader are none, nor is a
    /// further term of the same process.
    fn leader_changed(&self, leader: Option<&Leader>) {
        let _ = leader;
    }
}

/// Who leads, as the Lease shows it. It may have been cut off since.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leader {
    /// The process: the name of its pod and what it has added. Of a client that is not Tenure's, all of its name.
    pub identity: String,
    /// Whether it is this very process.
    pub is_self: bool,
}

/// Why a read or a write of the Lease has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TryFailure {
    /// There was no answer, or none in time.
    Unanswered,
    /// The API server has an error of its own, or is overloaded: status 429 and from 500 on.
    Unserved,
    /// It does not know who asks, or does not allow it: status 401 and 403.
    Forbidden,
    /// It does not take what was sent: another status from 400 on.
    Refused,
    /// Something else was written in the meantime.
    Conflict,
    /// The answer cannot be understood.
    Unreadable,
}

impl TryFailure {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Unanswered, Self::Unserved, Self::Forbidden, Self::Refused, Self::Conflict, Self::Unreadable];

    /// A fixed word for metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Unanswered => "unanswered",
            Self::Unserved => "unserved",
            Self::Forbidden => "forbidden",
            Self::Refused => "refused",
            Self::Conflict => "conflict",
            Self::Unreadable => "unreadable",
        }
    }

    pub(super) fn of(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => match status.code {
                409 => Self::Conflict,
                401 | 403 => Self::Forbidden,
                429 | 500.. => Self::Unserved,
                _ => Self::Refused,
            },
            kube::Error::SerdeError(_) => Self::Unreadable,
            _ => Self::Unanswered,
        }
    }
}

/// Is told, and does nothing.
#[derive(Debug, Clone, Copy)]
pub(super) struct NoObserver;

impl ElectorObserver for NoObserver {}

/// An observer that cannot do harm, and what it was last told of the leader.
#[derive(Debug)]
pub(super) struct Told {
    observer: Arc<dyn ElectorObserver>,
    has_panicked: AtomicBool,
    identity: Identity,
    leader: Option<Leader>,
}

impl Told {
    pub(super) fn new(observer: Arc<dyn ElectorObserver>, identity: Identity) -> Self {
        Self { observer, has_panicked: AtomicBool::new(false), identity, leader: None }
    }

    /// Tells the observer. It is the user's code, and the election does not end by it.
    pub(super) fn tell(&self, what: impl FnOnce(&dyn ElectorObserver)) {
        let told = catch_unwind(AssertUnwindSafe(|| what(&*self.observer)));
        if told.is_err() && !self.has_panicked.swap(true, Ordering::Relaxed) {
            tracing::error!(observer = ?Unbroken(&*self.observer), "The observer of an elector panicked; this is told once");
        }
    }

    /// Takes in whom the Lease shows.
    pub(super) fn shown(&mut self, holder: Option<&Holder>) {
        let process = holder.map(|holder| {
            let name = holder.as_str();
            let process = name.rsplit_once('_').filter(|_| !holder.is_foreign());
            process.map_or(name, |(process, _)| process)
        });
        if process == self.leader.as_ref().map(|leader| &*leader.identity) {
            return;
        }
        self.leader = holder
            .zip(process)
            .map(|(holder, process)| Leader { identity: process.to_owned(), is_self: self.identity.owns(holder) });
        self.tell(|observer| observer.leader_changed(self.leader.as_ref()));
    }
}

/// An observer whose `Debug` may panic as the rest of it does.
struct Unbroken<'a>(&'a dyn ElectorObserver);

impl fmt::Debug for Unbroken<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match catch_unwind(AssertUnwindSafe(|| format!("{:?}", self.0))) {
            Ok(text) => formatter.write_str(&text),
            Err(_) => formatter.write_str("one that cannot be shown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::election::record::testing::{process, term};

    #[derive(Debug, Default)]
    struct Listening(Mutex<Vec<Option<(String, bool)>>>);

    impl ElectorObserver for Listening {
        fn leader_changed(&self, leader: Option<&Leader>) {
            let leader = leader.map(|leader| (leader.identity.clone(), leader.is_self));
            self.0.lock().expect("not poisoned").push(leader);
        }
    }

    #[test]
    fn a_change_of_leader_is_told_once_and_says_whether_it_is_this_process() {
        let (own, other) = (process("pod-0", 0), process("pod-1", 1));
        let listening = Arc::new(Listening::default());
        let mut told = Told::new(listening.clone(), own.clone());
        let shown = [None, Some(term(&own, 1)), Some(term(&own, 1)), Some(term(&own, 2)), None, None];
        for holder in shown.iter().chain(&[Some(term(&other, 3)), Some(term(&own, 4))]) {
            told.shown(holder.as_ref());
        }
        let heard = |name: &str, is_self| Some((name.to_owned(), is_self));
        let expected =
            [heard("pod-0_00000000", true), None, heard("pod-1_00000001", false), heard("pod-0_00000000", true)];
        assert_eq!(*listening.0.lock().expect("not poisoned"), expected);
    }
}
