//! Faults on purpose: what a network and a sick API server do to one client, one verb, one resource.
//!
//! A rule matches requests; its [`Fault`] says what becomes of them. Rules are tried in the order they were added, and all
//! that match apply, each at its own place: before the request reaches the store, or between the commit and the answer.
//! A fault never changes what the store would have decided.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::resource::Verb;

/// Names a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FaultId(pub u64);

/// Names a hold. Rules that name the same hold are released together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HoldId(pub String);

/// What happens to a matching request. In JSON a duration is a number of milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Fault {
    /// It reaches the store this much later.
    Delay(#[serde(with = "millis")] Duration),
    /// It is committed at once; the answer comes this much later.
    DelayAnswer(#[serde(with = "millis")] Duration),
    /// It never reaches the store.
    DropRequest {
        /// The caller waits for ever; otherwise its connection is reset.
        hang: bool,
    },
    /// It is committed, and the answer is lost.
    DropAnswer {
        /// The caller waits for ever; otherwise its connection is reset.
        hang: bool,
    },
    /// It is answered with this code and the Status that goes with it, and never reaches the store.
    #[serde(rename_all = "camelCase")]
    Refuse {
        /// The HTTP status code.
        code: u16,
        /// Seconds, sent as `Retry-After`.
        #[serde(default)]
        retry_after: Option<u32>,
    },
    /// Open watches end with a broken connection, and so do new ones.
    CutWatch,
    /// The events of a watch are withheld this long; the stream stays open.
    StaleWatch(#[serde(with = "millis")] Duration),
    /// It is committed; the answer waits until the hold is released.
    Hold(HoldId),
    /// It reaches the store when the hold is released.
    HoldRequest(HoldId),
}

/// Which requests a fault befalls: those that fit every field that is set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultRule {
    /// The caller's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// The verb.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verb: Option<Verb>,
    /// The plural name (`leases`), which includes subresources, or one subresource (`widgets/status`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// The object's name; of a list or watch, the one that its field selector names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// A piece of the request's body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_contains: Option<String>,
    /// How many requests; without it, all until the rule is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
    /// What happens.
    pub fault: Fault,
}

impl FaultRule {
    /// Every request, for ever; narrow it with the other methods.
    pub fn new(fault: Fault) -> Self {
        Self { client: None, verb: None, resource: None, name: None, body_contains: None, times: None, fault }
    }

    /// Only this caller.
    #[must_use]
    pub fn client(mut self, client: impl Into<String>) -> Self {
        self.client = Some(client.into());
        self
    }

    /// Only this verb.
    #[must_use]
    pub fn verb(mut self, verb: Verb) -> Self {
        self.verb = Some(verb);
        self
    }

    /// Only this resource, for example `leases` or `widgets/status`.
    #[must_use]
    pub fn resource(mut self, resource: impl Into<String>) -> Self {
        self.resource = Some(resource.into());
        self
    }

    /// Only this object.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Only requests whose body has this text in it.
    #[must_use]
    pub fn body_contains(mut self, text: impl Into<String>) -> Self {
        self.body_contains = Some(text.into());
        self
    }

    /// Only the first `times` requests that match.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    fn matches(&self, target: &Target<'_>) -> bool {
        fn fits(wanted: Option<&String>, actual: &str) -> bool {
            wanted.is_none_or(|wanted| wanted == actual)
        }
        let (main, subresource) = (target.resource, format!("{}/{}", target.resource, target.subresource));
        fits(self.client.as_ref(), target.client)
            && self.verb.is_none_or(|verb| verb == target.verb)
            && self.resource.as_deref().is_none_or(|wanted| wanted == main || wanted == subresource)
            && fits(self.name.as_ref(), target.name)
            && self.body_contains.as_ref().is_none_or(|piece| contains(target.body, piece.as_bytes()))
    }
}

/// What a rule is compared with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) client: &'a str,
    pub(crate) verb: Verb,
    pub(crate) resource: &'a str,
    pub(crate) subresource: &'a str,
    pub(crate) name: &'a str,
    pub(crate) body: &'a [u8],
}

/// The state of one hold, as seen from outside.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldState {
    /// How many requests have come to it.
    pub reached: u32,
    /// Whether it lets requests pass.
    pub released: bool,
}

/// A place where requests wait, and the handle that lets them go on.
#[derive(Debug, Clone)]
pub struct Hold {
    id: HoldId,
    state: Arc<watch::Sender<HoldState>>,
}

impl Hold {
    /// The name to put into [`Fault::Hold`] or [`Fault::HoldRequest`].
    pub fn id(&self) -> HoldId {
        self.id.clone()
    }

    /// Lets every request pass, those that wait and those that come later.
    pub fn release(&self) {
        self.state.send_modify(|state| state.released = true);
    }

    /// Waits until a request has come to this place.
    pub async fn wait_reached(&self) {
        self.wait(|state| state.reached > 0).await;
    }

    /// How many requests have come, and whether they may pass.
    pub fn state(&self) -> HoldState {
        self.state.borrow().clone()
    }

    pub(crate) async fn pass(&self) {
        self.state.send_modify(|state| state.reached += 1);
        self.wait(|state| state.released).await;
    }

    async fn wait(&self, until: impl FnMut(&HoldState) -> bool) {
        // `self` keeps the sender alive, so the wait can only end by the condition.
        self.state.subscribe().wait_for(until).await.ok();
    }
}

/// The rules in force. Cheap to clone; clones are the same rules.
#[derive(Debug, Clone)]
pub struct Faults {
    rules: Arc<Mutex<Rules>>,
    version: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Rules {
    next: u64,
    active: BTreeMap<FaultId, FaultRule>,
    holds: BTreeMap<HoldId, Hold>,
    partitioned: BTreeSet<String>,
    unreachable: BTreeSet<String>,
}

impl Default for Faults {
    fn default() -> Self {
        Self { rules: Arc::default(), version: watch::Sender::new(0) }
    }
}

impl Faults {
    /// Puts a rule in force.
    pub fn add(&self, rule: FaultRule) -> FaultId {
        let mut rules = self.lock();
        rules.next += 1;
        let id = FaultId(rules.next);
        if let Fault::Hold(hold) | Fault::HoldRequest(hold) = &rule.fault {
            rules.hold(hold);
        }
        rules.active.insert(id, rule);
        self.changed(rules);
        id
    }

    /// Takes a rule back; requests that it already delays or holds are not affected. False if it is not in force.
    pub fn remove(&self, id: FaultId) -> bool {
        let mut rules = self.lock();
        let removed = rules.active.remove(&id).is_some();
        self.changed(rules);
        removed
    }

    /// Takes back every rule and partition, and releases every hold.
    pub fn clear(&self) {
        let mut rules = self.lock();
        rules.active.clear();
        rules.partitioned.clear();
        rules.unreachable.clear();
        std::mem::take(&mut rules.holds).values().for_each(Hold::release);
        self.changed(rules);
    }

    /// The rules in force, with what is left of `times`.
    pub fn rules(&self) -> Vec<(FaultId, FaultRule)> {
        self.lock().active.iter().map(|(id, rule)| (*id, rule.clone())).collect()
    }

    /// Cuts a client off: its requests and the answers to them vanish, its watches fall silent, and nothing tells it.
    pub fn partition(&self, client: &str) {
        let mut rules = self.lock();
        rules.partitioned.insert(client.to_owned());
        self.changed(rules);
    }

    /// Cuts a client off so that it notices: every request and every open watch ends with a broken connection.
    pub fn unreachable(&self, client: &str) {
        let mut rules = self.lock();
        rules.unreachable.insert(client.to_owned());
        self.changed(rules);
    }

    /// Ends [`Faults::partition`] and [`Faults::unreachable`]. Withheld watch events arrive; lost requests stay lost.
    pub fn heal(&self, client: &str) {
        let mut rules = self.lock();
        rules.partitioned.remove(client);
        rules.unreachable.remove(client);
        self.changed(rules);
    }

    /// The hold of that name, made if it is new.
    pub fn hold(&self, id: &HoldId) -> Hold {
        self.lock().hold(id)
    }

    /// A hold of its own name.
    pub fn new_hold(&self) -> Hold {
        let mut rules = self.lock();
        rules.next += 1;
        let id = HoldId(format!("hold-{}", rules.next));
        rules.hold(&id)
    }

    /// Every hold and its state.
    pub fn holds(&self) -> BTreeMap<HoldId, HoldState> {
        self.lock().holds.iter().map(|(id, hold)| (id.clone(), hold.state())).collect()
    }

    /// The faults that befall a request, each rule counted.
    pub(crate) fn strike(&self, target: &Target<'_>) -> Vec<Fault> {
        let about_watches = |fault: &Fault| matches!(fault, Fault::CutWatch | Fault::StaleWatch(_));
        self.take(target, |fault| !about_watches(fault), usize::MAX)
    }

    /// Whether an open watch is cut now.
    pub(crate) fn cuts(&self, target: &Target<'_>) -> bool {
        self.lock().unreachable.contains(target.client)
            || !self.take(target, |fault| *fault == Fault::CutWatch, 1).is_empty()
    }

    /// How long the events of a watch are withheld.
    pub(crate) fn staleness(&self, target: &Target<'_>) -> Option<Duration> {
        match self.take(target, |fault| matches!(fault, Fault::StaleWatch(_)), 1).pop() {
            Some(Fault::StaleWatch(duration)) => Some(duration),
            _ => None,
        }
    }

    pub(crate) fn is_partitioned(&self, client: &str) -> bool {
        self.lock().partitioned.contains(client)
    }

    pub(crate) fn is_unreachable(&self, client: &str) -> bool {
        self.lock().unreachable.contains(client)
    }

    /// Tells of every change of the rules.
    pub(crate) fn version(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn take(&self, target: &Target<'_>, wanted: impl Fn(&Fault) -> bool, most: usize) -> Vec<Fault> {
        let mut struck = Vec::new();
        self.lock().active.retain(|_, rule| {
            if struck.len() >= most || !wanted(&rule.fault) || !rule.matches(target) {
                return true;
            }
            struck.push(rule.fault.clone());
            rule.times = rule.times.map(|left| left.saturating_sub(1));
            rule.times != Some(0)
        });
        struck
    }

    fn lock(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the watches that look at the rules, after the lock is free again.
    fn changed(&self, rules: MutexGuard<'_, Rules>) {
        drop(rules);
        self.version.send_modify(|version| *version += 1);
    }
}

impl Rules {
    fn hold(&mut self, id: &HoldId) -> Hold {
        let new = || Hold { id: id.clone(), state: Arc::new(watch::Sender::new(HoldState::default())) };
        self.holds.entry(id.clone()).or_insert_with(new).clone()
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    needle.is_empty() || haystack.windows(needle.len()).any(|window| window == needle)
}

/// Durations as whole milliseconds.
mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}
