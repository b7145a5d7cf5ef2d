//! Label and field selectors.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{builtin, options::Options, resource::Resource, status::Failure};

/// Which objects a list, a watch or a deletion is about.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<FieldRequirement>,
}

#[derive(Debug, Clone)]
struct Requirement {
    key: String,
    /// The values that fit; without them the key's presence decides.
    values: Option<BTreeSet<String>>,
    negated: bool,
}

#[derive(Debug, Clone)]
struct FieldRequirement {
    path: String,
    value: String,
    negated: bool,
}

impl Selector {
    pub(crate) fn parse(resource: &Resource, options: &Options) -> Result<Self, Failure> {
        let labels = options.get("labelSelector").map(parse_labels).transpose()?.unwrap_or_default();
        let fields = options.get("fieldSelector").map(|text| parse_fields(resource, text)).transpose()?;
        Ok(Self { labels, fields: fields.unwrap_or_default() })
    }

    /// The object's name if the selector allows only one.
    pub(crate) fn name(&self) -> Option<&str> {
        let by_name = |field: &&FieldRequirement| field.path == "metadata.name" && !field.negated;
        self.fields.iter().find(by_name).map(|field| field.value.as_str())
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        self.labels.iter().all(|requirement| requirement.matches(&object["metadata"]["labels"]))
            && self.fields.iter().all(|field| (field_value(object, &field.path) == field.value) != field.negated)
    }
}

impl Requirement {
    fn matches(&self, labels: &Value) -> bool {
        let fits = match (labels[&self.key].as_str(), &self.values) {
            (present, None) => present.is_some(),
            (Some(value), Some(values)) => values.contains(value),
            (None, Some(_)) => false,
        };
        fits != self.negated
    }
}

fn field_value(object: &Value, path: &str) -> String {
    let value = path.split('.').fold(object, |value, step| &value[step]);
    value.as_str().map_or_else(|| if value.is_null() { String::new() } else { value.to_string() }, str::to_owned)
}

fn parse_fields(resource: &Resource, text: &str) -> Result<Vec<FieldRequirement>, Failure> {
    let parse = |term: &str| {
        let (path, value, negated) = if let Some((path, value)) = term.split_once("!=") {
            (path, value, true)
        } else if let Some((path, value)) = term.split_once('=') {
            (path, value.strip_prefix('=').unwrap_or(value), false)
        } else {
            return Err(Failure::bad_request(format!("invalid selector: '{text}'; can't understand '{term}'")));
        };
        let path = builtin::stored_field(resource, path)
            .ok_or_else(|| Failure::bad_request(builtin::unknown_field(resource, path)))?;
        Ok(FieldRequirement { path, value: value.to_owned(), negated })
    };
    text.split(',').filter(|term| !term.is_empty()).map(parse).collect()
}

fn parse_labels(text: &str) -> Result<Vec<Requirement>, Failure> {
    let unreadable =
        |why: &str| Failure::bad_request(format!("unable to parse requirement: {why}: the selector is {text:?}"));
    let parse = |term: &str| {
        let term = term.trim();
        let set = |op: &str| -> Option<(String, BTreeSet<String>)> {
            let (key, rest) = term.split_once(op)?;
            let values = rest.trim().strip_prefix('(')?.strip_suffix(')')?;
            Some((key.trim().to_owned(), values.split(',').map(|value| value.trim().to_owned()).collect()))
        };
        let requirement = if let Some((key, values)) = set(" notin ") {
            Requirement { key, values: Some(values), negated: true }
        } else if let Some((key, values)) = set(" in ") {
            Requirement { key, values: Some(values), negated: false }
        } else if let Some((key, value)) = term.split_once("!=") {
            Requirement { key: key.trim().to_owned(), values: Some([value.trim().to_owned()].into()), negated: true }
        } else if let Some((key, value)) = term.split_once('=') {
            let value = value.strip_prefix('=').unwrap_or(value).trim();
            Requirement { key: key.trim().to_owned(), values: Some([value.to_owned()].into()), negated: false }
        } else if let Some(key) = term.strip_prefix('!') {
            Requirement { key: key.trim().to_owned(), values: None, negated: true }
        } else {
            Requirement { key: term.to_owned(), values: None, negated: false }
        };
        let valid = |key: &str| {
            !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/'))
        };
        if valid(&requirement.key) {
            Ok(requirement)
        } else {
            Err(unreadable(&format!("{:?} is not a label key", requirement.key)))
        }
    };
    split_outside_parentheses(text).into_iter().map(parse).collect()
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut terms) = (0_u32, 0, Vec::new());
    for (at, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                terms.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}
