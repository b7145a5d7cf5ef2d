//! How the work of a run is done: one attempt of one action, and what became of it.
//!
//! [`Action`] is the one door; behind it are [`HttpRunner`] and [`JobRunner`], put together by [`Runners`]. An action promises
//! two things to whoever records the outcome:
//!
//! - It asks the term's guard as the last step before the first byte leaves ([`EndKind::TermEnded`] means that no byte of
//!   the request was sent), so whatever it waited for before cannot carry an effect past the end of the term.
//! - Its [`EndKind`] says whether the request was *provably* not sent. [`EndKind::was_sent`] errs on the side of "sent": only
//!   then may a run that must happen at most once be tried again.
//!
//! Left to others: whether to retry and when, what is stored, and cutting an attempt off at the end of a term (drop the
//! future: nothing goes on in the background, but for a Kubernetes Job that was created: [`EndKind::LeftRunning`]).

mod answer;
mod egress;
mod http;
mod jobs;
mod request;
mod resolve;
mod secrets;
#[cfg(test)]
mod tests;
mod tls;
mod wire;

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use ::http::StatusCode;
use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

pub use self::{
    egress::{AddressRefused, Cidr, CidrError, Egress},
    http::HttpRunner,
    jobs::{JobRunner, TemplateError, check as check_template, job_name},
    request::{ActionError, check},
    resolve::{HostAddress, HostAddressError, ResolveOverride},
    secrets::{KubeSecrets, SecretData, SecretError, SecretSource},
};
use crate::{
    api::{Guarantee, HttpAction, JobTemplate},
    election::Guard,
};

/// Something that can be done for a run.
pub trait Action: fmt::Debug + Send + Sync + 'static {
    /// Makes one attempt and says how it ended. It ends by `attempt.timeout`. Dropping the future ends the attempt.
    fn attempt(&self, attempt: Attempt) -> BoxFuture<'_, AttemptEnd>;

    /// Asks whether an attempt such as this could be made at all, without making it. It ends within seconds.
    fn try_out(&self, _sample: Attempt) -> BoxFuture<'_, Trial> {
        Box::pin(async { Trial::Passed })
    }

    /// Removes what ended runs have left behind, as far as the history limits say.
    fn tidy(&self, _tidy: Tidy) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// What is done for a run.
#[derive(Debug, Clone, PartialEq)]
pub enum ActionSpec {
    /// An HTTP request.
    Http(Box<HttpAction>),
    /// A Kubernetes Job.
    Job(JobTemplate),
    /// A Kubernetes Job that was begun by a spec that is not valid any more: it is followed, and not created.
    BegunJob,
}

/// Each kind of action by its own runner.
#[derive(Debug)]
pub struct Runners {
    /// For HTTP requests.
    pub http: Arc<dyn Action>,
    /// For Kubernetes Jobs.
    pub jobs: Arc<dyn Action>,
}

/// What a sample of an action came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trial {
    /// It can be carried out.
    Passed,
    /// It cannot, and why.
    Refused(String),
    /// There was no answer that says.
    Unknown(String),
}

/// Whose history is to be tidied, and what of it stays.
#[derive(Debug, Clone)]
pub struct Tidy {
    /// The job.
    pub job: JobRef,
    /// Its UID.
    pub uid: String,
    /// How many that succeeded stay.
    pub successful: usize,
    /// How many others stay.
    pub failed: usize,
    /// The id of the run whose end has just been recorded.
    pub ended: String,
    /// The ids of its runs whose end is not recorded: what they have left behind is how their end will be known.
    pub open: BTreeSet<String>,
    /// A run of a later slot may have begun since `open` was known,
    pub until: Timestamp,
    /// unless its Job is older than this.
    pub older_than: Timestamp,
    /// The guard of the term in office.
    pub guard: Guard,
}

/// What may be asked of an attempt while it is going on.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// The replica stops: what goes on without it is to be left to the next leader at once.
    pub leave: CancellationToken,
    /// A newer slot takes its place: the attempt is to end, and to say whether that is certain.
    pub replace: CancellationToken,
}

/// One try of a run.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// The run's id, the same over retries and failovers.
    pub run_id: String,
    /// The job that the run belongs to.
    pub job: JobRef,
    /// The UID of that job.
    pub uid: String,
    /// The instant at which the run was due.
    pub slot: Timestamp,
    /// The number of this attempt, from 1.
    pub attempt: u32,
    /// The guard of the term that planned the attempt.
    pub guard: Guard,
    /// What to do.
    pub action: ActionSpec,
    /// How long the attempt may take, from now.
    pub timeout: Duration,
    /// How long the whole run may take, if the job says so.
    pub active_deadline: Option<Duration>,
    /// What happens to a run whose end is not known.
    pub guarantee: Guarantee,
    /// Whether this attempt may have been begun before, by another leader or in an earlier term: what it has left is looked
    /// for first. Only for actions that live on.
    pub begun_before: bool,
    /// What may be asked of it while it is going on.
    pub wishes: Wishes,
}

/// Which job a run belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobRef {
    /// The job's namespace, which is also where its Secrets are.
    pub namespace: String,
    /// The job's name.
    pub name: String,
}

/// What became of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptEnd {
    /// How it ended.
    pub kind: EndKind,
    /// For people: the status code and the first 256 bytes of the answer, or the reason why there is none.
    pub message: String,
    /// How long the target asked to be left alone, if it did; at most a day.
    pub retry_after: Option<Duration>,
    /// When the first byte was handed to the connection, on the wall clock.
    pub first_byte: Option<Timestamp>,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndKind {
    /// There was a complete answer with an expected status code.
    Succeeded {
        /// The status code.
        status: StatusCode,
    },
    /// There was a complete answer with another status code.
    Refused {
        /// The status code.
        status: StatusCode,
    },
    /// It failed, and provably before the first byte: a wrong action, a missing Secret, name resolution, a refused address,
    /// connecting, TLS.
    Unsent,
    /// At least one byte may have been sent, and there was no complete answer.
    NoAnswer,
    /// The attempt's time was up.
    TimedOut {
        /// Whether at least one byte may have been sent.
        sent: bool,
    },
    /// The guard said no: the term is over, and no byte was sent.
    TermEnded,
    /// The Job has completed.
    JobSucceeded,
    /// The Job has failed.
    JobFailed,
    /// The Job has failed because its time was up.
    JobTimedOut,
    /// The Job was there, and was deleted before its end was seen.
    JobGone,
    /// What a leader before began has left nothing, and the spec does not say any more how to begin it.
    LeftNothing,
    /// Another object has the Job's name. Nothing was done.
    NameTaken,
    /// The replica stops, and what was begun goes on without it.
    LeftRunning,
    /// It was asked to make room for a newer slot.
    Replaced {
        /// Whether it is certain that nothing of it is going on or may have been done: no byte was sent, or the Job is gone
        /// with its pods.
        certain: bool,
    },
}

impl EndKind {
    /// Whether the target may have seen the request. If not, trying again cannot do the work twice.
    pub const fn was_sent(self) -> bool {
        match self {
            Self::Succeeded { .. }
            | Self::Refused { .. }
            | Self::NoAnswer
            | Self::TimedOut { sent: true }
            | Self::JobSucceeded
            | Self::JobFailed
            | Self::JobTimedOut
            | Self::JobGone
            | Self::LeftNothing
            | Self::LeftRunning
            | Self::Replaced { certain: false } => true,
            Self::Unsent
            | Self::TimedOut { sent: false }
            | Self::TermEnded
            | Self::NameTaken
            | Self::Replaced { certain: true } => false,
        }
    }

    /// Whether there was a complete answer, so that what happened is not in doubt.
    pub const fn was_answered(self) -> bool {
        matches!(
            self,
            Self::Succeeded { .. } | Self::Refused { .. } | Self::JobSucceeded | Self::JobFailed | Self::JobTimedOut
        )
    }
}

impl Runners {
    fn of(&self, action: &ActionSpec) -> &dyn Action {
        match action {
            ActionSpec::Http(_) => &*self.http,
            ActionSpec::Job(_) | ActionSpec::BegunJob => &*self.jobs,
        }
    }
}

impl Action for Runners {
    fn attempt(&self, attempt: Attempt) -> BoxFuture<'_, AttemptEnd> {
        self.of(&attempt.action).attempt(attempt)
    }

    fn try_out(&self, sample: Attempt) -> BoxFuture<'_, Trial> {
        self.of(&sample.action).try_out(sample)
    }

    /// Only Jobs leave something behind.
    fn tidy(&self, tidy: Tidy) -> BoxFuture<'_, ()> {
        self.jobs.tidy(tidy)
    }
}

impl fmt::Display for JobRef {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.namespace, self.name)
    }
}
