//! A client of another make that leads now and then, as client-go's elector does: it may work on for 17 s after its last
//! write, and for a while after its release. It takes over only when no machine's guard says yes, for what it does to
//! others is not judged.

use k8s_openapi::{api::coordination::v1::LeaseSpec, apimachinery::pkg::apis::meta::v1::MicroTime};
use rand::Rng;

use super::world::{Happening, Instant, SECOND, World};

/// client-go's defaults: it renews every 2 s a lease of 15 s, and gives up 10 s after the last success; its last try may
/// have been stored 2 s before that, and its work ends up to 5 s after it knows.
const WORKS_ON: u64 = 17 * SECOND;
/// It cancels its work after its release.
const WORKS_ON_RELEASED: u64 = 4 * SECOND;
/// The longest lease of the model, by the fastest clock.
const WAITS: u64 = 60 * SECOND;
const RENEWS_EVERY: u64 = 2 * SECOND;
/// A host whose name holds an underscore.
const NAME: &str = "node_1_0f8b3a2e-4c51-4a4e-9f0e-1d2c3b4a5f60";

#[derive(Debug, Default)]
pub(super) struct Foreign {
    until: Instant,
    renewals_left: u32,
    releases: bool,
}

impl Foreign {
    pub(super) fn may_act(&self, now: Instant) -> bool {
        now < self.until
    }
}

impl World {
    pub(super) fn foreign_acquires(&mut self) {
        let led = self.replicas.iter().any(|replica| replica.may_act(self.now)) || self.foreign.may_act(self.now);
        // It takes what was released, and waits for as long as anybody may be in office by what else it has seen.
        let released = self.store.get().is_some_and(|record| record.released.is_some());
        if led || (!released && self.now - self.judge.changed < WAITS) {
            return;
        }
        self.foreign.renewals_left = self.rng.random_range(1..30);
        self.foreign.releases = self.rng.random_bool(0.5);
        self.foreign_writes(true);
    }

    /// Renews, releases or dies, if it still holds the Lease.
    pub(super) fn foreign_goes_on(&mut self) {
        let holds =
            self.store.get().and_then(|record| record.content.holder).is_some_and(|holder| holder.as_str() == NAME);
        if !holds {
            return;
        }
        if self.foreign.renewals_left > 0 {
            self.foreign.renewals_left -= 1;
            self.foreign_writes(false);
        } else if self.foreign.releases {
            let Some(mut lease) = self.store.lease().cloned() else { return };
            let spec = lease.spec.get_or_insert_default();
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            spec.renew_time = Some(MicroTime(self.wall()));
            self.commit(lease, "client-go");
            self.foreign.until = self.now + WORKS_ON_RELEASED;
        }
    }

    fn foreign_writes(&mut self, acquires: bool) {
        let Some(mut lease) = self.store.lease().cloned() else { return };
        let before = lease.spec.clone().unwrap_or_default();
        let transitions = before.lease_transitions.unwrap_or(0) + i32::from(acquires);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(NAME.to_owned()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(transitions),
            acquire_time: if acquires { Some(MicroTime(self.wall())) } else { before.acquire_time },
            renew_time: Some(MicroTime(self.wall())),
            ..LeaseSpec::default()
        });
        self.commit(lease, "client-go");
        self.foreign.until = self.now + WORKS_ON;
        self.schedule(RENEWS_EVERY, Happening::ForeignGoesOn);
    }
}
