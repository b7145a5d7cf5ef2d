//! The keywords of a structural schema, checked in the API server's words.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::Schema;
use crate::status::Cause;

/// Where the walk is: the path as it stands in `field`, and how much of it the text leaves out.
#[derive(Clone)]
struct Place {
    path: String,
    hidden: usize,
}

impl Place {
    fn child(&self, name: &str) -> Self {
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        Self { path, hidden: self.hidden }
    }

    fn item(&self, index: usize) -> Self {
        Self { path: format!("{}[{index}]", self.path), hidden: self.hidden }
    }

    /// The path within the text: below the part that is validated.
    fn shown(&self) -> &str {
        self.path.get(self.hidden..).unwrap_or_default()
    }

    fn field(&self) -> &str {
        if self.path.is_empty() { "<nil>" } else { &self.path }
    }
}

struct Walk<'a> {
    schema: &'a Schema,
    causes: Vec<Cause>,
}

/// Checks an object; of an update through the status subresource only the status, named relative to it.
pub(super) fn validate(schema: &Schema, new: &Value, old: Option<&Value>, status: bool) -> Vec<Cause> {
    let mut walk = Walk { schema, causes: Vec::new() };
    if status {
        let part = &schema.document["properties"]["status"];
        if let (true, Some(new)) = (part.is_object(), new.get("status")) {
            let place = Place { path: "status".to_owned(), hidden: "status.".len() };
            walk.value(part, new, old.and_then(|old| old.get("status")), &place);
        }
    } else {
        let place = Place { path: String::new(), hidden: 0 };
        walk.value(&schema.document, new, old, &place);
    }
    walk.causes
}

impl Walk<'_> {
    fn value(&mut self, schema: &Value, value: &Value, old: Option<&Value>, place: &Place) {
        if old == Some(value) || (value.is_null() && schema["nullable"] == true) {
            return;
        }
        if let Err(expected) = self.typed(schema, value, place) {
            self.wrong_type(&expected, go_type(value), place);
            return;
        }
        self.enumerated(schema, value, place);
        match value {
            Value::String(text) => self.string(schema, text, place),
            Value::Number(_) => self.number(schema, value, place),
            Value::Array(items) => self.array(schema, items, old, place),
            Value::Object(map) => self.object(schema, map, old, place),
            Value::Null | Value::Bool(_) => {}
        }
        self.combined(schema, value, place);
    }

    /// The types that would have been right.
    fn typed(&mut self, schema: &Value, value: &Value, place: &Place) -> Result<(), String> {
        let whole = |value: &Value| value.as_f64().is_some_and(|number| number.fract() == 0.0);
        if schema["x-kubernetes-int-or-string"] == true {
            let fits = value.is_string() || (value.is_number() && whole(value));
            return if fits { Ok(()) } else { Err("integer,string".to_owned()) };
        }
        let Some(wanted) = schema["type"].as_str() else { return Ok(()) };
        let fits = match wanted {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "number" => value.is_number(),
            "integer" => value.is_number() && whole(value),
            _ => true,
        };
        let format = schema["format"].as_str().filter(|format| matches!(*format, "int32" | "int64"));
        if let ("integer", Some(format), true) = (wanted, format, value.is_number()) {
            if fits && (format == "int64" || value.as_i64().is_some_and(|number| i32::try_from(number).is_ok())) {
                return Ok(());
            }
            let parent = if place.hidden == 0 { "<nil>" } else { "status" };
            let text = format!("Checked value must be of type integer with format {format} in {}", place.shown());
            self.causes.push(Cause::invalid(parent, &json!(""), text));
            if fits {
                return Ok(());
            }
            self.wrong_type(format, "float64", place);
            return Ok(());
        }
        if fits {
            return Ok(());
        }
        if let (Some(format), false) = (schema["format"].as_str(), value.is_string() || value.is_array()) {
            // Where a format is declared, formats are what the API server compares; only numbers have one.
            let actual = match value {
                Value::Number(number) if number.is_f64() => "float64",
                Value::Number(_) => "int64",
                _ => "",
            };
            self.wrong_type(format, actual, place);
            return Ok(());
        }
        Err(wanted.to_owned())
    }

    fn wrong_type(&mut self, expected: &str, actual: &str, place: &Place) {
        let text = in_body(place, &format!("must be of type {expected}: \"{actual}\""));
        self.causes.push(Cause::new(
            "FieldValueTypeInvalid",
            place.field(),
            format!("Invalid value: \"{actual}\": {text}"),
        ));
    }

    fn broken(&mut self, value: &Value, place: &Place, rule: &str) {
        let text = in_body(place, rule);
        self.causes.push(Cause::invalid(place.field(), value, text));
    }

    fn enumerated(&mut self, schema: &Value, value: &Value, place: &Place) {
        let Some(allowed) = schema["enum"].as_array().filter(|allowed| !allowed.contains(value)) else { return };
        let listed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
        let text = format!("Unsupported value: {value}: supported values: {}", listed.join(", "));
        self.causes.push(Cause::new("FieldValueNotSupported", place.field(), text));
    }

    /// Only the first broken rule of a string is told.
    fn string(&mut self, schema: &Value, text: &str, place: &Place) {
        let length = text.chars().count() as u64;
        if let Some(most) = schema["maxLength"].as_u64().filter(|most| length > *most) {
            let rule = format!("Too long: may not be more than {most} bytes");
            self.causes.push(Cause::new("FieldValueTooLong", place.field(), rule));
        } else if let Some(least) = schema["minLength"].as_u64().filter(|least| length < *least) {
            self.broken(&json!(text), place, &format!("should be at least {least} chars long"));
        } else if let Some(pattern) = schema["pattern"].as_str()
            && self.schema.patterns.get(pattern).is_some_and(|regex| !regex.is_match(text))
        {
            self.broken(&json!(text), place, &format!("should match '{pattern}'"));
        } else if schema["format"] == "date-time" && text.parse::<jiff::Timestamp>().is_err() {
            let rule = in_body(place, &format!("must be of type date-time: {}", json!(text)));
            self.causes.push(Cause::new(
                "FieldValueTypeInvalid",
                place.field(),
                format!("Invalid value: {}: {rule}", json!(text)),
            ));
        }
    }

    fn number(&mut self, schema: &Value, value: &Value, place: &Place) {
        let number = value.as_f64().unwrap_or_default();
        if let Some(step) = schema["multipleOf"].as_f64().filter(|step| (number / step).fract() != 0.0) {
            self.broken(value, place, &format!("should be a multiple of {step}"));
        }
        if let Some(most) = schema["maximum"].as_f64() {
            let exclusive = schema["exclusiveMaximum"] == true;
            if number > most || (exclusive && number >= most) {
                let or = if exclusive { "less than" } else { "less than or equal to" };
                self.broken(value, place, &format!("should be {or} {most}"));
            }
        }
        if let Some(least) = schema["minimum"].as_f64() {
            let exclusive = schema["exclusiveMinimum"] == true;
            if number < least || (exclusive && number <= least) {
                let or = if exclusive { "greater than" } else { "greater than or equal to" };
                self.broken(value, place, &format!("should be {or} {least}"));
            }
        }
    }

    fn array(&mut self, schema: &Value, items: &[Value], old: Option<&Value>, place: &Place) {
        self.counted(schema, ["minItems", "maxItems"], items.len(), "items", place);
        self.unique(schema, items, place);
        for (index, item) in items.iter().enumerate() {
            let before = counterpart(schema, item, index, old);
            self.value(&schema["items"], item, before, &place.item(index));
        }
    }

    fn counted(&mut self, schema: &Value, bounds: [&str; 2], count: usize, what: &str, place: &Place) {
        if schema[bounds[0]].as_u64().is_some_and(|least| (count as u64) < least) {
            let least = &schema[bounds[0]];
            self.broken(&json!(count), place, &format!("should have at least {least} {what}"));
        }
        if schema[bounds[1]].as_u64().is_some_and(|most| (count as u64) > most) {
            let most = &schema[bounds[1]];
            let text = format!("Too many: {count}: must have at most {most} {what}");
            self.causes.push(Cause::new("FieldValueTooMany", place.field(), text));
        }
    }

    /// A list that is a set or a map has each item or key once.
    fn unique(&mut self, schema: &Value, items: &[Value], place: &Place) {
        let mut seen = BTreeSet::new();
        for (index, item) in items.iter().enumerate() {
            let identity = match schema["x-kubernetes-list-type"].as_str() {
                Some("set") => item.clone(),
                Some("map") => map_key(schema, item),
                _ => return,
            };
            if !seen.insert(identity.to_string()) {
                let text = format!("Duplicate value: {identity}");
                self.causes.push(Cause::new("FieldValueDuplicate", place.item(index).field(), text));
            }
        }
    }

    fn object(&mut self, schema: &Value, map: &Map<String, Value>, old: Option<&Value>, place: &Place) {
        self.counted(schema, ["minProperties", "maxProperties"], map.len(), "properties", place);
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !map.contains_key(name) {
                self.causes.push(Cause::required(place.child(name).field()));
            }
        }
        for (name, value) in map {
            let declared = schema["properties"].get(name);
            let additional = schema.get("additionalProperties").filter(|schema| schema.is_object());
            if let Some(schema) = declared.or(additional) {
                self.value(schema, value, old.and_then(|old| old.get(name)), &place.child(name));
            }
        }
    }

    fn combined(&mut self, schema: &Value, value: &Value, place: &Place) {
        let fits = |branch: &Value| {
            let mut walk = Walk { schema: self.schema, causes: Vec::new() };
            walk.value(branch, value, None, place);
            walk.causes.is_empty()
        };
        let fitting = |keyword: &str| {
            let branches = schema[keyword].as_array()?;
            Some((branches.iter().filter(|branch| fits(branch)).count(), branches.len()))
        };
        let mut broken = Vec::new();
        if let Some((0, _)) = fitting("anyOf") {
            broken.push("must validate at least one schema (anyOf)".to_owned());
        }
        match fitting("oneOf") {
            Some((0, _)) => {
                broken.push("must validate one and only one schema (oneOf). Found none valid".to_owned());
            }
            Some((count, _)) if count > 1 => {
                broken.push(format!("must validate one and only one schema (oneOf). Found {count} valid alternatives"));
            }
            _ => {}
        }
        if fitting("allOf").is_some_and(|(fitting, all)| fitting < all) {
            broken.push("must validate all the schemas (allOf)".to_owned());
        }
        if schema["not"].is_object() && fits(&schema["not"]) {
            broken.push("must not validate the schema (not)".to_owned());
        }
        for rule in broken {
            let text = format!("\"{}\" {rule}", place.shown());
            self.causes.push(Cause::invalid(place.field(), &json!(""), text));
        }
    }
}

fn in_body(place: &Place, rule: &str) -> String {
    format!("{} in body {rule}", place.shown())
}

/// The item that an item replaces: by its keys in a list that is a map, else by its place.
fn counterpart<'a>(schema: &Value, item: &Value, index: usize, old: Option<&'a Value>) -> Option<&'a Value> {
    let old = old?.as_array()?;
    if schema["x-kubernetes-list-type"] == "map" {
        let key = map_key(schema, item);
        return old.iter().find(|other| map_key(schema, other) == key);
    }
    old.get(index)
}

fn map_key(schema: &Value, item: &Value) -> Value {
    let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten().filter_map(Value::as_str);
    keys.filter_map(|key| Some((key.to_owned(), item.get(key)?.clone()))).collect::<Map<_, _>>().into()
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
