//! The probe's receiver: who says that it leads, at a resolution of one millisecond.
//!
//! While it leads, a replica sends one UDP datagram per millisecond, `TOKEN IDENTITY SEQUENCE`, each after asking its guard.
//! The receiver keeps the first and last of each token. All datagrams come through one socket and are stamped by the kernel as
//! they arrive, so a receiver that reads them late changes neither their order nor the gaps between them.
//!
//! A datagram with a token lower than one already seen is kept on its own ([`Late`]): it is what an overlap is made of.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, IoSliceMut},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use jiff::SignedDuration;
use nix::{
    sys::{
        socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt},
        time::{TimeSpec, TimeValLike},
    },
    time::ClockId,
};
use serde::Serialize;

use crate::clock::At;

/// How many late datagrams are kept one by one. A guard that always says yes sends a thousand in a second; a judge needs few.
const LATE_BOUND: usize = 10_000;
/// Room for the datagrams of some seconds, in bytes: a receiver that does not get to run must lose none.
const RECEIVE_BUFFER: usize = 4 << 20;
/// How long the receiver waits before it looks whether it should stop.
const STOP_CHECK: Duration = Duration::from_millis(50);
/// The kernel begins to stamp this soon after it was asked to, on a very busy machine.
const STAMPS_WITHIN: Duration = Duration::from_secs(5);
/// A datagram that has waited this long shows by its stamp whether it was stamped as it arrived or as it was read.
const STAMP_TEST: Duration = Duration::from_millis(2);

/// What was seen of one token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Term {
    /// The token.
    pub token: u64,
    /// Who sent it.
    pub identity: String,
    /// Its first datagram.
    pub first: At,
    /// Its last datagram before a higher token was seen.
    pub last: At,
    /// How many arrived.
    pub received: u64,
    /// The lowest and the highest sequence number seen. A replica goes on counting from one of its terms to the next.
    pub sequence: (u64, u64),
}

/// A datagram whose token was lower than one already seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Late {
    /// When it arrived.
    pub at: At,
    /// Its token.
    pub token: u64,
    /// Who sent it.
    pub identity: String,
}

/// Everything the probe has seen.
#[derive(Debug, Clone, Default)]
pub struct ProbeLog {
    terms: BTreeMap<u64, Term>,
    late: Vec<Late>,
    late_total: u64,
    malformed: u64,
    shared_tokens: BTreeSet<u64>,
}

/// The distance between two successive terms: last of the older one, minus first of the newer one. A gap is negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Overlap {
    /// The older token.
    pub from: u64,
    /// The newer token.
    pub to: u64,
    /// The signed distance.
    #[serde(skip)]
    pub distance: SignedDuration,
}

/// What keeps the datagrams of a receiver.
pub trait Datagrams: Default + Send + 'static {
    /// Takes one.
    fn take(&mut self, at: At, datagram: &[u8]);
}

/// A running receiver. Dropping it stops it.
#[derive(Debug)]
pub struct Probe<L = ProbeLog> {
    address: SocketAddr,
    log: Arc<Mutex<L>>,
    dropped: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Datagrams for ProbeLog {
    fn take(&mut self, at: At, datagram: &[u8]) {
        Self::take(self, at, datagram);
    }
}

impl ProbeLog {
    /// Takes one datagram.
    pub fn take(&mut self, at: At, datagram: &[u8]) {
        let Some((token, identity, sequence)) = parse(datagram) else {
            self.malformed += 1;
            return;
        };
        let highest = self.terms.last_key_value().map(|(token, _)| *token);
        let late = highest.is_some_and(|highest| token < highest);
        if late {
            self.late_total += 1;
            if self.late.len() < LATE_BOUND {
                self.late.push(Late { at, token, identity: identity.to_owned() });
            }
        }
        let term = self.terms.entry(token).or_insert_with(|| Term {
            token,
            identity: identity.to_owned(),
            first: at,
            last: at,
            received: 0,
            sequence: (sequence, sequence),
        });
        if term.identity != identity {
            self.shared_tokens.insert(token);
        }
        if !late {
            term.last = at;
        }
        term.received += 1;
        term.sequence = (term.sequence.0.min(sequence), term.sequence.1.max(sequence));
    }

    /// The terms by token, ascending.
    pub fn terms(&self) -> impl Iterator<Item = &Term> {
        self.terms.values()
    }

    /// The term with the highest token.
    pub fn newest(&self) -> Option<&Term> {
        self.terms.last_key_value().map(|(_, term)| term)
    }

    /// Datagrams of older terms that came after a newer one's, as far as they are kept.
    pub fn late(&self) -> &[Late] {
        &self.late
    }

    /// How many such datagrams there were.
    pub fn late_total(&self) -> u64 {
        self.late_total
    }

    /// Datagrams that did not read `TOKEN IDENTITY SEQUENCE`.
    pub fn malformed(&self) -> u64 {
        self.malformed
    }

    /// The tokens that more than one replica has sent.
    pub fn shared_tokens(&self) -> impl Iterator<Item = u64> {
        self.shared_tokens.iter().copied()
    }

    /// How many datagrams between the first and the last of a term never arrived.
    pub fn lost(&self) -> u64 {
        let sent = |term: &Term| term.sequence.1 - term.sequence.0 + 1;
        self.terms.values().map(|term| sent(term).saturating_sub(term.received)).sum()
    }

    /// The distance of each pair of successive terms. A late datagram counts as its term's last, unless it is `excused`.
    pub fn overlaps(&self, excused: impl Fn(&Late) -> bool) -> Vec<Overlap> {
        let terms: Vec<&Term> = self.terms.values().collect();
        terms
            .windows(2)
            .map(|pair| {
                let late = self
                    .late
                    .iter()
                    .filter(|late| late.token == pair[0].token && !excused(late))
                    .map(|late| late.at)
                    .max();
                let last = late.map_or(pair[0].last, |late| late.max(pair[0].last));
                Overlap { from: pair[0].token, to: pair[1].token, distance: last.signed_since(pair[1].first) }
            })
            .collect()
    }
}

impl Probe {
    /// Starts a receiver on a free port of 127.0.0.1.
    pub fn start() -> io::Result<Self> {
        Self::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    }

    /// Starts a receiver at this address.
    pub fn start_at(address: SocketAddr) -> io::Result<Self> {
        Self::receiving_at(address)
    }

    /// Everything seen so far.
    pub fn log(&self) -> ProbeLog {
        lock(&self.log).clone()
    }
}

impl<L: Datagrams> Probe<L> {
    /// Starts a receiver at this address, with a log of another kind.
    pub fn receiving_at(address: SocketAddr) -> io::Result<Self> {
        let socket = stamping_socket(address)?;
        socket.set_read_timeout(Some(STOP_CHECK))?;
        setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
        setsockopt(&socket, sockopt::RxqOvfl, &1)?;
        let address = socket.local_addr()?;
        let (log, dropped, stop) =
            (Arc::<Mutex<L>>::default(), Arc::<AtomicU32>::default(), Arc::<AtomicBool>::default());
        let thread = thread::Builder::new().name("probe".to_owned()).spawn({
            let (log, dropped, stop) = (log.clone(), dropped.clone(), stop.clone());
            move || receive(&socket, &log, &dropped, &stop)
        })?;
        Ok(Self { address, log, dropped, stop, thread: Some(thread) })
    }

    /// Where replicas send their datagrams.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many datagrams the kernel threw away because the receiver did not keep up, as of the last one received.
    pub fn dropped(&self) -> u32 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// What `look` finds in the log, without a copy of it.
    pub fn with_log<T>(&self, look: impl FnOnce(&L) -> T) -> T {
        look(&lock(&self.log))
    }
}

impl<L> Drop for Probe<L> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the probe's receiver panicked");
        }
    }
}

fn receive(socket: &UdpSocket, log: &Mutex<impl Datagrams>, dropped: &AtomicU32, stop: &AtomicBool) {
    let (mut datagram, mut control) = ([0_u8; 512], nix::cmsg_space!(TimeSpec, u32));
    while !stop.load(Ordering::Relaxed) {
        // A timeout is how the loop gets to look at `stop`; no other error of such a socket concerns the next datagram.
        if let Ok(received) = receive_one(socket, &mut datagram, &mut control) {
            lock(log).take(received.at, &datagram[..received.length]);
            dropped.fetch_max(received.dropped, Ordering::Relaxed);
        }
    }
}

/// A datagram that was received.
struct Received {
    length: usize,
    /// When it arrived.
    at: At,
    /// How many the socket had thrown away by then.
    dropped: u32,
}

/// A socket whose datagrams the kernel stamps as they arrive.
///
/// Linux switches its stamps on a moment after the first socket has asked for them, and whatever arrives before that is
/// stamped as it is read (`net_enable_timestamp`, `__sock_recv_timestamp`). The switch is one for the whole machine, so a
/// second socket can find out by a datagram of its own.
fn stamping_socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let asking = |address: SocketAddr| {
        let socket = UdpSocket::bind(address)?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        io::Result::Ok(socket)
    };
    let socket = asking(address)?;
    let trial = asking(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    trial.connect(trial.local_addr()?)?;
    trial.set_read_timeout(Some(STAMPS_WITHIN))?;
    let (mut datagram, mut control) = ([0_u8; 1], nix::cmsg_space!(TimeSpec));
    let deadline = At::now().plus(STAMPS_WITHIN);
    while At::now() < deadline {
        trial.send(&[0])?;
        let sent = At::now();
        thread::sleep(STAMP_TEST);
        if receive_one(&trial, &mut datagram, &mut control)?.at < sent.plus(STAMP_TEST / 2) {
            return Ok(socket);
        }
    }
    Err(io::Error::other(format!("the kernel does not stamp datagrams within {STAMPS_WITHIN:?} of being asked to")))
}

/// The next datagram, and when the kernel received it. It says that by the time of day, so what is left out is how long ago
/// that was.
fn receive_one(socket: &UdpSocket, datagram: &mut [u8], control: &mut [u8]) -> nix::Result<Received> {
    let mut parts = [IoSliceMut::new(datagram)];
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(control), MsgFlags::empty())?;
    let (now, read) = (ClockId::CLOCK_REALTIME.now()?, At::now());
    let (mut waited, mut dropped) = (0, 0);
    for message in received.cmsgs()? {
        match message {
            ControlMessageOwned::ScmTimestampns(stamp) => waited = (now - stamp).num_nanoseconds(),
            ControlMessageOwned::RxqOvfl(count) => dropped = count,
            _ => {}
        }
    }
    let at = At::from_nanos(read.nanos().saturating_sub(u64::try_from(waited).unwrap_or(0)));
    Ok(Received { length: received.bytes, at, dropped })
}

/// The token, the identity and the sequence number of a datagram.
pub(crate) fn parse(datagram: &[u8]) -> Option<(u64, &str, u64)> {
    let mut words = std::str::from_utf8(datagram).ok()?.split_ascii_whitespace();
    let parsed = (words.next()?.parse().ok()?, words.next()?, words.next()?.parse().ok()?);
    words.next().is_none().then_some(parsed)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn log(datagrams: &[(u64, &str)]) -> ProbeLog {
        let mut log = ProbeLog::default();
        for (millis, datagram) in datagrams {
            log.take(At::from_millis(*millis), datagram.as_bytes());
        }
        log
    }

    #[test]
    fn a_gap_between_terms_is_a_negative_overlap() {
        let log = log(&[(10, "5 a 0"), (11, "5 a 1"), (31, "8 b 0"), (40, "8 b 1")]);
        let overlaps = log.overlaps(|_| false);
        assert_eq!(overlaps, [Overlap { from: 5, to: 8, distance: SignedDuration::from_millis(-20) }]);
        assert_eq!(log.newest().unwrap().identity, "b");
    }

    #[test]
    fn a_late_datagram_makes_an_overlap_unless_it_is_excused() {
        let log = log(&[(10, "5 a 0"), (31, "8 b 0"), (35, "5 a 1"), (36, "8 b 1")]);
        assert_eq!(log.overlaps(|_| false)[0].distance, SignedDuration::from_millis(4));
        assert_eq!(log.overlaps(|late| late.at == At::from_millis(35))[0].distance, SignedDuration::from_millis(-21));
        assert_eq!(log.late_total(), 1);
    }

    #[test]
    fn datagrams_that_never_arrived_are_counted() {
        let log = log(&[(10, "5 a 7"), (14, "5 a 11"), (15, "garbage"), (16, "5 a x"), (17, "5 a 5 more")]);
        assert_eq!((log.lost(), log.malformed()), (3, 3));
    }

    #[test]
    fn a_token_that_two_replicas_send_is_kept() {
        let log = log(&[(10, "5 a 0"), (11, "5 b 1"), (31, "8 b 0")]);
        assert_eq!(log.shared_tokens().collect::<Vec<_>>(), [5]);
    }

    #[test]
    fn datagrams_that_do_not_fit_into_the_socket_are_counted() {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        setsockopt(&socket, sockopt::RcvBuf, &4096).unwrap();
        setsockopt(&socket, sockopt::RxqOvfl, &1).unwrap();
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let send = || assert_eq!(sender.send_to(b"7 replica-0 0", socket.local_addr().unwrap()).unwrap(), 13);
        (0..1_000).for_each(|_| send());
        let received = || {
            let (mut datagram, mut control) = ([0_u8; 64], nix::cmsg_space!(TimeSpec, u32));
            receive_one(&socket, &mut datagram, &mut control).unwrap()
        };
        while received().dropped == 0 {
            send();
        }
    }

    #[test]
    fn a_datagram_that_is_read_late_is_stamped_when_it_arrived() {
        const LATE: Duration = Duration::from_millis(200);
        let socket = stamping_socket(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        sender.send_to(b"7 replica-0 0", socket.local_addr().unwrap()).unwrap();
        let sent = At::now();
        thread::sleep(LATE);
        let mut datagram = [0_u8; 64];
        let Received { length, at, .. } = receive_one(&socket, &mut datagram, &mut nix::cmsg_space!(TimeSpec)).unwrap();
        assert_eq!(&datagram[..length], b"7 replica-0 0");
        assert!(at < sent.plus(LATE / 2), "{:?} after it was sent", at.since(sent));
    }

    #[test]
    fn a_running_probe_stamps_what_arrives() {
        let probe = Probe::start().unwrap();
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let before = At::now();
        sender.send_to(b"7 replica-0 0", probe.address()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while probe.with_log(|log| log.newest().is_none()) {
            assert!(Instant::now() < deadline, "no datagram arrived within 10 s");
            thread::yield_now();
        }
        let term = probe.log().newest().cloned().unwrap();
        assert_eq!((term.token, term.identity.as_str()), (7, "replica-0"));
        assert!(term.first > before && term.first <= At::now());
    }
}
