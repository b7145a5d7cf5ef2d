//! Runs the console blocks of a Markdown page (README.md) and compares what they print.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use trials::walkthrough;

#[derive(Debug, Parser)]
#[command(about = "Runs the console blocks of a Markdown page and compares what they print")]
struct Arguments {
    /// The page.
    #[arg(default_value = "README.md")]
    page: PathBuf,
}

fn main() -> ExitCode {
    let Arguments { page } = Arguments::parse();
    let text = match std::fs::read_to_string(&page) {
        Ok(text) => text,
        Err(error) => {
            eprintln!("{} cannot be read: {error}", page.display());
            return ExitCode::FAILURE;
        }
    };
    let done = walkthrough::parse(&text).map_err(|error| error.to_string()).and_then(|blocks| {
        walkthrough::walk(&blocks, &mut |line| println!("{line}")).map_err(|error| error.to_string())
    });
    match done {
        Ok(()) => {
            println!("{}: every console block did what the page says", page.display());
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("{}, {message}", page.display());
            ExitCode::FAILURE
        }
    }
}
