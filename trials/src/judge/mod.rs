//! The judge: what the evidence of one family of trials comes to. Pure.
//!
//! [`Evidence`] is everything that was seen from outside; [`judge`] turns it into [`Findings`]; [`Findings::failures`] lists
//! what must not be. Each condition is a function of its own in `conditions`, tested with evidence that must pass it and
//! evidence that must not.

mod conditions;
mod cut;
mod doubled;
mod evidence;
mod liveness;
mod report;
mod share;
#[cfg(test)]
mod tests;

pub use conditions::{Findings, LostSlot, judge};
pub use evidence::{
    Evidence, Family, Freeze, Guarantee, Job, Outage, PACE_AT_MOST, PACE_WINDOW, Trial, Window, WrongClock,
};
pub use liveness::Leaderless;
pub use report::{HAND_OVER_P99, render, summary};
pub use share::RanShare;
