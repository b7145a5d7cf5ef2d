//! Discovery: which groups, versions and resources are served, in the aggregated form and in the legacy one.
//!
//! `kubectl` decides by the content type which of the two it has got, so the aggregated form carries its own.

use std::collections::BTreeMap;

use axum::response::Response;
use http::{HeaderValue, header};
use serde_json::{Value, json};

use crate::{
    http::{not_found_text, status_json},
    resource::{Registry, Resource},
};

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// The version that the sandbox gives itself: that of the API server whose answers it was compared with.
pub(crate) fn version() -> Value {
    json!({
        "major": "1", "minor": "36", "gitVersion": "v1.36.3+sandbox", "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc", "platform": "sandbox",
    })
}

/// Answers a discovery path; `None` if it is not one.
pub(crate) fn answer(registry: &Registry, path: &str, accept: &str) -> Option<Response> {
    let path = path.trim_matches('/');
    let steps: Vec<&str> = path.split('/').collect();
    let aggregated = accept.contains("as=APIGroupDiscoveryList") && accept.contains("v=v2;");
    let plain = |body: &Value| Some(status_json(200, body));
    match steps[..] {
        ["api" | "apis"] if aggregated => {
            let mut response = status_json(200, &discovery_list(registry, path == "api"));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(AGGREGATED));
            response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
            Some(response)
        }
        ["api"] => plain(&json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] })),
        ["apis"] => {
            let groups: Vec<Value> = groups(registry)
                .into_keys()
                .filter(|group| !group.is_empty())
                .map(|group| api_group(registry, group))
                .collect();
            plain(&json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups }))
        }
        ["api", version] => Some(resources(registry, "", version)),
        ["apis", group] => {
            let known = groups(registry).contains_key(group) && !group.is_empty();
            if !known {
                return Some(not_found_text());
            }
            let mut body = api_group(registry, group);
            body["kind"] = json!("APIGroup");
            body["apiVersion"] = json!("v1");
            plain(&body)
        }
        ["apis", group, version] => Some(resources(registry, group, version)),
        ["version"] => plain(&self::version()),
        _ => None,
    }
}

type Versions<'a> = BTreeMap<&'a str, Vec<&'a Resource>>;

/// Groups, their versions, and the resources of each.
fn groups(registry: &Registry) -> BTreeMap<&str, Versions<'_>> {
    let mut groups: BTreeMap<&str, Versions<'_>> = BTreeMap::new();
    for resource in registry.iter() {
        groups.entry(&resource.group).or_default().entry(&resource.version).or_default().push(resource);
    }
    groups
}

fn verbs(resource: &Resource) -> Value {
    if resource.custom {
        return json!(["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"]);
    }
    json!(["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"])
}

fn api_group(registry: &Registry, group: &str) -> Value {
    let groups = groups(registry);
    let versions = groups.get(group).into_iter().flat_map(BTreeMap::keys);
    let versions: Vec<Value> =
        versions.map(|version| json!({ "groupVersion": format!("{group}/{version}"), "version": version })).collect();
    json!({ "name": group, "versions": versions, "preferredVersion": versions.first() })
}

fn resources(registry: &Registry, group: &str, version: &str) -> Response {
    let found: Vec<Value> = registry
        .iter()
        .filter(|resource| resource.group == group && resource.version == version)
        .flat_map(|resource| {
            let mut main = json!({
                "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
                "kind": resource.kind, "verbs": verbs(resource),
            });
            name_otherwise(resource, &mut main);
            let status = json!({
                "name": format!("{}/status", resource.plural), "singularName": "",
                "namespaced": resource.namespaced, "kind": resource.kind, "verbs": ["get", "patch", "update"],
            });
            [Some(main), resource.status_subresource.then_some(status)].into_iter().flatten()
        })
        .collect();
    if found.is_empty() {
        return not_found_text();
    }
    let name = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let body = json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": found });
    status_json(200, &body)
}

fn discovery_list(registry: &Registry, core: bool) -> Value {
    let groups = groups(registry);
    let items = groups.iter().filter(|(group, _)| group.is_empty() == core).map(|(group, versions)| {
        let metadata = if core { json!({}) } else { json!({ "name": group }) };
        let versions = versions.iter().map(|(version, resources)| {
            let resources: Vec<Value> = resources.iter().map(|resource| discovered(resource)).collect();
            json!({ "version": version, "freshness": "Current", "resources": resources })
        });
        json!({ "metadata": metadata, "versions": versions.collect::<Vec<_>>() })
    });
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {},
        "items": items.collect::<Vec<_>>(),
    })
}

/// Short names and categories, which are left out where there are none.
fn name_otherwise(resource: &Resource, entry: &mut Value) {
    for (field, names) in [("shortNames", &resource.short_names), ("categories", &resource.categories)] {
        if !names.is_empty() {
            entry[field] = json!(names);
        }
    }
}

fn discovered(resource: &Resource) -> Value {
    let kind = json!({ "group": resource.group, "version": resource.version, "kind": resource.kind });
    let mut entry = json!({
        "resource": resource.plural, "responseKind": kind, "singularResource": resource.singular,
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "verbs": verbs(resource),
    });
    name_otherwise(resource, &mut entry);
    if resource.status_subresource {
        entry["subresources"] =
            json!([{ "subresource": "status", "responseKind": kind, "verbs": ["get", "patch", "update"] }]);
    }
    entry
}
