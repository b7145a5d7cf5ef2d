//! Everything that looks at a family of trials from outside, in one hand: the ledger, the probe, the watcher, and the log of
//! what the harness did.

use std::{io, path::Path, time::Duration};

use crate::{
    clock::{At, Timeline},
    journal::{Journal, write_lines},
    judge::{Guarantee, Job},
    ledger::{Ledger, Log, Verdict},
    probe::{Probe, ProbeLog},
    wait::{self, Overdue},
    watcher::{History, Watcher},
};

/// How long the marks may take to reach the end of the family once it is calm.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);
/// A leader whose last datagram is older than this is not called one. It sends one per millisecond.
const FRESH: Duration = Duration::from_millis(250);

/// The observers of a family.
#[derive(Debug)]
pub struct Observers {
    /// Translates slots to the harness's clock.
    pub timeline: Timeline,
    /// What the harness did.
    pub journal: Journal,
    /// What reached the target.
    pub ledger: Ledger,
    /// Who says that it leads.
    pub probe: Probe,
    /// What was written.
    pub watcher: Watcher,
    /// The jobs.
    pub jobs: Vec<Job>,
}

/// What was seen, once it is over.
#[derive(Debug)]
pub struct Seen {
    /// What was written.
    pub history: History,
    /// What reached the target.
    pub log: Log,
    /// Who said that it led.
    pub probe: ProbeLog,
    /// Datagrams that the probe's socket threw away.
    pub dropped: u32,
}

/// The jobs of every family.
pub fn jobs() -> Vec<Job> {
    let job =
        |name: &str, millis, guarantee| Job { name: name.into(), period: Duration::from_millis(millis), guarantee };
    vec![
        job("fast", 200, Guarantee::AtLeastOnce),
        job("steady", 1000, Guarantee::AtLeastOnce),
        job("careful", 1000, Guarantee::AtMostOnce),
    ]
}

impl Observers {
    /// Who leads and by which token, if somebody was seen to in the last moments.
    pub fn leader(&self) -> Option<(String, u64)> {
        let newest = self.probe.with_log(|log| log.newest().cloned())?;
        (At::now().since(newest.last) < FRESH).then_some((newest.identity, newest.token))
    }

    /// Whether the job has run under this token.
    pub fn has_run(&self, job: &Job, token: u64) -> bool {
        self.ledger.with_log(|log| {
            let mut newest = log.entries().iter().rev().take_while(|entry| entry.request.token == token);
            newest.any(|entry| entry.request.job == job.name && entry.verdict == Verdict::Accepted)
        })
    }

    /// Whether every job has.
    pub fn all_have_run(&self, token: u64) -> bool {
        self.jobs.iter().all(|job| self.has_run(job, token))
    }

    /// Waits until every slot due by `until` is decided and its run has ended.
    pub async fn settle(&self, until: jiff::Timestamp) -> Result<(), Overdue> {
        let settled = || {
            self.watcher.with_history(|history| {
                let settled = |job: &Job| {
                    history.newest(&job.name).is_some_and(|status| {
                        status.mark >= Some(until) && status.active.values().all(|run| run.slot > until)
                    })
                };
                self.jobs.iter().all(settled).then_some(())
            })
        };
        wait::until("every slot due is decided", SETTLE_LIMIT, settled).await
    }

    /// What was seen so far.
    pub fn seen(&self) -> Seen {
        Seen {
            history: self.watcher.history(),
            log: self.ledger.log(),
            probe: self.probe.log(),
            dropped: self.probe.dropped(),
        }
    }
}

impl Seen {
    /// What keeps to no contract, and what was lost on the last few steps: evidence with a hole proves nothing.
    pub fn complaints(&self) -> Vec<String> {
        let count = |count: u64, what: &str| (count > 0).then(|| format!("{count} datagrams {what}"));
        let unreadable = self.log.malformed_requests().iter().chain(self.history.unreadable()).cloned();
        let malformed = count(self.probe.malformed(), "that do not read TOKEN IDENTITY SEQUENCE");
        let dropped = count(self.dropped.into(), "thrown away because the receiver did not keep up");
        unreadable.chain(malformed).chain(dropped).collect()
    }

    /// Writes it to files.
    ///
    /// # Errors
    ///
    /// What the system said.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        write_lines(&directory.join("ledger.jsonl"), self.log.entries())?;
        write_lines(&directory.join("terms.jsonl"), self.probe.terms())?;
        write_lines(&directory.join("late-datagrams.jsonl"), self.probe.late())?;
        for (name, job) in self.history.jobs() {
            write_lines(&directory.join(format!("status-{name}.jsonl")), &job.versions)?;
        }
        Ok(())
    }
}
