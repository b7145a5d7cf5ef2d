//! Who judges: two valid permits never, and for each loss of a leader a successor in time.
//!
//! In time is `bound` after the later of two instants: the last change of the Lease, for whatever was written may have to be
//! waited for, and the one from which some replica has been healthy: running, reachable, thawed, and willing to lead. That
//! is judged for each loss, not over an average. Changes that electors make without anybody getting to lead do not put it
//! off for ever: after [`CHANGES_MAX`] times the bound since the last thing that somebody else did, there is a leader.

use std::time::Duration;

use super::world::{Instant, MILLI, SECOND, World};

/// A third of a lease by the slowest clock, and what a renewal may be late; the leases of a calm world are all alike.
const HIDDEN_MAX: u64 = 7 * SECOND;

/// How many bounds may pass without a leader while electors change the Lease and nobody else does anything.
const CHANGES_MAX: u64 = 3;

#[derive(Debug)]
pub(super) struct Judge {
    /// The longest time without a leader that is allowed; none where messages are lost at random.
    pub(super) bound: Option<u64>,
    /// The last change of the Lease.
    pub(super) changed: Instant,
    /// The last change of the Lease by somebody else than an elector.
    pub(super) written: Instant,
    /// The last thing that was done to replicas or to the Lease from outside.
    pub(super) disturbed: Instant,
    leaderless_since: Option<Instant>,
    longest: u64,
    newest_token: u64,
    pub(super) terms: u64,
    pub(super) losses: u64,
}

impl Judge {
    pub(super) fn new(bound: Option<u64>) -> Self {
        Self {
            bound,
            changed: 0,
            written: 0,
            disturbed: 0,
            leaderless_since: Some(0),
            longest: 0,
            newest_token: 0,
            terms: 0,
            losses: 0,
        }
    }

    /// The longest time that was waited for a leader while it was owed.
    pub(super) fn longest(&self) -> Duration {
        Duration::from_nanos(self.longest)
    }

    pub(super) fn note_token(&mut self, seed: u64, token: u64) {
        self.terms += 1;
        assert!(token > self.newest_token, "seed {seed}: token {token} after {}", self.newest_token);
        self.newest_token = token;
    }

    /// Looks at the world as it is now.
    pub(super) fn look(world: &mut World) {
        let now = world.now;
        let mut healthy_since = None;
        for replica in &mut world.replicas {
            let healthy = replica.is_healthy(now);
            replica.healthy_since = healthy.then(|| replica.healthy_since.unwrap_or(now));
            healthy_since = [healthy_since, replica.healthy_since].into_iter().flatten().min();
        }
        let led = world.replicas.iter().any(|replica| replica.may_act(now)) || world.foreign.may_act(now);
        let judge = &mut world.judge;
        if led {
            judge.leaderless_since = None;
            return;
        }
        if judge.leaderless_since.is_none() {
            judge.leaderless_since = Some(now);
            judge.losses += 1;
        }
        let (Some(bound), Some(healthy)) = (judge.bound, healthy_since) else { return };
        // A watch that is dead hides what somebody else writes until the leader's next renewal is overdue.
        let hidden = if judge.written == judge.changed { HIDDEN_MAX } else { 0 };
        let waited = (now - healthy.max(judge.changed)).saturating_sub(hidden);
        judge.longest = judge.longest.max(waited);
        assert!(
            waited <= bound,
            "seed {}: at {} ms nobody has led for {} ms since the last change, with a healthy replica",
            world.seed,
            now / MILLI,
            waited / MILLI,
        );
        let undisturbed = now - healthy.max(judge.disturbed);
        assert!(
            undisturbed <= bound * CHANGES_MAX,
            "seed {}: at {} ms the Lease changes and nobody has led for {} ms",
            world.seed,
            now / MILLI,
            undisturbed / MILLI,
        );
    }

    /// `index` has just entered or prolonged a term.
    pub(super) fn judge(world: &World, index: usize) {
        let now = world.now;
        if !world.replicas[index].may_act(now) {
            return;
        }
        let others = world.replicas.iter().enumerate().filter(|(other, _)| *other != index);
        for (other, replica) in others {
            assert!(
                !replica.may_act(now),
                "seed {}: replicas {index} and {other} may both act at {} ms",
                world.seed,
                now / MILLI,
            );
        }
        assert!(
            !world.foreign.may_act(now),
            "seed {}: replica {index} and a client of another make may both act at {} ms",
            world.seed,
            now / MILLI,
        );
    }
}
