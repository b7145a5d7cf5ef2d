//! What users want on the Lease besides the election: labels, annotations, owners.

use std::collections::BTreeMap;

use k8s_openapi::{api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::OwnerReference};

/// Keys with this prefix are the election's own.
const OWN_PREFIX: &str = "tenure.dev/";

/// The longest name of a label or annotation, and the longest value of a label.
const NAME_MAX: usize = 63;

/// The longest prefix of a key.
const PREFIX_MAX: usize = 253;

/// Labels, annotations and owners of the Lease, put on it when it is created and when a term is begun. What others have put
/// there stays.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct LeaseMetadata {
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) owners: Vec<OwnerReference>,
}

/// The API server would refuse what is to be put on the Lease, and with it each try to lead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MetadataError {
    /// A key is not of the form that Kubernetes asks for.
    #[error("{kind} {key:?}: expected NAME or PREFIX/NAME, a name of at most 63 letters, digits, '-', '_' and '.'")]
    Key {
        /// `label` or `annotation`.
        kind: &'static str,
        /// The key.
        key: String,
    },
    /// A key belongs to the election.
    #[error("{kind} {key:?}: keys with the prefix tenure.dev/ are the election's own")]
    Own {
        /// `label` or `annotation`.
        kind: &'static str,
        /// The key.
        key: String,
    },
    /// The value of a label is not one.
    #[error("label {key:?}: {value:?} is no value: expected at most 63 letters, digits, '-', '_' and '.'")]
    Value {
        /// The key.
        key: String,
        /// The value.
        value: String,
    },
    /// An owner is not named in full.
    #[error("owner {kind} {name:?}: apiVersion, kind, name and uid must all be given")]
    Owner {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
    },
}

impl LeaseMetadata {
    /// # Errors
    /// [`MetadataError`] if the API server would refuse it.
    pub(super) fn validate(&self) -> Result<(), MetadataError> {
        let kinds = [("label", &self.labels), ("annotation", &self.annotations)];
        for (kind, key) in kinds.into_iter().flat_map(|(kind, map)| map.keys().map(move |key| (kind, key))) {
            if key.starts_with(OWN_PREFIX) {
                return Err(MetadataError::Own { kind, key: key.clone() });
            }
            if !is_key(key) {
                return Err(MetadataError::Key { kind, key: key.clone() });
            }
        }
        if let Some((key, value)) = self.labels.iter().find(|(_, value)| !value.is_empty() && !is_name(value)) {
            return Err(MetadataError::Value { key: key.clone(), value: value.clone() });
        }
        let is_incomplete = |owner: &&OwnerReference| {
            [&owner.api_version, &owner.kind, &owner.name, &owner.uid].iter().any(|part| part.is_empty())
        };
        match self.owners.iter().find(is_incomplete) {
            Some(owner) => Err(MetadataError::Owner { kind: owner.kind.clone(), name: owner.name.clone() }),
            None => Ok(()),
        }
    }

    pub(super) fn put_on(&self, lease: &mut Lease) {
        let metadata = &mut lease.metadata;
        let add = |map: &mut Option<BTreeMap<String, String>>, more: &BTreeMap<String, String>| {
            if !more.is_empty() {
                map.get_or_insert_default().extend(more.clone());
            }
        };
        add(&mut metadata.labels, &self.labels);
        add(&mut metadata.annotations, &self.annotations);
        for owner in &self.owners {
            let owners = metadata.owner_references.get_or_insert_default();
            owners.retain(|known| known.uid != owner.uid);
            owners.push(owner.clone());
        }
    }
}

/// Whether `text` is letters, digits, '-', '_' and '.', with a letter or digit at both ends.
fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    text.len() <= NAME_MAX
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

fn is_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => prefix.len() <= PREFIX_MAX && super::builder::is_subdomain(prefix) && is_name(name),
        None => is_name(key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn metadata_that_the_api_server_would_refuse_is_refused_at_the_start() {
        let labels = |key, value| LeaseMetadata { labels: map(&[(key, value)]), ..LeaseMetadata::default() };
        assert_eq!(labels("app.kubernetes.io/name", "a-b").validate(), Ok(()));
        assert_eq!(labels("empty", "").validate(), Ok(()));
        for (key, value) in [("", "a"), ("a b", "a"), ("A/b", "a"), ("a/", "a"), ("a", "ä"), ("tenure.dev/write", "1")]
        {
            assert!(labels(key, value).validate().is_err(), "{key}={value}");
        }
        let owners = vec![OwnerReference { name: "report".into(), ..OwnerReference::default() }];
        let error = LeaseMetadata { owners, ..LeaseMetadata::default() }.validate().expect_err("it has no uid");
        assert_eq!(error.to_string(), r#"owner  "report": apiVersion, kind, name and uid must all be given"#);
    }

    #[test]
    fn what_others_have_put_on_the_lease_stays() {
        let mut lease = Lease::default();
        lease.metadata.labels = Some(map(&[("theirs", "1"), ("ours", "old")]));
        let metadata = LeaseMetadata { labels: map(&[("ours", "new")]), ..LeaseMetadata::default() };
        metadata.put_on(&mut lease);
        assert_eq!(lease.metadata.labels, Some(map(&[("theirs", "1"), ("ours", "new")])));
        assert_eq!(lease.metadata.owner_references, None);
    }
}
