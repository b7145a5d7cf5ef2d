//! Gated work that leaves the future it was started from: a thread that blocks, a task of its own.
//!
//! [`Term::run`] ends its future by dropping it, which neither a blocking closure nor a spawned task notices. Such work
//! carries a [`GatedWork`]: it asks that whether it may go on, and the watchdog aborts the process if it outlives the term.

use std::{fmt, panic};

use super::guard::{Term, TermEnded, Work, WorkKind};

/// Work of a term that is going on, wherever it goes; dropping it says that the work has ended.
///
/// It is counted as a future under [`Term::run`] is: a planned hand-over waits for it, and if it is still there when a
/// successor may be in office, the process is aborted (status 134). So ask [`GatedWork::check`] between the steps of a
/// computation, and stop when it says no.
#[must_use = "the work counts as ended when this is dropped"]
pub struct GatedWork {
    term: Term,
    counted: Work,
}

impl GatedWork {
    /// Whether the work may go on: one clock read.
    ///
    /// # Errors
    /// [`TermEnded`] when the term is over.
    pub fn check(&self) -> Result<(), TermEnded> {
        self.term.check()
    }

    /// The term of this work.
    pub fn term(&self) -> &Term {
        &self.term
    }

    /// Runs the rest of this work, and drops it the moment the term ends: what a spawned task is made of.
    ///
    /// # Errors
    /// [`TermEnded`] if the term was over before, or ended while `rest` was running.
    pub async fn run<F: Future>(self, rest: F) -> Result<F::Output, TermEnded> {
        self.counted.run(rest).await
    }
}

impl fmt::Debug for GatedWork {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("GatedWork").field(&self.term).finish()
    }
}

impl Term {
    /// Begins work that leaves the future it is started from; move what this returns into it.
    ///
    /// ```no_run
    /// # async fn send_report(_token: u64) {}
    /// # fn example(term: &tenure::Term) -> Result<(), tenure::TermEnded> {
    /// let (work, token) = (term.begin()?, term.token());
    /// tokio::spawn(async move { work.run(send_report(token)).await }); // dropped the instant the term ends
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`TermEnded`] if the term is over or is being handed over.
    pub fn begin(&self) -> Result<GatedWork, TermEnded> {
        Ok(GatedWork { term: self.clone(), counted: self.office().enter(WorkKind::Gated)? })
    }

    /// Runs `work` on tokio's threads for blocking work, from this call on; await what is returned for its output. Dropping
    /// that leaves the work running, and counted.
    ///
    /// Nothing can end a closure from outside: let it ask [`GatedWork::check`] between its steps, at least each second.
    ///
    /// ```no_run
    /// # fn compress(_chunk: &[u8]) {}
    /// # async fn example(term: &tenure::Term, chunks: Vec<Vec<u8>>) -> Result<(), tenure::TermEnded> {
    /// term.spawn_blocking(move |work| chunks.iter().try_for_each(|chunk| {
    ///     work.check()?;
    ///     compress(chunk);
    ///     Ok(())
    /// }))
    /// .await?
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`TermEnded`] if the term is over or is being handed over, or had ended when a thread was free.
    ///
    /// # Panics
    /// If `work` has panicked, with the same payload; and outside of a tokio runtime.
    pub fn spawn_blocking<W, T>(&self, work: W) -> impl Future<Output = Result<T, TermEnded>> + Send + use<W, T>
    where
        W: FnOnce(&GatedWork) -> T + Send + 'static,
        T: Send + 'static,
    {
        // A hand-over waits for it from now on. It counts as gated once it runs: what waits for a thread must not make the
        // watchdog end the process.
        let running = self.hold().map(|held| {
            let term = self.clone();
            tokio::task::spawn_blocking(move || {
                let counted = held.office().go_on(WorkKind::Gated)?;
                Ok(work(&GatedWork { term, counted }))
            })
        });
        async move {
            running?.await.unwrap_or_else(|error| match error.try_into_panic() {
                Ok(payload) => panic::resume_unwind(payload),
                // The runtime is shutting down, and has not begun it.
                Err(_) => Err(TermEnded),
            })
        }
    }
}
