//! What a replica serves over HTTP: the admin port.

mod admin;
mod checks;

pub use admin::{Admin, AdminError, AdminViews, listen};
pub use checks::{Check, Checks, Probe, Report};
