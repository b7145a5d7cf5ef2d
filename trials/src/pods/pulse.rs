//! How fast the control plane is: the harness's own writes, made all the time.
//!
//! A control plane that takes longer for a write than Kubernetes promises of itself is a fault that nobody put in place: a
//! busy machine, a slow disk. The judge is told of it, and of nothing that the replicas say.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::task::JoinHandle;

use super::{NAMESPACE, REQUEST_LIMIT};
use crate::clock::At;

/// A pause between two writes: a small share of what the jobs write.
const EVERY: Duration = Duration::from_millis(250);
/// A write that takes longer is a fault: 99 of 100 are promised within it.
const SLOW: Duration = Duration::from_secs(1);

/// A running pulse. Dropping it stops it.
#[derive(Debug)]
pub(super) struct Pulse {
    slow: Arc<Mutex<Vec<(At, At)>>>,
    task: JoinHandle<()>,
}

impl Pulse {
    /// Starts to write.
    pub(super) fn start(client: Client) -> Self {
        let slow = Arc::<Mutex<Vec<(At, At)>>>::default();
        let task = tokio::spawn(beat(Api::all(client), slow.clone()));
        Self { slow, task }
    }

    /// From when to when writes were slow or failed.
    pub(super) fn slow(&self) -> Vec<(At, At)> {
        self.slow.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn beat(namespaces: Api<Namespace>, slow: Arc<Mutex<Vec<(At, At)>>>) {
    let mut number = 0_u64;
    // What made a write slow began after the start of the one before it.
    let mut since = At::now();
    loop {
        let begun = At::now();
        number += 1;
        let patch = Patch::Merge(json!({ "metadata": { "annotations": { "tenure.test/pulse": number.to_string() } } }));
        let written =
            tokio::time::timeout(REQUEST_LIMIT, namespaces.patch(NAMESPACE, &PatchParams::default(), &patch)).await;
        let ended = At::now();
        if !matches!(written, Ok(Ok(_))) || ended.since(begun) > SLOW {
            slow.lock().unwrap_or_else(PoisonError::into_inner).push((since, ended));
        }
        since = begun;
        tokio::time::sleep(EVERY).await;
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.task.abort();
    }
}
