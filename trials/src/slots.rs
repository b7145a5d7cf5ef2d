//! Slots, counted from outside: the oracle for interval schedules.
//!
//! An interval job is due at every whole multiple of its period since the Unix epoch. This module walks that grid slot by
//! slot and counts; it shares no code with the scheduler and does not divide where it can count.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// The slots of one interval job in a span of time, ascending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grid {
    slots: Vec<Timestamp>,
}

impl Grid {
    /// Every slot in `(after, until]`.
    ///
    /// # Panics
    ///
    /// If the period is less than a millisecond.
    pub fn between(period: Duration, after: Timestamp, until: Timestamp) -> Self {
        let millis = i64::try_from(period.as_millis()).expect("a period is less than 292 million years");
        assert!(millis > 0, "a period is at least a millisecond");
        // The walk starts two periods early, so that rounding here cannot hide a slot.
        let mut slot = after.as_millisecond().div_euclid(millis) * millis - 2 * millis;
        let mut slots = Vec::new();
        loop {
            let due = Timestamp::from_millisecond(slot).expect("a slot lies in the calendar");
            if due > until {
                return Self { slots };
            }
            if due > after {
                slots.push(due);
            }
            slot += millis;
        }
    }

    /// How many slots lie in `(after, until]`.
    pub fn count(&self, after: Timestamp, until: Timestamp) -> u64 {
        let (from, to) =
            (self.slots.partition_point(|slot| *slot <= after), self.slots.partition_point(|slot| *slot <= until));
        u64::try_from(to.saturating_sub(from)).expect("a count of slots fits 64 bits")
    }

    /// All slots.
    pub fn iter(&self) -> impl Iterator<Item = Timestamp> + '_ {
        self.slots.iter().copied()
    }

    /// Whether `instant` is one of the slots.
    pub fn contains(&self, instant: Timestamp) -> bool {
        self.slots.binary_search(&instant).is_ok()
    }
}

/// The slots named by a range of a status, both ends included.
pub fn in_range(period: Duration, from: Timestamp, to: Timestamp) -> Vec<Timestamp> {
    let before = from - SignedDuration::from_millis(1);
    Grid::between(period, before, to).slots
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn the_start_is_exclusive_and_the_end_inclusive() {
        let grid = Grid::between(Duration::from_millis(200), at("2026-03-01T00:00:00Z"), at("2026-03-01T00:00:01Z"));
        assert_eq!(grid.iter().count(), 5);
        assert!(!grid.contains(at("2026-03-01T00:00:00Z")));
        assert!(grid.contains(at("2026-03-01T00:00:01Z")));
        assert_eq!(grid.count(at("2026-03-01T00:00:00.2Z"), at("2026-03-01T00:00:00.6Z")), 2);
        assert_eq!(grid.count(at("2026-03-01T00:00:00.1Z"), at("2026-03-01T00:00:00.1Z")), 0);
    }

    #[test]
    fn slots_lie_on_the_grid_of_the_epoch_and_not_on_the_origin() {
        let grid = Grid::between(Duration::from_secs(7), at("1970-01-01T00:00:03Z"), at("1970-01-01T00:00:22Z"));
        let seconds: Vec<i64> = grid.iter().map(Timestamp::as_second).collect();
        assert_eq!(seconds, [7, 14, 21]);
    }

    #[test]
    fn a_range_includes_both_of_its_ends() {
        let slots = in_range(Duration::from_secs(1), at("2026-03-01T00:00:01Z"), at("2026-03-01T00:00:03Z"));
        assert_eq!(slots.len(), 3);
    }
}
