//! Work that computes without a pause, kept up by one process at a time.
//!
//! It would starve the elector on the same runtime, and no future that is dropped ends it. So the elector has a thread of
//! its own, and the work asks between its steps whether it may go on. SIGUSR1 lets another process lead, for maintenance of
//! this one; SIGUSR2 has it take part again.
//!
//! ```sh
//! POD_NAME=one cargo run --example blocking_work
//! ```

use std::{error::Error, time::Duration};

use tenure::{
    Elector, Term, TermEnded,
    clock::{SystemClock, sleep},
    election::GatedWork,
};
use tokio::signal::unix::{SignalKind, signal};

/// Work in hand may go on for this long when this process stands aside.
const DRAIN: Duration = Duration::from_secs(5);

/// What a busy machine may cost before this process counts as unhealthy.
const LATE_MAX: Duration = Duration::from_secs(5);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let elector = Elector::builder("blocking-work")
        .lease_duration(Duration::from_secs(5))
        .own_thread() // renewals do not wait for what blocks this one
        .start(kube::Config::infer().await?)?;
    let leadership = elector.leadership();

    let maintenance = async {
        let (mut aside, mut again) = (signal(SignalKind::user_defined1())?, signal(SignalKind::user_defined2())?);
        loop {
            tokio::select! {
                biased;
                _ = aside.recv() => elector.stand_aside(DRAIN),
                _ = again.recv() => elector.contend(),
                () = leadership.stopping() => return Ok::<_, Box<dyn Error>>(()),
            }
        }
    };
    let health = elector.health();
    let probe = async {
        // Stands for an HTTP server that answers /livez.
        while !leadership.is_stopping() {
            if let Err(unhealthy) = health.check(LATE_MAX) {
                println!("unhealthy: {unhealthy}");
            }
            sleep(&*SystemClock::shared(), Duration::from_millis(500)).await;
        }
    };
    let (maintained, (), (), released) = tokio::join!(
        maintenance,
        probe,
        leadership.while_leading_gracefully(|term, _stop| compute(term)),
        elector.release_on(tokio::signal::ctrl_c()),
    );
    maintained?;
    println!("stopped: {released:?}");
    Ok(())
}

/// Computes until it may not go on, on a thread for work that blocks.
async fn compute(term: Term) {
    println!("computing with token {}", term.token());
    let computed = term.spawn_blocking(steps).await;
    println!("computed {computed:?} steps");
}

fn steps(work: &GatedWork) -> Result<u64, TermEnded> {
    let mut sum = 0_u64;
    while !work.term().is_handing_over() {
        // Without this question the process would be aborted when a successor may be at work.
        work.check()?;
        sum = (0..1_000_000).fold(sum, u64::wrapping_add) / 2;
    }
    Ok(sum)
}
