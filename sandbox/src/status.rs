//! Errors as the API server words them.
//!
//! Clients branch on the code and the reason, people read the message, and `kubectl edit` shows the causes: all three are
//! copied from a real API server. What the sandbox lacks is refused by [`Failure::lacks`], which names the feature.

use serde_json::{Value, json};

use crate::{
    builtin,
    resource::{Resource, Verb},
};

/// One violated rule, one field.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Cause {
    pub(crate) reason: &'static str,
    pub(crate) field: String,
    pub(crate) message: String,
}

impl Cause {
    pub(crate) fn new(reason: &'static str, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason, field: field.into(), message: message.into() }
    }

    /// `Invalid value: VALUE: TEXT`.
    pub(crate) fn invalid(field: impl Into<String>, value: &Value, text: impl std::fmt::Display) -> Self {
        Self::new("FieldValueInvalid", field, format!("Invalid value: {value}: {text}"))
    }

    pub(crate) fn required(field: impl Into<String>) -> Self {
        Self::new("FieldValueRequired", field, "Required value")
    }

    pub(crate) fn forbidden(field: impl Into<String>, text: impl std::fmt::Display) -> Self {
        Self::new("FieldValueForbidden", field, format!("Forbidden: {text}"))
    }
}

/// A refused request.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    pub(crate) code: u16,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) details: Option<Value>,
    pub(crate) retry_after: Option<u32>,
}

impl Failure {
    pub(crate) fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None, retry_after: None }
    }

    fn with(mut self, details: Value) -> Self {
        self.details = Some(details);
        self
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// An error that the API server passes through as it came, without a reason.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "", message)
    }

    pub(crate) fn not_found(resource: &Resource, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{} \"{name}\" not found", resource.qualified())).with(details(
            resource,
            name,
            &resource.plural,
        ))
    }

    /// A path that no resource answers to.
    pub(crate) fn no_such_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource").with(json!({}))
    }

    pub(crate) fn already_exists(resource: &Resource, name: &str, terminating: bool) -> Self {
        let prefix = if terminating { "object is being deleted: " } else { "" };
        Self::new(409, "AlreadyExists", format!("{prefix}{} \"{name}\" already exists", resource.qualified()))
            .with(details(resource, name, &resource.plural))
    }

    pub(crate) fn conflict(resource: &Resource, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", resource.qualified());
        Self::new(409, "Conflict", message).with(details(resource, name, &resource.plural))
    }

    /// The resourceVersion that the client read is no longer the current one.
    pub(crate) fn modified(resource: &Resource, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(resource, name, why)
    }

    /// A precondition of DELETE; the API server names the kind here, not the resource.
    pub(crate) fn delete_precondition(resource: &Resource, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", resource.qualified_kind());
        Self::new(409, "Conflict", message).with(details(resource, name, &resource.kind))
    }

    pub(crate) fn invalid(resource: &Resource, name: &str, causes: &[Cause]) -> Self {
        let message = format!("{} \"{name}\" is invalid: {}", resource.qualified_kind(), joined(causes));
        let mut details = details(resource, name, &resource.kind);
        if builtin::is_event(resource) {
            // Both groups' Events are one type inside the API server, and the errors of that type name no group.
            details.as_object_mut().map(|details| details.remove("group"));
        }
        details["causes"] = cause_list(causes);
        Self::new(422, "Invalid", message).with(details)
    }

    /// An update without the resourceVersion that its kind demands.
    pub(crate) fn unversioned(resource: &Resource, name: &str) -> Self {
        let causes = [Cause::invalid("metadata.resourceVersion", &json!(0), "must be specified for an update")];
        let message = format!("{} \"{name}\" is invalid: {}", resource.qualified(), joined(&causes));
        let mut details = details(resource, name, &resource.plural);
        details["causes"] = cause_list(&causes);
        Self::new(422, "Invalid", message).with(details)
    }

    /// Invalid without an object: what a patch under `fieldValidation=Strict` gets.
    pub(crate) fn invalid_patch(causes: &[Cause]) -> Self {
        Self::new(422, "Invalid", format!(" \"\" is invalid: {}", joined(causes)))
            .with(json!({ "causes": cause_list(causes) }))
    }

    /// A JSON Patch that cannot be applied: a failed `test`, a missing path, an unknown operation.
    pub(crate) fn unpatchable() -> Self {
        Self::new(422, "Invalid", "the server rejected our request due to an error in our request").with(json!({}))
    }

    /// A query option with a value that is not allowed. `options` is `ListOptions`, `PatchOptions` and so on.
    pub(crate) fn bad_option(options: &str, causes: &[Cause]) -> Self {
        let message = format!("{options}.meta.k8s.io \"\" is invalid: {}", joined(causes));
        Self::new(422, "Invalid", message)
            .with(json!({ "group": "meta.k8s.io", "kind": options, "causes": cause_list(causes) }))
    }

    /// A feature of the API server that the sandbox does not have.
    pub(crate) fn lacks(options: &str, feature: &str) -> Self {
        Self::bad_option(options, &[Cause::forbidden(feature, format!("the sandbox does not support {feature}"))])
    }

    pub(crate) fn forbidden(resource: &Resource, name: &str, why: &str) -> Self {
        let (subject, details) = if name.is_empty() {
            (resource.qualified(), json!({ "group": resource.group, "kind": resource.plural }))
        } else {
            (format!("{} \"{name}\"", resource.qualified()), details(resource, name, &resource.plural))
        };
        Self::new(403, "Forbidden", format!("{subject} is forbidden: {why}")).with(without_empty(details))
    }

    pub(crate) fn namespace_terminating(resource: &Resource, name: &str, namespace: &str) -> Self {
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        let mut failure = Self::forbidden(resource, name, &why);
        if let Some(details) = &mut failure.details {
            let message = format!("namespace {namespace} is being terminated");
            details["causes"] = cause_list(&[Cause::new("NamespaceTerminating", "metadata.namespace", message)]);
        }
        failure
    }

    pub(crate) fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// A method that a path does not know, whatever it is about.
    pub(crate) fn method_not_served() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
            .with(json!({}))
    }

    pub(crate) fn method_not_allowed(resource: &Resource, verb: &str) -> Self {
        if resource.custom {
            let message = format!("{verb} is not supported on resources of kind \"{}\"", resource.qualified());
            return Self::new(405, "MethodNotAllowed", message)
                .with(json!({ "group": resource.group, "kind": resource.plural }));
        }
        Self::method_not_served()
    }

    pub(crate) fn not_acceptable(types: &str) -> Self {
        Self::new(406, "NotAcceptable", format!("only the following media types are accepted: {types}"))
    }

    pub(crate) fn unsupported_media_type(accepted: &str) -> Self {
        let message =
            format!("the body of the request was in an unknown format - accepted media types include: {accepted}");
        Self::new(415, "UnsupportedMediaType", message)
    }

    pub(crate) fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    pub(crate) fn future_version(asked: u64, current: u64) -> Self {
        let message = format!("Timeout: Too large resource version: {asked}, current: {current}");
        let causes = [Cause::new("ResourceVersionTooLarge", "", "Too large resource version")];
        let mut failure =
            Self::new(504, "Timeout", message).with(json!({ "causes": cause_list(&causes), "retryAfterSeconds": 1 }));
        failure.retry_after = Some(1);
        failure
    }

    /// A request that no role of the caller grants, in the words of the API server's authorization. `name` is that of the
    /// object, or the one that the field selector of a list or watch names; `resource` is not qualified and may have a
    /// subresource.
    pub(crate) fn not_granted(
        kind: &Resource,
        verb: Verb,
        resource: &str,
        namespace: Option<&str>,
        name: &str,
    ) -> Self {
        let place = namespace
            .map_or_else(|| "at the cluster scope".to_owned(), |namespace| format!("in the namespace \"{namespace}\""));
        let why = format!(
            "User \"sandbox\" cannot {} resource \"{resource}\" in API group \"{}\" {place}",
            verb.as_str(),
            kind.group
        );
        Self::forbidden(kind, name, &why)
    }

    /// What a fault rule answers with: the reason and the message that go with `code`. A 403 is `not_granted`.
    pub(crate) fn refused(code: u16, retry_after: Option<u32>, not_granted: impl FnOnce() -> Self) -> Self {
        let mut failure = match code {
            401 => Self::unauthorized(),
            403 => not_granted(),
            404 => Self::no_such_path(),
            409 => Self::new(409, "Conflict", "Operation cannot be fulfilled: refused by a fault rule"),
            410 => Self::expired("The provided resource version is too old."),
            429 => Self::new(429, "TooManyRequests", "Too many requests, please try again later."),
            500 => Self::new(500, "InternalError", "Internal error occurred: refused by a fault rule"),
            503 => Self::new(503, "ServiceUnavailable", "the server is currently unable to handle the request"),
            504 => Self::new(504, "Timeout", "Timeout: request did not complete within the allotted timeout"),
            code => Self::new(code, "", format!("refused by a fault rule with code {code}")),
        };
        if let Some(seconds) = retry_after {
            failure.retry_after = Some(seconds);
            let details = failure.details.get_or_insert_with(|| json!({}));
            details["retryAfterSeconds"] = json!(seconds);
        }
        failure
    }

    /// The Status object.
    pub(crate) fn body(&self) -> Value {
        let mut body = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code,
        });
        if !self.reason.is_empty() {
            body["reason"] = json!(self.reason);
        }
        if let Some(details) = &self.details {
            body["details"] = details.clone();
        }
        body
    }
}

/// The Status that answers a DELETE which removed the object.
pub(crate) fn deleted(resource: &Resource, name: &str, uid: &Value) -> Value {
    let mut details = details(resource, name, &resource.plural);
    details["uid"] = uid.clone();
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details })
}

fn details(resource: &Resource, name: &str, kind: &str) -> Value {
    without_empty(json!({ "name": name, "group": resource.group, "kind": kind }))
}

fn without_empty(mut details: Value) -> Value {
    if let Some(map) = details.as_object_mut() {
        map.retain(|_, value| value != "");
    }
    details
}

/// The causes in a line; one that is listed twice is said once.
fn joined(causes: &[Cause]) -> String {
    let mut all: Vec<String> = Vec::new();
    for cause in causes {
        let text = format!("{}: {}", cause.field, cause.message);
        if !all.contains(&text) {
            all.push(text);
        }
    }
    if let [one] = &all[..] { one.clone() } else { format!("[{}]", all.join(", ")) }
}

fn cause_list(causes: &[Cause]) -> Value {
    causes
        .iter()
        .map(|cause| {
            let mut entry = json!({ "reason": cause.reason, "message": cause.message });
            if !cause.field.is_empty() {
                entry["field"] = json!(cause.field);
            }
            entry
        })
        .collect()
}
