//! The judge: what the evidence of one family of trials comes to. Pure.
//!
//! [`Evidence`] is everything that was seen from outside; [`judge`] turns it into [`Findings`]; [`Findings::failures`] lists
//! what must not be. Each condition is a function of its own in `conditions`, tested with evidence that must pass it and
//! evidence that must not.

mod conditions;
mod evidence;
mod report;
#[cfg(test)]
mod tests;

pub use conditions::{Findings, LostSlot, RanShare, judge};
pub use evidence::{Evidence, Family, Freeze, Guarantee, Job, Trial, Window};
pub use report::{render, summary};
