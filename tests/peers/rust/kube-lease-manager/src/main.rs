//! A contender on the crate kube-lease-manager, used in the way that its documentation calls fully automated: it leads while
//! the channel says so.
//!
//! The crate tells nobody its transitions, and a request of ours to learn them would come between its word and the work. So
//! the token is how often this process has begun to lead.

use std::time::Duration;

use anyhow::Context as _;
use contender::{Arguments, Worker, begin, told_to_stop};
use kube_lease_manager::LeaseManagerBuilder;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = begin();
    let identity = arguments.identity();
    let worker = Worker::start(&arguments, identity.clone()).await?;
    let client = kube::Client::try_default().await.context("the API server")?;
    let manager = LeaseManagerBuilder::new(client, &arguments.lease)
        .with_namespace(&arguments.namespace)
        .with_identity(identity)
        .with_duration(arguments.lease_duration.as_secs())
        .with_grace(grace(&arguments).as_secs())
        .build()
        .await?;
    let (mut leading, managing) = manager.watch().await;
    let mut terms = 0;
    let follow = async {
        loop {
            if *leading.borrow_and_update() {
                terms += 1;
                worker.set(Some(terms));
            } else {
                worker.set(None);
            }
            if leading.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        told = told_to_stop() => told?,
        () = follow => tracing::error!("the manager has ended by itself"),
    }
    worker.set(None);
    if arguments.release_on_cancel {
        // A closed channel makes it release.
        drop(leading);
        managing.await.context("the manager ended badly")??;
    }
    worker.stopped().await
}

/// It renews this long before the Lease expires.
fn grace(arguments: &Arguments) -> Duration {
    arguments.lease_duration.saturating_sub(arguments.renew_deadline)
}
