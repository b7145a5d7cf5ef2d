//! What the end of an attempt means for its run: the decision, without I/O or clock.
//!
//! A retry follows a *known* failure and is bounded (attempts, the run's deadline, the next slot under Forbid). An attempt
//! whose end nobody knows is not retried but *recovered*, by [`recovery`], within bounds of its own. Under `AtMostOnce`
//! another attempt follows only where the last one provably sent nothing.

use std::time::Duration;

use super::{
    compiled::RunPolicy,
    record::{NextAttempt, RunEnd},
};
use crate::{
    action::{AttemptEnd, EndKind},
    api::{ActionKind, ActiveRun, Guarantee, Instant, Outcome},
    entropy::Entropy,
};

/// How often a run is taken up again after its attempt's end had remained unknown. A run that kills its leader must not
/// kill every successor.
pub const MAX_RECOVERIES: u32 = 3;

/// How far a leader's time of day for decisions may be ahead of the API server's: a waiting attempt of an earlier term
/// that is due later than this was certainly not made. [`super::skew`] holds every leader to the API server's time as far as
/// its answers tell it; the rest is for clocks that run fast between two answers, and for servers that disagree.
pub const CLOCKS_APART_MAX: Duration = Duration::from_secs(10);

/// How an attempt came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// By itself.
    Attempt(AttemptEnd),
    /// Cut off, because the term has ended.
    TermOver,
    /// Cut off, because the replica stops and the drain time is over.
    Stopped,
    /// Cut off, because the job was deleted.
    Deleted,
    /// Its code failed.
    Panicked(String),
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum After {
    /// The run has ended.
    Finish(RunEnd),
    /// Another attempt, after a wait.
    Retry(Retry),
    /// The attempt has ended, the run stays open: a later term goes on.
    StaysOpen(RunEnd),
    /// What the attempt began goes on, and this process no longer follows it. Its intent stays as it is: whoever leads
    /// next takes it over.
    HandOver,
}

/// Another attempt after a known failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// It is not made before then.
    pub not_before: Instant,
    /// The wait.
    pub wait: Duration,
    /// What the wait was drawn from.
    pub bound: Duration,
    /// Why the attempt failed.
    pub message: String,
    /// Whether it may have had an effect that nobody knows of.
    pub in_doubt: bool,
}

/// What is done about an intent of an earlier term that has no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovery {
    /// The attempt waits and was certainly not made: it is taken over as it is.
    TakeOver,
    /// What the attempt began may be going on: it is looked for, under the same number.
    Adopt,
    /// The run is taken up again with another attempt, at once.
    TryAgain(NextAttempt),
    /// The run ends, and whether it had an effect is not known.
    GiveUp(RunEnd),
}

/// Whether what this attempt has begun goes on without its leader. What an attempt does is stored with it; a version before
/// that was so did what the spec says.
pub fn lives_on(run: &ActiveRun, policy: &RunPolicy) -> bool {
    run.action.unwrap_or(policy.action) == ActionKind::JobTemplate
}

/// What follows when an attempt of `run` has ended. `retry_until` is the next slot under Forbid.
pub fn after_attempt(
    ended: &Ended,
    run: &ActiveRun,
    policy: &RunPolicy,
    now: Instant,
    retry_until: Option<Instant>,
    entropy: &dyn Entropy,
) -> After {
    let finish =
        |outcome, message: &str| After::Finish(RunEnd { outcome, message: message.to_owned(), reason: None, at: now });
    match ended {
        Ended::Attempt(end) => after_end(end, run, policy, now, retry_until, entropy),
        Ended::Deleted => finish(Outcome::Cancelled, "the job was deleted"),
        Ended::Panicked(message) => {
            let end = AttemptEnd {
                kind: EndKind::NoAnswer,
                message: format!("the action failed inside Tenure: {message}"),
                retry_after: None,
                first_byte: None,
            };
            after_end(&end, run, policy, now, retry_until, entropy)
        }
        Ended::TermOver | Ended::Stopped if lives_on(run, policy) => After::HandOver,
        Ended::TermOver => cut_off("the leader's term ended during the attempt", policy, now),
        Ended::Stopped => cut_off("the replica stopped and the attempt did not end within the drain time", policy, now),
    }
}

fn cut_off(why: &str, policy: &RunPolicy, now: Instant) -> After {
    match policy.guarantee {
        Guarantee::AtLeastOnce => {
            After::StaysOpen(RunEnd { outcome: Outcome::Interrupted, message: why.to_owned(), reason: None, at: now })
        }
        Guarantee::AtMostOnce => After::Finish(RunEnd {
            outcome: Outcome::Indeterminate,
            message: format!("{why}; whether it had an effect is not known"),
            reason: None,
            at: now,
        }),
    }
}

fn after_end(
    end: &AttemptEnd,
    run: &ActiveRun,
    policy: &RunPolicy,
    now: Instant,
    retry_until: Option<Instant>,
    entropy: &dyn Entropy,
) -> After {
    let failed = match end.kind {
        EndKind::Succeeded { .. } | EndKind::JobSucceeded => {
            return After::Finish(RunEnd {
                outcome: Outcome::Succeeded,
                message: end.message.clone(),
                reason: None,
                at: now,
            });
        }
        EndKind::TermEnded => {
            let message = "the leader's term ended before the first byte was sent".to_owned();
            return After::StaysOpen(RunEnd { outcome: Outcome::Interrupted, message, reason: None, at: now });
        }
        EndKind::LeftRunning => return After::HandOver,
        // Nothing was done here, and what was done before nobody knows.
        EndKind::LeftNothing => return cut_off(&end.message, policy, now),
        // A complete answer: its pods were tried as often as it allows, and another Job is not made.
        EndKind::JobFailed
        | EndKind::JobTimedOut
        | EndKind::JobGone
        | EndKind::NameTaken
        | EndKind::Replaced { .. } => {
            return After::Finish(final_end(end, now));
        }
        EndKind::TimedOut { .. } => Outcome::TimedOut,
        EndKind::Refused { .. } | EndKind::Unsent | EndKind::NoAnswer => Outcome::Failed,
    };
    if policy.guarantee == Guarantee::AtMostOnce && end.kind.was_sent() {
        let outcome = if end.kind.was_answered() { failed } else { Outcome::Indeterminate };
        return After::Finish(RunEnd { outcome, message: end.message.clone(), reason: None, at: now });
    }
    // Recoveries are no retries: they do not use up attempts, and do not make the wait longer.
    let tries = run.attempt.saturating_sub(run.recoveries).max(1);
    let bound = policy.backoff.bound(tries);
    let wait = policy.backoff.wait(tries, entropy).max(end.retry_after.unwrap_or_default());
    let not_before = now.plus(wait);
    let in_time = not_before < run.run_deadline && retry_until.is_none_or(|until| not_before < until);
    if tries < policy.max_attempts && in_time {
        let in_doubt = end.kind.was_sent() && !end.kind.was_answered();
        return After::Retry(Retry { not_before, wait, bound, message: end.message.clone(), in_doubt });
    }
    After::Finish(RunEnd { outcome: failed, message: end.message.clone(), reason: None, at: now })
}

/// The end of a run that nothing is tried again for, whatever its guarantee.
fn final_end(end: &AttemptEnd, now: Instant) -> RunEnd {
    let (outcome, reason) = match end.kind {
        EndKind::JobTimedOut => (Outcome::TimedOut, None),
        EndKind::Replaced { certain: true } => (Outcome::Cancelled, Some("Replaced")),
        EndKind::Replaced { certain: false } => (Outcome::Indeterminate, Some("Replaced")),
        EndKind::JobGone => (Outcome::Indeterminate, Some("JobGone")),
        EndKind::NameTaken => (Outcome::Failed, Some("NameTaken")),
        _ => (Outcome::Failed, None),
    };
    RunEnd { outcome, message: end.message.clone(), reason, at: now }
}

/// The end of a run whose next attempt had not begun when a newer slot took its place.
pub fn replaced_while_waiting(last_failure: Option<&str>, in_doubt: bool, now: Instant) -> RunEnd {
    let before = last_failure.map(|failure| format!("; the attempt before it: {failure}")).unwrap_or_default();
    let outcome = if in_doubt { Outcome::Indeterminate } else { Outcome::Cancelled };
    let message = format!("replaced by a newer slot before its attempt was made{before}");
    RunEnd { outcome, message, reason: Some("Replaced"), at: now }
}

/// What is done about an intent of an earlier term that has no result.
///
/// `latest` is the latest time that it may be at the API server, none if that is not known. This machine's time of day is
/// no evidence that an attempt was not made: a clock that was set back would have it made again.
pub fn recovery(
    run: &ActiveRun,
    generation: i64,
    policy: &RunPolicy,
    now: Instant,
    latest: Option<Instant>,
) -> Recovery {
    let waits = latest.is_some_and(|latest| run.not_before > latest.plus(CLOCKS_APART_MAX));
    if run.ended_at.is_none() && waits {
        return Recovery::TakeOver;
    }
    if lives_on(run, policy) && run.ended_at.is_none() {
        return Recovery::Adopt;
    }
    let in_doubt = policy.guarantee == Guarantee::AtMostOnce && run.ended_at.is_none();
    if in_doubt || run.recoveries >= MAX_RECOVERIES {
        let attempt = run.attempt;
        let why = if in_doubt { "its leader is gone" } else { "it was taken up again as often as may be" };
        return Recovery::GiveUp(RunEnd {
            outcome: Outcome::Indeterminate,
            message: format!("{why}; whether attempt {attempt} had an effect is not known"),
            reason: None,
            at: now,
        });
    }
    let last_failure = run.last_failure.clone().filter(|_| run.ended_at.is_some());
    Recovery::TryAgain(NextAttempt {
        generation,
        action: policy.action,
        not_before: now,
        timeout: policy.timeout,
        wait_bound: None,
        last_failure: last_failure
            .unwrap_or_else(|| "its leader is gone, and the end of the attempt is not known".into()),
        recovers: true,
    })
}

#[cfg(test)]
mod tests;
