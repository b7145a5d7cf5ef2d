//! Each rule of the plan in a small case, and what holds for every case as properties.

use proptest::prelude::*;

use super::*;
use crate::schedule::ScheduleSpec;

/// Monday, 2026-01-05T10:00:00Z in milliseconds.
const TEN: i64 = 1_767_607_200_000;

fn at(millis: i64) -> Instant {
    Instant::new(Timestamp::from_millisecond(TEN + millis).expect("within range"))
}

fn every(interval: Duration) -> Timetable {
    let spec = ScheduleSpec { schedule: None, interval: Some(interval), time_zone: "UTC" };
    Timetable { schedule: Some(Schedule::parse(&spec).expect("a valid interval")), suspend: false }
}

fn each_second() -> Timetable {
    every(Duration::from_secs(1))
}

fn rules() -> Rules {
    Rules {
        concurrency: ConcurrencyPolicy::Forbid,
        max_active: NonZeroUsize::new(3).expect("not zero"),
        starting_deadline: None,
        catch_up: CatchUp::Latest,
    }
}

/// In office since long ago, planned up to ten o'clock, nothing active.
fn input<'a>(timetable: &'a Timetable, rules: &'a Rules, now: i64) -> PlanInput<'a> {
    PlanInput {
        now: at(now),
        mark: at(0),
        first_plan: at(-60_000),
        timetable,
        edit: None,
        rules,
        active: 0,
        occupied_until: None,
        triggered: false,
    }
}

fn summary(plan: &Plan) -> Vec<(Disposition, u64)> {
    plan.decided.iter().map(|range| (range.reason, range.count)).collect()
}

#[test]
fn a_slot_that_comes_due_in_office_is_run_and_the_next_one_wakes() {
    let (timetable, rules) = (each_second(), rules());
    let plan = plan(&input(&timetable, &rules, 1_001));
    assert_eq!(plan.starts, [at(1_000)]);
    assert_eq!((plan.mark, plan.wake), (at(1_000), Some(at(2_000))));
    assert!(!plan.catches_up);
}

#[test]
fn before_a_slot_is_due_nothing_is_decided() {
    let (timetable, rules) = (each_second(), rules());
    let plan = plan(&input(&timetable, &rules, 999));
    assert!(plan.is_empty());
    assert_eq!((plan.mark, plan.wake), (at(0), Some(at(1_000))));
}

#[test]
fn a_slot_due_while_a_run_is_active_is_an_overlap_under_forbid() {
    let (timetable, rules) = (each_second(), rules());
    let plan = plan(&PlanInput { active: 1, ..input(&timetable, &rules, 2_500) });
    assert_eq!(summary(&plan), [(Disposition::Overlap, 2)]);
    assert!(plan.starts.is_empty());
}

#[test]
fn a_slot_that_was_due_before_the_active_run_ended_is_an_overlap_though_it_is_decided_later() {
    let (timetable, rules) = (each_second(), rules());
    let plan = plan(&PlanInput { occupied_until: Some(at(2_500)), ..input(&timetable, &rules, 3_000) });
    assert_eq!(summary(&plan), [(Disposition::Overlap, 2), (Disposition::Ran, 1)]);
    assert_eq!(plan.starts, [at(3_000)]);
}

#[test]
fn under_allow_slots_run_side_by_side_up_to_the_bound() {
    let (timetable, rules) = (each_second(), Rules { concurrency: ConcurrencyPolicy::Allow, ..rules() });
    let plan = plan(&PlanInput { active: 1, ..input(&timetable, &rules, 4_000) });
    assert_eq!(plan.starts, [at(1_000), at(2_000)]);
    assert_eq!(summary(&plan), [(Disposition::Ran, 1), (Disposition::Ran, 1), (Disposition::Overlap, 2)]);
}

fn replace() -> Rules {
    Rules { concurrency: ConcurrencyPolicy::Replace, ..rules() }
}

#[test]
fn a_slot_due_beside_an_active_run_has_it_cancelled_and_starts_when_it_has_ended() {
    let (timetable, rules) = (each_second(), replace());
    let beside = PlanInput { active: 1, ..input(&timetable, &rules, 1_001) };
    let waiting = plan(&beside);
    assert!(waiting.replaces && waiting.is_empty());
    assert_eq!(waiting.mark, at(0), "nothing is decided before the place is free");
    assert!(!plan(&PlanInput { now: at(999), ..beside }).replaces, "nothing is due");

    let freed = plan(&PlanInput { active: 0, now: at(3_200), ..beside });
    assert_eq!(summary(&freed), [(Disposition::Replaced, 2), (Disposition::Ran, 1)]);
    assert_eq!((freed.starts.as_slice(), freed.mark), (&[at(3_000)][..], at(3_000)));
}

#[test]
fn a_slot_due_in_office_takes_the_place_of_a_missed_one_under_replace() {
    let (timetable, rules) = (each_second(), replace());
    let plan = plan(&PlanInput { first_plan: at(3_500), ..input(&timetable, &rules, 4_000) });
    assert_eq!(summary(&plan), [(Disposition::Coalesced, 3), (Disposition::Ran, 1)]);
    assert!(!plan.catches_up);
}

#[test]
fn suspended_and_late_slots_replace_nothing() {
    let (suspended, timetable) = (Timetable { suspend: true, ..each_second() }, each_second());
    let rules = Rules { starting_deadline: Some(Duration::ZERO), ..replace() };
    let beside = PlanInput { active: 1, ..input(&suspended, &rules, 4_000_000) };
    assert!(!plan(&beside).replaces);
    let late = plan(&PlanInput { active: 1, ..input(&timetable, &rules, 1_500) });
    assert_eq!((summary(&late), late.replaces), (vec![(Disposition::Late, 1)], false));
}

#[test]
fn a_trigger_replaces_an_active_run() {
    let (timetable, rules) = (each_second(), replace());
    assert!(plan(&PlanInput { active: 1, triggered: true, ..input(&timetable, &rules, 500) }).replaces);
}

#[test]
fn of_the_missed_slots_the_newest_is_run_and_the_older_ones_coalesce() {
    let (timetable, rules) = (each_second(), rules());
    let day = 86_400_000;
    let plan = plan(&PlanInput { first_plan: at(day), ..input(&timetable, &rules, day) });
    assert_eq!(summary(&plan), [(Disposition::Coalesced, 86_399), (Disposition::Ran, 1)]);
    assert_eq!(plan.starts, [at(day)]);
    assert!(plan.catches_up);
}

#[test]
fn missed_slots_beyond_the_starting_deadline_are_late() {
    let (timetable, rules) = (each_second(), Rules { starting_deadline: Some(Duration::from_secs(3)), ..rules() });
    let missed = plan(&PlanInput { first_plan: at(10_000), ..input(&timetable, &rules, 10_000) });
    let expected = [(Disposition::Late, 6), (Disposition::Coalesced, 3), (Disposition::Ran, 1)];
    assert_eq!(summary(&missed), expected);

    let hourly = every(Duration::from_hours(1));
    let hour = 3_600_000;
    let too_old = plan(&PlanInput { first_plan: at(hour + 5_000), ..input(&hourly, &rules, hour + 5_000) });
    assert_eq!(summary(&too_old), [(Disposition::Late, 1)]);
}

#[test]
fn without_catch_up_every_missed_slot_is_late_and_the_next_due_one_runs() {
    let (timetable, rules) = (each_second(), Rules { catch_up: CatchUp::None, ..rules() });
    let plan = plan(&PlanInput { first_plan: at(5_500), ..input(&timetable, &rules, 6_000) });
    assert_eq!(summary(&plan), [(Disposition::Late, 5), (Disposition::Ran, 1)]);
    assert!(!plan.catches_up);
}

#[test]
fn a_missed_slot_waits_for_the_run_that_holds_its_place() {
    let (timetable, rules) = (each_second(), rules());
    let held = PlanInput { first_plan: at(3_500), active: 1, ..input(&timetable, &rules, 5_000) };
    assert!(plan(&held).is_empty());
    let freed = plan(&PlanInput { active: 0, now: at(7_000), ..held });
    let expected = [(Disposition::Coalesced, 2), (Disposition::Ran, 1), (Disposition::Overlap, 4)];
    assert_eq!(summary(&freed), expected);
    assert_eq!(freed.starts, [at(3_000)]);
}

#[test]
fn an_edit_never_runs_a_slot_of_the_new_schedule_from_before_it_was_seen() {
    let (old, new, rules) = (every(Duration::from_hours(1)), each_second(), rules());
    let edit = Edit { before: Some(&old), seen: at(10_500) };
    let edited = plan(&PlanInput { edit: Some(edit), ..input(&new, &rules, 11_000) });
    assert_eq!(edited.starts, [at(11_000)]);
    assert_eq!(summary(&edited), [(Disposition::Ran, 1)]);
    assert!(edited.adopts_edit);

    let at_once = plan(&PlanInput { edit: Some(edit), ..input(&new, &rules, 10_500) });
    assert_eq!((at_once.mark, at_once.adopts_edit, at_once.wake), (at(10_500), true, Some(at(11_000))));
    assert!(at_once.starts.is_empty());
}

#[test]
fn slots_of_the_old_schedule_up_to_the_edit_are_still_decided() {
    let (old, new, rules) = (each_second(), every(Duration::from_hours(1)), rules());
    let edit = Edit { before: Some(&old), seen: at(1_500) };
    let plan = plan(&PlanInput { edit: Some(edit), ..input(&new, &rules, 5_000) });
    assert_eq!(plan.starts, [at(1_000)]);
    assert_eq!(plan.mark, at(1_500));
}

#[test]
fn a_spec_that_was_never_planned_has_no_slots_before_it_was_seen() {
    let (timetable, rules) = (each_second(), rules());
    let edit = Edit { before: None, seen: at(60_000) };
    let plan = plan(&PlanInput { edit: Some(edit), ..input(&timetable, &rules, 60_000) });
    assert!(plan.decided.is_empty());
    assert_eq!((plan.mark, plan.adopts_edit), (at(60_000), true));
}

#[test]
fn slots_due_while_suspended_are_counted_at_most_hourly() {
    let (timetable, rules) = (Timetable { suspend: true, ..each_second() }, rules());
    let early = plan(&input(&timetable, &rules, 10_000));
    assert!(early.is_empty());
    assert_eq!(early.wake, Some(at(3_600_000)));
    let hour = plan(&input(&timetable, &rules, 3_600_000));
    assert_eq!(summary(&hour), [(Disposition::Suspended, 3_600)]);
}

#[test]
fn resuming_does_not_run_what_was_due_while_suspended() {
    let (before, now) = (Timetable { suspend: true, ..each_second() }, each_second());
    let rules = rules();
    let edit = Edit { before: Some(&before), seen: at(100_500) };
    let plan = plan(&PlanInput { edit: Some(edit), first_plan: at(100_500), ..input(&now, &rules, 100_500) });
    assert_eq!(summary(&plan), [(Disposition::Suspended, 100)]);
}

#[test]
fn suspending_stops_slots_that_were_missed_before() {
    let (before, now) = (each_second(), Timetable { suspend: true, ..each_second() });
    let rules = rules();
    let edit = Edit { before: Some(&before), seen: at(5_500) };
    let plan = plan(&PlanInput { edit: Some(edit), first_plan: at(5_500), ..input(&now, &rules, 5_500) });
    assert_eq!(summary(&plan), [(Disposition::Suspended, 5)]);
}

#[test]
fn a_spec_that_is_not_valid_starts_nothing() {
    let (before, broken) = (each_second(), Timetable { schedule: None, suspend: false });
    let rules = rules();
    let edit = Edit { before: Some(&before), seen: at(1_500) };
    let plan = plan(&PlanInput { edit: Some(edit), ..input(&broken, &rules, 9_000) });
    assert_eq!(summary(&plan), [(Disposition::Late, 1)]);
    assert_eq!((plan.mark, plan.wake), (at(1_500), None));
}

#[test]
fn a_trigger_starts_a_run_unless_one_is_active_and_works_when_suspended() {
    let (timetable, rules) = (Timetable { suspend: true, ..each_second() }, rules());
    let triggered = PlanInput { triggered: true, ..input(&timetable, &rules, 500) };
    assert_eq!(plan(&triggered).trigger, Some(Trigger::Start));
    assert_eq!(plan(&PlanInput { active: 1, ..triggered }).trigger, Some(Trigger::Refused));
}

#[test]
fn a_wall_clock_that_goes_back_moves_nothing() {
    let (timetable, rules) = (each_second(), rules());
    let plan = plan(&input(&timetable, &rules, -3_600_000));
    assert!(plan.is_empty());
    assert_eq!((plan.mark, plan.wake), (at(0), Some(at(1_000))));
}

/// One step in the life of a job.
#[derive(Debug, Clone)]
enum Step {
    Pass(i64),
    GoBack(i64),
    RunsEnd,
    NewTerm,
    Edit(Duration, bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1_i64..20_000).prop_map(Step::Pass),
        1 => (1_i64..20_000).prop_map(Step::GoBack),
        3 => Just(Step::RunsEnd),
        2 => Just(Step::NewTerm),
        1 => ((100_u64..3_000).prop_map(Duration::from_millis), any::<bool>()).prop_map(|(every, suspend)| Step::Edit(every, suspend)),
    ]
}

fn any_rules() -> impl Strategy<Value = Rules> {
    let policy =
        prop_oneof![Just(ConcurrencyPolicy::Forbid), Just(ConcurrencyPolicy::Allow), Just(ConcurrencyPolicy::Replace)];
    let catch_up = prop_oneof![Just(CatchUp::None), Just(CatchUp::Latest)];
    let deadline = prop::option::of((0_u64..10).prop_map(Duration::from_secs));
    (policy, catch_up, deadline, 1_usize..4).prop_map(|(concurrency, catch_up, starting_deadline, max_active)| Rules {
        concurrency,
        max_active: NonZeroUsize::new(max_active).expect("not zero"),
        starting_deadline,
        catch_up,
    })
}

/// What the scheduler keeps about a job between two plans.
struct Life {
    now: i64,
    mark: Instant,
    active: usize,
    occupied_until: Option<Instant>,
    first_plan: Option<Instant>,
    adopted: Timetable,
    newest: Timetable,
    seen: Option<Instant>,
    /// Slots by brute force: the timetable that held, and from when (exclusive).
    history: Vec<(Instant, Duration)>,
}

fn interval_slots(from: Instant, to: Instant, every: Duration) -> u64 {
    let every = i64::try_from(every.as_millis()).expect("a short interval");
    let (from, to) = (from.timestamp().as_millisecond(), to.timestamp().as_millisecond());
    u64::try_from((from + 1..=to).filter(|millis| millis % every == 0).count()).expect("a small number")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn the_dispositions_always_sum_up_to_the_slots_between_origin_and_mark(
        rules in any_rules(),
        interval in (100_u64..3_000).prop_map(Duration::from_millis),
        steps in prop::collection::vec(step(), 1..24),
    ) {
        let origin = at(0);
        let mut life = Life {
            now: 0,
            mark: origin,
            active: 0,
            occupied_until: None,
            first_plan: None,
            adopted: every(interval),
            newest: every(interval),
            seen: None,
            history: vec![(origin, interval)],
        };
        let mut decided = 0;
        let mut pending = None;
        for step in steps {
            match step {
                Step::Pass(millis) => life.now += millis,
                Step::GoBack(millis) => life.now -= millis,
                Step::RunsEnd => {
                    life.occupied_until = (life.active > 0).then(|| at(life.now));
                    life.active = 0;
                }
                Step::NewTerm => {
                    life.occupied_until = None;
                    life.first_plan = None;
                    // A new leader has not seen the edit; it sees it now.
                    life.seen = life.seen.map(|_| at(life.now));
                }
                Step::Edit(interval, suspend) => {
                    life.newest = Timetable { suspend, ..every(interval) };
                    life.seen = Some(at(life.now));
                    pending = Some(interval);
                }
            }
            let now = at(life.now);
            let first_plan = *life.first_plan.get_or_insert(now);
            let edit = life.seen.map(|seen| Edit { before: Some(&life.adopted), seen });
            let input = PlanInput {
                now,
                mark: life.mark,
                first_plan,
                timetable: &life.newest,
                edit,
                rules: &rules,
                active: life.active,
                occupied_until: life.occupied_until,
                triggered: false,
            };
            let made = plan(&input);
            prop_assert_eq!(&made, &plan(&input), "the same input gives the same plan");
            prop_assert!(made.mark >= life.mark, "the mark never goes back");
            prop_assert!(made.mark <= now.max(life.mark), "the mark never runs ahead");
            let capacity = if rules.concurrency == ConcurrencyPolicy::Allow { rules.max_active.get() } else { 1 };
            prop_assert!(!made.replaces || (made.is_empty() && life.active > 0), "what is cancelled first starts later");
            prop_assert!(made.starts.is_empty() || made.starts.len() + life.active <= capacity);
            if let Some(edit) = edit {
                let new_slots = made.starts.iter().filter(|slot| **slot > edit.seen);
                prop_assert!(new_slots.clone().all(|slot| interval_slots(before(slot.timestamp()), *slot, pending.expect("an edit")) == 1));
            }
            decided += made.decided.iter().map(|range| range.count).sum::<u64>();
            let mark_before = std::mem::replace(&mut life.mark, made.mark);
            life.active += made.starts.len();
            if made.adopts_edit {
                let seen = life.seen.take().expect("an edit was pending");
                life.history.push((seen.max(mark_before), pending.take().expect("an edit")));
                life.adopted = life.newest.clone();
            }
            let ends = life.history.iter().skip(1).map(|(from, _)| *from).chain([life.mark]);
            let brute: u64 =
                life.history.iter().zip(ends).map(|((from, interval), to)| interval_slots(*from, to.min(life.mark), *interval)).sum();
            prop_assert_eq!(decided, brute, "after {:?}", life.mark);
        }
    }
}
