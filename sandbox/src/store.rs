//! The objects, their history, and the one counter of versions over all of them.
//!
//! Everything is behind one lock, so that a write and its place in the history are one step: a watcher never sees an
//! order that a reader could contradict. What a write may do is decided in [`crate::verbs`].

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use crate::resource::{Registry, Verb};

/// How many changes a watch can be resumed over; older ones are answered with 410. A real API server keeps five minutes.
const HISTORY: usize = 10_000;

/// What a change did to the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// The object is new.
    Added,
    /// The object was there before.
    Modified,
    /// The object is gone.
    Deleted,
}

/// One committed write.
#[derive(Debug, Clone)]
pub struct Change {
    /// The version that the write took.
    pub rv: u64,
    /// What it did.
    pub kind: ChangeKind,
    /// The verb of the request.
    pub verb: Verb,
    /// The resource as `plural.group`, for example `leases.coordination.k8s.io`; `plural` alone in the core group.
    pub resource: String,
    /// The namespace; empty for cluster-wide objects.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The object after the write; of a deletion, its last content with the version of the deletion.
    pub object: Arc<Value>,
    /// The object before the write.
    pub previous: Option<Arc<Value>>,
    /// Who wrote.
    pub client: String,
    /// When, on the sandbox's clock.
    pub at: Timestamp,
}

/// Where an object is kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) table: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// Reads the time of day.
pub type WallClock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The shared store.
pub(crate) struct Store {
    state: Mutex<State>,
    head: watch::Sender<u64>,
}

/// What the lock guards.
pub(crate) struct State {
    pub(crate) rv: u64,
    pub(crate) registry: Registry,
    objects: BTreeMap<Key, Arc<Value>>,
    history: VecDeque<Change>,
    /// The newest version that is no longer in the history.
    compacted: u64,
    followers: Vec<mpsc::UnboundedSender<Change>>,
    entropy: StdRng,
    clock: WallClock,
    head: watch::Sender<u64>,
}

impl Store {
    pub(crate) fn new(clock: WallClock, seed: u64) -> Self {
        let head = watch::Sender::new(0);
        let state = State {
            rv: 0,
            registry: Registry::new(),
            objects: BTreeMap::new(),
            history: VecDeque::new(),
            compacted: 0,
            followers: Vec::new(),
            entropy: StdRng::seed_from_u64(seed),
            clock,
            head: head.clone(),
        };
        Self { state: Mutex::new(state), head }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held can only have come between whole steps: the maps are never half written.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of every new version, without saying what it is.
    pub(crate) fn head(&self) -> watch::Receiver<u64> {
        self.head.subscribe()
    }
}

impl State {
    pub(crate) fn get(&self, key: &Key) -> Option<Arc<Value>> {
        self.objects.get(key).cloned()
    }

    /// The objects of a table in order of namespace and name; of one namespace if one is given.
    pub(crate) fn list<'a>(
        &'a self,
        table: &'a str,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = &'a Arc<Value>> {
        let start =
            Key { table: table.to_owned(), namespace: namespace.unwrap_or_default().to_owned(), name: String::new() };
        self.objects
            .range(start..)
            .take_while(move |(key, _)| key.table == table && namespace.is_none_or(|wanted| key.namespace == wanted))
            .map(|(_, object)| object)
    }

    /// Everything in one namespace.
    pub(crate) fn in_namespace(&self, namespace: &str) -> Vec<Key> {
        self.objects.keys().filter(|key| key.namespace == namespace).cloned().collect()
    }

    /// Stores `object` under a new version, which is written into it.
    pub(crate) fn put(&mut self, key: &Key, mut object: Value, verb: Verb, client: &str) -> Arc<Value> {
        self.rv += 1;
        object["metadata"]["resourceVersion"] = json!(self.rv.to_string());
        let object = Arc::new(object);
        let previous = self.objects.insert(key.clone(), Arc::clone(&object));
        let kind = if previous.is_some() { ChangeKind::Modified } else { ChangeKind::Added };
        self.record(kind, verb, key, Arc::clone(&object), previous, client);
        object
    }

    /// Removes the object; the event carries its last content under the version of the removal.
    pub(crate) fn remove(&mut self, key: &Key, verb: Verb, client: &str) {
        if let Some(previous) = self.objects.remove(key) {
            self.rv += 1;
            let mut last = Value::clone(&previous);
            last["metadata"]["resourceVersion"] = json!(self.rv.to_string());
            self.record(ChangeKind::Deleted, verb, key, Arc::new(last), Some(previous), client);
        }
    }

    /// Changes how the objects of a table read, without a write.
    pub(crate) fn rewrite(&mut self, table: &str, change: impl Fn(&mut Value)) {
        let objects = self.objects.iter_mut().filter(|(key, _)| key.table == table);
        objects.for_each(|(_, object)| change(Arc::make_mut(object)));
    }

    fn record(
        &mut self,
        kind: ChangeKind,
        verb: Verb,
        key: &Key,
        object: Arc<Value>,
        previous: Option<Arc<Value>>,
        client: &str,
    ) {
        let change = Change {
            rv: self.rv,
            kind,
            verb,
            resource: key.table.clone(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            object,
            previous,
            client: client.to_owned(),
            at: self.now(),
        };
        self.followers.retain(|follower| follower.send(change.clone()).is_ok());
        self.history.push_back(change);
        if self.history.len() > HISTORY {
            self.compacted = self.history.pop_front().map_or(self.compacted, |oldest| oldest.rv);
        }
        self.head.send_replace(self.rv);
    }

    /// What came after `since`, oldest first; `None` if some of it is forgotten.
    pub(crate) fn changes_since(&self, since: u64) -> Option<impl Iterator<Item = &Change>> {
        let first = self.history.partition_point(|change| change.rv <= since);
        (since >= self.compacted).then(|| self.history.range(first..))
    }

    /// The oldest version a watch can start from.
    pub(crate) fn compacted(&self) -> u64 {
        self.compacted
    }

    pub(crate) fn compact(&mut self) {
        self.history.clear();
        self.compacted = self.rv;
    }

    pub(crate) fn history(&self) -> Vec<Change> {
        self.history.iter().cloned().collect()
    }

    pub(crate) fn follow(&mut self) -> mpsc::UnboundedReceiver<Change> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.followers.push(sender);
        receiver
    }

    pub(crate) fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// The present moment as `metadata` writes it: whole seconds.
    pub(crate) fn timestamp(&self) -> Value {
        json!(self.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
    }

    pub(crate) fn uid(&mut self) -> String {
        let bytes: u128 = self.entropy.random();
        // Version 4, variant 1, as RFC 9562 wants it.
        let bytes = (bytes & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
        let hex = format!("{bytes:032x}");
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }

    /// The five characters that `generateName` is completed with.
    pub(crate) fn name_suffix(&mut self) -> String {
        // The API server leaves out vowels and look-alikes.
        const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        (0..5).map(|_| char::from(ALPHABET[self.entropy.random_range(0..ALPHABET.len())])).collect()
    }
}
