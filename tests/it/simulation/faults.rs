//! What goes wrong in a simulation: ways in which a leader is lost, and trouble beside it.

use std::{fmt, time::Duration};

use jiff::SignedDuration;
use kube::api::{DeleteParams, Patch, PatchParams};
use rand::{Rng, seq::IndexedRandom};
use sandbox::{Fault, FaultRule, Verb};
use serde_json::json;

use super::world::{DRAIN, LEASE_DURATION, World};
use crate::support::{lab::LEASE, ledger::CutOff};

/// A way in which a leader is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    Kill,
    Terminate,
    Freeze,
    TerminateFrozen,
    CutOff,
    CutOffLoudly,
    LoseRenewals,
    DeleteLease,
    EmptyLease,
    EditLease,
}

/// Something that goes wrong beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    LateAnswers,
    LostAnswer,
    LostAnswerHangs,
    LostRequest,
    StandbyCutOff,
    StaleWatch,
    Refusals,
    TargetRefuses,
    TargetSilent,
    ClockStep,
}

/// Each way, as often as it is listed.
const CHANGES: [Change; 20] = [
    Change::Kill,
    Change::Kill,
    Change::Kill,
    Change::Kill,
    Change::Kill,
    Change::Terminate,
    Change::Terminate,
    Change::Terminate,
    Change::Terminate,
    Change::Terminate,
    Change::Freeze,
    Change::Freeze,
    Change::Freeze,
    Change::TerminateFrozen,
    Change::CutOff,
    Change::CutOffLoudly,
    Change::LoseRenewals,
    Change::DeleteLease,
    Change::EmptyLease,
    Change::EditLease,
];

const TROUBLES: [Trouble; 10] = [
    Trouble::LateAnswers,
    Trouble::LostAnswer,
    Trouble::LostAnswerHangs,
    Trouble::LostRequest,
    Trouble::StandbyCutOff,
    Trouble::StaleWatch,
    Trouble::Refusals,
    Trouble::TargetRefuses,
    Trouble::TargetSilent,
    Trouble::ClockStep,
];

/// How many changes of a hundred have trouble beside them.
const TROUBLED_PERCENT: u32 = 45;

impl fmt::Display for Change {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, formatter)
    }
}

impl Change {
    pub fn draw(rng: &mut impl Rng) -> Self {
        *CHANGES.choose(rng).unwrap()
    }

    /// Whether it alone is a cut-off replica or a lost answer.
    pub fn is_of_the_network(self) -> bool {
        matches!(self, Self::CutOff | Self::CutOffLoudly | Self::LoseRenewals)
    }

    /// How long the world may be without a leader after it, on the slowest clock: a lease duration and a second, and the
    /// time to drain where the leader is asked to go.
    pub fn patience(self) -> Duration {
        let patience = LEASE_DURATION + Duration::from_secs(1);
        let on_the_slowest_clock = patience * 10 / 9;
        if self == Self::Terminate { on_the_slowest_clock + DRAIN * 10 / 9 } else { on_the_slowest_clock }
    }

    /// Lets it happen to the leader.
    pub async fn befall(self, world: &mut World, leader: usize) {
        let name = world.machines[leader].name.clone();
        world.story.tell(&name, &format!("loses office by {self}"));
        let faults = world.lab.sandbox.faults().clone();
        let leases = world.lab.leases();
        let edit = |holder: &str| Patch::Merge(json!({ "spec": { "holderIdentity": holder } }));
        match self {
            Self::Kill => world.kill(leader),
            // Whoever is told to stop ends as a process; the caller sees to that when it has.
            Self::Terminate => drop(world.terminate(leader)),
            Self::Freeze | Self::TerminateFrozen => world.freeze(leader),
            Self::CutOff => faults.partition(&name),
            Self::CutOffLoudly => faults.unreachable(&name),
            Self::LoseRenewals => {
                let lost = FaultRule::new(Fault::DropRequest { hang: true }).client(name);
                faults.add(lost.verb(Verb::Update).resource("leases"));
            }
            Self::DeleteLease => drop(leases.delete(LEASE, &DeleteParams::default()).await),
            Self::EmptyLease => drop(leases.patch(LEASE, &PatchParams::default(), &edit("")).await),
            Self::EditLease => drop(leases.patch(LEASE, &PatchParams::default(), &edit("somebody")).await),
        }
    }
}

impl Trouble {
    /// Whether it is a delayed or lost answer, or a cut-off replica.
    pub fn is_of_the_network(self) -> bool {
        !matches!(self, Self::StaleWatch | Self::ClockStep)
    }

    pub fn draw(rng: &mut impl Rng) -> Option<Self> {
        rng.random_ratio(TROUBLED_PERCENT, 100).then(|| *TROUBLES.choose(rng).unwrap())
    }

    /// Lets it happen to one of the replicas.
    pub fn befall(self, world: &mut World, leader: usize) {
        let standby = (leader + world.rng.random_range(1..3)) % 3;
        let anybody = if world.rng.random() { leader } else { standby };
        let whom = if matches!(self, Self::StandbyCutOff | Self::StaleWatch) { standby } else { anybody };
        let name = world.machines[whom].name.clone();
        world.story.tell(&name, &format!("has trouble: {self:?}"));
        let faults = world.lab.sandbox.faults().clone();
        let late = Duration::from_millis(world.rng.random_range(200..=800));
        let write = |fault| FaultRule::new(fault).client(name.clone()).verb(Verb::Update).times(1);
        let rule = match self {
            Self::LateAnswers => FaultRule::new(Fault::DelayAnswer(late)).client(name).times(5),
            Self::LostAnswer => write(Fault::DropAnswer { hang: false }),
            Self::LostAnswerHangs => write(Fault::DropAnswer { hang: true }),
            Self::LostRequest => write(Fault::DropRequest { hang: true }),
            Self::StandbyCutOff => return faults.partition(&name),
            Self::StaleWatch => {
                // It begins with the next event.
                world.stale_until = world.lab.now() + LEASE_DURATION * 2;
                FaultRule::new(Fault::StaleWatch(LEASE_DURATION)).client(name).verb(Verb::Watch)
            }
            Self::TargetRefuses => return world.ledger.cut_off(&name, CutOff::Refused),
            Self::TargetSilent => return world.ledger.cut_off(&name, CutOff::Silent),
            Self::ClockStep => {
                let hours = *[-1, 1].choose(&mut world.rng).unwrap();
                return world.machines[whom].step_clock(SignedDuration::from_hours(hours));
            }
            Self::Refusals => {
                let code = *[429, 500, 503, 504].choose(&mut world.rng).unwrap();
                FaultRule::new(Fault::Refuse { code, retry_after: Some(1) }).client(name).times(3)
            }
        };
        faults.add(rule);
    }
}
