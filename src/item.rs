//! Objects that are read one by one, so that what somebody has written into one of them spoils no list and no watch.
//!
//! A list is one text, and a text that cannot be read to its end is no list: whoever may write an object that the schema
//! lets pass, but whose nesting no parser follows, would keep everybody's objects from being read. An [`Item`] takes its own
//! piece of the text without looking into it, however deep it is, and reads that alone. What comes of it is the object, or
//! why it cannot be read and whose it is.
//!
//! The text must be JSON as it comes from the API server: in a watch, the type of an event before its object.

use std::{borrow::Cow, fmt};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::value::RawValue;

/// An object, or why it cannot be read.
#[derive(Debug, Clone)]
pub struct Item<K>(pub Result<K, Unreadable>);

/// An object that cannot be read.
#[derive(Debug, Clone)]
pub struct Unreadable {
    /// What is wrong with it.
    pub why: Why,
    /// Which object it is: `name`, `namespace`, `uid` and `resourceVersion`, and nothing else.
    pub metadata: ObjectMeta,
}

/// What is wrong with an object that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// Its lists and objects are nested more deeply than is read (127 levels, which is `serde_json`'s bound).
    TooDeep,
    /// It does not have the expected shape: this says what was found and what was expected.
    Shape(String),
}

/// What says which object it is. Everything else of it may be as deep as the rest.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Identity {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Named {
    #[serde(default)]
    metadata: Identity,
}

impl From<serde_json::Error> for Why {
    fn from(error: serde_json::Error) -> Self {
        let text = error.to_string();
        // There is no category for it: the library's text is all there is to know it by.
        if text.starts_with("recursion limit exceeded") {
            return Self::TooDeep;
        }
        // A place in one long line of the API server's says nothing to anybody.
        let place = format!(" at line {} column {}", error.line(), error.column());
        Self::Shape(text.strip_suffix(&place).map_or(text.clone(), str::to_owned))
    }
}

impl fmt::Display for Why {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooDeep => formatter.write_str("its lists and objects are nested more than 127 levels deep"),
            Self::Shape(why) => formatter.write_str(why),
        }
    }
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Item<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        Ok(Self(serde_json::from_str(text.get()).map_err(|error| {
            let Named { metadata: Identity { name, namespace, uid, resource_version } } =
                serde_json::from_str(text.get()).unwrap_or_default();
            Unreadable {
                why: error.into(),
                metadata: ObjectMeta { name, namespace, uid, resource_version, ..ObjectMeta::default() },
            }
        })))
    }
}

impl<K: Resource> Resource for Item<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(kind: &K::DynamicType) -> Cow<'_, str> {
        K::kind(kind)
    }

    fn group(kind: &K::DynamicType) -> Cow<'_, str> {
        K::group(kind)
    }

    fn version(kind: &K::DynamicType) -> Cow<'_, str> {
        K::version(kind)
    }

    fn plural(kind: &K::DynamicType) -> Cow<'_, str> {
        K::plural(kind)
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.as_ref().map_or_else(|unreadable| &unreadable.metadata, K::meta)
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.as_mut().map_or_else(|unreadable| &mut unreadable.metadata, K::meta_mut)
    }
}

#[cfg(test)]
mod tests {
    use kube::{
        ResourceExt,
        core::{ObjectList, WatchEvent},
    };

    use super::*;
    use crate::api::PeriodicJob;

    const GOOD: &str = r#"{"metadata":{"name":"good","namespace":"a","uid":"u1","resourceVersion":"1"},
        "spec":{"interval":"1s","http":{"url":"http://example.com/"}}}"#;

    fn nested(levels: usize) -> String {
        format!("{}{}", r#"{"f:a":"#.repeat(levels), "0") + &"}".repeat(levels)
    }

    /// Where users and the API server itself put what users have nested.
    fn deep(levels: usize) -> [String; 2] {
        let metadata = r#""name":"deep","namespace":"b","uid":"u2","resourceVersion":"2""#;
        let inside = nested(levels);
        [
            format!(r#"{{"metadata":{{{metadata}}},"spec":{{"interval":"1s","jobTemplate":{inside}}}}}"#),
            format!(
                r#"{{"metadata":{{"managedFields":[{{"fieldsV1":{inside}}}],{metadata}}},"spec":{{"interval":"1s",
                "http":{{"url":"http://example.com/"}}}}}}"#
            ),
        ]
    }

    #[test]
    fn an_object_that_no_parser_follows_spoils_no_list() {
        for deep in deep(100_000) {
            let text = format!(r#"{{"kind":"L","apiVersion":"v1","items":[{deep},{GOOD}],"metadata":{{}}}}"#);
            let list: ObjectList<Item<PeriodicJob>> = serde_json::from_str(&text).expect("it is a list");
            let unreadable = list.items[0].0.as_ref().expect_err("it is too deep");
            assert_eq!(unreadable.why, Why::TooDeep);
            let meta = list.items[0].meta();
            assert_eq!(meta.name.as_deref(), Some("deep"));
            assert_eq!(meta.namespace.as_deref(), Some("b"));
            assert_eq!(meta.uid.as_deref(), Some("u2"));
            assert_eq!(meta.resource_version.as_deref(), Some("2"));
            assert_eq!(list.items[1].0.as_ref().expect("it is good").name_any(), "good");
        }
    }

    #[test]
    fn nor_does_it_end_a_watch() {
        for deep in deep(100_000) {
            let text = format!(r#"{{"type":"MODIFIED","object":{deep}}}"#);
            match serde_json::from_str(&text).expect("it is an event") {
                WatchEvent::<Item<PeriodicJob>>::Modified(item) => {
                    assert_eq!(
                        (item.name_any(), item.0.map(drop).map_err(|it| it.why)),
                        ("deep".into(), Err(Why::TooDeep))
                    );
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn what_is_as_deep_as_it_may_be_is_read() {
        for deep in deep(100) {
            let item: Item<PeriodicJob> = serde_json::from_str(&deep).expect("it is an item");
            assert!(item.0.is_ok(), "{item:?}");
        }
    }

    #[test]
    fn an_object_without_a_name_is_an_item_all_the_same() {
        for text in ["3", "null", "[]", r#"{"metadata":3}"#, r#"{"metadata":{"name":[]}}"#] {
            let item: Item<PeriodicJob> = serde_json::from_str(text).expect("it is an item");
            assert_eq!(item.meta().name, None);
            assert!(matches!(item.0.expect_err("it is no job").why, Why::Shape(_)));
        }
    }

    #[test]
    fn what_is_wrong_is_said_without_a_place_in_a_text_that_nobody_sees() {
        let item: Item<PeriodicJob> =
            serde_json::from_str(r#"{"metadata":{"name":"a"},"spec":{"interval":3}}"#).expect("it is an item");
        let why = item.0.expect_err("an interval is a text").why.to_string();
        assert!(why.starts_with("invalid type: integer `3`") && !why.contains("column"), "{why}");
    }
}
