//! `jobTemplate`: one Kubernetes Job per run, followed to its end.
//!
//! The creation is the act: it goes through the gated client, and the name, which follows from the run id, makes it happen
//! once whoever tries. The Job then goes on by itself. What is followed here is a fact about it, so an attempt that is
//! taken over begins by looking for what the leader before has left, and a leader that stops leaves the Job to the next
//! one ([`EndKind::LeftRunning`]) instead of cutting it off.
//!
//! A Job that ends is a complete answer, a failed one too: its pods were tried as often as its `backoffLimit` says. What is
//! tried again here is the creation. A Job that is deleted before its end was seen leaves the run in doubt.

mod deletion;
mod sights;
mod template;

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, PostParams, Preconditions},
    core::DynamicResourceScope,
};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

pub use self::template::{TemplateError, check, job_name};
use self::{
    deletion::Deletion,
    sights::{Lookout, Sight, Sights},
};
use super::{Action, ActionSpec, Attempt, AttemptEnd, EndKind, JobRef, Tidy, Trial};
use crate::{
    api::{Guarantee, JobTemplate},
    apiserver::{ApiServer, NotSent},
    backoff::Backoff,
    clock::{self, BootTime, SharedClock},
    election::{Guard, TermEnded},
    entropy::SharedEntropy,
    explain::{explain, explain_answer},
    item::Item,
    tasks::Tasks,
};

/// Creates the Jobs of `jobTemplate` actions and follows them.
#[derive(Debug)]
pub struct JobRunner {
    api: ApiServer,
    sights: Sights,
    clock: SharedClock,
    entropy: SharedEntropy,
    stopping: CancellationToken,
}

/// How long the API server may take for one answer: admission webhooks have ten seconds each.
const ANSWER_DEADLINE: Duration = Duration::from_secs(15);

/// While the replica stops, the answer to a creation that is under way is waited for this long: without it, a run that may
/// be made at most once is in doubt.
const LAST_ANSWER: Duration = Duration::from_secs(2);

/// The pause after an answer that settled nothing.
const PAUSE: Backoff = Backoff { initial: Duration::from_millis(50), max: Duration::from_secs(5) };

/// How long the removal of old Jobs may take: a hand-over waits for it.
const TIDY_DEADLINE: Duration = Duration::from_secs(5);

/// A Job of which nothing is seen is asked for this often: a watch may be silent because its connection is.
const ASK_AGAIN: Duration = Duration::from_mins(5);

/// Whether a Job may be there that nobody has seen.
struct Doubt {
    /// Another leader, or an attempt before this one, may have created it.
    begun_before: bool,
    /// When the creation was sent that may have come through.
    sent: Option<BootTime>,
}

impl Doubt {
    const fn is_any(&self) -> bool {
        self.begun_before || self.sent.is_some()
    }
}

/// What a creation came to.
enum Created {
    /// It is there, made now or before.
    There(Box<DynamicObject>),
    /// It is not, or that is not known.
    Not(AttemptEnd),
}

/// What the API server said.
enum Said {
    There(Box<DynamicObject>),
    Exists,
    /// Certainly not done, and asking again is of no use.
    No(String),
    /// Certainly not done, this time.
    NotNow(String),
    Unsent,
    Unknown(String),
}

impl JobRunner {
    /// A runner that reaches the API server by `api` and looks at the Jobs of `namespace`, or of all namespaces, until
    /// `stopping`: from then on, Jobs are left to the next leader.
    pub fn new(
        api: ApiServer,
        namespace: Option<String>,
        clock: SharedClock,
        entropy: SharedEntropy,
        tasks: Tasks,
        stopping: CancellationToken,
    ) -> Self {
        let sights = Sights::new(api.clone(), namespace, clock.clone(), entropy.clone(), tasks, stopping.clone());
        Self { api, sights, clock, entropy, stopping }
    }

    /// Without a template, a Job that was created before is followed, and none is created.
    async fn run(&self, attempt: &Attempt, template: Option<&JobTemplate>) -> AttemptEnd {
        let name = job_name(&attempt.job.name, &attempt.run_id);
        let mut lookout = self.sights.look_out(JobRef { namespace: attempt.job.namespace.clone(), name: name.clone() });
        let found = if attempt.begun_before {
            match self.look_up(attempt, &name).await {
                Ok(found) => found,
                Err(end) => return end,
            }
        } else {
            None
        };
        let job = match (found, template) {
            (Some(job), _) => job,
            (None, None) => {
                let message = format!("there is no Job {name}, and the spec has no valid jobTemplate to create one by");
                return end(EndKind::LeftNothing, message);
            }
            (None, Some(_)) if attempt.begun_before && attempt.guarantee == Guarantee::AtMostOnce => {
                let message = format!("there is no Job {name}; whether there was one is not known");
                return end(EndKind::NoAnswer, message);
            }
            (None, Some(template)) => match self.create(attempt, template, &name).await {
                Created::There(job) => job,
                Created::Not(end) => return end,
            },
        };
        match template::is_ours(&job, &attempt.uid, &attempt.run_id) {
            Err(message) => end(EndKind::NameTaken, message),
            Ok(()) => self.follow(attempt, *job, &mut lookout).await,
        }
    }

    /// Creates the Job, until that has happened, is refused, or the attempt's time is up. A creation that may have come
    /// through is looked for; it is not sent again when the run is to make room or the replica stops.
    async fn create(&self, attempt: &Attempt, template: &JobTemplate, name: &str) -> Created {
        let object = template::build(attempt, template, name);
        let deadline = self.clock.boot() + attempt.timeout;
        let mut doubt = Doubt { begun_before: attempt.begun_before, sent: None };
        let mut tries = 0_u32;
        loop {
            if let Some(end) = self.gives_way(attempt, name, &doubt, tries) {
                return Created::Not(end);
            }
            let why = match self.next_creation(attempt, &object, &mut doubt).await {
                Said::There(job) => return Created::There(job),
                Said::No(message) if doubt.sent.is_none() => {
                    return Created::Not(end(EndKind::Unsent, format!("the Job {name} is not created: {message}")));
                }
                Said::Unsent if !doubt.is_any() => {
                    let message = "the term ended before the Job was created".to_owned();
                    return Created::Not(end(EndKind::TermEnded, message));
                }
                Said::Unsent => return Created::Not(left_running(name)),
                Said::Exists => "it could not be read".to_owned(),
                Said::NotNow(message) | Said::No(message) | Said::Unknown(message) => message,
            };
            match self.look_up(attempt, name).await {
                Ok(Some(job)) => return Created::There(job),
                Ok(None) => {}
                Err(end) => return Created::Not(end),
            }
            if self.clock.boot() >= deadline {
                let message = format!("the Job {name} could not be created within {:?}: {why}", attempt.timeout);
                return Created::Not(end(EndKind::TimedOut { sent: doubt.sent.is_some() }, message));
            }
            tries = tries.saturating_add(1);
            self.pause(attempt, tries).await;
        }
    }

    /// The end of an attempt whose Job is not to be created any more. An intent that is stored when the replica is told to
    /// stop is acted on, once.
    fn gives_way(&self, attempt: &Attempt, name: &str, doubt: &Doubt, tries: u32) -> Option<AttemptEnd> {
        let (leave, replace) =
            (attempt.wishes.leave.is_cancelled() && tries > 0, attempt.wishes.replace.is_cancelled());
        if leave && doubt.is_any() {
            return Some(left_running(name));
        }
        if leave {
            return Some(end(EndKind::TermEnded, "the replica stops, and the Job was not created yet".to_owned()));
        }
        // One that was sent may still arrive: it is looked for until the API server has given it up.
        let settled = doubt.sent.is_none_or(|sent| self.clock.boot() >= sent + ANSWER_DEADLINE);
        (replace && settled).then(|| {
            let certain = !doubt.is_any();
            end(EndKind::Replaced { certain }, replaced("before its Job was created"))
        })
    }

    /// Asks for the creation, unless it may have come through and must not be sent again.
    async fn next_creation(&self, attempt: &Attempt, object: &Value, doubt: &mut Doubt) -> Said {
        // Under AtMostOnce the Job of a first creation may have come and gone by now.
        let once_only = attempt.guarantee == Guarantee::AtMostOnce || attempt.wishes.replace.is_cancelled();
        if doubt.sent.is_some() && once_only {
            return Said::Unknown("the answer to its creation was lost, and nothing is seen of it".to_owned());
        }
        let sent = self.clock.boot();
        let said = tokio::select! {
            biased;
            said = self.ask_for_creation(&attempt.guard, &attempt.job.namespace, object, false) => said,
            () = self.after_leave(attempt) => Said::Unknown("there was no answer yet when the replica stopped".to_owned()),
        };
        if matches!(said, Said::Unknown(_)) {
            doubt.sent = Some(sent);
        }
        said
    }

    async fn after_leave(&self, attempt: &Attempt) {
        attempt.wishes.leave.cancelled().await;
        clock::sleep(&*self.clock, LAST_ANSWER).await;
    }

    /// A pause between two tries, unless something is wished meanwhile.
    async fn pause(&self, attempt: &Attempt, tries: u32) {
        let (leave, replace) = (&attempt.wishes.leave, &attempt.wishes.replace);
        let wished_before = replace.is_cancelled();
        tokio::select! {
            biased;
            () = leave.cancelled() => {}
            () = replace.cancelled(), if !wished_before => {}
            () = clock::sleep(&*self.clock, PAUSE.wait(tries, &*self.entropy)) => {}
        }
    }

    async fn ask_for_creation(&self, guard: &Guard, namespace: &str, object: &Value, dry_run: bool) -> Said {
        let object: DynamicObject = match serde_json::from_value(object.clone()) {
            Ok(object) => object,
            Err(error) => return Said::No(format!("it cannot be written as an object: {error}")),
        };
        let parameters = PostParams { dry_run, ..PostParams::default() };
        let jobs = jobs(self.api.gated_client(guard), namespace);
        match clock::timeout(&*self.clock, ANSWER_DEADLINE, jobs.create(&parameters, &object)).await {
            Ok(Ok(job)) => Said::There(Box::new(job)),
            Ok(Err(error)) => said(&error),
            Err(elapsed) => Said::Unknown(elapsed.to_string()),
        }
    }

    /// The Job of that name, past every cache. It is asked for until there is an answer: without one, nothing can be
    /// decided.
    async fn look_up(&self, attempt: &Attempt, name: &str) -> Result<Option<Box<DynamicObject>>, AttemptEnd> {
        let jobs: Api<DynamicObject> = jobs(self.api.client(), &attempt.job.namespace);
        let mut tries = 0_u32;
        loop {
            match clock::timeout(&*self.clock, ANSWER_DEADLINE, jobs.get_opt(name)).await {
                Ok(Ok(found)) => return Ok(found.map(Box::new)),
                Ok(Err(error)) if tries == 0 => {
                    tracing::warn!(job = name, error = %explain_answer(&error), "A Job cannot be read");
                }
                Ok(Err(_)) | Err(_) => {}
            }
            tries = tries.saturating_add(1);
            let pause = clock::sleep(&*self.clock, PAUSE.wait(tries, &*self.entropy));
            tokio::select! {
                biased;
                () = attempt.wishes.leave.cancelled() => return Err(left_running(name)),
                () = pause => {}
            }
        }
    }

    /// Waits for the end of the Job.
    async fn follow(&self, attempt: &Attempt, mut job: DynamicObject, lookout: &mut Lookout) -> AttemptEnd {
        let (name, uid) = (job.name_any(), job.uid());
        let mut deletion = Deletion::NotAsked;
        loop {
            if let Some(verdict) = deletion.lets_stand(template::verdict(&job)) {
                return end(verdict.kind, verdict.message);
            }
            let asked = self.clock.boot() + ASK_AGAIN;
            let sight = tokio::select! {
                biased;
                () = attempt.wishes.leave.cancelled() => return left_running(&name),
                () = attempt.wishes.replace.cancelled(), if deletion.is_not_asked() => {
                    deletion = Deletion::UnderWay(self.delete(attempt, &name, uid.clone()).boxed());
                    continue;
                }
                sight = next_sight(lookout, &self.clock, asked) => sight,
                accepted = deletion.answer() => {
                    deletion = if accepted { Deletion::Accepted } else { Deletion::NotOurs };
                    // What became of the Job is seen by asking, should the watch have nothing to tell.
                    Sight::Absent
                }
            };
            let gone = match sight {
                Sight::There(seen) if seen.uid() == uid => {
                    job = Arc::unwrap_or_clone(seen);
                    false
                }
                Sight::Gone(seen) if seen.uid() == uid => {
                    job = Arc::unwrap_or_clone(seen);
                    true
                }
                _ => match self.look_up(attempt, &name).await {
                    Err(end) => return end,
                    Ok(Some(found)) if found.uid() == uid => {
                        job = *found;
                        false
                    }
                    Ok(_) => true,
                },
            };
            if gone {
                // The answer to a deletion may come after the watch has shown what it did, or not at all.
                if matches!(deletion, Deletion::UnderWay(_)) {
                    let accepted = tokio::select! {
                        biased;
                        () = attempt.wishes.leave.cancelled() => return left_running(&name),
                        answer = clock::timeout(&*self.clock, ANSWER_DEADLINE, deletion.answer()) => answer,
                    };
                    deletion = if accepted == Ok(true) { Deletion::Accepted } else { Deletion::NotOurs };
                }
                return match deletion.lets_stand(template::verdict(&job)) {
                    Some(verdict) => end(verdict.kind, verdict.message),
                    None => deletion.end_of(&name),
                };
            }
        }
    }

    /// Deletes the Job, until that is done or it is gone, and says whether it was deleted here. Foreground: it stays until
    /// its pods are gone, so that none of them works beside those of the run that takes its place.
    async fn delete(&self, attempt: &Attempt, name: &str, uid: Option<String>) -> bool {
        let preconditions = Preconditions { uid, resource_version: None };
        let parameters = DeleteParams::foreground().preconditions(preconditions);
        let jobs: Api<DynamicObject> = jobs(self.api.gated_client(&attempt.guard), &attempt.job.namespace);
        let mut tries = 0_u32;
        loop {
            match clock::timeout(&*self.clock, ANSWER_DEADLINE, jobs.delete(name, &parameters)).await {
                Ok(Ok(_)) => return true,
                Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => return false,
                Ok(Err(error)) if tries == 0 => {
                    let error = explain_answer(&error);
                    tracing::warn!(job = name, error, "A Job that is to be replaced cannot be deleted");
                }
                Ok(Err(_)) | Err(_) => {}
            }
            tries = tries.saturating_add(1);
            clock::sleep(&*self.clock, PAUSE.wait(tries, &*self.entropy)).await;
        }
    }

    async fn remove_surplus(&self, tidy: &Tidy) -> Result<(), kube::Error> {
        let jobs: Api<Item<DynamicObject>> = jobs(self.api.gated_client(&tidy.guard), &tidy.job.namespace);
        let listed = jobs.list(&ListParams::default().labels(&template::selector_of(&tidy.uid))).await?;
        let readable: Vec<_> = listed.items.into_iter().filter_map(|job| job.0.ok()).collect();
        for job in template::surplus(&readable, tidy) {
            let preconditions = Preconditions { uid: job.uid(), resource_version: None };
            let parameters = DeleteParams::background().preconditions(preconditions);
            match jobs.delete(&job.name_any(), &parameters).await {
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                answer => drop(answer?),
            }
        }
        Ok(())
    }
}

impl Action for JobRunner {
    fn attempt(&self, attempt: Attempt) -> BoxFuture<'_, AttemptEnd> {
        async move {
            match &attempt.action {
                ActionSpec::Job(template) => self.run(&attempt, Some(template)).await,
                ActionSpec::BegunJob => self.run(&attempt, None).await,
                ActionSpec::Http(_) => end(EndKind::Unsent, "this action is not a Job".to_owned()),
            }
        }
        .boxed()
    }

    fn try_out(&self, sample: Attempt) -> BoxFuture<'_, Trial> {
        async move {
            let ActionSpec::Job(template) = &sample.action else { return Trial::Passed };
            let object = template::build(&sample, template, &job_name(&sample.job.name, &sample.run_id));
            let asked = self.ask_for_creation(&sample.guard, &sample.job.namespace, &object, true);
            let Some(said) = self.stopping.run_until_cancelled(asked).await else {
                return Trial::Unknown("the replica stops".to_owned());
            };
            match said {
                Said::There(_) | Said::Exists => Trial::Passed,
                Said::No(message) => Trial::Refused(message),
                Said::NotNow(message) | Said::Unknown(message) => Trial::Unknown(message),
                Said::Unsent => Trial::Unknown("the term has ended".to_owned()),
            }
        }
        .boxed()
    }

    fn tidy(&self, tidy: Tidy) -> BoxFuture<'_, ()> {
        async move {
            let error = match clock::timeout(&*self.clock, TIDY_DEADLINE, self.remove_surplus(&tidy)).await {
                Ok(Ok(())) => return,
                Ok(Err(kube::Error::Service(inner))) if inner.is::<TermEnded>() => return,
                Ok(Err(error)) => explain_answer(&error),
                Err(elapsed) => elapsed.to_string(),
            };
            tracing::warn!(periodicjob = %tidy.job, error, "Old Jobs were not deleted; the next run that ends tries again");
        }
        .boxed()
    }
}

fn jobs<K>(client: Client, namespace: &str) -> Api<K>
where
    K: Resource<DynamicType = ApiResource, Scope = DynamicResourceScope>,
{
    Api::namespaced_with(client, namespace, &ApiResource::erase::<k8s_openapi::api::batch::v1::Job>(&()))
}

fn said(error: &kube::Error) -> Said {
    match error {
        kube::Error::Api(status) => match (status.code, status.reason.as_str()) {
            (409, "AlreadyExists") => Said::Exists,
            // A conflict over a quota, or too many requests: the same request may pass a moment later.
            (409 | 429, _) => Said::NotNow(explain_answer(error)),
            // The server's own time was up, wherever the request was by then.
            (408, _) => Said::Unknown(explain_answer(error)),
            (400..=499, _) => Said::No(explain_answer(error)),
            _ => Said::Unknown(explain_answer(error)),
        },
        kube::Error::Service(inner) if inner.is::<TermEnded>() => Said::Unsent,
        kube::Error::Service(inner) if inner.is::<NotSent>() => Said::NotNow(inner.to_string()),
        _ => Said::Unknown(explain(error)),
    }
}

async fn next_sight(lookout: &mut Lookout, clock: &SharedClock, until: BootTime) -> Sight {
    clock::timeout_at(&**clock, until, lookout.next()).await.unwrap_or(Sight::Absent)
}

fn end(kind: EndKind, message: String) -> AttemptEnd {
    AttemptEnd { kind, message, retry_after: None, first_byte: None }
}

fn left_running(name: &str) -> AttemptEnd {
    end(EndKind::LeftRunning, format!("the Job {name} is left to the next leader"))
}

fn replaced(how: &str) -> String {
    format!("replaced by a newer slot, {how}")
}
