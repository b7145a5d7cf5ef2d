//! Whether an installation has certainly never had a leader: then a Lease that is missing is created at once.
//!
//! The evidence is in the jobs: there are some in scope, and no leader has claimed any of them. Without a job there is no
//! evidence, and the answer is no, which costs the first start of an empty installation one lease duration. Nothing else
//! will do: a Lease that is missing may have been deleted, and a Deployment, a namespace or a definition that is new may be
//! there for the second time. A leader on a node that is cut off has heard of none of that, and goes on for as long as its
//! Lease would have lasted.

use std::time::Duration;

use kube::{Resource, api::ListParams, core::Request};
use serde::{Deserialize, de::IgnoredAny};

use crate::{
    api::PeriodicJob,
    apiserver::ApiServer,
    clock,
    explain::{explain, explain_answer},
};

/// An API server that has just taken the definition of the jobs does not serve them at once; so long is the pause before
/// it is asked again. The elector asks for a moment only, and then waits as if somebody might have led.
const NOT_SERVED_PAUSE: Duration = Duration::from_millis(200);

/// So many jobs are asked for at once.
const PAGE_MAX: u32 = 500;

/// A page of the list, as far as it matters. What users have written into their objects is skipped without being looked at,
/// however deep it is.
#[derive(Debug, Deserialize)]
struct Page {
    #[serde(default)]
    metadata: PageMeta,
    items: Vec<Listed>,
}

#[derive(Debug, Default, Deserialize)]
struct PageMeta {
    #[serde(rename = "continue")]
    rest: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Listed {
    /// A leader writes it with its first claim.
    status: Option<IgnoredAny>,
}

/// A page of the list cannot be had.
#[derive(Debug, thiserror::Error)]
enum PageError {
    #[error("{}", explain_answer(.0))]
    Answer(#[from] kube::Error),
    #[error("the list cannot be read: {0}")]
    Content(#[from] serde_json::Error),
    #[error("the list cannot be asked for: {0}")]
    Request(#[from] kube::core::request::Error),
}

/// Whether there are jobs in scope and none of them has ever been claimed by a term: then nobody can still hold a Lease that
/// is not there. Asks until it is answered.
pub async fn never_led(api: ApiServer, scope: Option<String>) -> bool {
    let mut told = false;
    loop {
        match unclaimed(&api, scope.as_deref()).await {
            Ok(unclaimed) => return unclaimed,
            Err(error) if !told => {
                told = true;
                let error = explain(&error);
                tracing::info!(error, "Jobs cannot be listed yet: until they are, a missing Lease is waited for");
            }
            Err(_) => {}
        }
        clock::sleep(&**api.clock(), NOT_SERVED_PAUSE).await;
    }
}

/// Whether there is a job, and none with a status.
async fn unclaimed(api: &ApiServer, scope: Option<&str>) -> Result<bool, PageError> {
    let asking = Request::new(PeriodicJob::url_path(&(), scope));
    let (mut params, mut any) = (ListParams::default().limit(PAGE_MAX), false);
    loop {
        // The client logs what it cannot read itself, with every user's text in it: so it only fetches.
        let text = api.client().request_text(asking.list(&params)?).await?;
        let page: Page = serde_json::from_str(&text)?;
        if page.items.iter().any(|job| job.status.is_some()) {
            return Ok(false);
        }
        any |= !page.items.is_empty();
        match page.metadata.rest.filter(|rest| !rest.is_empty()) {
            Some(rest) => params.continue_token = Some(rest),
            None => return Ok(any),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, sync::Mutex};

    use http::{Response, StatusCode};
    use http_body_util::Full;
    use jiff::{SignedDuration, Timestamp};
    use kube::client::Body;

    use super::*;
    use crate::clock::{RATE_ONE, SimulatedClock};

    /// What an API server says that answers in this order.
    async fn asked(mut answers: Vec<(u16, String)>) -> (bool, Vec<String>) {
        answers.reverse();
        let (answers, asked) = (std::sync::Arc::new(Mutex::new(answers)), std::sync::Arc::new(Mutex::new(Vec::new())));
        let seen = asked.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            seen.lock().expect("not poisoned").push(request.uri().to_string());
            let (code, body) = answers.lock().expect("not poisoned").pop().expect("it is asked so often");
            let mut answer = Response::new(Full::<bytes::Bytes>::from(body));
            *answer.status_mut() = StatusCode::from_u16(code).expect("it is one");
            std::future::ready(Ok::<_, Infallible>(answer))
        });
        let clock = SimulatedClock::new(Timestamp::UNIX_EPOCH, RATE_ONE, SignedDuration::ZERO);
        let fresh = never_led(ApiServer::from_service(service, "default", clock), None).await;
        let asked = asked.lock().expect("not poisoned").clone();
        (fresh, asked)
    }

    fn page(items: &str, rest: &str) -> (u16, String) {
        (200, format!(r#"{{"kind":"PeriodicJobList","metadata":{{"continue":"{rest}"}},"items":[{items}]}}"#))
    }

    #[tokio::test(start_paused = true)]
    async fn an_installation_is_fresh_if_there_are_jobs_and_none_was_ever_claimed() {
        const NEW: &str = r#"{"metadata":{"name":"new"},"spec":{}}"#;
        const CLAIMED: &str = r#"{"metadata":{"name":"old"},"spec":{},"status":{"controller":"default/tenure"}}"#;
        // Deeper than a reader of typed objects goes.
        let deep = format!(r#"{{"spec":{{"jobTemplate":{}{}}}}}"#, "[".repeat(1_000), "]".repeat(1_000));
        let deep_claimed = deep.replacen('{', r#"{"status":{"mark":""},"#, 1);
        for (answers, expected) in [
            (vec![page("", "")], false),
            (vec![page(NEW, "")], true),
            (vec![page(&format!("{NEW},{CLAIMED}"), "")], false),
            (vec![page(&format!("{deep},{NEW}"), "")], true),
            (vec![page(&deep_claimed, "")], false),
            (vec![page(NEW, "more"), page(CLAIMED, "")], false),
            (vec![page("", "more"), page(NEW, "")], true),
            (vec![(404, String::new()), page(NEW, "")], true),
            (vec![(200, "{".to_owned()), page(NEW, "")], true),
        ] {
            let (fresh, asked) = asked(answers.clone()).await;
            assert_eq!(fresh, expected, "{answers:?}");
            assert_eq!(asked.len(), answers.len());
            assert!(asked.iter().all(|asked| asked.contains("limit=500")), "{asked:?}");
            assert_eq!(
                asked.last().is_some_and(|asked| asked.contains("continue=more")),
                answers[0].1.contains("more")
            );
        }
    }
}
