//! The conformance suite: scenarios of HTTP requests, and the answers a real API server gave to them.
//!
//! A scenario is a list of steps in a YAML file under `scenarios/`; it runs in a namespace of its own, named after it.
//! What the real server answered is kept under `recorded/`, one JSON file for each file of scenarios, brought to a form
//! in which two servers can be compared: values that differ from run to run (uids, versions, times, random names) are
//! replaced by symbols, see [`normal`]. The suite knows nothing of either server but that it is a [`kube::Client`],
//! which is a plain HTTP service here: requests are sent and answers read as they are.

pub(crate) mod compare;
pub(crate) mod normal;
pub(crate) mod play;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One file of scenarios.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    /// What the scenarios of this file are about, for its reader.
    #[serde(rename = "about")]
    _about: String,
    /// The custom resource definitions that must be served before the first step: names of files under `fixtures/`.
    #[serde(default)]
    pub(crate) fixtures: Vec<String>,
    /// Abbreviations that the steps use as `${name}`. `${ns}`, the namespace, is always there.
    #[serde(default, rename = "let")]
    pub(crate) abbreviations: BTreeMap<String, String>,
    pub(crate) scenarios: Vec<Scenario>,
}

/// Steps that are played in order, in a namespace of their own.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    /// A DNS label: the key of the recording and the name of the namespace.
    pub(crate) id: String,
    pub(crate) steps: Vec<Step>,
}

/// One request, or the frames of a watch that an earlier step opened.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Step {
    /// Method and path with query, such as `GET ${leases}/a`.
    pub(crate) request: Option<String>,
    /// The status code of the real server, so that a mistake in the scenario is noticed when it is recorded.
    pub(crate) status: Option<u16>,
    /// The body as a document; it is sent as JSON.
    pub(crate) body: Option<Value>,
    /// The body as text, for what is not JSON.
    pub(crate) raw: Option<String>,
    #[serde(rename = "type", default)]
    pub(crate) content: Content,
    pub(crate) accept: Option<String>,
    /// Names for values of the answer, each found by a JSON pointer, for later steps to use as `${name}`.
    #[serde(default)]
    pub(crate) save: BTreeMap<String, String>,
    /// The answer is a watch: it stays open under this name.
    pub(crate) open: Option<String>,
    /// The request is repeated until the status is the expected one: for what a server does in its own time.
    #[serde(default)]
    pub(crate) wait: bool,
    /// Read from the watch of this name...
    pub(crate) frames: Option<String>,
    /// ...this many frames; or, where it is left out, all until the server ends the stream.
    pub(crate) count: Option<usize>,
}

/// The media type of a request's body.
#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Content {
    #[default]
    Json,
    /// JSON Patch, RFC 6902.
    Patch,
    /// JSON Merge Patch, RFC 7386.
    Merge,
    /// The strategic merge of the built-in kinds.
    Strategic,
    /// Server-side apply.
    Apply,
    /// An object in YAML.
    Yaml,
    /// A type that no API server takes.
    Text,
}

impl Content {
    pub(crate) const fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Patch => "application/json-patch+json",
            Self::Merge => "application/merge-patch+json",
            Self::Strategic => "application/strategic-merge-patch+json",
            Self::Apply => "application/apply-patch+yaml",
            Self::Yaml => "application/yaml",
            Self::Text => "text/plain",
        }
    }
}

/// What a server answered to one file of scenarios: for each scenario, one answer for each step.
#[derive(Debug, Default, Serialize, Deserialize, PartialEq)]
pub(crate) struct Recording {
    /// The version that the recorded server gave itself.
    pub(crate) server: String,
    pub(crate) scenarios: BTreeMap<String, Vec<Value>>,
}

/// Why the suite could not be played. A disagreement between servers is not an error but a result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SuiteError {
    #[error("{}: {why}", path.display())]
    File { path: PathBuf, why: String },
    #[error("{at}: {why}")]
    Step { at: String, why: String },
}

/// The folder of the suite.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance")
}

/// The file of scenarios at `path`.
pub(crate) fn load(path: &Path) -> Result<File, SuiteError> {
    read_yaml(path)
}

/// Reads a YAML file of any shape. Only `true` and `false` are booleans: a `y` in a scenario means the letter.
pub(crate) fn read_yaml<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, SuiteError> {
    let failed = |why: String| SuiteError::File { path: path.to_owned(), why };
    let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    let options = serde_saphyr::options! { strict_booleans: true };
    serde_saphyr::from_str_with_options(&text, options).map_err(|error| failed(error.to_string()))
}

/// Where the recording of a file of scenarios is kept.
pub(crate) fn recording_path(scenarios: &Path) -> PathBuf {
    let name = scenarios.file_stem().unwrap_or_default();
    folder().join("recorded").join(name).with_extension("json")
}

/// The recording of a file of scenarios.
pub(crate) fn recording(scenarios: &Path) -> Result<Recording, SuiteError> {
    let path = recording_path(scenarios);
    let failed = |why: String| SuiteError::File { path: path.clone(), why };
    let text = std::fs::read_to_string(&path).map_err(|error| failed(error.to_string()))?;
    serde_json::from_str(&text).map_err(|error| failed(error.to_string()))
}
