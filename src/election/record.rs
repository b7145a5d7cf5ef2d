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

use super::timing::lease_end_after;
use crate::clock::BootTime;

/// The annotation with the number of the write, on every write of ours.
pub const WRITE_ANNOTATION: &str = "tenure.dev/write";

/// The annotation of a release: `NONCE@leaseTransitions`. It speaks only with an empty holder and equal transitions: other
/// clients replace the spec and keep the metadata, so an old one may still stand there.
pub const RELEASED_ANNOTATION: &str = "tenure.dev/released";

/// The annotation with the place of the holder, which a process has to itself: [`super::Place`].
pub const PLACE_ANNOTATION: &str = "tenure.dev/place";

/// The annotation with the time at which a holder that has a place sent its write: nanoseconds of `CLOCK_BOOTTIME` of the
/// kernel that the place names. A successor in that place reads the same clock.
pub const SENT_ANNOTATION: &str = "tenure.dev/sent";

/// The field manager of every write of ours. A value that another manager wrote last is no evidence of what a holder did.
pub const FIELD_MANAGER: &str = "tenure";

/// The largest duration that a Lease is believed to have: the largest that an elector can be given. Without a bound, a
/// mistyped number would keep every replica away for as long as its process lives.
const DURATION_MAX: Duration = super::timing::LEASE_DURATION_MAX;

/// The digits of a boot's name and of a nonce, in lowercase hexadecimal.
const BOOT_DIGITS: usize = 8;
const NONCE_DIGITS: usize = 16;

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
    /// When the holder sent this, on the clock of its place.
    pub sent: Option<BootTime>,
    /// Who else than an elector of Tenure wrote some of this last, and when, as far as `metadata.managedFields` tells. A
    /// manifest that is put back after another term shows what was seen before, but somebody else has written it.
    editors: Vec<(String, Option<Timestamp>)>,
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

    /// Whether the name is not of the very shape that Tenure gives: another client holds the Lease. client-go's names are
    /// `HOST_UUID`, and a host's name may have underscores of its own.
    pub fn is_foreign(&self) -> bool {
        self.parts().is_none_or(|(pod, boot, nonce)| {
            pod.is_empty() || !is_hex(boot, BOOT_DIGITS) || !is_hex(nonce, NONCE_DIGITS)
        })
    }

    /// Pod, boot and nonce; the pod's part may hold underscores.
    fn parts(&self) -> Option<(&str, &str, &str)> {
        let (process, nonce) = self.0.rsplit_once('_')?;
        let (pod, boot) = process.rsplit_once('_')?;
        Some((pod, boot, nonce))
    }

    /// As `holderIdentity` shows it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Content {
    /// Whether nobody but the client of another make that wrote this can have written `later`: such a client keeps the
    /// transitions and what an elector left in the metadata, and remains the one who wrote the holder.
    pub fn is_left_by_same_hand(&self, later: &Self) -> bool {
        let names = |content: &Self| content.editors.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        (self.transitions, self.write, &self.place, self.sent)
            == (later.transitions, later.write, &later.place, later.sent)
            && names(self) == names(later)
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

    /// Whether `record` is the last sign of another process in the very place that this one has to itself, at a time at
    /// which nobody else can have acquired since: that process is dead, and its term with it.
    ///
    /// A record alone proves nothing: an old manifest that somebody puts back shows a dead holder in the right place, too.
    /// But until the end of the lease that was written at `sent`, no other replica can have taken over from a holder that
    /// did not release; and whoever leaves office alive gives its place another name ([`super::Place`]).
    /// The name of the pod is compared too: a client of another make leaves the annotations of the holder before it.
    pub fn succeeds(&self, record: &Record, own_lease: Duration, now: BootTime) -> bool {
        let content = &record.content;
        let Some((holder, sent)) = content.holder.as_ref().zip(content.sent) else { return false };
        let pod = holder.parts().map(|(pod, ..)| pod);
        let lease = own_lease.min(content.duration);
        self.place.is_some()
            && self.place == content.place
            && pod == Some(&*self.pod)
            && !self.owns(holder)
            && content.editors.is_empty()
            && now < sent + lease_end_after(lease)
    }

    /// The holder of the term `nonce` of this process.
    pub fn holder(&self, nonce: &str) -> Holder {
        Holder(format!("{}_{}_{nonce}", self.pod, self.boot))
    }

    /// Whether `holder` is a term of this very process.
    pub fn owns(&self, holder: &Holder) -> bool {
        holder.parts().is_some_and(|(pod, boot, _)| (pod, boot) == (&*self.pod, &*self.boot))
    }

    /// Says where this process is and when it writes, if it is alone there; else takes away what another one said.
    fn sign(&self, annotations: &mut BTreeMap<String, String>, sent: BootTime) {
        if let Some(place) = &self.place {
            annotations.insert(PLACE_ANNOTATION.to_owned(), place.clone());
            annotations.insert(SENT_ANNOTATION.to_owned(), sent.as_nanos().to_string());
        } else {
            annotations.remove(PLACE_ANNOTATION);
            annotations.remove(SENT_ANNOTATION);
        }
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
            duration: Duration::from_secs(u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0))
                .min(DURATION_MAX),
            transitions: spec.lease_transitions.unwrap_or(0),
            place: annotation(PLACE_ANNOTATION).cloned(),
            sent: annotation(SENT_ANNOTATION).and_then(|text| text.parse().ok()).map(BootTime::from_nanos),
            acquire_time: spec.acquire_time.map(|time| time.0),
            renew_time: spec.renew_time.map(|time| time.0),
            editors: editors(&lease),
        };
        let released = annotation(RELEASED_ANNOTATION)
            .and_then(|text| text.split_once('@'))
            .filter(|(_, at)| content.holder.is_none() && at.parse() == Ok(content.transitions))
            .filter(|_| content.editors.is_empty())
            .map(|(nonce, _)| nonce.to_owned());
        Ok(Self { uid, resource_version, content, released, lease: Box::new(lease) })
    }

    /// The Lease that begins the term `holder`.
    pub fn acquired(&self, pen: &Pen<'_>, holder: &Holder, seconds: i32) -> Lease {
        let spec = acquired_spec(holder, seconds, self.content.transitions.saturating_add(1), pen.wall);
        self.written(spec, pen, |annotations| {
            annotations.remove(RELEASED_ANNOTATION);
        })
    }

    /// The Lease that prolongs the term that this record shows.
    pub fn renewed(&self, pen: &Pen<'_>) -> Lease {
        let spec = LeaseSpec { renew_time: Some(MicroTime(pen.wall)), ..self.lease.spec.clone().unwrap_or_default() };
        self.written(spec, pen, |_| ())
    }

    /// The Lease that ends the term `nonce`, which this record shows.
    pub fn released_by(&self, pen: &Pen<'_>, nonce: &str) -> Lease {
        let spec = LeaseSpec {
            holder_identity: Some(String::new()),
            renew_time: Some(MicroTime(pen.wall)),
            ..self.lease.spec.clone().unwrap_or_default()
        };
        let released = format!("{nonce}@{}", self.content.transitions);
        self.written(spec, pen, |annotations| {
            annotations.insert(RELEASED_ANNOTATION.to_owned(), released);
        })
    }

    fn written(&self, spec: LeaseSpec, pen: &Pen<'_>, annotate: impl FnOnce(&mut BTreeMap<String, String>)) -> Lease {
        let mut lease = (*self.lease).clone();
        // Left out, they are kept by the API server; sent, they are two thirds of the bytes.
        lease.metadata.managed_fields = None;
        let annotations = lease.metadata.annotations.get_or_insert_default();
        pen.sign(annotations);
        annotate(annotations);
        lease.spec = Some(spec);
        lease
    }
}

/// Who writes a Lease, as which write of this process, and when.
#[derive(Debug, Clone, Copy)]
pub struct Pen<'a> {
    /// The process that writes.
    pub identity: &'a Identity,
    /// The number of the write.
    pub write: u64,
    /// Now, on the clock of its place.
    pub sent: BootTime,
    /// Now, as the time of day, for people.
    pub wall: Timestamp,
}

impl Pen<'_> {
    fn sign(&self, annotations: &mut BTreeMap<String, String>) {
        annotations.insert(WRITE_ANNOTATION.to_owned(), self.write.to_string());
        self.identity.sign(annotations, self.sent);
    }
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Who else than an elector was the last to write what a holder says of itself: its name, the number of its term, or an
/// annotation of Tenure's. Nobody, where the server keeps no record of it. A label that somebody sets is none of these.
fn editors(lease: &Lease) -> Vec<(String, Option<Timestamp>)> {
    let entries = lease.metadata.managed_fields.iter().flatten();
    let others = entries.filter(|entry| entry.manager.as_deref() != Some(FIELD_MANAGER));
    let speaking = others.filter(|entry| {
        let fields = entry.fields_v1.as_ref().map(|fields| &fields.0);
        let has = |path: &[&str], field: &dyn Fn(&str) -> bool| {
            let found = path.iter().try_fold(fields?, |fields, name| fields.get(name));
            found.and_then(|found| found.as_object()).map(|found| found.keys().any(|name| field(name)))
        };
        has(&["f:spec"], &|name| matches!(name, "f:holderIdentity" | "f:leaseTransitions")) == Some(true)
            || has(&["f:metadata", "f:annotations"], &|name| name.starts_with("f:tenure.dev/")) == Some(true)
    });
    speaking.map(|entry| (entry.manager.clone().unwrap_or_default(), entry.time.as_ref().map(|time| time.0))).collect()
}

/// A Lease that nobody holds, where there is none: what a replica that must wait puts there to wait on.
pub fn vacant(named: (&str, &str), pen: &Pen<'_>, seconds: i32) -> Lease {
    let spec = LeaseSpec {
        holder_identity: Some(String::new()),
        lease_duration_seconds: Some(seconds),
        lease_transitions: Some(0),
        renew_time: Some(MicroTime(pen.wall)),
        ..LeaseSpec::default()
    };
    new_lease(named, pen, spec)
}

/// The Lease that begins the first term, where there is none yet.
pub fn created(named: (&str, &str), pen: &Pen<'_>, holder: &Holder, seconds: i32) -> Lease {
    new_lease(named, pen, acquired_spec(holder, seconds, 1, pen.wall))
}

fn new_lease((namespace, name): (&str, &str), pen: &Pen<'_>, spec: LeaseSpec) -> Lease {
    let mut annotations = BTreeMap::new();
    pen.sign(&mut annotations);
    Lease {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            annotations: Some(annotations),
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
    use super::{Holder, Identity, Lease, Pen, Record, created};
    use crate::clock::BootTime;
    use jiff::Timestamp;

    /// The term `number` of `identity`.
    pub(crate) fn term(identity: &Identity, number: u64) -> Holder {
        identity.holder(&nonce(number))
    }

    /// A nonce as an elector draws it.
    pub(crate) fn nonce(number: u64) -> String {
        format!("{number:016x}")
    }

    /// The process `boot` in `pod`.
    pub(crate) fn process(pod: &str, boot: u64) -> Identity {
        Identity::new(pod, &format!("{boot:08x}"))
    }

    pub(crate) fn pen(identity: &Identity, write: u64) -> Pen<'_> {
        Pen { identity, write, sent: BootTime::default(), wall: Timestamp::UNIX_EPOCH }
    }

    /// What the API server would answer to `lease`, written as version `resource_version` of object `uid`.
    pub(crate) fn stored(mut lease: Lease, uid: &str, resource_version: u64) -> Record {
        lease.metadata.uid = Some(uid.to_owned());
        lease.metadata.resource_version = Some(resource_version.to_string());
        Record::read(lease).expect("a stored Lease can be read")
    }

    /// The Lease that term `number` of `identity` creates, as the API server has it.
    pub(crate) fn held(identity: &Identity, number: u64, seconds: i32, resource_version: u64) -> Record {
        let lease = created(("ns", "main"), &pen(identity, 1), &term(identity, number), seconds);
        stored(lease, "u", resource_version)
    }
}

#[cfg(test)]
mod tests;
