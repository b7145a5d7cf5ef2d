//! Whether this machine's time of day can be trusted: a comparison with the API server's `Date` headers.
//!
//! A `Date` header has whole seconds and is written at some point between the request and the answer, so each one gives a
//! range for the server's time. The range is carried on by the boot clock, which does not step: a step of the wall clock
//! shows at once, without a new answer.
//!
//! There may be several API servers behind one address, and the clock of one of them may be wrong. So the ranges of the
//! last few answers are compared: what the most of them have in common is the server's time, and an answer that contradicts
//! it is left out. Between two opinions that have as many answers, the wall clock decides, as one clock more. The answers
//! to each client are counted apart, because a client stays with one server for as long as its connection lasts, and the
//! one that asks most often must not outvote the other.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::{
    apiserver::DateSeen,
    clock::{BootTime, Clock},
};

/// A wall clock that is off by more than the limit for this long is wrong, and not only late.
const PERSISTS: Duration = Duration::from_secs(10);

/// A wall clock that was wrong is trusted again below this difference.
const TRUSTED_BELOW: Duration = Duration::from_secs(2);

/// A `Date` header has whole seconds: the true time was up to this much later.
const DATE_STEP: SignedDuration = SignedDuration::from_secs(1);

/// So many answers to each client are compared.
const ANSWERS_KEPT: usize = 5;

/// An answer that came so long before the newest one is compared no more: a server's clock may have been put right since.
const KEPT_FOR: Duration = Duration::from_secs(30);

/// The clocks of this machine and of a server run apart by up to this part of the time between two answers.
const DRIFT_PART: u32 = 10;

/// What is known about the wall clock.
#[derive(Debug, Clone)]
pub struct Skew {
    /// The difference that is too much; zero switches the comparison off.
    limit: Duration,
    /// Which client heard what, in the order in which it came.
    answers: Vec<(usize, DateSeen)>,
    /// What the most answers have in common: more than one range, if as many answers contradict each other.
    ranges: Vec<Range>,
    /// The latest time that any answer allows.
    latest: Option<Timestamp>,
    beyond_since: Option<BootTime>,
    wrong: Option<SignedDuration>,
}

/// Where the server's time lay when the boot clock stood at its origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    earliest: Timestamp,
    latest: Timestamp,
}

impl Range {
    /// What an answer says, as wide as clocks that run apart make it until `newest` has come.
    fn of(seen: &DateSeen, newest: BootTime) -> Option<Self> {
        let drift = signed(newest.saturating_since(seen.received) / DRIFT_PART);
        let earliest = seen.server.checked_sub(signed(seen.received.since_origin())).ok()?;
        let latest = seen.server.checked_sub(signed(seen.sent.since_origin())).ok()?;
        Some(Self {
            earliest: earliest.checked_sub(drift).ok()?,
            latest: latest.checked_add(DATE_STEP).ok()?.checked_add(drift).ok()?,
        })
    }

    /// The same when the boot clock stands at `boot`.
    fn at(self, boot: BootTime) -> Option<Self> {
        let passed = signed(boot.since_origin());
        Some(Self { earliest: self.earliest.checked_add(passed).ok()?, latest: self.latest.checked_add(passed).ok()? })
    }

    /// How far `wall` is outside.
    fn distance(self, wall: Timestamp) -> SignedDuration {
        wall.duration_since(wall.clamp(self.earliest, self.latest))
    }
}

impl Skew {
    /// Nothing is known yet.
    pub const fn new(limit: Duration) -> Self {
        Self { limit, answers: Vec::new(), ranges: Vec::new(), latest: None, beyond_since: None, wrong: None }
    }

    /// Takes in the newest `Date` header that the client number `client` has seen.
    pub fn note(&mut self, client: usize, seen: DateSeen) {
        let known = self.answers.iter().rfind(|(heard_by, _)| *heard_by == client);
        if self.limit.is_zero() || known.is_some_and(|(_, known)| known.received >= seen.received) {
            return;
        }
        self.answers.push((client, seen));
        let newest = self.answers.iter().map(|(_, seen)| seen.received).max().unwrap_or_default();
        self.answers.retain(|(_, seen)| newest.saturating_since(seen.received) <= KEPT_FOR);
        if self.answers.iter().filter(|(heard_by, _)| *heard_by == client).count() > ANSWERS_KEPT
            && let Some(oldest) = self.answers.iter().position(|(heard_by, _)| *heard_by == client)
        {
            self.answers.remove(oldest);
        }
        let said: Vec<Range> = self.answers.iter().filter_map(|(_, seen)| Range::of(seen, newest)).collect();
        self.ranges = common(&said);
        self.latest = said.iter().map(|range| range.latest).max();
    }

    /// Compares the clocks, and returns by how much the wall clock is wrong, if it is.
    pub fn look(&mut self, clock: &dyn Clock) -> Option<SignedDuration> {
        let (boot, wall) = (clock.boot(), clock.wall());
        let difference = self.range(boot, wall)?.distance(wall);
        let beyond = difference.unsigned_abs();
        if beyond <= self.limit {
            self.beyond_since = None;
        }
        if self.wrong.is_some() {
            self.wrong = (beyond >= TRUSTED_BELOW).then_some(difference);
        } else if beyond > self.limit {
            let since = *self.beyond_since.get_or_insert(boot);
            self.wrong = (boot.saturating_since(since) >= PERSISTS).then_some(difference);
        }
        self.wrong
    }

    /// The time of day for decisions: the wall clock's, or, where that cannot be the API server's, the earliest that it may
    /// be there. So nothing starts early on a machine whose clock is ahead.
    pub fn now(&self, clock: &dyn Clock) -> Timestamp {
        let wall = clock.wall();
        match self.range(clock.boot(), wall) {
            Some(range) if !range.distance(wall).is_zero() => range.earliest,
            _ => wall,
        }
    }

    /// The latest time that it may be at any API server that has answered, and not before what the wall clock says. None
    /// while no answer has been seen, or with the comparison switched off.
    pub fn latest(&self, clock: &dyn Clock) -> Option<Timestamp> {
        let latest = self.latest?.checked_add(signed(clock.boot().since_origin())).ok()?;
        Some(latest.max(clock.wall()))
    }

    /// The range that the server's time lies in: of several that have as many answers, the one nearest to the wall clock.
    fn range(&self, boot: BootTime, wall: Timestamp) -> Option<Range> {
        let ranges = self.ranges.iter().filter_map(|range| range.at(boot));
        ranges.min_by_key(|range| range.distance(wall).unsigned_abs())
    }
}

/// What the most of `said` have in common. It begins where one of them begins.
fn common(said: &[Range]) -> Vec<Range> {
    let mut most = 0;
    let mut common: Vec<Range> = Vec::new();
    for Range { earliest, .. } in said {
        let agree = || said.iter().filter(|range| range.earliest <= *earliest && *earliest <= range.latest);
        let count = agree().count();
        if count > most {
            most = count;
            common.clear();
        }
        if count == most {
            common.extend(agree().map(|range| range.latest).min().map(|latest| Range { earliest: *earliest, latest }));
        }
    }
    common
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::{RATE_ONE, SimulatedClock};

    const LIMIT: Duration = Duration::from_secs(5);

    fn clock() -> Arc<SimulatedClock> {
        SimulatedClock::new(Timestamp::UNIX_EPOCH, RATE_ONE, SignedDuration::ZERO)
    }

    fn answer(clock: &SimulatedClock, server: Timestamp) -> DateSeen {
        DateSeen { server, wall: clock.wall(), sent: clock.boot(), received: clock.boot() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_of_the_wall_clock_counts_as_wrong_after_ten_seconds_and_until_it_is_nearly_right() {
        let clock = clock();
        let mut skew = Skew::new(LIMIT);
        skew.note(0, answer(&clock, Timestamp::UNIX_EPOCH));
        assert_eq!(skew.look(&*clock), None);
        clock.step_wall(SignedDuration::from_hours(1));
        assert_eq!(skew.look(&*clock), None);
        clock.sleep_until(clock.boot() + PERSISTS).await;
        assert!(skew.look(&*clock).is_some());
        clock.step_wall(SignedDuration::from_secs(4));
        assert!(skew.look(&*clock).is_some(), "it is trusted again only below two seconds");
        clock.step_wall(SignedDuration::from_secs(1));
        assert_eq!(skew.look(&*clock), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_difference_is_not_held_against_the_clock() {
        let clock = clock();
        let mut skew = Skew::new(LIMIT);
        skew.note(0, answer(&clock, Timestamp::UNIX_EPOCH));
        clock.step_wall(SignedDuration::from_mins(-2));
        assert_eq!(skew.look(&*clock), None);
        clock.sleep_until(clock.boot() + PERSISTS / 2).await;
        clock.step_wall(SignedDuration::ZERO);
        assert_eq!(skew.look(&*clock), None);
        clock.step_wall(SignedDuration::from_mins(-2));
        clock.sleep_until(clock.boot() + PERSISTS / 2).await;
        assert_eq!(skew.look(&*clock), None);
    }

    #[tokio::test(start_paused = true)]
    async fn decisions_outside_of_the_servers_range_are_made_by_its_earliest_time() {
        let clock = clock();
        let mut skew = Skew::new(LIMIT);
        skew.note(0, answer(&clock, Timestamp::UNIX_EPOCH));
        for (step, expected) in [
            (SignedDuration::from_hours(1), SignedDuration::ZERO),
            (SignedDuration::from_millis(1_001), SignedDuration::ZERO),
            (SignedDuration::from_millis(1_000), SignedDuration::from_millis(1_000)),
            (SignedDuration::from_millis(-1), SignedDuration::ZERO),
            (SignedDuration::from_hours(-1), SignedDuration::ZERO),
        ] {
            clock.step_wall(step);
            assert_eq!(skew.now(&*clock), Timestamp::UNIX_EPOCH + expected, "{step:?}");
        }
        assert_eq!(Skew::new(Duration::ZERO).now(&*clock), clock.wall());
    }

    /// The wall clock is right, and answers come a tenth of a second apart: who hears each, and how wrong its server is.
    async fn told(said: &[(usize, i64)]) -> (Arc<SimulatedClock>, Skew) {
        let (clock, mut skew) = (clock(), Skew::new(LIMIT));
        for (client, error) in said {
            let server = clock.wall() + SignedDuration::from_secs(*error);
            let whole = Timestamp::from_second(server.as_second()).expect("it is in range");
            skew.note(*client, answer(&clock, whole));
            clock.sleep_until(clock.boot() + Duration::from_millis(100)).await;
        }
        (clock, skew)
    }

    async fn is_wrong_at_last(said: &[(usize, i64)]) -> bool {
        let (clock, mut skew) = told(said).await;
        skew.look(&*clock);
        clock.sleep_until(clock.boot() + PERSISTS).await;
        skew.look(&*clock).is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn one_server_with_a_wrong_clock_is_outvoted() {
        for (said, expected) in [
            (&[(0, 10)][..], true),
            (&[(0, 0), (0, 10), (0, 0)], false),
            // The wall clock is one clock more.
            (&[(0, 0), (0, 10)], false),
            (&[(0, 10), (0, 0), (0, 10)], true),
            // However often one client asks a server that is wrong.
            (&[(1, 0), (1, 0), (1, 0), (1, 0), (1, 0), (0, 9), (0, 9), (0, 9), (0, 9), (0, 9), (0, 9), (0, 9)], false),
            // Two servers that are wrong in ways of their own do not agree.
            (&[(0, 10), (0, -10), (0, 0)], false),
        ] {
            assert_eq!(is_wrong_at_last(said).await, expected, "{said:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn several_answers_narrow_the_servers_time_down() {
        let (clock, skew) = told(&[(0, 0); 10]).await;
        let wall = clock.wall();
        clock.step_wall(SignedDuration::from_millis(600));
        let lag = wall.duration_since(skew.now(&*clock));
        assert!(!lag.is_negative() && lag < SignedDuration::from_millis(600), "{lag:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_was_put_right_is_believed_when_its_answers_are_old() {
        let (clock, mut skew) = told(&[(0, 10); 5]).await;
        skew.look(&*clock);
        clock.sleep_until(clock.boot() + PERSISTS).await;
        assert!(skew.look(&*clock).is_some());
        clock.sleep_until(clock.boot() + KEPT_FOR).await;
        skew.note(0, answer(&clock, clock.wall()));
        assert_eq!(skew.look(&*clock), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_latest_time_is_that_of_the_latest_server() {
        let (clock, skew) = told(&[(0, 0), (0, 0), (0, 7)]).await;
        let latest = skew.latest(&*clock).expect("there were answers");
        assert!(latest >= clock.wall() + SignedDuration::from_secs(7), "{latest}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_was_set_back_does_not_make_it_earlier_at_the_server() {
        let clock = clock();
        let mut skew = Skew::new(LIMIT);
        assert_eq!(skew.latest(&*clock), None, "nothing is known");
        skew.note(0, answer(&clock, Timestamp::UNIX_EPOCH));
        clock.step_wall(SignedDuration::from_hours(-1));
        clock.sleep_until(clock.boot() + Duration::from_secs(3)).await;
        assert_eq!(skew.latest(&*clock), Some(Timestamp::UNIX_EPOCH + SignedDuration::from_secs(4)));
        let mut off = Skew::new(Duration::ZERO);
        off.note(0, answer(&clock, Timestamp::UNIX_EPOCH));
        assert_eq!(off.latest(&*clock), None);
    }
}
