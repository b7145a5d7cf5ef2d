//! When a Lease is free.

use super::*;

const PATIENCE: Duration = Duration::from_secs(15);

fn at(seconds: u64) -> BootTime {
    BootTime::default() + Duration::from_secs(seconds)
}

fn lease() -> LeaseName {
    "old/tenure".parse().expect("a name")
}

fn gone() -> Seen {
    Seen { holder: None, released: false, version: None, duration: Duration::ZERO }
}

fn record(version: u64, holder: Option<&str>, seconds: u64) -> Seen {
    let duration = Duration::from_secs(seconds);
    Seen { holder: holder.map(str::to_owned), released: false, version: Some(version), duration }
}

/// Whether there is leave after each of these looks.
fn leaves(looks: &[(u64, Seen)]) -> Vec<bool> {
    let mut all = Predecessors::new(vec![lease()], PATIENCE);
    let leave = |(seconds, seen): &(u64, Seen)| {
        all.note(&lease(), &Ok(seen.clone()), at(*seconds), at(*seconds));
        all.leave("old/tenure").is_some()
    };
    looks.iter().map(leave).collect()
}

#[test]
fn a_lease_is_named_by_its_namespace_and_its_name() {
    assert_eq!(lease().to_string(), "old/tenure");
    for text in ["tenure", "old/", "/tenure", "old/tenure/x", "Old/tenure", "a.b/tenure", "old/-x", "old tenure", ""] {
        let error = text.parse::<LeaseName>().expect_err("no name of a Lease");
        assert!(error.to_string().starts_with(&format!("{text:?} is not NAMESPACE/LEASE: ")), "{error}");
    }
}

#[test]
fn a_released_lease_is_free_at_once_and_a_held_one_when_nobody_has_renewed_it_for_as_long_as_it_lasts() {
    let released = Seen { released: true, ..record(7, None, 15) };
    assert_eq!(leaves(&[(0, record(6, Some("pod_b_n"), 15)), (5, released)]), [false, true]);
    let renewed = |seconds, version| (seconds, record(version, Some("pod_b_n"), 20));
    assert_eq!(leaves(&[renewed(0, 6), renewed(19, 7), renewed(38, 8), renewed(57, 9)]), [false; 4]);
    assert_eq!(leaves(&[renewed(0, 6), renewed(19, 6), renewed(20, 6)]), [false, false, true]);
}

#[test]
fn a_lease_that_vanishes_is_free_when_its_last_holder_must_have_ended() {
    let held = record(6, Some("pod_b_n"), 60);
    assert_eq!(leaves(&[(0, gone()), (5, gone()), (15, gone())]), [false, false, true]);
    assert_eq!(
        leaves(&[(0, held), (5, gone()), (20, gone()), (64, gone()), (65, gone())]),
        [false, false, false, false, true]
    );
}

#[test]
fn the_longest_duration_that_a_lease_has_shown_is_kept_when_the_rest_is_forgotten() {
    for forgets in [true, false] {
        let mut all = Predecessors::new(vec![lease()], PATIENCE);
        all.note(&lease(), &Ok(record(6, Some("pod_b_n"), 60)), at(0), at(0));
        if forgets {
            all.forget();
        } else {
            assert_eq!(all.due(at(10), |_| false), [], "it owns nothing for a while");
        }
        let free = [20, 36, 79, 80].map(|seconds| {
            all.note(&lease(), &Ok(gone()), at(seconds), at(seconds));
            all.leave("old/tenure").is_some()
        });
        assert_eq!(free, [false, false, false, true]);
    }
}

#[test]
fn a_wait_counts_from_when_an_answer_came_to_when_the_last_question_was_sent() {
    let mut all = Predecessors::new(vec![lease()], PATIENCE);
    for (sent, answered, free) in [(0, 2, false), (15, 17, false), (16, 18, false), (17, 19, true)] {
        all.note(&lease(), &Ok(gone()), at(sent), at(answered));
        assert_eq!(all.leave("old/tenure").is_some(), free, "sent at {sent} s");
    }
}

#[test]
fn an_emptied_lease_is_no_released_one_and_each_change_of_it_begins_the_wait_anew() {
    let looks = [(0, record(6, None, 15)), (14, record(7, None, 15)), (28, record(7, None, 15))];
    assert_eq!(leaves(&looks), [false, false, false]);
    let back = [(0, gone()), (10, record(8, Some("pod_b_n"), 15)), (14, gone()), (28, gone()), (29, gone())];
    assert_eq!(leaves(&back), [false, false, false, false, true]);
}

#[test]
fn leave_does_not_outlast_what_it_was_given_for() {
    let mut all = Predecessors::new(vec![lease()], PATIENCE);
    for seconds in [0, 15] {
        all.note(&lease(), &Ok(gone()), at(seconds), at(seconds));
    }
    let leave = all.leave("old/tenure").expect("it was gone for long enough");
    assert!(leave.holds(&gone()));
    assert!(leave.holds(&Seen { released: true, ..record(9, None, 15) }));
    assert!(!leave.holds(&record(9, Some("pod_b_n"), 15)));
    assert!(!leave.holds(&record(9, None, 15)), "somebody has come, and was wiped out");
    all.note(&lease(), &Err("timeout".to_owned()), at(16), at(16));
    assert_eq!(all.leave("old/tenure"), None, "nobody knows");
}

#[test]
fn a_lease_is_looked_at_while_it_owns_jobs_and_else_forgotten() {
    let mut all = Predecessors::new(vec![lease()], PATIENCE);
    assert_eq!(all.due(at(0), |_| true), [lease()]);
    assert_eq!(all.due(at(1), |_| true), [], "one look at a time");
    all.note(&lease(), &Ok(gone()), at(1), at(1));
    assert_eq!(all.due(at(2), |_| true), []);
    assert_eq!(all.due(at(6), |name| name != "old/tenure"), []);
    assert_eq!(all.due(at(11), |_| true), [lease()]);
    all.note(&lease(), &Ok(gone()), at(16), at(16));
    assert_eq!(all.leave("old/tenure"), None, "what was seen before is forgotten");
}
