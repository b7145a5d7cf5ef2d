//! How long nobody led.

use super::*;

#[test]
fn a_successor_that_comes_later_than_is_promised_or_before_the_fault_fails() {
    let mut evidence = clean(Family::Term);
    evidence.trials[0].limit = Some(Duration::from_millis(1_100));
    assert_eq!(failures(&evidence), Vec::<String>::new());
    evidence.trials[0].limit = Some(Duration::from_millis(1_099));
    fails(&evidence, "somebody led after 1.1s");
    evidence.trials[0].taken_over = None;
    fails(&evidence, "nobody led afterwards");
    let mut evidence = clean(Family::Term);
    evidence.trials[0].taken_over = Some(millis(1_399));
    fails(&evidence, "another replica led before the leader was struck");
}

#[test]
fn a_take_over_counts_from_the_last_sign_of_a_leader_that_ends_at_the_fault() {
    for (family, took) in [(Family::Kill, 1_000), (Family::Term, 1_100)] {
        let mut evidence = clean(family);
        evidence.probe = ProbeLog::default();
        for (at, datagram) in [(500, b"5 a 0"), (1_500, b"5 a 1"), (2_500, b"8 b 0")] {
            evidence.probe.take(millis(at), datagram);
        }
        assert_eq!(judge(&evidence).take_overs, [Duration::from_millis(took)], "{family}");
    }
}

#[test]
fn after_an_outage_a_take_over_counts_from_its_end_and_is_none_if_the_leader_went_on() {
    for (back, took) in [(2_200, Some(300)), (2_600, Some(0)), (3_600, None)] {
        let mut evidence = clean(Family::Kill);
        evidence.trials[0].outage = Some(Outage { from: millis(1_400), back: millis(back) });
        evidence.trials[0].taken_over = None;
        let expected: Vec<Duration> = took.into_iter().map(Duration::from_millis).collect();
        assert_eq!(judge(&evidence).take_overs, expected, "back at {back} ms");
        evidence.trials[0].limit = Some(Duration::from_millis(300));
        assert_eq!(failures(&evidence).is_empty(), took.is_some(), "back at {back} ms");
    }
}

#[test]
fn a_time_without_a_leader_may_last_as_long_as_is_promised_and_as_long_as_nobody_could_lead() {
    let promised = |millis| {
        let mut evidence = clean(Family::Kill);
        evidence.leaderless_limit = Some(Duration::from_millis(millis));
        evidence
    };
    assert_eq!(failures(&promised(1_100)), Vec::<String>::new());
    fails(&promised(1_099), "nobody led for too long 1 times");

    let mut outage = promised(300);
    outage.trials[0].outage = Some(Outage { from: millis(1_300), back: millis(2_200) });
    assert_eq!(failures(&outage), Vec::<String>::new());
    outage.trials[0].outage = Some(Outage { from: millis(1_300), back: millis(2_199) });
    fails(&outage, "nobody led for too long");

    let mut slow = promised(1_000);
    slow.slow.push((millis(2_400), millis(2_700)));
    assert_eq!(failures(&slow), Vec::<String>::new());
    slow.slow[0].0 = millis(2_401);
    fails(&slow, "nobody led for too long");
}

#[test]
fn a_family_in_which_everybody_may_have_to_wait_longer_is_allowed_what_its_trial_is() {
    let gap = |family| {
        let mut evidence = clean(family);
        evidence.leaderless_limit = Some(Duration::from_secs(1));
        evidence.trials[0].limit = Some(Duration::from_millis(1_100));
        judge(&evidence).leaderless.len()
    };
    assert_eq!([Family::ApiSlow, Family::LeaseTouched, Family::NodeCutOff].map(gap), [0, 0, 1]);
}

#[test]
fn a_replica_that_asks_for_the_lease_without_a_pause_fails() {
    let mut evidence = clean(Family::Kill);
    evidence.trials[0].pace = Some(PACE_AT_MOST);
    assert_eq!(failures(&evidence), Vec::<String>::new());
    evidence.trials[0].pace = Some(PACE_AT_MOST + 1);
    fails(&evidence, "61 requests of one replica for the Lease within 10s");
}
