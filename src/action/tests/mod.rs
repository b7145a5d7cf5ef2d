//! The HTTP runner against targets in this process, under paused time, so that every hang and every deadline is exact.

mod support;
mod tls;

use std::time::Duration;

use rstest::rstest;
use serde_json::json;

use self::support::{Bench, Peer, SecretsAt, Then};
use super::{Action, Attempt, EndKind, answer::BODY_READ_MAX, http::HEAD_BYTES_MAX};
use crate::election::testing;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone";

fn status(code: u16) -> http::StatusCode {
    http::StatusCode::from_u16(code).expect("a status code")
}

#[tokio::test(start_paused = true)]
async fn the_request_on_the_wire_carries_the_contract_and_what_the_manifest_says() {
    let bench = Bench::new().target("10.0.0.1", Peer::answers(OK));
    let end = bench
        .attempt(&json!({
            "url": "http://target.test:8080/run?a=b%20c",
            "method": "PUT",
            "headers": [
                { "name": "Content-Type", "value": "application/json" },
                { "name": "X-Key", "valueFrom": { "secretKeyRef": { "name": "creds", "key": "token" } } },
            ],
            "auth": { "basic": {
                "username": { "secretKeyRef": { "name": "creds", "key": "user" } },
                "password": { "secretKeyRef": { "name": "creds", "key": "password" } },
            } },
            "bodyTemplate": "${RUN_ID} ${RUN_SLOT} ${RUN_ATTEMPT} ${JOB_NAMESPACE}/${JOB_NAME} $${RUN_ID}",
        }))
        .await;
    assert_eq!((end.kind, end.message.as_str()), (EndKind::Succeeded { status: status(200) }, "200 OK: done"));
    let sent = bench.received();
    let (head, body) = sent.split_once("\r\n\r\n").expect("a head and a body");
    let mut lines: Vec<_> = head.lines().collect();
    assert_eq!(lines.remove(0), "PUT /run?a=b%20c HTTP/1.1");
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "authorization: Basic dXNlcjpwOnc=",
            "connection: close",
            "content-length: 55",
            "content-type: application/json",
            "host: target.test:8080",
            "idempotency-key: 0123abcd",
            "tenure-attempt: 2",
            "tenure-job: team/report",
            "tenure-slot: 2026-01-02T03:04:05.2Z",
            "tenure-token: 7",
            concat!("user-agent: tenure/", env!("CARGO_PKG_VERSION")),
            "x-key: t0ken",
        ]
    );
    assert_eq!(body, "0123abcd 2026-01-02T03:04:05.2Z 2 team/report ${RUN_ID}");
}

#[tokio::test(start_paused = true)]
async fn a_term_that_ends_before_the_first_byte_puts_nothing_on_the_wire() {
    let bench = Bench::new().target("10.0.0.1", Peer::answers(OK));
    let attempt = bench.plan(&json!({ "url": "http://target.test", "body": "x" }));
    testing::revoke(&bench.term);
    let end = bench.runner().attempt(attempt).await;
    assert_eq!((end.kind, end.first_byte), (EndKind::TermEnded, None));
    assert_eq!(bench.connections(), ["10.0.0.1:80"]);
    assert_eq!(bench.received(), "");
}

#[tokio::test(start_paused = true)]
async fn the_guard_is_asked_after_the_connection_is_open_and_not_only_before() {
    // The term is valid for 10 s: at the start, but not when the slow connection is there.
    let bench = Bench::new().target("10.0.0.1", Peer::answers(OK).slow_to_connect(Duration::from_secs(4)));
    let bench = bench.slow_secrets(Duration::from_secs(4)).slow_resolver(Duration::from_secs(4));
    let auth = json!({ "bearer": { "secretKeyRef": { "name": "creds", "key": "token" } } });
    let end = bench.attempt(&json!({ "url": "http://target.test", "auth": auth })).await;
    assert_eq!(end.kind, EndKind::TermEnded, "{}", end.message);
    assert_eq!(bench.connections(), ["10.0.0.1:80"]);
    assert_eq!(bench.received(), "");
}

#[rstest]
#[case::secret("secret", "reading the Secret creds")]
#[case::resolve("resolve", "resolving target.test")]
#[case::connect("connect", "connecting to 10.0.0.1:443")]
#[case::handshake("handshake", "in the TLS handshake with 10.0.0.1:443")]
#[tokio::test(start_paused = true)]
async fn a_hang_before_the_first_byte_ends_as_unsent_by_the_step_and_as_timed_out_by_the_attempt(
    #[case] step: &str,
    #[case] words: &str,
) {
    let auth = json!({ "bearer": { "secretKeyRef": { "name": "creds", "key": "token" } } });
    let action = json!({ "url": "https://target.test", "auth": auth, "tls": { "ca": support::ca_pem() } });
    let bench = || match step {
        "secret" => Bench::new().slow_secrets(Duration::MAX),
        "resolve" => Bench::new().slow_resolver(Duration::MAX),
        "connect" => Bench::new().target("10.0.0.1", Peer::answers(OK).slow_to_connect(Duration::MAX)),
        _ => Bench::new().target("10.0.0.1", Peer::silent()),
    };
    let by_step = bench().attempt(&action).await;
    assert_eq!(by_step.kind, EndKind::Unsent, "{}", by_step.message);
    assert!(by_step.message.contains(words), "{}", by_step.message);

    let short = bench();
    let before = short.clock.boot();
    let attempt = Attempt { timeout: Duration::from_secs(1), ..short.plan(&action) };
    let by_attempt = short.runner().attempt(attempt).await;
    assert_eq!(by_attempt.kind, EndKind::TimedOut { sent: false }, "{}", by_attempt.message);
    assert!(by_attempt.message.contains(words), "{}", by_attempt.message);
    assert!(short.clock.boot() - before < Duration::from_millis(1_010), "{:?}", short.clock.boot() - before);
}

#[rstest]
#[case::no_answer("", "before an answer began")]
#[case::half_a_head("HTTP/1.1 200 OK\r\ncontent-le", "before an answer began")]
#[case::half_a_body("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", "after status 200 OK")]
#[tokio::test(start_paused = true)]
async fn a_hang_after_the_first_byte_ends_at_the_deadline_as_sent(#[case] answer: &str, #[case] words: &str) {
    let bench = Bench::new().target("10.0.0.1", Peer::answers(answer).then(Then::Hold));
    let before = bench.clock.boot();
    let end = bench.attempt(&json!({ "url": "http://target.test" })).await;
    assert_eq!(end.kind, EndKind::TimedOut { sent: true }, "{}", end.message);
    assert!(end.message.contains(words), "{}", end.message);
    assert!(end.first_byte.is_some());
    assert!(bench.clock.boot() - before < support::TIMEOUT + Duration::from_millis(10));
}

#[rstest]
#[case::before_the_first_byte(Peer::answers(OK).slow_to_connect(Duration::from_secs(2)), true)]
#[case::after_it(Peer::answers("").then(Then::Hold), false)]
#[tokio::test(start_paused = true)]
async fn a_request_that_is_replaced_says_whether_it_is_certain_that_nothing_was_sent(
    #[case] peer: Peer,
    #[case] certain: bool,
) {
    let bench = Bench::new().target("10.0.0.1", peer);
    let attempt = bench.plan(&json!({ "url": "http://target.test" }));
    let replace = attempt.wishes.replace.clone();
    let (clock, runner) = (bench.clock.clone(), bench.runner());
    let replacing = async {
        crate::clock::sleep(&*clock, Duration::from_secs(1)).await;
        replace.cancel();
    };
    let (end, ()) = tokio::join!(runner.attempt(attempt), replacing);
    assert_eq!((end.kind, end.first_byte.is_none()), (EndKind::Replaced { certain }, certain), "{}", end.message);
    assert_eq!(end.kind.was_sent(), !certain);
}

#[rstest]
#[case::no_answer("")]
#[case::half_a_head("HTTP/1.1 200 OK\r\ncontent-le")]
#[case::half_a_body("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")]
#[case::half_a_chunk("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nhalf")]
#[case::not_http("SSH-2.0-OpenSSH_9.6\r\n\r\n")]
#[tokio::test(start_paused = true)]
async fn an_answer_that_breaks_off_is_no_answer(#[case] answer: &str) {
    let bench = Bench::new().target("10.0.0.1", Peer::answers(answer));
    let end = bench.attempt(&json!({ "url": "http://target.test" })).await;
    assert_eq!(end.kind, EndKind::NoAnswer, "{}", end.message);
    assert!(end.kind.was_sent() && !end.kind.was_answered());
}

#[rstest]
#[case::huge("HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n")]
#[case::endless("HTTP/1.1 200 OK\r\n\r\n")]
#[tokio::test(start_paused = true)]
async fn a_body_without_end_is_read_to_the_bound_and_the_status_stands(#[case] head: &str) {
    let bench = Bench::new().target("10.0.0.1", Peer::answers(head).then(Then::Stream));
    let end = bench.attempt(&json!({ "url": "http://target.test" })).await;
    assert_eq!(end.kind, EndKind::Succeeded { status: status(200) }, "{}", end.message);
    assert_eq!(end.message, format!("200 OK: {}…", "x".repeat(256)));
    let streamed = bench.streamed_when_closed().await;
    assert!(streamed < 4 * BODY_READ_MAX, "{streamed}");
}

#[rstest]
#[case::one_header("HTTP/1.1 200 OK\r\nx: ")]
#[case::no_status_line("")]
#[tokio::test(start_paused = true)]
async fn a_head_without_end_is_given_up_at_its_bound(#[case] head: &str) {
    let bench = Bench::new().target("10.0.0.1", Peer::answers(head).then(Then::Stream));
    let before = bench.clock.boot();
    let end = bench.attempt(&json!({ "url": "http://target.test" })).await;
    assert_eq!(end.kind, EndKind::NoAnswer, "{}", end.message);
    assert_eq!(bench.clock.boot(), before);
    let streamed = bench.streamed_when_closed().await;
    assert!(streamed < 4 * HEAD_BYTES_MAX, "{streamed}");
}

#[tokio::test(start_paused = true)]
async fn a_redirect_is_an_answer_and_is_not_followed() {
    let answer = "HTTP/1.1 302 Found\r\nlocation: http://10.0.0.2/\r\ncontent-length: 0\r\n\r\n";
    let bench = Bench::new().target("10.0.0.1", Peer::answers(answer)).target("10.0.0.2", Peer::answers(OK));
    let end = bench.attempt(&json!({ "url": "http://target.test" })).await;
    assert_eq!((end.kind, end.message.as_str()), (EndKind::Refused { status: status(302) }, "302 Found"));
    assert_eq!(bench.connections(), ["10.0.0.1:80"]);
}

#[rstest]
#[case("503 Service Unavailable", "30", Some(30))]
#[case("429 Too Many Requests", "Fri, 02 Jan 2026 03:05:10 GMT", Some(64))]
#[case("503 Service Unavailable", "later", None)]
#[tokio::test(start_paused = true)]
async fn a_target_that_is_busy_says_how_long_to_stay_away(
    #[case] line: &str,
    #[case] header: &str,
    #[case] seconds: Option<u64>,
) {
    let answer = format!("HTTP/1.1 {line}\r\nretry-after: {header}\r\ncontent-length: 4\r\n\r\nbusy");
    let bench = Bench::new().target("10.0.0.1", Peer::answers(&answer));
    let end = bench.attempt(&json!({ "url": "http://target.test" })).await;
    assert!(matches!(end.kind, EndKind::Refused { .. }), "{}", end.message);
    assert_eq!(end.message, format!("{line}: busy"));
    assert_eq!(end.retry_after, seconds.map(Duration::from_secs));
}

#[tokio::test(start_paused = true)]
async fn what_counts_as_success_is_what_the_manifest_expects() {
    let bench = Bench::new().target("10.0.0.1", Peer::answers("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"));
    let end = bench.attempt(&json!({ "url": "http://target.test", "expectedStatus": ["200-299", "404"] })).await;
    assert_eq!(end.kind, EndKind::Succeeded { status: status(404) });
}

#[rstest]
#[case("http://169.254.169.254/latest/meta-data")]
#[case("http://2852039166/")]
#[case("http://0xa9fea9fe/")]
#[case("http://0251.0376.0251.0376/")]
#[case("http://[::ffff:169.254.169.254]/")]
#[case("http://127.0.0.1:8080/")]
#[case("http://localhost./")]
#[tokio::test(start_paused = true)]
async fn an_address_that_leads_inwards_is_never_dialled(#[case] url: &str) {
    let bench = Bench::new().host("localhost.", &["127.0.0.1", "::1"]);
    let end = bench.attempt(&json!({ "url": url })).await;
    assert_eq!(end.kind, EndKind::Unsent, "{}", end.message);
    assert!(end.message.contains("--egress-allow="), "{}", end.message);
    assert_eq!(bench.connections(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_name_that_changes_its_address_is_asked_once_and_the_judged_address_is_dialled() {
    let bench = Bench::new().changing_host("target.test", &["10.0.0.1", "169.254.169.254"]);
    let bench = bench.target("10.0.0.1", Peer::answers(OK)).target("169.254.169.254", Peer::answers(OK));
    let first = bench.attempt(&json!({ "url": "http://target.test" })).await;
    assert_eq!(first.kind, EndKind::Succeeded { status: status(200) });
    let second = bench.attempt(&json!({ "url": "http://target.test" })).await;
    assert_eq!(second.kind, EndKind::Unsent, "{}", second.message);
    assert_eq!(bench.connections(), ["10.0.0.1:80"]);
    assert_eq!(bench.resolutions(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_address_that_is_refused_or_does_not_answer_is_passed_over() {
    let bench = Bench::new().host("target.test", &["127.0.0.1", "10.0.0.9", "10.0.0.8", "10.0.0.1"]);
    let bench = bench
        .target("10.0.0.8", Peer::answers(OK).slow_to_connect(Duration::MAX))
        .target("10.0.0.1", Peer::answers(OK));
    let end = bench.attempt(&json!({ "url": "http://target.test" })).await;
    assert_eq!(end.kind, EndKind::Succeeded { status: status(200) }, "{}", end.message);
    assert_eq!(bench.connections(), ["10.0.0.9:80", "10.0.0.8:80", "10.0.0.1:80"]);
}

#[rstest]
#[case::no_secret("none", "token", "there is no Secret none in the job's namespace team")]
#[case::no_key("creds", "none", "the Secret creds in the job's namespace team has no key none")]
#[case::not_text("creds", "binary", "not UTF-8")]
#[case::not_a_header("creds", "lines", "control characters")]
#[tokio::test(start_paused = true)]
async fn a_secret_that_cannot_be_used_is_named_and_nothing_is_sent(
    #[case] name: &str,
    #[case] key: &str,
    #[case] words: &str,
) {
    let bench = Bench::new().target("10.0.0.1", Peer::answers(OK));
    let auth = json!({ "bearer": { "secretKeyRef": { "name": name, "key": key } } });
    let end = bench.attempt(&json!({ "url": "http://target.test", "auth": auth })).await;
    assert_eq!(end.kind, EndKind::Unsent);
    assert!(end.message.contains(words), "{}", end.message);
    assert_eq!(bench.connections(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn secrets_come_from_the_jobs_own_namespace_through_the_kubernetes_api() {
    let bench = Bench::new().target("10.0.0.1", Peer::answers(OK)).kubernetes_secrets(SecretsAt::InTeam);
    let auth = json!({ "bearer": { "secretKeyRef": { "name": "creds", "key": "token" } } });
    let action = json!({ "url": "http://target.test", "auth": auth });
    let end = bench.attempt(&action).await;
    assert_eq!(end.kind, EndKind::Succeeded { status: status(200) }, "{}", end.message);
    assert!(bench.received().contains("authorization: Bearer t0ken\r\n"));

    let elsewhere = Bench::new().target("10.0.0.1", Peer::answers(OK)).kubernetes_secrets(SecretsAt::InOther);
    let end = elsewhere.attempt(&action).await;
    assert_eq!(end.message, "not sent: there is no Secret creds in the job's namespace team");

    let forbidden = Bench::new().target("10.0.0.1", Peer::answers(OK)).kubernetes_secrets(SecretsAt::Forbidden);
    let end = forbidden.attempt(&action).await;
    assert!(end.message.contains("grant its service account get on secrets"), "{}", end.message);
}

#[tokio::test(start_paused = true)]
async fn dropping_an_attempt_closes_its_connection() {
    let bench = Bench::new().target("10.0.0.1", Peer::answers("").then(Then::Hold));
    let runner = bench.runner();
    let attempt = bench.plan(&json!({ "url": "http://target.test" }));
    tokio::select! {
        biased;
        end = runner.attempt(attempt) => unreachable!("the target never answers: {end:?}"),
        () = bench.until_received("\r\n\r\n") => {}
    }
    bench.until_closed().await;
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_not_known_and_a_port_that_is_closed_are_unsent() {
    let bench = Bench::new().host("target.test", &["10.0.0.1"]);
    let unknown = bench.attempt(&json!({ "url": "http://unknown.test" })).await;
    assert_eq!(unknown.kind, EndKind::Unsent);
    assert!(unknown.message.contains("unknown.test cannot be resolved"), "{}", unknown.message);
    let closed = bench.attempt(&json!({ "url": "http://target.test:81" })).await;
    assert_eq!(closed.kind, EndKind::Unsent);
    assert!(closed.message.contains("cannot be reached at 10.0.0.1:81"), "{}", closed.message);
}
