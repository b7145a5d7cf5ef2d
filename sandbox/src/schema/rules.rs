//! The CEL rules of a schema, evaluated by `kube-cel` and told in the API server's words.

use std::cell::OnceCell;

use kube_cel::{CompiledSchema, ErrorKind, ValidationError, Validator};
use serde_json::Value;

use super::Schema;
use crate::status::Cause;

thread_local! {
    /// A validator registers some hundred functions when it is made, so each thread makes one.
    static VALIDATOR: OnceCell<Validator> = const { OnceCell::new() };
}

pub(super) fn check(schema: &Schema, compiled: &CompiledSchema, new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let errors =
        VALIDATOR.with(|validator| validator.get_or_init(Validator::new).validate_compiled(compiled, new, old).err());
    let errors = errors.map(kube_cel::ValidationErrors::into_vec).unwrap_or_default();
    errors.iter().filter_map(|error| cause(schema, error, new, old)).collect()
}

/// `None` if the rule speaks of a value that this update did not touch.
fn cause(schema: &Schema, error: &ValidationError, new: &Value, old: Option<&Value>) -> Option<Cause> {
    let steps = steps(&error.field_path);
    // `fieldPath` moves the error below the value that the rule is about: look upwards for the rule itself.
    let depth = (0..=steps.len()).rev().find(|depth| {
        let node = steps[..*depth].iter().try_fold(&schema.document, |node, step| child(node, step));
        let rules = node.map(|node| node["x-kubernetes-validations"].as_array().into_iter().flatten());
        rules.into_iter().flatten().any(|rule| rule["rule"] == error.rule.as_str())
    });
    let value = depth.and_then(|depth| at(new, &steps[..depth]));
    let before = depth.and_then(|depth| at(old?, &steps[..depth]));
    let about_transitions = error.rule.contains("oldSelf");
    if !about_transitions && value.is_some() && value == before {
        return None;
    }
    let field = if error.field_path.is_empty() { "<nil>" } else { &error.field_path };
    let node = steps[..depth.unwrap_or(0)].iter().try_fold(&schema.document, |node, step| child(node, step));
    if error.kind == ErrorKind::EvaluationError {
        // The API server shows the type where the value would stand.
        let kind = node.map_or(&Value::Null, |node| &node["type"]);
        return Some(Cause::invalid(field, kind, failed_rule(node, error)));
    }
    // A whole object or list would fill the message, so only single values are shown.
    let shown = value.filter(|value| !value.is_object() && !value.is_array());
    let text = &error.message;
    let value_text = shown.map(|value| format!("{value}: ")).unwrap_or_default();
    Some(match error.reason.as_deref() {
        Some("FieldValueForbidden") => Cause::forbidden(field, text),
        Some("FieldValueRequired") => Cause::new("FieldValueRequired", field, format!("Required value: {text}")),
        Some("FieldValueDuplicate") => {
            let shown = shown.map(ToString::to_string).unwrap_or_default();
            Cause::new("FieldValueDuplicate", field, format!("Duplicate value: {shown}"))
        }
        _ => Cause::new("FieldValueInvalid", field, format!("Invalid value: {value_text}{text}")),
    })
}

/// A rule that could not be evaluated is told with the reason, in the API server's words where they are known.
fn failed_rule(node: Option<&Value>, error: &ValidationError) -> String {
    let rules = node.and_then(|node| node["x-kubernetes-validations"].as_array());
    let rule = rules.into_iter().flatten().find(|rule| rule["rule"] == error.rule.as_str());
    let name = rule.and_then(|rule| rule["message"].as_str()).unwrap_or(&error.rule);
    let reason = ["Duration", "Timestamp"].into_iter().find_map(|kind| {
        let function = format!("function '{}'", kind.to_lowercase());
        let wording = format!("type conversion error from 'string' to 'google.protobuf.{kind}'");
        error.message.contains(&function).then_some(wording)
    });
    let reason = reason.unwrap_or_else(|| error.message.replacen("rule evaluation error: ", "", 1));
    format!("{reason} evaluating rule: {name}")
}

/// `spec.parts[0].name` as its steps.
fn steps(path: &str) -> Vec<String> {
    let path = path.replace('[', ".").replace(']', "");
    path.split('.').filter(|step| !step.is_empty()).map(str::to_owned).collect()
}

fn child<'a>(schema: &'a Value, step: &str) -> Option<&'a Value> {
    let additional = schema.get("additionalProperties").filter(|child| child.is_object());
    schema["properties"].get(step).or(additional).or_else(|| schema.get("items"))
}

fn at<'a>(object: &'a Value, steps: &[String]) -> Option<&'a Value> {
    steps.iter().try_fold(object, |value, step| match value {
        Value::Array(items) => items.get(step.parse::<usize>().ok()?),
        other => other.get(step),
    })
}
