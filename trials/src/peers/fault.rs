//! What is done to the leaders.

use std::{fmt, str::FromStr};

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
    /// The leader's node does not reach the API server.
    NodeCutOff,
    /// The leader's node dies.
    NodeDead,
    /// The API server is frozen, and goes on later.
    ApiServerPaused,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::PodDeleted,
        Self::ContainerKilled,
        Self::PodFrozen,
        Self::LeaseDeleted,
        Self::NodeCutOff,
        Self::NodeDead,
        Self::ApiServerPaused,
    ];

    /// Whether it strikes one contender alone, so that others can go on beside it.
    pub const fn strikes_one(self) -> bool {
        matches!(self, Self::PodDeleted | Self::ContainerKilled | Self::PodFrozen | Self::LeaseDeleted)
    }

    /// Whether it strikes a node, which all leaders have to be on.
    pub(super) const fn strikes_a_node(self) -> bool {
        matches!(self, Self::NodeCutOff | Self::NodeDead)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::PodDeleted => "pod-deleted",
            Self::ContainerKilled => "container-killed",
            Self::PodFrozen => "pod-frozen",
            Self::LeaseDeleted => "lease-deleted",
            Self::NodeCutOff => "node-cut-off",
            Self::NodeDead => "node-dead",
            Self::ApiServerPaused => "apiserver-paused",
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
