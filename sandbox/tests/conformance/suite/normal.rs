//! Brings an answer to a form in which two servers can be compared.
//!
//! What differs from run to run is replaced by a symbol that keeps what matters about it: a uid or a version is numbered
//! by its first appearance in the scenario, so equal stays equal and different stays different; an instant near the
//! present keeps its precision; the version of a list or a bookmark, which other writers move, is compared with the
//! versions seen so far. `managedFields` are left out: the sandbox does not have them and says so.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use jiff::{SignedDuration, Timestamp};
use regex::{Captures, Regex};
use serde_json::{Map, Value};

/// An instant this close to the present was made by the server, or by a step that asked for one: what the scenarios
/// write out lies in 2020 and earlier.
const NEAR: SignedDuration = SignedDuration::from_hours(5 * 365 * 24);

static UID: LazyLock<Regex> = LazyLock::new(|| regex("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"));
static INSTANT: LazyLock<Regex> = LazyLock::new(|| regex(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"));
static GENERATED: LazyLock<Regex> = LazyLock::new(|| regex(r"\b([Gg]enerated-)[a-z0-9]{5}\b"));
static YOUNG: LazyLock<Regex> = LazyLock::new(|| regex(r"^\d{1,2}s$"));
/// The places of a message that name a version of the store.
static VERSION_IN_TEXT: LazyLock<Regex> =
    LazyLock::new(|| regex(r#"(in record \(|old resource version: \d+ \(|current: |\\"resourceVersion\\":\\")(\d+)"#));
/// `managedFields` inside a message that quotes a whole object.
static MANAGED_IN_TEXT: LazyLock<Regex> = LazyLock::new(|| regex(r#"\\"managedFields\\":\[.*?\}\],"#));

/// The state of one scenario: what was seen, and which symbol stands for it.
#[derive(Debug, Default)]
pub(crate) struct Normaliser {
    uids: BTreeMap<String, usize>,
    versions: BTreeMap<u64, usize>,
}

impl Normaliser {
    /// The body of an answer.
    pub(crate) fn document(&mut self, mut document: Value) -> Value {
        self.walk("", &mut document);
        document.sort_all_objects();
        document
    }

    /// One frame of a watch.
    pub(crate) fn frame(&mut self, mut frame: Value) -> Value {
        if frame["type"] == "BOOKMARK"
            && let Some(metadata) = frame.pointer_mut("/object/metadata")
        {
            self.bound(metadata);
        }
        self.document(frame)
    }

    fn walk(&mut self, name: &str, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.text(name, text),
            Value::Array(items) => items.iter_mut().for_each(|item| self.walk(name, item)),
            Value::Object(fields) => self.object(fields),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn object(&mut self, fields: &mut Map<String, Value>) {
        fields.remove("managedFields");
        let kind = fields.get("kind").and_then(Value::as_str).unwrap_or_default();
        let collection = kind.ends_with("List") || kind == "Table";
        // The version of a list is judged by the versions of its items, so it comes after them.
        let metadata = if collection { fields.remove("metadata") } else { None };
        for (name, value) in fields.iter_mut() {
            self.walk(name, value);
        }
        if let Some(Value::Array(resources)) = fields.get_mut("resources") {
            // Discovery has no order that means anything.
            resources.sort_by_key(|resource| resource["name"].to_string());
        }
        if fields.get("kind").is_some_and(|kind| kind == "Status") {
            sort_causes(fields);
        }
        if let Some(mut metadata) = metadata {
            self.bound(&mut metadata);
            self.walk("metadata", &mut metadata);
            fields.insert("metadata".to_owned(), metadata);
        }
    }

    /// Replaces the version of a list or bookmark, which any other writer moves on, by what can be said of it.
    fn bound(&mut self, metadata: &mut Value) {
        let Some(version) = metadata.get("resourceVersion").and_then(Value::as_str) else { return };
        let Ok(version) = version.parse::<u64>() else { return };
        let newest = self.versions.keys().next_back().copied().unwrap_or_default();
        let said = if version >= newest { "<not older than any seen>" } else { "<older than one seen>" };
        metadata["resourceVersion"] = Value::from(said);
    }

    fn text(&mut self, name: &str, text: &str) -> String {
        if name == "resourceVersion" {
            return text.parse().map_or_else(|_| text.to_owned(), |version| self.version(version));
        }
        if name == "cells" && YOUNG.is_match(text) {
            return "<seconds>".to_owned();
        }
        if name == "continue" && !text.is_empty() {
            return "<continue>".to_owned();
        }
        let text = UID.replace_all(text, |found: &Captures<'_>| self.uid(&found[0]));
        let text = INSTANT.replace_all(&text, |found: &Captures<'_>| instant(found));
        let text = GENERATED.replace_all(&text, "${1}<random>");
        if name != "message" {
            return text.into_owned();
        }
        let text = MANAGED_IN_TEXT.replace_all(&text, "");
        let version = |found: &Captures<'_>| {
            let version = found[2].parse().map_or_else(|_| found[2].to_owned(), |version| self.version(version));
            format!("{}{version}", &found[1])
        };
        VERSION_IN_TEXT.replace_all(&text, version).into_owned()
    }

    fn uid(&mut self, uid: &str) -> String {
        let next = self.uids.len() + 1;
        format!("<uid {}>", self.uids.entry(uid.to_owned()).or_insert(next))
    }

    fn version(&mut self, version: u64) -> String {
        let next = self.versions.len() + 1;
        format!("<version {}>", self.versions.entry(version).or_insert(next))
    }
}

/// Sorts the causes of a failure, and the message that repeats them: the real server lists them as its hash maps do.
fn sort_causes(status: &mut Map<String, Value>) {
    fn listed(causes: &[Value]) -> String {
        let text = |cause: &Value, name: &str| cause[name].as_str().unwrap_or_default().to_owned();
        let lines: Vec<_> = causes.iter().map(|cause| text(cause, "field") + ": " + &text(cause, "message")).collect();
        format!("[{}]", lines.join(", "))
    }
    let causes = status.get_mut("details").and_then(|details| details.get_mut("causes"));
    let Some(causes) = causes.and_then(Value::as_array_mut) else { return };
    let before = listed(causes);
    causes.sort_by_key(ToString::to_string);
    let after = listed(causes);
    if let Some(Value::String(message)) = status.get_mut("message") {
        *message = message.replace(&before, &after);
    }
}

fn instant(found: &Captures<'_>) -> String {
    let near = found[0].parse::<Timestamp>().is_ok_and(|at| Timestamp::now().duration_since(at).abs() < NEAR);
    match (near, found.get(1)) {
        (false, _) => found[0].to_owned(),
        (true, None) => "<now>".to_owned(),
        (true, Some(fraction)) => format!("<now, {} digits>", fraction.len() - 1),
    }
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the pattern is a literal of this file")
}
