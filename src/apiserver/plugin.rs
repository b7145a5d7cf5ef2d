//! Asks an exec plugin for credentials, as `client.authentication.k8s.io` describes it.
//!
//! kube does that too, but waits for the plugin without a deadline, keeps a certificate's expiry to itself, and asks
//! several times for one client.

use std::{collections::HashMap, process::Stdio, time::Duration};

use jiff::Timestamp;
use k8s_openapi::ByteString;
use kube::config::{AuthInfo, ExecConfig, ExecInteractiveMode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::clock::{self, Elapsed, SharedClock};

/// How long a plugin may take. Some ask a cloud; one that hangs is ended, and asked again later.
pub(super) const DEADLINE: Duration = Duration::from_secs(15);

/// A plugin gives no credentials.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PluginError {
    /// The configuration names none.
    #[error("users[].user.exec.command: expected a program, found nothing")]
    NoCommand,
    /// It is to be told about the cluster, of which nothing is known.
    #[error("users[].user.exec.provideClusterInfo: the configuration says nothing of the cluster")]
    NoCluster,
    /// It does not run.
    #[error("the exec plugin {command} cannot be run: {source}")]
    Run {
        /// The program.
        command: String,
        /// Why not.
        source: std::io::Error,
    },
    /// It takes too long.
    #[error("the exec plugin {command} gave {source}")]
    Slow {
        /// The program.
        command: String,
        /// How long it was waited for.
        source: Elapsed,
    },
    /// It says that it failed.
    #[error("the exec plugin {command} ended with {status}: {said}")]
    Failed {
        /// The program.
        command: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// The end of what it wrote to standard error.
        said: String,
    },
    /// What it wrote is no `ExecCredential` with a token or a certificate.
    #[error(
        "the exec plugin {command}: expected an ExecCredential with a token, or a certificate and its key: {reason}"
    )]
    Output {
        /// The program.
        command: String,
        /// What is wrong with it. Never the output itself, which may hold a secret.
        reason: String,
    },
}

/// What a plugin has given.
pub(super) struct Given {
    token: Option<String>,
    certificate: Option<(String, String)>,
    /// Until when it holds.
    pub(super) until: Option<Timestamp>,
}

#[derive(Deserialize)]
struct ExecCredential {
    status: Option<Status>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    expiration_timestamp: Option<Timestamp>,
    token: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
}

/// So much of a plugin's standard error is told.
const SAID_MAX: usize = 500;

impl Given {
    /// Puts it where kube looks for it.
    pub(super) fn put_into(self, auth: &mut AuthInfo) {
        auth.exec = None;
        auth.token = self.token.map(Into::into);
        if let Some((certificate, key)) = self.certificate {
            auth.client_certificate_data = Some(base64(certificate));
            auth.client_key_data = Some(base64(key).into());
        }
    }
}

fn base64(text: String) -> String {
    match serde_json::to_value(ByteString(text.into_bytes())) {
        Ok(Value::String(encoded)) => encoded,
        _ => String::new(),
    }
}

/// Runs the plugin, and blocks until it is done.
pub(super) fn run(exec: &ExecConfig, clock: &SharedClock) -> Result<Given, PluginError> {
    let name = exec.command.clone().ok_or(PluginError::NoCommand)?;
    let failed = |source| PluginError::Run { command: name.clone(), source };
    let mut command = command(exec, &name)?;
    // A thread of its own: the caller's may belong to a runtime, in which another cannot be entered.
    let output = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async { Ok(clock::timeout(&**clock, DEADLINE, command.output()).await) })
        });
        waiting.join().unwrap_or_else(|_| Err(std::io::Error::other("its thread panicked")))
    });
    let output = output.map_err(failed)?;
    let output = output.map_err(|source| PluginError::Slow { command: name.clone(), source })?.map_err(failed)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim().chars().rev().take(SAID_MAX).collect::<Vec<_>>().into_iter().rev().collect();
        return Err(PluginError::Failed { command: name, status: output.status, said });
    }
    read(&output.stdout).map_err(|reason| PluginError::Output { command: name, reason })
}

fn command(exec: &ExecConfig, name: &str) -> Result<Command, PluginError> {
    let interactive = exec.interactive_mode != Some(ExecInteractiveMode::Never);
    let mut spec = json!({ "interactive": interactive });
    if exec.provide_cluster_info {
        let cluster = exec.cluster.as_ref().and_then(|cluster| serde_json::to_value(cluster).ok());
        spec["cluster"] = cluster.ok_or(PluginError::NoCluster)?;
    }
    let info = json!({ "apiVersion": exec.api_version, "kind": "ExecCredential", "spec": spec });
    let pair = |entry: &HashMap<String, String>| Some((entry.get("name")?.clone(), entry.get("value")?.clone()));
    let mut command = Command::new(name);
    command
        .args(exec.args.iter().flatten())
        .envs(exec.env.iter().flatten().filter_map(pair))
        .env("KUBERNETES_EXEC_INFO", info.to_string())
        .stdin(if interactive { Stdio::inherit() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(if interactive { Stdio::inherit() } else { Stdio::piped() })
        .kill_on_drop(true);
    for variable in exec.drop_env.iter().flatten() {
        command.env_remove(variable);
    }
    Ok(command)
}

fn read(output: &[u8]) -> Result<Given, String> {
    // An error of the parser names a place, and a field's type at most.
    let read: ExecCredential = serde_json::from_slice(output).map_err(|error| {
        format!("line {}, column {}: {:?} error in its JSON", error.line(), error.column(), error.classify())
    })?;
    let status = read.status.ok_or("it has no status")?;
    let certificate = status.client_certificate_data.zip(status.client_key_data);
    if status.token.is_none() && certificate.is_none() {
        return Err("its status has neither".to_owned());
    }
    Ok(Given { token: status.token, certificate, until: status.expiration_timestamp })
}
