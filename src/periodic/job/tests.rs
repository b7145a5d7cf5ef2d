//! What a job believes of two versions of its object.

use jiff::Timestamp;
use serde_json::json;

use super::*;

fn object(version: u64, token: u64) -> PeriodicJob {
    let epoch = "2026-01-05T10:00:00.000Z";
    serde_json::from_value(json!({
        "apiVersion": "tenure.dev/v1alpha1",
        "kind": "PeriodicJob",
        "metadata": { "name": "tick", "namespace": "default", "uid": "u", "resourceVersion": version.to_string() },
        "spec": { "interval": "1s", "http": { "url": "http://example.com/" } },
        "status": {
            "controller": "default/main",
            "term": { "token": token, "nonce": "n" },
            "origin": epoch,
            "mark": epoch,
            "counts": {},
            "active": {},
            "writeId": "w",
        },
    }))
    .expect("an object")
}

fn token(job: &Job) -> Option<u64> {
    job.status.as_ref().map(|status| status.term.token)
}

#[test]
fn an_older_version_is_no_news_unless_a_read_shows_that_the_store_went_back() {
    let now = Instant::new(Timestamp::UNIX_EPOCH);
    let mut job = Job::new(&object(100, 9), now).expect("it has a name");
    let backup = object(50, 4);
    job.absorb(&backup, now);
    assert_eq!(token(&job), Some(9), "a list or a watch may be late");
    assert!(job.is_newer_than(&backup));

    job.note_read(&object(100, 9), 100);
    job.absorb(&backup, now);
    assert_eq!(token(&job), Some(9), "what is known has been read again");

    // A read that was sent when nothing newer than version 50 was known may well bring that.
    job.note_read(&backup, 50);
    job.absorb(&backup, now);
    assert_eq!(token(&job), Some(9));

    job.note_read(&backup, 100);
    job.absorb(&backup, now);
    assert_eq!(token(&job), Some(4), "the store has nothing newer");
}

#[test]
fn an_attempt_that_was_begun_before_is_never_recorded_as_not_made() {
    let now = Instant::new(Timestamp::UNIX_EPOCH);
    let mut job = Job::new(&object(1, 9), now).expect("it has a name");
    job.compiled.policy.guarantee = Guarantee::AtMostOnce;
    let term = TermRef { token: 9, nonce: "n".to_owned() };
    let intent = |taken_over: bool| ActiveRun {
        slot: now,
        generation: 1,
        term: term.clone(),
        attempt: 1,
        started_at: now,
        not_before: now,
        deadline: now,
        run_deadline: now,
        recoveries: 0,
        wait_bound: None,
        last_failure: None,
        ended_at: None,
        trigger: None,
        action: None,
        taken_over,
    };
    let waiting =
        |taken_over| Run { intent: intent(taken_over), state: RunState::Waiting, hold: None, in_doubt: false };
    job.runs.insert("new".to_owned(), waiting(false));
    job.runs.insert("begun".to_owned(), waiting(true));
    job.give_back_waiting(now, None);
    assert!(matches!(job.runs["new"].state, RunState::LeftOpen(_)), "it is told that nothing was sent");
    assert!(!job.runs.contains_key("begun"), "its intent stays as it is: the next leader looks for what it left");
}
