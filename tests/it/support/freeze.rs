//! SIGSTOP for a replica that shares its process with others: none of its tasks is polled while it is frozen.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use futures::future::BoxFuture;
use tenure::tasks::Spawn;

/// The switch that freezes one replica, and the way its tasks are spawned.
#[derive(Debug, Clone, Default)]
pub struct Freezer(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    frozen: bool,
    killed: bool,
    waiting: Vec<Waker>,
}

struct Freezable {
    freezer: Freezer,
    future: Option<BoxFuture<'static, ()>>,
}

impl Freezer {
    pub fn freeze(&self) {
        self.0.lock().unwrap().frozen = true;
    }

    pub fn thaw(&self) {
        let waiting = {
            let mut state = self.0.lock().unwrap();
            state.frozen = false;
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// SIGKILL: every task is dropped where it stands.
    pub fn kill(&self) {
        self.0.lock().unwrap().killed = true;
        self.thaw();
    }

    pub fn is_killed(&self) -> bool {
        self.0.lock().unwrap().killed
    }

    /// Runs `future` as part of this replica: frozen with it. `None` once it is killed.
    pub async fn within<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.spawn(Box::pin(async move { drop(sender.send(future.await)) }));
        receiver.await.ok()
    }
}

impl Spawn for Freezer {
    fn spawn(&self, future: BoxFuture<'static, ()>) {
        drop(tokio::spawn(Freezable { freezer: self.clone(), future: Some(future) }));
    }
}

impl Future for Freezable {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        {
            let mut state = self.freezer.0.lock().unwrap();
            // Whatever state it is in, it has to hear of the next change.
            if !state.waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                state.waiting.push(context.waker().clone());
            }
            if state.frozen && !state.killed {
                return Poll::Pending;
            }
        }
        if self.freezer.is_killed() {
            self.future = None;
            return Poll::Ready(());
        }
        match &mut self.future {
            Some(future) => future.as_mut().poll(context),
            None => Poll::Ready(()),
        }
    }
}
