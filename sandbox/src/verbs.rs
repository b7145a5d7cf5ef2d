//! What each verb does to an object: decisions on JSON values, without a network and without waiting.
//!
//! The order of the checks is the API server's, because it decides which of several errors a client sees: for a creation
//! decoding (400), namespace (404), validation (422), existence (409); for an update existence (404), a version given
//! (422), the version current (409), validation (422).

use std::{cell::RefCell, sync::Arc};

use serde_json::{Value, json};

use crate::{
    body, builtin, crd, meta,
    options::{DeleteOptions, FieldValidation, Options},
    patch,
    resource::{Resource, Verb},
    schema,
    selector::Selector,
    status::{self, Cause, Failure},
    store::{Key, State},
};

/// A request, parsed as far as its path.
pub(crate) struct Call<'a> {
    pub(crate) client: &'a str,
    pub(crate) verb: Verb,
    pub(crate) resource: Arc<Resource>,
    pub(crate) namespace: Option<&'a str>,
    /// Empty for a collection.
    pub(crate) name: &'a str,
    /// Empty for the object itself.
    pub(crate) subresource: &'a str,
    pub(crate) options: &'a Options,
    pub(crate) body: &'a [u8],
    pub(crate) content_type: &'a str,
    /// What the decoding of the body complains about without refusing it; told with a refusal, too.
    pub(crate) warnings: RefCell<Vec<String>>,
}

/// What a request is answered with.
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) body: Value,
}

impl Answer {
    fn new(code: u16, body: Value) -> Self {
        Self { code, body }
    }
}

impl Call<'_> {
    fn key(&self, name: &str) -> Key {
        Key {
            table: self.resource.table(),
            namespace: self.namespace.unwrap_or_default().to_owned(),
            name: name.to_owned(),
        }
    }

    fn found(&self, state: &State) -> Result<Arc<Value>, Failure> {
        state.get(&self.key(self.name)).ok_or_else(|| Failure::not_found(&self.resource, self.name))
    }

    fn present(&self, object: &Value) -> Value {
        builtin::present(&self.resource, object)
    }
}

/// Carries out a request other than a watch.
pub(crate) fn perform(state: &mut State, call: &Call<'_>) -> Result<Answer, Failure> {
    match call.verb {
        Verb::Get => call.found(state).map(|object| Answer::new(200, call.present(&object))),
        Verb::List | Verb::Watch => list(state, call),
        Verb::Create => create(state, call),
        Verb::Update => update(state, call),
        Verb::Patch => patched(state, call),
        Verb::Delete => delete(state, call),
        Verb::DeleteCollection => delete_collection(state, call),
    }
}

fn list(state: &State, call: &Call<'_>) -> Result<Answer, Failure> {
    call.options.check_list()?;
    let selector = Selector::parse(&call.resource, call.options)?;
    let items: Vec<Value> = state
        .list(&call.resource.table(), call.namespace)
        .filter(|object| selector.matches(object))
        .map(|object| call.present(object))
        .collect();
    Ok(Answer::new(200, list_of(&call.resource, items, state.rv)))
}

/// A list object; custom lists always carry `continue`, built-in lists never repeat kind and apiVersion in their items.
pub(crate) fn list_of(resource: &Resource, mut items: Vec<Value>, rv: u64) -> Value {
    let mut metadata = json!({ "resourceVersion": rv.to_string() });
    if resource.custom {
        metadata["continue"] = json!("");
    } else {
        for item in items.iter_mut().filter_map(Value::as_object_mut) {
            item.remove("kind");
            item.remove("apiVersion");
        }
    }
    json!({
        "kind": resource.list_kind, "apiVersion": resource.api_version(), "metadata": metadata, "items": items,
    })
}

fn create(state: &mut State, call: &Call<'_>) -> Result<Answer, Failure> {
    let validation = call.options.check_write("CreateOptions")?;
    let dry_run = call.options.dry_run()?;
    let (object, warnings) = body::decode(&call.resource, call.body, call.content_type, validation)?;
    let version = meta::text(&object, "resourceVersion");
    if !version.is_empty() && version != "0" {
        return Err(Failure::internal("resourceVersion should not be set on objects to be created"));
    }
    call.warnings.replace(warnings);
    store_new(state, call, object, dry_run)
}

/// Stores an object that is not there yet, whether by POST or by a PUT that may create.
fn store_new(state: &mut State, call: &Call<'_>, mut object: Value, dry_run: bool) -> Result<Answer, Failure> {
    let resource = &call.resource;
    body::check_namespace(call.namespace, &object)?;
    let given = meta::text(&object, "name").to_owned();
    check_home(state, call, &given)?;
    if resource.status_subresource
        && let Some(map) = object.as_object_mut()
    {
        map.remove("status");
    }
    meta::begin(state, resource, call.namespace, &mut object);
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("resourceVersion");
    }
    schema::default(resource, &mut object);
    builtin::complete(resource, &mut object);
    let mut causes = meta::validate(resource, &object);
    schema::validate(resource, &object, None, false, &mut causes);
    causes.extend(builtin::validate(resource, &object, None));
    if !causes.is_empty() {
        return Err(Failure::invalid(resource, meta::text(&object, "name"), &causes));
    }
    let name = meta::text(&object, "name").to_owned();
    let key = call.key(&name);
    if let Some(existing) = state.get(&key) {
        return Err(Failure::already_exists(resource, &name, meta::is_terminating(&existing)));
    }
    if dry_run {
        return Ok(Answer::new(201, call.present(&object)));
    }
    let stored = state.put(&key, object, call.verb, call.client);
    crd::changed(state, resource, &key, call.client);
    Ok(Answer::new(201, call.present(&stored)))
}

/// Whether the namespace of a new object is there and takes new objects.
fn check_home(state: &State, call: &Call<'_>, name: &str) -> Result<(), Failure> {
    let Some(namespace) = call.namespace else { return Ok(()) };
    let key = Key { table: "namespaces".to_owned(), namespace: String::new(), name: namespace.to_owned() };
    match state.get(&key) {
        None => {
            let namespaces = state.registry.find("", "v1", "namespaces");
            Err(namespaces.map_or_else(Failure::no_such_path, |resource| Failure::not_found(&resource, namespace)))
        }
        Some(home) if meta::is_terminating(&home) => {
            Err(Failure::namespace_terminating(&call.resource, name, namespace))
        }
        Some(_) => Ok(()),
    }
}

fn update(state: &mut State, call: &Call<'_>) -> Result<Answer, Failure> {
    let resource = &call.resource;
    let validation = call.options.check_write("UpdateOptions")?;
    let (new, warnings) = body::decode(resource, call.body, call.content_type, validation)?;
    call.warnings.replace(warnings);
    body::check_name(call.name, &new)?;
    body::check_namespace(call.namespace, &new)?;
    let uid = meta::text(&new, "uid");
    let Some(old) = state.get(&call.key(call.name)) else {
        if !resource.create_on_update() {
            return Err(Failure::not_found(resource, call.name));
        }
        if !uid.is_empty() {
            return Err(Failure::conflict(resource, call.name, &uid_mismatch(call, uid, "", 0)));
        }
        return store_new(state, call, new, false);
    };
    let current = meta::text(&old, "resourceVersion");
    if !uid.is_empty() && uid != meta::text(&old, "uid") {
        let why = uid_mismatch(call, uid, meta::text(&old, "uid"), 0);
        return Err(Failure::conflict(resource, call.name, &why));
    }
    match meta::text(&new, "resourceVersion") {
        "" | "0" if resource.unconditional_update() => {}
        "" | "0" => return Err(Failure::unversioned(resource, call.name)),
        given if given.parse::<u64>().is_err() => {
            return Err(Failure::internal(format!("strconv.ParseUint: parsing {given:?}: invalid syntax")));
        }
        given if given != current => return Err(Failure::modified(resource, call.name)),
        _ => {}
    }
    replace(state, call, &old, new)
}

fn uid_mismatch(call: &Call<'_>, wanted: &str, actual: &str, version: u64) -> String {
    let home = call.namespace.map(|namespace| format!("{namespace}/")).unwrap_or_default();
    let group = if call.resource.custom { format!("{}/", call.resource.group) } else { String::new() };
    format!(
        "StorageError: invalid object, Code: 4, Key: /registry/{group}{}/{home}{}, ResourceVersion: {version}, \
         AdditionalErrorMsg: Precondition failed: UID in precondition: {wanted}, UID in object meta: {actual}",
        call.resource.plural, call.name
    )
}

fn patched(state: &mut State, call: &Call<'_>) -> Result<Answer, Failure> {
    let resource = &call.resource;
    let validation = call.options.check_write("PatchOptions")?;
    let kind = patch::Kind::of(resource, call.content_type)?;
    if call.options.get("force").is_some() {
        let cause = Cause::forbidden("force", "may not be specified for non-apply patch");
        return Err(Failure::bad_option("PatchOptions", &[cause]));
    }
    let old = call.found(state)?;
    let document = patch::apply(kind, &call.present(&old), call.body)?;
    let (new, warnings) = body::from_patch(resource, document, validation)?;
    call.warnings.replace(warnings);
    body::check_name(call.name, &new)?;
    body::check_namespace(call.namespace, &new)?;
    let given = meta::text(&new, "resourceVersion");
    if !given.is_empty() && given != meta::text(&old, "resourceVersion") {
        return Err(Failure::modified(resource, call.name));
    }
    let uid = meta::text(&new, "uid");
    if !uid.is_empty() && uid != meta::text(&old, "uid") {
        let cause = Cause::invalid("metadata.uid", &json!(uid), "field is immutable");
        return Err(Failure::invalid(resource, call.name, &[cause.clone(), cause]));
    }
    replace(state, call, &old, new)
}

/// Puts `new` in the place of `old`, as PUT and PATCH end alike.
fn replace(state: &mut State, call: &Call<'_>, old: &Arc<Value>, mut new: Value) -> Result<Answer, Failure> {
    let resource = &call.resource;
    if call.subresource == "status" {
        new = with_part_of(old, &new, "status");
    } else if resource.status_subresource {
        new = {
            let mut whole = new;
            copy_part(old, &mut whole, "status");
            whole
        };
    }
    meta::carry(old, &mut new);
    schema::default(resource, &mut new);
    builtin::complete(resource, &mut new);
    let mut causes = meta::new_finalizers(old, &new);
    causes.extend(meta::validate(resource, &new));
    schema::validate(resource, &new, Some(old), call.subresource == "status", &mut causes);
    causes.extend(builtin::validate(resource, &new, Some(old)));
    if !causes.is_empty() {
        return Err(Failure::invalid(resource, call.name, &causes));
    }
    let answer = |object: &Value| Ok(Answer::new(200, call.present(object)));
    if new == **old {
        return answer(old);
    }
    if resource.counts_generations() && differs_outside_status(resource, old, &new) {
        meta::next_generation(&mut new);
    }
    let key = call.key(call.name);
    if meta::is_terminating(&new) && meta::finalizers(&new).is_empty() {
        state.remove(&key, call.verb, call.client);
        crd::changed(state, resource, &key, call.client);
        finish_namespace(state, call.namespace, call.client);
        return answer(&new);
    }
    let stored = state.put(&key, new, call.verb, call.client);
    crd::changed(state, resource, &key, call.client);
    answer(&stored)
}

fn with_part_of(old: &Value, new: &Value, part: &str) -> Value {
    let mut whole = old.clone();
    copy_part(new, &mut whole, part);
    whole
}

fn copy_part(from: &Value, to: &mut Value, part: &str) {
    if let Some(map) = to.as_object_mut() {
        match from.get(part) {
            Some(value) => map.insert(part.to_owned(), value.clone()),
            None => map.remove(part),
        };
    }
}

fn differs_outside_status(resource: &Resource, old: &Value, new: &Value) -> bool {
    // Without a status subresource the status is a field like any other.
    let skipped = |key: &str| key == "metadata" || (key == "status" && resource.status_subresource);
    let significant = |value: &Value| -> Vec<(String, Value)> {
        let map = value.as_object().into_iter().flatten();
        map.filter(|(key, _)| !skipped(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
    };
    significant(old) != significant(new)
}

fn delete(state: &mut State, call: &Call<'_>) -> Result<Answer, Failure> {
    let options = DeleteOptions::parse(call.options, call.body)?;
    let old = call.found(state)?;
    check_preconditions(&call.resource, call.name, &old, &options)?;
    builtin::check_deletable(&call.resource, call.name)?;
    Ok(remove(state, call, call.name, &old, options.foreground))
}

fn check_preconditions(resource: &Resource, name: &str, old: &Value, options: &DeleteOptions) -> Result<(), Failure> {
    let uid = meta::text(old, "uid");
    if let Some(wanted) = options.uid.as_deref().filter(|wanted| *wanted != uid) {
        let why = format!(
            "the UID in the precondition ({wanted}) does not match the UID in record ({uid}). The object might have \
             been deleted and then recreated"
        );
        return Err(Failure::delete_precondition(resource, name, &why));
    }
    let version = meta::text(old, "resourceVersion");
    if let Some(wanted) = options.resource_version.as_deref().filter(|wanted| *wanted != version) {
        let why = format!(
            "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record \
             ({version}). The object might have been modified"
        );
        return Err(Failure::delete_precondition(resource, name, &why));
    }
    Ok(())
}

/// Removes an object, or marks it as being deleted while finalizers hold it. A deletion in the foreground adds one, which
/// is a garbage collector's to remove: here it is the client that plays it.
fn remove(state: &mut State, call: &Call<'_>, name: &str, old: &Arc<Value>, foreground: bool) -> Answer {
    let resource = &call.resource;
    let key = call.key(name);
    let namespace = builtin::is_namespace(resource);
    let custom_definition = crd::is_definition(resource);
    if !namespace && !foreground && meta::finalizers(old).is_empty() {
        if custom_definition {
            crd::removed(state, old, call.client);
        }
        state.remove(&key, call.verb, call.client);
        finish_namespace(state, call.namespace, call.client);
        return Answer::new(200, status::deleted(resource, name, &old["metadata"]["uid"]));
    }
    if meta::is_terminating(old) {
        return Answer::new(200, call.present(old));
    }
    let mut doomed = Value::clone(old);
    doomed["metadata"]["deletionTimestamp"] = state.timestamp();
    if namespace {
        doomed["status"]["phase"] = json!("Terminating");
    } else {
        doomed["metadata"]["deletionGracePeriodSeconds"] = json!(0);
        meta::next_generation(&mut doomed);
    }
    if foreground && !namespace {
        let mut finalizers = meta::finalizers(old);
        finalizers.push("foregroundDeletion");
        doomed["metadata"]["finalizers"] = json!(finalizers);
    }
    let stored = state.put(&key, doomed, call.verb, call.client);
    if namespace {
        empty_namespace(state, name, call.client);
    }
    Answer::new(200, call.present(&stored))
}

/// Does what the namespace controller does: deletes the contents, then the namespace once it is empty.
fn empty_namespace(state: &mut State, namespace: &str, client: &str) {
    for key in state.in_namespace(namespace) {
        let Some(object) = state.get(&key) else { continue };
        if meta::finalizers(&object).is_empty() {
            state.remove(&key, Verb::Delete, client);
        } else if !meta::is_terminating(&object) {
            let mut doomed = Value::clone(&object);
            doomed["metadata"]["deletionTimestamp"] = state.timestamp();
            doomed["metadata"]["deletionGracePeriodSeconds"] = json!(0);
            meta::next_generation(&mut doomed);
            state.put(&key, doomed, Verb::Delete, client);
        }
    }
    finish_namespace(state, Some(namespace), client);
}

/// Removes a namespace that is being deleted and has become empty.
fn finish_namespace(state: &mut State, namespace: Option<&str>, client: &str) {
    let Some(name) = namespace else { return };
    let key = Key { table: "namespaces".to_owned(), namespace: String::new(), name: name.to_owned() };
    if state.get(&key).is_some_and(|home| meta::is_terminating(&home)) && state.in_namespace(name).is_empty() {
        state.remove(&key, Verb::Delete, client);
    }
}

fn delete_collection(state: &mut State, call: &Call<'_>) -> Result<Answer, Failure> {
    call.options.check_list()?;
    let options = DeleteOptions::parse(call.options, call.body)?;
    let selector = Selector::parse(&call.resource, call.options)?;
    let hit: Vec<Arc<Value>> =
        state.list(&call.resource.table(), call.namespace).filter(|object| selector.matches(object)).cloned().collect();
    for object in &hit {
        let name = meta::text(object, "name");
        if call.namespace.is_none() && call.resource.namespaced {
            return Err(Failure::method_not_allowed(&call.resource, "deletecollection"));
        }
        remove(state, call, name, object, options.foreground);
    }
    let items = hit.iter().map(|object| call.present(object)).collect();
    Ok(Answer::new(200, list_of(&call.resource, items, state.rv)))
}

/// How unknown fields are reported when a request is decoded.
pub(crate) fn report_unknown(validation: FieldValidation, unknown: &[String]) -> Result<Vec<String>, String> {
    match validation {
        FieldValidation::Ignore => Ok(Vec::new()),
        FieldValidation::Warn => Ok(unknown.to_vec()),
        FieldValidation::Strict if unknown.is_empty() => Ok(Vec::new()),
        FieldValidation::Strict => Err(format!("strict decoding error: {}", unknown.join(", "))),
    }
}
