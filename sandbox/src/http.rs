//! The one router: from an HTTP request to a verb on a resource, and back.

use std::{cell::RefCell, convert::Infallible, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, Path, Request, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use serde_json::{Value, json};

use crate::{
    Inner, body, discovery,
    faults::{Fault, FaultId, FaultRule, HoldId, Target},
    openapi,
    options::Options,
    resource::{Resource, Verb},
    selector::Selector,
    status::Failure,
    table,
    verbs::{self, Answer, Call},
    watch,
};

/// Who sent a request.
#[derive(Debug, Clone)]
pub(crate) struct Caller(pub(crate) String);

/// Marks an answer that does not reach the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    /// The caller waits for ever.
    Hang,
    /// The caller's connection breaks.
    Reset,
}

/// Builds the router.
pub(crate) fn router(inner: Arc<Inner>) -> Router {
    let ok = || async { "ok" };
    Router::new()
        .route("/healthz", get(ok))
        .route("/livez", get(ok))
        .route("/readyz", get(ok))
        .route("/sandbox/faults", get(list_faults).post(add_fault).delete(clear_faults))
        .route("/sandbox/faults/{id}", axum::routing::delete(remove_fault))
        .route("/sandbox/holds", get(list_holds))
        .route("/sandbox/holds/{id}/release", post(release_hold))
        .route("/sandbox/holds/{id}/wait", get(wait_hold))
        .route("/sandbox/requests", get(list_requests))
        .route("/sandbox/partitions/{client}", post(partition).delete(heal))
        .fallback(api)
        .layer(DefaultBodyLimit::max(body::MAX_BODY))
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&inner), dated))
        .with_state(inner)
}

/// Every answer carries the sandbox's own time: clients are judged by how they use it.
async fn dated(State(inner): State<Arc<Inner>>, request: Request, next: axum::middleware::Next) -> Response {
    let mut response = next.run(request).await;
    let now = inner.store.lock().now();
    let date = now.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    let headers = response.headers_mut();
    if let Ok(date) = HeaderValue::from_str(&date) {
        headers.insert(header::DATE, date);
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
    response
}

async fn api(State(inner): State<Arc<Inner>>, request: Request) -> Result<Response, Infallible> {
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, body::MAX_BODY).await else {
        let why = format!("Request entity too large: limit is {}", body::MAX_BODY);
        return Ok(Failure::new(413, "RequestEntityTooLarge", why).into_response());
    };
    let client = parts.extensions.get::<Caller>().map_or(String::new(), |caller| caller.0.clone());
    let accept = header_text(&parts.headers, &header::ACCEPT);
    let content_type = header_text(&parts.headers, &header::CONTENT_TYPE);
    let answered = async {
        let options = Options::parse(&parts.uri)?;
        if let Some(found) = documents(&inner, &parts.method, parts.uri.path(), &accept) {
            return Ok(found);
        }
        let Some(path) = ApiPath::parse(parts.uri.path()) else {
            return Ok(not_found_text());
        };
        let route = route(&inner, &parts.method, &path, &options)?;
        let Some((resource, verb)) = route else { return Ok(not_found_text()) };
        let request = Sent { client, accept, content_type, body, options, path, resource, verb };
        serve(inner, request).await
    };
    Ok(answered.await.unwrap_or_else(|failure: Failure| failure.into_response()))
}

/// Discovery and OpenAPI.
fn documents(inner: &Inner, method: &Method, path: &str, accept: &str) -> Option<Response> {
    let state = inner.store.lock();
    let found = discovery::answer(&state.registry, path, accept).or_else(|| openapi::answer(&state.registry, path))?;
    // A group of resources is not a resource: there is nothing to do with it but to read it.
    let readable = matches!(*method, Method::GET | Method::HEAD);
    Some(if readable { found } else { Failure::method_not_served().into_response() })
}

/// A request that names a resource.
struct Sent {
    client: String,
    accept: String,
    content_type: String,
    body: bytes::Bytes,
    options: Options,
    path: ApiPath,
    resource: Arc<Resource>,
    verb: Verb,
}

/// Applies the faults around the verb.
async fn serve(inner: Arc<Inner>, sent: Sent) -> Result<Response, Failure> {
    inner.requests.count(&sent.client, sent.verb, &sent.resource.plural, &sent.path.subresource);
    if inner.faults.is_partitioned(&sent.client) {
        return Ok(lost(true));
    }
    if inner.faults.is_unreachable(&sent.client) {
        return Ok(lost(false));
    }
    let selected = Selector::parse(&sent.resource, &sent.options).ok();
    let selected = selected.as_ref().and_then(Selector::name).unwrap_or_default();
    let name = if sent.path.name.is_empty() { selected } else { &sent.path.name };
    let struck = inner.faults.strike(&Target {
        client: &sent.client,
        verb: sent.verb,
        resource: &sent.resource.plural,
        subresource: &sent.path.subresource,
        name,
        body: &sent.body,
    });
    for fault in &struck {
        match fault {
            Fault::Delay(duration) => tokio::time::sleep(*duration).await,
            Fault::HoldRequest(hold) => inner.faults.hold(hold).pass().await,
            Fault::DropRequest { hang } => return Ok(lost(*hang)),
            Fault::Refuse { code, retry_after } => {
                return Err(Failure::refused(*code, *retry_after, || not_granted(&sent, name)));
            }
            _ => {}
        }
    }
    let client = sent.client.clone();
    let response = answer(&inner, sent).unwrap_or_else(Failure::into_response);
    for fault in &struck {
        match fault {
            Fault::DelayAnswer(duration) => tokio::time::sleep(*duration).await,
            Fault::Hold(hold) => inner.faults.hold(hold).pass().await,
            Fault::DropAnswer { hang } => return Ok(lost(*hang)),
            _ => {}
        }
    }
    if inner.faults.is_partitioned(&client) {
        return Ok(lost(true));
    }
    Ok(response)
}

fn not_granted(sent: &Sent, name: &str) -> Failure {
    let Sent { path, resource, verb, .. } = sent;
    let named = match path.subresource.as_str() {
        "" => resource.plural.clone(),
        subresource => format!("{}/{subresource}", resource.plural),
    };
    Failure::not_granted(resource, *verb, &named, path.namespace.as_deref(), name)
}

/// Carries the verb out and puts the outcome into the form that the client accepts.
fn answer(inner: &Arc<Inner>, sent: Sent) -> Result<Response, Failure> {
    let form = Form::parse(&sent.accept, &sent.options)?;
    if sent.verb == Verb::Watch {
        let table = if let Form::Table(include) = form { Some(include) } else { None };
        let request = watch::Request {
            client: sent.client,
            resource: sent.resource,
            namespace: sent.path.namespace,
            options: sent.options,
            table,
        };
        let frames = watch::open(Arc::clone(inner), request)?;
        return Ok(([(header::CONTENT_TYPE, "application/json")], Body::from_stream(frames)).into_response());
    }
    let mut state = inner.store.lock();
    if matches!(sent.verb, Verb::Get | Verb::List) {
        let asked = sent.options.version().map_err(|failure| match sent.verb {
            // A list says it with a code of its own, as on the API server.
            Verb::List => Failure::bad_request(format!("invalid resource version: {}", failure.message)),
            _ => failure,
        })?;
        match asked {
            Some(asked) if asked > state.rv => return Err(Failure::future_version(asked, state.rv)),
            _ => {}
        }
    }
    let call = Call {
        client: &sent.client,
        verb: sent.verb,
        resource: Arc::clone(&sent.resource),
        namespace: sent.path.namespace.as_deref(),
        name: &sent.path.name,
        subresource: &sent.path.subresource,
        options: &sent.options,
        body: &sent.body,
        content_type: &sent.content_type,
        warnings: RefCell::default(),
    };
    let answer = verbs::perform(&mut state, &call);
    let now = state.now();
    drop(state);
    let mut response = match answer {
        Ok(answer) => respond(answer, form, &sent.resource, now),
        Err(failure) => failure.into_response(),
    };
    for warning in call.warnings.take() {
        let text = format!("299 - {}", json!(warning));
        if let Ok(value) = HeaderValue::from_str(&text) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
    Ok(response)
}

fn respond(answer: Answer, form: Form, resource: &Resource, now: jiff::Timestamp) -> Response {
    // A Status is a Status in every form.
    let plain = answer.body["kind"] == "Status";
    let body = match form {
        Form::Table(include) if !plain => table::of(resource, &answer.body, include, now),
        Form::Partial if !plain => {
            let list = answer.body["items"].is_array();
            table::partial(&answer.body, if list { "PartialObjectMetadataList" } else { "PartialObjectMetadata" })
        }
        _ => answer.body,
    };
    status_json(answer.code, &body)
}

/// The forms an object can be asked for in.
#[derive(Debug, Clone, Copy)]
enum Form {
    Object,
    Table(table::Include),
    Partial,
}

impl Form {
    fn parse(accept: &str, options: &Options) -> Result<Self, Failure> {
        const SERVED: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
        let accept = if accept.is_empty() { "*/*" } else { accept };
        for range in accept.split(',') {
            let mut parameters = range.split(';').map(str::trim);
            let media = parameters.next().unwrap_or_default();
            if !matches!(media, "application/json" | "application/*" | "*/*") {
                continue;
            }
            let given = |name: &str| parameters.clone().find_map(|parameter| parameter.strip_prefix(name));
            if given("v=").is_some_and(|version| !matches!(version, "v1" | "v1beta1")) {
                continue;
            }
            match given("as=") {
                None => return Ok(Self::Object),
                Some("Table") => return Ok(Self::Table(table::Include::parse(options.get("includeObject"))?)),
                Some("PartialObjectMetadata" | "PartialObjectMetadataList") => return Ok(Self::Partial),
                Some(_) => {}
            }
        }
        Err(Failure::not_acceptable(SERVED))
    }
}

/// A path below `/api/v1` or `/apis/GROUP/VERSION`.
#[derive(Debug)]
struct ApiPath {
    group: String,
    version: String,
    namespace: Option<String>,
    plural: String,
    name: String,
    subresource: String,
}

impl ApiPath {
    fn parse(path: &str) -> Option<Self> {
        let path = path.strip_prefix('/')?;
        let mut steps = path.strip_suffix('/').unwrap_or(path).split('/');
        let (group, version) = match steps.next()? {
            "api" => ("", steps.next()?),
            "apis" => (steps.next()?, steps.next()?),
            _ => return None,
        };
        let mut steps = steps.collect::<Vec<_>>();
        if steps.iter().any(|step| step.is_empty()) {
            return None;
        }
        let namespace = match steps[..] {
            ["namespaces", namespace, _, ..] if !matches!(steps.get(2), Some(&("status" | "finalize"))) => {
                steps.drain(..2);
                Some(namespace.to_owned())
            }
            _ => None,
        };
        let mut steps = steps.into_iter().map(str::to_owned);
        let plural = steps.next()?;
        let name = steps.next().unwrap_or_default();
        let subresource = steps.next().unwrap_or_default();
        let (group, version) = (group.to_owned(), version.to_owned());
        steps.next().is_none().then_some(Self { group, version, namespace, plural, name, subresource })
    }
}

/// The resource and the verb; `None` where the API server answers with a text of 404.
fn route(
    inner: &Inner,
    method: &Method,
    path: &ApiPath,
    options: &Options,
) -> Result<Option<(Arc<Resource>, Verb)>, Failure> {
    let state = inner.store.lock();
    let Some(resource) = state.registry.find(&path.group, &path.version, &path.plural) else {
        let core = state.registry.iter().any(|r| !r.custom && r.group == path.group && r.version == path.version);
        return if core { Err(Failure::no_such_path()) } else { Ok(None) };
    };
    if path.namespace.is_some() != resource.namespaced && (path.namespace.is_some() || !path.name.is_empty()) {
        return if resource.custom { Ok(None) } else { Err(Failure::no_such_path()) };
    }
    match path.subresource.as_str() {
        "" => {}
        "status" if resource.status_subresource => {}
        _ if resource.custom => return Err(Failure::not_found(&resource, &path.name)),
        _ => return Err(Failure::no_such_path()),
    }
    let collection = path.name.is_empty();
    let watch = options.flag("watch");
    let verb = match *method {
        Method::GET if collection && watch => Verb::Watch,
        Method::GET | Method::HEAD if collection => Verb::List,
        Method::GET | Method::HEAD => Verb::Get,
        Method::POST if path.subresource.is_empty() && (collection || resource.custom) => Verb::Create,
        Method::POST => return Err(Failure::method_not_allowed(&resource, "create")),
        Method::PUT | Method::PATCH if collection && resource.custom => {
            return Err(Failure::bad_request("name must be provided"));
        }
        Method::PUT if !collection => Verb::Update,
        Method::PATCH if !collection => Verb::Patch,
        Method::DELETE if !path.subresource.is_empty() => {
            return Err(Failure::method_not_allowed(&resource, "delete"));
        }
        Method::DELETE if collection => Verb::DeleteCollection,
        Method::DELETE => Verb::Delete,
        _ => return Err(Failure::method_not_allowed(&resource, "")),
    };
    let everywhere = resource.namespaced && path.namespace.is_none();
    if everywhere && !matches!(verb, Verb::List | Verb::Watch) {
        return Err(Failure::method_not_allowed(&resource, verb.as_str()));
    }
    Ok(Some((resource, verb)))
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = status_json(self.code, &self.body());
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

pub(crate) fn status_json(code: u16, body: &Value) -> Response {
    let code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (code, Json(body)).into_response()
}

pub(crate) fn not_found_text() -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    (StatusCode::NOT_FOUND, kind, "404 page not found\n").into_response()
}

fn lost(hang: bool) -> Response {
    let mut response = StatusCode::SERVICE_UNAVAILABLE.into_response();
    response.extensions_mut().insert(if hang { Lost::Hang } else { Lost::Reset });
    response
}

fn header_text(headers: &HeaderMap, name: &header::HeaderName) -> String {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

async fn list_faults(State(inner): State<Arc<Inner>>) -> Json<Value> {
    let rules = inner.faults.rules();
    Json(rules.into_iter().map(|(id, rule)| json!({ "id": id, "rule": rule })).collect())
}

async fn add_fault(State(inner): State<Arc<Inner>>, Json(rule): Json<FaultRule>) -> Json<Value> {
    Json(json!({ "id": inner.faults.add(rule) }))
}

async fn clear_faults(State(inner): State<Arc<Inner>>) -> StatusCode {
    inner.faults.clear();
    StatusCode::NO_CONTENT
}

async fn remove_fault(State(inner): State<Arc<Inner>>, Path(id): Path<u64>) -> StatusCode {
    if inner.faults.remove(FaultId(id)) { StatusCode::NO_CONTENT } else { StatusCode::NOT_FOUND }
}

async fn list_requests(State(inner): State<Arc<Inner>>) -> Json<Value> {
    Json(json!(inner.requests.counts()))
}

async fn list_holds(State(inner): State<Arc<Inner>>) -> Json<Value> {
    Json(json!(inner.faults.holds()))
}

async fn release_hold(State(inner): State<Arc<Inner>>, Path(id): Path<String>) -> StatusCode {
    inner.faults.hold(&HoldId(id)).release();
    StatusCode::NO_CONTENT
}

/// Answers once a request has come to the hold.
async fn wait_hold(State(inner): State<Arc<Inner>>, Path(id): Path<String>) -> Json<Value> {
    let hold = inner.faults.hold(&HoldId(id));
    hold.wait_reached().await;
    Json(json!(hold.state()))
}

async fn partition(State(inner): State<Arc<Inner>>, Path(client): Path<String>) -> StatusCode {
    inner.faults.partition(&client);
    StatusCode::NO_CONTENT
}

async fn heal(State(inner): State<Arc<Inner>>, Path(client): Path<String>) -> StatusCode {
    inner.faults.heal(&client);
    StatusCode::NO_CONTENT
}
