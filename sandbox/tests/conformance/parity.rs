//! Records what a real API server answers to the conformance suite, and fails if that is not what the recording says.
//!
//! It is a program of its own, not one of the tests: it needs a running server, which `make parity` starts. With
//! `PARITY_RECORD=1` it writes the recording anew.
#![allow(clippy::disallowed_methods, reason = "the suite talks to real servers: its clock is the real one")]

mod suite;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use suite::{Recording, SuiteError, compare, play};

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(unchanged) => ExitCode::from(u8::from(!unchanged)),
        Err(error) => {
            eprintln!("parity: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<bool, Box<dyn std::error::Error>> {
    let Ok(path) = std::env::var("PARITY_KUBECONFIG") else {
        return Err("PARITY_KUBECONFIG names no kubeconfig; `make parity` starts a server and sets it".into());
    };
    let write = std::env::var("PARITY_RECORD").is_ok_and(|value| value == "1");
    let client = connect(Path::new(&path)).await?;
    let server = client.apiserver_version().await?.git_version;
    let mut unchanged = true;
    let mut mistakes = Vec::new();
    for path in scenario_files()? {
        let found = record(&client, &path, &server, &mut mistakes).await?;
        if write {
            let text = serde_json::to_string_pretty(&found)? + "\n";
            std::fs::write(suite::recording_path(&path), text)?;
            println!("recorded {}", path.display());
            continue;
        }
        let expected = suite::recording(&path)?;
        let verdict = compare::verdict(&compare::differences(&expected, &found), &[]);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if verdict.is_empty() {
            println!("{name}: {server} answers as recorded, {} scenarios", found.scenarios.len());
        } else {
            unchanged = false;
            println!("{name}: {server} does not answer as recorded of {}:\n{verdict}", expected.server);
        }
    }
    if mistakes.is_empty() { Ok(unchanged) } else { Err(mistakes.join("\n").into()) }
}

async fn connect(path: &Path) -> Result<Client, Box<dyn std::error::Error>> {
    let kubeconfig = Kubeconfig::read_from(path)?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

fn scenario_files() -> std::io::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(suite::folder().join("scenarios"))?;
    let mut files = entries.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
}

/// Plays a file. A status other than the one that the scenario names is a mistake in the scenario, or news.
async fn record(
    client: &Client,
    path: &Path,
    server: &str,
    mistakes: &mut Vec<String>,
) -> Result<Recording, SuiteError> {
    let file = suite::load(path)?;
    play::prepare(client, &file).await?;
    let mut recording = Recording { server: server.to_owned(), ..Recording::default() };
    for scenario in &file.scenarios {
        let answers = play::play(client, &file, scenario).await?;
        for (index, (step, answer)) in scenario.steps.iter().zip(&answers).enumerate() {
            if let Some(expected) = step.status
                && answer["status"] != expected
            {
                let at = format!("{} step {}", scenario.id, index + 1);
                mistakes.push(format!("{at}: the scenario expects {expected}, the server answered {answer}"));
            }
        }
        recording.scenarios.insert(scenario.id.clone(), answers);
    }
    Ok(recording)
}
