//! The resources the sandbox serves: the built-in ones, and those that a CustomResourceDefinition adds.

use std::{collections::BTreeMap, sync::Arc};

use crate::{builtin, schema::Schema};

/// What a request may do, in the words of Kubernetes' own authorization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// Read one object.
    Get,
    /// Read a collection.
    List,
    /// Follow a collection.
    Watch,
    /// POST.
    Create,
    /// PUT.
    Update,
    /// PATCH.
    Patch,
    /// Delete one object.
    Delete,
    /// Delete a collection.
    DeleteCollection,
}

impl Verb {
    /// The verb as Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }
}

/// A column of the human output.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) format: String,
    pub(crate) description: String,
    pub(crate) priority: i64,
    pub(crate) path: String,
}

/// One kind in one group and version, and how the API server treats it.
#[derive(Debug)]
pub(crate) struct Resource {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) plural: String,
    pub(crate) singular: String,
    pub(crate) kind: String,
    pub(crate) list_kind: String,
    pub(crate) namespaced: bool,
    pub(crate) short_names: Vec<String>,
    pub(crate) categories: Vec<String>,
    /// Added by a CustomResourceDefinition: other messages, `generation`, no strategic merge patch.
    pub(crate) custom: bool,
    pub(crate) status_subresource: bool,
    pub(crate) schema: Option<Arc<Schema>>,
    pub(crate) columns: Vec<Column>,
}

impl Resource {
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `widgets.example.dev`, or `configmaps` of the core group.
    pub(crate) fn qualified(&self) -> String {
        joined(&self.plural, &self.group)
    }

    /// `Widget.example.dev`, or `ConfigMap` of the core group.
    pub(crate) fn qualified_kind(&self) -> String {
        // The Event of both groups is one type inside the API server, and its errors name no group.
        if builtin::is_event(self) { self.kind.clone() } else { joined(&self.kind, &self.group) }
    }

    /// Whether `metadata.generation` follows the changes of the spec.
    pub(crate) fn counts_generations(&self) -> bool {
        self.custom || matches!(self.kind.as_str(), "CustomResourceDefinition" | "Job")
    }

    /// Whether PUT of a missing object creates it.
    pub(crate) fn create_on_update(&self) -> bool {
        !self.custom && matches!(self.kind.as_str(), "Lease" | "Event")
    }

    /// Whether PUT without a `resourceVersion` overwrites whatever is there.
    pub(crate) fn unconditional_update(&self) -> bool {
        !self.custom && !matches!(self.kind.as_str(), "Lease" | "CustomResourceDefinition")
    }

    /// Where its objects are kept. Events have two faces and one store.
    pub(crate) fn table(&self) -> String {
        if builtin::is_event(self) { "events".to_owned() } else { self.qualified() }
    }
}

fn joined(name: &str, group: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}

/// Everything that is served at the moment, by (group, version, plural).
#[derive(Debug, Clone)]
pub(crate) struct Registry {
    by_path: BTreeMap<(String, String, String), Arc<Resource>>,
}

impl Registry {
    pub(crate) fn new() -> Self {
        let mut registry = Self { by_path: BTreeMap::new() };
        for resource in builtin::resources() {
            registry.add(resource);
        }
        registry
    }

    pub(crate) fn add(&mut self, resource: Resource) {
        let path = (resource.group.clone(), resource.version.clone(), resource.plural.clone());
        self.by_path.insert(path, Arc::new(resource));
    }

    pub(crate) fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        self.by_path.get(&(group.to_owned(), version.to_owned(), plural.to_owned())).cloned()
    }

    /// Forgets what a CustomResourceDefinition had added.
    pub(crate) fn remove(&mut self, group: &str, plural: &str) {
        self.by_path.retain(|(g, _, p), _| g != group || p != plural);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.by_path.values()
    }
}
