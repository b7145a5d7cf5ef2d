//! The ledger: the HTTP target that jobs call, and the outside judge's own record of what reached it.
//!
//! It stamps the first byte of each request on the harness's clock, keeps who sent what ([`Entry`]), answers after a random
//! share of the job's period (seeded by the run, so that a session replays), and fences: a token lower than one it has seen
//! under the same path is refused with 412 and counted. Each replica is given an address of its own to dial, or is a pod with
//! one of its own, so that the ledger knows which replica sent a request without believing what the request says.
//!
//! A harness can hold the answer of the next request that fits ([`Ledger::hold`]): the request has been taken, the effect has
//! happened, and the sender waits until the hold is released.
//!
//! Each connection serves one request. The stamp is taken when its first byte can be read, before any of it is parsed.

mod record;
mod server;

pub use record::{Entry, Log, Request, Verdict};
pub use server::{Hold, Ledger, LedgerError, NamedBy, Pace, Whose};
