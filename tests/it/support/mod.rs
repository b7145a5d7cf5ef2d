//! What several modules of tests share.

pub mod freeze;
pub mod lab;
