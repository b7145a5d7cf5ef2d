//! Addresses on loopback that are the same from one start to the next, where they are free.
//!
//! They lie below the range from which the kernel takes ports for outgoing connections, so that an address that is given
//! up for a moment (a replica restarts) is still there afterwards.

use std::{io, net::SocketAddr};

use tokio::net::{TcpListener, UdpSocket};

/// The sandbox.
pub(super) const API: u16 = 7443;

/// The target of the example jobs; `examples/manifests` name it.
pub(super) const TARGET: u16 = 7070;

/// The admin port of replica 0; the others follow.
pub(super) const ADMIN: u16 = 7080;

/// How far apart the candidates are, so that those of one use do not run into those of another.
const STEP: u16 = 100;

/// How many candidates are tried before it is given up.
const CANDIDATES: u16 = 20;

/// An address that this process has for itself, for a child to listen on.
#[derive(Debug)]
pub(super) struct Reserved {
    pub(super) address: SocketAddr,
    /// The ports of UDP are others than those of TCP, so that this is only a sign to another `tenure dev`.
    _sign: UdpSocket,
}

/// Listens on `port` of loopback, or on another one if it is taken.
pub(super) async fn listen(port: u16) -> io::Result<TcpListener> {
    for candidate in candidates(port) {
        match TcpListener::bind(candidate).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            listening => return listening,
        }
    }
    TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await
}

/// Reserves `port` of loopback, or another one if it is taken.
pub(super) async fn reserve(port: u16) -> io::Result<Reserved> {
    for address in candidates(port) {
        let (sign, free) = (UdpSocket::bind(address).await, TcpListener::bind(address).await);
        match (sign, free) {
            (Ok(sign), Ok(_)) => return Ok(Reserved { address, _sign: sign }),
            (Err(error), _) | (_, Err(error)) if error.kind() != io::ErrorKind::AddrInUse => return Err(error),
            _ => {}
        }
    }
    let taken = format!("ports {port}, {}, … of 127.0.0.1 are all in use", port + STEP);
    Err(io::Error::new(io::ErrorKind::AddrInUse, taken))
}

fn candidates(port: u16) -> impl Iterator<Item = SocketAddr> {
    (0..CANDIDATES).map(move |step| SocketAddr::from(([127, 0, 0, 1], port + step * STEP)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_reserved_is_free_to_listen_on_and_not_reserved_twice() {
        let first = reserve(ADMIN).await.expect("a port is free");
        let second = reserve(ADMIN).await.expect("a port is free");
        assert_ne!(first.address, second.address);
        let _listening = TcpListener::bind(first.address).await.expect("nobody listens there");
        let third = reserve(ADMIN).await.expect("a port is free");
        assert!(third.address != first.address && third.address != second.address);
    }
}
