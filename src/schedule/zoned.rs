//! Cron in a time zone: the civil time line laid over real time.
//!
//! Real time is cut into stretches in which the zone's offset does not change. In a stretch, instants and civil times are
//! the same line, moved; only where two stretches meet is there something to decide, and [`Pace`] decides it as Vixie
//! cron does:
//!
//! - an expression with a `*` in its time of day goes with the clock: what a gap leaves out is not run, what an overlap
//!   repeats is run again;
//! - one that names its times of day has each of them once: times that a gap leaves out are run at the instant the gap
//!   ends (several are one slot, since a slot is an instant), times that an overlap repeats are run in the first pass.
//!
//! A gap of more than three hours is a change of the calendar, not of daylight saving time: Samoa had no 30 December 2011,
//! and what would have been run on that day is not run.
//!
//! croner has rules for this too. They are not used, because `0 1,2 * * *` is not a time of day to them, and a gap at
//! midnight can lose a slot that names its weekday, and a day that a zone left out ends their search.

use std::sync::Arc;

use jiff::{Timestamp, tz::TimeZone};

use super::{civil::CivilCron, dialect::Pace};

/// The longest gap that is a change of daylight saving time: Vixie cron's.
const MAX_DAYLIGHT_GAP_SECONDS: i64 = 3 * 3_600;

/// An expression in a zone. Slots are whole seconds, counted from the epoch.
#[derive(Debug, Clone)]
pub(super) struct ZonedCron {
    pub(super) cron: Arc<CivilCron>,
    pub(super) pace: Pace,
    pub(super) zone: TimeZone,
}

/// A stretch of real time with one offset, `[start, end)`.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    start: i64,
    end: i64,
    offset: i64,
    /// The offset before `start`, if there is a before.
    offset_before: Option<i64>,
}

impl ZonedCron {
    /// The first slot at `from` or later.
    pub(super) fn first_from(&self, mut from: i64) -> Option<i64> {
        loop {
            let stretch = Stretch::containing(&self.zone, from)?;
            if from == stretch.start && self.has_carried(&stretch) {
                return Some(from);
            }
            let (first, to) = self.civil_range(&stretch);
            let found = self.cron.first_from(first.max(from.saturating_add(stretch.offset)))?;
            if found < to {
                return Some(found - stretch.offset);
            }
            // The next stretch may show again what this one has shown, so that `found` says nothing about it.
            from = stretch.end;
        }
    }

    /// The last slot at `upto` or earlier, but not before `from`.
    pub(super) fn last_between(&self, from: i64, mut upto: i64) -> Option<i64> {
        while upto >= from {
            let stretch = Stretch::containing(&self.zone, upto)?;
            let (first, to) = self.civil_range(&stretch);
            let found = self.cron.last_upto((to - 1).min(upto.saturating_add(stretch.offset)));
            if let Some(found) = found.filter(|found| *found >= first) {
                return Some(found - stretch.offset).filter(|slot| *slot >= from);
            }
            if self.has_carried(&stretch) {
                return Some(stretch.start).filter(|slot| *slot >= from);
            }
            upto = stretch.start.checked_sub(1)?;
        }
        None
    }

    /// How many slots are in `[from, to)`.
    pub(super) fn count(&self, mut from: i64, to: i64) -> u64 {
        let mut count = 0;
        while from < to {
            let Some(stretch) = Stretch::containing(&self.zone, from) else { return count };
            let (first, last) = self.civil_range(&stretch);
            let end = last.min(to.saturating_add(stretch.offset));
            count += self.cron.count(first.max(from.saturating_add(stretch.offset)), end);
            let carried = from == stretch.start && self.has_carried(&stretch);
            if carried && !self.cron.contains(stretch.start + stretch.offset) {
                count += 1;
            }
            from = stretch.end;
        }
        count
    }

    /// The civil times whose slots are in the stretch; it is empty if the range ends before it begins.
    fn civil_range(&self, stretch: &Stretch) -> (i64, i64) {
        let (start, end) = (stretch.start.saturating_add(stretch.offset), stretch.end.saturating_add(stretch.offset));
        match (self.pace, stretch.offset_before) {
            // Up to where the clock had been before it was set back, all has been run.
            (Pace::Fixed, Some(before)) => (start.max(stretch.start.saturating_add(before)), end),
            _ => (start, end),
        }
    }

    /// Whether the stretch begins with a slot carried over from the gap before it.
    fn has_carried(&self, stretch: &Stretch) -> bool {
        let Some(before) = stretch.offset_before.filter(|_| self.pace == Pace::Fixed) else { return false };
        let gap = stretch.offset - before;
        let left_out = stretch.start + before;
        (1..=MAX_DAYLIGHT_GAP_SECONDS).contains(&gap)
            && self.cron.first_from(left_out).is_some_and(|first| first < left_out + gap)
    }
}

impl Stretch {
    /// The stretch that `at` is in; none where the calendar ends.
    fn containing(zone: &TimeZone, at: i64) -> Option<Self> {
        let instant = Timestamp::from_second(at).ok()?;
        // Transitions are whole seconds, so that one strictly before the next second is at this one or earlier.
        let start = Timestamp::from_second(at.checked_add(1)?).ok().and_then(|next| zone.preceding(next).next());
        let end = zone.following(instant).next();
        let offset_at = |at: Timestamp| i64::from(zone.to_offset(at).seconds());
        let start = start.map(|transition| transition.timestamp().as_second());
        Some(Self {
            start: start.unwrap_or(i64::MIN),
            end: end.map_or(i64::MAX, |transition| transition.timestamp().as_second()),
            offset: offset_at(instant),
            offset_before: start.and_then(|start| Timestamp::from_second(start - 1).ok()).map(offset_at),
        })
    }
}
