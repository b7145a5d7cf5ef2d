//! What a schema does to an object: drops what it does not know, fills in defaults, and names what is wrong.
//!
//! Defaults and CEL rules are `kube-cel`'s. Pruning and validation are walkers of their own, because people and programs
//! read the result in the API server's words, which no library has; the JSON Schema keywords a CustomResourceDefinition
//! may use are few.

mod prune;
mod rules;
mod validate;

use std::collections::BTreeMap;

use kube_cel::CompiledSchema;
use regex::Regex;
use serde_json::Value;

use crate::{resource::Resource, status::Cause};

/// A schema, and what is computed from it once.
#[derive(Debug)]
pub(crate) struct Schema {
    pub(crate) document: Value,
    /// The CEL rules, if there are any.
    rules: Option<CompiledSchema>,
    patterns: BTreeMap<String, Regex>,
}

impl Schema {
    pub(crate) fn new(document: Value) -> Self {
        let mut patterns = BTreeMap::new();
        let mut has_rules = false;
        visit(&document, "", &mut |_, node| {
            has_rules |= node["x-kubernetes-validations"].is_array();
            let pattern = node["pattern"].as_str();
            if let Some((text, Ok(compiled))) = pattern.map(|text| (text, Regex::new(text))) {
                patterns.insert(text.to_owned(), compiled);
            }
        });
        let rules = has_rules.then(|| kube_cel::compile_schema(&document));
        Self { document, rules, patterns }
    }
}

/// Drops unknown fields and the nulls of fields that cannot be null; returns the API server's words for the former.
pub(crate) fn prune(resource: &Resource, object: &mut Value) -> Vec<String> {
    prune::prune(resource, object)
}

/// Fills in the defaults of the schema, those inside defaults too.
pub(crate) fn default(resource: &Resource, object: &mut Value) {
    let Some(schema) = resource.schema.as_ref().filter(|_| resource.custom) else { return };
    // One pass does not look into what it has filled in; each further pass goes one level deeper, and levels end.
    loop {
        let filled = kube_cel::apply_defaults(&schema.document, object);
        if filled == *object {
            return;
        }
        *object = filled;
    }
}

/// Adds everything that breaks a rule of the schema to the `causes` found before. What an update leaves as it was is not
/// complained about, so that an object that an older schema let in can still be changed elsewhere. An update of the
/// status is named from there.
pub(crate) fn validate(resource: &Resource, new: &Value, old: Option<&Value>, status: bool, causes: &mut Vec<Cause>) {
    /// With one of these the CEL rules are not asked: they could not rely on the types of what they read.
    const BLOCKING: [&str; 5] = [
        "FieldValueRequired",
        "FieldValueTypeInvalid",
        "FieldValueNotSupported",
        "FieldValueTooLong",
        "FieldValueTooMany",
    ];
    let Some(schema) = resource.schema.as_ref().filter(|_| resource.custom) else { return };
    causes.extend(validate::validate(schema, new, old, status));
    causes.sort_by(|a, b| (&a.field, &a.message).cmp(&(&b.field, &b.message)));
    if let Some(compiled) = &schema.rules {
        if causes.iter().any(|cause| BLOCKING.contains(&cause.reason)) {
            let text = "some validation rules were not checked because the object was invalid; correct the existing \
                        errors to complete validation";
            causes.push(Cause::invalid("<nil>", &Value::Null, text));
        } else {
            causes.extend(rules::check(schema, compiled, new, old));
        }
    }
}

/// The formats that a real API server checks and the sandbox does not.
const UNCHECKED_FORMATS: [&str; 20] = [
    "bsonobjectid",
    "uri",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "cidr",
    "mac",
    "uuid",
    "uuid3",
    "uuid4",
    "uuid5",
    "isbn",
    "isbn10",
    "isbn13",
    "creditcard",
    "ssn",
    "byte",
    "date",
    "duration",
];

/// What is wrong with the schemas of a definition, as far as they could not be enforced: a pattern or a CEL rule that
/// does not compile, a format that is not checked.
pub(crate) fn check_definition(version: usize, document: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let base = format!("spec.versions[{version}].schema.openAPIV3Schema");
    visit(document, "", &mut |path, node| {
        if let Some(Err(error)) = node["pattern"].as_str().map(Regex::new) {
            let text = format!("must be a valid regular expression, but isn't: {error}");
            causes.push(Cause::invalid(format!("{base}{path}.pattern"), &node["pattern"], text));
        }
        let format = node["format"].as_str().filter(|format| UNCHECKED_FORMATS.contains(format));
        if let Some(format) = format {
            let why = format!("the sandbox does not check the format {format}");
            causes.push(Cause::forbidden(format!("{base}{path}.format"), why));
        }
        if !node["x-kubernetes-validations"].is_array() {
            return;
        }
        // Only this node's own rules: those below are visited on their own.
        let own = serde_json::json!({ "x-kubernetes-validations": node["x-kubernetes-validations"] });
        for (index, result) in kube_cel::compile_schema(&own).validations.iter().enumerate() {
            if let Err(error) = result {
                let field = format!("{base}{path}.x-kubernetes-validations[{index}].rule");
                let rule = &node["x-kubernetes-validations"][index]["rule"];
                causes.push(Cause::invalid(field, rule, format!("compilation failed: {error}")));
            }
        }
    });
    causes
}

/// Calls `seen` with every schema in a schema, and its path.
fn visit(schema: &Value, path: &str, seen: &mut impl FnMut(&str, &Value)) {
    seen(path, schema);
    for (name, child) in schema["properties"].as_object().into_iter().flatten() {
        visit(child, &format!("{path}.properties[{name}]"), seen);
    }
    for keyword in ["items", "additionalProperties", "not"] {
        if schema[keyword].is_object() {
            visit(&schema[keyword], &format!("{path}.{keyword}"), seen);
        }
    }
    for keyword in ["allOf", "anyOf", "oneOf"] {
        for (index, child) in schema[keyword].as_array().into_iter().flatten().enumerate() {
            visit(child, &format!("{path}.{keyword}[{index}]"), seen);
        }
    }
}
