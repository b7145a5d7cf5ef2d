//! OpenAPI v3, as far as `kubectl` needs it: `apply` and `create` ask whether a kind knows `fieldValidation`, `explain`
//! reads the schemas.

use std::collections::BTreeSet;

use axum::response::Response;
use serde_json::{Map, Value, json};

use crate::{
    http::{not_found_text, status_json},
    resource::{Registry, Resource},
};

/// Answers a path below `/openapi`; `None` if it is not one.
pub(crate) fn answer(registry: &Registry, path: &str) -> Option<Response> {
    match path.trim_matches('/') {
        "openapi/v3" => {
            let versions: BTreeSet<String> = registry.iter().map(|resource| path_of(resource)).collect();
            let paths: Map<String, Value> = versions
                .into_iter()
                .map(|path| (path.clone(), json!({ "serverRelativeURL": format!("/openapi/v3/{path}") })))
                .collect();
            Some(status_json(200, &json!({ "paths": paths })))
        }
        // There is no OpenAPI v2: `kubectl` asks for it and does without.
        "openapi/v2" => Some(not_found_text()),
        path => {
            let wanted = path.strip_prefix("openapi/v3/")?;
            let found: Vec<&Resource> = registry.iter().map(AsRef::as_ref).filter(|r| path_of(r) == wanted).collect();
            Some(if found.is_empty() { not_found_text() } else { status_json(200, &document(&found)) })
        }
    }
}

/// `api/v1` or `apis/GROUP/VERSION`.
fn path_of(resource: &Resource) -> String {
    let root = if resource.group.is_empty() { "api" } else { "apis" };
    format!("{root}/{}", resource.api_version())
}

fn document(resources: &[&Resource]) -> Value {
    let mut paths = Map::new();
    let mut schemas = Map::new();
    schemas.insert(OBJECT_META.to_owned(), object_meta());
    for resource in resources {
        let kind = json!({ "group": resource.group, "version": resource.version, "kind": resource.kind });
        let scope = if resource.namespaced { "namespaces/{namespace}/" } else { "" };
        let collection = format!("/{}/{scope}{}", path_of(resource), resource.plural);
        let parameters: Vec<Value> = ["dryRun", "fieldManager", "fieldValidation"]
            .map(|name| json!({ "name": name, "in": "query", "schema": { "type": "string" } }))
            .into();
        let reference = format!("#/components/schemas/{}", schema_name(resource));
        let operation = |action: &str| {
            json!({
                "operationId": format!("{action}{}", resource.kind), "parameters": parameters,
                "x-kubernetes-action": action, "x-kubernetes-group-version-kind": kind,
                "responses": { "200": { "description": "OK", "content": {
                    "application/json": { "schema": { "$ref": reference } },
                } } },
            })
        };
        let one = json!({
            "get": operation("get"), "put": operation("put"), "patch": operation("patch"), "delete": operation("delete"),
        });
        paths.insert(format!("{collection}/{{name}}"), one);
        paths.insert(collection, json!({ "get": operation("list"), "post": operation("post") }));
        schemas.insert(schema_name(resource), described(resource, &kind));
    }
    json!({
        "openapi": "3.0.0", "info": { "title": "Kubernetes", "version": "v1.36.3+sandbox" },
        "paths": paths, "components": { "schemas": schemas },
    })
}

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// The group's domain backwards, as Kubernetes names its types.
fn schema_name(resource: &Resource) -> String {
    let group: Vec<&str> = resource.group.rsplit('.').filter(|part| !part.is_empty()).collect();
    let group = if group.is_empty() { "core".to_owned() } else { group.join(".") };
    format!("{group}.{}.{}", resource.version, resource.kind)
}

fn described(resource: &Resource, kind: &Value) -> Value {
    let empty = || json!({ "type": "object" });
    let mut schema = resource.schema.as_ref().map_or_else(empty, |schema| schema.document.clone());
    let about_version = "APIVersion defines the versioned schema of this representation of an object. Servers should \
        convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: \
        https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
    let about_kind = "Kind is a string value representing the REST resource this object represents. Servers may infer \
        this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: \
        https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
    schema["properties"]["apiVersion"] = json!({ "type": "string", "description": about_version });
    schema["properties"]["kind"] = json!({ "type": "string", "description": about_kind });
    schema["properties"]["metadata"] = json!({
        "description": "Standard object's metadata. More info: \
            https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata",
        "allOf": [{ "$ref": format!("#/components/schemas/{OBJECT_META}") }],
    });
    schema["x-kubernetes-group-version-kind"] = json!([kind]);
    schema
}

fn object_meta() -> Value {
    let text = |about: &str| json!({ "type": "string", "description": about });
    let texts = |about: &str| {
        json!({
            "type": "object", "additionalProperties": { "type": "string" }, "description": about,
        })
    };
    json!({
        "type": "object",
        "description": "ObjectMeta is metadata that all persisted resources must have.",
        "properties": {
            "name": text("The name, unique within a namespace."),
            "generateName": text("The beginning of a name that the server completes."),
            "namespace": text("The space within which the name is unique."),
            "uid": text("Unique in time and space; set by the server."),
            "resourceVersion": text("Changes with every write; compare it for equality only."),
            "generation": { "type": "integer", "format": "int64", "description": "Counts changes of the desired state." },
            "creationTimestamp": text("When the object was created."),
            "deletionTimestamp": text("When its deletion was asked for."),
            "deletionGracePeriodSeconds": { "type": "integer", "format": "int64", "description": "How long a deletion waits." },
            "labels": texts("Key and value pairs to select objects by."),
            "annotations": texts("Key and value pairs for tools and people."),
            "finalizers": { "type": "array", "items": { "type": "string" }, "description": "What must happen before the object is removed." },
            "ownerReferences": { "type": "array", "items": { "type": "object" }, "description": "The objects that this one depends on." },
        },
    })
}
