//! Spawned tasks that have a name, a span and an owner.
//!
//! A [`Tasks`] owns what it spawns: [`Tasks::close_and_wait`] returns when all of it has ended. A panic inside a task is
//! caught, logged with the task's name and handed to whoever awaits the [`Task`]: it is never silence.
//!
//! How a future gets onto a runtime is a [`Spawn`], so that a simulation can freeze every task of one replica, as SIGSTOP
//! freezes a process.

use std::{fmt, panic::AssertUnwindSafe, pin::Pin, sync::Arc, task};

use futures::{FutureExt, future::BoxFuture};
use tokio::sync::oneshot;
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};
use tracing::Instrument;

/// A way to spawn that can be handed around.
pub type SharedSpawn = Arc<dyn Spawn>;

/// Puts a future onto a runtime.
pub trait Spawn: fmt::Debug + Send + Sync + 'static {
    /// Starts polling `future`; it goes on when the call has returned.
    fn spawn(&self, future: BoxFuture<'static, ()>);
}

/// The tokio runtime that the caller is in.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokioSpawn;

/// The owner of a set of spawned tasks. Clones own the same set.
#[derive(Debug, Clone)]
pub struct Tasks {
    tracker: TaskTracker,
    spawn: SharedSpawn,
}

/// A spawned task; await it for its output. Dropping it leaves the task running, still owned by its [`Tasks`].
#[derive(Debug)]
#[must_use = "await it, or say with `detach` that its owner alone waits for it"]
pub struct Task<T>(oneshot::Receiver<Result<T, Panicked>>);

/// A task ended by a panic, or its runtime was shut down under it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("task {name} panicked: {message}")]
pub struct Panicked {
    /// The task's name.
    pub name: &'static str,
    /// What the panic said.
    pub message: String,
}

impl Spawn for TokioSpawn {
    #[allow(clippy::disallowed_methods, reason = "this is the one place that spawns")]
    fn spawn(&self, future: BoxFuture<'static, ()>) {
        drop(tokio::spawn(future));
    }
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new(Arc::new(TokioSpawn))
    }
}

impl Tasks {
    /// An owner that spawns by `spawn`.
    #[must_use]
    pub fn new(spawn: SharedSpawn) -> Self {
        Self { tracker: TaskTracker::new(), spawn }
    }

    /// A second owner that spawns in the same way, for a part whose end is awaited on its own.
    #[must_use]
    pub fn child(&self) -> Self {
        Self::new(self.spawn.clone())
    }

    /// Starts `future` as the task `name`.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> Task<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let span = tracing::info_span!("task", name);
        let body = async move {
            let output = AssertUnwindSafe(future).catch_unwind().await.map_err(|payload| {
                let panicked = Panicked { name, message: panic_message(&*payload) };
                tracing::error!(task = name, error = %panicked.message, "Task panicked");
                panicked
            });
            // Nobody has to listen: the owner waits for the end, not for the output.
            drop(sender.send(output));
        };
        self.spawn.spawn(self.tracker.track_future(body.instrument(span)).boxed());
        Task(receiver)
    }

    /// Counts as a task until it is dropped: for what runs elsewhere.
    pub(crate) fn token(&self) -> TaskTrackerToken {
        self.tracker.token()
    }

    /// How many tasks have not ended.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tracker.len()
    }

    /// Whether every task has ended.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tracker.is_empty()
    }

    /// Waits until every task has ended. Tasks may still be spawned while it waits; they are waited for too.
    pub async fn close_and_wait(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

impl<T> Task<T> {
    /// Leaves the task to its owner.
    pub fn detach(self) {}
}

impl<T> Future for Task<T> {
    type Output = Result<T, Panicked>;

    fn poll(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> task::Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|received| {
            received.unwrap_or_else(|_| Err(Panicked { name: "unknown", message: "the runtime is gone".to_owned() }))
        })
    }
}

fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a value that is not text".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_becomes_an_error_that_names_the_task() {
        let tasks = Tasks::default();
        let ended = tasks.spawn("fragile", async { assert!(std::env::args().count() == 0, "out of luck") }).await;
        assert_eq!(ended, Err(Panicked { name: "fragile", message: "out of luck".to_owned() }));
    }

    #[tokio::test]
    async fn the_owner_waits_for_every_task() {
        let tasks = Tasks::default();
        let (release, held) = oneshot::channel::<()>();
        let task = tasks.spawn("held", async move { held.await.is_ok() });
        assert!(tasks.close_and_wait().now_or_never().is_none());
        release.send(()).expect("the task listens");
        tasks.close_and_wait().await;
        assert_eq!(task.await, Ok(true));
    }
}
