//! For measurements: while this replica leads, one datagram per millisecond says so.
//!
//! Each datagram is `TOKEN IDENTITY NUMBER`, sent right after the guard has said yes. Whoever receives them from several
//! replicas sees by one clock when each term really ended, to the millisecond, without trusting the replicas' own.

use std::{io, net::SocketAddr, time::Duration};

use tokio::net::UdpSocket;

use crate::{
    clock::SharedClock,
    election::{Leadership, Term},
    tasks::Tasks,
};

/// The resolution of the measurement.
const PERIOD: Duration = Duration::from_millis(1);

/// Starts to send to `address`, as a task of `tasks` that ends when the elector does.
///
/// # Errors
/// When there is no socket to be had.
pub async fn start(
    address: SocketAddr,
    identity: String,
    leadership: Leadership,
    clock: SharedClock,
    tasks: &Tasks,
) -> io::Result<()> {
    let local: SocketAddr = if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(local).await?;
    socket.connect(address).await?;
    // Until the runtime has heard from the kernel once, a send without waiting is refused: the first would be lost.
    socket.writable().await?;
    let probing = async move {
        let mut number = 0_u64;
        let (socket, clock, identity, number) = (&socket, &clock, &identity, &mut number);
        while let Some(term) = leadership.leading().await {
            send(&term, socket, clock, identity, number).await;
        }
    };
    tasks.spawn("probe", probing).detach();
    Ok(())
}

/// Until the guard says no. Not under [`Term::run`], which would drop the future at the end of the term: the probe is to
/// show what the guard alone achieves.
async fn send(term: &Term, socket: &UdpSocket, clock: &SharedClock, identity: &str, number: &mut u64) {
    let token = term.token();
    let mut next = clock.boot();
    loop {
        let datagram = format!("{token} {identity} {number}");
        if term.check().is_err() {
            return;
        }
        // Nobody may be listening yet, or any more: what is measured is what arrives.
        drop(socket.try_send(datagram.as_bytes()));
        *number += 1;
        next = (next + PERIOD).max(clock.boot());
        clock.sleep_until(next).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::SystemClock,
        election::{Standing, testing},
    };

    #[tokio::test]
    async fn datagrams_come_while_leading_and_none_after_the_guard_says_no() {
        let clock = SystemClock::shared();
        let receiver = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
        let address = receiver.local_addr().expect("it has one");
        let (leadership, standing, stopping) = testing::leadership();
        let tasks = Tasks::default();
        start(address, "replica-0".to_owned(), leadership, clock.clone(), &tasks).await.expect("a socket");
        let term = testing::term(&clock, 7, Duration::from_mins(1));
        standing.send_replace(Standing::Leading(term.clone()));
        let mut buffer = [0; 64];
        for number in 0..3 {
            let length = receiver.recv(&mut buffer).await.expect("a datagram");
            assert_eq!(String::from_utf8_lossy(&buffer[..length]), format!("7 replica-0 {number}"));
        }
        testing::revoke(&term);
        standing.send_replace(Standing::Standby);
        stopping.cancel();
        tasks.close_and_wait().await;
        let mut last = 2;
        while let Ok(length) = receiver.try_recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            last += 1;
            assert_eq!(text, format!("7 replica-0 {last}"));
        }
    }
}
