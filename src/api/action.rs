//! What a run does, as it is written in a manifest: the fields of `spec.http`, and `spec.jobTemplate` as a whole.
//!
//! Types only. The schema says as much as a schema can (bounds, patterns, CEL rules with messages); what it cannot say
//! (that a URL parses, that a placeholder is known) is checked by [`crate::action`] before the first byte leaves.

use std::borrow::Cow;

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// An HTTP request, sent once per attempt. Redirects are not followed: a 3xx is an answer like any other.
///
/// Every request carries `Idempotency-Key` (the run id, the same over retries and failovers), `Tenure-Token`,
/// `Tenure-Slot`, `Tenure-Attempt` and `Tenure-Job`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(has(self.body) && has(self.bodyTemplate))")
        .message("set body (sent as it is) or bodyTemplate (with placeholders), not both"),
    validation = Rule::new("!(has(self.method) && self.method in ['GET', 'HEAD']) || !(has(self.body) || has(self.bodyTemplate))")
        .message("a GET or HEAD request has no body: remove body or bodyTemplate, or use another method"),
    validation = Rule::new("!has(self.tls) || self.url.startsWith('https://')")
        .message("tls needs a url that begins with https://")
)]
pub struct HttpAction {
    /// The request method.
    #[serde(default)]
    pub method: HttpMethod,

    /// Where the request goes: http:// or https://, a host, and optionally a port, path and query. A user name or password
    /// is refused here (use `auth`), and so is a fragment. Loopback, link-local and metadata addresses are refused when the
    /// request is made, unless the replica allows them by `--egress-allow`.
    #[schemars(length(min = 8, max = 2048), regex(pattern = r"^https?://[^\s/?#@\\]+([/?][^\s#]*)?$"))]
    pub url: String,

    /// Further request headers. The headers of Tenure's own contract, and those that belong to the connection, cannot be
    /// set. Nothing is added: give `Content-Type` for a body whose receiver asks for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub headers: Vec<HttpHeader>,

    /// The request body, sent exactly as it is written. At most 64 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    pub body: Option<String>,

    /// The request body with placeholders: `${RUN_ID}`, `${RUN_SLOT}` (RFC 3339), `${RUN_ATTEMPT}`, `${JOB_NAME}` and
    /// `${JOB_NAMESPACE}` are replaced, `$${` stands for `${`, and any other `${…}` is an error. At most 64 KiB, before
    /// and after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    pub body_template: Option<String>,

    /// Credentials, from a Secret in the job's own namespace. They are read for each attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<HttpAuth>,

    /// The status codes that mean success: single ones ("204") or ranges ("200-299").
    #[serde(default = "default_expected_status")]
    #[schemars(
        length(min = 1, max = 16),
        inner(length(max = 7), regex(pattern = r"^[2-5][0-9][0-9](-[2-5][0-9][0-9])?$"))
    )]
    pub expected_status: Vec<String>,

    /// How the server's certificate is checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<HttpTls>,
}

/// A request method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs, reason = "each is the method of its name, and text on one would make it a schema of its own")]
pub enum HttpMethod {
    Get,
    Head,
    #[default]
    Post,
    Put,
    Patch,
    Delete,
}

/// One request header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.value) != has(self.valueFrom)")
        .message("a header has either value or valueFrom"),
    validation = Rule::new(
        "!self.name.matches('(?i)^(idempotency-key|tenure-.*|host|content-length|transfer-encoding|connection|keep-alive|proxy-connection|te|trailer|upgrade|expect)$')"
    )
    .message(
        "this header is set by Tenure or belongs to the connection: Idempotency-Key, Tenure-*, Host, Content-Length, Transfer-Encoding, Connection, Keep-Alive, Proxy-Connection, TE, Trailer, Upgrade and Expect cannot be given"
    )
)]
pub struct HttpHeader {
    /// The header's name.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"))]
    pub name: String,

    /// The header's value. It is stored and shown in the clear: use `valueFrom` for a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub value: Option<String>,

    /// Where the header's value is read from, for each attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<ValueFrom>,
}

/// Where a value is read from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ValueFrom {
    /// A key of a Secret in the job's own namespace.
    pub secret_key_ref: SecretKeyRef,
}

/// A key of a Secret in the job's own namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,

    /// The key within the Secret's data.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// Credentials: exactly one kind.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.bearer) != has(self.basic)").message("auth has exactly one of bearer and basic")
)]
pub struct HttpAuth {
    /// A token, sent as `Authorization: Bearer …`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bearer: Option<ValueFrom>,

    /// A user name and password, sent as `Authorization: Basic …`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basic: Option<BasicAuth>,
}

/// A user name and password.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BasicAuth {
    /// The key that holds the user name.
    pub username: ValueFrom,

    /// The key that holds the password.
    pub password: ValueFrom,
}

/// How the server's certificate is checked.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.ca) != has(self.caFrom)").message("tls has exactly one of ca and caFrom")
)]
pub struct HttpTls {
    /// The certificates, in PEM, of the authorities that may vouch for the server; the system's are then not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32768))]
    pub ca: Option<String>,

    /// The same, read from a Secret for each attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_from: Option<ValueFrom>,
}

/// A `JobTemplateSpec` of batch/v1, kept exactly as it is written. It has no schema of its own: the API server's would make
/// the definition larger than a client-side apply can store, and would refuse the fields of later versions. The API server
/// itself is asked whether it is valid, by a creation that is only tried.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobTemplate(pub Map<String, Value>);

impl JsonSchema for JobTemplate {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "JobTemplate".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
    }
}

/// A body may be this long, in bytes: it is stored in the object, and objects are read by every replica.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

fn default_expected_status() -> Vec<String> {
    vec!["200-299".to_owned()]
}

impl HttpMethod {
    /// The method as it is written on the wire.
    pub fn as_http(self) -> http::Method {
        match self {
            Self::Get => http::Method::GET,
            Self::Head => http::Method::HEAD,
            Self::Post => http::Method::POST,
            Self::Put => http::Method::PUT,
            Self::Patch => http::Method::PATCH,
            Self::Delete => http::Method::DELETE,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_left_out_has_the_documented_default() {
        let action: HttpAction = serde_json::from_value(json!({ "url": "https://example.com" })).expect("it is valid");
        assert_eq!(action.method, HttpMethod::Post);
        assert_eq!(action.expected_status, ["200-299"]);
    }

    #[test]
    fn an_action_is_written_as_it_was_read() {
        let written = json!({
            "method": "PUT",
            "url": "https://example.com/a?b=c",
            "headers": [
                { "name": "X-One", "value": "1" },
                { "name": "X-Two", "valueFrom": { "secretKeyRef": { "name": "s", "key": "k" } } },
            ],
            "bodyTemplate": "{\"run\": \"${RUN_ID}\"}",
            "auth": { "bearer": { "secretKeyRef": { "name": "s", "key": "k" } } },
            "expectedStatus": ["200-299", "404"],
            "tls": { "caFrom": { "secretKeyRef": { "name": "s", "key": "ca.crt" } } },
        });
        let action: HttpAction = serde_json::from_value(written.clone()).expect("it is valid");
        assert_eq!(serde_json::to_value(&action).expect("it can be written"), written);
    }

    #[test]
    fn the_schema_carries_the_bounds_and_the_rules() {
        let schema = serde_json::to_value(schemars::schema_for!(HttpAction)).expect("a schema is JSON");
        assert_eq!(schema["properties"]["url"]["maxLength"], 2048);
        assert_eq!(schema["properties"]["expectedStatus"]["default"], json!(["200-299"]));
        assert_eq!(schema["x-kubernetes-validations"].as_array().map(Vec::len), Some(3), "{schema:#}");
    }
}
