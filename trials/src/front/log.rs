//! Who asked for a Lease by a front, when, and what it was told.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use http::{Method, StatusCode, Uri};
use serde::Serialize;

use crate::clock::At;

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Verb {
    /// GET.
    Get,
    /// A watch.
    Watch,
    /// POST, PUT, PATCH or DELETE.
    Write,
}

/// One request for a Lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Asked {
    /// When it came.
    pub at: At,
    /// From where.
    pub client: IpAddr,
    /// For what.
    pub verb: Verb,
    /// To which server.
    pub server: u64,
    /// When it was answered, and how.
    pub answered: Option<(At, u16)>,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Log {
    asked: Vec<Asked>,
    /// How many requests of each method there were, whatever they were for.
    methods: BTreeMap<String, u64>,
    watches: u64,
    /// How many requests the API server did not answer, and what the last one came to.
    unanswered: (u64, Option<String>),
}

impl Verb {
    /// What a request for a Lease is; nothing if it is for something else.
    pub(super) fn of(method: &Method, uri: &Uri) -> Option<Self> {
        let path = uri.path();
        if !path.starts_with("/apis/coordination.k8s.io/") || !path.contains("/leases") {
            return None;
        }
        Some(match *method {
            Method::GET if is_watch(uri) => Self::Watch,
            Method::GET => Self::Get,
            _ => Self::Write,
        })
    }
}

/// Whether a request opens a watch.
pub(super) fn is_watch(uri: &Uri) -> bool {
    uri.query().into_iter().flat_map(|query| query.split('&')).any(|pair| matches!(pair, "watch=true" | "watch=1"))
}

impl Log {
    /// Takes a request, and returns the place of one for a Lease.
    pub(super) fn take(&mut self, client: IpAddr, server: u64, method: &Method, uri: &Uri) -> Option<usize> {
        *self.methods.entry(method.to_string()).or_default() += 1;
        let verb = Verb::of(method, uri)?;
        self.asked.push(Asked { at: At::now(), client, verb, server, answered: None });
        Some(self.asked.len() - 1)
    }

    /// It was answered.
    pub(super) fn answered(&mut self, place: Option<usize>, status: StatusCode) {
        if let Some(asked) = place.and_then(|place| self.asked.get_mut(place)) {
            asked.answered = Some((At::now(), status.as_u16()));
        }
    }

    /// The API server did not answer.
    pub(super) fn unanswered(&mut self, error: &(dyn std::error::Error + 'static)) {
        let causes = std::iter::successors(Some(error), |error| error.source());
        let text = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
        self.unanswered = (self.unanswered.0 + 1, Some(text));
    }

    /// How many requests the API server did not answer, and what the last one came to.
    pub fn failures(&self) -> (u64, Option<&str>) {
        (self.unanswered.0, self.unanswered.1.as_deref())
    }

    /// The number of a watch that begins.
    pub(super) fn watch_begins(&mut self) -> u64 {
        self.watches += 1;
        self.watches - 1
    }

    /// The number that the next watch will have.
    pub(super) const fn next_watch(&self) -> u64 {
        self.watches
    }

    /// All requests for Leases.
    pub fn asked(&self) -> &[Asked] {
        &self.asked
    }

    /// How many requests of each method there were.
    pub const fn methods(&self) -> &BTreeMap<String, u64> {
        &self.methods
    }

    /// When this client was first told after `since` that a write of its was taken.
    pub fn renewal_of(&self, client: IpAddr, since: At) -> Option<At> {
        let written = self.asked.iter().rev().filter(|asked| asked.client == client && asked.verb == Verb::Write);
        let answered = written.filter_map(|asked| asked.answered).filter(|(at, status)| *at >= since && *status < 300);
        answered.map(|(at, _)| at).min()
    }

    /// The server to which this client's last write went.
    pub fn server_of_last_write(&self, client: IpAddr) -> Option<u64> {
        let mut newest = self.asked.iter().rev();
        newest.find(|asked| asked.client == client && asked.verb == Verb::Write).map(|asked| asked.server)
    }

    /// The most requests for Leases, watches left out, that one client made within `window` from `since` on.
    pub fn most_by_one(&self, since: At, window: Duration) -> usize {
        let counted = || self.asked.iter().filter(|asked| asked.verb != Verb::Watch && asked.at >= since);
        let clients: BTreeSet<IpAddr> = counted().map(|asked| asked.client).collect();
        let of =
            |client: IpAddr| counted().filter(|asked| asked.client == client).map(|asked| asked.at).collect::<Vec<_>>();
        clients.into_iter().map(|client| most_within(&of(client), window)).max().unwrap_or_default()
    }
}

/// The most of these instants, which are in order, that lie within a window.
pub fn most_within(instants: &[At], window: Duration) -> usize {
    let mut first = 0;
    let within = instants.iter().enumerate().map(|(last, at)| {
        while at.since(instants[first]) >= window {
            first += 1;
        }
        last + 1 - first
    });
    within.max().unwrap_or_default()
}
