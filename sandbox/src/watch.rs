//! Watches: the history of a collection as a stream of frames.
//!
//! A watcher keeps a place in the history and pulls from there, so that a slow reader costs the writers nothing. It stays
//! open until `timeoutSeconds`, because clients come back at once and without a pause after a clean end. Everything it
//! waits for runs on tokio's time.

use std::{collections::VecDeque, io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::Stream;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::{
    Inner, builtin,
    faults::Target,
    options::Options,
    resource::{Resource, Verb},
    selector::Selector,
    status::Failure,
    store::{Change, ChangeKind, State},
    table,
};

/// How often an idle watch says which version it has reached.
const BOOKMARK_EVERY: Duration = Duration::from_mins(1);

/// How long before its end a watch sends a last bookmark, so that the next one starts where this one ended.
const BOOKMARK_BEFORE_END: Duration = Duration::from_millis(1500);

/// How long a watch lives when the client does not say. The API server draws a length of 30 to 60 minutes.
const DEFAULT_LENGTH: Duration = Duration::from_mins(30);

/// What a watch is asked for.
pub(crate) struct Request {
    pub(crate) client: String,
    pub(crate) resource: Arc<Resource>,
    pub(crate) namespace: Option<String>,
    pub(crate) options: Options,
    pub(crate) table: Option<table::Include>,
}

struct Watcher {
    inner: Arc<Inner>,
    request: Request,
    selector: Selector,
    bookmarks: bool,
    cursor: u64,
    /// The version that the watch began at: a bookmark is sent once there is a newer one to name.
    start: u64,
    ready: VecDeque<Bytes>,
    /// Whether a frame with column definitions has been sent.
    columns_sent: bool,
    ended: bool,
    deadline: Instant,
    next_bookmark: Instant,
    head: watch::Receiver<u64>,
    rules: watch::Receiver<u64>,
}

/// Opens a watch; refuses what is wrong with the request before the stream begins.
pub(crate) fn open(
    inner: Arc<Inner>,
    request: Request,
) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static, Failure> {
    request.options.check_list()?;
    let selector = Selector::parse(&request.resource, &request.options)?;
    let since = request.options.version()?;
    let length = match request.options.get("timeoutSeconds").map(str::parse) {
        None | Some(Ok(0)) => DEFAULT_LENGTH,
        Some(Ok(seconds)) => Duration::from_secs(seconds),
        Some(Err(error)) => return Err(Failure::bad_request(format!("timeoutSeconds: {error}"))),
    };
    let now = Instant::now();
    let mut watcher = Watcher {
        bookmarks: request.options.flag("allowWatchBookmarks"),
        head: inner.store.head(),
        rules: inner.faults.version(),
        inner,
        request,
        selector,
        cursor: 0,
        start: 0,
        ready: VecDeque::new(),
        columns_sent: false,
        ended: false,
        deadline: now + length,
        next_bookmark: now,
    };
    watcher.schedule_bookmark();
    watcher.begin(since.unwrap_or(0));
    Ok(futures::stream::unfold(watcher, |mut watcher| async move {
        let frame = watcher.next().await?;
        Some((frame, watcher))
    }))
}

impl Watcher {
    /// Queues what the stream begins with: the present objects, or nothing.
    fn begin(&mut self, since: u64) {
        let inner = Arc::clone(&self.inner);
        let state = inner.store.lock();
        if since > 0 {
            (self.cursor, self.start) = (since, since);
            return;
        }
        (self.cursor, self.start) = (state.rv, state.rv);
        let table = self.request.resource.table();
        let objects = state.list(&table, self.request.namespace.as_deref());
        let present: Vec<_> = objects.filter(|object| self.selector.matches(object)).cloned().collect();
        for object in present {
            self.push("ADDED", &object, state.now());
        }
        if self.bookmarks {
            self.push_bookmark(json!({ "annotations": { "k8s.io/initial-events-end": "true" } }));
        }
    }

    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                self.silence().await;
                return Some(Ok(frame));
            }
            if self.ended {
                return None;
            }
            self.head.mark_unchanged();
            self.rules.mark_unchanged();
            if self.inner.faults.cuts(&self.target()) {
                self.ended = true;
                return Some(Err(io::Error::new(io::ErrorKind::ConnectionReset, "the watch was cut")));
            }
            self.pull();
            if !self.ready.is_empty() {
                if let Some(duration) = self.inner.faults.staleness(&self.target()) {
                    // What is committed meanwhile arrives with it.
                    tokio::time::sleep(duration).await;
                    self.pull();
                }
                continue;
            }
            if self.ended {
                continue;
            }
            tokio::select! {
                biased;
                changed = self.head.changed() => self.ended = changed.is_err(),
                changed = self.rules.changed() => self.ended = changed.is_err(),
                () = sleep_until(self.deadline) => self.ended = true,
                () = sleep_until(self.next_bookmark) => {
                    if self.bookmarks && self.cursor > self.start {
                        self.push_bookmark(json!({}));
                    }
                    self.schedule_bookmark();
                }
            }
        }
    }

    /// Waits while a partition keeps frames from the client.
    async fn silence(&mut self) {
        while self.inner.faults.is_partitioned(&self.request.client) {
            if self.rules.changed().await.is_err() {
                return;
            }
        }
    }

    /// Queues a frame for each change since the last look.
    fn pull(&mut self) {
        let inner = Arc::clone(&self.inner);
        let state = inner.store.lock();
        let resource = Arc::clone(&self.request.resource);
        let Some(changes) = state.changes_since(self.cursor) else {
            let oldest = state.compacted();
            let why = format!("too old resource version: {} ({oldest})", self.cursor);
            self.ready.push_back(frame("ERROR", &Failure::expired(why).body()));
            self.ended = true;
            return;
        };
        let table = resource.table();
        for change in changes {
            let namespace = self.request.namespace.as_deref();
            if change.resource == table && namespace.is_none_or(|wanted| wanted == change.namespace) {
                self.push_change(change, &state);
            }
        }
        self.cursor = self.cursor.max(state.rv);
        // The resource itself may be gone: its definition was deleted.
        if state.registry.find(&resource.group, &resource.version, &resource.plural).is_none() {
            self.ended = true;
        }
    }

    /// An object that starts to match is new to this watch, one that stops is gone from it.
    fn push_change(&mut self, change: &Change, state: &State) {
        let matched = change.previous.as_ref().is_some_and(|previous| self.selector.matches(previous));
        let matches = change.kind != ChangeKind::Deleted && self.selector.matches(&change.object);
        match (matched, matches) {
            (false, false) => {}
            (false, true) => self.push("ADDED", &change.object, state.now()),
            (true, true) => self.push("MODIFIED", &change.object, state.now()),
            (true, false) => {
                // It goes with what the watch knew of it, under the version of the change.
                let mut last = Value::clone(change.previous.as_ref().unwrap_or(&change.object));
                last["metadata"]["resourceVersion"] = json!(change.rv.to_string());
                self.push("DELETED", &last, state.now());
            }
        }
    }

    fn push(&mut self, kind: &str, object: &Value, now: jiff::Timestamp) {
        let resource = Arc::clone(&self.request.resource);
        let object = builtin::present(&resource, object);
        let object = match self.request.table {
            None => object,
            Some(include) => {
                let with_columns = !std::mem::replace(&mut self.columns_sent, true);
                table::of_event(&resource, &object, include, now, with_columns)
            }
        };
        self.ready.push_back(frame(kind, &object));
    }

    fn push_bookmark(&mut self, mut metadata: Value) {
        let resource = &self.request.resource;
        metadata["resourceVersion"] = json!(self.cursor.to_string());
        let object = json!({ "kind": resource.kind, "apiVersion": resource.api_version(), "metadata": metadata });
        self.ready.push_back(frame("BOOKMARK", &object));
    }

    fn schedule_bookmark(&mut self) {
        let now = Instant::now();
        let last = self.deadline.checked_sub(BOOKMARK_BEFORE_END).filter(|last| *last > now);
        self.next_bookmark = last.map_or(now + BOOKMARK_EVERY, |last| last.min(now + BOOKMARK_EVERY));
    }

    fn target(&self) -> Target<'_> {
        Target {
            client: &self.request.client,
            verb: Verb::Watch,
            resource: &self.request.resource.plural,
            subresource: "",
            name: self.selector.name().unwrap_or_default(),
            body: &[],
        }
    }
}

fn frame(kind: &str, object: &Value) -> Bytes {
    // In this order, as a server writes it: clients read the object by its type without keeping it.
    Bytes::from(format!("{{\"type\":{},\"object\":{object}}}\n", json!(kind)))
}
