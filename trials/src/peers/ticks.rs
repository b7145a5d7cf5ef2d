//! Who worked when, where no two makes have a token in common.
//!
//! Tenure's token is a `resourceVersion`, client-go has but `leaseTransitions`, which a deleted Lease sets back, and others
//! have nothing. So terms are told apart by who sent what, and their order is that of their first datagrams.

use std::time::Duration;

use jiff::SignedDuration;
use serde::Serialize;

use crate::{
    clock::At,
    probe::{Datagrams, parse},
};

/// Whoever has sent nothing for this long is not at work. It sends one datagram per millisecond.
const FRESH: Duration = Duration::from_millis(250);

/// One term of one contender: all datagrams of the same identity and token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stint {
    /// Who sent it.
    pub identity: String,
    /// With which token.
    pub token: u64,
    /// Its first datagram.
    pub first: At,
    /// The last but one.
    pub before_last: At,
    /// Its last datagram.
    pub last: At,
    /// How many arrived.
    pub received: u64,
    /// The lowest and the highest sequence number seen.
    pub sequence: (u64, u64),
}

/// All terms on one Lease, in the order of their first datagrams.
#[derive(Debug, Clone, Default)]
pub struct Ticks {
    stints: Vec<Stint>,
    malformed: u64,
}

impl Datagrams for Ticks {
    fn take(&mut self, at: At, datagram: &[u8]) {
        let Some((token, identity, sequence)) = parse(datagram) else {
            self.malformed += 1;
            return;
        };
        let same = |stint: &&mut Stint| stint.token == token && stint.identity == identity;
        if let Some(stint) = self.stints.iter_mut().rev().find(same) {
            stint.before_last = stint.last;
            stint.last = at;
            stint.received += 1;
            stint.sequence = (stint.sequence.0.min(sequence), stint.sequence.1.max(sequence));
            return;
        }
        self.stints.push(Stint {
            identity: identity.to_owned(),
            token,
            first: at,
            before_last: at,
            last: at,
            received: 1,
            sequence: (sequence, sequence),
        });
    }
}

impl Ticks {
    /// All terms, in the order of their first datagrams.
    pub fn stints(&self) -> &[Stint] {
        &self.stints
    }

    /// Datagrams that did not read `TOKEN IDENTITY SEQUENCE`.
    pub fn malformed(&self) -> u64 {
        self.malformed
    }

    /// The only one at work at this moment, if there is exactly one.
    pub fn at_work(&self, now: At) -> Option<&Stint> {
        let mut working = self.stints.iter().filter(|stint| now.since(stint.last) < FRESH);
        working.next().filter(|_| working.next().is_none())
    }

    /// The first term that began at or after this instant.
    pub fn first_since(&self, at: At) -> Option<&Stint> {
        self.stints.iter().find(|stint| stint.first >= at)
    }

    /// What became of a term that was seen earlier.
    pub fn now(&self, earlier: &Stint) -> Option<&Stint> {
        self.stints.iter().find(|stint| stint.token == earlier.token && stint.identity == earlier.identity)
    }

    /// When somebody was first at work at or after this instant, whoever it was.
    pub fn heard_since(&self, at: At) -> Option<At> {
        self.stints.iter().filter(|stint| stint.last >= at).map(|stint| stint.first.max(at)).min()
    }

    /// The first term that began at or after this instant, of those whose identity begins so.
    pub fn first_of(&self, prefix: &str, since: At) -> Option<&Stint> {
        self.stints.iter().find(|stint| stint.first >= since && stint.identity.starts_with(prefix))
    }

    /// The last datagram of any term whose identity begins so.
    pub fn last_of(&self, prefix: &str) -> Option<At> {
        self.stints.iter().filter(|stint| stint.identity.starts_with(prefix)).map(|stint| stint.last).max()
    }

    /// All terms by their tokens, each with the next one: only for a contender whose tokens grow from term to term.
    ///
    /// What is beside a pair is the last of the older one minus the first of the newer one. `thaws` says which terms thawed
    /// and when: as in [`Stint::overlap`], one datagram of each is excused.
    pub fn successions(&self, thaws: &[(u64, At)]) -> Vec<(&Stint, &Stint, SignedDuration)> {
        let mut terms: Vec<&Stint> = self.stints.iter().collect();
        terms.sort_by_key(|stint| (stint.token, stint.first));
        let distance = |older: &Stint, newer: &Stint| {
            let thaws = thaws.iter().filter(|(token, _)| *token == older.token);
            let excused = thaws.map(|(_, thawed)| older.overlap(newer, Some(*thawed))).min();
            excused.unwrap_or_else(|| older.overlap(newer, None))
        };
        terms.windows(2).map(|pair| (pair[0], pair[1], distance(pair[0], pair[1]))).collect()
    }

    /// How many datagrams never arrived.
    pub fn lost(&self) -> u64 {
        self.lost_of("")
    }

    /// How many datagrams of those whose identity begins so never arrived.
    pub fn lost_of(&self, prefix: &str) -> u64 {
        let sent = |stint: &Stint| stint.sequence.1 - stint.sequence.0 + 1;
        let those = self.stints.iter().filter(|stint| stint.identity.starts_with(prefix));
        those.map(|stint| sent(stint).saturating_sub(stint.received)).sum()
    }
}

impl Stint {
    /// The last of this one minus the first of its successor: a gap is negative.
    ///
    /// A datagram that was about to be sent when its sender was frozen appears as it thaws, at `thawed`. That one is
    /// excused; a second one is not.
    pub fn overlap(&self, successor: &Self, thawed: Option<At>) -> SignedDuration {
        let excused = thawed.is_some_and(|thawed| self.before_last < thawed && thawed <= self.last);
        let last = if excused { self.before_last } else { self.last };
        last.signed_since(successor.first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(datagrams: &[(u64, &str)]) -> Ticks {
        let mut ticks = Ticks::default();
        for (millis, datagram) in datagrams {
            ticks.take(At::from_millis(*millis), datagram.as_bytes());
        }
        ticks
    }

    #[test]
    fn terms_with_equal_tokens_are_told_apart_by_who_sent_them() {
        let ticks = ticks(&[(10, "0 a 0"), (11, "0 b 0"), (12, "0 a 1"), (13, "nonsense")]);
        let [a, b] = ticks.stints() else { unreachable!("two senders, not {:?}", ticks.stints()) };
        assert_eq!((a.first, a.last, a.received), (At::from_millis(10), At::from_millis(12), 2));
        assert_eq!(a.overlap(b, None), SignedDuration::from_millis(1));
        assert_eq!(ticks.malformed(), 1);
        assert_eq!(ticks.at_work(At::from_millis(14)), None, "two are at work");
    }

    #[test]
    fn one_who_fell_silent_is_not_at_work_and_its_gap_is_negative() {
        let ticks = ticks(&[(10, "7 a 0"), (11, "7 a 3"), (600, "9 b 0")]);
        assert_eq!(ticks.at_work(At::from_millis(601)).map(|stint| &*stint.identity), Some("b"));
        let [a, b] = ticks.stints() else { unreachable!("two terms") };
        assert_eq!(a.overlap(b, None), SignedDuration::from_millis(-589));
        assert_eq!(ticks.lost(), 2);
        assert_eq!(ticks.first_since(At::from_millis(12)), Some(b));
    }

    #[test]
    fn somebody_is_heard_at_once_if_its_term_goes_on_and_else_when_the_next_one_begins() {
        let ticks = ticks(&[(10, "7 a 0"), (500, "7 a 1"), (900, "9 b 0")]);
        assert_eq!(ticks.heard_since(At::from_millis(400)), Some(At::from_millis(400)));
        assert_eq!(ticks.heard_since(At::from_millis(600)), Some(At::from_millis(900)));
        assert_eq!(ticks.heard_since(At::from_millis(901)), None);
    }

    #[test]
    fn the_last_of_a_side_is_that_of_its_latest_term_and_its_losses_are_its_own() {
        let ticks = ticks(&[(10, "7 ours-1 0"), (20, "9 ours-1 2"), (30, "0 theirs-1 0"), (40, "9 ours-1 4")]);
        assert_eq!(ticks.last_of("ours"), Some(At::from_millis(40)));
        let first = ticks.first_of("theirs", At::from_millis(5)).map(|stint| stint.first);
        assert_eq!(first, Some(At::from_millis(30)));
        assert_eq!(ticks.first_of("theirs", At::from_millis(31)), None);
        assert_eq!((ticks.lost_of("ours"), ticks.lost_of("theirs"), ticks.lost()), (1, 0, 1));
    }

    #[test]
    fn terms_follow_each_other_by_token_even_if_an_older_one_is_heard_first_of_all_later() {
        let ticks = ticks(&[(10, "7 a 0"), (100, "9 b 0"), (120, "8 c 0"), (130, "9 b 1"), (200, "12 a 0")]);
        let successions = ticks.successions(&[]);
        let found = successions.iter().map(|(older, newer, distance)| (older.token, newer.token, *distance));
        let millis = SignedDuration::from_millis;
        assert_eq!(found.collect::<Vec<_>>(), [(7, 8, millis(-110)), (8, 9, millis(20)), (9, 12, millis(-70))]);
    }

    #[test]
    fn a_thaw_is_no_excuse_for_another_term() {
        let ticks = ticks(&[(10, "7 a 0"), (600, "9 b 0"), (900, "7 a 1")]);
        let distance = |thaws: &[(u64, At)]| ticks.successions(thaws)[0].2;
        assert_eq!(distance(&[(7, At::from_millis(900))]), SignedDuration::from_millis(-590));
        assert_eq!(distance(&[(9, At::from_millis(900))]), SignedDuration::from_millis(300));
    }

    #[test]
    fn a_thaw_excuses_one_datagram_and_not_two() {
        let thawed = Some(At::from_millis(900));
        let one = ticks(&[(10, "7 a 0"), (600, "9 b 0"), (900, "7 a 1")]);
        assert_eq!(one.stints()[0].overlap(&one.stints()[1], thawed), SignedDuration::from_millis(-590));
        let two = ticks(&[(10, "7 a 0"), (600, "9 b 0"), (900, "7 a 1"), (901, "7 a 2")]);
        assert_eq!(two.stints()[0].overlap(&two.stints()[1], thawed), SignedDuration::from_millis(301));
    }
}
