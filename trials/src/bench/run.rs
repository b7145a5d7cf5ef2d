//! One run of the benchmark.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use kube::Client;
use rustix::process::Signal;
use serde_json::{Value, json};
use thiserror::Error;

use super::{
    figures::{Lateness, Measured},
    outside::{LedgerProcess, OutsideError, Requests, SandboxProcess, requests},
};
use crate::{
    clock::{At, Timeline},
    judge::{Guarantee, Job},
    ledger::Entry,
    objects::{NAMESPACE, ObjectError, Objects},
    replicas::{Launch, Replica, ReplicaError, get},
    wait::{self, Overdue},
};

/// A leader and a standby: what a third replica costs is what the second costs.
const REPLICAS: u8 = 2;
/// The host name of the ledger.
const LEDGER_HOST: &str = "ledger.test";
/// How long a replica may take to start and to lead.
const START_LIMIT: Duration = Duration::from_mins(1);
/// How long the jobs run before they are measured: a new job's first slots are caught up, which is paced at ten a second, and
/// there are a hundred jobs.
const WARM_UP: Duration = Duration::from_secs(15);
/// How long an attempt may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// How many jobs the memory of one is measured with.
const MANY_JOBS: u32 = 1_000;
/// How long the leader may take to put all of them in its plan.
const MANY_JOBS_LIMIT: Duration = Duration::from_mins(3);
/// How long a replica may take to leave.
const LEAVE_LIMIT: Duration = Duration::from_secs(40);
/// The kernel's clock ticks per second, as `/proc` counts processor time on every Linux that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a benchmark is run with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The binary of Tenure.
    pub tenure: PathBuf,
    /// The binary of the sandbox.
    pub sandbox: PathBuf,
    /// This program, which also serves the ledger.
    pub bench: PathBuf,
    /// How long each window is.
    pub window: Duration,
    /// Where logs go.
    pub directory: PathBuf,
}

/// Why a run could not be brought to its end.
#[derive(Debug, Error)]
pub enum BenchError {
    /// A process around the replicas.
    #[error(transparent)]
    Outside(#[from] OutsideError),
    /// An object.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// A replica.
    #[error(transparent)]
    Replica(#[from] ReplicaError),
    /// Something that was waited for.
    #[error(transparent)]
    Overdue(#[from] Overdue),
    /// A file.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

/// A window in time, and what was asked of the API server in it.
struct Window {
    from: At,
    to: At,
    asked: Requests,
}

struct Bench {
    client: Client,
    objects: Objects,
    /// The leader first.
    replicas: Vec<Replica>,
    url: String,
    window: Duration,
}

/// Measures once.
pub async fn run(settings: &Settings) -> Result<Measured, BenchError> {
    let made = fs::create_dir_all(&settings.directory);
    made.map_err(|source| BenchError::Io { what: format!("making {}", settings.directory.display()), source })?;
    let clients: Vec<String> = (0..REPLICAS).map(|number| format!("replica-{number}")).collect();
    let sandbox = SandboxProcess::start(&settings.sandbox, &settings.directory, &clients).await?;
    let ledger = LedgerProcess::start(&settings.bench, &settings.directory).await?;
    let timeline = Timeline::new();
    let mut bench = Bench::start(settings, &sandbox, ledger.port).await?;
    let mut measured = Measured::default();
    bench.at_rest(&mut measured).await?;
    // Before anything else has made the leader's heap grow.
    bench.many_jobs(&mut measured).await?;
    let spread = bench.due(&jobs((0..100).map(|number| 901 + 2 * number))).await?;
    let together = bench.due(&jobs([200; 20])).await?;
    let burst = bench.due(&jobs([1_000; 100])).await?;
    bench.stop().await?;
    let entries = ledger.stop().await?;
    // What is due at one instant waits for its two writes in a queue before the processors: shown, and without a target.
    add_window(&mut measured, "100 due/s, spread", ["at most 5", "at most 50"], &spread, &entries, timeline);
    add_window(&mut measured, "100 due/s, 20 at once", [""; 2], &together, &entries, timeline);
    add_window(&mut measured, "100 due/s, 100 at once", [""; 2], &burst, &entries, timeline);
    sandbox.stop().await?;
    Ok(measured)
}

/// Jobs with these periods. Those of one period are due together; those of many different ones hardly ever are.
fn jobs(periods_millis: impl IntoIterator<Item = u64>) -> Vec<Job> {
    let job = |(number, period_millis)| Job {
        name: format!("every-{period_millis}ms-{number}"),
        period: Duration::from_millis(period_millis),
        guarantee: Guarantee::AtLeastOnce,
    };
    periods_millis.into_iter().enumerate().map(job).collect()
}

impl Bench {
    async fn start(settings: &Settings, sandbox: &SandboxProcess, port: u16) -> Result<Self, BenchError> {
        let client = sandbox.client().await?;
        let objects = Objects::new(client.clone());
        objects.post_definitions(&settings.tenure).await?;
        let launch = Launch {
            binary: settings.tenure.clone(),
            flags: vec![
                format!("--namespace={NAMESPACE}"),
                format!("--leader-elect-resource-namespace={NAMESPACE}"),
                "--egress-allow=127.0.0.0/8".to_owned(),
            ],
            ledger_host: LEDGER_HOST.to_owned(),
            directory: settings.directory.clone(),
        };
        let mut replicas = Vec::new();
        for number in 0..REPLICAS {
            let kubeconfig = sandbox.kubeconfig_of(&format!("replica-{number}"));
            let mut replica = Replica::new(&launch, number, &kubeconfig)
                .map_err(|source| BenchError::Io { what: "finding a free port".to_owned(), source })?;
            replica.start()?;
            wait_ready(&replica).await?;
            if number == 0 {
                // The first one leads before the second one starts, so that it is known which is which.
                wait_leads(&replica).await?;
            }
            replicas.push(replica);
        }
        let url = format!("http://{LEDGER_HOST}:{port}/bench");
        Ok(Self { client, objects, replicas, url, window: settings.window })
    }

    /// Memory, processor time and requests of replicas that have nothing to do.
    async fn at_rest(&mut self, measured: &mut Measured) -> Result<(), BenchError> {
        let before: Vec<f64> = self.each(processor_seconds)?;
        let window = self.watch_window().await?;
        let after: Vec<f64> = self.each(processor_seconds)?;
        let resident: Vec<f64> = self.each(resident_mb)?;
        let seconds = window.to.since(window.from).as_secs_f64();
        for (place, role) in ["leader", "standby"].into_iter().enumerate() {
            measured.add(format!("{role} at rest, resident"), resident[place], "MB", "at most 15");
            let share = (after[place] - before[place]) / seconds * 100.0;
            measured.add(format!("{role} at rest, processor"), share, "% of 1", "at most 0.5");
            let identity = &self.replicas[place].identity;
            let mut total = 0;
            for ((client, verb, resource), count) in &window.asked {
                if client == identity {
                    total += count;
                }
                if client == identity && *count > 0 {
                    println!("  {role}: {verb} {resource}: {:.1} a minute", per_minute(*count, seconds));
                }
            }
            measured.add(format!("{role} at rest, API requests"), per_minute(total, seconds), "per min", "");
        }
        Ok(())
    }

    /// Runs these jobs for a window.
    async fn due(&mut self, jobs: &[Job]) -> Result<Window, BenchError> {
        for job in jobs {
            self.objects.create_job(job, &self.url, ATTEMPT_TIMEOUT).await?;
        }
        tokio::time::sleep(WARM_UP).await;
        let window = self.watch_window().await?;
        self.objects.delete_all().await?;
        Ok(window)
    }

    /// How much memory the leader takes for each of many jobs that are not due.
    async fn many_jobs(&mut self, measured: &mut Measured) -> Result<(), BenchError> {
        let before = resident_mb(&self.replicas[0])?;
        let spec = json!({ "schedule": "0 0 1 1 *", "http": { "url": self.url } });
        for number in 0..MANY_JOBS {
            self.objects.create(&format!("yearly-{number}"), &spec).await?;
        }
        let planned = async {
            loop {
                let jobs = self.objects.list().await?;
                let ready =
                    |job: &&kube::api::DynamicObject| job.data.pointer("/status/mark").is_some_and(Value::is_string);
                if jobs.iter().filter(ready).count() == MANY_JOBS as usize {
                    return Ok::<(), ObjectError>(());
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        wait::within("every one of the many jobs is in the plan", MANY_JOBS_LIMIT, planned).await??;
        tokio::time::sleep(WARM_UP).await;
        let after = resident_mb(&self.replicas[0])?;
        measured.add(format!("leader with {MANY_JOBS} jobs, resident"), after, "MB", "");
        let each = (after - before) * 1024.0 / f64::from(MANY_JOBS);
        measured.add("memory of one job in the leader", each, "KB", "");
        Ok(self.objects.delete_all().await?)
    }

    async fn watch_window(&self) -> Result<Window, BenchError> {
        let (from, before) = (At::now(), requests(&self.client).await?);
        tokio::time::sleep(self.window).await;
        let (to, mut asked) = (At::now(), requests(&self.client).await?);
        for (key, count) in before {
            asked.entry(key).and_modify(|later| *later -= count);
        }
        Ok(Window { from, to, asked })
    }

    fn each(&self, look: impl Fn(&Replica) -> Result<f64, BenchError>) -> Result<Vec<f64>, BenchError> {
        self.replicas.iter().map(look).collect()
    }

    async fn stop(&mut self) -> Result<(), BenchError> {
        for replica in self.replicas.iter_mut().rev() {
            replica.signal(Signal::TERM)?;
            replica.ended(LEAVE_LIMIT).await?;
        }
        Ok(())
    }
}

/// Adds what a window shows; `targets` are those of the median and of the 99th percentile of the lateness.
fn add_window(
    measured: &mut Measured,
    name: &str,
    targets: [&'static str; 2],
    window: &Window,
    entries: &[Entry],
    timeline: Timeline,
) {
    let inside = || entries.iter().filter(|entry| window.from <= entry.first_byte && entry.first_byte <= window.to);
    let lateness = Lateness::of(inside(), |entry| timeline.wall(entry.first_byte));
    let mut add = |what: &str, value: f64, unit, target| measured.add(format!("{name}: {what}"), value, unit, target);
    add("runs", count(lateness.count()), "", "");
    add("started early", count(lateness.early()), "", "0");
    for (percent, target) in [50, 99].into_iter().zip(targets) {
        add(&format!("lateness p{percent}"), lateness.percentile_ms(percent).unwrap_or(f64::NAN), "ms", target);
    }
    let is_write = |verb: &str| matches!(verb, "create" | "update" | "patch" | "delete");
    let of_jobs = window.asked.iter().filter(|((client, verb, resource), _)| {
        client.starts_with("replica-") && is_write(verb) && resource.starts_with("periodicjobs")
    });
    let writes: u64 = of_jobs.map(|(_, count)| count).sum();
    #[allow(clippy::cast_precision_loss, reason = "a count of requests in a minute")]
    let each = writes as f64 / count(lateness.count());
    add("API writes per run", each, "", "at most 2");
}

async fn wait_ready(replica: &Replica) -> Result<(), BenchError> {
    let ready = async {
        while !replica.is_ready().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    Ok(wait::within("a replica is ready", START_LIMIT, ready).await?)
}

async fn wait_leads(replica: &Replica) -> Result<(), BenchError> {
    let leads = async {
        loop {
            let metrics = get(replica.admin(), "/metrics").await.map(|(_, body)| body);
            let text = metrics.map(|body| String::from_utf8_lossy(&body).into_owned()).unwrap_or_default();
            let leading = |line: &str| line.starts_with("leader_election_master_status{") && line.ends_with(" 1");
            if text.lines().any(leading) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    Ok(wait::within("the first replica leads", START_LIMIT, leads).await?)
}

/// Resident memory, from `/proc`.
fn resident_mb(replica: &Replica) -> Result<f64, BenchError> {
    let text = proc_file(replica, "status")?;
    let kilobytes =
        text.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    Ok(kilobytes.unwrap_or(f64::NAN) / 1024.0)
}

/// Processor time so far, from `/proc`.
fn processor_seconds(replica: &Replica) -> Result<f64, BenchError> {
    let text = proc_file(replica, "stat")?;
    // The name of the program, in parentheses, may hold spaces; user and system time are the 12th and 13th field after it.
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    Ok(fields.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_SECOND)
}

fn proc_file(replica: &Replica, name: &str) -> Result<String, BenchError> {
    let pid = replica.pid().ok_or_else(|| ReplicaError::NotRunning(replica.identity.clone()))?;
    let path = Path::new("/proc").join(pid.to_string()).join(name);
    fs::read_to_string(&path).map_err(|source| BenchError::Io { what: format!("reading {}", path.display()), source })
}

fn per_minute(count: u64, seconds: f64) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "a count of requests in a minute")]
    let count = count as f64;
    count / seconds * 60.0
}

fn count(number: usize) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "a count of runs in a minute")]
    let number = number as f64;
    number
}
