//! The command line: one file per verb. Parses, dispatches, and turns an error into a message and an exit code.
//!
//! Exit codes: 0 after an orderly end, 1 for an error, 2 for a command line that cannot be understood, 134 when the
//! watchdog has aborted the process.

mod crds;
#[cfg(feature = "dev")]
mod dev;
mod run;
mod status;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::explain::explain;

/// Background work on Kubernetes, each piece of it in exactly one place at a time.
#[derive(Debug, Parser)]
#[command(name = "tenure", version, propagate_version = true, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run one replica in a cluster, until SIGTERM
    Run(Box<run::RunArgs>),
    /// Ask a replica whether it is ready and who leads
    Status(status::StatusArgs),
    /// Run three replicas on this machine, without a cluster; for development and tests only
    #[cfg(feature = "dev")]
    Dev(dev::DevArgs),
    /// Print the CustomResourceDefinitions, for `kubectl apply -f -`
    Crds,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let ended = match Cli::parse().verb {
        Verb::Run(args) => run::run(&args),
        Verb::Status(args) => status::run(&args),
        #[cfg(feature = "dev")]
        Verb::Dev(args) => dev::run(&args),
        Verb::Crds => crds::print(),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", explain(&*error));
            ExitCode::FAILURE
        }
    }
}
