//! A thread of the operating system with a runtime for one elector, so that work that blocks the program's own runtime does
//! not cost the term.

use std::{sync::mpsc, thread};

use futures::future::BoxFuture;
use tokio::runtime;

use super::{
    builder::{ConfigError, ElectorBuilder},
    elector::Elector,
};
use crate::tasks::{Spawn, Tasks};

/// The name of the thread; the operating system shows 15 bytes of it.
const NAME: &str = "tenure-elector";

#[derive(Debug)]
struct OnRuntime(runtime::Handle);

impl Spawn for OnRuntime {
    fn spawn(&self, future: BoxFuture<'static, ()>) {
        drop(self.0.spawn(future));
    }
}

/// Starts what `builder` says on a thread of its own, which ends when the elector's tasks have. `owner` waits for it.
pub(super) fn start(builder: ElectorBuilder, owner: &Tasks, config: kube::Config) -> Result<Elector, ConfigError> {
    let (started, outcome) = mpsc::sync_channel(1);
    let owned = owner.token();
    let body = move || {
        let _owned = owned;
        let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return drop(started.send(Err(ConfigError::Thread(error)))),
        };
        let tasks = Tasks::new(std::sync::Arc::new(OnRuntime(runtime.handle().clone())));
        // The client is made here, too: its connections belong to the runtime they are made on.
        runtime.block_on(async move {
            let elector = builder.tasks(tasks.clone()).start_here(config);
            // An elector that nobody takes is dropped, and its tasks end.
            drop(started.send(elector));
            tasks.close_and_wait().await;
        });
    };
    thread::Builder::new().name(NAME.to_owned()).spawn(body).map_err(ConfigError::Thread)?;
    outcome.recv().unwrap_or_else(|_| Err(ConfigError::Thread(std::io::Error::other("it has panicked"))))
}
