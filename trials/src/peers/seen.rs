//! What was seen of one contender in one trial, and what of it breaks a promise of Tenure's.

use std::time::Duration;

use jiff::SignedDuration;

use super::{Fault, Stint, Ticks, fault::Promise, millis, seconds};
use crate::clock::At;

/// A blow: when the harness began to strike, and what came of it.
#[derive(Debug, Clone)]
pub(super) struct Blow {
    /// When the harness began. The helpers need a second or more until they strike.
    pub(super) struck: At,
    /// When it fell, where that is known better.
    pub(super) fell: Option<At>,
    /// When the victim thawed.
    pub(super) thawed: Option<At>,
    /// When the control plane was there again.
    pub(super) resumed: Option<At>,
    /// Whom it fell on, if not on who led at the beginning.
    pub(super) victim: Option<Stint>,
    /// When it was over for this contender, where that is another moment for each.
    pub(super) healed: Option<At>,
}

/// What was seen of one contender that was struck.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen {
    /// How long the fault lasted, where it has a length of its own.
    pub(super) length: Duration,
    /// Last tick of the leader that was struck minus first tick of its successor, if there was one.
    pub(super) overlap: Option<SignedDuration>,
    /// Whether it stopped only when its node was healed.
    pub(super) until_healed: bool,
    /// From the fault, or from the end of one of the control plane, to the successor's first tick.
    pub(super) take_over: Option<Duration>,
    /// From the end of a fault of the control plane to the first tick of anybody.
    pub(super) heard: Option<Duration>,
    /// Which term thawed, and when.
    pub(super) thawed: Option<(u64, At)>,
    /// Whether it had to be started anew to lead again.
    pub(super) anew: bool,
    /// Whether the leader that was struck stayed the leader.
    pub(super) stayed: bool,
}

impl Blow {
    pub(super) const fn at(struck: At) -> Self {
        Self { struck, fell: None, thawed: None, resumed: None, victim: None, healed: None }
    }
}

impl Seen {
    /// What the probe saw of a leader that was struck, and of the first who led after it.
    ///
    /// `healed` is when the fault was over, and `anew` when the harness started the contender anew: whoever leads after that
    /// does not do so by itself.
    pub(super) fn of(ticks: &Ticks, leader: &Stint, blow: &Blow, healed: At, anew: Option<At>) -> Self {
        let leader = blow.victim.as_ref().unwrap_or(leader);
        let healed = blow.healed.unwrap_or(healed);
        let by_itself = |at: At| anew.is_none_or(|anew| at < anew);
        let heard_since = |resumed: At| ticks.heard_since(resumed).filter(|heard| by_itself(*heard));
        let seen = Self {
            heard: blow.resumed.and_then(|resumed| Some(heard_since(resumed)?.since(resumed))),
            thawed: blow.thawed.map(|thawed| (leader.token, thawed)),
            anew: anew.is_some(),
            ..Self::default()
        };
        let Some(successor) = ticks.first_since(blow.struck).filter(|successor| by_itself(successor.first)) else {
            return Self { stayed: true, ..seen };
        };
        let struck = ticks.now(leader).unwrap_or(leader);
        let fault = blow.resumed.or(blow.fell).unwrap_or(blow.struck);
        Self {
            overlap: Some(struck.overlap(successor, blow.thawed)),
            until_healed: struck.last >= healed && successor.first < healed,
            take_over: Some(successor.first.since(fault)),
            ..seen
        }
    }

    /// What Tenure promises after this fault and did not keep.
    pub(super) fn broken(&self, fault: Fault) -> Vec<String> {
        let mut broken = Vec::new();
        if let Some(distance) = self.overlap.filter(|distance| *distance > SignedDuration::ZERO) {
            broken.push(format!("two leaders for {} ms", millis(distance)));
        }
        let late = |took: Option<Duration>, limit: Duration, who: &str| match took {
            None => Some(format!("no {who}, which is due within {} s", seconds(limit))),
            Some(took) if took > limit => {
                Some(format!("a {who} only after {} s, not {} s", seconds(took), seconds(limit)))
            }
            Some(_) => None,
        };
        broken.extend(match fault.promise(self.length) {
            Promise::Successor(limit) => late(self.take_over, limit, "successor"),
            Promise::Leader(limit) => late(self.heard, limit, "leader"),
            Promise::Nothing => None,
        });
        if self.anew {
            broken.push("it did not lead again by itself".to_owned());
        }
        broken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Datagrams;

    fn ticks(datagrams: &[(u64, &str)]) -> Ticks {
        let mut ticks = Ticks::default();
        for (millis, datagram) in datagrams {
            ticks.take(At::from_millis(*millis), datagram.as_bytes());
        }
        ticks
    }

    #[test]
    fn a_successor_is_measured_from_where_the_blow_fell() {
        let ticks = ticks(&[(10, "7 a 0"), (1_100, "7 a 9"), (14_100, "9 b 0")]);
        let blow = Blow { fell: Some(At::from_millis(1_100)), ..Blow::at(At::from_millis(200)) };
        let seen = Seen::of(&ticks, &ticks.stints()[0], &blow, At::from_millis(15_000), None);
        assert_eq!(seen.take_over, Some(Duration::from_secs(13)));
        assert_eq!(seen.overlap, Some(SignedDuration::from_secs(-13)));
        assert!(!seen.stayed && seen.broken(Fault::NodeDead).is_empty(), "{seen:?}");
    }

    #[test]
    fn whom_a_blow_fell_on_later_is_who_is_measured_and_its_own_healing_counts() {
        let ticks = ticks(&[(10, "7 a 0"), (1_000, "9 b 0"), (5_000, "9 b 1"), (4_000, "12 c 0")]);
        let victim = Some(ticks.stints()[1].clone());
        let blow = Blow { victim, healed: Some(At::from_millis(4_500)), ..Blow::at(At::from_millis(2_000)) };
        let seen = Seen::of(&ticks, &ticks.stints()[0], &blow, At::from_millis(9_000), None);
        assert_eq!((seen.overlap, seen.until_healed), (Some(SignedDuration::from_secs(1)), true));
    }

    #[test]
    fn a_leader_that_outlives_a_pause_keeps_the_promise_and_one_who_is_missed_breaks_it() {
        let ticks = ticks(&[(10, "7 a 0"), (5_500, "7 a 9")]);
        let blow = |resumed| Blow { resumed: Some(At::from_millis(resumed)), ..Blow::at(At::from_millis(200)) };
        let seen = |resumed| Seen::of(&ticks, &ticks.stints()[0], &blow(resumed), At::from_millis(resumed), None);
        assert!(seen(5_200).stayed && seen(5_200).broken(Fault::EtcdPaused).is_empty());
        assert_eq!(seen(6_000).broken(Fault::EtcdPaused), ["no leader, which is due within 16.000 s"]);
    }

    #[test]
    fn a_leader_that_had_to_be_started_anew_is_no_successor() {
        let ticks = ticks(&[(10, "7 a 0"), (30_000, "9 b 0")]);
        let (blow, healed) = (Blow::at(At::from_millis(200)), At::from_millis(20_000));
        let seen = Seen::of(&ticks, &ticks.stints()[0], &blow, healed, Some(At::from_millis(29_000)));
        assert!(seen.stayed && seen.anew, "{seen:?}");
        assert_eq!(seen.broken(Fault::LeaseEdited).len(), 2, "no successor, and not by itself");
    }

    #[test]
    fn a_successor_that_is_late_breaks_the_promise_unless_none_is_due() {
        let seen = |take_over, length| Seen {
            take_over: Some(Duration::from_secs(take_over)),
            length: Duration::from_secs(length),
            ..Seen::default()
        };
        assert!(seen(16, 0).broken(Fault::LeaseDeleted).is_empty());
        assert_eq!(seen(17, 0).broken(Fault::LeaseDeleted), ["a successor only after 17.000 s, not 16.000 s"]);
        assert!(seen(17, 0).broken(Fault::LeaseEdited).is_empty());
        assert!(seen(17, 5).broken(Fault::PodFrozen).is_empty());
        assert_eq!(seen(17, 60).broken(Fault::PodFrozen).len(), 1);
    }
}
