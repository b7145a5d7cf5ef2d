//! What is done to the leaders, for how long, and what Tenure promises then.

use std::{fmt, str::FromStr, time::Duration};

/// The lease duration of every contender.
pub(super) const LEASE: Duration = Duration::from_secs(15);
/// What Tenure promises: no leader for a lease duration and this much more.
const LEASE_AND: Duration = Duration::from_secs(1);
/// What Tenure gives a holder of another make besides, as the chart installs it.
pub(super) const FOREIGN_GRACE: Duration = Duration::from_secs(5);
/// The lengths of a freeze of a container, in turn. A short run has one trial, and that is to be longer than a lease.
const FREEZES_S: [u64; 5] = [20, 5, 20, 5, 60];
/// The lengths of a pause of the control plane, in turn.
const PAUSES_S: [u64; 3] = [20, 5, 60];

/// An answer is late by a lease divided by this, in turn.
const LATE_BY_A: [u32; 2] = [4, 2];
/// What a look, an acquisition and the connection before it take longer where each answer is late.
const LATE_ANSWERS: u32 = 3;
/// So many tries may fail, each with Tenure's pause after it, before one comes to a server that does not err.
const FAILED_TRIES: u32 = 2;
const RETRY_PERIOD: Duration = Duration::from_secs(2);
/// How often the faults strike at most in which the contenders come by a front: they take more than a minute each.
const TRIALS_BEHIND_A_FRONT: u32 = 2;

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The leader's pod is deleted: it leaves in order.
    PodDeleted,
    /// The first process of the leader's container is killed.
    ContainerKilled,
    /// The leader's container is frozen, and goes on later.
    PodFrozen,
    /// The Lease is deleted.
    LeaseDeleted,
    /// The holder is taken out of the Lease.
    LeaseEmptied,
    /// Another holder is written into the Lease.
    LeaseEdited,
    /// The leader's node does not reach the API server.
    NodeCutOff,
    /// The leader's node dies.
    NodeDead,
    /// The API server is killed, and started again.
    ApiServerRestarted,
    /// The API server is frozen, and goes on later.
    ApiServerPaused,
    /// The store of the API server is frozen, and goes on later.
    EtcdPaused,
    /// Every answer of the API server is late, and the leader is gone without a word.
    ApiSlow,
    /// One API server of three answers 500 to everything, the leader's first of all; later the leader is gone.
    OneApiServerErrs,
    /// The watches have gone silent without an end, and the leader is gone right after a renewal.
    WatchHalfOpen,
    /// An older state of the Lease is put back while the leader is cut off from the API server.
    OldManifestPutBack,
    /// The Lease is given a shorter duration, and deleted, while the leader is cut off from the API server.
    LeaseShortenedAndDeleted,
}

/// What Tenure promises after a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Promise {
    /// A successor so soon after the fault.
    Successor(Duration),
    /// Somebody, the leader that was struck or a successor, leads so soon after the fault is over.
    Leader(Duration),
    /// The fault is shorter than the lease: whoever leads may go on.
    Nothing,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::PodDeleted,
        Self::ContainerKilled,
        Self::PodFrozen,
        Self::LeaseDeleted,
        Self::LeaseEmptied,
        Self::LeaseEdited,
        Self::NodeCutOff,
        Self::NodeDead,
        Self::ApiServerRestarted,
        Self::ApiServerPaused,
        Self::EtcdPaused,
        Self::ApiSlow,
        Self::OneApiServerErrs,
        Self::WatchHalfOpen,
        Self::OldManifestPutBack,
        Self::LeaseShortenedAndDeleted,
    ];

    /// Whether it belongs to a short run, too: one of each kind that is over soon. Tenure alone meets all of them in every run
    /// of [`crate::pods`]; what a short run shows is that the contenders can still be compared.
    pub const fn is_quick(self) -> bool {
        matches!(
            self,
            Self::PodDeleted | Self::PodFrozen | Self::LeaseEdited | Self::ApiServerRestarted | Self::WatchHalfOpen
        )
    }

    /// Whether the contenders have to come by a front before the API server.
    pub(super) const fn is_behind_a_front(self) -> bool {
        matches!(
            self,
            Self::ApiSlow
                | Self::OneApiServerErrs
                | Self::WatchHalfOpen
                | Self::OldManifestPutBack
                | Self::LeaseShortenedAndDeleted
        )
    }

    /// Whether the leader is cut off, and works on until it knows better.
    pub(super) const fn cuts_off(self) -> bool {
        matches!(self, Self::NodeCutOff | Self::OldManifestPutBack | Self::LeaseShortenedAndDeleted)
    }

    /// How often it strikes where others do so often.
    pub(super) fn trials(self, wanted: u32) -> u32 {
        if self.is_behind_a_front() { wanted.min(TRIALS_BEHIND_A_FRONT) } else { wanted }
    }

    /// Whether it strikes one contender alone, so that others can go on beside it.
    pub const fn strikes_one(self) -> bool {
        !self.strikes_a_node() && !self.strikes_the_control_plane()
    }

    /// Whether it strikes a node, which all leaders have to be on.
    pub(super) const fn strikes_a_node(self) -> bool {
        matches!(self, Self::NodeCutOff | Self::NodeDead)
    }

    /// Whether it strikes what all contenders ask who leads.
    pub(super) const fn strikes_the_control_plane(self) -> bool {
        matches!(self, Self::ApiServerRestarted | Self::ApiServerPaused | Self::EtcdPaused)
    }

    /// Whether it changes nothing but the Lease.
    pub(super) const fn touches_the_lease(self) -> bool {
        matches!(self, Self::LeaseDeleted | Self::LeaseEmptied | Self::LeaseEdited)
    }

    /// How long it lasts in this trial, counted from 1; zero where it has no length of its own.
    pub(super) fn length(self, number: u32) -> Duration {
        let in_turn = |lengths: &[u64]| Duration::from_secs(lengths[(number.max(1) as usize - 1) % lengths.len()]);
        match self {
            Self::PodFrozen => in_turn(&FREEZES_S),
            Self::ApiServerPaused | Self::EtcdPaused => in_turn(&PAUSES_S),
            // How late each answer is.
            Self::ApiSlow => LEASE / LATE_BY_A[(number.max(1) as usize - 1) % LATE_BY_A.len()],
            _ => Duration::ZERO,
        }
    }

    /// What Tenure promises after one that lasts so long.
    pub(super) fn promise(self, length: Duration) -> Promise {
        match self {
            Self::PodFrozen if length <= LEASE => Promise::Nothing,
            Self::LeaseEdited => Promise::Successor(LEASE + FOREIGN_GRACE + LEASE_AND),
            Self::ApiSlow => Promise::Successor(LEASE + LEASE_AND + length * LATE_ANSWERS),
            Self::OneApiServerErrs => Promise::Successor(LEASE + LEASE_AND + RETRY_PERIOD * FAILED_TRIES),
            // What it says is another holder's, and may have to be waited for after the last one's own lease.
            Self::OldManifestPutBack => Promise::Successor(LEASE * 2 + FOREIGN_GRACE + LEASE_AND),
            _ if self.strikes_the_control_plane() => Promise::Leader(LEASE + LEASE_AND),
            _ => Promise::Successor(LEASE + LEASE_AND),
        }
    }

    /// Its name in the table, with its lengths where it has any.
    pub(super) fn with_lengths(self, trials: u32) -> String {
        let mut lengths: Vec<Duration> = Vec::new();
        for length in (1..=trials).map(|number| self.length(number)).filter(|length| !length.is_zero()) {
            if !lengths.contains(&length) {
                lengths.push(length);
            }
        }
        if lengths.is_empty() {
            return self.to_string();
        }
        lengths.sort_unstable();
        let lengths: Vec<String> = lengths.into_iter().map(|length| length.as_secs_f64().to_string()).collect();
        format!("{self} {} s", lengths.join(", "))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::PodDeleted => "pod-deleted",
            Self::ContainerKilled => "container-killed",
            Self::PodFrozen => "pod-frozen",
            Self::LeaseDeleted => "lease-deleted",
            Self::LeaseEmptied => "lease-emptied",
            Self::LeaseEdited => "lease-edited",
            Self::NodeCutOff => "node-cut-off",
            Self::NodeDead => "node-dead",
            Self::ApiServerRestarted => "apiserver-restarted",
            Self::ApiServerPaused => "apiserver-paused",
            Self::EtcdPaused => "etcd-paused",
            Self::ApiSlow => "api-slow",
            Self::OneApiServerErrs => "one-api-server-errs",
            Self::WatchHalfOpen => "watch-half-open",
            Self::OldManifestPutBack => "old-manifest-put-back",
            Self::LeaseShortenedAndDeleted => "lease-shortened-and-deleted",
        })
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = || Self::ALL.map(|fault| fault.to_string()).join(", ");
        let found = Self::ALL.into_iter().find(|fault| fault.to_string() == text);
        found.ok_or_else(|| format!("unknown fault {text:?}: expected {}", known()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_trials_cover_every_length_and_the_first_is_longer_than_a_lease() {
        assert_eq!(Fault::PodFrozen.with_lengths(5), "pod-frozen 5, 20, 60 s");
        assert_eq!(Fault::EtcdPaused.with_lengths(5), "etcd-paused 5, 20, 60 s");
        assert_eq!(Fault::ApiServerPaused.with_lengths(1), "apiserver-paused 20 s");
        assert_eq!(Fault::NodeDead.with_lengths(5), "node-dead");
        assert_eq!(Fault::ApiSlow.with_lengths(2), "api-slow 3.75, 7.5 s");
        assert!(Fault::PodFrozen.length(1) > LEASE && Fault::PodFrozen.length(6) == Fault::PodFrozen.length(1));
    }

    #[test]
    fn every_fault_strikes_one_contender_or_a_node_or_the_control_plane() {
        for fault in Fault::ALL {
            let strikes = [fault.strikes_one(), fault.strikes_a_node(), fault.strikes_the_control_plane()];
            assert_eq!(strikes.into_iter().filter(|strikes| *strikes).count(), 1, "{fault}");
            assert_eq!(fault.to_string().parse(), Ok(fault));
        }
        assert!("node-bored".parse::<Fault>().is_err());
    }

    #[test]
    fn a_short_freeze_promises_no_successor_and_an_edited_lease_gets_the_grace_besides() {
        let promise = |fault: Fault, seconds| fault.promise(Duration::from_secs(seconds));
        assert_eq!(promise(Fault::PodFrozen, 5), Promise::Nothing);
        assert_eq!(promise(Fault::PodFrozen, 20), Promise::Successor(Duration::from_secs(16)));
        assert_eq!(promise(Fault::LeaseEmptied, 0), Promise::Successor(Duration::from_secs(16)));
        assert_eq!(promise(Fault::LeaseEdited, 0), Promise::Successor(Duration::from_secs(21)));
        assert_eq!(promise(Fault::ApiSlow, 4), Promise::Successor(Duration::from_secs(28)));
        assert_eq!(promise(Fault::OneApiServerErrs, 0), Promise::Successor(Duration::from_secs(20)));
        assert_eq!(promise(Fault::OldManifestPutBack, 0), Promise::Successor(Duration::from_secs(36)));
        assert_eq!(promise(Fault::EtcdPaused, 5), Promise::Leader(Duration::from_secs(16)));
    }
}
