//! What several modules of tests share.

pub mod assembled;
pub mod freeze;
pub mod heard;
pub mod lab;
pub mod ledger;
pub mod network;
pub mod process;
pub mod whole;
