//! What becomes of the slots that have come due: the decision, without I/O, clock or randomness.
//!
//! [`plan`] looks at the slots between the mark and now and gives each one disposition. It promises that every slot in
//! (old mark, new mark] is decided exactly once, that the mark never goes back, and that the same input gives the same
//! plan. Whether the plan comes true is left to the write that stores it: until then nothing has happened.
//!
//! Two lines cut the time from the mark to now into pieces: the instant at which the leader saw an edit (slots up to it
//! belong to the timetable that the mark was planned by, so that an edit never runs anything belatedly), and this term's
//! first plan of the job (slots up to it were *missed*; later ones are due in office).

use std::{num::NonZeroUsize, time::Duration};

use jiff::{SignedDuration, Timestamp};

use crate::{
    api::{CatchUp, ConcurrencyPolicy, Disposition, Instant, SlotRange},
    schedule::Schedule,
};

/// The slots of one generation of a spec.
#[derive(Debug, Clone)]
pub struct Timetable {
    /// When slots are due; a spec that is not valid has no slots.
    pub schedule: Option<Schedule>,
    /// Whether they are passed over.
    pub suspend: bool,
}

/// How slots of a job are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// What happens to a slot that is due while a run is active.
    pub concurrency: ConcurrencyPolicy,
    /// How many runs may be active under Allow.
    pub max_active: NonZeroUsize,
    /// How late a slot may still be started.
    pub starting_deadline: Option<Duration>,
    /// What happens to missed slots.
    pub catch_up: CatchUp,
}

/// A spec that is newer than the one that the mark was planned by.
#[derive(Debug, Clone, Copy)]
pub struct Edit<'a> {
    /// What the mark was planned by; nothing, if that was never planned.
    pub before: Option<&'a Timetable>,
    /// When the leader saw the new generation.
    pub seen: Instant,
}

/// What [`plan`] looks at.
#[derive(Debug, Clone, Copy)]
pub struct PlanInput<'a> {
    /// The time of day, never later than what the API server's clock allows.
    pub now: Instant,
    /// Every slot up to here is decided.
    pub mark: Instant,
    /// When this term first planned this job; `now`, if this is that plan.
    pub first_plan: Instant,
    /// The timetable of the newest generation.
    pub timetable: &'a Timetable,
    /// Set if the mark was planned by an older generation.
    pub edit: Option<Edit<'a>>,
    /// How slots are treated.
    pub rules: &'a Rules,
    /// How many runs are active.
    pub active: usize,
    /// Under Forbid, when the run that was active last has ended: slots up to then were due while it was.
    pub occupied_until: Option<Instant>,
    /// Whether the job is to be run now, by annotation.
    pub triggered: bool,
}

/// What is to be stored before any of it is acted on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Every slot up to here is decided.
    pub mark: Instant,
    /// The decided slots, in their order.
    pub decided: Vec<SlotRange>,
    /// The slots to run.
    pub starts: Vec<Instant>,
    /// Whether one of the starts is of a missed slot.
    pub catches_up: bool,
    /// What becomes of the trigger, if there was one.
    pub trigger: Option<Trigger>,
    /// Whether the new generation's timetable holds from the mark on.
    pub adopts_edit: bool,
    /// Under Replace, the active runs are to be cancelled: something is to start, and does when they have ended.
    pub replaces: bool,
    /// When to plan again, unless something changes before.
    pub wake: Option<Instant>,
}

/// What becomes of a trigger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// The job is run.
    Start,
    /// As many runs are active as may be.
    Refused,
}

/// How often at most the mark of a suspended job is written: slots that nobody waits for are not worth more.
pub const SUSPENDED_MARK_PERIOD: Duration = Duration::from_hours(1);

/// Slots are whole milliseconds apart at least, so the instant before one is this much earlier.
const TICK: SignedDuration = SignedDuration::from_millis(1);

/// A stretch of time, (from, to], in which all slots are treated alike.
#[derive(Debug, Clone, Copy)]
struct Piece<'a> {
    from: Instant,
    to: Instant,
    schedule: &'a Schedule,
    suspended: bool,
    missed: bool,
    occupied: bool,
}

/// Decides every slot that is due. See the module's documentation.
pub fn plan(input: &PlanInput<'_>) -> Plan {
    if input.rules.concurrency == ConcurrencyPolicy::Replace && input.active > 0 {
        return replacing(input);
    }
    let pieces = pieces(input);
    let newest_due = newest_due(input, &pieces);
    // A slot that is due in office takes the place of one that was missed.
    let newest_missed = newest_missed(input, &pieces).filter(|_| newest_due.is_none());
    let mut planner = Planner::new(input);
    // A missed slot that will be caught up waits for the run that holds its place; later slots wait behind it, because
    // the mark passes a slot only when it is decided.
    let waits = newest_missed.is_some() && input.active > 0 && input.rules.concurrency == ConcurrencyPolicy::Forbid;
    if !waits {
        for piece in &pieces {
            planner.decide(piece, newest_missed, newest_due);
        }
    }
    planner.finish(waits)
}

/// Under Replace, beside an active run: what would start if there were none waits until there is none. The mark stays
/// where it is, because what is to start is decided then: a newer slot may have come due.
fn replacing(input: &PlanInput<'_>) -> Plan {
    let free = plan(&PlanInput { active: 0, ..*input });
    if free.starts.is_empty() && free.trigger != Some(Trigger::Start) {
        return free;
    }
    Plan { replaces: true, ..Plan::nothing(input.mark) }
}

/// Under Replace, the slot due in office that is to be run, if any: the newest one.
fn newest_due(input: &PlanInput<'_>, pieces: &[Piece<'_>]) -> Option<Instant> {
    if input.rules.concurrency != ConcurrencyPolicy::Replace || input.timetable.schedule.is_none() {
        return None;
    }
    let mut due = pieces.iter().rev().filter(|piece| !piece.missed && !piece.suspended);
    due.find_map(Piece::latest).filter(|newest| *newest > too_late(input))
}

fn pieces<'a>(input: &PlanInput<'a>) -> Vec<Piece<'a>> {
    let edit_seen = input.edit.map(|edit| edit.seen);
    let mut cuts = vec![input.mark, input.now];
    cuts.extend([edit_seen, Some(input.first_plan), occupied_until(input)].into_iter().flatten());
    cuts.retain(|cut| (input.mark..=input.now).contains(cut));
    cuts.sort_unstable();
    cuts.dedup();
    let piece = |ends: &[Instant]| {
        let (&[from, to] | &[from, to, ..]) = ends else { return None };
        let timetable = match input.edit {
            Some(edit) if to <= edit.seen => edit.before?,
            _ => input.timetable,
        };
        let schedule = timetable.schedule.as_ref()?;
        // Nothing is started by the schedule while the newest spec says so, whichever timetable a slot belongs to.
        let suspended = timetable.suspend || input.timetable.suspend;
        let occupied = occupied_until(input).is_some_and(|until| to <= until);
        Some(Piece { from, to, schedule, suspended, missed: to <= input.first_plan, occupied })
    };
    cuts.windows(2).filter_map(piece).collect()
}

fn occupied_until(input: &PlanInput<'_>) -> Option<Instant> {
    input.occupied_until.filter(|_| input.rules.concurrency == ConcurrencyPolicy::Forbid)
}

/// The missed slot that is to be run, if any.
fn newest_missed(input: &PlanInput<'_>, pieces: &[Piece<'_>]) -> Option<Instant> {
    let mut missed = pieces.iter().rev().filter(|piece| piece.missed && !piece.suspended);
    let newest = missed.find_map(Piece::latest)?;
    let caught_up = input.rules.catch_up == CatchUp::Latest && input.timetable.schedule.is_some();
    (caught_up && newest > too_late(input)).then_some(newest)
}

/// Slots up to here are past their starting deadline.
fn too_late(input: &PlanInput<'_>) -> Instant {
    let limit = input.rules.starting_deadline.and_then(|deadline| SignedDuration::try_from(deadline).ok());
    let limit = limit.and_then(|deadline| input.now.timestamp().checked_sub(deadline).ok());
    limit.map_or(Instant::new(Timestamp::MIN), before)
}

fn before(at: Timestamp) -> Instant {
    Instant::new(at.checked_sub(TICK).unwrap_or(Timestamp::MIN))
}

impl Piece<'_> {
    fn latest(&self) -> Option<Instant> {
        self.schedule.latest_in(self.from.timestamp(), self.to.timestamp()).map(Instant::new)
    }

    fn next_after(&self, after: Instant) -> Option<Instant> {
        self.schedule.next_after(after.timestamp()).map(Instant::new).filter(|slot| *slot <= self.to)
    }

    /// What of it lies after `from`.
    fn after(self, from: Instant) -> Self {
        Self { from: self.from.max(from).min(self.to), ..self }
    }

    /// What of it lies up to `to`.
    fn up_to(self, to: Instant) -> Self {
        Self { to: self.to.min(to).max(self.from), ..self }
    }
}

struct Planner<'a> {
    input: &'a PlanInput<'a>,
    too_late: Instant,
    capacity: usize,
    plan: Plan,
}

impl<'a> Planner<'a> {
    fn new(input: &'a PlanInput<'a>) -> Self {
        let capacity = match input.rules.concurrency {
            ConcurrencyPolicy::Forbid | ConcurrencyPolicy::Replace => 1,
            ConcurrencyPolicy::Allow => input.rules.max_active.get(),
        };
        let plan = Plan::nothing(input.mark);
        Self { input, too_late: too_late(input), capacity: capacity.saturating_sub(input.active), plan }
    }

    fn decide(&mut self, piece: &Piece<'_>, newest_missed: Option<Instant>, newest_due: Option<Instant>) {
        if piece.suspended {
            return self.pass_over(piece, Disposition::Suspended);
        }
        // A spec that is not valid cannot be run, for a slot of the timetable before it neither.
        let runnable = self.input.timetable.schedule.is_some();
        if !runnable || (piece.missed && self.input.rules.catch_up == CatchUp::None) {
            return self.pass_over(piece, Disposition::Late);
        }
        self.pass_over(&piece.up_to(self.too_late), Disposition::Late);
        let in_time = piece.after(self.too_late);
        if piece.missed {
            match newest_missed.filter(|newest| (in_time.from < *newest) && (*newest <= in_time.to)) {
                Some(newest) => {
                    self.pass_over(&in_time.up_to(before(newest.timestamp())), Disposition::Coalesced);
                    self.plan.catches_up |= self.start_or_overlap(newest);
                }
                None => self.pass_over(&in_time, Disposition::Coalesced),
            }
            return;
        }
        if self.input.rules.concurrency == ConcurrencyPolicy::Replace {
            return self.decide_replacing(&in_time, newest_due);
        }
        let mut from = in_time.from;
        while self.capacity > 0
            && !piece.occupied
            && let Some(slot) = in_time.next_after(from)
        {
            self.start_or_overlap(slot);
            from = slot;
        }
        self.pass_over(&in_time.after(from), Disposition::Overlap);
    }

    /// Of the slots that are due in office, the newest is run.
    fn decide_replacing(&mut self, in_time: &Piece<'_>, newest_due: Option<Instant>) {
        match newest_due.filter(|newest| (in_time.from < *newest) && (*newest <= in_time.to)) {
            Some(newest) => {
                self.pass_over(&in_time.up_to(before(newest.timestamp())), Disposition::Replaced);
                self.start_or_overlap(newest);
            }
            None => self.pass_over(in_time, Disposition::Replaced),
        }
    }

    fn start_or_overlap(&mut self, slot: Instant) -> bool {
        let starts = self.capacity > 0;
        if starts {
            self.capacity -= 1;
            self.plan.starts.push(slot);
        }
        let reason = if starts { Disposition::Ran } else { Disposition::Overlap };
        self.record(SlotRange { from: slot, to: slot, count: 1, reason });
        starts
    }

    fn pass_over(&mut self, piece: &Piece<'_>, reason: Disposition) {
        let Some((from, to)) = piece.next_after(piece.from).zip(piece.latest()) else { return };
        let count = piece.schedule.count_in(piece.from.timestamp(), piece.to.timestamp());
        self.record(SlotRange { from, to, count, reason });
    }

    fn record(&mut self, range: SlotRange) {
        self.plan.mark = range.to;
        self.plan.decided.push(range);
    }

    fn finish(mut self, waits: bool) -> Plan {
        let input = self.input;
        if input.triggered {
            let starts = self.capacity > 0 && !waits;
            self.plan.trigger = Some(if starts { Trigger::Start } else { Trigger::Refused });
        }
        if let Some(edit) = input.edit
            && !waits
            && edit.seen <= input.now
        {
            self.plan.adopts_edit = true;
            self.plan.mark = self.plan.mark.max(edit.seen);
        }
        let holds = match input.edit {
            Some(edit) if !self.plan.adopts_edit => edit.before,
            _ => Some(input.timetable),
        };
        let schedule = holds.and_then(|timetable| timetable.schedule.as_ref());
        let next = schedule.and_then(|schedule| schedule.next_after(self.plan.mark.timestamp())).map(Instant::new);
        if holds.is_some_and(|timetable| timetable.suspend) {
            let write_at = input.mark.plus(SUSPENDED_MARK_PERIOD);
            if self.only_passes_suspended_slots() && input.now < write_at {
                self.plan.mark = input.mark;
                self.plan.decided.clear();
            }
            self.plan.wake = next.map(|next| next.max(self.plan.mark.plus(SUSPENDED_MARK_PERIOD)));
        } else if waits {
            // The end of the run that holds the place is what wakes.
            self.plan.wake = None;
        } else {
            self.plan.wake = next;
        }
        // An edit that was seen later than `now` (its clock was stepped back) waits for its time.
        if let Some(edit) = input.edit
            && !self.plan.adopts_edit
            && !waits
        {
            self.plan.wake = Some(self.plan.wake.map_or(edit.seen, |wake| wake.min(edit.seen)));
        }
        self.plan
    }

    fn only_passes_suspended_slots(&self) -> bool {
        !self.plan.adopts_edit
            && self.plan.trigger.is_none()
            && self.plan.decided.iter().all(|range| range.reason == Disposition::Suspended)
    }
}

impl Plan {
    fn nothing(mark: Instant) -> Self {
        Self {
            mark,
            decided: Vec::new(),
            starts: Vec::new(),
            catches_up: false,
            trigger: None,
            adopts_edit: false,
            replaces: false,
            wake: None,
        }
    }

    /// Whether there is anything to store.
    pub fn is_empty(&self) -> bool {
        self.decided.is_empty() && self.trigger.is_none() && !self.adopts_edit
    }
}

#[cfg(test)]
mod tests;
