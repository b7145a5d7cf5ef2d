//! The custom resource definitions, generated from the types.
//!
//! Two things that the derive writes are taken back. `nullable`: with it the API server would store a null that a client
//! sent, where the documented default belongs. Number formats that Kubernetes does not know (`uint32`): the API server
//! answers each apply of such a definition with a warning.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

use super::PeriodicJob;

/// A definition cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum CrdError {
    /// The definition is not valid JSON for its type.
    #[error("the definition of {name} cannot be generated: {source}")]
    Generate {
        /// Which definition.
        name: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The definition cannot be written as YAML.
    #[error("the definition of {name} cannot be written as YAML: {source}")]
    Yaml {
        /// Which definition.
        name: String,
        /// What is wrong with it.
        source: serde_saphyr::SerializeError,
    },
}

/// Every custom resource definition of Tenure, as Kubernetes is to be given it.
///
/// # Errors
/// [`CrdError::Generate`], never for the types of this crate: a test holds that.
pub fn crds() -> Result<Vec<CustomResourceDefinition>, CrdError> {
    [PeriodicJob::crd()].into_iter().map(tidy).collect()
}

/// The same as YAML documents, each with its name.
///
/// # Errors
/// See [`CrdError`].
pub fn crds_yaml() -> Result<Vec<(String, String)>, CrdError> {
    let write = |crd: CustomResourceDefinition| {
        let name = crd.metadata.name.clone().unwrap_or_default();
        match serde_saphyr::to_string(&crd) {
            Ok(text) => Ok((name, text)),
            Err(source) => Err(CrdError::Yaml { name, source }),
        }
    };
    crds()?.into_iter().map(write).collect()
}

fn tidy(crd: CustomResourceDefinition) -> Result<CustomResourceDefinition, CrdError> {
    let name = crd.metadata.name.clone().unwrap_or_default();
    let failed = |source| CrdError::Generate { name: name.clone(), source };
    let mut value = serde_json::to_value(crd).map_err(failed)?;
    tidy_schema(&mut value);
    serde_json::from_value(value).map_err(failed)
}

fn tidy_schema(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if fields.get("nullable").is_some_and(Value::is_boolean) {
                fields.remove("nullable");
            }
            match fields.get("format").and_then(Value::as_str) {
                Some("uint32" | "uint64") => fields.insert("format".to_owned(), "int64".into()),
                _ => None,
            };
            fields.values_mut().for_each(tidy_schema);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy_schema),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Client-side apply stores a definition in an annotation of at most 256 KiB; the rest is room to grow.
    const CRD_BYTES_MAX: usize = 200_000;

    #[test]
    fn the_definitions_in_deploy_are_those_of_the_types() {
        for (name, generated) in crds_yaml().expect("the definitions can be generated") {
            let path = format!("{}/deploy/crds/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
            let committed = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(committed == generated, "{path} is not what the types say; run `make crds`");
        }
    }

    #[test]
    fn every_definition_fits_into_the_annotation_of_a_client_side_apply() {
        for crd in crds().expect("the definitions can be generated") {
            let bytes = serde_json::to_string(&crd).expect("a definition is JSON").len();
            assert!(bytes < CRD_BYTES_MAX, "{:?} has {bytes} bytes", crd.metadata.name);
        }
    }

    #[test]
    fn no_field_stores_a_null_that_a_client_sent() {
        for (name, yaml) in crds_yaml().expect("the definitions can be generated") {
            assert!(!yaml.contains("nullable"), "{name} has a nullable field");
            assert!(!yaml.contains("uint"), "{name} has a number format that Kubernetes does not know");
        }
    }
}
