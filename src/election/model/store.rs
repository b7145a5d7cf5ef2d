//! The one Lease as an API server keeps it: compare-and-swap, versions, and who wrote which field.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{Timestamp, Unit};

use k8s_openapi::{
    api::coordination::v1::Lease,
    apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry, Time},
};
use serde_json::{Value, json};

use crate::election::{
    machine::WriteOutcome,
    record::{FIELD_MANAGER, Record},
};

/// The manifests that are remembered, to be put back.
const HISTORY_MAX: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Store {
    lease: Option<Lease>,
    pub(super) version: u64,
    objects: u64,
    /// What somebody else than an elector wrote last, and who and when.
    edited: BTreeMap<String, (String, Timestamp)>,
    history: Vec<Lease>,
}

pub(super) fn read(lease: Lease) -> Record {
    Record::read(lease).expect("a stored Lease can be read")
}

impl Store {
    pub(super) fn starting_at(version: u64) -> Self {
        Self { version, ..Self::default() }
    }

    pub(super) fn get(&self) -> Option<Record> {
        self.lease.clone().map(read)
    }

    pub(super) fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref()
    }

    pub(super) fn history(&self) -> &[Lease] {
        &self.history
    }

    pub(super) fn create(&mut self, lease: Lease, step: u64) -> WriteOutcome {
        if self.lease.is_some() {
            return WriteOutcome::Conflict;
        }
        WriteOutcome::Stored(self.commit(lease, (FIELD_MANAGER, Timestamp::UNIX_EPOCH), step))
    }

    pub(super) fn replace(&mut self, lease: Lease, step: u64) -> WriteOutcome {
        let same = self.lease.as_ref().is_some_and(|stored| {
            stored.metadata.uid == lease.metadata.uid
                && stored.metadata.resource_version == lease.metadata.resource_version
        });
        if !same {
            return WriteOutcome::Conflict;
        }
        WriteOutcome::Stored(self.commit(lease, (FIELD_MANAGER, Timestamp::UNIX_EPOCH), step))
    }

    pub(super) fn delete(&mut self) -> Option<u64> {
        self.lease.take()?;
        self.edited.clear();
        self.version += 1;
        Some(self.version)
    }

    /// Stores what `manager` writes over whatever there is. An API server notes its times to the second.
    pub(super) fn commit(&mut self, mut lease: Lease, (manager, at): (&str, Timestamp), step: u64) -> Record {
        self.version += step;
        let before = self.lease.take();
        if before.is_none() {
            self.objects += 1;
        }
        lease.metadata.uid = Some(format!("uid-{}", self.objects));
        lease.metadata.resource_version = Some(self.version.to_string());
        let (was, is) = (before.as_ref().map(fields), fields(&lease));
        for (field, value) in &is {
            let known = was.as_ref().and_then(|was| was.iter().find(|(name, _)| name == field));
            if known.is_none_or(|(_, before)| before != value) {
                self.edited.remove(field);
                if manager != FIELD_MANAGER {
                    self.edited.insert(field.clone(), (manager.to_owned(), at));
                }
            }
        }
        self.edited.retain(|field, _| is.iter().any(|(name, _)| name == field));
        lease.metadata.managed_fields = Some(self.managed());
        if self.history.len() >= HISTORY_MAX {
            self.history.remove(0);
        }
        self.history.push(lease.clone());
        self.lease = Some(lease.clone());
        read(lease)
    }

    fn managed(&self) -> Vec<ManagedFieldsEntry> {
        let managers: BTreeSet<&str> = self.edited.values().map(|(manager, _)| manager.as_str()).collect();
        let entry = |manager: &str| {
            let (mut spec, mut annotations) = (json!({}), json!({}));
            let mut time = None;
            for (field, (_, at)) in self.edited.iter().filter(|(_, (by, _))| by == manager) {
                let of = if field.contains('/') { &mut annotations } else { &mut spec };
                of[format!("f:{field}")] = json!({});
                time = time.max(at.round(Unit::Second).ok());
            }
            let fields = json!({ "f:spec": spec, "f:metadata": { "f:annotations": annotations } });
            ManagedFieldsEntry {
                manager: Some(manager.to_owned()),
                time: time.map(Time),
                fields_v1: Some(FieldsV1(fields)),
                ..ManagedFieldsEntry::default()
            }
        };
        managers.into_iter().map(entry).collect()
    }
}

/// The fields whose writer matters.
fn fields(lease: &Lease) -> Vec<(String, Value)> {
    let spec = lease.spec.clone().unwrap_or_default();
    let annotations = lease.metadata.annotations.clone().unwrap_or_default();
    let named = annotations.into_iter().map(|(name, value)| (name, json!(value)));
    named
        .chain([
            ("holderIdentity".to_owned(), json!(spec.holder_identity)),
            ("leaseTransitions".to_owned(), json!(spec.lease_transitions)),
        ])
        .collect()
}
