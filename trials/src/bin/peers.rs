//! `peers`: Tenure beside other electors, and on one Lease with one of them.
//!
//! Exits 0 when Tenure kept what it promises, 1 when it did not, 2 when the trials could not be run.
#![allow(
    clippy::disallowed_methods,
    reason = "the judge measures real processes by the real clock; only the code under test takes time as an argument"
)]

use std::{net::IpAddr, path::PathBuf, process::ExitCode};

use clap::Parser;
use futures::future::try_join_all;
use trials::{
    peers::{Fault, PeersError, mixed, table::Table},
    pods::Hands,
};

/// Strike Tenure and its peers by the same faults, and let Tenure and client-go hand one Lease to each other.
#[derive(Debug, Parser)]
// What the script gives comes first, what a person adds to it wins.
#[command(args_override_self = true)]
struct Arguments {
    /// The address at which pods reach this program.
    #[arg(long)]
    address: IpAddr,
    /// The folder of the fault helpers.
    #[arg(long, value_name = "PATH")]
    faults: PathBuf,
    /// How often each fault strikes.
    #[arg(long, default_value_t = 5)]
    trials: u32,
    /// How often Tenure and client-go hand over, in each direction; 0 leaves the mixed fleet out.
    #[arg(long, default_value_t = 30)]
    hand_overs: u32,
    /// Which faults.
    #[arg(long, value_delimiter = ',', default_values_t = Fault::ALL, value_name = "FAULTS")]
    families: Vec<Fault>,
    /// Where logs and evidence go.
    #[arg(long, default_value = "target/peers-evidence", value_name = "PATH")]
    directory: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments).await {
        Ok(failures) => {
            for failure in &failures {
                println!("FAILED {failure}");
            }
            println!("{}", if failures.is_empty() { "passed" } else { "failed" });
            ExitCode::from(u8::from(!failures.is_empty()))
        }
        Err(error) => {
            eprintln!("the trials could not be run: {error}\nThe logs are in {}", arguments.directory.display());
            ExitCode::from(2)
        }
    }
}

async fn run(arguments: &Arguments) -> Result<Vec<String>, Box<dyn std::error::Error>> {
    let client = kube::Client::try_default().await?;
    let Arguments { address, directory, .. } = arguments;
    let table = Table::attend(&client, *address, Hands::new(arguments.faults.clone()), directory)?;
    let pairs = mixed::Pair::ALL.into_iter().filter(|_| arguments.hand_overs > 0);
    let hand_overs = pairs.map(|pair| mixed::run(&client, *address, directory, pair, arguments.hand_overs));
    // Nothing that strikes a whole node or the API server may happen while they hand over.
    let (alone, together): (Vec<Fault>, Vec<Fault>) = arguments.families.iter().partition(|fault| fault.strikes_one());
    let (hand_overs, mut failures) =
        tokio::try_join!(try_join_all(hand_overs), strike(&table, &alone, arguments.trials))?;
    for hand_overs in &hand_overs {
        println!("\n{}", hand_overs.render());
        failures.extend(hand_overs.failures());
    }
    failures.extend(strike(&table, &together, arguments.trials).await?);
    println!("datagrams lost on the way: {}", table.finish(directory)?);
    Ok(failures)
}

async fn strike(table: &Table, faults: &[Fault], trials: u32) -> Result<Vec<String>, PeersError> {
    let mut failures = Vec::new();
    for fault in faults {
        let family = table.family(*fault, trials).await?;
        println!("\n{}", family.render());
        failures.extend(family.failures());
    }
    Ok(failures)
}
