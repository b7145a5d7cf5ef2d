//! The Lease as it is read and as it is written. Pure.
//!
//! Every write is a full update that carries the uid and the resourceVersion of what it replaces (or a create): without
//! the uid, an update of a deleted Lease would create it anew. The holder is named `POD_BOOT_NONCE`, new for every term,
//! and every try carries a growing write number in an annotation, so that a read can tell which try it shows.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};

/// The annotation with the number of the write, on every write of ours.
pub const WRITE_ANNOTATION: &str = "tenure.dev/write";

/// The annotation of a release: `NONCE@leaseTransitions`. It speaks only with an empty holder and equal transitions: other
/// clients replace the spec and keep the metadata, so an old one may still stand there.
pub const RELEASED_ANNOTATION: &str = "tenure.dev/released";

/// The annotation with the place of the holder, which a process has to itself: [`super::Place`].
pub const PLACE_ANNOTATION: &str = "tenure.dev/place";

/// Who holds a Lease: one term of one process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Holder(String);

/// One process that takes part in an election.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pod: String,
    boot: String,
    place: Option<String>,
}

/// A Lease as it was read: what an election looks at, and the object to write the next version from.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Which object: a recreated Lease has another.
    pub uid: String,
    /// Which version of it; also what a token is made of.
    pub resource_version: u64,
    /// What a change of restarts a standby's clock.
    pub content: Content,
    /// The release that this record shows, if it is a valid one: the nonce of the term that wrote it.
    pub released: Option<String>,
    lease: Box<Lease>,
}

/// The part of a record that its holder writes: a label or a re-list changes nothing here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// `None` when the holder is empty or absent.
    pub holder: Option<Holder>,
    /// The write number, if the writer gave one.
    pub write: Option<u64>,
    /// How many seconds this record keeps others away.
    pub duration: Duration,
    /// `leaseTransitions`.
    pub transitions: i32,
    /// Where the holder is, if it is alone there.
    pub place: Option<String>,
    acquire_time: Option<Timestamp>,
    renew_time: Option<Timestamp>,
}

/// A record cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Lease {name}: {field} is {found}, expected {expected}")]
pub struct RecordError {
    name: String,
    field: &'static str,
    found: String,
    expected: &'static str,
}

impl Holder {
    /// The nonce of the term: what follows the last underscore.
    pub fn nonce(&self) -> &str {
        self.0.rsplit_once('_').map_or(self.0.as_str(), |(_, nonce)| nonce)
    }

    /// Whether the name is not of the shape that Tenure gives: another client holds the Lease. client-go's names have one
    /// underscore, and a pod's name has none.
    pub fn is_foreign(&self) -> bool {
        self.0.matches('_').count() < 2
    }

    /// As `holderIdentity` shows it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Identity {
    /// The process `boot` (a name that no other process has) in `pod`.
    pub fn new(pod: &str, boot: &str) -> Self {
        Self { pod: pod.to_owned(), boot: boot.to_owned(), place: None }
    }

    /// This process has `place` to itself: whoever held the Lease from there is dead.
    #[must_use]
    pub fn in_place(self, place: Option<String>) -> Self {
        Self { place, ..self }
    }

    /// Whether the holder of `content` was another process in the very place that this one has to itself. The name of the
    /// pod is compared too: a client of another make leaves the annotation of the holder before it where it was.
    pub fn succeeds(&self, content: &Content) -> bool {
        let Some(holder) = &content.holder else { return false };
        let pod = holder.0.rsplit_once('_').and_then(|(process, _)| process.rsplit_once('_')).map(|(pod, _)| pod);
        self.place.is_some() && self.place == content.place && pod == Some(&*self.pod) && !self.owns(holder)
    }

    /// The holder of the term `nonce` of this process.
    pub fn holder(&self, nonce: &str) -> Holder {
        Holder(format!("{}_{}_{nonce}", self.pod, self.boot))
    }

    /// Whether `holder` is a term of this very process.
    pub fn owns(&self, holder: &Holder) -> bool {
        holder.0.rsplit_once('_').and_then(|(process, _)| process.rsplit_once('_')) == Some((&*self.pod, &*self.boot))
    }

    fn sign(&self, annotations: &mut BTreeMap<String, String>) {
        match &self.place {
            Some(place) => annotations.insert(PLACE_ANNOTATION.to_owned(), place.clone()),
            None => annotations.remove(PLACE_ANNOTATION),
        };
    }

    /// The order in which replicas let each other go first: a hash of the identity (FNV-1a).
    pub fn rank(&self) -> u64 {
        self.pod
            .bytes()
            .chain(self.boot.bytes())
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }
}

impl Record {
    /// Reads a Lease.
    ///
    /// # Errors
    /// [`RecordError`] when it has no uid, or a resourceVersion that is not an integer.
    pub fn read(lease: Lease) -> Result<Self, RecordError> {
        let name = lease.metadata.name.clone().unwrap_or_default();
        let absent = || "absent".to_owned();
        let version = lease.metadata.resource_version.clone();
        let resource_version = version.as_deref().and_then(|text| text.parse().ok()).ok_or_else(|| RecordError {
            name: name.clone(),
            field: "metadata.resourceVersion",
            found: version.unwrap_or_else(absent),
            expected: "an integer",
        })?;
        let uid = lease.metadata.uid.clone().ok_or_else(|| RecordError {
            name,
            field: "metadata.uid",
            found: absent(),
            expected: "a uid",
        })?;
        let spec = lease.spec.clone().unwrap_or_default();
        let annotation = |key| lease.metadata.annotations.as_ref().and_then(|all| all.get(key));
        let content = Content {
            holder: spec.holder_identity.filter(|holder| !holder.is_empty()).map(Holder),
            write: annotation(WRITE_ANNOTATION).and_then(|text| text.parse().ok()),
            duration: Duration::from_secs(u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0)),
            transitions: spec.lease_transitions.unwrap_or(0),
            place: annotation(PLACE_ANNOTATION).cloned(),
            acquire_time: spec.acquire_time.map(|time| time.0),
            renew_time: spec.renew_time.map(|time| time.0),
        };
        let released = annotation(RELEASED_ANNOTATION)
            .and_then(|text| text.split_once('@'))
            .filter(|(_, at)| content.holder.is_none() && at.parse() == Ok(content.transitions))
            .map(|(nonce, _)| nonce.to_owned());
        Ok(Self { uid, resource_version, content, released, lease: Box::new(lease) })
    }

    /// The Lease that begins the term `holder` of `identity`.
    pub fn acquired(&self, identity: &Identity, holder: &Holder, write: u64, seconds: i32, wall: Timestamp) -> Lease {
        let spec = acquired_spec(holder, seconds, self.content.transitions.saturating_add(1), wall);
        self.written(spec, write, |annotations| {
            annotations.remove(RELEASED_ANNOTATION);
            identity.sign(annotations);
        })
    }

    /// The Lease that prolongs the term that this record shows.
    pub fn renewed(&self, write: u64, wall: Timestamp) -> Lease {
        let spec = LeaseSpec { renew_time: Some(MicroTime(wall)), ..self.lease.spec.clone().unwrap_or_default() };
        self.written(spec, write, |_| ())
    }

    /// The Lease that ends the term `nonce`, which this record shows.
    pub fn released_by(&self, nonce: &str, write: u64, wall: Timestamp) -> Lease {
        let spec = LeaseSpec {
            holder_identity: Some(String::new()),
            renew_time: Some(MicroTime(wall)),
            ..self.lease.spec.clone().unwrap_or_default()
        };
        let released = format!("{nonce}@{}", self.content.transitions);
        self.written(spec, write, |annotations| {
            annotations.insert(RELEASED_ANNOTATION.to_owned(), released);
        })
    }

    fn written(&self, spec: LeaseSpec, write: u64, annotate: impl FnOnce(&mut BTreeMap<String, String>)) -> Lease {
        let mut lease = (*self.lease).clone();
        // Left out, they are kept by the API server; sent, they are two thirds of the bytes.
        lease.metadata.managed_fields = None;
        let annotations = lease.metadata.annotations.get_or_insert_default();
        annotations.insert(WRITE_ANNOTATION.to_owned(), write.to_string());
        annotate(annotations);
        lease.spec = Some(spec);
        lease
    }
}

/// A Lease that nobody holds, where there is none: what a replica that must wait puts there to wait on.
pub fn vacant(name: &str, namespace: &str, write: u64, seconds: i32, wall: Timestamp) -> Lease {
    let spec = LeaseSpec {
        holder_identity: Some(String::new()),
        lease_duration_seconds: Some(seconds),
        lease_transitions: Some(0),
        renew_time: Some(MicroTime(wall)),
        ..LeaseSpec::default()
    };
    new_lease(name, namespace, write, spec)
}

/// The Lease that begins the first term, where there is none yet.
pub fn created(
    (namespace, name): (&str, &str),
    identity: &Identity,
    holder: &Holder,
    write: u64,
    seconds: i32,
    wall: Timestamp,
) -> Lease {
    let mut lease = new_lease(name, namespace, write, acquired_spec(holder, seconds, 1, wall));
    identity.sign(lease.metadata.annotations.get_or_insert_default());
    lease
}

fn new_lease(name: &str, namespace: &str, write: u64, spec: LeaseSpec) -> Lease {
    Lease {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            annotations: Some(BTreeMap::from([(WRITE_ANNOTATION.to_owned(), write.to_string())])),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
    }
}

fn acquired_spec(holder: &Holder, seconds: i32, transitions: i32, wall: Timestamp) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(holder.0.clone()),
        lease_duration_seconds: Some(seconds),
        lease_transitions: Some(transitions),
        acquire_time: Some(MicroTime(wall)),
        renew_time: Some(MicroTime(wall)),
        ..LeaseSpec::default()
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::{Lease, Record};

    /// What the API server would answer to `lease`, written as version `resource_version` of object `uid`.
    pub(crate) fn stored(mut lease: Lease, uid: &str, resource_version: u64) -> Record {
        lease.metadata.uid = Some(uid.to_owned());
        lease.metadata.resource_version = Some(resource_version.to_string());
        Record::read(lease).expect("a stored Lease can be read")
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::stored, *};

    fn wall() -> Timestamp {
        "2026-01-01T00:00:00.123456Z".parse().expect("a timestamp")
    }

    fn first() -> (Identity, Record) {
        let identity = Identity::new("pod-0", "b0");
        let record = stored(created(("ns", "main"), &identity, &identity.holder("n1"), 1, 15, wall()), "u", 5);
        (identity, record)
    }

    #[test]
    fn a_release_speaks_for_its_own_term_only() {
        let (identity, held) = first();
        assert_eq!(held.released, None);
        let released = stored(held.released_by("n1", 2, wall()), "u", 6);
        assert_eq!(released.content.holder, None);
        assert_eq!(released.released.as_deref(), Some("n1"));
        let acquired = stored(released.acquired(&identity, &identity.holder("n2"), 3, 15, wall()), "u", 7);
        assert_eq!(acquired.released, None);
        assert_eq!(acquired.content.transitions, 2);
    }

    #[test]
    fn a_release_that_another_client_left_in_the_metadata_is_not_believed() {
        let (_, held) = first();
        let mut lease = held.released_by("n1", 2, wall());
        let spec = lease.spec.get_or_insert_default();
        spec.lease_transitions = Some(9);
        assert_eq!(stored(lease.clone(), "u", 8).released, None, "other transitions");
        lease.spec.get_or_insert_default().holder_identity = Some("somebody".to_owned());
        lease.spec.get_or_insert_default().lease_transitions = Some(1);
        assert_eq!(stored(lease, "u", 9).released, None, "held");
    }

    #[test]
    fn every_write_carries_uid_and_version_of_what_it_replaces() {
        let (identity, held) = first();
        let holder = identity.holder("n2");
        let acquired = held.acquired(&identity, &holder, 2, 15, wall());
        for lease in [held.renewed(2, wall()), held.released_by("n1", 2, wall()), acquired] {
            assert_eq!(lease.metadata.uid.as_deref(), Some("u"));
            assert_eq!(lease.metadata.resource_version.as_deref(), Some("5"));
        }
    }

    #[test]
    fn a_process_knows_its_own_terms() {
        let (identity, held) = first();
        let holder = held.content.holder.expect("held");
        assert!(identity.owns(&holder));
        assert_eq!(holder.nonce(), "n1");
        assert!(!Identity::new("pod-0", "b1").owns(&holder));
        assert!(!Identity::new("od-0", "b0").owns(&holder));
        assert!(!Identity::new("pod", "0_b0").owns(&Holder("bob".to_owned())));
    }

    #[test]
    fn a_restarted_process_knows_its_predecessor_by_the_place_that_it_has_to_itself() {
        let in_place = |boot: &str, place: &str| Identity::new("pod-0", boot).in_place(Some(place.to_owned()));
        let held_by = |identity: &Identity| {
            let lease = created(("ns", "main"), identity, &identity.holder("n1"), 1, 15, wall());
            stored(lease, "u", 5)
        };
        let (dead, restarted) = (in_place("b0", "uid-1"), in_place("b1", "uid-1"));
        let held = held_by(&dead);
        assert!(restarted.succeeds(&held.content));
        assert!(!dead.succeeds(&held.content), "it is itself");
        assert!(!in_place("b1", "uid-2").succeeds(&held.content), "a pod of the same name that was made anew");
        assert!(!Identity::new("pod-0", "b1").succeeds(&held.content), "it has no lock");
        assert!(!restarted.succeeds(&held_by(&Identity::new("pod-0", "b0")).content), "the holder has no lock");
        // Another client keeps the annotations, and replaces the holder.
        let mut lease = held.renewed(2, wall());
        lease.spec.get_or_insert_default().holder_identity = Some("pod-1_b7_n9".to_owned());
        assert!(!restarted.succeeds(&stored(lease, "u", 6).content));
        // A term without a place takes the annotation of the one before away.
        let other = Identity::new("pod-0", "b2");
        let acquired = stored(held.acquired(&other, &other.holder("n3"), 3, 15, wall()), "u", 7);
        assert!(!restarted.succeeds(&acquired.content));
    }

    #[test]
    fn a_lease_without_a_version_is_refused_by_name() {
        let message = Record::read(Lease::default()).expect_err("no version").to_string();
        assert!(message.contains("metadata.resourceVersion is absent"), "{message}");
    }
}
