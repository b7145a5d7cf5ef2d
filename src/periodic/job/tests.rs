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
