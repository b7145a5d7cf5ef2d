//! Taking over what another Lease owns, once nobody works under that Lease any more: what is known of each such Lease, and
//! what follows. Looking is [`look`]; everything else is pure.
//!
//! A Lease is free when it shows a valid release: the term that wrote it had ended its work. Everything else says nothing
//! about its last holder, which may be cut off from the API server and still at work: a Lease that is held, one that is gone
//! and one that somebody has emptied are free once they have been seen unchanged for as long as a holder could have gone on
//! without a renewal. That is what any contender for that Lease would wait.
//!
//! A look is no promise for later. So the Lease is read again as the last step before each object is claimed, and the claim
//! itself tests the owner and the term that were seen: a leader that has come back since has claimed the object first, or
//! finds it claimed.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};

use super::store::ANSWER_DEADLINE;
use crate::{
    clock::{self, BootTime, SharedClock},
    election::Record,
    explain::explain_answer,
};

/// A Lease, written as `NAMESPACE/LEASE`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeaseName {
    namespace: String,
    name: String,
}

/// This is no name of a Lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not NAMESPACE/LEASE: write the namespace and the name of a Lease, such as tenure-system/tenure")]
pub struct LeaseNameError(String);

/// What a look at a Lease has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Who holds it.
    pub holder: Option<String>,
    /// Whether its last holder has released it.
    pub released: bool,
    /// Which version of it; none if there is no such Lease.
    pub version: Option<u64>,
    /// How long its record keeps others away.
    pub duration: Duration,
}

/// The Leases whose jobs are to be taken over.
#[derive(Debug)]
pub struct Predecessors {
    all: BTreeMap<String, Predecessor>,
    patience: Duration,
}

/// Leave to take over from a Lease, as long as it is as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leave {
    lease: LeaseName,
    version: Option<u64>,
}

#[derive(Debug)]
struct Predecessor {
    lease: LeaseName,
    free: bool,
    /// The version that showed no release, and since when.
    unchanged: Option<(Option<u64>, BootTime)>,
    version: Option<u64>,
    /// The longest duration that its records have shown.
    longest: Duration,
    next_look: BootTime,
    looking: bool,
    said: Option<String>,
}

/// How often a Lease is looked at while jobs wait for it.
const LOOK_EVERY: Duration = Duration::from_secs(5);

impl FromStr for LeaseName {
    type Err = LeaseNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = |part: &str| {
            let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
            let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
            part.bytes().all(known) && edge(part.as_bytes().first()) && edge(part.as_bytes().last())
        };
        match text.split_once('/') {
            Some((namespace, name)) if fits(namespace) && fits(name) && !namespace.contains('.') => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(LeaseNameError(text.to_owned())),
        }
    }
}

impl fmt::Display for LeaseName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.namespace, self.name)
    }
}

impl LeaseName {
    /// The Lease `name` in `namespace`.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

impl Predecessors {
    /// Those of `leases`. `patience` is how long a Lease that shows nobody and no release is waited for, or longer if its
    /// records have shown a longer duration.
    pub fn new(leases: Vec<LeaseName>, patience: Duration) -> Self {
        let all = leases.into_iter().map(|lease| (lease.to_string(), Predecessor::new(lease))).collect();
        Self { all, patience }
    }

    /// Whether the jobs of `controller` are to be taken over.
    pub fn contains(&self, controller: &str) -> bool {
        self.all.contains_key(controller)
    }

    /// Leave to take over the jobs of `controller` now.
    pub fn leave(&self, controller: &str) -> Option<Leave> {
        let known = self.all.get(controller).filter(|known| known.free)?;
        Some(Leave { lease: known.lease.clone(), version: known.version })
    }

    /// Forgets what has been seen, but for the longest duration: it may be old when a term begins.
    pub fn forget(&mut self) {
        for known in self.all.values_mut() {
            *known = Predecessor { looking: known.looking, ..known.forgotten() };
        }
    }

    /// Which Leases are to be looked at now, of those that own a job by `owns`. Nobody looks after the others, so that what
    /// was seen of them is forgotten.
    pub fn due(&mut self, now: BootTime, owns: impl Fn(&str) -> bool) -> Vec<LeaseName> {
        let mut due = Vec::new();
        for (name, known) in &mut self.all {
            if known.looking || now < known.next_look {
                continue;
            }
            if owns(name) {
                known.looking = true;
                due.push(known.lease.clone());
            } else {
                *known = known.forgotten();
                known.next_look = now + LOOK_EVERY;
            }
        }
        due
    }

    /// Takes note of a look at `lease`, sent at `sent` and answered by `now`.
    pub fn note(&mut self, lease: &LeaseName, seen: &Result<Seen, String>, sent: BootTime, now: BootTime) {
        let Some(known) = self.all.get_mut(&lease.to_string()) else { return };
        known.looking = false;
        known.next_look = sent + LOOK_EVERY;
        let text = match seen {
            Ok(seen) => known.judge(seen, sent, now, self.patience),
            Err(error) => {
                known.free = false;
                format!("it cannot be read: {error}")
            }
        };
        if known.said.as_ref() != Some(&text) {
            if known.free {
                tracing::info!(lease = %lease, "Jobs of another Lease are adopted: {text}");
            } else {
                tracing::warn!(lease = %lease, "Jobs of another Lease are not adopted yet: {text}");
            }
            known.said = Some(text);
        }
    }
}

impl Predecessor {
    fn new(lease: LeaseName) -> Self {
        Self {
            lease,
            free: false,
            unchanged: None,
            version: None,
            longest: Duration::ZERO,
            next_look: BootTime::default(),
            looking: false,
            said: None,
        }
    }

    /// What stays when the rest is too old: a holder that was seen to keep others away for so long may do so again.
    fn forgotten(&self) -> Self {
        Self { longest: self.longest, ..Self::new(self.lease.clone()) }
    }

    /// Decides whether the Lease is free, and says why. What is seen first counts from when it was heard, and what is seen
    /// again was so when it was asked.
    fn judge(&mut self, seen: &Seen, sent: BootTime, now: BootTime, patience: Duration) -> String {
        self.version = seen.version;
        self.longest = self.longest.max(seen.duration);
        self.free = false;
        if seen.released {
            self.free = true;
            return "its last holder has released it".to_owned();
        }
        let since = match self.unchanged {
            Some((version, since)) if version == seen.version => since,
            _ => self.unchanged.insert((seen.version, now)).1,
        };
        let until = since + self.longest.max(patience);
        let what = match (&seen.holder, seen.version) {
            (Some(holder), _) => format!("{holder} holds it"),
            (None, Some(_)) => "somebody has emptied it".to_owned(),
            (None, None) => "there is no such Lease".to_owned(),
        };
        self.free = until <= sent;
        if self.free {
            return format!("{what}, and whoever held it has not renewed it, and must have ended by now");
        }
        self.next_look = self.next_look.min(until.max(now));
        let wait = (until - since).as_secs();
        format!("{what}, and whoever held it is taken to be at work until it has not been renewed for {wait} s")
    }
}

impl Leave {
    /// The Lease.
    pub fn lease(&self) -> &LeaseName {
        &self.lease
    }

    /// Whether it still holds by what has been seen since.
    pub fn holds(&self, seen: &Seen) -> bool {
        seen.released || seen.version == self.version
    }
}

/// Looks at a Lease, past every cache.
pub async fn look(client: Client, clock: &SharedClock, lease: &LeaseName) -> Result<Seen, String> {
    let leases = Api::<Lease>::namespaced(client, &lease.namespace);
    let answer = clock::timeout(&**clock, ANSWER_DEADLINE, leases.get_opt(&lease.name)).await;
    match answer.map_err(|elapsed| elapsed.to_string())?.map_err(|error| explain_answer(&error))? {
        None => Ok(Seen { holder: None, released: false, version: None, duration: Duration::ZERO }),
        Some(found) => {
            let record = Record::read(found).map_err(|error| error.to_string())?;
            Ok(Seen {
                holder: record.content.holder.as_ref().map(|holder| holder.as_str().to_owned()),
                released: record.released.is_some(),
                version: Some(record.resource_version),
                duration: record.content.duration,
            })
        }
    }
}

#[cfg(test)]
mod tests;
