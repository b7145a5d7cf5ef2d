//! TLS: who is trusted, by which clock, and that a failed handshake has sent nothing.

use std::{sync::Arc, time::Duration};

use rstest::rstest;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use super::{
    OK, status,
    support::{Bench, Certificate, Peer},
};
use crate::{
    action::{Action, Egress, EndKind, HttpRunner, ResolveOverride},
    clock::SystemClock,
    dial::TcpDial,
    election::testing,
};

#[tokio::test(start_paused = true)]
async fn a_server_that_the_given_authority_vouches_for_is_called() {
    let certificate = Certificate::new("target.test", 2026..2027);
    let bench = Bench::new().target("10.0.0.1", Peer::answers(OK).with_tls(&certificate));
    let end = bench.attempt(&json!({ "url": "https://target.test", "tls": { "ca": certificate.ca_pem } })).await;
    assert_eq!(end.kind, EndKind::Succeeded { status: status(200) }, "{}", end.message);
    assert!(bench.received().contains("host: target.test\r\n"));
}

#[rstest]
#[case::unknown_authority("target.test", 2026, "UnknownIssuer")]
#[case::wrong_name("other.test", 2026, "target.test")]
#[case::expired("target.test", 2024, "expired")]
#[case::not_yet_valid("target.test", 2030, "not valid yet")]
#[tokio::test(start_paused = true)]
async fn a_certificate_that_does_not_hold_ends_the_attempt_before_the_request(
    #[case] name: &str,
    #[case] year: i32,
    #[case] words: &str,
) {
    let certificate = Certificate::new(name, year..year + 1);
    let stranger = Certificate::new("stranger.test", 2026..2027);
    let ca = if words == "UnknownIssuer" { &stranger.ca_pem } else { &certificate.ca_pem };
    let bench = Bench::new().target("10.0.0.1", Peer::answers(OK).with_tls(&certificate));
    let end = bench.attempt(&json!({ "url": "https://target.test", "tls": { "ca": ca } })).await;
    assert_eq!(end.kind, EndKind::Unsent, "{}", end.message);
    assert!(end.message.contains("failed the TLS handshake") && end.message.contains(words), "{}", end.message);
    assert_eq!(bench.received(), "");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_speak_tls_is_unsent() {
    let bench = Bench::new().target("10.0.0.1", Peer::greets("HTTP/1.1 400 Bad Request\r\n\r\n"));
    let ca = Certificate::new("target.test", 2026..2027).ca_pem;
    let end = bench.attempt(&json!({ "url": "https://target.test", "tls": { "ca": ca } })).await;
    assert_eq!(end.kind, EndKind::Unsent, "{}", end.message);
    assert!(end.message.contains("failed the TLS handshake"), "{}", end.message);
}

#[rstest]
#[case("not a certificate", "no certificate")]
#[case("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "cannot be used")]
#[tokio::test(start_paused = true)]
async fn an_authority_that_cannot_be_read_is_named(#[case] ca: &str, #[case] words: &str) {
    let bench = Bench::new().target("10.0.0.1", Peer::answers(OK));
    let end = bench.attempt(&json!({ "url": "https://target.test", "tls": { "ca": ca } })).await;
    assert_eq!(end.kind, EndKind::Unsent, "{}", end.message);
    assert!(end.message.contains("http.tls") && end.message.contains(words), "{}", end.message);
}

/// The same over the machine's own TCP and resolver override, as `tenure run --resolve --egress-allow` assembles it.
#[tokio::test]
#[allow(clippy::disallowed_methods, reason = "the peer of this test ends with its runtime")]
async fn over_real_tcp_the_override_is_dialled_and_the_egress_guard_still_holds() {
    let certificate = Certificate::new("ledger.test", 2000..2100);
    let settings = certificate.server();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    drop(tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = TlsAcceptor::from(settings.clone()).accept(stream).await.expect("a handshake");
            let mut buffer = [0; 4096];
            let length = stream.read(&mut buffer).await.expect("a request");
            assert!(length > 0);
            stream.write_all(OK.as_bytes()).await.expect("it is read");
            stream.shutdown().await.expect("it is read");
        }
    }));

    let clock = SystemClock::shared();
    let bench = Bench::new();
    let term = testing::term(&clock, 7, Duration::from_mins(1));
    let dial = ResolveOverride::new(["ledger.test=127.0.0.1".parse().expect("a host address")], Arc::new(TcpDial));
    let action = json!({ "url": format!("https://ledger.test:{port}/"), "tls": { "ca": certificate.ca_pem } });
    for (allow, is_called) in [(vec!["127.0.0.0/8".parse().expect("a range")], true), (Vec::new(), false)] {
        let runner = HttpRunner::new(Arc::new(dial.clone()), Egress::new(allow), bench.secrets(), clock.clone());
        let mut attempt = bench.plan(&action);
        attempt.guard = term.guard();
        let end = runner.attempt(attempt).await;
        let expected = if is_called { EndKind::Succeeded { status: status(200) } } else { EndKind::Unsent };
        assert_eq!(end.kind, expected, "{}", end.message);
    }
}
