//! `kills`: aimed kills of the release binary, judged from outside.
//!
//! Exits 0 when every family passed, 1 when one of the judge's conditions failed, 2 when the trials could not be run.
#![allow(
    clippy::disallowed_methods,
    reason = "the judge measures real processes by the real clock; only the code under test takes time as an argument"
)]

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use trials::{
    judge::{Family, Findings, judge, render},
    session::{self, Settings},
};

/// Kill, terminate and freeze the leader at chosen points, and judge what reached the ledger.
#[derive(Debug, Parser)]
struct Arguments {
    /// The tenure binary.
    #[arg(long, value_name = "PATH")]
    tenure: PathBuf,
    /// What everything random is drawn from; printed, so that a run can be repeated.
    #[arg(long)]
    seed: Option<u64>,
    /// A share of the full number of trials (50, 50 and 40), for a short run.
    #[arg(long, default_value_t = 1.0, value_name = "SHARE")]
    trials_scale: f64,
    /// Which families to run.
    #[arg(long, value_delimiter = ',', default_value = "kill,term,stop")]
    families: Vec<Family>,
    /// Where logs and evidence go.
    #[arg(long, default_value = "target/kills", value_name = "PATH")]
    directory: PathBuf,
}

/// At least one trial for each window.
const TRIALS_MIN: u32 = 4;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(rand::random);
    println!("seed {seed}");
    let mut failures = Vec::new();
    for family in arguments.families {
        let settings = Settings {
            tenure: arguments.tenure.clone(),
            family,
            trials: family.scaled(arguments.trials_scale, TRIALS_MIN),
            seed,
            directory: arguments.directory.join(family.to_string().to_lowercase()),
        };
        println!("\n{family}: {} trials, log in {}", settings.trials, settings.directory.display());
        match session::run(&settings).await {
            Ok(evidence) => {
                let findings = judge(&evidence);
                println!("{}", render(&evidence, &findings));
                failures.extend(findings.failures());
                write_details(&settings, &findings);
            }
            Err(error) => {
                eprintln!(
                    "{family}: the trials could not be run: {error}\nThe logs are in {}",
                    settings.directory.display()
                );
                return ExitCode::from(2);
            }
        }
    }
    for failure in &failures {
        println!("FAILED {failure}");
    }
    println!("{}", if failures.is_empty() { "passed" } else { "failed" });
    ExitCode::from(u8::from(!failures.is_empty()))
}

/// What the table only counts, by name, beside the evidence.
fn write_details(settings: &Settings, findings: &Findings) {
    let path = settings.directory.join("findings.txt");
    if let Err(error) = std::fs::write(&path, format!("{findings:#?}\n")) {
        eprintln!("cannot write {}: {error}", path.display());
    }
}
