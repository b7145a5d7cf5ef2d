//! How often each client asked for what: what a program costs its API server, counted where it is spent.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use serde::Serialize;

use crate::resource::Verb;

/// How many requests of one kind a client has made, watches counted when they are opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestCount {
    /// The caller's name; empty for the administrator.
    pub client: String,
    /// The verb as Kubernetes writes it.
    pub verb: &'static str,
    /// `widgets` or `widgets/status`.
    pub resource: String,
    /// How many.
    pub count: u64,
}

/// The counters. They grow by client, verb and resource, all of which are few.
#[derive(Debug, Default)]
pub(crate) struct Requests(Mutex<BTreeMap<(String, &'static str, String), u64>>);

impl Requests {
    pub(crate) fn count(&self, client: &str, verb: Verb, resource: &str, subresource: &str) {
        let resource = if subresource.is_empty() { resource.to_owned() } else { format!("{resource}/{subresource}") };
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((client.to_owned(), verb.as_str(), resource)).or_default() += 1;
    }

    pub(crate) fn counts(&self) -> Vec<RequestCount> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let row = |((client, verb, resource), count): (&(String, &'static str, String), &u64)| RequestCount {
            client: client.clone(),
            verb,
            resource: resource.clone(),
            count: *count,
        };
        counts.iter().map(row).collect()
    }
}
