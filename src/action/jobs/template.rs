//! From a `jobTemplate` to the Job that is created, and from a Job to how it ended: pure.
//!
//! The name follows from the job's name and the run id alone, so that every leader that makes the same run means the same
//! object: the API server refuses the second creation, and what a leader left behind is found by its name. A Job counts as
//! this run's only if its owner reference has this object's UID and its label has this run's id.

use jiff::Timestamp;
use kube::api::DynamicObject;
use serde_json::{Map, Value, json};

use super::super::{Attempt, EndKind, Tidy};
use crate::api::{Guarantee, JobTemplate};

/// The label with the run id; every Job that was made here has it.
pub(in super::super) const RUN_ID_LABEL: &str = "tenure.dev/run-id";

/// The label with the UID of the `PeriodicJob`.
pub(super) const OWNER_LABEL: &str = "tenure.dev/periodicjob-uid";

/// The label with the slot, which is written so that a label can hold it: `20260105T100000.200Z`.
pub(super) const SLOT_LABEL: &str = "tenure.dev/slot";

const TOKEN_LABEL: &str = "tenure.dev/token";
const ATTEMPT_LABEL: &str = "tenure.dev/attempt";

/// The annotation with the slot as RFC 3339.
const SLOT_ANNOTATION: &str = "tenure.dev/scheduled-at";

/// A name may be this long: the Job's name is a label of its pods.
const NAME_MAX: usize = 63;

/// So many digits of the run id are part of the name: two runs of one job do not share 64 bits.
const NAME_DIGITS: usize = 16;

/// The pod templates' lists of containers; the variables of a run are set in each of their entries.
const CONTAINER_LISTS: [&str; 2] = ["initContainers", "containers"];

/// A template that cannot be used as it is written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// There is no spec in it.
    #[error(
        "spec.jobTemplate.spec: expected the spec of a Job of batch/v1, with a template of its pods; it is missing"
    )]
    NoSpec,
    /// Its pods may be tried again.
    #[error(
        "spec.jobTemplate.spec.{field}: expected {expected} with guarantee AtMostOnce, found {found}: pods that are tried \
         again may do the work twice; set it to {expected}, or guarantee to AtLeastOnce"
    )]
    TriesAgain {
        /// Which field decides that.
        field: &'static str,
        /// What it has to be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
}

/// How a Job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) kind: EndKind,
    pub(super) message: String,
}

/// What is wrong with `template`, as far as that can be known without the API server.
///
/// # Errors
/// [`TemplateError`] names the field, what is wrong, and what may be written instead.
pub fn check(template: &JobTemplate, guarantee: Guarantee) -> Result<(), TemplateError> {
    let spec = template.0.get("spec").filter(|spec| spec.is_object()).ok_or(TemplateError::NoSpec)?;
    if guarantee == Guarantee::AtLeastOnce {
        return Ok(());
    }
    let limit = &spec["backoffLimit"];
    if limit.as_i64() != Some(0) {
        let found = if limit.is_null() { "none, which means 6".to_owned() } else { limit.to_string() };
        return Err(TemplateError::TriesAgain { field: "backoffLimit", expected: "0", found });
    }
    let policy = &spec["template"]["spec"]["restartPolicy"];
    if policy.as_str() != Some("Never") {
        let found = if policy.is_null() { "none".to_owned() } else { policy.to_string() };
        return Err(TemplateError::TriesAgain { field: "template.spec.restartPolicy", expected: "Never", found });
    }
    Ok(())
}

/// The name of the Job of a run: the job's name, cut to what fits and with dots as dashes, and the run id's first digits.
pub fn job_name(job: &str, run_id: &str) -> String {
    let digits: String = run_id.chars().take(NAME_DIGITS).collect();
    let room = NAME_MAX.saturating_sub(digits.len() + 1);
    let stem: String = job.chars().take(room).map(|c| if c == '.' { '-' } else { c }).collect();
    format!("{}-{digits}", stem.trim_end_matches('-'))
}

/// The Job of an attempt.
pub(super) fn build(attempt: &Attempt, template: &JobTemplate, name: &str) -> Value {
    let slot = crate::api::Instant::new(attempt.slot);
    let part = |field: &str| template.0.get("metadata").and_then(|metadata| metadata[field].as_object()).cloned();
    let mut labels = part("labels").unwrap_or_default();
    labels.extend(Map::from_iter([
        (OWNER_LABEL.to_owned(), json!(attempt.uid)),
        (RUN_ID_LABEL.to_owned(), json!(attempt.run_id)),
        (SLOT_LABEL.to_owned(), json!(slot_label(attempt.slot))),
        (TOKEN_LABEL.to_owned(), json!(attempt.guard.token().to_string())),
        (ATTEMPT_LABEL.to_owned(), json!(attempt.attempt.to_string())),
    ]));
    let mut annotations = part("annotations").unwrap_or_default();
    annotations.insert(SLOT_ANNOTATION.to_owned(), json!(slot));
    let mut spec = template.0.get("spec").cloned().unwrap_or_else(|| json!({}));
    if let Some(limit) = attempt.active_deadline {
        let limit = i64::try_from(limit.as_secs()).unwrap_or(i64::MAX).max(1);
        let limit = spec["activeDeadlineSeconds"].as_i64().map_or(limit, |given| given.min(limit));
        spec["activeDeadlineSeconds"] = json!(limit);
    }
    set_environment(&mut spec, attempt, slot);
    json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {
            "name": name, "namespace": attempt.job.namespace, "labels": labels, "annotations": annotations,
            // Without blockOwnerDeletion, which would need permission on the finalizers of PeriodicJobs.
            "ownerReferences": [{
                "apiVersion": "tenure.dev/v1alpha1", "kind": "PeriodicJob", "name": attempt.job.name,
                "uid": attempt.uid, "controller": true,
            }],
        },
        "spec": spec,
    })
}

/// The contract's variables come first, so that those of the template can refer to them; one of the same name in the
/// template gives way.
fn set_environment(spec: &mut Value, attempt: &Attempt, slot: crate::api::Instant) {
    let contract = [
        ("RUN_ID", attempt.run_id.clone()),
        ("RUN_SLOT", slot.to_string()),
        ("RUN_ATTEMPT", attempt.attempt.to_string()),
        ("RUN_TOKEN", attempt.guard.token().to_string()),
    ];
    for list in CONTAINER_LISTS {
        let Some(containers) = spec.pointer_mut(&format!("/template/spec/{list}")).and_then(Value::as_array_mut) else {
            continue;
        };
        for container in containers.iter_mut().filter_map(Value::as_object_mut) {
            let given = container.get("env").and_then(Value::as_array).cloned().unwrap_or_default();
            let is_ours = |variable: &Value| contract.iter().any(|(name, _)| variable["name"] == *name);
            let ours = contract.iter().map(|(name, value)| json!({ "name": name, "value": value }));
            let all: Vec<Value> = ours.chain(given.into_iter().filter(|variable| !is_ours(variable))).collect();
            container.insert("env".to_owned(), Value::Array(all));
        }
    }
}

/// Whether the Job is that of this run, or why not.
pub(super) fn is_ours(job: &DynamicObject, uid: &str, run_id: &str) -> Result<(), String> {
    let owners = job.metadata.owner_references.as_deref().unwrap_or_default();
    let name = job.metadata.name.as_deref().unwrap_or_default();
    if !is_owned(job, uid) {
        let owner =
            owners.first().map_or_else(|| "nobody".to_owned(), |owner| format!("{} {}", owner.kind, owner.name));
        return Err(format!(
            "NameTaken: there is a Job {name} already, and it belongs to {owner} and not to this object; remove it, or \
             give this object another name"
        ));
    }
    if label_of(job, RUN_ID_LABEL) != Some(run_id) {
        return Err(format!("NameTaken: the Job {name} belongs to another run of this object; remove it"));
    }
    Ok(())
}

/// How the Job ended, if it has. `SuccessCriteriaMet` and `FailureTarget` are no end: its pods are still being stopped.
pub(super) fn verdict(job: &DynamicObject) -> Option<Verdict> {
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let conditions = job.data["status"]["conditions"].as_array()?;
    let holds = |kind: &str| conditions.iter().find(|known| known["type"] == kind && known["status"] == "True");
    if holds("Complete").is_some() {
        return Some(Verdict { kind: EndKind::JobSucceeded, message: format!("the Job {name} completed") });
    }
    let failed = holds("Failed")?;
    let said = |field: &str| failed[field].as_str().unwrap_or_default();
    let kind = if said("reason") == "DeadlineExceeded" { EndKind::JobTimedOut } else { EndKind::JobFailed };
    Some(Verdict { kind, message: format!("the Job {name} failed: {}: {}", said("reason"), said("message")) })
}

/// The label selector of the Jobs of one object.
pub(super) fn selector_of(uid: &str) -> String {
    format!("{OWNER_LABEL}={uid}")
}

/// The Jobs that are more than the limits let stay: of those that have ended and whose runs' ends are recorded, the oldest.
pub(super) fn surplus<'a>(jobs: &'a [DynamicObject], tidy: &Tidy) -> Vec<&'a DynamicObject> {
    let until = slot_label(tidy.until);
    let is_old = |job: &DynamicObject| {
        job.metadata.creation_timestamp.as_ref().is_some_and(|created| created.0 < tidy.older_than)
    };
    let has_begun_before =
        |job: &DynamicObject| is_old(job) || label_of(job, SLOT_LABEL).is_some_and(|slot| slot <= &*until);
    let is_recorded = |job: &DynamicObject| {
        label_of(job, RUN_ID_LABEL)
            .is_some_and(|run| run == tidy.ended || (!tidy.open.contains(run) && has_begun_before(job)))
    };
    let is_ours = |job: &&DynamicObject| job.metadata.deletion_timestamp.is_none() && is_owned(job, &tidy.uid);
    let mut ended: Vec<_> = jobs
        .iter()
        .filter(is_ours)
        .filter(|job| is_recorded(job))
        .filter_map(|job| verdict(job).map(|verdict| (job, verdict.kind)))
        .collect();
    ended.sort_by_key(|(job, _)| std::cmp::Reverse(label_of(job, SLOT_LABEL)));
    let (mut succeeded, mut others) = (0, 0);
    ended.retain(|(_, kind)| {
        let (kept, limit) =
            if *kind == EndKind::JobSucceeded { (&mut succeeded, tidy.successful) } else { (&mut others, tidy.failed) };
        *kept += 1;
        *kept > limit
    });
    ended.into_iter().map(|(job, _)| job).collect()
}

fn is_owned(job: &DynamicObject, uid: &str) -> bool {
    let owners = job.metadata.owner_references.as_deref().unwrap_or_default();
    owners.iter().any(|owner| owner.controller == Some(true) && owner.uid == uid)
}

fn label_of<'a>(job: &'a DynamicObject, name: &str) -> Option<&'a str> {
    job.metadata.labels.as_ref()?.get(name).map(String::as_str)
}

/// A slot as the value of a label: such texts sort as the slots do.
fn slot_label(slot: Timestamp) -> String {
    slot.strftime("%Y%m%dT%H%M%S%.3fZ").to_string()
}

#[cfg(test)]
mod tests;
