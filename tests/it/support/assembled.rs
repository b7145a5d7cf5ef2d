//! A replica as the binary assembles it, in this process: its settings are flags, its ground is the lab's.

use std::sync::{Arc, atomic::AtomicBool};

use clap::{Args, Command, FromArgMatches};
use serde_json::Value;
use tenure::{
    Leadership,
    apiserver::ApiServer,
    clock::SimulatedClock,
    entropy::SeededEntropy,
    replica::{Ground, Replica},
    settings::Settings,
    tasks::Tasks,
};

use super::{
    freeze::Freezer,
    lab::{Drift, LEASE, Lab, NAMESPACE, TaskWatchdog},
    ledger::Ledger,
};

/// A replica on a machine of its own.
pub struct Assembled {
    pub name: String,
    pub clock: Arc<SimulatedClock>,
    pub freezer: Freezer,
    /// Where its admin port listens.
    pub admin: String,
    replica: Replica,
}

impl Assembled {
    /// Starts a replica with these flags, beside those that every replica of the lab has.
    pub async fn start(lab: &Lab, ledger: &Ledger, name: &str, flags: &[&str]) -> Self {
        let fixed = ["run", "--identity", name, "--namespace", NAMESPACE, "--leader-elect-resource-name", LEASE];
        let command = Settings::augment_args(Command::new("run"));
        let matches = command.try_get_matches_from(fixed.iter().chain(flags)).unwrap();
        let settings = Settings::from_arg_matches(&matches).unwrap();
        let (clock, freezer) = (lab.machine_clock(Drift::NONE), Freezer::default());
        let way = || ApiServer::from_service(lab.sandbox.service(name), NAMESPACE, clock.clone());
        let seed = name.bytes().fold(lab.seed, |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let ground = Ground {
            clock: clock.clone(),
            entropy: SeededEntropy::shared(seed),
            dial: ledger.dial(name),
            watchdog: Arc::new(TaskWatchdog { freezer: freezer.clone(), aborted: Arc::new(AtomicBool::new(false)) }),
            election_api: way(),
            api: way(),
            admin: tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap(),
            tasks: Tasks::new(Arc::new(freezer.clone())),
        };
        let replica = Replica::start(&settings, ground).await.unwrap();
        let admin = replica.admin_address().to_string();
        Self { name: name.to_owned(), clock, freezer, admin, replica }
    }

    pub fn leadership(&self) -> Leadership {
        self.replica.leadership()
    }

    /// What its guard says at this instant.
    pub fn leads(&self) -> bool {
        !self.freezer.is_killed() && self.leadership().term().is_some()
    }

    /// What its admin port answers to `path`.
    pub async fn ask(&self, path: &str) -> (u16, String) {
        let (address, path) = (self.admin.clone(), path.to_owned());
        tokio::task::spawn_blocking(move || super::process::get(&address, &path)).await.unwrap()
    }

    /// Its `/status`.
    pub async fn status(&self) -> Value {
        serde_json::from_str(&self.ask("/status").await.1).unwrap()
    }
}
