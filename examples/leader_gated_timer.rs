//! A report once a period, made in one process however many of this program run.
//!
//! Start it twice against any API server that `kubectl` reaches, end the one that reports with Ctrl-C, and see the other
//! go on. The argument is the period in seconds; without it, an hour:
//!
//! ```sh
//! POD_NAME=one cargo run --example leader_gated_timer -- 5
//! ```

use std::{error::Error, time::Duration};

use tenure::{
    Elector, FirstTick, PeriodicTimer, Term,
    clock::{SystemClock, sleep},
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let period = std::env::args().nth(1).map_or(Ok(3600), |seconds| seconds.parse())?;
    let elector =
        Elector::builder("hourly-report").lease_duration(Duration::from_secs(5)).start(kube::Config::infer().await?)?;
    let leadership = elector.leadership();

    // A process that takes office reports at once. With `FirstTick::OnGrid` it would wait for the next point of the grid.
    let mut timer = PeriodicTimer::every(Duration::from_secs(period), &leadership).first_tick(FirstTick::Immediately);
    let reports = async {
        // Pends while this process is a standby; ends once it is asked to stop.
        while let Some(tick) = timer.tick().await {
            // Dropped the instant the term ends: a successor may be at work from then on. A report that merely followed
            // the tick would go on.
            if tick.run(report).await.is_err() {
                println!("the term ended in the middle of a report");
            }
        }
    };

    // On Ctrl-C: no new ticks, wait for the live one, hand over.
    let ((), released) = tokio::join!(reports, elector.release_on(tokio::signal::ctrl_c()));
    println!("stopped: {released:?}");
    Ok(())
}

async fn report(term: Term) {
    // Stands for what it takes to make one.
    sleep(&*SystemClock::shared(), Duration::from_millis(50)).await;
    // A service that stores the report refuses a token lower than one it has seen.
    println!("report made with token {}", term.token());
}
