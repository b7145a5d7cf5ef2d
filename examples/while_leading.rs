//! Work that has no end, such as a connection that observes something, kept up by one process at a time.
//!
//! ```sh
//! POD_NAME=one cargo run --example while_leading
//! ```

use std::{error::Error, time::Duration};

use tenure::{
    Elector, Term,
    clock::{SystemClock, sleep},
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let elector =
        Elector::builder("observer").lease_duration(Duration::from_secs(5)).start(kube::Config::infer().await?)?;
    let leadership = elector.leadership();

    // Called anew in every term. Its future is dropped the instant the term ends, and when this process is asked to stop: so
    // a hand-over does not wait for work that has no end.
    let observing = leadership.while_leading(observe);
    let ((), released) = tokio::join!(observing, elector.release_on(tokio::signal::ctrl_c()));
    println!("stopped: {released:?}");
    Ok(())
}

/// Observes for as long as it is let.
async fn observe(term: Term) {
    println!("observing with token {}", term.token());
    count_events().await;
}

/// Stands for a connection that delivers events for as long as it is held.
async fn count_events() {
    let clock = SystemClock::shared();
    for events in 1_u64.. {
        sleep(&*clock, Duration::from_secs(1)).await;
        println!("{events} events");
    }
}
