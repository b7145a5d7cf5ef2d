//! Query options: what they mean, and which of them the sandbox refuses.
//!
//! `limit`, `fieldManager`, `force` on its own, `timeout` and `propagationPolicy=Background` are accepted without effect.
//! Everything that would change an answer and is not built is refused by name, never ignored.

use std::collections::BTreeMap;

use axum::extract::Query;
use http::Uri;
use serde_json::{Value, json};

use crate::status::{Cause, Failure};

/// What becomes of fields that the schema does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum FieldValidation {
    /// Dropped in silence.
    Ignore,
    /// Dropped, each with a warning.
    #[default]
    Warn,
    /// The request is refused.
    Strict,
}

/// The options of a request, by name. The last of several values counts, as it does on the API server.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options(BTreeMap<String, String>);

impl Options {
    /// Reads a query string; empty pairs (`?&limit=5`) are skipped.
    pub(crate) fn parse(uri: &Uri) -> Result<Self, Failure> {
        let pairs = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|error| Failure::bad_request(format!("the query string cannot be read: {error}")))?;
        Ok(Self(pairs.0.into_iter().collect()))
    }

    /// A value; an empty one counts as absent.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        matches!(self.0.get(name).map(String::as_str), Some("true" | "1" | "True" | "t"))
    }

    /// What both lists and watches are asked with.
    pub(crate) fn check_list(&self) -> Result<(), Failure> {
        for feature in ["continue"] {
            if self.get(feature).is_some() {
                return Err(Failure::lacks("ListOptions", feature));
            }
        }
        if let Some(limit) = self.get("limit")
            && limit.parse::<i64>().is_err()
        {
            return Err(Failure::bad_request(format!("strconv.ParseInt: parsing {}: invalid syntax", json!(limit))));
        }
        let watch = self.flag("watch");
        let initial = self.get("sendInitialEvents").is_some();
        let matching = self.get("resourceVersionMatch");
        let mut causes = Vec::new();
        let mut forbid = |field: &str, text: &str| causes.push(Cause::forbidden(field, text));
        match matching {
            Some("Exact" | "NotOlderThan") | None => {}
            Some(other) => {
                let supported = "supported values: \"Exact\", \"NotOlderThan\", \"\"";
                let message = format!("Unsupported value: {}: {supported}", json!(other));
                let cause = Cause::new("FieldValueNotSupported", "resourceVersionMatch", message);
                return Err(Failure::bad_option("ListOptions", &[cause]));
            }
        }
        if matching.is_some() && !watch && self.get("resourceVersion").is_none() {
            forbid("resourceVersionMatch", "resourceVersionMatch is forbidden unless resourceVersion is provided");
        } else if matching == Some("Exact") && !watch {
            return Err(Failure::lacks("ListOptions", "resourceVersionMatch=Exact"));
        }
        match (watch, initial) {
            (false, true) => forbid("sendInitialEvents", "sendInitialEvents is forbidden for list"),
            (true, true) if matching == Some("NotOlderThan") => forbid(
                "sendInitialEvents",
                "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
            ),
            (true, true) => forbid(
                "resourceVersionMatch",
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ),
            (true, false) if matching.is_some() => forbid(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ),
            (_, false) => {}
        }
        if causes.is_empty() { Ok(()) } else { Err(Failure::bad_option("ListOptions", &causes)) }
    }

    /// What every write is asked with. `options` is the name of the option type, for the message.
    pub(crate) fn check_write(&self, options: &str) -> Result<FieldValidation, Failure> {
        if self.get("dryRun").is_some() && options != "CreateOptions" {
            return Err(Failure::lacks(options, "dryRun"));
        }
        match self.get("fieldValidation") {
            None | Some("Warn") => Ok(FieldValidation::Warn),
            Some("Ignore") => Ok(FieldValidation::Ignore),
            Some("Strict") => Ok(FieldValidation::Strict),
            Some(other) => {
                let message = format!(
                    "Unsupported value: {}: supported values: \"\", \"Ignore\", \"Strict\", \"Warn\"",
                    json!(other)
                );
                Err(Failure::bad_option(options, &[Cause::new("FieldValueNotSupported", "fieldValidation", message)]))
            }
        }
    }

    /// Whether a creation is only tried: everything is checked, and nothing is stored.
    pub(crate) fn dry_run(&self) -> Result<bool, Failure> {
        match self.get("dryRun") {
            None => Ok(false),
            Some("All") => Ok(true),
            Some(other) => {
                // It is a list there.
                let message = format!("Unsupported value: {}: supported values: \"All\"", json!([other]));
                let cause = Cause::new("FieldValueNotSupported", "dryRun", message);
                Err(Failure::bad_option("CreateOptions", &[cause]))
            }
        }
    }

    /// The version that a read must not be older than. `None` for any.
    pub(crate) fn version(&self) -> Result<Option<u64>, Failure> {
        let unreadable = |text: &str| {
            let quoted = json!(text);
            Failure::internal(format!(
                "resourceVersion: Invalid value: {quoted}: strconv.ParseUint: parsing {quoted}: invalid syntax"
            ))
        };
        self.get("resourceVersion").map(|text| text.parse().map_err(|_| unreadable(text))).transpose()
    }
}

/// The body of a DELETE, and the same options in its query.
#[derive(Debug, Default)]
pub(crate) struct DeleteOptions {
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
    /// The object stays, with a finalizer, until a garbage collector has removed what it owns.
    pub(crate) foreground: bool,
}

impl DeleteOptions {
    pub(crate) fn parse(options: &Options, body: &[u8]) -> Result<Self, Failure> {
        let body: Value = if body.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(body)
                .map_err(|error| Failure::bad_request(format!("the DeleteOptions cannot be read: {error}")))?
        };
        let dry = body["dryRun"].as_array().is_some_and(|values| !values.is_empty());
        if dry || options.get("dryRun").is_some() {
            return Err(Failure::lacks("DeleteOptions", "dryRun"));
        }
        let policy = body["propagationPolicy"].as_str().or(options.get("propagationPolicy"));
        match policy {
            None | Some("Background" | "Foreground") => {}
            Some(known @ "Orphan") => {
                return Err(Failure::lacks("DeleteOptions", &format!("propagationPolicy={known}")));
            }
            Some(other) => {
                let message = format!(
                    "Unsupported value: {}: supported values: \"Background\", \"Foreground\", \"Orphan\", \"nil\"",
                    json!(other)
                );
                let cause = Cause::new("FieldValueNotSupported", "propagationPolicy", message);
                return Err(Failure::bad_option("DeleteOptions", &[cause]));
            }
        }
        let precondition = |name: &str| body["preconditions"][name].as_str().map(str::to_owned);
        Ok(Self {
            uid: precondition("uid"),
            resource_version: precondition("resourceVersion"),
            foreground: policy == Some("Foreground"),
        })
    }
}
