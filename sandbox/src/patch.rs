//! JSON Patch and JSON Merge Patch.
//!
//! A strategic merge patch of a built-in kind is taken as a merge patch, because `kubectl apply` sends it for them; on a
//! custom resource it is refused, as the API server does. There is no server-side apply.

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
                return Err(Failure::bad_request("error decoding patch: a merge patch is a JSON object"));
            }
            json_patch::merge(&mut patched, &patch);
        }
        Kind::Json => {
            let count = patch.as_array().map_or(0, Vec::len);
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
            let patch: json_patch::Patch = serde_json::from_value(patch).map_err(|_| Failure::unpatchable())?;
            json_patch::patch(&mut patched, &patch).map_err(|_| Failure::unpatchable())?;
        }
    }
    Ok(patched)
}
