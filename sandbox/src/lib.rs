//! A small, honest Kubernetes API server in memory, for development and tests.
//!
//! It serves Namespaces, ConfigMaps, Secrets, Events, Leases, Jobs and CustomResourceDefinitions with the objects they
//! define, and answers as a real API server does, messages included. It knows nothing of the programs that use it: their
//! definitions are posted to it. The same router is served over HTTP ([`Sandbox::serve`]) and in the process
//! ([`Sandbox::service`]), and every request can be made to fail on purpose ([`Faults`]).
//!
//! # Accepted without effect
//!
//! `limit` (the whole list is sent, never a `continue`), `fieldManager`, `timeout`, `propagationPolicy=Background`,
//! `gracePeriodSeconds`, `pretty`.
//!
//! # Refused
//!
//! With a Status that names the feature: server-side apply, `continue`, `dryRun` of anything but a creation,
//! `propagationPolicy=Orphan`, `resourceVersionMatch=Exact`, `sendInitialEvents` (422; clients fall back to list and watch), protobuf bodies (415).
//! A definition that asks for a conversion webhook, the scale subresource, selectable fields or a format that is not
//! checked is refused when it is posted.
//!
//! # Left out
//!
//! `managedFields`, admission webhooks, garbage collection (a deletion in the foreground is begun, and a client has to
//! play the collector), the controller of Jobs and everything that the API server knows of their pods (defaults, most
//! rules), RBAC (a fault rule can refuse with 403), OpenAPI v2,
//! persistence.
//!
//! # Compared with a real API server
//!
//! `tests/conformance/` plays scenarios of requests and compares every answer, messages included, with the recorded one
//! of a real API server; `make parity` records it anew. What is answered otherwise on purpose is listed, place by place
//! and with the reason, in `tests/conformance/differences.yaml`: apart from what is refused or left out above, a
//! definition is established and deleted at once, columns of built-in kinds have no descriptions, and a few messages do
//! not repeat the names of Go's types.
#![allow(
    clippy::disallowed_methods,
    reason = "the sandbox is the world outside: it waits on tokio's own time and spawns tasks without an owner"
)]

mod body;
mod builtin;
mod crd;
mod discovery;
mod duplicates;
mod faults;
mod http;
mod meta;
mod openapi;
mod options;
mod patch;
mod requests;
mod resource;
mod schema;
mod selector;
mod serve;
mod service;
mod status;
mod store;
mod table;
mod tls;
mod verbs;
mod watch;

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc;

pub use crate::{
    faults::{Fault, FaultId, FaultRule, Faults, Hold, HoldId, HoldState},
    requests::RequestCount,
    resource::Verb,
    serve::{ServeOptions, new_token},
    service::SandboxService,
    store::{Change, ChangeKind, WallClock},
};
use crate::{
    http::router,
    requests::Requests,
    store::{Key, Store},
};

/// The API server. Clones are the same server.
#[derive(Clone)]
pub struct Sandbox {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    faults: Faults,
    requests: Requests,
}

/// Settings of a [`Sandbox`].
#[must_use]
pub struct SandboxBuilder {
    clock: WallClock,
    seed: u64,
}

impl SandboxBuilder {
    /// Where the time of day comes from: creation timestamps, ages, the `Date` header.
    pub fn clock(mut self, clock: WallClock) -> Self {
        self.clock = clock;
        self
    }

    /// The seed of uids and generated names.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Starts with the namespaces that every cluster has.
    pub fn build(self) -> Sandbox {
        let store = Store::new(self.clock, self.seed);
        {
            let mut state = store.lock();
            for name in ["default", "kube-node-lease", "kube-public", "kube-system"] {
                let key = Key { table: "namespaces".to_owned(), namespace: String::new(), name: name.to_owned() };
                let namespace = first_namespace(name, &state.uid(), &state.timestamp());
                state.put(&key, namespace, Verb::Create, "");
            }
        }
        Sandbox { inner: Arc::new(Inner { store, faults: Faults::default(), requests: Requests::default() }) }
    }
}

fn first_namespace(name: &str, uid: &str, created: &Value) -> Value {
    json!({
        "kind": "Namespace", "apiVersion": "v1",
        "metadata": {
            "name": name, "uid": uid, "creationTimestamp": created,
            "labels": { "kubernetes.io/metadata.name": name },
        },
        "spec": { "finalizers": ["kubernetes"] },
        "status": { "phase": "Active" },
    })
}

impl Sandbox {
    /// A server on the machine's clock, with random uids.
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// A server with other settings.
    pub fn builder() -> SandboxBuilder {
        SandboxBuilder { clock: Arc::new(Timestamp::now), seed: rand::random() }
    }

    /// The router that answers every request, over HTTP and in the process.
    pub fn router(&self) -> axum::Router {
        router(Arc::clone(&self.inner))
    }

    /// A connection of the caller named `client`, without a network: for `kube::Client::new`.
    ///
    /// A request is under way once it is made: what becomes of its caller does not stop it.
    pub fn service(&self, client: &str) -> SandboxService {
        SandboxService::new(self.router(), client)
    }

    /// What goes wrong on purpose.
    pub fn faults(&self) -> &Faults {
        &self.inner.faults
    }

    /// What every client has asked for so far, faults included.
    pub fn requests(&self) -> Vec<RequestCount> {
        self.inner.requests.counts()
    }

    /// The version of the newest write.
    pub fn resource_version(&self) -> u64 {
        self.inner.store.lock().rv
    }

    /// The committed writes that are still remembered, oldest first.
    pub fn history(&self) -> Vec<Change> {
        self.inner.store.lock().history()
    }

    /// Every write that is committed from now on, in its order.
    pub fn follow(&self) -> mpsc::UnboundedReceiver<Change> {
        self.inner.store.lock().follow()
    }

    /// Forgets the history, so that a watch which asks for an older version is answered with 410.
    pub fn compact(&self) {
        self.inner.store.lock().compact();
    }
}

impl Default for Sandbox {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sandbox").field("resource_version", &self.resource_version()).finish_non_exhaustive()
    }
}
