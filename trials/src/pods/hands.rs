//! Hands on the nodes and the control plane of a cluster: the fault helpers of `tests/cluster`, one program each.

use std::{io, path::PathBuf, process::Stdio, time::Duration};

use thiserror::Error;
use tokio::process::Command;

/// How long a helper may take: a restart of the API server waits until it is ready.
const HELPER_LIMIT: Duration = Duration::from_mins(2);

/// The folder of the helpers.
#[derive(Debug, Clone)]
pub struct Hands(PathBuf);

/// A helper did not do what it is for.
#[derive(Debug, Error)]
pub enum HandError {
    /// It could not be started.
    #[error("{helper} could not be started: {source}")]
    Start {
        /// The helper.
        helper: String,
        /// What the system said.
        source: io::Error,
    },
    /// It took too long.
    #[error("{helper} did not end within {HELPER_LIMIT:?}")]
    Late {
        /// The helper.
        helper: String,
    },
    /// It failed.
    #[error("{helper} failed: {output}")]
    Failed {
        /// The helper.
        helper: String,
        /// What it printed.
        output: String,
    },
}

impl Hands {
    /// The helpers in this folder.
    pub fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// Runs a helper to its end, and returns what it printed.
    pub async fn run(&self, helper: &str, arguments: &[&str]) -> Result<String, HandError> {
        let named = || format!("{helper} {}", arguments.join(" "));
        let mut command = Command::new(self.0.join(helper));
        command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        let ended = tokio::time::timeout(HELPER_LIMIT, command.output()).await;
        let output = ended
            .map_err(|_| HandError::Late { helper: named() })?
            .map_err(|source| HandError::Start { helper: named(), source })?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() {
            return Ok(text(&output.stdout));
        }
        Err(HandError::Failed { helper: named(), output: format!("{}{}", text(&output.stdout), text(&output.stderr)) })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[tokio::test]
    async fn a_helper_that_fails_is_named_with_what_it_said() {
        let hands = Hands::new(Path::new("/bin").to_owned());
        let error = hands.run("ls", &["/nowhere"]).await.unwrap_err().to_string();
        assert!(error.starts_with("ls /nowhere failed: ") && error.contains("No such file"), "{error}");
        assert_eq!(hands.run("echo", &["done"]).await.unwrap(), "done");
    }
}
