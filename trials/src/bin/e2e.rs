//! `e2e`: faults on a cluster in which Tenure is installed, judged from outside.
//!
//! Exits 0 when every family passed, 1 when one of the judge's conditions failed, 2 when the trials could not be run.
#![allow(
    clippy::disallowed_methods,
    reason = "the judge measures real processes by the real clock; only the code under test takes time as an argument"
)]

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::Parser;
use trials::{
    front::{Front, FrontError, Identity},
    judge::{Family, judge, render},
    pods::{self, About, Hands, Outcome, PodsError, Row, Settings},
};

/// Strike the leader's pod, its node and the control plane, and judge what reached the ledger.
#[derive(Debug, Parser)]
struct Arguments {
    /// The address at which pods reach this program.
    #[arg(long)]
    address: IpAddr,
    /// The port of the probe: the replicas are given `TENURE_PROBE=ADDRESS:PORT`.
    #[arg(long, default_value_t = 9901)]
    probe_port: u16,
    /// The namespace of the installation.
    #[arg(long, default_value = "tenure-system")]
    namespace: String,
    /// The name of its Lease.
    #[arg(long, default_value = "tenure")]
    lease: String,
    /// Its lease duration, in seconds.
    #[arg(long, default_value_t = 15)]
    lease_seconds: u64,
    /// How many replicas it has.
    #[arg(long, default_value_t = 3)]
    replicas: usize,
    /// The folder of the fault helpers; without it, the families that need the nodes are not applicable.
    #[arg(long, value_name = "PATH")]
    faults: Option<PathBuf>,
    /// An image of Tenure whose time of day can be wrong, which the nodes have; without it, that family is not applicable.
    #[arg(long, value_name = "IMAGE")]
    skewed_image: Option<String>,
    /// A certificate for this address, of an authority that the pods trust; without it, the families in which the replicas
    /// come by a front are not applicable.
    #[arg(long, value_name = "PATH", requires = "front_key")]
    front_certificate: Option<PathBuf>,
    /// Its key.
    #[arg(long, value_name = "PATH")]
    front_key: Option<PathBuf>,
    /// The port of the front.
    #[arg(long, default_value_t = 9902)]
    front_port: u16,
    /// The commit of the sources, for the table.
    #[arg(long, default_value = "unknown")]
    commit: String,
    /// What everything random is drawn from; printed, so that a run can be repeated.
    #[arg(long)]
    seed: Option<u64>,
    /// A share of the full number of trials, for a short run; at least one of each.
    #[arg(long, default_value_t = 1.0, value_name = "SHARE")]
    trials_scale: f64,
    /// Which families to run.
    #[arg(long, value_delimiter = ',', default_values_t = Family::OF_PODS)]
    families: Vec<Family>,
    /// Where logs and evidence go.
    #[arg(long, default_value = "target/e2e", value_name = "PATH")]
    directory: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(rand::random);
    println!("seed {seed}");
    let client = match kube::Client::try_default().await {
        Ok(client) => client,
        Err(error) => {
            eprintln!("no cluster to try: {error}; name one with KUBECONFIG");
            return ExitCode::from(2);
        }
    };
    let front = match front(&arguments).await {
        Ok(front) => front,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let mut report = Report::default();
    for (place, family) in arguments.families.iter().copied().enumerate() {
        let settings = settings(&arguments, family, seed, front.clone());
        println!("\n{family}: {} trials, log in {}", settings.trials, settings.directory.display());
        match Box::pin(pods::run(client.clone(), &settings)).await {
            Ok(outcome) => {
                report.take(&settings, &outcome);
                if outcome.began_in_disorder() {
                    let left = arguments.families[place + 1..].iter();
                    report
                        .obstacles
                        .extend(left.map(|family| format!("{family}: not run, there is no calm to begin in")));
                    break;
                }
            }
            Err(error @ PodsError::NotApplicable { .. }) => report.not_applicable.push(error),
            Err(error) => {
                let logs = settings.directory.display();
                report.obstacles.push(format!("{family}: {error}; the logs are in {logs}"));
            }
        }
    }
    // It ends with this program.
    if let Err(error) = pods::go_by(&client, &arguments.namespace, None).await {
        eprintln!("the replicas may still look for the API server at the front: {error}");
    }
    show_table(&arguments, pods::table(&About::gather(&client, arguments.commit.clone(), seed).await, &report.rows));
    report.end()
}

/// What a run comes to.
#[derive(Debug, Default)]
struct Report {
    rows: Vec<Row>,
    /// Conditions that failed.
    failures: Vec<String>,
    /// Why trials could not be run, for reasons that say nothing about Tenure.
    obstacles: Vec<String>,
    not_applicable: Vec<PodsError>,
}

impl Report {
    /// Judges a family.
    fn take(&mut self, settings: &Settings, outcome: &Outcome) {
        let family = settings.family;
        let findings = judge(&outcome.evidence);
        print!("{}", render(&outcome.evidence, &findings));
        if family.freezes() {
            let (went_on, restarted) = outcome.thawed;
            println!("  {:<42} {went_on} went on, {restarted} restarted by the kubelet", "thawed");
        }
        self.failures.extend(findings.failures());
        self.failures.extend(outcome.failures());
        self.obstacles.extend(outcome.obstacle().map(|error| format!("{family}: {error}")));
        self.rows.push(Row::of(outcome, &findings));
        let path = settings.directory.join("findings.txt");
        if let Err(error) = std::fs::write(&path, format!("{findings:#?}\n")) {
            eprintln!("cannot write {}: {error}", path.display());
        }
    }

    fn end(self) -> ExitCode {
        for error in &self.not_applicable {
            println!("not applicable here: {error}");
        }
        for failure in &self.failures {
            println!("FAILED {failure}");
        }
        for obstacle in &self.obstacles {
            println!("NOT RUN TO ITS END {obstacle}");
        }
        if self.rows.is_empty() {
            println!("nothing was run");
        }
        match (self.failures.is_empty(), self.obstacles.is_empty() && !self.rows.is_empty()) {
            (false, _) => {
                println!("failed");
                ExitCode::from(1)
            }
            (true, false) => ExitCode::from(2),
            (true, true) => {
                println!("passed");
                ExitCode::SUCCESS
            }
        }
    }
}

/// Prints the table, and writes it to a file.
fn show_table(arguments: &Arguments, table: String) {
    println!("\n{table}");
    let path = arguments.directory.join("table.md");
    if let Err(error) = std::fs::create_dir_all(&arguments.directory).and_then(|()| std::fs::write(&path, table)) {
        eprintln!("cannot write {}: {error}", path.display());
    }
}

async fn front(arguments: &Arguments) -> Result<Option<Arc<Front>>, FrontError> {
    let files = arguments.front_certificate.clone().zip(arguments.front_key.clone());
    let Some((certificate, key)) = files else { return Ok(None) };
    let address = SocketAddr::new(arguments.address, arguments.front_port);
    Front::start(address, &Identity { certificate, key }).await.map(|front| Some(Arc::new(front)))
}

fn settings(arguments: &Arguments, family: Family, seed: u64, front: Option<Arc<Front>>) -> Settings {
    Settings {
        family,
        trials: family.scaled(arguments.trials_scale, 1),
        seed,
        directory: arguments.directory.join(family.to_string()),
        address: arguments.address,
        probe_port: arguments.probe_port,
        namespace: arguments.namespace.clone(),
        lease: arguments.lease.clone(),
        lease_duration: Duration::from_secs(arguments.lease_seconds),
        replicas: arguments.replicas,
        hands: arguments.faults.clone().map(Hands::new),
        skewed_image: arguments.skewed_image.clone(),
        front,
    }
}
