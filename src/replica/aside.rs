//! Whether this replica takes part in the election: what speaks against it, and what that comes to.
//!
//! - A scheduler that has ended by a fault of its own runs nothing: whoever is sound must not wait behind it.
//! - A replica that has not listed the jobs does not know what it is to run.
//! - A term that is too old for what it is to adopt makes room for the next one.
//! - A replica whose clock is wrong stands aside for one whose clock is right. But the clock that is wrong may be that of an
//!   API server, and then every replica stands aside: so when no holder of the Lease has shown a sign of life for three lease
//!   durations, this replica contends all the same, plans by the API server's time, and says so.
//!
//! What is decided is in [`Aside`], which is pure; [`stand_aside`] asks it, and tells the elector and the scheduler.

use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use jiff::SignedDuration;
use tokio_util::sync::CancellationToken;

use crate::{
    apiserver::ApiServer,
    clock::{BootTime, SharedClock},
    election::{Leadership, Standing},
    periodic::{LeaseName, SchedulerHandle, SchedulerState, Seen, look_at_lease},
};

/// For so many lease durations no holder of the Lease may have shown a sign of life before a replica whose clock is wrong
/// contends.
const LEASES_WITHOUT_HOLDER: u32 = 3;

/// A replica that stands aside because of its clock looks at the Lease so often in one lease duration: as often as a holder
/// renews it.
const LOOKS_PER_LEASE: u32 = 3;

/// What a replica is to do about the election.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It takes part.
    Contend,
    /// It takes part though its clock is wrong, and plans by the API server's time.
    ContendAnyway,
    /// It does not take part.
    StandAside,
}

/// What is known about whether this replica should take part.
#[derive(Debug)]
pub struct Aside {
    lease_duration: Duration,
    /// What the last look has shown.
    seen: Option<Seen>,
    /// When the last sign of life of a holder was heard, or the first look was answered.
    quiet_since: Option<BootTime>,
    /// The longest duration that the Lease has shown.
    longest: Duration,
    anyway: bool,
}

impl Aside {
    /// Nothing is known yet.
    pub const fn new(lease_duration: Duration) -> Self {
        Self { lease_duration, seen: None, quiet_since: None, longest: Duration::ZERO, anyway: false }
    }

    /// Takes note of what a look at the Lease that was answered by `now` has shown. Whatever has changed is a sign of life:
    /// the record of a dead holder stands as it is.
    pub fn saw(&mut self, seen: Seen, now: BootTime) {
        let changed = self.seen.as_ref().is_some_and(|known| *known != seen);
        if changed {
            self.quiet_since = None;
            // Whoever holds it is preferred. A Lease that was given up says nothing against contending for it.
            self.anyway &= seen.holder.is_none();
        }
        self.longest = self.longest.max(seen.duration);
        self.seen = Some(seen);
        let patience = self.lease_duration.max(self.longest) * LEASES_WITHOUT_HOLDER;
        self.anyway |= now.saturating_since(*self.quiet_since.get_or_insert(now)) >= patience;
    }

    /// What this replica is to do. `state` is that of its scheduler, if that has not ended.
    pub fn decide(&mut self, state: Option<&SchedulerState>, leads: bool) -> Verdict {
        let Some(state) = state else { return Verdict::StandAside };
        if state.clock_skew.is_none() {
            *self = Self { longest: self.longest, ..Self::new(self.lease_duration) };
        }
        if leads {
            // What it has written itself meanwhile is nobody else's sign of life.
            self.seen = None;
        }
        if !state.synced || state.wants_new_term {
            return Verdict::StandAside;
        }
        match state.clock_skew {
            None => Verdict::Contend,
            Some(_) if self.anyway => Verdict::ContendAnyway,
            Some(_) => Verdict::StandAside,
        }
    }
}

/// What [`stand_aside`] works with.
#[derive(Debug)]
pub struct Surroundings {
    /// The scheduler, which knows what speaks against leading.
    pub scheduler: SchedulerHandle,
    /// Whether this replica leads.
    pub leadership: Leadership,
    /// How the Lease is looked at.
    pub api: ApiServer,
    /// Which Lease.
    pub lease: LeaseName,
    /// How long the Lease of this replica is.
    pub lease_duration: Duration,
    /// Time.
    pub clock: SharedClock,
    /// Cancelled when the replica is asked to stop.
    pub stopping: CancellationToken,
}

/// Tells the elector by `take_part` whether this replica takes part, from now until the replica stops. It does not before the
/// jobs are listed. `overruled` hears by how much the clock is wrong when the replica contends all the same.
///
/// The first word is said before this returns, so that an elector that has just been started hears it first.
pub fn stand_aside(
    around: Surroundings,
    take_part: impl Fn(Verdict) + Send + 'static,
    overruled: impl Fn(SignedDuration) + Send + 'static,
) -> impl Future<Output = ()> + Send + 'static {
    take_part(Verdict::StandAside);
    async move {
        let Surroundings { scheduler, leadership, api, lease, lease_duration, clock, stopping } = around;
        let (mut shown, mut standing) = (scheduler.state(), leadership.watch());
        let (mut aside, mut told) = (Aside::new(lease_duration), Verdict::StandAside);
        let (mut look, mut next_look) = (None::<BoxFuture<'static, _>>, BootTime::default());
        let mut elector_gone = false;
        loop {
            let state = shown.borrow_and_update().clone();
            let leads = matches!(*standing.borrow_and_update(), Standing::Leading(_));
            let verdict = aside.decide(Some(&state), leads);
            if verdict != told {
                told = verdict;
                if let (Verdict::ContendAnyway, Some(skew)) = (verdict, state.clock_skew) {
                    let seconds = skew.by.as_secs_f64();
                    tracing::warn!(%lease, seconds, "Nobody holds the Lease: this replica contends though its clock is wrong");
                    overruled(skew.by);
                }
                scheduler.plan_anyway(verdict == Verdict::ContendAnyway);
                take_part(verdict);
            }
            if leads || state.clock_skew.is_none() {
                look = None;
            } else if look.is_none() {
                let (client, clock, lease, at) = (api.client(), clock.clone(), lease.clone(), next_look);
                next_look = next_look.max(clock.boot()) + lease_duration / LOOKS_PER_LEASE;
                let looking = async move {
                    clock.sleep_until(at).await;
                    look_at_lease(client, &clock, &lease).await
                };
                look = Some(looking.boxed());
            }
            tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                changed = shown.changed() => if changed.is_err() {
                    if !stopping.is_cancelled() {
                        tracing::error!("The scheduler has ended: this replica hands over, and has to be restarted");
                        take_part(aside.decide(None, leads));
                    }
                    return;
                },
                changed = standing.changed(), if !elector_gone => elector_gone = changed.is_err(),
                seen = answer(&mut look) => {
                    look = None;
                    // What cannot be read says nothing, and the next look is not far.
                    if let Ok(seen) = seen {
                        aside.saw(seen, clock.boot());
                    }
                }
            }
        }
    }
}

async fn answer<T>(look: &mut Option<BoxFuture<'static, T>>) -> T {
    match look {
        Some(look) => look.await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
