//! Which end of an attempt leads to what, by guarantee and within the bounds.

use http::StatusCode;
use jiff::Timestamp;
use rstest::rstest;

use super::*;
use crate::{
    api::TermRef,
    backoff::Backoff,
    entropy::{SeededEntropy, SharedEntropy},
};

const HOUR: Duration = Duration::from_hours(1);
const REFUSED: EndKind = EndKind::Refused { status: StatusCode::INTERNAL_SERVER_ERROR };

fn at(millis: i64) -> Instant {
    Instant::new(Timestamp::from_millisecond(1_767_607_200_000 + millis).expect("within range"))
}

fn entropy() -> SharedEntropy {
    SeededEntropy::shared(5)
}

fn policy(guarantee: Guarantee) -> RunPolicy {
    let backoff = Backoff { initial: Duration::from_secs(1), max: Duration::from_mins(5) };
    RunPolicy { guarantee, max_attempts: 3, backoff, timeout: Duration::from_secs(30), action: ActionKind::Http }
}

fn run(attempt: u32) -> ActiveRun {
    ActiveRun {
        slot: at(0),
        generation: 1,
        term: TermRef { token: 7, nonce: "n".to_owned() },
        attempt,
        deadline: at(30_000),
        not_before: at(0),
        recoveries: 0,
        started_at: at(0),
        run_deadline: at(0).plus(HOUR),
        wait_bound: None,
        last_failure: None,
        ended_at: None,
        trigger: None,
        action: None,
        taken_over: false,
    }
}

fn end(kind: EndKind) -> AttemptEnd {
    AttemptEnd { kind, message: format!("{kind:?}"), retry_after: None, first_byte: None }
}

fn after(kind: EndKind, run: &ActiveRun, guarantee: Guarantee) -> After {
    after_attempt(&Ended::Attempt(end(kind)), run, &policy(guarantee), at(1_000), None, &*entropy())
}

fn outcome(after: &After) -> Option<Outcome> {
    match after {
        After::Finish(end) => Some(end.outcome),
        After::Retry(_) | After::StaysOpen(_) | After::HandOver => None,
    }
}

#[rstest]
#[case::answered_with_an_error(REFUSED)]
#[case::no_answer(EndKind::NoAnswer)]
#[case::timed_out(EndKind::TimedOut { sent: true })]
#[case::never_sent(EndKind::Unsent)]
fn at_least_once_tries_every_failure_again(#[case] kind: EndKind) {
    let After::Retry(retry) = after(kind, &run(1), Guarantee::AtLeastOnce) else { panic!("{kind:?} is not retried") };
    assert_eq!(retry.bound, Duration::from_secs(2));
    assert!(retry.wait <= retry.bound && retry.not_before == at(1_000).plus(retry.wait));
}

#[rstest]
#[case::no_answer(EndKind::NoAnswer, Outcome::Indeterminate)]
#[case::timed_out_after_sending(EndKind::TimedOut { sent: true }, Outcome::Indeterminate)]
#[case::a_complete_answer_is_never_in_doubt(REFUSED, Outcome::Failed)]
fn at_most_once_tries_nothing_again_that_may_have_been_sent(#[case] kind: EndKind, #[case] expected: Outcome) {
    assert_eq!(outcome(&after(kind, &run(1), Guarantee::AtMostOnce)), Some(expected));
}

#[rstest]
#[case(EndKind::Unsent)]
#[case(EndKind::TimedOut { sent: false })]
fn at_most_once_tries_again_what_provably_sent_nothing(#[case] kind: EndKind) {
    assert!(matches!(after(kind, &run(1), Guarantee::AtMostOnce), After::Retry(_)));
}

#[rstest]
#[case(REFUSED, Outcome::Failed)]
#[case(EndKind::TimedOut { sent: true }, Outcome::TimedOut)]
fn retries_end_with_the_attempts(#[case] kind: EndKind, #[case] expected: Outcome) {
    assert_eq!(outcome(&after(kind, &run(3), Guarantee::AtLeastOnce)), Some(expected));
}

#[test]
fn recoveries_use_up_no_attempts_and_make_no_wait_longer() {
    let recovered = ActiveRun { recoveries: 2, ..run(4) };
    let After::Retry(retry) = after(REFUSED, &recovered, Guarantee::AtLeastOnce) else { panic!("not retried") };
    assert_eq!(retry.bound, Duration::from_secs(4));
}

#[test]
fn a_retry_that_would_begin_at_the_next_slot_or_past_the_deadline_is_not_made() {
    let asked_to_wait = AttemptEnd { retry_after: Some(Duration::from_secs(20)), ..end(REFUSED) };
    let ended = Ended::Attempt(asked_to_wait);
    let policy = policy(Guarantee::AtLeastOnce);
    let next_slot = |millis| after_attempt(&ended, &run(1), &policy, at(1_000), Some(at(millis)), &*entropy());
    assert_eq!(outcome(&next_slot(21_000)), Some(Outcome::Failed));
    let After::Retry(retry) = next_slot(21_001) else { panic!("there was time") };
    assert_eq!(retry.not_before, at(21_000), "the target asked to be left alone that long");

    let short = ActiveRun { run_deadline: at(21_000), ..run(1) };
    let past_deadline = after_attempt(&ended, &short, &policy, at(1_000), None, &*entropy());
    assert_eq!(outcome(&past_deadline), Some(Outcome::Failed));
}

#[rstest]
#[case(Ended::TermOver)]
#[case(Ended::Stopped)]
fn an_attempt_that_is_cut_off_stays_open_or_ends_in_doubt_by_its_guarantee(#[case] ended: Ended) {
    let cut = |guarantee| after_attempt(&ended, &run(1), &policy(guarantee), at(1_000), None, &*entropy());
    let After::StaysOpen(open) = cut(Guarantee::AtLeastOnce) else { panic!("it is taken up again") };
    assert_eq!(open.outcome, Outcome::Interrupted);
    assert_eq!(outcome(&cut(Guarantee::AtMostOnce)), Some(Outcome::Indeterminate));
}

#[test]
fn an_attempt_that_the_guard_refused_stays_open_under_either_guarantee() {
    for guarantee in [Guarantee::AtLeastOnce, Guarantee::AtMostOnce] {
        assert!(matches!(after(EndKind::TermEnded, &run(1), guarantee), After::StaysOpen(_)));
    }
}

fn recovered(run: &ActiveRun, guarantee: Guarantee) -> Recovery {
    recovery(run, 1, &policy(guarantee), at(60_000), Some(at(60_000)))
}

#[test]
fn an_intent_without_a_result_is_run_again_though_its_attempts_are_used_up() {
    let Recovery::TryAgain(attempt) = recovered(&run(3), Guarantee::AtLeastOnce) else { panic!("it is in doubt") };
    assert!(attempt.recovers && attempt.not_before == at(60_000));
}

#[test]
fn a_run_is_taken_up_again_a_bounded_number_of_times() {
    let often = |recoveries| recovered(&ActiveRun { recoveries, ..run(9) }, Guarantee::AtLeastOnce);
    assert!(matches!(often(MAX_RECOVERIES - 1), Recovery::TryAgain(_)));
    let Recovery::GiveUp(end) = often(MAX_RECOVERIES) else { panic!("it would kill every leader") };
    assert_eq!(end.outcome, Outcome::Indeterminate);
}

#[test]
fn an_at_most_once_intent_without_a_result_is_in_doubt_unless_its_attempt_provably_ended() {
    assert!(matches!(recovered(&run(1), Guarantee::AtMostOnce), Recovery::GiveUp(_)));
    let ended = ActiveRun { ended_at: Some(at(2_000)), ..run(1) };
    assert!(matches!(recovered(&ended, Guarantee::AtMostOnce), Recovery::TryAgain(_)));
}

#[test]
fn a_waiting_attempt_is_taken_over_as_it_is_if_no_clock_can_have_reached_its_time() {
    let waits_until = |millis| ActiveRun { not_before: at(millis), ..run(2) };
    for guarantee in [Guarantee::AtLeastOnce, Guarantee::AtMostOnce] {
        assert_eq!(recovered(&waits_until(70_001), guarantee), Recovery::TakeOver);
        assert_ne!(recovered(&waits_until(70_000), guarantee), Recovery::TakeOver);
    }
}

#[test]
fn a_waiting_attempt_is_in_doubt_while_the_servers_time_is_not_known() {
    let waits = ActiveRun { not_before: at(3_600_000), ..run(2) };
    let recovered = |latest| recovery(&waits, 1, &policy(Guarantee::AtMostOnce), at(0), latest);
    assert_eq!(recovered(Some(at(0))), Recovery::TakeOver);
    assert!(matches!(recovered(Some(at(3_600_000))), Recovery::GiveUp(_)), "only this machine's clock is behind");
    assert!(matches!(recovered(None), Recovery::GiveUp(_)));
}

fn of_a_job(guarantee: Guarantee) -> RunPolicy {
    RunPolicy { action: ActionKind::JobTemplate, ..policy(guarantee) }
}

#[rstest]
#[case::completed(EndKind::JobSucceeded, Outcome::Succeeded, None)]
#[case::failed(EndKind::JobFailed, Outcome::Failed, None)]
#[case::out_of_time(EndKind::JobTimedOut, Outcome::TimedOut, None)]
#[case::deleted(EndKind::JobGone, Outcome::Indeterminate, Some("JobGone"))]
#[case::taken(EndKind::NameTaken, Outcome::Failed, Some("NameTaken"))]
fn the_end_of_a_job_is_the_end_of_its_run_under_either_guarantee(
    #[case] kind: EndKind,
    #[case] expected: Outcome,
    #[case] reason: Option<&'static str>,
) {
    for guarantee in [Guarantee::AtLeastOnce, Guarantee::AtMostOnce] {
        let after = after_attempt(&Ended::Attempt(end(kind)), &run(1), &of_a_job(guarantee), at(9), None, &*entropy());
        let After::Finish(end) = after else { panic!("{kind:?} is tried again: {after:?}") };
        assert_eq!((end.outcome, end.reason), (expected, reason));
    }
}

#[rstest]
#[case(Ended::TermOver)]
#[case(Ended::Stopped)]
#[case(Ended::Attempt(end(EndKind::LeftRunning)))]
fn a_job_is_left_to_the_next_leader_and_nothing_is_recorded(#[case] ended: Ended) {
    for guarantee in [Guarantee::AtLeastOnce, Guarantee::AtMostOnce] {
        let after = after_attempt(&ended, &run(1), &of_a_job(guarantee), at(9), None, &*entropy());
        assert_eq!(after, After::HandOver);
    }
}

#[test]
fn the_job_of_an_earlier_term_is_looked_for_however_often_its_leaders_have_changed() {
    for guarantee in [Guarantee::AtLeastOnce, Guarantee::AtMostOnce] {
        let often = ActiveRun { recoveries: MAX_RECOVERIES, ..run(1) };
        let found = recovery(&often, 1, &of_a_job(guarantee), at(60_000), Some(at(60_000)));
        assert_eq!(found, Recovery::Adopt);
    }
}

#[rstest]
#[case::nothing_sent(EndKind::Replaced { certain: true }, Outcome::Cancelled)]
#[case::something_sent(EndKind::Replaced { certain: false }, Outcome::Indeterminate)]
fn a_replaced_run_is_cancelled_if_that_is_certain_and_in_doubt_if_not(
    #[case] kind: EndKind,
    #[case] expected: Outcome,
) {
    for guarantee in [Guarantee::AtLeastOnce, Guarantee::AtMostOnce] {
        assert_eq!(outcome(&after(kind, &run(1), guarantee)), Some(expected));
    }
    assert_eq!(replaced_while_waiting(None, false, at(0)).outcome, Outcome::Cancelled);
    assert_eq!(replaced_while_waiting(Some("no answer"), true, at(0)).outcome, Outcome::Indeterminate);
}
