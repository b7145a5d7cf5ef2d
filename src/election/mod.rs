//! Leader election on a Kubernetes Lease.

mod guard;
mod leadership;

pub use guard::{ABORT_GRACE, Gate, GateLayer, Guard, Term, TermEnded, Verdict, WATCHDOG_PERIOD, Work};
pub use leadership::{Leadership, Standing};

#[doc(hidden)]
pub mod testing {
    pub use super::{guard::testing::*, leadership::testing::*};
}
