//! The sandbox answers as a real API server did.
//!
//! Each file of scenarios is played against the sandbox in-process and compared with the recording of the real server.
//! What may differ is listed in `differences.yaml`, each with its reason; a difference that is not listed fails, and so
//! does an entry that has become untrue. `make parity` holds the recording itself against a real server.
#![allow(clippy::disallowed_methods, reason = "the suite is not part of what is simulated; its clock is tokio's")]

mod checks;
mod suite;

use std::collections::BTreeMap;
use std::path::PathBuf;

use kube::Client;
use rstest::rstest;
use sandbox::Sandbox;

use suite::compare::{self, Known};
use suite::{Recording, play};

#[rstest]
#[tokio::test(start_paused = true)]
async fn the_sandbox_answers_as_the_real_server_did(#[files("tests/conformance/scenarios/*.yaml")] path: PathBuf) {
    let file = suite::load(&path).unwrap();
    let expected = suite::recording(&path).unwrap();
    let client = Client::new(Sandbox::new().service("conformance"), "default");
    play::prepare(&client, &file).await.unwrap();
    let mut found = Recording::default();
    for scenario in &file.scenarios {
        let answers = play::play(&client, &file, scenario).await.unwrap();
        found.scenarios.insert(scenario.id.clone(), answers);
    }
    let mut known: BTreeMap<String, Vec<Known>> = suite::read_yaml(&suite::folder().join("differences.yaml")).unwrap();
    let known = known.remove(path.file_stem().unwrap().to_str().unwrap()).unwrap_or_default();
    let verdict = compare::verdict(&compare::differences(&expected, &found), &known);
    assert!(verdict.is_empty(), "the sandbox differs from {}:\n{verdict}", expected.server);
}

#[test]
fn every_recording_and_every_listed_difference_belongs_to_a_file_of_scenarios() {
    let names = |folder: &str| {
        let entries = std::fs::read_dir(suite::folder().join(folder)).unwrap();
        let names = entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned());
        names.collect::<std::collections::BTreeSet<_>>()
    };
    let scenarios = names("scenarios");
    assert_eq!(scenarios, names("recorded"));
    let known: BTreeMap<String, Vec<Known>> = suite::read_yaml(&suite::folder().join("differences.yaml")).unwrap();
    for name in known.keys() {
        assert!(scenarios.contains(name), "differences.yaml lists {name}, which is no file of scenarios");
    }
}
