//! Leader election on a Kubernetes Lease, safe under pauses, partitions, lost answers and clocks that run wrong.
//!
//! `machine` decides (pure), [`Elector`] sends and listens, [`Leadership`] is what the rest of a program reads, and a
//! [`Term`]'s guard is asked as the last step before each effect. What is promised: no two replicas have a valid guard at
//! the same time, as long as no clock's *rate* is wrong by more than [`CLOCK_RATE_ERROR_PERCENT`]. Offsets and steps of wall
//! clocks do not matter. What is left to others: an effect that is already on the wire when its process freezes, for which
//! [`Term::token`] is there, and virtual machines whose clock stands still.

mod admission;
mod barriers;
mod builder;
mod elector;
mod gate;
mod guard;
mod health;
mod leadership;
mod lease_watch;
mod machine;
mod metadata;
#[cfg(test)]
mod model;
mod observer;
mod own_thread;
mod place;
mod record;
mod timing;
mod watchdog;
mod work;

pub use admission::StopSignal;
pub use builder::{ConfigError, ElectorBuilder};
pub use elector::{Elector, ElectorReport, RELEASE_DRAIN, Released};
pub(crate) use gate::is_refusal;
pub use gate::{EveryWrite, GatedStream, WriteGate};
pub use guard::{ABORT_GRACE, Guard, Term, TermEnded, Verdict, WATCHDOG_PERIOD, Work};
pub use health::{Health, Unhealthy};
pub use leadership::{Leadership, Standing};
pub use machine::Lost;
pub use metadata::MetadataError;
pub use observer::{ElectorObserver, Leader, TryFailure};
pub use place::{Place, PlaceError};
#[cfg(feature = "controller")]
pub(crate) use record::Record;
pub use record::{PLACE_ANNOTATION, RELEASED_ANNOTATION, WRITE_ANNOTATION};
pub use timing::{CLOCK_RATE_ERROR_PERCENT, TimingError};
pub use watchdog::{Look, ThreadWatchdog, Watchdog, WatchdogDriver};
pub use work::GatedWork;

#[doc(hidden)]
pub mod testing {
    pub use super::{guard::testing::*, leadership::testing::*};
}

/// What is told of an election may grow: a match of a user's needs an arm for what is added later, and a report is not made
/// by hand.
///
/// ```compile_fail,E0004
/// fn exhaustive(standing: tenure::Standing) {
///     match standing {
///         tenure::Standing::Standby | tenure::Standing::Leading(_) | tenure::Standing::Stopped => {}
///     }
/// }
/// ```
///
/// ```compile_fail,E0004
/// fn exhaustive(released: tenure::Released) {
///     match released {
///         tenure::Released::Free | tenure::Released::Unsettled => {}
///     }
/// }
/// ```
///
/// ```compile_fail,E0004
/// use tenure::election::Verdict;
/// fn exhaustive(verdict: Verdict) {
///     match verdict {
///         Verdict::LookAgainAt(_) | Verdict::Revoked(_) | Verdict::Abort => {}
///     }
/// }
/// ```
///
/// ```compile_fail,E0638
/// fn exhaustive(report: tenure::election::ElectorReport) {
///     let tenure::election::ElectorReport {
///         lease: _, holder: _, valid_until: _, since: _, last_lost: _, served: _, last_error: _, last_turn: _
///     } = report;
/// }
/// ```
#[cfg(doctest)]
struct Growing;
