//! A contender on the crate kube-leader-election, used in the way that its example `shared-lease` shows: a loop sets whether
//! this process leads from what a try says, and leaves it as it is when a try fails.
//!
//! The token is leaseTransitions.

use anyhow::Context as _;
use contender::{Worker, begin, told_to_stop};
use kube_leader_election::{LeaseLock, LeaseLockParams, LeaseLockResult};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = begin();
    let identity = arguments.identity();
    let worker = Worker::start(&arguments, identity.clone()).await?;
    let client = kube::Client::try_default().await.context("the API server")?;
    let parameters = LeaseLockParams {
        holder_id: identity,
        lease_name: arguments.lease.clone(),
        lease_ttl: arguments.lease_duration,
    };
    let lock = LeaseLock::new(client, &arguments.namespace, parameters);
    let contend = async {
        loop {
            match lock.try_acquire_or_renew().await {
                Ok(LeaseLockResult::Acquired(lease)) => {
                    let transitions = lease.spec.and_then(|spec| spec.lease_transitions);
                    worker.set(transitions.and_then(|transitions| u64::try_from(transitions).ok()));
                }
                Ok(LeaseLockResult::NotAcquired(_)) => worker.set(None),
                Err(error) => tracing::error!(%error, "the try failed"),
            }
            tokio::time::sleep(arguments.retry_period).await;
        }
    };
    tokio::select! {
        told = told_to_stop() => told?,
        () = contend => {}
    }
    worker.set(None);
    if arguments.release_on_cancel
        && let Err(error) = lock.step_down().await
    {
        tracing::error!(%error, "the Lease was not released");
    }
    worker.stopped().await
}
