//! README.md says what the binary says: every setting and every metric, and no other.

use std::collections::BTreeSet;

use clap::Args;
use tenure::settings::Settings;

const README: &str = include_str!("../../README.md");
const METRICS: &str = include_str!(
    "../../src/observe/snapshots/tenure__observe__metrics__tests__the_metrics_of_a_leader_follow_the_contract.snap"
);

/// The rows of the table below `heading`: its cells, without the head.
fn table(heading: &str) -> Vec<Vec<String>> {
    let (_, section) = README.split_once(&format!("\n## {heading}\n")).expect("the section exists");
    let section = section.split("\n## ").next().expect("a split has a first piece");
    let rows: Vec<_> = section
        .lines()
        .filter(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect();
    assert!(!rows.is_empty(), "{heading} has a table");
    rows
}

/// What stands between the first two backticks.
fn code(cell: &str) -> &str {
    cell.split('`').nth(1).unwrap_or_default()
}

#[test]
fn the_readme_names_every_setting_with_its_environment_variable_and_no_other() {
    let command = Settings::augment_args(clap::Command::new("run"));
    let real: BTreeSet<(String, String)> = command
        .get_arguments()
        .filter(|argument| !argument.is_hide_set())
        .filter_map(|argument| {
            let variable = argument.get_env().map(|name| name.to_string_lossy().into_owned());
            Some((format!("--{}", argument.get_long()?), variable.unwrap_or_default()))
        })
        .collect();
    let told: BTreeSet<(String, String)> = table("Settings of `tenure run`")
        .iter()
        .map(|row| (code(&row[0]).split(' ').next().unwrap_or_default().to_owned(), code(&row[1]).to_owned()))
        .collect();
    assert_eq!(told, real);
}

#[test]
fn the_readme_names_the_default_of_every_setting_that_has_one() {
    let command = Settings::augment_args(clap::Command::new("run"));
    let rows = table("Settings of `tenure run`");
    for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
        let (Some(long), [default]) = (argument.get_long(), argument.get_default_values()) else { continue };
        let row =
            rows.iter().find(|row| code(&row[0]).starts_with(&format!("--{long} "))).expect("every flag has a row");
        assert_eq!(code(&row[2]), default.to_string_lossy(), "--{long}");
    }
}

#[test]
fn the_readme_names_every_metric_and_no_other() {
    let real: BTreeSet<&str> =
        METRICS.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next()).collect();
    let rows = table("Watching it");
    let told: BTreeSet<&str> = rows.iter().map(|row| code(&row[0]).split('{').next().unwrap_or_default()).collect();
    assert_eq!(told, real);
}
