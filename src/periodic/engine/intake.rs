//! What comes in by the watch, and what becomes of jobs that are gone.

use std::collections::BTreeSet;

use kube::{Resource, ResourceExt, runtime::watcher};

use super::{
    super::{job::Job, observer::Urgency},
    Engine,
};
use crate::{
    action::JobRef,
    api::PeriodicJob,
    item::{Item, Why},
};

impl Engine {
    pub(super) fn on_watch(&mut self, event: watcher::Event<Item<PeriodicJob>>) {
        match event {
            watcher::Event::Init => self.listed = Some(BTreeSet::new()),
            watcher::Event::InitApply(object) => {
                let seen = self.see_listed(object);
                if let (Some(listed), Some(job)) = (&mut self.listed, seen) {
                    listed.insert(job);
                }
            }
            watcher::Event::InitDone => {
                let listed = self.listed.take().unwrap_or_default();
                let gone: Vec<JobRef> = self.jobs.keys().filter(|job| !listed.contains(*job)).cloned().collect();
                for job in &gone {
                    self.gone(job, None);
                }
                self.unreadable.retain(|job| listed.contains(job));
                self.state.send_modify(|state| state.synced = true);
            }
            watcher::Event::Apply(object) => drop(self.see(object)),
            watcher::Event::Delete(object) => {
                let (Some(namespace), Some(name)) = (object.namespace(), object.meta().name.clone()) else { return };
                let job = JobRef { namespace, name };
                self.unreadable.remove(&job);
                self.gone(&job, object.uid().as_deref());
            }
        }
    }

    /// Takes in an object from a list. One that is older than what is known was listed before our last write, or the store
    /// was put back to a backup: a read tells.
    fn see_listed(&mut self, object: Item<PeriodicJob>) -> Option<JobRef> {
        if let Ok(object) = &object.0
            && let (Some(namespace), Some(name)) = (object.namespace(), object.metadata.name.clone())
            && let Some(job) = self.jobs.get_mut(&JobRef { namespace, name })
        {
            job.doubtful |= job.is_newer_than(object);
        }
        self.see(object)
    }

    /// Takes in an object from the watch.
    fn see(&mut self, object: Item<PeriodicJob>) -> Option<JobRef> {
        let key = JobRef { namespace: object.namespace()?, name: object.meta().name.clone()? };
        match object.0 {
            Ok(object) => {
                self.unreadable.remove(&key);
                self.take_in(&key, Box::new(object));
            }
            Err(unreadable) => {
                if self.unreadable.insert(key.clone()) {
                    let uid = unreadable.metadata.uid.clone().unwrap_or_default();
                    let remedy = match unreadable.why {
                        Why::TooDeep => "make spec.jobTemplate flatter",
                        Why::Shape(_) => "run the version that it was written for, or take back what is newer",
                    };
                    let note = format!(
                        "this version of Tenure cannot read the object and leaves it alone: {}; {remedy}",
                        unreadable.why
                    );
                    self.notice(&key, &uid, Urgency::Warning, "Unreadable", note);
                }
                match self.jobs.get_mut(&key) {
                    Some(job) if unreadable.metadata.uid.as_ref() == Some(&job.uid) => {
                        job.cannot_be_read();
                        self.alarms.clear(&key);
                    }
                    // Another object has its name now.
                    _ => self.gone(&key, None),
                }
            }
        }
        Some(key)
    }

    pub(in super::super) fn take_in(&mut self, key: &JobRef, object: Box<PeriodicJob>) {
        let now = self.now();
        match self.jobs.get_mut(key) {
            None => {
                if let Some(job) = Job::new(&object, now) {
                    self.jobs.insert(key.clone(), job);
                }
            }
            Some(job) if object.uid().as_deref() == Some(&job.uid) => {
                let news = job.absorb(&object, now);
                if self.office.is_some() && job.is_owned_by(&self.controller) {
                    let uid = job.uid.clone();
                    self.tell_news(key, &uid, &news);
                }
            }
            // Another object of that name: it waits until what the one before it started has ended.
            Some(job) => {
                job.successor = Some(object);
                job.deleted = true;
            }
        }
        self.advance(key);
    }

    fn gone(&mut self, key: &JobRef, uid: Option<&str>) {
        if let Some(job) = self.jobs.get_mut(key)
            && uid.is_none_or(|uid| uid == job.uid)
        {
            job.deleted = true;
            self.advance(key);
        }
    }

    /// Ends what a deleted job has going on, and makes room for its successor.
    pub(super) fn bury(&mut self, key: &JobRef, mut job: Job) {
        self.cancel_runs(&mut job);
        if job.busy || !job.runs.is_empty() {
            self.jobs.insert(key.clone(), job);
            return;
        }
        self.observer.job_forgotten(key);
        if let Some(successor) = job.successor.take() {
            self.take_in(key, successor);
        }
    }
}
