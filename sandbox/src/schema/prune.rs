//! Pruning: fields that the schema does not declare are dropped, and named.

use serde_json::{Map, Value};

use crate::{meta, resource::Resource};

/// Drops unknown fields and the nulls of fields that cannot be null; returns `unknown field "spec.x"` for each of the
/// former, in the order of their paths.
pub(crate) fn prune(resource: &Resource, object: &mut Value) -> Vec<String> {
    let mut unknown = Vec::new();
    if let Some(map) = object["metadata"].as_object_mut() {
        retain(map, "metadata", &mut unknown, |key| meta::FIELDS.contains(&key));
    }
    if let (Some(schema), Some(map)) = (&resource.schema, object.as_object_mut()) {
        let outside = [map.remove("metadata"), map.remove("apiVersion"), map.remove("kind")];
        // A resource without a status subresource has a status only if the schema declares one, like any other field.
        prune_object(&schema.document, map, "", &mut unknown);
        for (key, value) in ["metadata", "apiVersion", "kind"].into_iter().zip(outside) {
            if let Some(value) = value {
                map.insert(key.to_owned(), value);
            }
        }
    }
    // Those of the metadata come first, as decoding meets them first.
    unknown.sort_by_key(|text| (!text.starts_with("unknown field \"metadata."), text.clone()));
    unknown
}

fn retain(map: &mut Map<String, Value>, path: &str, unknown: &mut Vec<String>, known: impl Fn(&str) -> bool) {
    map.retain(|key, _| {
        let keep = known(key);
        if !keep {
            unknown.push(format!("unknown field \"{}\"", child(path, key)));
        }
        keep
    });
}

fn prune_object(schema: &Value, map: &mut Map<String, Value>, path: &str, unknown: &mut Vec<String>) {
    let properties = schema["properties"].as_object();
    let additional = &schema["additionalProperties"];
    let declared = |key: &str| properties.and_then(|all| all.get(key));
    let open = preserves(schema) || additional.is_object() || *additional == Value::Bool(true);
    if !open {
        retain(map, path, unknown, |key| declared(key).is_some());
    }
    let of = |key: &str| declared(key).or(additional.is_object().then_some(additional));
    map.retain(|key, value| !value.is_null() || of(key).is_none_or(|schema| schema["nullable"] == true));
    for (key, value) in map.iter_mut() {
        if let Some(schema) = of(key) {
            prune_value(schema, value, &child(path, key), unknown);
        }
    }
}

fn prune_value(schema: &Value, value: &mut Value, path: &str, unknown: &mut Vec<String>) {
    match value {
        Value::Object(map) if schema["x-kubernetes-embedded-resource"] == true => {
            let outside = [map.remove("metadata"), map.remove("apiVersion"), map.remove("kind")];
            prune_object(schema, map, path, unknown);
            for (key, value) in ["metadata", "apiVersion", "kind"].into_iter().zip(outside) {
                if let Some(value) = value {
                    map.insert(key.to_owned(), value);
                }
            }
        }
        // Where no object belongs, every field of one is unknown.
        Value::Object(map) => prune_object(schema, map, path, unknown),
        Value::Array(items) if schema["items"].is_object() => {
            for (index, item) in items.iter_mut().enumerate() {
                prune_value(&schema["items"], item, &format!("{path}[{index}]"), unknown);
            }
        }
        _ => {}
    }
}

fn preserves(schema: &Value) -> bool {
    schema["x-kubernetes-preserve-unknown-fields"] == true
}

fn child(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}
