//! The API server as the scheduler sees it: reads and writes of one object, and what their answers mean.
//!
//! An answer is one of three things: what is stored now, a certain no, or doubt. Doubt (a lost or late answer, a server
//! error) is never taken for a no: the caller reads before it goes on.

use std::time::Duration;

use json_patch::Patch;
use kube::{
    Api, Client,
    api::{Patch as KubePatch, PatchParams},
};

use crate::{
    action::JobRef,
    api::PeriodicJob,
    apiserver::NotSent,
    clock::{self, SharedClock},
    election::TermEnded,
    explain::explain,
    item::Item,
};

/// What a read brought.
#[derive(Debug)]
pub enum ReadAnswer {
    /// The object.
    Found(Box<PeriodicJob>),
    /// There is none of that name.
    Gone,
    /// There is one that this version cannot read.
    Unreadable(String),
    /// Nothing.
    Failed(String),
    /// Nothing, for lack of a right.
    Forbidden(String),
}

/// What became of a write.
#[derive(Debug)]
pub enum WriteAnswer {
    /// It is stored; this is the object now.
    Written(Box<PeriodicJob>),
    /// One of its tests failed, and nothing is stored.
    Refused,
    /// There is no such object.
    Gone,
    /// The term had ended, and nothing was sent.
    Unsent,
    /// It is certain that nothing is stored.
    NotDone(String),
    /// The same, for lack of a right.
    Forbidden(String),
    /// It may be stored, now or later.
    Unknown(String),
}

/// How long an answer may take before it counts as lost. A read settles what became of the write, so the price of a
/// deadline that is too short is one read.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

/// Reads `job`, past every cache.
pub async fn read(client: Client, clock: SharedClock, job: JobRef) -> ReadAnswer {
    let objects = Api::<Item<PeriodicJob>>::namespaced(client, &job.namespace);
    match clock::timeout(&*clock, ANSWER_DEADLINE, objects.get_opt(&job.name)).await {
        Ok(Ok(Some(Item(Ok(object))))) => ReadAnswer::Found(Box::new(object)),
        Ok(Ok(Some(Item(Err(unreadable))))) => ReadAnswer::Unreadable(unreadable.why.to_string()),
        Ok(Ok(None)) => ReadAnswer::Gone,
        Ok(Err(kube::Error::Api(status))) if status.code == 403 => ReadAnswer::Forbidden(status.message),
        Ok(Err(error)) => ReadAnswer::Failed(explain(&error)),
        Err(elapsed) => ReadAnswer::Failed(elapsed.to_string()),
    }
}

/// Sends `patch` to the status of `job`.
pub async fn write(client: Client, clock: SharedClock, job: JobRef, patch: Patch) -> WriteAnswer {
    let objects = Api::<Item<PeriodicJob>>::namespaced(client, &job.namespace);
    let (parameters, patch) = (PatchParams::default(), KubePatch::Json::<()>(patch));
    let sent = objects.patch_status(&job.name, &parameters, &patch);
    match clock::timeout(&*clock, ANSWER_DEADLINE, sent).await {
        Ok(Ok(Item(Ok(object)))) => WriteAnswer::Written(Box::new(object)),
        Ok(Ok(Item(Err(unreadable)))) => WriteAnswer::Unknown(unreadable.why.to_string()),
        Ok(Err(error)) => refusal(&error),
        Err(elapsed) => WriteAnswer::Unknown(elapsed.to_string()),
    }
}

fn refusal(error: &kube::Error) -> WriteAnswer {
    match error {
        kube::Error::Api(status) => match status.code {
            404 => WriteAnswer::Gone,
            409 | 422 => WriteAnswer::Refused,
            403 => WriteAnswer::Forbidden(explain(&error)),
            400..=499 => WriteAnswer::NotDone(explain(&error)),
            _ => WriteAnswer::Unknown(explain(&error)),
        },
        kube::Error::Service(inner) if inner.is::<TermEnded>() => WriteAnswer::Unsent,
        kube::Error::Service(inner) if inner.is::<NotSent>() => WriteAnswer::NotDone(inner.to_string()),
        _ => WriteAnswer::Unknown(explain(&error)),
    }
}
