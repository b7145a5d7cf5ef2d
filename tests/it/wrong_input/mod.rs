//! Wrong input: each row of `docs/wrong-input.md` is given to the program, which says what stands in the row. What is all
//! right goes on beside it.
//!
//! The same tests play on the sandbox, and on a real API server if one is named (`make wrong-input`): one table, two worlds.

mod real;
mod table;
mod waiting;
mod world;

use std::{net::TcpListener, time::Duration};

use serde_json::{Value, json};

use self::{
    table::{RefusedBy, Row, rows},
    world::{WRONG, World, play},
};
use crate::support::process::tenure;

/// What a row says, and what was said. All of them are compared at the end, so that one run shows every difference.
#[derive(Default)]
struct Differences(Vec<String>);

impl Differences {
    fn compare(&mut self, row: &Row, expected: &str, said: &str) {
        println!(
            "{} {:?}: {}",
            if expected == said { "as in the table " } else { "NOT IN THE TABLE" },
            row.refused_by,
            row.case
        );
        if expected != said {
            self.0.push(format!("{}\n  the table: {expected}\n  was said:  {said}", row.case));
        }
    }

    fn assert_none(&self) {
        assert!(self.0.is_empty(), "{} rows are not as in the table:\n{}", self.0.len(), self.0.join("\n"));
    }
}

/// The spec of a row: its fields, with a right action or a right schedule beside them.
fn spec(row: &Row) -> Value {
    let text = row.input.replace("<65537 times x>", &"x".repeat(65_537));
    let mut spec: Value = serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", row.input));
    let fields = spec.as_object_mut().unwrap_or_else(|| panic!("no fields: {}", row.input));
    if fields.contains_key("http") || fields.contains_key("jobTemplate") {
        fields.entry("interval").or_insert(json!("1s"));
    } else {
        fields.insert("http".to_owned(), json!({ "url": "http://target.test/" }));
    }
    if row.refused_by == RefusedBy::Event {
        fields.insert("interval".to_owned(), json!("1s"));
    }
    spec
}

#[test]
fn a_wrong_object_is_refused_as_the_table_says_and_the_other_jobs_go_on() {
    play(give_wrong_objects());
}

async fn give_wrong_objects() {
    let world = World::start(10).await;
    let mut differences = Differences::default();
    let said_of_objects = [RefusedBy::Kubectl, RefusedBy::Schema, RefusedBy::Ready, RefusedBy::Run, RefusedBy::Event];
    for row in rows(&said_of_objects) {
        let created = if row.refused_by == RefusedBy::Event {
            world.install_a_newer_definition().await;
            world.create_when_allowed(WRONG, &spec(&row)).await;
            Ok(())
        } else {
            world.create(WRONG, spec(&row), true).await
        };
        let said = match row.refused_by {
            RefusedBy::Kubectl | RefusedBy::Schema => created.err().unwrap_or_else(|| "it was accepted".to_owned()),
            RefusedBy::Ready => match created {
                Ok(()) => world.message_of_false("Ready").await,
                Err(message) => message,
            },
            RefusedBy::Run => match created {
                Ok(()) => world.message_of_false("LastRunSucceeded").await,
                Err(message) => message,
            },
            _ => world.note_of_event("Unreadable").await,
        };
        let prefix =
            if row.refused_by == RefusedBy::Schema { "PeriodicJob.tenure.dev \"wrong\" is invalid: " } else { "" };
        differences.compare(&row, &format!("{prefix}{}", row.message), &said);
        world.healthy_goes_on().await;
        assert!(!world.wrong_has_called(), "{}: a request was sent", row.case);
        match row.refused_by {
            RefusedBy::Kubectl => {
                let without_kubectl = world.create(WRONG, spec(&row), false).await;
                assert_eq!(without_kubectl, Ok(()), "{}: it is not kubectl that refuses it", row.case);
            }
            RefusedBy::Event => {
                world.edit(WRONG, json!({ "spec": { "catchUp": "Latest" } })).await;
                world.wrong_runs().await;
            }
            _ => {}
        }
        if row.refused_by != RefusedBy::Schema {
            world.delete(WRONG).await;
        }
    }
    differences.assert_none();
    let (status, slots) = world.healthy().await;
    let counts = &status.counts;
    assert_eq!(counts.slots(), slots as u64, "a slot was lost: {status:#?}");
    // In real time, a run on a busy machine may take longer than the interval, and what becomes of the next slot is said.
    let busy = if real::is_named() { counts.overlap + counts.coalesced + counts.late } else { 0 };
    assert_eq!(counts.ran + busy, slots as u64, "a slot did not run: {status:#?}");
    assert_eq!(status.consecutive_failures, 0);
}

#[test]
fn an_api_server_that_is_gone_for_a_minute_costs_no_slot_and_doubles_none() {
    play(lose_the_api_server_for_a_minute());
}

async fn lose_the_api_server_for_a_minute() {
    let world = World::start(11).await;
    world.cut_off_for(Duration::from_mins(1)).await;
    world.healthy_goes_on().await;
    let (status, slots) = world.healthy().await;
    assert_eq!(status.counts.slots(), slots as u64, "a slot was lost: {status:#?}");
    assert!(status.counts.ran >= 4 && slots > 120, "{:?} of {slots}", status.counts);
    let (requests, distinct) = world.healthy_runs();
    assert_eq!(requests, distinct, "a slot was run twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_settings_end_the_start_as_the_table_says() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().map(|address| (taken, address.to_string())).unwrap();
    real::kubeconfig_in(&folder, taken.1.parse().unwrap()).await;
    std::fs::write(folder.path().join("broken.yaml"), "{").unwrap();
    let no_context = "apiVersion: v1\nkind: Config\ncurrent-context: moon\n";
    std::fs::write(folder.path().join("moon.yaml"), no_context).unwrap();
    let mut differences = Differences::default();
    for row in rows(&[RefusedBy::StartUp]) {
        let input = row.input.replace("<taken>", &taken.1);
        let mut arguments = vec!["run"];
        for (flag, value) in [("--admin-address", "127.0.0.1:0"), ("--kubeconfig", "kubeconfig")] {
            if !input.contains(flag) {
                arguments.extend([flag, value]);
            }
        }
        arguments.extend(input.split(' '));
        let output = tenure(&arguments).current_dir(folder.path()).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(matches!(output.status.code(), Some(1 | 2)), "{}: {:?}", row.case, output.status);
        let said = errors.lines().find_map(|line| line.strip_prefix("error: ")).unwrap_or(&errors);
        differences.compare(&row, &row.message.replace("<taken>", &taken.1), said);
    }
    differences.assert_none();
}
