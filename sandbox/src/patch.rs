//! JSON Patch and JSON Merge Patch.
//!
//! A strategic merge patch of a built-in kind is taken as a merge patch, because `kubectl apply` sends it for them; on a
//! custom resource it is refused, as the API server does. There is no server-side apply.

use json_patch::{AddOperation, Patch, PatchOperation};
use serde_json::Value;

use crate::{resource::Resource, status::Failure};

/// The most operations in one JSON Patch, as on the API server.
const MAX_OPERATIONS: usize = 10_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Json,
    Merge,
}

impl Kind {
    pub(crate) fn of(resource: &Resource, content_type: &str) -> Result<Self, Failure> {
        const CUSTOM: &str = "application/json-patch+json, application/merge-patch+json";
        const CORE: &str =
            "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json";
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Ok(Self::Json),
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/strategic-merge-patch+json" if !resource.custom => Ok(Self::Merge),
            "application/apply-patch+yaml" => Err(Failure::unsupported_media_type(&format!(
                "{}; the sandbox does not support application/apply-patch+yaml (server-side apply)",
                if resource.custom { CUSTOM } else { CORE }
            ))),
            _ => Err(Failure::unsupported_media_type(if resource.custom { CUSTOM } else { CORE })),
        }
    }
}

/// The document after the patch.
pub(crate) fn apply(kind: Kind, document: &Value, body: &[u8]) -> Result<Value, Failure> {
    let undecodable = |error: &serde_json::Error| {
        let why = if error.is_eof() { "unexpected end of JSON input".to_owned() } else { error.to_string() };
        Failure::bad_request(format!("error decoding patch: {why}"))
    };
    let patch: Value = serde_json::from_slice(body).map_err(|error| undecodable(&error))?;
    let mut patched = document.clone();
    match kind {
        Kind::Merge => {
            if !patch.is_object() {
                return Err(mistyped(&patch, "map[string]interface {}"));
            }
            json_patch::merge(&mut patched, &patch);
        }
        Kind::Json => {
            let Some(count) = patch.as_array().map(Vec::len) else {
                return Err(mistyped(&patch, "[]handlers.jsonPatchOp"));
            };
            if count > MAX_OPERATIONS {
                return Err(Failure::new(
                    413,
                    "RequestEntityTooLarge",
                    format!(
                        "Request entity too large: The allowed maximum operations in a JSON patch is \
                         {MAX_OPERATIONS}, got {count}"
                    ),
                ));
            }
            let Patch(operations) = serde_json::from_value(patch).map_err(|_| Failure::unpatchable())?;
            for operation in operations {
                operate(&mut patched, operation)?;
            }
        }
    }
    Ok(patched)
}

/// One operation, with the two liberties that the API server's library takes and RFC 6902 does not: an absent member
/// equals null, and replacing it adds it. Both end at the member: what lies below an absent one is an error.
fn operate(document: &mut Value, operation: PatchOperation) -> Result<(), Failure> {
    let absent = match operation.path().split_back() {
        Some((parent, member)) => {
            let parent = document.pointer(parent.as_str()).and_then(Value::as_object);
            parent.is_some_and(|fields| !fields.contains_key(member.decoded().as_ref()))
        }
        None => false,
    };
    let operation = match operation {
        PatchOperation::Test(test) if absent && test.value.is_null() => return Ok(()),
        PatchOperation::Replace(replace) if absent => {
            PatchOperation::Add(AddOperation { path: replace.path, value: replace.value })
        }
        other => other,
    };
    json_patch::patch(document, &[operation]).map_err(|_| Failure::unpatchable())
}

/// A patch that is JSON, but not of the shape that its media type says.
fn mistyped(patch: &Value, wanted: &str) -> Failure {
    let found = match patch {
        Value::Object(_) => "object",
        Value::Array(_) => "array",
        Value::String(_) => "string",
        Value::Number(_) => "number",
        Value::Bool(_) | Value::Null => "bool",
    };
    Failure::bad_request(format!("error decoding patch: json: cannot unmarshal {found} into Go value of type {wanted}"))
}
