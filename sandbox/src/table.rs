//! Tables: what `kubectl get` shows, computed by the server.
//!
//! The paths of printer columns are a small part of JSONPath (fields, indices, one filter `[?(@.type=="Ready")]`), read
//! by hand: a full JSONPath library selects nodes by other rules than the API server prints them by.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    builtin,
    resource::{Column, Resource},
    status::Failure,
};

/// How much of the object goes along with its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Include {
    Metadata,
    Object,
    Nothing,
}

impl Include {
    pub(crate) fn parse(text: Option<&str>) -> Result<Self, Failure> {
        match text {
            None | Some("Metadata") => Ok(Self::Metadata),
            Some("Object") => Ok(Self::Object),
            Some("None") => Ok(Self::Nothing),
            Some(other) => Err(Failure::bad_request(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {other:?}: must be \
                 'Metadata', 'Object', 'None', or empty"
            ))),
        }
    }
}

/// The table of one object or of a list, as presented.
pub(crate) fn of(resource: &Resource, shown: &Value, include: Include, now: Timestamp) -> Value {
    let rows: Vec<Value> = match shown["items"].as_array() {
        Some(items) if shown["kind"] == json!(resource.list_kind) => {
            items.iter().map(|item| row(resource, item, include, now)).collect()
        }
        _ => vec![row(resource, shown, include, now)],
    };
    let metadata = json!({ "resourceVersion": shown["metadata"]["resourceVersion"] });
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": definitions(resource), "rows": rows,
    })
}

/// The table inside a watch frame: one row; the columns are defined in the first frame only.
pub(crate) fn of_event(
    resource: &Resource,
    object: &Value,
    include: Include,
    now: Timestamp,
    with_columns: bool,
) -> Value {
    let mut table = of(resource, object, include, now);
    if !with_columns {
        table["columnDefinitions"] = Value::Null;
    }
    table
}

fn definitions(resource: &Resource) -> Vec<Value> {
    let definition = |name: &str, kind: &str, format: &str, description: &str, priority: i64| {
        json!({
            "name": name, "type": kind, "format": format, "description": description, "priority": priority,
        })
    };
    let about_names = "Name must be unique within a namespace. Is required when creating resources, although some \
        resources may allow a client to request the generation of an appropriate name automatically. Name is \
        primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: \
        https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names";
    let name = (!names_itself(resource)).then(|| definition("Name", "string", "name", about_names, 0));
    let kind = |column: &Column| if resource.custom { column.kind.clone() } else { builtin_type(column) };
    let declared =
        resource.columns.iter().map(|c| definition(&c.name, &kind(c), &c.format, &c.description, c.priority));
    name.into_iter().chain(declared).collect()
}

/// Events list their name last.
fn names_itself(resource: &Resource) -> bool {
    builtin::is_event(resource)
}

/// Built-in columns are called strings, counts too; only a definition's date is called one.
fn builtin_type(column: &Column) -> String {
    if column.name == "Created At" { "date" } else { "string" }.to_owned()
}

fn row(resource: &Resource, object: &Value, include: Include, now: Timestamp) -> Value {
    let name = (!names_itself(resource)).then(|| object["metadata"]["name"].clone());
    let cells = resource.columns.iter().map(|column| {
        if resource.custom { cell(column, object, now) } else { builtin_cell(resource, column, object, now) }
    });
    let cells: Vec<Value> = name.into_iter().chain(cells).collect();
    let object = match include {
        Include::Nothing => Value::Null,
        Include::Object => object.clone(),
        Include::Metadata => partial(object, "PartialObjectMetadata"),
    };
    json!({ "cells": cells, "object": object })
}

/// The metadata of an object or a list, and nothing else.
pub(crate) fn partial(object: &Value, kind: &str) -> Value {
    let mut partial = json!({ "kind": kind, "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"] });
    if let Some(items) = object["items"].as_array() {
        partial["metadata"].as_object_mut().map(|metadata| metadata.remove("continue"));
        partial["items"] = items.iter().map(|item| self::partial(item, "PartialObjectMetadata")).collect();
    }
    partial
}

fn cell(column: &Column, object: &Value, now: Timestamp) -> Value {
    let Some(value) = find(object, &column.path).filter(|value| !value.is_null()) else { return Value::Null };
    match (column.kind.as_str(), value) {
        ("integer", Value::Number(number)) => {
            #[allow(clippy::cast_possible_truncation, reason = "a column of integers shows whole numbers")]
            let whole = |number: f64| json!(number.trunc() as i64);
            number.as_i64().map_or_else(|| number.as_f64().map_or(Value::Null, whole), |number| json!(number))
        }
        ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => value.clone(),
        ("integer" | "number" | "boolean", _) => Value::Null,
        ("date", Value::String(text)) => {
            json!(text.parse::<Timestamp>().map_or("<invalid>".to_owned(), |at| age(at, now)))
        }
        ("date", _) => json!("<invalid>"),
        (_, Value::String(text)) => json!(text),
        (_, other) => json!(other.to_string()),
    }
}

fn builtin_cell(resource: &Resource, column: &Column, object: &Value, now: Timestamp) -> Value {
    let count = |field: &str| object[field].as_object().map_or(0, serde_json::Map::len);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let event = builtin::is_event(resource).then(|| {
        // One set of columns serves both faces of an Event.
        builtin::to_stored(resource, object.clone())
    });
    let object = event.as_ref().unwrap_or(object);
    match (resource.kind.as_str(), column.name.as_str()) {
        ("ConfigMap", "Data") => json!(count("data") + count("binaryData")),
        ("Secret", "Data") => json!(count("data")),
        ("Event", "Object") => {
            let about = &object["involvedObject"];
            json!(format!("{}/{}", text(&about["kind"]).to_lowercase(), text(&about["name"])))
        }
        ("Event", "Source") => {
            let source = &object["source"];
            let parts = [text(&source["component"]), text(&source["host"])];
            let reporter = if parts[0].is_empty() {
                [text(&object["reportingComponent"]), text(&object["reportingInstance"])]
            } else {
                parts
            };
            json!(reporter.iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join(", "))
        }
        ("Event", "Last Seen") => {
            json!(event_age(
                [&object["series"]["lastObservedTime"], &object["lastTimestamp"], &object["eventTime"]],
                now
            ))
        }
        ("Event", "First Seen") => {
            json!(event_age([&object["firstTimestamp"], &object["eventTime"], &Value::Null], now))
        }
        ("Event", "Count") => {
            let count = object["series"]["count"].as_i64().or(object["count"].as_i64());
            json!(count.filter(|count| *count > 0).unwrap_or(1))
        }
        _ => match find(object, &column.path) {
            Some(Value::String(text)) if column.kind == "date" => {
                json!(text.parse::<Timestamp>().map_or("<unknown>".to_owned(), |at| age(at, now)))
            }
            Some(value) if !value.is_null() => value.clone(),
            _ => json!(if column.kind == "date" { "<unknown>" } else { "" }),
        },
    }
}

fn event_age(times: [&Value; 3], now: Timestamp) -> String {
    let known = times.into_iter().find_map(|time| time.as_str()?.parse::<Timestamp>().ok());
    known.map_or("<unknown>".to_owned(), |at| age(at, now))
}

/// A duration as `kubectl` shows ages: two units at most, coarser as it grows.
pub(crate) fn age(since: Timestamp, now: Timestamp) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    const YEAR: i64 = 365 * DAY;
    let seconds = now.duration_since(since).as_secs();
    let two = |major: i64, unit: &str, minor: i64, small: &str| {
        if minor == 0 { format!("{major}{unit}") } else { format!("{major}{unit}{minor}{small}") }
    };
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1..0 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        120..600 => two(seconds / MINUTE, "m", seconds % MINUTE, "s"),
        600..10_800 => format!("{}m", seconds / MINUTE),
        10_800..28_800 => two(seconds / HOUR, "h", seconds % HOUR / MINUTE, "m"),
        28_800..172_800 => format!("{}h", seconds / HOUR),
        172_800..691_200 => two(seconds / DAY, "d", seconds % DAY / HOUR, "h"),
        _ if seconds < 2 * YEAR => format!("{}d", seconds / DAY),
        _ if seconds < 8 * YEAR => two(seconds / YEAR, "y", seconds % YEAR / DAY, "d"),
        _ => format!("{}y", seconds / YEAR),
    }
}

/// The value at a printer column's path.
pub(crate) fn find<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    let path = path.trim().trim_start_matches('{').trim_end_matches('}').trim_start_matches('$');
    let mut value = object;
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('[') {
            let (inside, after) = after.split_once(']')?;
            value = index(value, inside)?;
            rest = after;
        } else {
            let field = rest.strip_prefix('.').unwrap_or(rest);
            let end = field_end(field);
            value = value.get(field[..end].replace("\\.", "."))?;
            rest = &field[end..];
        }
    }
    Some(value)
}

/// Where a field's name ends: at a bracket or at a dot that no backslash precedes.
fn field_end(text: &str) -> usize {
    let bytes = text.as_bytes();
    let ends = |at: &usize| bytes[*at] == b'[' || (bytes[*at] == b'.' && (*at == 0 || bytes[*at - 1] != b'\\'));
    (0..bytes.len()).find(ends).unwrap_or(bytes.len())
}

fn index<'a>(value: &'a Value, inside: &str) -> Option<&'a Value> {
    let inside = inside.trim();
    if let Some(filter) = inside.strip_prefix("?(").and_then(|text| text.strip_suffix(')')) {
        let (field, wanted) = filter.split_once("==")?;
        let field = field.trim().trim_start_matches("@.");
        let wanted = wanted.trim().trim_matches(['"', '\'']);
        return value.as_array()?.iter().find(|item| item[field].as_str() == Some(wanted));
    }
    if let Ok(at) = inside.parse::<usize>() {
        return value.get(at);
    }
    value.get(inside.trim_matches(['"', '\'']))
}
