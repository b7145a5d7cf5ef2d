//! What happened in a simulation, in its order: the same seed has to tell the same story.

use std::{
    fmt::Write,
    sync::{Arc, Mutex},
};

use sha2::{Digest, Sha256};
use tenure::clock::{BootTime, Clock, SimulatedClock};

/// The story. Clones tell the same one.
#[derive(Debug, Clone)]
pub struct Story {
    clock: Arc<SimulatedClock>,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Story {
    pub fn new(clock: Arc<SimulatedClock>) -> Self {
        Self { clock, lines: Arc::default() }
    }

    pub fn tell(&self, who: &str, what: &str) {
        self.tell_of(self.clock.boot(), who, what);
    }

    pub fn tell_of(&self, at: BootTime, who: &str, what: &str) {
        let at = at.since_origin().as_secs_f64();
        self.lines.lock().unwrap().push(format!("{at:14.6} {who:<10} {what}"));
    }

    pub fn hash(&self) -> String {
        let mut hasher = Sha256::new();
        for line in &*self.lines.lock().unwrap() {
            hasher.update(line);
            hasher.update("\n");
        }
        hasher.finalize().iter().take(8).fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").unwrap();
            text
        })
    }

    /// The newest `count` lines.
    pub fn end(&self, count: usize) -> String {
        let lines = self.lines.lock().unwrap();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }

    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }
}
