//! The objects of a session: the definitions that `tenure crds` prints, and jobs that call the ledger.

use std::{
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, PostParams},
};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::process::Command;

use crate::judge::{Guarantee, Job};

/// The namespace that holds the jobs and the Lease.
pub const NAMESPACE: &str = "default";

/// Why an object is not in the API server.
#[derive(Debug, Error)]
pub enum ObjectError {
    /// `tenure crds` could not be run.
    #[error("cannot run {binary} crds: {source}")]
    Crds {
        /// The binary.
        binary: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// `tenure crds` failed or printed something that is no definition.
    #[error("what {binary} crds printed is no list of definitions: {reason}")]
    Definitions {
        /// The binary.
        binary: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The API server refused a request.
    #[error("the API server refused {what}: {source}")]
    Refused {
        /// What was asked of it.
        what: String,
        /// Its answer.
        source: Box<kube::Error>,
    },
}

/// Creates and deletes objects.
#[derive(Clone)]
pub struct Objects {
    client: Client,
    namespace: String,
}

impl Objects {
    /// Objects behind this client.
    pub fn new(client: Client) -> Self {
        Self::within(client, NAMESPACE)
    }

    /// Objects behind this client, in a namespace of their own.
    pub fn within(client: Client, namespace: &str) -> Self {
        Self { client, namespace: namespace.to_owned() }
    }

    /// Posts the definitions that the binary prints.
    pub async fn post_definitions(&self, binary: &Path) -> Result<(), ObjectError> {
        let output = Command::new(binary).arg("crds").stdin(Stdio::null()).output().await;
        let output = output.map_err(|source| ObjectError::Crds { binary: binary.to_owned(), source })?;
        let unreadable = |reason: String| ObjectError::Definitions { binary: binary.to_owned(), reason };
        if !output.status.success() {
            return Err(unreadable(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        let text = String::from_utf8(output.stdout).map_err(|error| unreadable(error.to_string()))?;
        let definitions: Vec<CustomResourceDefinition> =
            serde_saphyr::from_multiple(&text).map_err(|error| unreadable(error.to_string()))?;
        let api: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        for definition in definitions {
            let what = definition.metadata.name.clone().unwrap_or_default();
            api.create(&PostParams::default(), &definition).await.map_err(|source| refused(what, source))?;
        }
        Ok(())
    }

    /// Creates a job that posts to `url`.
    pub async fn create_job(&self, job: &Job, url: &str, timeout: Duration) -> Result<(), ObjectError> {
        let guarantee = match job.guarantee {
            Guarantee::AtLeastOnce => "AtLeastOnce",
            Guarantee::AtMostOnce => "AtMostOnce",
        };
        let spec = json!({
            "interval": format!("{}ms", job.period.as_millis()),
            "guarantee": guarantee,
            "timeout": format!("{}ms", timeout.as_millis()),
            "failedJobsHistoryLimit": 10,
            "http": { "method": "POST", "url": url },
        });
        self.create(&job.name, &spec).await
    }

    /// Creates a job with this spec.
    pub async fn create(&self, name: &str, spec: &Value) -> Result<(), ObjectError> {
        let object = DynamicObject::new(name, &kind()).data(json!({ "spec": spec }));
        let created = self.jobs().create(&PostParams::default(), &object).await;
        created.map(|_| ()).map_err(|source| refused(format!("job {name}"), source))
    }

    /// Deletes every job.
    pub async fn delete_all(&self) -> Result<(), ObjectError> {
        for job in self.list().await? {
            let name = job.metadata.name.unwrap_or_default();
            let deleted = self.jobs().delete(&name, &DeleteParams::default()).await;
            deleted.map_err(|source| refused(format!("the deletion of {name}"), source))?;
        }
        Ok(())
    }

    /// Every job.
    pub async fn list(&self) -> Result<Vec<DynamicObject>, ObjectError> {
        let listed = self.jobs().list(&ListParams::default()).await;
        listed.map(|list| list.items).map_err(|source| refused("a list of jobs".to_owned(), source))
    }

    fn jobs(&self) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, &kind())
    }
}

/// The kind of the jobs.
pub fn kind() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("tenure.dev", "v1alpha1", "PeriodicJob"))
}

fn refused(what: String, source: kube::Error) -> ObjectError {
    ObjectError::Refused { what, source: Box::new(source) }
}
