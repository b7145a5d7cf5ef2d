//! `metadata`: what the API server fills in, keeps, ignores and refuses.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Map, Value, json};

use crate::{resource::Resource, status::Cause, store::State};

/// The fields of ObjectMeta; anything else is unknown.
pub(crate) const FIELDS: [&str; 15] = [
    "name",
    "generateName",
    "namespace",
    "selfLink",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
    "managedFields",
];

/// What only the server writes: a client's values are dropped, the stored ones carried over.
const SERVER_OWNED: [&str; 6] =
    ["uid", "generation", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"];

/// The base of a generated name is cut to this, so that name and suffix stay within 253.
const GENERATED_BASE: usize = 248;

/// The greatest size of all annotations of an object together.
const ANNOTATION_BYTES: usize = 256 * 1024;

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
    and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
    start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', \
    and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for \
    validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const QUALIFIED_NAME: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and \
    end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("the patterns of this module are constants that compile")
}

static IS_SUBDOMAIN: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"));
static IS_LABEL: LazyLock<Regex> = LazyLock::new(|| pattern("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"));
static IS_LABEL_VALUE: LazyLock<Regex> = LazyLock::new(|| pattern("^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"));

/// A string of the metadata; absent, null and empty are the same.
pub(crate) fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

pub(crate) fn is_terminating(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

pub(crate) fn finalizers(object: &Value) -> Vec<&str> {
    object["metadata"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Drops what a client cannot say: nulls, empty maps and lists, and the bookkeeping of field managers.
pub(crate) fn tidy(object: &mut Value) {
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("managedFields");
        metadata.retain(|_, value| match value {
            Value::Null => false,
            Value::Object(map) => !map.is_empty(),
            Value::Array(list) => !list.is_empty(),
            Value::String(text) => !text.is_empty(),
            _ => true,
        });
    }
}

/// Fills in the metadata of a new object.
pub(crate) fn begin(state: &mut State, resource: &Resource, namespace: Option<&str>, object: &mut Value) {
    if text(object, "name").is_empty() && !text(object, "generateName").is_empty() {
        let base: String = text(object, "generateName").chars().take(GENERATED_BASE).collect();
        object["metadata"]["name"] = json!(base + &state.name_suffix());
    }
    let created = state.timestamp();
    let uid = state.uid();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for field in SERVER_OWNED {
            metadata.remove(field);
        }
        metadata.insert("uid".to_owned(), json!(uid));
        metadata.insert("creationTimestamp".to_owned(), created);
        if let Some(namespace) = namespace {
            metadata.insert("namespace".to_owned(), json!(namespace));
        }
        if resource.counts_generations() {
            metadata.insert("generation".to_owned(), json!(1));
        }
    }
}

/// Carries the server's own fields from the stored object into its replacement.
pub(crate) fn carry(old: &Value, new: &mut Value) {
    let (Some(old), Some(new)) = (old["metadata"].as_object(), new["metadata"].as_object_mut()) else { return };
    for field in SERVER_OWNED.iter().chain(&["resourceVersion", "namespace", "name", "generateName"]) {
        match old.get(*field) {
            Some(value) => new.insert((*field).to_owned(), value.clone()),
            None => new.remove(*field),
        };
    }
}

/// Counts the generation up.
pub(crate) fn next_generation(object: &mut Value) {
    if let Some(generation) = object["metadata"]["generation"].as_i64() {
        object["metadata"]["generation"] = json!(generation + 1);
    }
}

/// The rules for names, labels and annotations.
pub(crate) fn validate(resource: &Resource, object: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let (name, base) = (text(object, "name"), text(object, "generateName"));
    if !base.is_empty() {
        causes.extend(bad_name(resource, base.trim_end_matches('-'), "metadata.generateName", base));
    }
    if name.is_empty() && base.is_empty() {
        causes.push(Cause::new(
            "FieldValueRequired",
            "metadata.name",
            "Required value: name or generateName is required",
        ));
    } else if !name.is_empty() {
        causes.extend(bad_name(resource, name, "metadata.name", name));
    }
    causes.extend(object["metadata"]["labels"].as_object().into_iter().flat_map(bad_labels));
    let annotations = object["metadata"]["annotations"].as_object();
    let bytes = |(key, value): (&String, &Value)| key.len() + value.as_str().map_or(0, str::len);
    if annotations.into_iter().flatten().map(bytes).sum::<usize>() > ANNOTATION_BYTES {
        causes.push(Cause::new(
            "FieldValueTooLong",
            "metadata.annotations",
            format!("Too long: may not be more than {ANNOTATION_BYTES} bytes"),
        ));
    }
    causes
}

/// What may not be added once the object is being deleted. The API server checks it twice and lists it twice.
pub(crate) fn new_finalizers(old: &Value, new: &Value) -> Vec<Cause> {
    let before = finalizers(old);
    let added: Vec<_> = finalizers(new).into_iter().filter(|name| !before.contains(name)).collect();
    if !is_terminating(old) || added.is_empty() {
        return Vec::new();
    }
    let list: Vec<String> = added.iter().map(|name| format!("{name:?}")).collect();
    let text = format!(
        "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
        list.join(", ")
    );
    vec![Cause::forbidden("metadata.finalizers", text); 2]
}

fn bad_name(resource: &Resource, name: &str, field: &str, shown: &str) -> Option<Cause> {
    let label = resource.plural == "namespaces" && resource.group.is_empty();
    let (rule, text, most) = if label { (&*IS_LABEL, LABEL, 63) } else { (&*IS_SUBDOMAIN, SUBDOMAIN, 253) };
    if name.len() > most {
        return Some(Cause::invalid(field, &json!(shown), format!("must be no more than {most} characters")));
    }
    let text = if label && name.contains('.') && IS_SUBDOMAIN.is_match(name) { "must not contain dots" } else { text };
    (!rule.is_match(name)).then(|| Cause::invalid(field, &json!(shown), text))
}

/// A name that may have a domain before a slash, such as a controller's.
pub(crate) fn bad_qualified_name(name: &str, field: &str) -> Vec<Cause> {
    let part = name.rsplit('/').next().unwrap_or(name);
    let mut causes = Vec::new();
    if part.is_empty() {
        causes.push(Cause::invalid(field, &json!(name), "name part must be non-empty"));
    }
    if part.len() > 63 {
        causes.push(Cause::invalid(field, &json!(name), "name part must be no more than 63 characters"));
    }
    if part.is_empty() || !IS_LABEL_VALUE.is_match(part) {
        causes.push(Cause::invalid(field, &json!(name), QUALIFIED_NAME));
    }
    causes
}

fn bad_labels(labels: &Map<String, Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    for (key, value) in labels {
        let part = key.rsplit('/').next().unwrap_or(key);
        if part.is_empty() || part.len() > 63 || !IS_LABEL_VALUE.is_match(part) {
            causes.push(Cause::invalid("metadata.labels", &json!(key), QUALIFIED_NAME));
        }
        let text = value.as_str().unwrap_or_default();
        if text.len() > 63 {
            causes.push(Cause::new("FieldValueTooLong", "metadata.labels", "Too long: may not be more than 63 bytes"));
        } else if !IS_LABEL_VALUE.is_match(text) {
            causes.push(Cause::invalid("metadata.labels", value, LABEL_VALUE));
        }
    }
    causes
}
