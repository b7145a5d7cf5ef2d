//! `peers`: Tenure beside other electors, and on one Lease with one of them.
//!
//! Exits 0 when Tenure kept what it promises, 1 when it did not, 2 when the trials could not be run.
#![allow(
    clippy::disallowed_methods,
    reason = "the judge measures real processes by the real clock; only the code under test takes time as an argument"
)]

use std::{error::Error, net::IpAddr, path::PathBuf, process::ExitCode};

use clap::Parser;
use futures::future::{join, join_all};
use trials::{
    front::Identity,
    peers::{
        Fault, PeersError, mixed, report,
        table::{Family, Table},
    },
    pods::{About, Hands},
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
    /// A certificate for this address, of an authority that the pods trust.
    #[arg(long, value_name = "PATH")]
    front_certificate: PathBuf,
    /// Its key.
    #[arg(long, value_name = "PATH")]
    front_key: PathBuf,
    /// How often each fault strikes.
    #[arg(long, default_value_t = 5)]
    trials: u32,
    /// How often Tenure and client-go hand over, in each direction; 0 leaves the mixed fleet out.
    #[arg(long, default_value_t = 30)]
    hand_overs: u32,
    /// Which faults; without it all of them, and in a run of one trial each those that are quick.
    #[arg(long, value_delimiter = ',', value_name = "FAULTS")]
    families: Option<Vec<Fault>>,
    /// The commit of the sources, for the table.
    #[arg(long, default_value = "unknown")]
    commit: String,
    /// Where logs and evidence go.
    #[arg(long, default_value = "target/peers-evidence", value_name = "PATH")]
    directory: PathBuf,
}

/// What all trials came to.
#[derive(Debug, Default)]
struct Found {
    rows: Vec<report::Row>,
    failures: Vec<String>,
    /// Why some could not be run. What the others came to stands.
    errors: Vec<PeersError>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let found = match run(&arguments).await {
        Ok(found) => found,
        Err(error) => {
            eprintln!("the trials could not be run: {error}\nThe logs are in {}", arguments.directory.display());
            return ExitCode::from(2);
        }
    };
    for failure in &found.failures {
        println!("FAILED {failure}");
    }
    for error in &found.errors {
        eprintln!("not all trials could be run: {error}\nThe logs are in {}", arguments.directory.display());
    }
    if !found.failures.is_empty() {
        println!("failed");
        return ExitCode::from(1);
    }
    if !found.errors.is_empty() {
        return ExitCode::from(2);
    }
    println!("passed");
    ExitCode::SUCCESS
}

async fn run(arguments: &Arguments) -> Result<Found, Box<dyn Error>> {
    let client = kube::Client::try_default().await?;
    let Arguments { address, directory, trials, .. } = arguments;
    let identity = Identity { certificate: arguments.front_certificate.clone(), key: arguments.front_key.clone() };
    let table = Table::attend(&client, *address, &identity, Hands::new(arguments.faults.clone()), directory).await?;
    let pairs = mixed::Pair::ALL.into_iter().filter(|_| arguments.hand_overs > 0);
    let hand_overs = pairs.map(|pair| mixed::run(&client, *address, directory, pair, arguments.hand_overs));
    // Nothing that strikes a whole node or the control plane may happen while they hand over.
    let quick = || Fault::ALL.into_iter().filter(|fault| *trials > 1 || fault.is_quick()).collect();
    let faults = arguments.families.clone().unwrap_or_else(quick);
    let (alone, together): (Vec<Fault>, Vec<Fault>) = faults.into_iter().partition(|fault| fault.strikes_one());
    let mut families = Vec::new();
    let (hand_overs, ()) = join(join_all(hand_overs), strike(&table, &alone, *trials, &mut families)).await;
    strike(&table, &together, *trials, &mut families).await;
    let mut found = Found::default();
    found.errors.extend(table.go_by_the_fronts(false).await.err());
    for family in &families {
        found.rows.extend(family.rows());
        found.failures.extend(family.failures());
    }
    match table.finish(&families, directory) {
        Ok(failures) => found.failures.extend(failures),
        Err(error) => found.errors.push(error),
    }
    found.errors.extend(families.into_iter().filter_map(|family| family.error));
    for hand_overs in hand_overs {
        match hand_overs {
            Ok(hand_overs) => {
                found.rows.extend(hand_overs.rows());
                found.failures.extend(hand_overs.failures());
                found.errors.extend(hand_overs.error);
            }
            Err(error) => found.errors.push(error),
        }
    }
    // Nothing random is drawn here.
    let about = About::gather(&client, arguments.commit.clone(), 0).await;
    let text = report::table(&about, &found.rows);
    println!("\n{text}");
    std::fs::write(directory.join("table.md"), text)?;
    Ok(found)
}

/// Strikes by one fault after the other. What could not be struck or mended would spoil all that comes after it.
async fn strike(table: &Table, faults: &[Fault], trials: u32, families: &mut Vec<Family>) {
    for fault in faults {
        if families.iter().any(|family| family.error.is_some()) {
            return;
        }
        println!("{fault}: {trials} trials");
        families.push(table.family(*fault, trials).await);
    }
}
