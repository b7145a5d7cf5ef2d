//! CustomResourceDefinitions: from a definition to the resources it adds.
//!
//! Installing is immediate: the definition is `Established` in the same breath, where a real server takes some tens of
//! milliseconds. Conversion webhooks and the scale subresource are not there.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::{
    meta,
    resource::{Column, Resource, Verb},
    schema::{self, Schema},
    status::Cause,
    store::{Key, State},
};

pub(crate) fn is_definition(resource: &Resource) -> bool {
    !resource.custom && resource.kind == "CustomResourceDefinition"
}

/// What keeps a definition from being served.
pub(crate) fn validate(definition: &Value) -> Vec<Cause> {
    let spec = &definition["spec"];
    let mut causes = Vec::new();
    for (field, value) in [
        ("spec.group", &spec["group"]),
        ("spec.scope", &spec["scope"]),
        ("spec.names.plural", &spec["names"]["plural"]),
        ("spec.names.kind", &spec["names"]["kind"]),
    ] {
        if value.as_str().is_none_or(str::is_empty) {
            causes.push(Cause::required(field));
        }
    }
    let (group, plural) = names(definition);
    let name = meta::text(definition, "name");
    if name != format!("{plural}.{group}") {
        let rule = "must be spec.names.plural+\".\"+spec.group";
        causes.push(Cause::invalid("metadata.name", &json!(name), rule));
    }
    let versions = spec["versions"].as_array().cloned().unwrap_or_default();
    if versions.iter().filter(|version| version["storage"] == true).count() != 1 {
        let rule = "must have exactly one version marked as storage version";
        causes.push(Cause::invalid("spec.versions", &Value::Null, rule));
    }
    for (index, version) in versions.iter().enumerate() {
        let schema = &version["schema"]["openAPIV3Schema"];
        if !schema.is_object() {
            let field = format!("spec.versions[{index}].schema.openAPIV3Schema");
            causes.push(Cause::new("FieldValueRequired", field, "Required value: schemas are required"));
        }
        for (feature, asked) in [
            ("subresources.scale", &version["subresources"]["scale"]),
            ("selectableFields", &version["selectableFields"]),
        ] {
            if !asked.is_null() {
                let field = format!("spec.versions[{index}].{feature}");
                causes.push(Cause::forbidden(field, format!("the sandbox does not support {feature}")));
            }
        }
        causes.extend(schema::check_definition(index, schema));
    }
    if spec["conversion"]["strategy"] == "Webhook" {
        let why = "the sandbox does not support conversion by webhook";
        causes.push(Cause::forbidden("spec.conversion.strategy", why));
    }
    causes
}

/// Follows a write to a definition: its resources are served from now on as it says.
pub(crate) fn changed(state: &mut State, resource: &Resource, key: &Key, client: &str) {
    let Some(definition) = is_definition(resource).then(|| state.get(key)).flatten() else { return };
    let established = established(state, &definition);
    if established != *definition {
        state.put(key, established, Verb::Update, client);
    }
    let (group, plural) = names(&definition);
    state.registry.remove(&group, &plural);
    let added = resources(&definition);
    if let Some(first) = added.first() {
        state.rewrite(&first.table(), |object| {
            // What a later schema adds or forgets shows on read, without a new version.
            schema::prune(first, object);
            schema::default(first, object);
        });
    }
    for resource in added {
        state.registry.add(resource);
    }
}

/// What a definition leaves out and the API server writes down.
pub(crate) fn complete(definition: &mut Value) {
    let spec = &mut definition["spec"];
    let kind = spec["names"]["kind"].as_str().unwrap_or_default().to_owned();
    for (place, name, value) in [
        ("names", "singular", json!(kind.to_lowercase())),
        ("names", "listKind", json!(format!("{kind}List"))),
        ("conversion", "strategy", json!("None")),
    ] {
        if spec[place][name].is_null() {
            spec[place][name] = value;
        }
    }
}

/// Follows the deletion of a definition: its objects go first, then its resources.
pub(crate) fn removed(state: &mut State, definition: &Value, client: &str) {
    let (group, plural) = names(definition);
    let table = format!("{plural}.{group}");
    let keys: Vec<Key> = state
        .list(&table, None)
        .map(|object| Key {
            table: table.clone(),
            namespace: meta::text(object, "namespace").to_owned(),
            name: meta::text(object, "name").to_owned(),
        })
        .collect();
    for key in &keys {
        state.remove(key, Verb::Delete, client);
    }
    state.registry.remove(&group, &plural);
}

fn names(definition: &Value) -> (String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&definition["spec"]["group"]), text(&definition["spec"]["names"]["plural"]))
}

fn established(state: &State, definition: &Value) -> Value {
    let mut definition = definition.clone();
    let names = definition["spec"]["names"].clone();
    let now = state.timestamp();
    let condition = |kind: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now,
        })
    };
    let status = &mut definition["status"];
    status["acceptedNames"] = names;
    if status["conditions"].is_null() {
        status["conditions"] = json!([
            condition("NamesAccepted", "NoConflicts", "no conflicts found"),
            condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
        ]);
    }
    if status["storedVersions"].is_null() {
        let versions = definition["spec"]["versions"].as_array().cloned().unwrap_or_default();
        let stored = versions.iter().find(|version| version["storage"] == true).map(|version| version["name"].clone());
        definition["status"]["storedVersions"] = json!(stored.into_iter().collect::<Vec<_>>());
    }
    definition
}

/// The served versions of a definition.
fn resources(definition: &Value) -> Vec<Resource> {
    let versions = definition["spec"]["versions"].as_array().into_iter().flatten();
    versions.filter(|version| version["served"] == true).map(|version| resource(definition, version)).collect()
}

fn resource(definition: &Value, version: &Value) -> Resource {
    let spec = &definition["spec"];
    let names = &spec["names"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().into_iter().flatten().map(text).collect::<Vec<_>>();
    let kind = text(&names["kind"]);
    let or = |value: &Value, default: String| value.as_str().map_or(default, str::to_owned);
    let (group, plural) = self::names(definition);
    Resource {
        group,
        version: text(&version["name"]),
        plural,
        singular: or(&names["singular"], kind.to_lowercase()),
        list_kind: or(&names["listKind"], format!("{kind}List")),
        kind,
        namespaced: spec["scope"] == "Namespaced",
        short_names: list(&names["shortNames"]),
        categories: list(&names["categories"]),
        custom: true,
        status_subresource: version["subresources"]["status"].is_object(),
        schema: Some(Arc::new(Schema::new(version["schema"]["openAPIV3Schema"].clone()))),
        columns: columns(version),
    }
}

fn columns(version: &Value) -> Vec<Column> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let declared = version["additionalPrinterColumns"].as_array().into_iter().flatten();
    let columns: Vec<Column> = declared
        .map(|column| Column {
            name: text(&column["name"]),
            kind: text(&column["type"]),
            format: text(&column["format"]),
            description: column["description"].as_str().map_or_else(
                || format!("Custom resource definition column (in JSONPath format): {}", text(&column["jsonPath"])),
                str::to_owned,
            ),
            priority: column["priority"].as_i64().unwrap_or_default(),
            path: text(&column["jsonPath"]),
        })
        .collect();
    if !columns.is_empty() {
        return columns;
    }
    let age = Column {
        name: "Age".to_owned(),
        kind: "date".to_owned(),
        format: String::new(),
        description: String::new(),
        priority: 0,
        path: ".metadata.creationTimestamp".to_owned(),
    };
    vec![age]
}
