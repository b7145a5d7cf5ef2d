//! What is kept of an answer: its status code, the beginning of its body, and how long to stay away.
//!
//! An answer is complete when its head has come and its body has ended, or has gone past [`BODY_READ_MAX`]: then the rest is
//! not waited for, and the status code stands. So a huge body costs a bounded amount, while one that breaks off or dribbles
//! until the time is up is not taken for an answer: a handler that says 200 first and works while it writes has not finished.

use std::time::Duration;

use http::{HeaderMap, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use jiff::{SignedDuration, Timestamp};

/// An answer that is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) message: String,
    pub(super) retry_after: Option<Duration>,
}

/// So much of a body is kept for the message, in bytes: it is stored in the object's status with each run.
const EXCERPT_MAX: usize = 256;

/// So much of a body is read, in bytes: enough for any answer that a job has a use for, and 10,000 of them at once fit in
/// memory because only the excerpt is kept.
pub(super) const BODY_READ_MAX: usize = 64 * 1024;

/// A target is left alone for at most this long, whatever it asks for.
const RETRY_AFTER_MAX: Duration = Duration::from_hours(24);

/// Reads the body to its end or bound.
pub(super) async fn read(response: Response<Incoming>, now: Timestamp) -> Result<Answer, hyper::Error> {
    let (head, mut body) = response.into_parts();
    let mut excerpt = Vec::new();
    let mut length: usize = 0;
    while length <= BODY_READ_MAX {
        let Some(frame) = body.frame().await else { break };
        if let Some(data) = frame?.data_ref() {
            let room = EXCERPT_MAX.saturating_sub(excerpt.len()).min(data.len());
            excerpt.extend_from_slice(data.get(..room).unwrap_or_default());
            length += data.len();
        }
    }
    let message = message(head.status, &excerpt, length > excerpt.len());
    Ok(Answer { status: head.status, message, retry_after: retry_after(&head.headers, now) })
}

fn message(status: StatusCode, excerpt: &[u8], is_cut: bool) -> String {
    let text = String::from_utf8_lossy(excerpt);
    // The cut may go through a character.
    let text = if is_cut { text.trim_end_matches(char::REPLACEMENT_CHARACTER) } else { &text };
    let text: String = text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    let text = text.trim();
    let ellipsis = if is_cut { "…" } else { "" };
    if text.is_empty() { status.to_string() } else { format!("{status}: {text}{ellipsis}") }
}

/// Reads `Retry-After`, which is a number of seconds or a date.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let asked = if text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty() {
        // More seconds than can be counted are still seconds.
        text.parse().map_or(Duration::MAX, Duration::from_secs)
    } else {
        let until = Timestamp::try_from(httpdate::parse_http_date(text).ok()?).ok()?;
        until.duration_since(now).max(SignedDuration::ZERO).unsigned_abs()
    };
    Some(asked.min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("0", Some(0))]
    #[case("120", Some(120))]
    #[case("99999999999999999999999", Some(86_400))]
    #[case("Sun, 06 Nov 1994 08:49:37 GMT", Some(37))]
    #[case("Sunday, 06-Nov-94 08:49:37 GMT", Some(37))]
    #[case("Sun Nov  6 08:49:37 1994", Some(37))]
    #[case("Sat, 05 Nov 1994 08:49:37 GMT", Some(0))]
    #[case("Sat, 06 Nov 2094 08:49:37 GMT", Some(86_400))]
    #[case("", None)]
    #[case("-1", None)]
    #[case("soon", None)]
    fn retry_after_is_seconds_or_a_date_and_at_most_a_day(#[case] text: &str, #[case] seconds: Option<u64>) {
        let now = "1994-11-06T08:49:00Z".parse().expect("a timestamp");
        let headers = HeaderMap::from_iter([(header::RETRY_AFTER, HeaderValue::try_from(text).expect("a value"))]);
        assert_eq!(retry_after(&headers, now), seconds.map(Duration::from_secs));
    }

    #[test]
    fn a_message_is_one_line_of_text_whatever_the_body_is() {
        assert_eq!(message(StatusCode::OK, b"", false), "200 OK");
        assert_eq!(message(StatusCode::OK, b"a\r\n\tb\0 ", false), "200 OK: a   b");
        assert_eq!(message(StatusCode::BAD_GATEWAY, "caf\u{e9}".as_bytes(), false), "502 Bad Gateway: café");
        let cut = "é".repeat(200);
        assert_eq!(message(StatusCode::OK, &cut.as_bytes()[..255], true), format!("200 OK: {}…", "é".repeat(127)));
    }
}
