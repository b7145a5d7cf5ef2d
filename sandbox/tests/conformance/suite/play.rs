//! Plays a scenario against a server and returns its answers in normal form.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use http::Request;
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::codec::{FramedRead, LinesCodec};
use tokio_util::io::StreamReader;

use super::normal::Normaliser;
use super::{Content, File, Scenario, Step, SuiteError, folder, read_yaml};

/// How long a step may wait for what must come. It bounds a failure, not a success.
const PATIENCE: Duration = Duration::from_secs(20);
/// The pause between two tries of a step that waits.
const PAUSE: Duration = Duration::from_millis(50);

type Lines = futures::stream::BoxStream<'static, Result<String, String>>;

/// Serves what the file needs before its first scenario: its custom resource definitions.
pub(crate) async fn prepare(client: &Client, file: &File) -> Result<(), SuiteError> {
    const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    for name in &file.fixtures {
        let definition: Value = read_yaml(&folder().join("fixtures").join(name))?;
        let group = definition["spec"]["group"].as_str().unwrap_or_default();
        let version = definition["spec"]["versions"][0]["name"].as_str().unwrap_or_default();
        let plural = definition["spec"]["names"]["plural"].as_str().unwrap_or_default();
        let collection = format!("GET /apis/{group}/{version}/{plural}");
        let mut player = Player::new(client, name, BTreeMap::new());
        // Another file may have brought it already.
        player.exchange(&format!("POST {DEFINITIONS}"), Some(definition.to_string()), Content::Json, None).await?;
        player.wait(&collection, &Step::awaiting(200)).await?;
    }
    Ok(())
}

/// The answers of the server to the steps of one scenario.
pub(crate) async fn play(client: &Client, file: &File, scenario: &Scenario) -> Result<Vec<Value>, SuiteError> {
    let mut known = file.abbreviations.clone();
    known.insert("ns".to_owned(), scenario.id.clone());
    let mut player = Player::new(client, &scenario.id, known);
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": scenario.id}}).to_string();
    let (status, ..) = player.exchange("POST /api/v1/namespaces", Some(namespace), Content::Json, None).await?;
    if status != 201 {
        return Err(player.error(format!("the namespace of the scenario could not be made: {status}")));
    }
    let mut answers = Vec::new();
    for (index, step) in scenario.steps.iter().enumerate() {
        player.at = format!("{} step {}", scenario.id, index + 1);
        answers.push(player.step(step).await?);
    }
    Ok(answers)
}

struct Player<'a> {
    client: &'a Client,
    at: String,
    known: BTreeMap<String, String>,
    watches: BTreeMap<String, Lines>,
    normaliser: Normaliser,
}

impl<'a> Player<'a> {
    fn new(client: &'a Client, at: &str, known: BTreeMap<String, String>) -> Self {
        Self { client, at: at.to_owned(), known, watches: BTreeMap::new(), normaliser: Normaliser::default() }
    }

    fn error(&self, why: impl Into<String>) -> SuiteError {
        SuiteError::Step { at: self.at.clone(), why: why.into() }
    }

    async fn step(&mut self, step: &Step) -> Result<Value, SuiteError> {
        if let Some(watch) = &step.frames {
            return self.frames(watch, step.count).await;
        }
        let line = step.request.as_deref().ok_or_else(|| self.error("a step is a request or reads frames"))?;
        let line = self.expand(line)?;
        if step.wait {
            return self.wait(&line, step).await;
        }
        let (answer, _) = self.answer(&line, step).await?;
        Ok(answer)
    }

    /// Repeats the request until the status is the expected one.
    async fn wait(&mut self, line: &str, step: &Step) -> Result<Value, SuiteError> {
        let started = Instant::now();
        loop {
            let (answer, status) = self.answer(line, step).await?;
            if Some(status) == step.status {
                return Ok(answer);
            }
            if started.elapsed() > PATIENCE {
                return Err(self.error(format!("{line} still answers {status}: {answer}")));
            }
            sleep(PAUSE).await;
        }
    }

    async fn answer(&mut self, line: &str, step: &Step) -> Result<(Value, u16), SuiteError> {
        let body = match (&step.body, &step.raw) {
            (Some(document), None) => Some(self.expand_all(document)?.to_string()),
            (None, Some(text)) => Some(self.expand(text)?),
            (None, None) => None,
            (Some(_), Some(_)) => return Err(self.error("a step has `body` or `raw`, not both")),
        };
        let accept = step.accept.as_deref().map(|accept| self.expand(accept)).transpose()?;
        let (status, headers, body) = self.exchange(line, body, step.content, accept.as_deref()).await?;
        let mut answer = json!({"request": step.request, "status": status});
        for (name, value) in headers {
            answer[name] = value;
        }
        if let Some(name) = step.open.as_ref().filter(|_| status == 200) {
            self.watches.insert(name.clone(), lines(body));
            return Ok((answer, status));
        }
        let bytes = timeout(PATIENCE, body.collect())
            .await
            .map_err(|_| self.error(format!("{line}: the answer does not end")))?
            .map_err(|error| self.error(format!("{line}: {error}")))?
            .to_bytes();
        if let Ok(document) = serde_json::from_slice::<Value>(&bytes) {
            self.remember(step, &document)?;
            answer["body"] = self.normaliser.document(document);
        } else if !bytes.is_empty() {
            answer["text"] = Value::String(String::from_utf8_lossy(&bytes).into_owned());
        }
        Ok((answer, status))
    }

    fn remember(&mut self, step: &Step, document: &Value) -> Result<(), SuiteError> {
        for (name, pointer) in &step.save {
            let value = match document.pointer(pointer) {
                Some(Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
                None => return Err(self.error(format!("the answer has no {pointer}: {document}"))),
            };
            self.known.insert(name.clone(), value);
        }
        Ok(())
    }

    /// Sends one request; returns status, the headers that are compared, and the body.
    async fn exchange(
        &self,
        line: &str,
        body: Option<String>,
        content: Content,
        accept: Option<&str>,
    ) -> Result<(u16, Vec<(&'static str, Value)>, Body), SuiteError> {
        let (method, target) =
            line.split_once(' ').ok_or_else(|| self.error(format!("not a method and a path: {line}")))?;
        let mut request = Request::builder().method(method).uri(target).header("user-agent", "conformance/1");
        request = request.header("accept", accept.unwrap_or("application/json"));
        if body.is_some() {
            request = request.header("content-type", content.media_type());
        }
        let request = request
            .body(Body::from(body.unwrap_or_default().into_bytes()))
            .map_err(|error| self.error(format!("{line}: {error}")))?;
        let response = timeout(PATIENCE, self.client.send(request))
            .await
            .map_err(|_| self.error(format!("{line}: no answer")))?
            .map_err(|error| self.error(format!("{line}: {error}")))?;
        let (head, body) = response.into_parts();
        let mut headers = Vec::new();
        for name in ["content-type", "retry-after", "warning"] {
            let values: Vec<&str> = head.headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
            if !values.is_empty() {
                headers.push((name, json!(values)));
            }
        }
        Ok((head.status.as_u16(), headers, body))
    }

    /// Reads frames from an open watch. One that does not come is recorded as missing.
    async fn frames(&mut self, name: &str, count: Option<usize>) -> Result<Value, SuiteError> {
        let mut watch = self.watches.remove(name).ok_or_else(|| self.error(format!("no watch {name} is open")))?;
        let mut frames = Vec::new();
        while count.is_none_or(|count| frames.len() < count) {
            match timeout(PATIENCE, watch.next()).await {
                Ok(Some(Ok(line))) => {
                    let frame = serde_json::from_str(&line)
                        .map_err(|error| self.error(format!("a frame is not JSON: {error}: {line}")))?;
                    let frame = self.normaliser.frame(frame);
                    // How often a server repeats a bookmark is its own affair.
                    if frame["type"] != "BOOKMARK" || frames.last() != Some(&frame) {
                        frames.push(frame);
                    }
                }
                Ok(Some(Err(why))) => return Err(self.error(why)),
                Ok(None) => {
                    frames.push(json!("<the server ended the watch>"));
                    break;
                }
                Err(_) => {
                    frames.push(json!("<no further frame>"));
                    break;
                }
            }
        }
        self.watches.insert(name.to_owned(), watch);
        Ok(json!({"watch": name, "frames": frames}))
    }

    fn expand_all(&self, value: &Value) -> Result<Value, SuiteError> {
        Ok(match value {
            Value::String(text) => Value::String(self.expand(text)?),
            Value::Array(items) => {
                Value::Array(items.iter().map(|item| self.expand_all(item)).collect::<Result<_, _>>()?)
            }
            Value::Object(fields) => {
                let expand = |(name, value): (&String, &Value)| Ok((self.expand(name)?, self.expand_all(value)?));
                Value::Object(fields.iter().map(expand).collect::<Result<_, SuiteError>>()?)
            }
            other => other.clone(),
        })
    }

    /// Replaces `${name}` by what the name stands for, again and again, `${ago:…}` by an instant, `${micro:…}` by one with six digits.
    fn expand(&self, text: &str) -> Result<String, SuiteError> {
        let mut text = text.to_owned();
        while let Some(start) = text.find("${") {
            let length = text[start..].find('}').ok_or_else(|| self.error(format!("no closing brace: {text}")))?;
            let name = &text[start + 2..start + length];
            let instant = |span: &str, form: &str| {
                let span: jiff::SignedDuration =
                    span.parse().map_err(|error| self.error(format!("{name}: {error}")))?;
                Ok((jiff::Timestamp::now() - span).strftime(form).to_string())
            };
            let value = match name.split_once(':') {
                Some(("ago", span)) => instant(span, "%Y-%m-%dT%H:%M:%SZ")?,
                Some(("micro", span)) => instant(span, "%Y-%m-%dT%H:%M:%S.%6fZ")?,
                _ => self.known.get(name).cloned().ok_or_else(|| self.error(format!("nothing is called {name}")))?,
            };
            text.replace_range(start..=start + length, &value);
        }
        Ok(text)
    }
}

impl Step {
    /// A step that waits for a status.
    fn awaiting(status: u16) -> Self {
        Self {
            request: None,
            status: Some(status),
            body: None,
            raw: None,
            content: Content::Json,
            accept: None,
            save: BTreeMap::new(),
            open: None,
            wait: true,
            frames: None,
            count: None,
        }
    }
}

fn lines(body: Body) -> Lines {
    /// Longer than any frame of the suite: a frame without an end is a fault, not a reason to eat all memory.
    const LONGEST_FRAME: usize = 4 << 20;
    let reader = StreamReader::new(body.into_data_stream().map_err(std::io::Error::other));
    FramedRead::new(reader, LinesCodec::new_with_max_length(LONGEST_FRAME)).map_err(|error| error.to_string()).boxed()
}
