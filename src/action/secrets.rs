//! Where an action's credentials come from: a Secret in the namespace of the job, read for each attempt.
//!
//! Nothing is cached: a rotated credential is used from the next attempt on, and a replica holds no secret that it does not
//! need. Only the job's own namespace is asked, so whoever may write a job cannot read another namespace by it. The deadline
//! is the caller's.

use std::{collections::BTreeMap, fmt};

use futures::{FutureExt, future::BoxFuture};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};

use crate::api::SecretKeyRef;

/// Somewhere that Secrets can be read.
pub trait SecretSource: fmt::Debug + Send + Sync + 'static {
    /// The data of the Secret `name` in `namespace`.
    fn read<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<SecretData, SecretError>>;
}

/// The data of one Secret. Its `Debug` shows the keys only.
#[derive(Clone, Default)]
pub struct SecretData(BTreeMap<String, Vec<u8>>);

/// A value cannot be read from a Secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// There is no such Secret.
    #[error("there is no Secret {name} in the job's namespace {namespace}")]
    NotFound {
        /// The job's namespace.
        namespace: String,
        /// The Secret's name.
        name: String,
    },
    /// The Secret has no such key.
    #[error("the Secret {name} in the job's namespace {namespace} has no key {key}")]
    NoKey {
        /// The job's namespace.
        namespace: String,
        /// The Secret's name.
        name: String,
        /// The key that is missing.
        key: String,
    },
    /// The value is not text, or has characters that its place does not allow.
    #[error("the value of key {key} of the Secret {name} in the job's namespace {namespace} cannot be used: {reason}")]
    Unusable {
        /// The job's namespace.
        namespace: String,
        /// The Secret's name.
        name: String,
        /// The key.
        key: String,
        /// What is wrong with it; never the value itself.
        reason: &'static str,
    },
    /// Tenure is not allowed to read it.
    #[error(
        "the Secret {name} in the job's namespace {namespace} may not be read by Tenure: grant its service account get on secrets there"
    )]
    Forbidden {
        /// The job's namespace.
        namespace: String,
        /// The Secret's name.
        name: String,
    },
    /// The API server did not give it.
    #[error("the Secret {name} in the job's namespace {namespace} could not be read: {source}")]
    Unreadable {
        /// The job's namespace.
        namespace: String,
        /// The Secret's name.
        name: String,
        /// What went wrong.
        source: Box<kube::Error>,
    },
}

/// Secrets as the API server has them.
#[derive(Clone)]
pub struct KubeSecrets(Client);

impl KubeSecrets {
    /// Reads by `client`, which need not be gated: reading changes nothing.
    pub fn new(client: Client) -> Self {
        Self(client)
    }
}

impl SecretSource for KubeSecrets {
    fn read<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<SecretData, SecretError>> {
        let secrets: Api<Secret> = Api::namespaced(self.0.clone(), namespace);
        async move {
            let secret = secrets.get(name).await.map_err(|error| failed(namespace, name, error))?;
            let data = secret.data.unwrap_or_default();
            Ok(data.into_iter().map(|(key, value)| (key, value.0)).collect())
        }
        .boxed()
    }
}

fn failed(namespace: &str, name: &str, error: kube::Error) -> SecretError {
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    match error {
        kube::Error::Api(status) if status.is_not_found() => SecretError::NotFound { namespace, name },
        kube::Error::Api(status) if status.is_forbidden() => SecretError::Forbidden { namespace, name },
        error => SecretError::Unreadable { namespace, name, source: Box::new(error) },
    }
}

impl SecretData {
    /// The text at a key, without the one line break at its end that files and editors add.
    pub(super) fn text(&self, namespace: &str, reference: &SecretKeyRef) -> Result<&str, SecretError> {
        let value = self.0.get(&reference.key).ok_or_else(|| SecretError::NoKey {
            namespace: namespace.to_owned(),
            name: reference.name.clone(),
            key: reference.key.clone(),
        })?;
        let text = std::str::from_utf8(value).map_err(|_| unusable(namespace, reference, "it is not UTF-8 text"))?;
        let text = text.strip_suffix('\n').unwrap_or(text);
        Ok(text.strip_suffix('\r').unwrap_or(text))
    }
}

pub(super) fn unusable(namespace: &str, reference: &SecretKeyRef, reason: &'static str) -> SecretError {
    SecretError::Unusable {
        namespace: namespace.to_owned(),
        name: reference.name.clone(),
        key: reference.key.clone(),
        reason,
    }
}

impl FromIterator<(String, Vec<u8>)> for SecretData {
    fn from_iter<T: IntoIterator<Item = (String, Vec<u8>)>>(data: T) -> Self {
        Self(data.into_iter().collect())
    }
}

impl fmt::Debug for SecretData {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_set().entries(self.0.keys()).finish()
    }
}

impl fmt::Debug for KubeSecrets {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("KubeSecrets").finish_non_exhaustive()
    }
}
