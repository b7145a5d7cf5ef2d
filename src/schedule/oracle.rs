//! A second opinion on daylight saving time: Vixie cron's own main loop, over every transition of every zone.
//!
//! The schedule computes; the oracle walks. It wakes at every tick of real time, reads the wall clock of the zone, and
//! does what the daemon does: it keeps a virtual clock, and when the wall clock has jumped away from it, it runs the
//! wildcard jobs by the wall clock and the others by the virtual one. Fields are matched by a closure for each expression,
//! so that nothing is shared with the code under test but the zone database.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{
    SignedDuration, Timestamp,
    civil::{DateTime, Weekday},
    tz::{Offset, TimeZone},
};

use super::{Schedule, ScheduleSpec, ZONES};

/// How far around a transition the oracle walks. After it the window must cover the longest repeat, of three hours.
const BEFORE: SignedDuration = SignedDuration::from_hours(4);
const AFTER: SignedDuration = SignedDuration::from_hours(8);

/// The period whose transitions are walked: each rule in force now is met several times.
const FROM: &str = "2024-01-01T00:00:00Z";
const UPTO: &str = "2031-01-01T00:00:00Z";

/// From here on, those that are not of one hour are walked too: days left out, half hours, three hours.
const ODD_FROM: &str = "1975-01-01T00:00:00Z";

struct Case {
    text: &'static str,
    fixed: bool,
    matches: fn(DateTime) -> bool,
}

const BY_MINUTE: [Case; 10] = [
    Case { text: "*/15 * * * *", fixed: false, matches: |at| at.minute() % 15 == 0 },
    Case { text: "0 * * * *", fixed: false, matches: |at| at.minute() == 0 },
    Case { text: "*/30 2 * * *", fixed: false, matches: |at| at.minute() % 30 == 0 && at.hour() == 2 },
    Case { text: "45 * * * SUN", fixed: false, matches: |at| at.minute() == 45 && at.weekday() == Weekday::Sunday },
    Case { text: "0 0 * * *", fixed: true, matches: |at| at.minute() == 0 && at.hour() == 0 },
    Case { text: "30 2 * * *", fixed: true, matches: |at| at.minute() == 30 && at.hour() == 2 },
    Case { text: "0 1,2,3 * * *", fixed: true, matches: |at| at.minute() == 0 && (1..=3).contains(&at.hour()) },
    Case { text: "0,30 0-3 * * *", fixed: true, matches: |at| at.minute() % 30 == 0 && at.hour() <= 3 },
    Case {
        text: "30 23 * * SAT",
        fixed: true,
        matches: |at| at.minute() == 30 && at.hour() == 23 && at.weekday() == Weekday::Saturday,
    },
    Case {
        text: "5 22-4 29-31 3,10,12 *",
        fixed: true,
        matches: |at| {
            at.minute() == 5
                && (at.hour() >= 22 || at.hour() <= 4)
                && at.day() >= 29
                && [3, 10, 12].contains(&at.month())
        },
    },
];

const BY_SECOND: [Case; 4] = [
    Case { text: "*/20 * * * * *", fixed: false, matches: |at| at.second() % 20 == 0 },
    Case {
        text: "* 59 1,2 * * *",
        fixed: false,
        matches: |at| at.minute() == 59 && (at.hour() == 1 || at.hour() == 2),
    },
    Case { text: "30 30 2 * * *", fixed: true, matches: |at| at.second() == 30 && at.minute() == 30 && at.hour() == 2 },
    Case {
        text: "15,45 0,59 0-3 * * *",
        fixed: true,
        matches: |at| at.second() % 30 == 15 && at.minute() % 59 == 0 && at.hour() <= 3,
    },
];

/// One change of a zone's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Change {
    at: i64,
    before: i32,
    after: i32,
}

/// The wall clock of a zone around a change, at every tick: the instant and what the clock shows.
fn clock(zone: &TimeZone, change: i64, tick: i64) -> Vec<(i64, i64)> {
    let (from, upto) = (change - BEFORE.as_secs(), change + AFTER.as_secs());
    let ticks = (0..=(upto - from) / tick).map(|index| from + index * tick);
    ticks.map(|at| (at, at + i64::from(zone.to_offset(instant(at)).seconds()))).collect()
}

/// What Vixie cron runs while the clock goes through `ticks`, started at the first of them.
fn walk(case: &Case, ticks: &[(i64, i64)], tick: i64) -> BTreeSet<i64> {
    let matches = |local: i64| (case.matches)(Offset::UTC.to_datetime(instant(local)));
    let three_hours = 3 * 3_600;
    let mut virtual_time = ticks[0].1;
    let mut ran = BTreeSet::new();
    for &(now, time) in &ticks[1..] {
        let jump = time - virtual_time;
        if jump > tick && jump <= three_hours + tick {
            if !case.fixed && matches(time) {
                ran.insert(now);
            }
            while virtual_time < time {
                virtual_time += tick;
                if case.fixed && matches(virtual_time) {
                    ran.insert(now);
                }
            }
        } else if jump <= 0 && jump > -three_hours {
            if !case.fixed && matches(time) {
                ran.insert(now);
            }
        } else {
            virtual_time = time;
            if matches(time) {
                ran.insert(now);
            }
        }
    }
    ran
}

fn instant(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("within the calendar")
}

/// Compares what the schedule says with what the oracle walked, from both ends of the window and from around the change.
fn compare(cases: &[Case], zone_name: &str, change: i64, tick: i64) -> usize {
    let ticks = clock(&ZONES.get(zone_name).expect("a zone of the database"), change, tick);
    let (after, upto) = (instant(ticks[0].0), instant(ticks[ticks.len() - 1].0));
    for case in cases {
        let spec = ScheduleSpec { schedule: Some(case.text), interval: None, time_zone: zone_name };
        let schedule = Schedule::parse(&spec).expect("an expression that fires");
        let walked = walk(case, &ticks, tick);
        let place = |at: i64| format!("{} in {zone_name} around {}, at {}", case.text, instant(change), instant(at));

        let slots: BTreeSet<i64> = schedule.slots_in(after, upto).map(Timestamp::as_second).collect();
        assert_eq!(slots, walked, "{}", place(change));
        // At the change, just before it, and between the two passes of a repeated hour.
        for at in [after.as_second(), change - 1, change, change + 1_800, upto.as_second()] {
            let later: Vec<i64> = walked.range(at + 1..).copied().collect();
            let next =
                schedule.next_after(instant(at)).map(Timestamp::as_second).filter(|next| *next <= upto.as_second());
            assert_eq!(next, later.first().copied(), "{}", place(at));
            assert_eq!(schedule.count_in(instant(at), upto), later.len() as u64, "{}", place(at));
            let latest = schedule.latest_in(after, instant(at)).map(Timestamp::as_second);
            assert_eq!(latest, walked.range(..=at).next_back().copied(), "{}", place(at));
        }
    }
    cases.len()
}

/// The changes of every zone, zones with the same changes taken once.
fn zones() -> BTreeMap<Vec<Change>, String> {
    let [odd_from, from, upto] = [ODD_FROM, FROM, UPTO].map(|text| text.parse::<Timestamp>().expect("a time"));
    let mut zones = BTreeMap::new();
    for name in ZONES.available() {
        let zone = ZONES.get(name.as_str()).expect("a zone of the database");
        let changes = zone.following(odd_from).take_while(|change| change.timestamp() < upto).map(|change| {
            let at = change.timestamp().as_second();
            Change { at, before: zone.to_offset(instant(at - 1)).seconds(), after: change.offset().seconds() }
        });
        let walked = changes.filter(|change| {
            let shift = (change.after - change.before).abs();
            shift != 0 && (change.at >= from.as_second() || shift != 3_600)
        });
        zones.entry(walked.collect()).or_insert_with(|| name.to_string());
    }
    zones
}

#[test]
fn every_transition_of_every_zone_is_met_as_vixie_cron_meets_it() {
    let zones = zones();
    let (mut changes, mut compared) = (0, 0);
    for (change, zone) in zones.iter().flat_map(|(changes, zone)| changes.iter().map(move |change| (change, zone))) {
        changes += 1;
        compared += compare(&BY_MINUTE, zone, change.at, 60);
    }
    println!("{compared} expressions at {changes} changes of {} different zones", zones.len());
    assert!(changes > 200, "only {changes} changes");
}

#[test]
fn seconds_follow_the_same_rule_at_a_change_of_the_clock() {
    let changes = [
        ("Europe/Berlin", "2026-03-29T01:00:00Z"),
        ("Europe/Berlin", "2026-10-25T01:00:00Z"),
        ("America/New_York", "2026-03-08T07:00:00Z"),
        ("America/New_York", "2026-11-01T06:00:00Z"),
        ("Australia/Lord_Howe", "2026-04-04T15:00:00Z"),
        ("Australia/Lord_Howe", "2026-10-03T15:30:00Z"),
        ("Pacific/Apia", "2011-12-30T10:00:00Z"),
    ];
    for (zone, at) in changes {
        let at: Timestamp = at.parse().expect("a time");
        let known = ZONES.get(zone).expect("a zone of the database");
        let before = known.to_offset(at - SignedDuration::from_secs(1));
        assert_ne!(before, known.to_offset(at), "{zone} changes at {at}");
        compare(&BY_SECOND, zone, at.as_second(), 1);
    }
}
