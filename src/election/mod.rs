//! Leader election on a Kubernetes Lease, safe under pauses, partitions, lost answers and clocks that run wrong.
//!
//! `machine` decides (pure), [`Elector`] sends and listens, [`Leadership`] is what the rest of a program reads, and a
//! [`Term`]'s guard is asked as the last step before each effect. What is promised: no two replicas have a valid guard at
//! the same time, as long as no clock's *rate* is wrong by more than [`CLOCK_RATE_ERROR_PERCENT`]. Offsets and steps of wall
//! clocks do not matter. What is left to others: an effect that is already on the wire when its process freezes, for which
//! [`Term::token`] is there, and virtual machines whose clock stands still.

mod barriers;
mod builder;
mod elector;
mod gate;
mod guard;
mod leadership;
mod lease_watch;
mod machine;
#[cfg(test)]
mod model;
mod observer;
mod place;
mod record;
mod timing;
mod watchdog;

pub use builder::{ConfigError, ElectorBuilder};
pub use elector::{Elector, ElectorReport, Released};
pub(crate) use gate::is_refusal;
pub use gate::{EveryWrite, GatedStream, WriteGate};
pub use guard::{ABORT_GRACE, Guard, Term, TermEnded, Verdict, WATCHDOG_PERIOD, Work};
pub use leadership::{Leadership, Standing};
pub use machine::{Contention, Lost};
pub use observer::ElectorObserver;
pub use place::{Place, PlaceError};
#[cfg(feature = "controller")]
pub(crate) use record::Record;
pub use record::{PLACE_ANNOTATION, RELEASED_ANNOTATION, WRITE_ANNOTATION};
pub use timing::{CLOCK_RATE_ERROR_PERCENT, TimingError};
pub use watchdog::{Look, ThreadWatchdog, Watchdog, WatchdogDriver};

#[doc(hidden)]
pub mod testing {
    pub use super::{guard::testing::*, leadership::testing::*};
}
