//! Runs that outlast the drain.

use super::*;

/// The first runs of both jobs were held until the drain had ended, and went on as their guarantees say.
fn cut_off() -> Evidence {
    let mut evidence = clean(Family::Kill);
    evidence.family = Family::LongRuns;
    still_open(&mut evidence, "least", 1);
    evidence.trials[0].cut = vec!["least-1".into(), "most-1".into()];
    evidence.entries.iter_mut().filter(|entry| entry.request.token == 5).for_each(|entry| entry.answered = None);
    evidence.entries.push(entry(2_600, "least", 1, 8, B));
    for (job, outcome) in [("least", "Interrupted"), ("most", "Indeterminate")] {
        let mut status = coalesced(&json!({}));
        status["lastRuns"] = json!([{ "id": format!("{job}-1"), "outcome": outcome }]);
        version(&mut evidence, 3_400, job, &status);
    }
    evidence
}

#[test]
fn a_run_that_the_end_of_the_drain_cuts_off_goes_on_as_its_guarantee_says() {
    let evidence = cut_off();
    assert_eq!(failures(&evidence), Vec::<String>::new());
    assert_eq!((judge(&evidence).doubled.len(), judge(&evidence).doubled_uncut.len()), (1, 0));

    let mut not_again = cut_off();
    not_again.entries.retain(|entry| entry.first_byte != millis(2_600));
    fails(&not_again, "run least-1 was cut off and not made again");

    let mut answered = cut_off();
    answered.entries[0].answered = Some(millis(1_100));
    fails(&answered, "run least-1 was to be cut off by the end of the drain, and was answered");

    for (job, about) in [("least", "without a record of it"), ("most", "as one of which nobody knows")] {
        let mut unrecorded = cut_off();
        let other = if job == "least" { "most" } else { "least" };
        let known = unrecorded.history.job(other).unwrap().clone();
        unrecorded.history = clean(Family::Kill).history;
        still_open(&mut unrecorded, "least", 1);
        let status = json!({ "id": format!("{other}-1"), "outcome": known.versions.last().unwrap().status.last_runs[0].outcome });
        let mut last = coalesced(&json!({}));
        last["lastRuns"] = json!([status]);
        version(&mut unrecorded, 3_400, other, &last);
        fails(&unrecorded, about);
    }
}

#[test]
fn a_run_that_was_not_to_be_cut_off_is_doubled_by_a_planned_hand_over_all_the_same() {
    let mut evidence = cut_off();
    evidence.entries.push(entry(3_300, "least", 3, 8, B));
    fails(&evidence, "1 runs doubled");
}
