//! The built-in kinds: Namespace, ConfigMap, Secret, Event (in both groups), Lease, Job, CustomResourceDefinition.
//!
//! Their types are described by the same kind of schema as custom resources (`builtin.json`), so that pruning, OpenAPI and
//! `kubectl explain` have one source. What differs from custom resources is here: Go's decoding errors, the two faces of
//! an Event, and the rules that a schema cannot say.

use std::sync::{Arc, LazyLock};

use regex::Regex;
use serde_json::{Map, Value, json};

use crate::{
    crd, meta,
    resource::{Column, Resource},
    schema::Schema,
    status::{Cause, Failure},
};

static SCHEMAS: LazyLock<Map<String, Value>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("builtin.json")).expect("builtin.json is a JSON object of schemas by kind")
});

/// What of the metadata has a type that a client can get wrong.
static METADATA: LazyLock<Value> = LazyLock::new(|| {
    let text = || json!({ "type": "string" });
    let texts = || json!({ "type": "object", "additionalProperties": text() });
    json!({ "type": "object", "x-go-type": "ObjectMeta", "properties": {
        "name": text(), "generateName": text(), "namespace": text(), "uid": text(), "resourceVersion": text(),
        "labels": texts(), "annotations": texts(),
        "finalizers": { "type": "array", "items": text(), "x-go-type": "[]string" },
    } })
});

/// Exactly six fraction digits, then `Z` or an offset: what the API server's MicroTime takes.
static MICRO_TIME: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d\d:\d\d)$").expect("a constant pattern that compiles")
});

/// Names of the resources, as they are served.
pub(crate) fn resources() -> Vec<Resource> {
    let age = [("Age", ".metadata.creationTimestamp", "date", 0)];
    let event_columns = [
        ("Last Seen", ".lastTimestamp", "date", 0),
        ("Type", ".type", "string", 0),
        ("Reason", ".reason", "string", 0),
        ("Object", "", "string", 0),
        ("Subobject", ".involvedObject.fieldPath", "string", 1),
        ("Source", "", "string", 1),
        ("Message", ".message", "string", 0),
        ("First Seen", ".firstTimestamp", "date", 1),
        ("Count", ".count", "integer", 1),
        ("Name", ".metadata.name", "name", 1),
    ];
    let data = [("Data", "", "integer", 0)];
    let secret = [("Type", ".type", "string", 0), ("Data", "", "integer", 0)];
    let lease = [("Holder", ".spec.holderIdentity", "string", 0)];
    let namespace = [("Status", ".status.phase", "string", 0)];
    let definition = [("Created At", ".metadata.creationTimestamp", "string", 0)];
    vec![
        kind("", "v1", "Namespace", "namespaces", &["ns"], &[&namespace[..], &age].concat()),
        kind("", "v1", "ConfigMap", "configmaps", &["cm"], &[&data[..], &age].concat()),
        kind("", "v1", "Secret", "secrets", &[], &[&secret[..], &age].concat()),
        kind("", "v1", "Event", "events", &["ev"], &event_columns),
        kind("events.k8s.io", "v1", "Event", "events", &["ev"], &event_columns),
        kind("coordination.k8s.io", "v1", "Lease", "leases", &[], &[&lease[..], &age].concat()),
        kind("batch", "v1", "Job", "jobs", &[], &age),
        kind(
            "apiextensions.k8s.io",
            "v1",
            "CustomResourceDefinition",
            "customresourcedefinitions",
            &["crd", "crds"],
            &definition,
        ),
    ]
}

fn kind(
    group: &str,
    version: &str,
    kind: &str,
    plural: &str,
    short_names: &[&str],
    columns: &[(&str, &str, &str, i64)],
) -> Resource {
    let definition = group == "apiextensions.k8s.io";
    let column = |&(name, path, kind, priority): &(&str, &str, &str, i64)| Column {
        name: name.to_owned(),
        kind: kind.to_owned(),
        format: if kind == "name" { kind.to_owned() } else { String::new() },
        description: String::new(),
        priority,
        path: path.to_owned(),
    };
    let schema = if group == "events.k8s.io" { "events.k8s.io/Event" } else { kind };
    Resource {
        group: group.to_owned(),
        version: version.to_owned(),
        plural: plural.to_owned(),
        singular: kind.to_lowercase(),
        kind: kind.to_owned(),
        list_kind: format!("{kind}List"),
        namespaced: !matches!(kind, "Namespace" | "CustomResourceDefinition"),
        short_names: short_names.iter().map(ToString::to_string).collect(),
        categories: if definition { vec!["api-extensions".to_owned()] } else { Vec::new() },
        custom: false,
        status_subresource: matches!(kind, "Namespace" | "CustomResourceDefinition" | "Job"),
        schema: SCHEMAS.get(schema).cloned().map(Schema::new).map(Arc::new),
        columns: columns.iter().map(column).collect(),
    }
}

pub(crate) fn is_event(resource: &Resource) -> bool {
    resource.plural == "events" && matches!(resource.group.as_str(), "" | "events.k8s.io")
}

pub(crate) fn is_namespace(resource: &Resource) -> bool {
    resource.plural == "namespaces" && resource.group.is_empty()
}

fn is_core(resource: &Resource, kind: &str) -> bool {
    !resource.custom && resource.kind == kind
}

/// Names of the same field of an Event: in events.k8s.io, and as it is stored (as in the core group).
const EVENT_FACES: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

/// The stored form of an object that was sent as `resource`.
pub(crate) fn to_stored(resource: &Resource, mut object: Value) -> Value {
    if resource.group == "events.k8s.io"
        && let Some(map) = object.as_object_mut()
    {
        for (face, stored) in EVENT_FACES {
            if let Some(value) = map.remove(face) {
                map.insert(stored.to_owned(), value);
            }
        }
        map.insert("apiVersion".to_owned(), json!("v1"));
    }
    object
}

/// A stored object as `resource` shows it.
pub(crate) fn present(resource: &Resource, object: &Value) -> Value {
    let mut object = object.clone();
    if resource.group == "events.k8s.io"
        && let Some(map) = object.as_object_mut()
    {
        for (face, stored) in EVENT_FACES {
            if let Some(value) = map.remove(stored) {
                map.insert(face.to_owned(), value);
            }
        }
        // The core group always shows them.
        map.retain(|field, value| !(field.starts_with("reporting") && value == ""));
    }
    if object["kind"] == json!(resource.kind) {
        object["apiVersion"] = json!(resource.api_version());
    }
    object
}

/// The stored path of a field that `resource` can be selected by.
pub(crate) fn stored_field(resource: &Resource, field: &str) -> Option<String> {
    if matches!(field, "metadata.name" | "metadata.namespace") {
        return Some(field.to_owned());
    }
    if is_event(resource) {
        let object = field.strip_prefix("involvedObject.").or_else(|| field.strip_prefix("regarding."));
        if let Some(part) = object {
            let known = ["kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath"];
            return known.contains(&part).then(|| format!("involvedObject.{part}"));
        }
        let stored = match field {
            "reportingController" => "reportingComponent",
            "reason" | "type" | "reportingComponent" => field,
            "source" => "source.component",
            _ => return None,
        };
        return Some(stored.to_owned());
    }
    let selectable =
        (is_core(resource, "Secret") && field == "type") || (is_namespace(resource) && field == "status.phase");
    selectable.then(|| field.to_owned())
}

/// The refusal of a field selector.
pub(crate) fn unknown_field(resource: &Resource, field: &str) -> String {
    if matches!(resource.kind.as_str(), "Lease" | "ConfigMap") && !resource.custom {
        return format!("{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"");
    }
    format!("field label not supported: {field}")
}

/// Go's decoding errors: the first value of a wrong type, in the words of the API server.
pub(crate) fn check_types(resource: &Resource, object: &Value) -> Result<(), String> {
    // The metadata of a custom resource is decoded by itself, that of a built-in kind with the rest.
    let path = if resource.custom { "" } else { "metadata" };
    check_type(&METADATA, &object["metadata"], "ObjectMeta", path)?;
    match &resource.schema {
        Some(schema) if !resource.custom => check_type(&schema.document, object, &resource.kind, "")?,
        _ => {}
    }
    if is_core(resource, "Secret") {
        object["data"].as_object().into_iter().flatten().try_for_each(|(_, value)| check_base64(value))?;
    }
    Ok(())
}

fn check_base64(value: &Value) -> Result<(), String> {
    use base64::{DecodeError, Engine, engine::general_purpose::STANDARD};
    let text = value.as_str().unwrap_or_default();
    STANDARD.decode(text).map(drop).map_err(|error| {
        let at = if let DecodeError::InvalidByte(at, _) = error { at } else { text.len() };
        format!("illegal base64 data at input byte {at}")
    })
}

fn check_type(schema: &Value, value: &Value, owner: &str, path: &str) -> Result<(), String> {
    let mismatch = |expected: &str| {
        let actual = match value {
            Value::Bool(_) => "bool".to_owned(),
            Value::Number(number) if expected.starts_with("int") => format!("number {number}"),
            Value::Number(_) => "number".to_owned(),
            Value::String(_) => "string".to_owned(),
            Value::Array(_) => "array".to_owned(),
            Value::Object(_) | Value::Null => "object".to_owned(),
        };
        Err(format!("json: cannot unmarshal {actual} into Go struct field {owner}.{path} of type {expected}"))
    };
    let go_type = schema["x-go-type"].as_str();
    match (schema["type"].as_str(), value) {
        (_, Value::Null) | (None, _) => Ok(()),
        (Some("object"), Value::Object(map)) => {
            let owner = go_type.unwrap_or(owner);
            map.iter().try_for_each(|(key, value)| {
                let Some(child) = schema["properties"].get(key) else {
                    // The entries of a map have no path of their own.
                    let child = schema.get("additionalProperties");
                    return child.map_or(Ok(()), |child| check_type(child, value, owner, path));
                };
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                check_type(child, value, owner, &path)
            })
        }
        (Some("array"), Value::Array(list)) => {
            list.iter().try_for_each(|item| check_type(&schema["items"], item, owner, path))
        }
        (Some("integer"), Value::Number(number)) if number.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => Ok(()),
        (Some("integer"), _) => mismatch("int32"),
        (Some("string"), Value::String(text)) if schema["format"] == "micro-time" => check_micro_time(text),
        (Some("string"), Value::String(_)) | (Some("boolean"), Value::Bool(_)) => Ok(()),
        (Some("boolean"), _) => mismatch("bool"),
        (Some("string"), _) => mismatch("string"),
        (Some(_), _) => mismatch(go_type.unwrap_or("map[string]string")),
    }
}

fn check_micro_time(text: &str) -> Result<(), String> {
    const LAYOUT: &str = "2006-01-02T15:04:05.000000Z07:00";
    if MICRO_TIME.is_match(text) && text.parse::<jiff::Timestamp>().is_ok() {
        return Ok(());
    }
    let seconds = "2026-01-01T00:00:00".len();
    let fraction = ".000000";
    let (rest, wanted) = match (text.get(seconds..), text.get(seconds + fraction.len()..)) {
        // What follows six digits should have been the zone.
        (Some(given), Some(zone)) if given.as_bytes()[1..fraction.len()].iter().all(u8::is_ascii_digit) => {
            (zone, "Z07:00")
        }
        (Some(given), _) => (given, fraction),
        (None, _) => (text, "2006"),
    };
    Err(format!("parsing time {text:?} as {LAYOUT:?}: cannot parse {rest:?} as {wanted:?}"))
}

/// Writes what the API server always shows, and times in its own form.
pub(crate) fn complete(resource: &Resource, object: &mut Value) {
    if resource.custom {
        return;
    }
    if is_event(resource) {
        let empty = [
            ("involvedObject", json!({})),
            ("source", json!({})),
            ("firstTimestamp", Value::Null),
            ("lastTimestamp", Value::Null),
            ("eventTime", Value::Null),
            ("reportingComponent", json!("")),
            ("reportingInstance", json!("")),
        ];
        for (field, value) in empty {
            if object[field].is_null() {
                object[field] = value;
            }
        }
        in_utc(&mut object["eventTime"]);
    } else if is_namespace(resource) {
        let name = object["metadata"]["name"].clone();
        object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
        if object["spec"]["finalizers"].is_null() {
            object["spec"]["finalizers"] = json!(["kubernetes"]);
        }
        if object["status"]["phase"].is_null() {
            object["status"]["phase"] = json!("Active");
        }
    } else if is_core(resource, "Lease") {
        if object["spec"].is_null() {
            object["spec"] = json!({});
        }
        for field in ["renewTime", "acquireTime"] {
            if object["spec"][field].is_string() {
                in_utc(&mut object["spec"][field]);
            }
        }
    } else if is_core(resource, "Secret") {
        complete_secret(object);
    } else if is_core(resource, "Job") {
        if object["status"].is_null() {
            object["status"] = json!({});
        }
    } else if crd::is_definition(resource) {
        crd::complete(object);
    }
}

fn in_utc(time: &mut Value) {
    let parsed = time.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
    if let Some(at) = parsed {
        *time = json!(at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string());
    }
}

fn complete_secret(object: &mut Value) {
    use base64::{Engine, engine::general_purpose::STANDARD};
    if let Some(Value::Object(plain)) = object.as_object_mut().and_then(|map| map.remove("stringData")) {
        for (key, value) in plain {
            object["data"][key] = json!(STANDARD.encode(value.as_str().unwrap_or_default()));
        }
    }
    if object["type"].as_str().is_none_or(str::is_empty) {
        object["type"] = json!("Opaque");
    }
}

/// The rules that the schema cannot say. `old` is the stored object of an update.
pub(crate) fn validate(resource: &Resource, new: &Value, old: Option<&Value>) -> Vec<Cause> {
    match resource.kind.as_str() {
        "Lease" if !resource.custom => validate_lease(new),
        "Event" if is_event(resource) => validate_event(resource, new, old),
        "CustomResourceDefinition" if !resource.custom => crd::validate(new),
        "Secret" | "ConfigMap" if !resource.custom => validate_keys(new),
        "Job" if !resource.custom => validate_job(new),
        _ => Vec::new(),
    }
}

fn validate_lease(lease: &Value) -> Vec<Cause> {
    let spec = &lease["spec"];
    let mut causes = Vec::new();
    if spec["leaseDurationSeconds"].as_i64().is_some_and(|seconds| seconds <= 0) {
        let value = &spec["leaseDurationSeconds"];
        causes.push(Cause::invalid("spec.leaseDurationSeconds", value, "must be greater than 0"));
    }
    if spec["leaseTransitions"].as_i64().is_some_and(|count| count < 0) {
        let value = &spec["leaseTransitions"];
        causes.push(Cause::invalid("spec.leaseTransitions", value, "must be greater than or equal to 0"));
    }
    causes
}

/// What a Job cannot be without. The pods are nobody's here, so the rest of their template is taken as it is.
fn validate_job(job: &Value) -> Vec<Cause> {
    let pod = &job["spec"]["template"]["spec"];
    let at = |field: &str| format!("spec.template.spec.{field}");
    let mut causes = Vec::new();
    let containers = pod["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
    if containers.is_empty() {
        causes.push(Cause::required(at("containers")));
    }
    for (index, container) in containers.iter().enumerate() {
        for field in ["name", "image"] {
            if container[field].as_str().is_none_or(str::is_empty) {
                causes.push(Cause::required(at(&format!("containers[{index}].{field}"))));
            }
        }
    }
    let path = at("restartPolicy");
    match pod["restartPolicy"].as_str().unwrap_or_default() {
        "Never" | "OnFailure" => {}
        "" | "Always" => {
            let text = "Required value: valid values: \"OnFailure\", \"Never\"";
            causes.push(Cause::new("FieldValueRequired", path, text));
        }
        other => {
            let text = format!("Unsupported value: {}: supported values: \"OnFailure\", \"Never\"", json!(other));
            causes.push(Cause::new("FieldValueNotSupported", path, text));
        }
    }
    causes
}

fn validate_keys(object: &Value) -> Vec<Cause> {
    const RULE: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  \
        or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
    let fits = |key: &str| !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let keys = object["data"].as_object().into_iter().flatten().map(|(key, _)| key);
    keys.filter(|key| !fits(key)).map(|key| Cause::invalid(format!("data[{key}]"), &json!(key), RULE)).collect()
}

fn validate_event(resource: &Resource, new: &Value, old: Option<&Value>) -> Vec<Cause> {
    /// Limits of events.k8s.io, in bytes.
    const WORD: usize = 128;
    const NOTE: usize = 1024;
    let text = |field: &str| new[field].as_str().unwrap_or_default();
    let mut causes = Vec::new();
    let home = new["involvedObject"]["namespace"].as_str().unwrap_or_default();
    let own = meta::text(new, "namespace");
    let strict = resource.group == "events.k8s.io" || new["eventTime"].is_string();
    let strange = if home.is_empty() { !matches!(own, "default" | "kube-system") } else { home != own && !strict };
    if strange {
        let value = json!(home);
        causes.push(Cause::invalid("involvedObject.namespace", &value, "does not match event.namespace"));
    }
    if !strict {
        return causes;
    }
    if let Some(old) = old {
        for field in ["involvedObject", "reason", "action", "message", "eventTime", "type"] {
            if old[field] != new[field] {
                causes.push(Cause::invalid(field, &new[field], "field is immutable"));
            }
        }
        return causes;
    }
    if new["eventTime"].is_null() {
        causes.push(Cause::required("eventTime"));
    }
    if !matches!(text("type"), "Normal" | "Warning") {
        causes.push(Cause::invalid("type", &json!(""), format!("has invalid value: {}", text("type"))));
    }
    if new["eventTime"].is_null() {
        return causes;
    }
    for (field, shown) in [
        ("reportingComponent", "reportingController"),
        ("reportingInstance", "reportingInstance"),
        ("action", "action"),
        ("reason", "reason"),
    ] {
        if field == "reportingComponent" {
            causes.extend(meta::bad_qualified_name(text(field), shown));
        }
        if text(field).is_empty() {
            causes.push(Cause::required(shown));
        } else if text(field).len() > WORD {
            let rule = format!("can have at most {WORD} characters");
            causes.push(Cause::invalid(shown, &new[field], rule));
        }
    }
    if text("message").len() > NOTE {
        causes.push(Cause::invalid("message", &json!(""), format!("can have at most {NOTE} characters")));
    }
    if resource.group == "events.k8s.io" {
        let empty = |value: &Value| value.is_null() || *value == json!({});
        for field in ["count", "firstTimestamp", "lastTimestamp", "source"].iter().filter(|field| !empty(&new[**field]))
        {
            causes.push(Cause::invalid(*field, &json!(""), "needs to be unset"));
        }
    }
    causes
}

/// The namespaces that a cluster cannot be without.
pub(crate) fn check_deletable(resource: &Resource, name: &str) -> Result<(), Failure> {
    let needed = ["default", "kube-system", "kube-public", "kube-node-lease"];
    if is_namespace(resource) && needed.contains(&name) {
        return Err(Failure::forbidden(resource, name, "this namespace may not be deleted"));
    }
    Ok(())
}
