//! From the bytes of a request to an object: content type, kind, unknown fields, names.

use serde_json::{Value, json};

use crate::{
    builtin, meta,
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
    let version = resource.api_version();
    match object["apiVersion"].as_str() {
        Some(given) if !given.is_empty() && given != version => {
            return Err(Failure::bad_request(format!(
                "the API version in the data ({given}) does not match the expected API version ({version})"
            )));
        }
        Some(given) if !given.is_empty() => {}
        _ if resource.custom => return Err(untyped(resource, body, "Object 'apiVersion' is missing in")),
        _ => object["apiVersion"] = json!(version),
    }
    match object["kind"].as_str() {
        Some(given) if !given.is_empty() && given != resource.kind => {
            if resource.custom {
                let text = format!("must be {}", resource.kind);
                let name = meta::text(&object, "name").to_owned();
                return Err(Failure::invalid(resource, &name, &[Cause::invalid("kind", &json!(given), text)]));
            }
            return Err(Failure::bad_request(format!(
                "{given} in version \"{}\" cannot be handled as a {}: no kind \"{given}\" is registered for version \
                 \"{version}\"",
                resource.version, resource.kind
            )));
        }
        Some(given) if !given.is_empty() => {}
        _ if resource.custom => return Err(untyped(resource, body, "Object 'Kind' is missing in")),
        _ => object["kind"] = json!(resource.kind),
    }
    let cannot = |why: String| {
        Failure::bad_request(format!(
            "{} in version \"{}\" cannot be handled as a {}: {why}",
            resource.kind, resource.version, resource.kind
        ))
    };
    builtin::check_types(resource, &object).map_err(cannot)?;
    let unknown = schema::prune(resource, &mut object);
    let warnings = report_unknown(validation, &unknown).map_err(cannot)?;
    meta::tidy(&mut object);
    Ok((builtin::to_stored(resource, object), warnings))
}

/// Takes over the outcome of a patch; unknown fields are reported as the API server reports them for patches.
pub(crate) fn from_patch(
    resource: &Resource,
    mut object: Value,
    validation: FieldValidation,
) -> Result<Decoded, Failure> {
    builtin::check_types(resource, &object).map_err(|why| {
        Failure::bad_request(format!(
            "{} in version \"{}\" cannot be handled as a {}: {why}",
            resource.kind, resource.version, resource.kind
        ))
    })?;
    let whole = object.to_string();
    let unknown = schema::prune(resource, &mut object);
    let warnings = report_unknown(validation, &unknown)
        .map_err(|why| Failure::invalid_patch(&[Cause::invalid("patch", &json!(whole), why)]))?;
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
        let text = String::from_utf8_lossy(body);
        Failure::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): couldn't get version/kind; json parse error: \
             {error} ({})",
            resource.kind,
            excerpt(&text)
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

fn untyped(resource: &Resource, body: &[u8], what: &str) -> Failure {
    Failure::bad_request(format!(
        "the object provided is unrecognized (must be of type {}): {what} '{}'",
        resource.kind,
        excerpt(&String::from_utf8_lossy(body))
    ))
}

fn excerpt(text: &str) -> String {
    /// Enough to recognise the body by, without filling a terminal.
    const SHOWN: usize = 1024;
    text.chars().take(SHOWN).collect()
}
