//! How the work of a run is done: one attempt of one action, and what became of it.
//!
//! [`Action`] is the one door; behind it is [`HttpRunner`]. An action promises two things to whoever records the outcome:
//!
//! - It asks the term's guard as the last step before the first byte leaves ([`EndKind::TermEnded`] means that no byte of
//!   the request was sent), so whatever it waited for before cannot carry an effect past the end of the term.
//! - Its [`EndKind`] says whether the request was *provably* not sent. [`EndKind::was_sent`] errs on the side of "sent": only
//!   then may a run that must happen at most once be tried again.
//!
//! Left to others: whether to retry and when, what is stored, and cutting an attempt off at the end of a term (drop the
//! future: nothing goes on in the background).

mod answer;
mod egress;
mod http;
mod request;
mod resolve;
mod secrets;
#[cfg(test)]
mod tests;
mod tls;
mod wire;

use std::{fmt, time::Duration};

use ::http::StatusCode;
use futures::future::BoxFuture;
use jiff::Timestamp;

pub use self::{
    egress::{AddressRefused, Cidr, CidrError, Egress},
    http::HttpRunner,
    request::{ActionError, check},
    resolve::{HostAddress, HostAddressError, ResolveOverride},
    secrets::{KubeSecrets, SecretData, SecretError, SecretSource},
};
use crate::{api::HttpAction, election::Guard};

/// Something that can be done for a run.
pub trait Action: fmt::Debug + Send + Sync + 'static {
    /// Makes one attempt and says how it ended. It ends by `attempt.timeout`. Dropping the future ends the attempt.
    fn attempt(&self, attempt: Attempt) -> BoxFuture<'_, AttemptEnd>;
}

/// One try of a run.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// The run's id, the same over retries and failovers.
    pub run_id: String,
    /// The job that the run belongs to.
    pub job: JobRef,
    /// The instant at which the run was due.
    pub slot: Timestamp,
    /// The number of this attempt, from 1.
    pub attempt: u32,
    /// The guard of the term that planned the attempt.
    pub guard: Guard,
    /// What to do.
    pub action: HttpAction,
    /// How long the attempt may take, from now.
    pub timeout: Duration,
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
}

impl EndKind {
    /// Whether the target may have seen the request. If not, trying again cannot do the work twice.
    pub const fn was_sent(self) -> bool {
        match self {
            Self::Succeeded { .. } | Self::Refused { .. } | Self::NoAnswer | Self::TimedOut { sent: true } => true,
            Self::Unsent | Self::TimedOut { sent: false } | Self::TermEnded => false,
        }
    }

    /// Whether there was a complete answer, so that what happened is not in doubt.
    pub const fn was_answered(self) -> bool {
        matches!(self, Self::Succeeded { .. } | Self::Refused { .. })
    }

    /// One fixed word for metrics and logs.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Succeeded { .. } => "succeeded",
            Self::Refused { .. } => "refused",
            Self::Unsent => "unsent",
            Self::NoAnswer => "no_answer",
            Self::TimedOut { .. } => "timed_out",
            Self::TermEnded => "term_ended",
        }
    }
}

impl fmt::Display for JobRef {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.namespace, self.name)
    }
}
