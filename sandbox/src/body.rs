//! From the bytes of a request to an object: content type, kind, unknown fields, names.

use serde_json::{Value, json};

use crate::{
    builtin, duplicates, meta,
    options::FieldValidation,
    resource::Resource,
    schema,
    status::{Cause, Failure},
    verbs::report_unknown,
};

/// The largest request body, as on the API server.
pub(crate) const MAX_BODY: usize = 3 * 1024 * 1024;

/// An object and the warnings that its decoding raised.
pub(crate) type Decoded = (Value, Vec<String>);

/// Reads the body of a POST or PUT.
pub(crate) fn decode(
    resource: &Resource,
    body: &[u8],
    content_type: &str,
    validation: FieldValidation,
) -> Result<Decoded, Failure> {
    let mut object = parse(resource, body, content_type)?;
    settle_type(resource, &mut object, body)?;
    let cannot = |why: String| {
        Failure::bad_request(format!(
            "{} in version \"{}\" cannot be handled as a {}: {why}",
            resource.kind, resource.version, resource.kind
        ))
    };
    builtin::check_types(resource, &object).map_err(cannot)?;
    let mut unknown = duplicates::find(body);
    unknown.extend(schema::prune(resource, &mut object));
    let warnings = report_unknown(validation, &unknown).map_err(cannot)?;
    meta::tidy(&mut object);
    Ok((builtin::to_stored(resource, object), warnings))
}

/// The object is of the kind that the path says; a built-in one need not say so itself.
fn settle_type(resource: &Resource, object: &mut Value, body: &[u8]) -> Result<(), Failure> {
    let version = resource.api_version();
    let given = |field: &str| object[field].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let (given_version, given_kind) = (given("apiVersion"), given("kind"));
    if resource.custom {
        for (field, given) in [("Kind", &given_kind), ("apiVersion", &given_version)] {
            if given.is_none() {
                return Err(untyped(resource, body, field));
            }
        }
    }
    if let Some(given) = given_version.filter(|given| *given != version) {
        return Err(Failure::bad_request(format!(
            "the API version in the data ({given}) does not match the expected API version ({version})"
        )));
    }
    match given_kind.filter(|given| *given != resource.kind) {
        Some(given) if resource.custom => {
            let cause = Cause::invalid("kind", &json!(given), format!("must be {}", resource.kind));
            let mut failure = Failure::invalid(resource, meta::text(object, "name"), &[cause]);
            // It is named by the kind that it says it is.
            failure.message = failure.message.replacen(&resource.kind, &given, 1);
            if let Some(details) = &mut failure.details {
                details["kind"] = json!(given);
            }
            return Err(failure);
        }
        Some(given) => {
            return Err(Failure::bad_request(format!(
                "{given} in version \"{}\" cannot be handled as a {}: no kind \"{given}\" is registered for version \
                 \"{version}\"",
                resource.version, resource.kind
            )));
        }
        None => {}
    }
    object["apiVersion"] = json!(version);
    object["kind"] = json!(resource.kind);
    Ok(())
}

/// Takes over the outcome of a patch; unknown fields are reported as the API server reports them for patches.
pub(crate) fn from_patch(
    resource: &Resource,
    mut object: Value,
    validation: FieldValidation,
) -> Result<Decoded, Failure> {
    let text = object.to_string();
    settle_type(resource, &mut object, text.as_bytes())?;
    builtin::check_types(resource, &object).map_err(|why| {
        Failure::bad_request(format!(
            "{} in version \"{}\" cannot be handled as a {}: {why}",
            resource.kind, resource.version, resource.kind
        ))
    })?;
    let unknown = schema::prune(resource, &mut object);
    let warnings = report_unknown(validation, &unknown)
        .map_err(|why| Failure::invalid_patch(&[Cause::invalid("patch", &json!(text), why)]))?;
    meta::tidy(&mut object);
    Ok((builtin::to_stored(resource, object), warnings))
}

/// The name in the body must be the name in the path.
pub(crate) fn check_name(name: &str, object: &Value) -> Result<(), Failure> {
    match meta::text(object, "name") {
        "" => Err(Failure::bad_request(format!(
            "the name of the object ({name} based on URL) was undeterminable: name must be provided"
        ))),
        given if given == name => Ok(()),
        given => Err(Failure::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        ))),
    }
}

/// The namespace in the body, if any, must be the namespace in the path.
pub(crate) fn check_namespace(namespace: Option<&str>, object: &Value) -> Result<(), Failure> {
    let given = meta::text(object, "namespace");
    if given.is_empty() || given == namespace.unwrap_or_default() {
        return Ok(());
    }
    Err(Failure::bad_request("the namespace of the provided object does not match the namespace sent on the request"))
}

fn parse(resource: &Resource, body: &[u8], content_type: &str) -> Result<Value, Failure> {
    const ACCEPTED: &str = "application/json, application/yaml";
    let unreadable = |error: &str| {
        Failure::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): couldn't get version/kind; json parse error: \
             {error} ({})",
            resource.kind,
            summary(body)
        ))
    };
    let object: Value = match content_type.split(';').next().unwrap_or_default().trim() {
        "" | "application/json" | "*/*" => {
            serde_json::from_slice(body).map_err(|error| unreadable(&go_words(&error)))?
        }
        "application/yaml" => serde_saphyr::from_slice(body).map_err(|error| unreadable(&error.to_string()))?,
        _ => return Err(Failure::unsupported_media_type(ACCEPTED)),
    };
    if object.is_object() { Ok(object) } else { Err(unreadable("the body is not an object")) }
}

/// The API server speaks of truncated JSON in Go's words; the commonest case is translated.
fn go_words(error: &serde_json::Error) -> String {
    if error.is_eof() { "unexpected end of JSON input".to_owned() } else { error.to_string() }
}

/// A body that does not say what it is.
fn untyped(resource: &Resource, body: &[u8], field: &str) -> Failure {
    Failure::bad_request(format!(
        "the object provided is unrecognized (must be of type {}): Object '{field}' is missing in '{}' ({})",
        resource.kind,
        String::from_utf8_lossy(body),
        summary(body)
    ))
}

/// Enough of a body to recognise it by.
fn summary(body: &[u8]) -> String {
    const SHOWN: usize = 30;
    let shown = &body[..body.len().min(SHOWN)];
    let more = if body.len() > SHOWN { " ..." } else { "" };
    match shown {
        [] => "<empty>".to_owned(),
        shown => String::from_utf8_lossy(shown).into_owned() + more,
    }
}
