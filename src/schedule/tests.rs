//! What the dialect means, what is refused and how, and what must hold for every schedule.

use proptest::prelude::*;
use rstest::rstest;

use super::*;

fn cron_in(schedule: &str, time_zone: &str) -> Result<Schedule, ScheduleError> {
    Schedule::parse(&ScheduleSpec { schedule: Some(schedule), interval: None, time_zone })
}

fn cron(schedule: &str) -> Schedule {
    cron_in(schedule, "UTC").unwrap_or_else(|error| panic!("{error}"))
}

fn every(millis: u64) -> Schedule {
    let interval = Some(Duration::from_millis(millis));
    Schedule::parse(&ScheduleSpec { schedule: None, interval, time_zone: "UTC" }).expect("a valid interval")
}

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

/// The first slots after `after`, one per expected slot.
fn next(schedule: &Schedule, after: &str, count: usize) -> Vec<String> {
    schedule.slots_in(at(after), Timestamp::MAX).take(count).map(|slot| slot.to_string()).collect()
}

// 2026-01-01 is a Thursday.
#[rstest]
#[case::every_minute("* * * * *", &["2026-01-01T00:01:00Z", "2026-01-01T00:02:00Z"])]
#[case::step("*/25 * * * *", &["2026-01-01T00:25:00Z", "2026-01-01T00:50:00Z", "2026-01-01T01:00:00Z"])]
#[case::step_from_a_value("5/15 * * * *", &["2026-01-01T00:05:00Z", "2026-01-01T00:20:00Z", "2026-01-01T00:35:00Z", "2026-01-01T00:50:00Z", "2026-01-01T01:05:00Z"])]
#[case::step_in_a_range("20-35/15 * * * *", &["2026-01-01T00:20:00Z", "2026-01-01T00:35:00Z", "2026-01-01T01:20:00Z"])]
#[case::step_beyond_the_field("*/90 * * * *", &["2026-01-01T01:00:00Z", "2026-01-01T02:00:00Z"])]
#[case::list("0 8,20 * * *", &["2026-01-01T08:00:00Z", "2026-01-01T20:00:00Z", "2026-01-02T08:00:00Z"])]
#[case::range("0 22-23 * * *", &["2026-01-01T22:00:00Z", "2026-01-01T23:00:00Z", "2026-01-02T22:00:00Z"])]
#[case::wrapping_range("0 22-1 * * *", &["2026-01-01T01:00:00Z", "2026-01-01T22:00:00Z", "2026-01-01T23:00:00Z", "2026-01-02T00:00:00Z"])]
#[case::wrapping_range_with_a_step("0 21-3/3 * * *", &["2026-01-01T03:00:00Z", "2026-01-01T21:00:00Z", "2026-01-02T00:00:00Z", "2026-01-02T03:00:00Z"])]
#[case::seconds("10/20 * * * * *", &["2026-01-01T00:00:10Z", "2026-01-01T00:00:30Z", "2026-01-01T00:00:50Z", "2026-01-01T00:01:10Z"])]
#[case::month_by_name("0 0 1 feb,APR *", &["2026-02-01T00:00:00Z", "2026-04-01T00:00:00Z", "2027-02-01T00:00:00Z"])]
#[case::months_that_wrap("0 0 1 NOV-FEB *", &["2026-02-01T00:00:00Z", "2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"])]
#[case::weekday_by_name("0 0 * * mon", &["2026-01-05T00:00:00Z", "2026-01-12T00:00:00Z"])]
#[case::weekdays("0 0 * * MON-FRI", &["2026-01-02T00:00:00Z", "2026-01-05T00:00:00Z"])]
#[case::weekdays_that_wrap("0 0 * * FRI-MON", &["2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z", "2026-01-04T00:00:00Z", "2026-01-05T00:00:00Z", "2026-01-09T00:00:00Z"])]
#[case::sunday_is_0("0 0 * * 0", &["2026-01-04T00:00:00Z", "2026-01-11T00:00:00Z"])]
#[case::sunday_is_7("0 0 * * 7", &["2026-01-04T00:00:00Z", "2026-01-11T00:00:00Z"])]
#[case::up_to_7("0 0 * * 6-7", &["2026-01-03T00:00:00Z", "2026-01-04T00:00:00Z", "2026-01-10T00:00:00Z"])]
#[case::every_other_weekday("0 0 * * */2", &["2026-01-03T00:00:00Z", "2026-01-04T00:00:00Z", "2026-01-06T00:00:00Z"])]
#[case::either_day("0 0 13 * FRI", &["2026-01-02T00:00:00Z", "2026-01-09T00:00:00Z", "2026-01-13T00:00:00Z", "2026-01-16T00:00:00Z"])]
#[case::a_stepped_star_is_not_a_star("0 0 */10 * FRI", &["2026-01-02T00:00:00Z", "2026-01-09T00:00:00Z", "2026-01-11T00:00:00Z"])]
#[case::a_step_of_one_is_a_star("0 0 */1 * FRI", &["2026-01-02T00:00:00Z", "2026-01-09T00:00:00Z"])]
#[case::question_mark("0 0 ? * FRI", &["2026-01-02T00:00:00Z", "2026-01-09T00:00:00Z"])]
#[case::question_mark_as_weekday("0 0 13 * ?", &["2026-01-13T00:00:00Z", "2026-02-13T00:00:00Z"])]
#[case::last_day("0 0 L * *", &["2026-01-31T00:00:00Z", "2026-02-28T00:00:00Z"])]
#[case::last_weekday("0 0 LW * *", &["2026-01-30T00:00:00Z", "2026-02-27T00:00:00Z"])]
#[case::nearest_weekday("0 0 1w,15W * *", &["2026-01-15T00:00:00Z", "2026-02-02T00:00:00Z", "2026-02-16T00:00:00Z"])]
#[case::first_or_last_day("0 0 1,L * *", &["2026-01-31T00:00:00Z", "2026-02-01T00:00:00Z"])]
#[case::last_friday("0 0 * * 5L", &["2026-01-30T00:00:00Z", "2026-02-27T00:00:00Z"])]
#[case::last_sunday("0 0 * * SUNL", &["2026-01-25T00:00:00Z", "2026-02-22T00:00:00Z"])]
#[case::last_friday_after_the_hash("0 0 * * FRI#L", &["2026-01-30T00:00:00Z", "2026-02-27T00:00:00Z"])]
#[case::second_tuesday("0 0 * * TUE#2", &["2026-01-13T00:00:00Z", "2026-02-10T00:00:00Z"])]
#[case::fifth_sunday("0 0 * * 7#5", &["2026-03-29T00:00:00Z", "2026-05-31T00:00:00Z"])]
#[case::leap_day("0 0 29 2 *", &["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"])]
#[case::blanks("  0\t12  *   * * ", &["2026-01-01T12:00:00Z"])]
#[case::hourly("@hourly", &["2026-01-01T01:00:00Z", "2026-01-01T02:00:00Z"])]
#[case::daily("@daily", &["2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z"])]
#[case::midnight("@Midnight", &["2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z"])]
#[case::weekly("@weekly", &["2026-01-04T00:00:00Z", "2026-01-11T00:00:00Z"])]
#[case::monthly("@monthly", &["2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z"])]
#[case::yearly("@yearly", &["2027-01-01T00:00:00Z", "2028-01-01T00:00:00Z"])]
#[case::annually("@annually", &["2027-01-01T00:00:00Z", "2028-01-01T00:00:00Z"])]
fn an_expression_means_these_slots(#[case] schedule: &str, #[case] expected: &[&str]) {
    assert_eq!(next(&cron(schedule), "2026-01-01T00:00:00Z", expected.len()), expected);
}

#[rstest]
#[case("second", "{} * * * * *", &["0", "59"], &["60", "-1", "L", "JAN", "+5", ""])]
#[case("minute", "{} * * * *", &["0", "59"], &["60", "100", "99999999999", "MON", "1W", "1#1", "H"])]
#[case("hour", "* {} * * *", &["0", "23"], &["24", "1-24", "24-1", "x", "~"])]
#[case("day of month", "* * {} * *", &["1", "31", "L", "LW", "1W", "31W"], &["0", "32", "0W", "32W", "W", "5L", "L-3", "L,LW", "1#2"])]
#[case("month", "* * * {} *", &["1", "12", "JAN", "DEC"], &["0", "13", "JANUARY", "MON", "L"])]
#[case("day of week", "* * * * {}", &["0", "7", "SUN", "SAT", "0L", "7L", "7#5"], &["8", "JAN", "L", "LW", "1#0", "1#6", "1#", "#1", "8#1", "FRIDAY", "1W", "+1"])]
fn each_field_takes_its_bounds_and_nothing_beyond(
    #[case] field: &str,
    #[case] pattern: &str,
    #[case] taken: &[&str],
    #[case] refused: &[&str],
) {
    for value in taken {
        let schedule = pattern.replace("{}", value);
        assert!(cron_in(&schedule, "UTC").is_ok(), "{schedule}");
    }
    for value in refused.iter().filter(|value| !value.is_empty()) {
        let schedule = pattern.replace("{}", value);
        let error = cron_in(&schedule, "UTC").expect_err(&schedule).to_string();
        assert!(error.starts_with(&format!("spec.schedule: the {field} field has \"")), "{schedule}: {error}");
    }
    for shape in ["{},", ",{}", "{}-", "-{}", "{}/", "/{}", "{}/0", "*/0", "*/-1", "{}-{}-{}", "**", "1//2"] {
        let schedule = pattern.replace("{}", &shape.replace("{}", "2"));
        let error = cron_in(&schedule, "UTC").expect_err(&schedule).to_string();
        assert!(error.contains(&format!("the {field} field has \"")), "{schedule}: {error}");
    }
}

#[rstest]
#[case("", "spec.schedule: the expression is empty: write five fields, as in \"*/5 * * * *\"")]
#[case(
    "* * * *",
    "spec.schedule: found 4 fields, expected 5 (minute, hour, day of month, month, day of week), or 6 with seconds before them"
)]
#[case(
    "0 0 0 1 1 * 2030",
    "spec.schedule: found 7 fields, expected 5 (minute, hour, day of month, month, day of week), or 6 with seconds before them"
)]
#[case(
    "61 * * * *",
    "spec.schedule: the minute field has \"61\", expected 0 to 59, *, or a list, range or step of these"
)]
#[case(
    "0 0 * FOO *",
    "spec.schedule: the month field has \"FOO\", expected 1 to 12, JAN to DEC, *, or a list, range or step of these"
)]
#[case(
    "0 0 32 * *",
    "spec.schedule: the day of month field has \"32\", expected 1 to 31, L, LW or 15W, *, or a list, range or step of these"
)]
#[case(
    "0 0 * * 8",
    "spec.schedule: the day of week field has \"8\", expected 0 to 7, SUN to SAT, 5L or 5#2, *, or a list, range or step of these"
)]
#[case(
    "0 0 * * L",
    "spec.schedule: the day of week field has \"L\", expected a day before the L, as in 5L for the last Friday of a month"
)]
#[case(
    "*/0 * * * *",
    "spec.schedule: the minute field has \"*/0\", expected a step of 1 or more after the slash, as in */5"
)]
#[case(
    "TZ=Europe/Berlin 0 9 * * *",
    "spec.schedule: a time zone does not belong into the expression: write timeZone: Europe/Berlin beside schedule: \"0 9 * * *\""
)]
#[case(
    "CRON_TZ=UTC @daily",
    "spec.schedule: a time zone does not belong into the expression: write timeZone: UTC beside schedule: \"@daily\""
)]
#[case("@every 1h30m", "spec.schedule: \"@every\" is written as an interval: remove schedule and set interval: 1h30m")]
#[case(
    "@reboot",
    "spec.schedule: \"@reboot\" is not known: use @hourly, @daily, @midnight, @weekly, @monthly, @yearly, @annually or five fields"
)]
#[case(
    "0 0 30 2 *",
    "spec.schedule: \"0 0 30 2 *\" never fires in time zone UTC: check its day of month against its month and its hour against changes of daylight saving time"
)]
fn what_is_refused_says_which_field_and_what_to_do(#[case] schedule: &str, #[case] message: &str) {
    assert_eq!(cron_in(schedule, "UTC").expect_err(schedule).to_string(), message);
}

#[rstest]
#[case("0 0 31 2,4,6,9,11 *", "UTC")]
#[case("0 0 30W 2 *", "UTC")]
#[case::always_in_the_gap("*/5 2 * 3 7L", "Europe/Berlin")]
fn an_expression_that_never_fires_is_refused(#[case] schedule: &str, #[case] time_zone: &str) {
    assert!(matches!(cron_in(schedule, time_zone), Err(ScheduleError::NeverFires { .. })));
}

#[test]
fn a_fixed_time_that_is_always_in_the_gap_fires_at_its_end() {
    let schedule = cron_in("30 2 * 3 7L", "Europe/Berlin").expect("an expression that fires");
    assert_eq!(next(&schedule, "2026-01-01T00:00:00Z", 2), ["2026-03-29T01:00:00Z", "2027-03-28T01:00:00Z"]);
}

#[test]
fn an_expression_too_long_to_be_meant_is_refused_unread() {
    let long = "0,".repeat(dialect::MAX_EXPRESSION_CHARS);
    assert_eq!(cron_in(&long, "UTC").map(|_| ()), Err(DialectError::TooLong(long.len()).into()));
    let all: Vec<_> = (0..60).map(|value| value.to_string()).collect();
    let full = format!("{0} {0} * * * *", all.join(","));
    assert!(full.len() <= dialect::MAX_EXPRESSION_CHARS);
    assert_eq!(next(&cron(&full), "2026-01-01T00:00:00Z", 1), ["2026-01-01T00:00:01Z"]);
}

#[rstest]
#[case("Europe/Berln")]
#[case("")]
#[case("Local")]
#[case("Etc/Unknown")]
#[case("+02:00")]
#[case("CEST")]
#[case("../../etc/passwd")]
fn a_zone_that_is_not_known_is_refused_by_name(#[case] zone: &str) {
    let message = format!(
        "spec.timeZone: \"{zone}\" is not a time zone of the IANA database: write a name such as UTC or Europe/Berlin"
    );
    assert_eq!(cron_in("@daily", zone).expect_err(zone).to_string(), message);
}

#[rstest]
#[case(
    None,
    None,
    "spec: neither schedule nor interval is set: set one, as in schedule: \"*/5 * * * *\" or interval: 30s"
)]
#[case(Some("@daily"), Some(1_000_000), "spec: both schedule and interval are set: remove one of them")]
#[case(None, Some(0), "spec.interval: 0s is too short: the shortest interval is 100ms")]
#[case(None, Some(99_000), "spec.interval: 99ms is too short: the shortest interval is 100ms")]
#[case(None, Some(99_999), "spec.interval: 99.999ms is too short: the shortest interval is 100ms")]
fn exactly_one_of_schedule_and_interval_is_needed(
    #[case] schedule: Option<&str>,
    #[case] micros: Option<u64>,
    #[case] message: &str,
) {
    let spec = ScheduleSpec { schedule, interval: micros.map(Duration::from_micros), time_zone: "UTC" };
    assert_eq!(Schedule::parse(&spec).expect_err("refused").to_string(), message);
}

#[rstest]
#[case::gap_runs_a_time_at_its_end("Europe/Berlin", "30 2 * * *", "2026-03-28T12:00:00Z", &["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"])]
#[case::gap_runs_several_times_once("Europe/Berlin", "0,15,30,45 2 * * *", "2026-03-28T12:00:00Z", &["2026-03-29T01:00:00Z", "2026-03-30T00:00:00Z"])]
#[case::gap_end_that_matches_runs_once("Europe/Berlin", "0 2,3 * * *", "2026-03-28T12:00:00Z", &["2026-03-29T01:00:00Z", "2026-03-30T00:00:00Z"])]
#[case::gap_is_skipped_by_a_wildcard("Europe/Berlin", "*/30 * * * *", "2026-03-29T00:00:00Z", &["2026-03-29T00:30:00Z", "2026-03-29T01:00:00Z"])]
#[case::gap_is_skipped_by_a_wildcard_minute("Europe/Berlin", "*/30 2 * * *", "2026-03-28T12:00:00Z", &["2026-03-30T00:00:00Z"])]
#[case::repeat_runs_a_time_once("Europe/Berlin", "30 2 * * *", "2026-10-24T12:00:00Z", &["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"])]
#[case::repeat_runs_two_times_once("Europe/Berlin", "0 2,3 * * *", "2026-10-24T12:00:00Z", &["2026-10-25T00:00:00Z", "2026-10-25T02:00:00Z", "2026-10-26T01:00:00Z"])]
#[case::repeat_runs_a_wildcard_in_both("Europe/Berlin", "30 * * * *", "2026-10-25T00:00:00Z", &["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-25T02:30:00Z"])]
#[case::from_between_the_passes("Europe/Berlin", "30 2 * * *", "2026-10-25T01:10:00Z", &["2026-10-26T01:30:00Z"])]
#[case::new_york_gap("America/New_York", "30 2 * * *", "2026-03-07T12:00:00Z", &["2026-03-08T07:00:00Z", "2026-03-09T06:30:00Z"])]
#[case::new_york_repeat("America/New_York", "30 1 * * *", "2026-10-31T12:00:00Z", &["2026-11-01T05:30:00Z", "2026-11-02T06:30:00Z"])]
#[case::half_an_hour_left_out("Australia/Lord_Howe", "15 2 * * *", "2026-10-03T12:00:00Z", &["2026-10-03T15:30:00Z", "2026-10-04T15:15:00Z"])]
#[case::half_an_hour_repeated("Australia/Lord_Howe", "*/15 * * * *", "2026-04-04T14:30:00Z", &["2026-04-04T14:45:00Z", "2026-04-04T15:00:00Z", "2026-04-04T15:15:00Z", "2026-04-04T15:30:00Z"])]
#[case::two_hours_left_out("Antarctica/Troll", "0 1,2 * * *", "2026-03-28T12:00:00Z", &["2026-03-29T01:00:00Z", "2026-03-29T23:00:00Z"])]
#[case::midnight_left_out("America/Santiago", "0 0 * * *", "2026-09-05T12:00:00Z", &["2026-09-06T04:00:00Z", "2026-09-07T03:00:00Z"])]
#[case::last_hour_of_saturday_left_out("America/Nuuk", "30 23 * * SAT", "2026-03-28T12:00:00Z", &["2026-03-29T01:00:00Z", "2026-04-05T00:30:00Z"])]
#[case::a_day_left_out("Pacific/Apia", "0 9 * * *", "2011-12-29T00:00:00Z", &["2011-12-29T19:00:00Z", "2011-12-30T19:00:00Z"])]
#[case::across_the_date_line("Pacific/Kiritimati", "0 9 * * *", "2026-01-01T00:00:00Z", &["2026-01-01T19:00:00Z"])]
#[case::a_zone_of_three_quarters("Asia/Kathmandu", "0 0 * * *", "2026-01-01T00:00:00Z", &["2026-01-01T18:15:00Z"])]
#[case::zone_names_without_case("europe/berlin", "0 9 * * *", "2026-01-01T00:00:00Z", &["2026-01-01T08:00:00Z"])]
fn a_change_of_the_clock_runs_times_once_and_wildcards_by_the_clock(
    #[case] zone: &str,
    #[case] schedule: &str,
    #[case] after: &str,
    #[case] expected: &[&str],
) {
    let schedule = cron_in(schedule, zone).expect("an expression that fires");
    assert_eq!(next(&schedule, after, expected.len()), expected);
}

#[test]
fn an_interval_stays_on_its_grid_for_a_day_without_drift() {
    let schedule = every(200);
    let (after, upto) = (at("2026-03-29T00:00:00.1Z"), at("2026-03-30T00:00:00.1Z"));
    let mut expected = at("2026-03-29T00:00:00.2Z").as_nanosecond();
    let mut count = 0;
    for slot in schedule.slots_in(after, upto) {
        assert_eq!(slot.as_nanosecond(), expected);
        expected += 200_000_000;
        count += 1;
    }
    assert_eq!(count, 432_000);
    assert_eq!(schedule.count_in(after, upto), count);
    assert_eq!(schedule.latest_in(after, upto), Some(at("2026-03-30T00:00:00Z")));
}

#[rstest]
#[case(100, "2026-01-01T00:00:00Z", "2026-01-01T00:00:00.1Z")]
#[case(333, "1970-01-01T00:00:00.999Z", "1970-01-01T00:00:01.332Z")]
#[case(86_400_000, "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")]
#[case(7_000, "1969-12-31T23:59:59Z", "1970-01-01T00:00:00Z")]
#[case(7_000, "1969-12-31T23:59:53Z", "1970-01-01T00:00:00Z")]
#[case(7_000, "1969-12-31T23:59:52.999Z", "1969-12-31T23:59:53Z")]
fn the_grid_of_an_interval_starts_at_the_epoch(#[case] millis: u64, #[case] after: &str, #[case] expected: &str) {
    assert_eq!(every(millis).next_after(at(after)), Some(at(expected)));
}

#[test]
fn slots_follow_strictly_even_from_within_a_second_and_before_the_epoch() {
    let schedule = cron("* * * * * *");
    for (after, expected) in [
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z"),
        ("2026-01-01T00:00:00.000000001Z", "2026-01-01T00:00:01Z"),
        ("2026-01-01T00:00:00.999999999Z", "2026-01-01T00:00:01Z"),
        ("1969-12-31T23:59:58.5Z", "1969-12-31T23:59:59Z"),
        ("1969-12-31T23:59:59.5Z", "1970-01-01T00:00:00Z"),
    ] {
        assert_eq!(schedule.next_after(at(after)), Some(at(expected)), "after {after}");
    }
    assert_eq!(
        schedule.latest_in(at("1969-12-31T23:59:57Z"), at("1969-12-31T23:59:58.5Z")),
        Some(at("1969-12-31T23:59:58Z"))
    );
    assert_eq!(schedule.count_in(at("1969-12-31T23:59:58.5Z"), at("1970-01-01T00:00:00.5Z")), 2);
}

#[test]
fn years_without_a_leader_are_counted_exactly() {
    let (after, upto) = (at("2026-01-01T00:00:00Z"), at("2027-01-01T00:00:00Z"));
    assert_eq!(cron("* * * * *").count_in(after, upto), 525_600);
    assert_eq!(cron("* * * * * *").count_in(after, upto), 31_536_000);
    assert_eq!(cron("0 0 * * MON").count_in(after, upto), 52);
    assert_eq!(every(100).count_in(after, upto), 315_360_000);
    let berlin = cron_in("* * * * *", "Europe/Berlin").expect("an expression that fires");
    assert_eq!(berlin.count_in(after, upto), 525_600);
    let daily = cron_in("30 2 * * *", "Europe/Berlin").expect("an expression that fires");
    assert_eq!(daily.count_in(after, upto), 365);
    assert_eq!(daily.count_in(at("1996-01-01T00:00:00Z"), at("2096-01-01T00:00:00Z")), 36_525);
}

#[test]
fn a_window_that_is_empty_or_turned_round_has_no_slots() {
    let (early, late) = (at("2026-01-01T00:00:00Z"), at("2026-01-02T00:00:00Z"));
    for schedule in [cron("* * * * *"), every(100)] {
        for (after, upto) in [(late, early), (early, early)] {
            assert_eq!(schedule.count_in(after, upto), 0);
            assert_eq!(schedule.latest_in(after, upto), None);
            assert_eq!(schedule.slots_in(after, upto).count(), 0);
        }
    }
}

#[test]
fn where_the_calendar_ends_there_are_no_more_slots() {
    for schedule in
        [cron("* * * * *"), every(100), cron_in("@daily", "Europe/Berlin").expect("an expression that fires")]
    {
        assert_eq!(schedule.next_after(Timestamp::MAX), None);
        assert!(schedule.latest_in(Timestamp::MIN, Timestamp::MIN).is_none());
    }
}

#[test]
fn equal_expressions_share_one_object_that_goes_with_its_last_schedule() {
    let shared = |schedule: &Schedule| match &schedule.0 {
        Kind::Cron(cron) => std::sync::Arc::clone(&cron.cron),
        Kind::Every(_) => panic!("a cron expression"),
    };
    let (one, other) =
        (cron("17 3/5 * * *"), cron_in("0 17 3,8,13,18,23 * ? *", "Asia/Tokyo").expect("the same expression"));
    let cron = shared(&one);
    assert!(std::sync::Arc::ptr_eq(&cron, &shared(&other)));
    let held = std::sync::Arc::downgrade(&cron);
    drop((one, other, cron));
    assert!(held.upgrade().is_none());
}

fn field(plain: &'static [&'static str]) -> impl Strategy<Value = &'static str> {
    prop::sample::select(plain)
}

fn any_cron() -> impl Strategy<Value = Schedule> {
    let zones: &[_] = &[
        "UTC",
        "Europe/Berlin",
        "America/New_York",
        "Australia/Lord_Howe",
        "Pacific/Apia",
        "Africa/Casablanca",
        "America/Nuuk",
        "Antarctica/Casey",
        "Antarctica/Troll",
    ];
    (
        field(&["0", "0", "0", "*/20", "59", "10-14"]),
        field(&["*", "*/7", "0", "30", "0,59", "5/15", "50-10/4"]),
        field(&["*", "*/5", "2", "0", "1,2,3", "22-2"]),
        field(&["*", "*", "?", "1", "L", "LW", "15W", "28-2", "*/9", "30"]),
        field(&["*", "*", "*", "3,10", "OCT-MAR", "2", "*/4"]),
        field(&["*", "*", "?", "SUN", "MON-FRI", "5L", "7#5", "FRI-MON"]),
        prop::sample::select(zones),
    )
        .prop_filter_map("never fires", |(second, minute, hour, day, month, weekday, zone)| {
            cron_in(&format!("{second} {minute} {hour} {day} {month} {weekday}"), zone).ok()
        })
}

fn any_schedule() -> impl Strategy<Value = Schedule> {
    prop_oneof![
        4 => any_cron(),
        1 => (100_u64..100_000_000).prop_map(every),
    ]
}

/// An instant of the years 2005 to 2035, at millisecond resolution.
fn any_instant() -> impl Strategy<Value = Timestamp> {
    (1_104_537_600_000_i64..2_051_222_400_000)
        .prop_map(|millis| Timestamp::from_millisecond(millis).expect("within the calendar"))
}

/// How many slots of a window are walked one by one.
const WALKED: usize = 400;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn next_latest_count_and_slots_agree(schedule in any_schedule(), after in any_instant()) {
        let slots: Vec<_> = schedule.slots_in(after, Timestamp::MAX).take(WALKED).collect();
        prop_assert_eq!(slots.first().copied(), schedule.next_after(after));
        prop_assert!(slots.first().is_none_or(|first| *first > after));
        prop_assert!(slots.is_sorted_by(|one, next| one < next));
        for (index, slot) in slots.iter().enumerate().step_by(37) {
            let just_before = *slot - jiff::SignedDuration::from_nanos(1);
            prop_assert_eq!(schedule.next_after(just_before), Some(*slot));
            prop_assert_eq!(schedule.latest_in(after, *slot), Some(*slot));
            prop_assert_eq!(schedule.latest_in(*slot, *slot), None);
            let earlier = index.checked_sub(1).map(|earlier| slots[earlier]);
            prop_assert_eq!(schedule.latest_in(after, just_before), earlier);
            prop_assert_eq!(schedule.count_in(after, *slot), index as u64 + 1);
            prop_assert_eq!(schedule.count_in(after, just_before), index as u64);
        }
    }

    #[test]
    fn a_window_counts_as_much_as_its_parts(schedule in any_schedule(), mut bounds in [any_instant(), any_instant(), any_instant()]) {
        bounds.sort();
        let [start, middle, end] = bounds;
        let parts = schedule.count_in(start, middle) + schedule.count_in(middle, end);
        prop_assert_eq!(schedule.count_in(start, end), parts);
        prop_assert_eq!(schedule.count_in(start, end) > 0, schedule.latest_in(start, end).is_some());
        let next = schedule.next_after(start).filter(|next| *next <= end);
        prop_assert_eq!(schedule.count_in(start, end) > 0, next.is_some());
    }

    #[test]
    fn any_text_is_read_or_refused_without_a_panic(text in "[0-9*,/?#LWHa-z@ =-]{0,40}") {
        if let Ok(schedule) = cron_in(&text, "Europe/Berlin") {
            prop_assert!(schedule.next_after(Timestamp::UNIX_EPOCH).is_some());
        }
    }
}
