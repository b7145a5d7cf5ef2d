//! The writes to a job's status, each with the fences that make it safe: JSON Patch documents, built purely.
//!
//! A patch is built from the status it was planned on and the status it is to bring about. What differs is written; what
//! must not have changed meanwhile is named in `test` operations, and the API server refuses the whole patch (422) if one
//! of them fails. A user's label or annotation fails none of them; an edit of the spec, another term or another plan does.
//! A `test` of the resource version would refuse more than that, and is used only where there is no status to test yet.
//!
//! Left to others: what the next status is ([`super::record`]), sending, and what an answer means.

use json_patch::{
    AddOperation, Patch, PatchOperation, RemoveOperation, ReplaceOperation, TestOperation, jsonptr::PointerBuf,
};
use serde::Serialize;

use crate::api::{ActiveRun, ConditionType, PeriodicJobStatus};

/// A status cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum PatchError {
    /// It is not JSON. Never so for the types of this crate.
    #[error("the status cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// The first status of an object. There is nothing in it to test, and JSON Patch cannot add below a status that is
/// absent, so the resource version is tested.
pub fn first_status(uid: &str, resource_version: &str, next: &PeriodicJobStatus) -> Result<Patch, PatchError> {
    let mut ops = Operations::for_object(uid)?;
    ops.test(&["metadata", "resourceVersion"], &resource_version)?;
    ops.add(&["status"], next)?;
    Ok(ops.done())
}

/// A claim for another term: the object is still owned by the Lease and claimed by the term that were seen. It may change
/// the owner, too.
pub fn claim(uid: &str, base: &PeriodicJobStatus, next: &PeriodicJobStatus) -> Result<Patch, PatchError> {
    let mut ops = Operations::for_object(uid)?;
    ops.test(&["status", "controller"], &base.controller)?;
    ops.test(&["status", "term"], &base.term)?;
    ops.changes(base, next)?;
    Ok(ops.done())
}

/// Gives up the ownership of a job: as a claim, and no run is open.
pub fn let_go(uid: &str, base: &PeriodicJobStatus, next: &PeriodicJobStatus) -> Result<Patch, PatchError> {
    let mut ops = Operations::for_object(uid)?;
    ops.test(&["status", "controller"], &base.controller)?;
    ops.test(&["status", "term"], &base.term)?;
    ops.test(&["status", "active"], &serde_json::Map::new())?;
    ops.changes(base, next)?;
    Ok(ops.done())
}

/// Whether an intent requires that no run is active.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActiveFence {
    /// A run is started under Forbid or Replace.
    MustBeEmpty,
    /// Runs may be active beside it, or none is started.
    MayHoldRuns,
}

/// The one write that moves the mark, stores the dispositions and stores the intents.
pub fn intent(
    uid: &str,
    generation: i64,
    base: &PeriodicJobStatus,
    next: &PeriodicJobStatus,
    fence: ActiveFence,
) -> Result<Patch, PatchError> {
    let mut ops = Operations::for_object(uid)?;
    ops.test(&["metadata", "generation"], &generation)?;
    ops.test(&["status", "term"], &base.term)?;
    ops.test(&["status", "mark"], &base.mark)?;
    if fence == ActiveFence::MustBeEmpty {
        ops.test(&["status", "active"], &serde_json::Map::new())?;
    }
    if next.last_trigger != base.last_trigger {
        // A trigger need not move the mark: without this, a first try that arrives late would repeat a run that the second
        // try has stored and that has ended since.
        ops.test(&["status", "writeId"], &base.write_id)?;
    }
    ops.changes(base, next)?;
    Ok(ops.done())
}

/// The next attempt of a run, or the taking over of one: an intent to act, fenced by the claim as every intent is.
pub fn attempt(
    uid: &str,
    generation: i64,
    base: &PeriodicJobStatus,
    next: &PeriodicJobStatus,
    run_id: &str,
) -> Result<Patch, PatchError> {
    let mut ops = Operations::for_object(uid)?;
    ops.test(&["metadata", "generation"], &generation)?;
    ops.test(&["status", "term"], &base.term)?;
    ops.test_run(run_id, base.active.get(run_id))?;
    ops.changes(base, next)?;
    Ok(ops.done())
}

/// The result of a run, or of an attempt: a fact, which holds whoever is in office, as long as the run's own intent is
/// untouched. What it rewrites as a whole is tested too, so that two results never overwrite each other.
pub fn result(
    uid: &str,
    base: &PeriodicJobStatus,
    next: &PeriodicJobStatus,
    run_id: &str,
) -> Result<Patch, PatchError> {
    let mut ops = Operations::for_object(uid)?;
    ops.test_run(run_id, base.active.get(run_id))?;
    ops.test(&["status", "consecutiveFailures"], &base.consecutive_failures)?;
    ops.test(&["status", "lastRuns"], &base.last_runs)?;
    ops.changes(base, next)?;
    Ok(ops.done())
}

struct Operations(Vec<PatchOperation>);

impl Operations {
    /// Every patch is for one object, not for a later one of the same name.
    fn for_object(uid: &str) -> Result<Self, PatchError> {
        let mut ops = Self(Vec::new());
        ops.test(&["metadata", "uid"], &uid)?;
        Ok(ops)
    }

    fn test(&mut self, path: &[&str], value: &impl Serialize) -> Result<(), PatchError> {
        let (path, value) = (pointer(path), serde_json::to_value(value)?);
        self.0.push(PatchOperation::Test(TestOperation { path, value }));
        Ok(())
    }

    fn add(&mut self, path: &[&str], value: &impl Serialize) -> Result<(), PatchError> {
        let (path, value) = (pointer(path), serde_json::to_value(value)?);
        self.0.push(PatchOperation::Add(AddOperation { path, value }));
        Ok(())
    }

    fn remove(&mut self, path: &[&str]) {
        self.0.push(PatchOperation::Remove(RemoveOperation { path: pointer(path) }));
    }

    fn test_run(&mut self, run_id: &str, run: Option<&ActiveRun>) -> Result<(), PatchError> {
        let Some(run) = run else { return Ok(()) };
        self.test(&["status", "active", run_id, "term"], &run.term)?;
        self.test(&["status", "active", run_id, "attempt"], &run.attempt)
    }

    /// Writes what differs. Open runs and conditions are written one by one: two writers may each change their own.
    fn changes(&mut self, base: &PeriodicJobStatus, next: &PeriodicJobStatus) -> Result<(), PatchError> {
        self.active_changes(base, next)?;
        self.condition_changes(base, next)?;
        let (base, next) = (serde_json::to_value(base)?, serde_json::to_value(next)?);
        let (Some(base), Some(next)) = (base.as_object(), next.as_object()) else { return Ok(()) };
        let apart = |field: &String| field == "active" || field == "conditions";
        for (field, value) in next.iter().filter(|(field, _)| !apart(field)) {
            if base.get(field) != Some(value) {
                self.add(&["status", field], value)?;
            }
        }
        for field in base.keys().filter(|field| !apart(field) && !next.contains_key(*field)) {
            self.remove(&["status", field]);
        }
        Ok(())
    }

    fn active_changes(&mut self, base: &PeriodicJobStatus, next: &PeriodicJobStatus) -> Result<(), PatchError> {
        for (id, run) in &next.active {
            if base.active.get(id) != Some(run) {
                self.add(&["status", "active", id], run)?;
            }
        }
        for id in base.active.keys().filter(|id| !next.active.contains_key(*id)) {
            self.remove(&["status", "active", id]);
        }
        Ok(())
    }

    fn condition_changes(&mut self, base: &PeriodicJobStatus, next: &PeriodicJobStatus) -> Result<(), PatchError> {
        let kinds = |status: &PeriodicJobStatus| -> Vec<ConditionType> {
            status.conditions.iter().map(|condition| condition.kind).collect()
        };
        if kinds(base) != kinds(next) {
            return self.add(&["status", "conditions"], &next.conditions);
        }
        for (index, (before, after)) in base.conditions.iter().zip(&next.conditions).enumerate() {
            if before != after {
                let index = index.to_string();
                self.test(&["status", "conditions", &index, "type"], &after.kind)?;
                let path = pointer(&["status", "conditions", &index]);
                let value = serde_json::to_value(after)?;
                self.0.push(PatchOperation::Replace(ReplaceOperation { path, value }));
            }
        }
        Ok(())
    }

    fn done(self) -> Patch {
        Patch(self.0)
    }
}

fn pointer(path: &[&str]) -> PointerBuf {
    PointerBuf::from_tokens(path.iter().copied())
}

#[cfg(test)]
mod tests;
