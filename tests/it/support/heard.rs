//! What a scheduler tells about itself, kept to be asked.

use std::sync::Mutex;

use tenure::{
    action::JobRef,
    api::Disposition,
    periodic::{AttemptFailure, AttemptStart, JobGauges, Notice, Observer, RunReport},
};

/// Everything that was told.
#[derive(Debug, Default)]
pub struct Heard(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    notices: Vec<Notice>,
    ends: Vec<(String, String)>,
}

impl Heard {
    /// The notices with this reason.
    pub fn notices(&self, reason: &str) -> Vec<Notice> {
        self.0.lock().unwrap().notices.iter().filter(|notice| notice.reason == reason).cloned().collect()
    }

    /// The outcomes that were told of the runs of `job`, in their order.
    pub fn ends(&self, job: &str) -> Vec<String> {
        let told = self.0.lock().unwrap();
        told.ends.iter().filter(|(of, _)| of == job).map(|(_, outcome)| outcome.clone()).collect()
    }
}

impl Observer for Heard {
    fn slots_decided(&self, _: &JobRef, _: Disposition, _: u64) {}

    fn attempt_started(&self, _: &JobRef, _: &AttemptStart<'_>) {}

    fn attempt_failed(&self, _: &JobRef, _: &AttemptFailure<'_>) {}

    fn run_ended(&self, job: &JobRef, end: &RunReport<'_>) {
        self.0.lock().unwrap().ends.push((job.to_string(), end.outcome.as_str().to_owned()));
    }

    fn job_changed(&self, _: &JobRef, _: JobGauges) {}

    fn job_forgotten(&self, _: &JobRef) {}

    fn office_left(&self) {}

    fn notice(&self, notice: Notice) {
        self.0.lock().unwrap().notices.push(notice);
    }
}
