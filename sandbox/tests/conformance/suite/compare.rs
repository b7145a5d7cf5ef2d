//! Finds the differences between two recordings, and holds them against the list of those that are known.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;

use super::Recording;

/// One place where two answers differ.
#[derive(Debug, PartialEq)]
pub(crate) struct Difference {
    pub(crate) scenario: String,
    /// Counted from 1, as a reader of the scenario counts.
    pub(crate) step: usize,
    /// A JSON pointer into the answer.
    pub(crate) at: String,
    pub(crate) expected: Option<Value>,
    pub(crate) found: Option<Value>,
}

/// A difference that is meant to be, and why.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Known {
    pub(crate) scenario: String,
    /// Left out where every step of the scenario may show it.
    pub(crate) step: Option<usize>,
    /// The place, with all that lies below it; `*` stands for any one step.
    pub(crate) at: String,
    /// For the reader of the list, and required so that no entry is without one.
    #[serde(rename = "reason")]
    _reason: String,
}

impl Known {
    fn covers(&self, difference: &Difference) -> bool {
        self.scenario == difference.scenario
            && self.step.is_none_or(|step| step == difference.step)
            && self.covers_place(&difference.at)
    }
}

impl Known {
    fn covers_place(&self, place: &str) -> bool {
        let mut steps = place.split('/');
        self.at.split('/').all(|known| steps.next().is_some_and(|step| known == "*" || known == step))
    }
}

/// Every difference between what was recorded and what was found.
pub(crate) fn differences(expected: &Recording, found: &Recording) -> Vec<Difference> {
    let mut all = Vec::new();
    let scenarios: BTreeSet<_> = expected.scenarios.keys().chain(found.scenarios.keys()).collect();
    let none = Vec::new();
    for scenario in scenarios {
        let left = expected.scenarios.get(scenario).unwrap_or(&none);
        let right = found.scenarios.get(scenario).unwrap_or(&none);
        for step in 0..left.len().max(right.len()) {
            let mut report = |at: String, expected: Option<&Value>, found: Option<&Value>| {
                all.push(Difference {
                    scenario: scenario.clone(),
                    step: step + 1,
                    at,
                    expected: expected.cloned(),
                    found: found.cloned(),
                });
            };
            let (left, right) = (left.get(step), right.get(step));
            let status = |answer: Option<&Value>| answer.and_then(|answer| answer.get("status")).cloned();
            if status(left) == status(right) {
                walk(String::new(), left, right, &mut report);
            } else {
                // One succeeds and the other does not: the bodies have nothing to be compared for, but say why.
                report("/status".to_owned(), left, right);
            }
        }
    }
    all
}

/// What is wrong: differences that nobody lists, and listed ones that are gone. Empty if all is well.
pub(crate) fn verdict(differences: &[Difference], known: &[Known]) -> String {
    let mut lines = Vec::new();
    for difference in differences.iter().filter(|one| !known.iter().any(|known| known.covers(one))) {
        let show = |value: &Option<Value>| value.as_ref().map_or("(absent)".to_owned(), Value::to_string);
        let Difference { scenario, step, at, expected, found } = difference;
        let (expected, found) = (show(expected), show(found));
        lines.push(format!("{scenario} step {step} {at}\n    recorded {expected}\n    found    {found}"));
    }
    for Known { scenario, step, at, .. } in
        known.iter().filter(|known| !differences.iter().any(|one| known.covers(one)))
    {
        let step = step.map_or(String::new(), |step| format!(" step {step}"));
        lines.push(format!("{scenario}{step} {at}: listed in differences.yaml, but there is no difference any more"));
    }
    lines.join("\n")
}

fn walk(
    at: String,
    expected: Option<&Value>,
    found: Option<&Value>,
    report: &mut impl FnMut(String, Option<&Value>, Option<&Value>),
) {
    match (expected, found) {
        (Some(Value::Object(left)), Some(Value::Object(right))) => {
            let names: BTreeSet<_> = left.keys().chain(right.keys()).collect();
            for name in names {
                let escaped = name.replace('~', "~0").replace('/', "~1");
                walk(format!("{at}/{escaped}"), left.get(name), right.get(name), report);
            }
        }
        (Some(Value::Array(left)), Some(Value::Array(right))) => {
            for index in 0..left.len().max(right.len()) {
                walk(format!("{at}/{index}"), left.get(index), right.get(index), report);
            }
        }
        (left, right) if left == right => {}
        (left, right) => report(at, left, right),
    }
}
