//! What is done to replicas and to the Lease from outside.

use std::collections::BTreeMap;

use k8s_openapi::api::coordination::v1::Lease;
use rand::Rng;

use super::world::{Happening, REPLICAS, SECOND, World, pick};
use crate::election::machine::{Contention, Event};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Disturbance {
    Freeze,
    CutOff,
    Kill,
    Stop,
    StandAside,
    WatchDies,
    Delete,
    Edit,
    PutBack,
    Foreign,
}

impl World {
    pub(super) fn disturb(&mut self) {
        self.judge.disturbed = self.now;
        let weights = BTreeMap::from([
            (Disturbance::Freeze, 4),
            (Disturbance::CutOff, 3),
            (Disturbance::Kill, 3),
            (Disturbance::Stop, 2),
            (Disturbance::StandAside, 1),
            (Disturbance::WatchDies, 2),
            (Disturbance::Delete, 2),
            (Disturbance::Edit, 2),
            (Disturbance::PutBack, 3),
            (Disturbance::Foreign, 1),
        ]);
        // The leader is hit more often than chance would.
        let anyone = self.rng.random_range(0..REPLICAS);
        let leader = (0..REPLICAS).find(|index| self.replicas[*index].may_act(self.now));
        let victim = leader.filter(|_| self.rng.random_bool(0.6)).unwrap_or(anyone);
        let process = self.replicas[victim].process;
        match pick(&mut self.rng, &weights) {
            Disturbance::Freeze => {
                let until = self.now + self.rng.random_range(SECOND..40 * SECOND);
                let replica = &mut self.replicas[victim];
                replica.frozen_until = replica.frozen_until.max(until);
            }
            Disturbance::CutOff => {
                let after = self.rng.random_range(SECOND..60 * SECOND);
                let replica = &mut self.replicas[victim];
                replica.cut_off_until = replica.cut_off_until.max(self.now + after);
                // Its watch is lost, and opened again when that is possible.
                self.schedule(0, Happening::WatchOpens(victim, process));
            }
            Disturbance::Kill => self.kill(victim),
            Disturbance::Stop => {
                if self.replicas[victim].running && !self.replicas[victim].stopping {
                    self.replicas[victim].stopping = true;
                    self.schedule(0, Happening::Reaches(victim, process, Event::Stop));
                }
            }
            Disturbance::StandAside => {
                let after = self.rng.random_range(SECOND..30 * SECOND);
                self.replicas[victim].aside_until = self.now + after;
                let contend = |contention| Happening::Reaches(victim, process, Event::Contend(contention));
                self.schedule(0, contend(Contention::StandAside));
                self.schedule(after, contend(Contention::Contend));
            }
            Disturbance::WatchDies => {
                for replica in &mut self.replicas {
                    replica.watch_dead |= self.rng.random_bool(0.5);
                }
            }
            // A client of another make that does not notice promises nothing that could be waited for.
            Disturbance::Delete | Disturbance::Edit | Disturbance::PutBack if self.foreign.may_act(self.now) => {}
            Disturbance::Delete | Disturbance::Edit | Disturbance::PutBack
                if self.setting.mixed_leases && !self.everybody_knows() => {}
            Disturbance::Delete => {
                self.tampered = self.now;
                self.judge.written = self.now;
                if self.store.delete().is_some() {
                    self.tell();
                }
            }
            Disturbance::Edit => self.edit(),
            Disturbance::PutBack => self.put_back(),
            Disturbance::Foreign => self.foreign_tries(200),
        }
        // Now and then a second fault falls into the consequences of the first.
        let after = if self.rng.random_bool(0.3) { 3 * SECOND } else { 40 * SECOND };
        let after = self.rng.random_range(SECOND / 10..after);
        self.schedule(after, Happening::Disturbs);
    }

    /// SIGKILL, and a restart in the same pod or in another one.
    fn kill(&mut self, index: usize) {
        if !self.replicas[index].running {
            return;
        }
        self.replicas[index].running = false;
        let after = if self.rng.random_bool(0.6) { SECOND } else { 30 * SECOND };
        let after = self.rng.random_range(SECOND / 100..after);
        self.schedule(after, Happening::Starts(index));
    }

    fn edit(&mut self) {
        let Some(mut lease) = self.store.lease().cloned() else { return };
        let what = self.rng.random_range(0..4);
        let spec = lease.spec.get_or_insert_default();
        match what {
            0 => spec.holder_identity = Some(String::new()),
            1 => spec.holder_identity = Some("bob".to_owned()),
            2 => spec.lease_duration_seconds = Some(1),
            _ => {
                let label = self.now.to_string();
                lease.metadata.labels.get_or_insert_default().insert("touched".to_owned(), label);
            }
        }
        self.tampered = self.now;
        self.commit(lease, "kubectl-edit");
    }

    /// A manifest that was saved some time ago, of the present Lease or of one before it.
    fn put_back(&mut self) {
        let history = self.store.history();
        if history.is_empty() {
            return;
        }
        let back = if self.rng.random_bool(0.5) { history.len().min(8) } else { history.len() };
        let index = history.len() - 1 - self.rng.random_range(0..back);
        let Lease { mut metadata, spec } = self.store.history()[index].clone();
        metadata.managed_fields = None;
        self.tampered = self.now;
        self.commit(Lease { metadata, spec }, "kubectl-replace");
    }

    /// Tries to lead every 300 ms, so many times.
    pub(super) fn foreign_tries(&mut self, left: u32) {
        self.foreign_acquires();
        if left > 0 {
            self.schedule(SECOND * 3 / 10, Happening::ForeignTries(left - 1));
        }
    }
}
