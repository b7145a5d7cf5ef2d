//! An active-passive service: every process answers, one of them works.
//!
//! The active process does the work. A passive one keeps itself ready to take over. Both answer on a TCP port, so that a
//! client can be sent to the active one. The argument is the address to answer on:
//!
//! ```sh
//! POD_NAME=one cargo run --example active_passive -- 127.0.0.1:7001
//! ```

use std::{error::Error, sync::Arc, time::Duration};

use tenure::{
    Elector, Leadership, Standing, Term,
    clock::{SystemClock, sleep},
    election::{ElectorObserver, Leader, StopSignal},
};
use tokio::{io::AsyncWriteExt, net::TcpListener};

/// Says who is active, on the active process and on the passive ones. If it panicked, the election would go on.
#[derive(Debug)]
struct News;

impl ElectorObserver for News {
    fn leader_changed(&self, leader: Option<&Leader>) {
        match leader {
            Some(leader) if leader.is_self => println!("the active one is this process"),
            Some(leader) => println!("the active one is {}", leader.identity),
            None => println!("nobody is active"),
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let listener = TcpListener::bind(address).await?;
    println!("answering on {}", listener.local_addr()?);

    let elector = Elector::builder("active-passive")
        .lease_duration(Duration::from_secs(5))
        .labels([("app.kubernetes.io/name", "active-passive")])
        .observer(Arc::new(News))
        .start(kube::Config::infer().await?)?;
    let leadership = elector.leadership();
    // Each of them ends once this process is asked to stop, so that all of them can be waited for.
    let (released, (), (), ()) = tokio::join!(
        elector.release_on(tokio::signal::ctrl_c()),
        leadership.while_leading_gracefully(work),
        stand_by(&leadership),
        answer(&listener, &leadership),
    );
    println!("stopped: {released:?}");
    Ok(())
}

/// What only the active process does. A hand-over waits until it has ended, so it looks whether it is asked to.
async fn work(term: Term, stop: StopSignal) {
    println!("active with token {}", term.token());
    let clock = SystemClock::shared();
    while !stop.is_asked() {
        // One piece of work; short, so that a hand-over does not wait for long.
        sleep(&*clock, Duration::from_millis(100)).await;
    }
}

/// What only a passive process does: here, to say so; in a real service, to keep a cache warm.
async fn stand_by(leadership: &Leadership) {
    let mut standing = leadership.watch();
    loop {
        let now = standing.borrow_and_update().clone();
        match now {
            Standing::Standby => println!("passive, ready to take over"),
            Standing::Stopped => return,
            _ => {}
        }
        tokio::select! {
            biased;
            () = leadership.stopping() => return,
            changed = standing.changed() => if changed.is_err() { return },
        }
    }
}

/// What both do: tell a client which of them it has reached.
async fn answer(listener: &TcpListener, leadership: &Leadership) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = leadership.stopping() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((mut client, _)) = accepted else { continue };
        // `term` asks the guard: a process that was frozen does not call itself active by what it knew before.
        let role = leadership.term().map_or("passive\n".to_owned(), |term| format!("active {}\n", term.token()));
        // A client that has gone away does not need the answer.
        drop(client.write_all(role.as_bytes()).await);
    }
}
