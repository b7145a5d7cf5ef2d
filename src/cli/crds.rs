//! `tenure crds`: the CustomResourceDefinitions, as YAML on standard output.

use std::{
    error::Error,
    io::{ErrorKind, Write},
};

use crate::api;

pub(super) fn print() -> Result<(), Box<dyn Error>> {
    let documents: Vec<_> = api::crds_yaml()?.into_iter().map(|(_, document)| document).collect();
    match std::io::stdout().lock().write_all(documents.join("---\n").as_bytes()) {
        // Who reads it, `head` for one, may have had enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}
