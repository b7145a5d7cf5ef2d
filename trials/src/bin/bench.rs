//! `bench`: the figures of the release binary, several runs, with their spread.
#![allow(
    clippy::disallowed_methods,
    reason = "the judge measures real processes by the real clock; only the code under test takes time as an argument"
)]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use clap::Parser;
use trials::bench::{BenchError, Measured, Settings, render, run, serve_ledger};

/// Measure start lateness, API requests and memory of the release binary.
#[derive(Debug, Parser)]
struct Arguments {
    /// The tenure binary.
    #[arg(
        long,
        value_name = "PATH",
        required_unless_present = "serve_ledger",
        default_value = "target/release/tenure"
    )]
    tenure: PathBuf,
    /// The sandbox binary.
    #[arg(long, value_name = "PATH", default_value = "target/release/sandbox")]
    sandbox: PathBuf,
    /// How many runs.
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// How many seconds each window lasts.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Where logs go.
    #[arg(long, default_value = "target/bench", value_name = "PATH")]
    directory: PathBuf,
    /// Serve a ledger and write its entries to this file; used by the benchmark itself.
    #[arg(long, hide = true, value_name = "PATH")]
    serve_ledger: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(entries) = &arguments.serve_ledger {
        return report(serve_ledger(entries).await.map_err(BenchError::from));
    }
    report(measure(&arguments).await)
}

async fn measure(arguments: &Arguments) -> Result<(), BenchError> {
    println!("{}", machine());
    println!("{}, {} runs, windows of {} s", version(&arguments.tenure), arguments.runs, arguments.seconds);
    let bench = env::current_exe();
    let bench = bench.map_err(|source| BenchError::Io { what: "finding this program".to_owned(), source })?;
    let mut runs: Vec<Measured> = Vec::new();
    for number in 1..=arguments.runs {
        println!("run {number} of {}", arguments.runs);
        let settings = Settings {
            tenure: arguments.tenure.clone(),
            sandbox: arguments.sandbox.clone(),
            bench: bench.clone(),
            window: Duration::from_secs(arguments.seconds),
            directory: arguments.directory.join(format!("run-{number}")),
        };
        runs.push(run(&settings).await?);
    }
    println!("\n{}", render(&runs));
    Ok(())
}

/// What the figures were measured on.
fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let information = read("/proc/cpuinfo");
    let model = information.lines().find_map(|line| line.strip_prefix("model name")?.split(':').nth(1));
    let kernel = read("/proc/sys/kernel/osrelease");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = read("/proc/loadavg");
    format!(
        "{} ({cores} cores), Linux {}, load {}",
        model.unwrap_or("unknown processor").trim(),
        kernel.trim(),
        load.split(' ').next().unwrap_or_default()
    )
}

/// What the binary says that it is.
fn version(tenure: &Path) -> String {
    let output = Command::new(tenure).arg("--version").output();
    output.map_or_else(
        |error| format!("{}: {error}", tenure.display()),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

fn report(result: Result<(), BenchError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}
