//! From the fields of an action to the request that goes out: pure.
//!
//! [`check`] says what is wrong with an action as far as that can be known without its Secrets and without the network; it
//! is asked when a job is accepted, and again before each attempt. URLs are read as browsers read them (the `url` crate), so
//! that every notation of an IP address has become that address before anything looks at it.

use std::{collections::BTreeMap, ops::RangeInclusive};

use base64::Engine;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, StatusCode, header, uri::PathAndQuery};
use http_body_util::Full;
use url::{Host, Url};

use super::{
    Attempt,
    secrets::{SecretData, SecretError, unusable},
};
use crate::api::{BODY_BYTES_MAX, HttpAction, HttpHeader, SecretKeyRef, ValueFrom};

/// An action that cannot be carried out as it is written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ActionError {
    /// The URL cannot be called.
    #[error("http.url {url:?} cannot be called: {reason}")]
    Url {
        /// The URL as it is written.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A header may not be set, or has characters that a header cannot have.
    #[error("http.headers: {name:?} {reason}")]
    Header {
        /// The header's name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A status code or range of them cannot be read.
    #[error("http.expectedStatus: {0:?} is neither a status code such as \"204\" nor a range such as \"200-299\"")]
    ExpectedStatus(String),
    /// The template has a placeholder that does not exist.
    #[error(
        "http.bodyTemplate: {0:?} is not a placeholder; there are ${{RUN_ID}}, ${{RUN_SLOT}}, ${{RUN_ATTEMPT}}, ${{JOB_NAME}} and ${{JOB_NAMESPACE}}, and $${{ stands for ${{"
    )]
    Placeholder(String),
    /// The body is too long.
    #[error("http.{field} is {bytes} bytes long; at most {BODY_BYTES_MAX} are allowed")]
    BodyTooLong {
        /// Which field it is.
        field: &'static str,
        /// How long it is.
        bytes: usize,
    },
    /// Two fields contradict each other.
    #[error("{0}")]
    Contradiction(&'static str),
}

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) tls: bool,
    /// The host as the resolver takes it: a name, or an IP address without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    host_header: HeaderValue,
    path_and_query: PathAndQuery,
}

/// The status codes that mean success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExpectedStatus(Vec<RangeInclusive<u16>>);

/// The Secrets of one attempt, by name.
pub(super) type Secrets = BTreeMap<String, SecretData>;

/// What goes out as `User-Agent` unless the action gives one.
const USER_AGENT: &str = concat!("tenure/", env!("CARGO_PKG_VERSION"));

/// Headers that an action cannot set, besides all that begin with `tenure-`: those that Tenure promises, and those that
/// decide how the message is delimited or what becomes of the connection.
const RESERVED_HEADERS: [&str; 11] = [
    "idempotency-key",
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "upgrade",
    "expect",
];

/// What is wrong with `action`, if anything is, as far as can be known before it is carried out.
///
/// # Errors
/// [`ActionError`] names the field, what is wrong, and what may be written instead.
pub fn check(action: &HttpAction) -> Result<(), ActionError> {
    target(action)?;
    ExpectedStatus::read(&action.expected_status)?;
    for header in &action.headers {
        let name = header_name(header)?;
        if name == header::AUTHORIZATION && action.auth.is_some() {
            return Err(ActionError::Contradiction(
                "http.headers gives Authorization, and so does http.auth: give one",
            ));
        }
        match (&header.value, &header.value_from) {
            (Some(value), None) => drop(header_value(header, value)?),
            (None, Some(_)) => {}
            _ => return Err(header_error(header, "needs exactly one of value and valueFrom")),
        }
    }
    let example = [("RUN_ID", ""), ("RUN_SLOT", ""), ("RUN_ATTEMPT", ""), ("JOB_NAME", ""), ("JOB_NAMESPACE", "")];
    body(action, &example.map(|(name, value)| (name, value.to_owned())))?;
    check_choices(action)
}

/// The rules of the schema once more, for an object that was stored before they were.
fn check_choices(action: &HttpAction) -> Result<(), ActionError> {
    if let Some(auth) = &action.auth
        && auth.bearer.is_some() == auth.basic.is_some()
    {
        return Err(ActionError::Contradiction("http.auth needs exactly one of bearer and basic"));
    }
    if let Some(tls) = &action.tls {
        if tls.ca.is_some() == tls.ca_from.is_some() {
            return Err(ActionError::Contradiction("http.tls needs exactly one of ca and caFrom"));
        }
        if !target(action)?.tls {
            return Err(ActionError::Contradiction("http.tls needs a url that begins with https://"));
        }
    }
    Ok(())
}

/// The Secrets that have to be read for `action`.
pub(super) fn references(action: &HttpAction) -> impl Iterator<Item = &SecretKeyRef> {
    let headers = action.headers.iter().filter_map(|header| header.value_from.as_ref());
    let bearer = action.auth.iter().filter_map(|auth| auth.bearer.as_ref());
    let basic = action.auth.iter().filter_map(|auth| auth.basic.as_ref());
    let basic = basic.flat_map(|basic| [&basic.username, &basic.password]);
    let ca = action.tls.iter().filter_map(|tls| tls.ca_from.as_ref());
    headers.chain(bearer).chain(basic).chain(ca).map(|from| &from.secret_key_ref)
}

/// Where the request goes.
pub(super) fn target(action: &HttpAction) -> Result<Target, ActionError> {
    let wrong = |reason: &dyn ToString| ActionError::Url { url: action.url.clone(), reason: reason.to_string() };
    let url = Url::parse(&action.url).map_err(|error| wrong(&error))?;
    let tls = match url.scheme() {
        "https" => true,
        "http" => false,
        _ => return Err(wrong(&"it has to begin with http:// or https://")),
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong(&"it has a user name or password: give them by http.auth, from a Secret"));
    }
    let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
        return Err(wrong(&"it has no host"));
    };
    let host = match host {
        Host::Domain(name) => name.to_owned(),
        Host::Ipv4(address) => address.to_string(),
        Host::Ipv6(address) => address.to_string(),
    };
    let shown = url.host_str().unwrap_or_default();
    let host_header = url.port().map_or_else(|| shown.to_owned(), |port| format!("{shown}:{port}"));
    let path_and_query = url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
    Ok(Target {
        tls,
        host,
        port,
        host_header: HeaderValue::try_from(host_header).map_err(|error| wrong(&error))?,
        path_and_query: PathAndQuery::try_from(path_and_query).map_err(|error| wrong(&error))?,
    })
}

/// The request of one attempt, complete but for the connection.
pub(super) fn build(
    attempt: &Attempt,
    action: &HttpAction,
    target: &Target,
    secrets: &Secrets,
) -> Result<Request<Full<Bytes>>, super::http::Failure> {
    let values = [
        ("RUN_ID", attempt.run_id.clone()),
        ("RUN_SLOT", attempt.slot.to_string()),
        ("RUN_ATTEMPT", attempt.attempt.to_string()),
        ("JOB_NAME", attempt.job.name.clone()),
        ("JOB_NAMESPACE", attempt.job.namespace.clone()),
    ];
    let body = body(action, &values)?;
    let length = body.as_ref().map_or(0, Bytes::len);
    let mut request = Request::new(Full::new(body.unwrap_or_default()));
    *request.method_mut() = action.method.as_http();
    *request.uri_mut() = target.path_and_query.clone().into();
    let headers = request.headers_mut();
    for header in &action.headers {
        let value = match (&header.value, &header.value_from) {
            (Some(value), _) => header_value(header, value)?,
            (None, Some(from)) => secret_header(attempt, secrets, from, str::to_owned)?,
            (None, None) => return Err(header_error(header, "needs exactly one of value and valueFrom").into()),
        };
        headers.append(header_name(header)?, value);
    }
    if let Some(authorization) = authorization(attempt, action, secrets)? {
        headers.insert(header::AUTHORIZATION, authorization);
    }
    headers.entry(header::USER_AGENT).or_insert(HeaderValue::from_static(USER_AGENT));
    headers.insert(header::HOST, target.host_header.clone());
    // A connection is used for one request: see `HttpRunner`.
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    if length > 0 || !matches!(*request.method(), http::Method::GET | http::Method::HEAD) {
        request.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    }
    insert_contract(attempt, request.headers_mut())?;
    Ok(request)
}

fn insert_contract(attempt: &Attempt, headers: &mut http::HeaderMap) -> Result<(), ActionError> {
    let contract = [
        ("idempotency-key", attempt.run_id.clone()),
        ("tenure-token", attempt.guard.token().to_string()),
        ("tenure-slot", attempt.slot.to_string()),
        ("tenure-attempt", attempt.attempt.to_string()),
        ("tenure-job", attempt.job.to_string()),
    ];
    for (name, value) in contract {
        let unsendable = |_| ActionError::Header { name: name.to_owned(), reason: "has a value that cannot be sent" };
        headers.insert(HeaderName::from_static(name), HeaderValue::try_from(value).map_err(unsendable)?);
    }
    Ok(())
}

fn authorization(
    attempt: &Attempt,
    action: &HttpAction,
    secrets: &Secrets,
) -> Result<Option<HeaderValue>, SecretError> {
    let Some(auth) = &action.auth else { return Ok(None) };
    if let Some(bearer) = &auth.bearer {
        return secret_header(attempt, secrets, bearer, |token| format!("Bearer {token}")).map(Some);
    }
    let Some(basic) = &auth.basic else { return Ok(None) };
    let username = secret_text(&attempt.job.namespace, secrets, &basic.username.secret_key_ref)?;
    if username.contains(':') {
        let reason = "a user name for basic authentication cannot have a colon";
        return Err(unusable(&attempt.job.namespace, &basic.username.secret_key_ref, reason));
    }
    secret_header(attempt, secrets, &basic.password, |password| {
        let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"));
        format!("Basic {encoded}")
    })
    .map(Some)
}

fn secret_header(
    attempt: &Attempt,
    secrets: &Secrets,
    from: &ValueFrom,
    write: impl FnOnce(&str) -> String,
) -> Result<HeaderValue, SecretError> {
    let namespace = &attempt.job.namespace;
    let text = secret_text(namespace, secrets, &from.secret_key_ref)?;
    let mut value = HeaderValue::try_from(write(text).into_bytes())
        .map_err(|_| unusable(namespace, &from.secret_key_ref, "a header cannot have its control characters"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The text of a Secret's key, out of what was read for this attempt.
pub(super) fn secret_text<'a>(
    namespace: &str,
    secrets: &'a Secrets,
    reference: &SecretKeyRef,
) -> Result<&'a str, SecretError> {
    let missing = || SecretError::NotFound { namespace: namespace.to_owned(), name: reference.name.clone() };
    secrets.get(&reference.name).ok_or_else(missing)?.text(namespace, reference)
}

fn header_name(header: &HttpHeader) -> Result<HeaderName, ActionError> {
    let name: HeaderName = header.name.parse().map_err(|_| header_error(header, "is not a header's name"))?;
    if name.as_str().starts_with("tenure-") || RESERVED_HEADERS.contains(&name.as_str()) {
        return Err(header_error(header, "is set by Tenure or belongs to the connection: it cannot be given"));
    }
    Ok(name)
}

fn header_value(header: &HttpHeader, value: &str) -> Result<HeaderValue, ActionError> {
    HeaderValue::from_bytes(value.as_bytes())
        .map_err(|_| header_error(header, "has a value with control characters, which cannot be sent"))
}

fn header_error(header: &HttpHeader, reason: &'static str) -> ActionError {
    ActionError::Header { name: header.name.clone(), reason }
}

fn body(action: &HttpAction, values: &[(&str, String)]) -> Result<Option<Bytes>, ActionError> {
    let bounded = |field, text: &str| {
        let bytes = text.len();
        if bytes > BODY_BYTES_MAX { Err(ActionError::BodyTooLong { field, bytes }) } else { Ok(()) }
    };
    match (&action.body, &action.body_template) {
        (None, None) => Ok(None),
        (Some(body), None) => {
            bounded("body", body)?;
            Ok(Some(body.clone().into()))
        }
        (None, Some(template)) => {
            bounded("bodyTemplate", template)?;
            let body = render(template, values)?;
            bounded("bodyTemplate (with its placeholders replaced)", &body)?;
            Ok(Some(body.into()))
        }
        (Some(_), Some(_)) => {
            Err(ActionError::Contradiction("http.body and http.bodyTemplate are both given: give one"))
        }
    }
}

fn render(template: &str, values: &[(&str, String)]) -> Result<String, ActionError> {
    let mut rendered = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find("${") {
        let (before, placeholder) = rest.split_at(at);
        if let Some(before) = before.strip_suffix('$') {
            rendered.push_str(before);
            rendered.push_str("${");
            rest = placeholder.get(2..).unwrap_or_default();
            continue;
        }
        let unknown = |end: usize| ActionError::Placeholder(placeholder.chars().take(end).collect());
        let end = placeholder.find('}').ok_or_else(|| unknown(PLACEHOLDER_SHOWN_MAX))?;
        let name = placeholder.get(2..end).unwrap_or_default();
        let (_, value) = values
            .iter()
            .find(|(known, _)| *known == name)
            .ok_or_else(|| unknown((end + 1).min(PLACEHOLDER_SHOWN_MAX)))?;
        rendered.push_str(before);
        rendered.push_str(value);
        rest = placeholder.get(end + 1..).unwrap_or_default();
    }
    rendered.push_str(rest);
    Ok(rendered)
}

/// An unknown placeholder is shown this far: it ends up in a condition's message.
const PLACEHOLDER_SHOWN_MAX: usize = 40;

impl ExpectedStatus {
    pub(super) fn read(written: &[String]) -> Result<Self, ActionError> {
        let read_one = |text: &String| {
            let (from, to) = text.split_once('-').unwrap_or((text, text));
            let range = from.parse::<u16>().ok()?..=to.parse::<u16>().ok()?;
            (200 <= *range.start() && range.start() <= range.end() && *range.end() <= 599).then_some(range)
        };
        let ranges = written.iter().map(|text| read_one(text).ok_or_else(|| ActionError::ExpectedStatus(text.clone())));
        Ok(Self(ranges.collect::<Result<_, _>>()?))
    }

    pub(super) fn contains(&self, status: StatusCode) -> bool {
        self.0.iter().any(|range| range.contains(&status.as_u16()))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn action(fields: &serde_json::Value) -> HttpAction {
        let mut all = json!({ "url": "http://example.com" });
        all.as_object_mut().expect("an object").extend(fields.as_object().expect("fields").clone());
        serde_json::from_value(all).expect("an action")
    }

    #[rstest]
    #[case("http://2852039166/", "169.254.169.254")]
    #[case("http://0xA9FEA9FE/", "169.254.169.254")]
    #[case("http://0251.0376.0251.0376/", "169.254.169.254")]
    #[case("http://169.254.169.254/", "169.254.169.254")]
    #[case("http://[::ffff:169.254.169.254]/", "::ffff:169.254.169.254")]
    #[case("https://EXAMPLE.com:8443/a?b", "example.com")]
    #[case("https://bücher.example", "xn--bcher-kva.example")]
    fn the_host_of_a_url_is_what_the_resolver_is_asked_for(#[case] url: &str, #[case] host: &str) {
        assert_eq!(target(&action(&json!({ "url": url }))).expect("a target").host, host);
    }

    #[rstest]
    #[case(json!({ "url": "ftp://example.com" }), "http:// or https://")]
    #[case(json!({ "url": "http://u:p@example.com" }), "http.auth")]
    #[case(json!({ "url": "http://" }), "empty host")]
    #[case(json!({ "headers": [{ "name": "Tenure-Token", "value": "1" }] }), "set by Tenure")]
    #[case(json!({ "headers": [{ "name": "HOST", "value": "x" }] }), "set by Tenure")]
    #[case(json!({ "headers": [{ "name": "X", "value": "a\nb" }] }), "control characters")]
    #[case(json!({ "headers": [{ "name": "X" }] }), "value and valueFrom")]
    #[case(json!({ "expectedStatus": ["2xx"] }), "2xx")]
    #[case(json!({ "expectedStatus": ["299-200"] }), "299-200")]
    #[case(json!({ "bodyTemplate": "${RUN}" }), "${RUN}")]
    #[case(json!({ "bodyTemplate": "${RUN_ID" }), "is not a placeholder")]
    #[case(json!({ "body": "é".repeat(BODY_BYTES_MAX / 2 + 1) }), "65538 bytes")]
    #[case(json!({ "body": "a", "bodyTemplate": "b" }), "give one")]
    #[case(json!({ "auth": {} }), "bearer and basic")]
    #[case(json!({ "tls": { "ca": "x" } }), "https://")]
    fn an_action_that_cannot_work_is_refused_with_the_field_that_is_wrong(
        #[case] fields: serde_json::Value,
        #[case] words: &str,
    ) {
        let error = check(&action(&fields)).expect_err("it is wrong").to_string();
        assert!(error.contains(words), "{error}");
        assert!(error.contains("http."), "{error}");
    }

    #[test]
    fn the_schema_refuses_every_header_that_is_reserved() {
        let schema = serde_json::to_string(&schemars::schema_for!(HttpHeader)).expect("a schema is JSON");
        for name in RESERVED_HEADERS.iter().chain(&["tenure-.*"]) {
            assert!(schema.contains(&format!("|{name}")) || schema.contains(&format!("({name}|")), "{name}: {schema}");
        }
    }

    #[test]
    fn placeholders_are_replaced_once_and_a_doubled_sign_stands_for_itself() {
        let values = [("A", "${B}".to_owned()), ("B", "b".to_owned())];
        assert_eq!(render("x ${A} $${B} $5 ${B}", &values).expect("it is right"), "x ${B} ${B} $5 b");
    }

    #[test]
    fn a_static_body_is_never_touched() {
        let action = action(&json!({ "body": "${RUN_ID} $${" }));
        assert_eq!(body(&action, &[]).expect("it is right").as_deref(), Some(b"${RUN_ID} $${".as_slice()));
    }

    #[test]
    fn expected_codes_are_single_ones_and_ranges_with_both_ends() {
        let expected = ExpectedStatus::read(&["200-204".into(), "404".into()]).expect("they are right");
        let met: Vec<u16> =
            (200..600).filter(|code| expected.contains(StatusCode::from_u16(*code).expect("a code"))).collect();
        assert_eq!(met, [200, 201, 202, 203, 204, 404]);
    }
}
