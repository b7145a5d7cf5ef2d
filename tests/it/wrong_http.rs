//! Wrong `spec.http`, refused by the schema of the CRD: what is written, and what the API server says.
//!
//! The messages are those of a real API server (1.36); the sandbox has to give the same.

use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind, PostParams},
};
use rstest::rstest;
use sandbox::Sandbox;
use serde_json::{Value, json};

async fn create(http: Value) -> Result<DynamicObject, String> {
    let sandbox = Sandbox::builder().seed(1).build();
    let client = Client::new(sandbox.service("test"), "default");
    let definitions = Api::all(client.clone());
    for definition in tenure::api::crds().expect("the definitions can be made") {
        definitions.create(&PostParams::default(), &definition).await.expect("the definition is valid");
    }
    let kind = ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk("tenure.dev", "v1alpha1", "PeriodicJob"),
        "periodicjobs",
    );
    let jobs: Api<DynamicObject> = Api::namespaced_with(client, "default", &kind);
    let job = DynamicObject::new("j", &kind).data(json!({ "spec": { "interval": "1s", "http": http } }));
    jobs.create(&PostParams::default(), &job).await.map_err(|error| error.to_string())
}

#[rstest]
#[case(json!({ "url": "https://example.com" }))]
#[case(json!({ "url": "http://[fd00::1]:80/", "bodyTemplate": "${RUN_ID}" }))]
#[case(json!({
    "url": "http://example.com:80/a?b=c", "method": "GET", "expectedStatus": ["200-299", "404"],
    "headers": [
        { "name": "X-A", "value": "b" },
        { "name": "X-B", "valueFrom": { "secretKeyRef": { "name": "s", "key": "k" } } },
    ],
}))]
#[tokio::test(start_paused = true)]
async fn a_right_action_is_accepted_and_gets_its_defaults(#[case] http: Value) {
    let job = create(http.clone()).await.expect("it is accepted");
    let stored = &job.data["spec"]["http"];
    assert_eq!(stored["method"], http.get("method").cloned().unwrap_or(json!("POST")));
    assert_eq!(stored["expectedStatus"], http.get("expectedStatus").cloned().unwrap_or(json!(["200-299"])));
}

#[rstest]
#[case(
    json!({ "url": "ftp://example.com" }),
    "spec.http.url: Invalid value: \"ftp://example.com\": spec.http.url in body should match"
)]
#[case(
    json!({ "url": "http://u:p@example.com/" }),
    "spec.http.url: Invalid value: \"http://u:p@example.com/\": spec.http.url in body should match"
)]
#[case(json!({}), "spec.http.url: Required value")]
#[case(
    json!({ "url": "http://example.com", "method": "GET", "body": "x" }),
    "a GET or HEAD request has no body: remove body or bodyTemplate, or use another method"
)]
#[case(
    json!({ "url": "http://example.com", "body": "x", "bodyTemplate": "y" }),
    "set body (sent as it is) or bodyTemplate (with placeholders), not both"
)]
#[case(json!({ "url": "http://example.com", "tls": { "ca": "x" } }), "tls needs a url that begins with https://")]
#[case(json!({ "url": "https://example.com", "tls": {} }), "tls has exactly one of ca and caFrom")]
#[case(json!({ "url": "https://example.com", "auth": {} }), "auth has exactly one of bearer and basic")]
#[case(
    json!({ "url": "https://example.com", "headers": [{ "name": "Tenure-Token", "value": "1" }] }),
    "spec.http.headers[0]: Invalid value: this header is set by Tenure or belongs to the connection"
)]
#[case(
    json!({ "url": "https://example.com", "headers": [{ "name": "HOST", "value": "1" }] }),
    "spec.http.headers[0]: Invalid value: this header is set by Tenure or belongs to the connection"
)]
#[case(
    json!({ "url": "https://example.com", "headers": [{ "name": "a b", "value": "1" }] }),
    "spec.http.headers[0].name: Invalid value: \"a b\""
)]
#[case(
    json!({ "url": "https://example.com", "headers": [{ "name": "a" }] }),
    "spec.http.headers[0]: Invalid value: a header has either value or valueFrom"
)]
#[case(
    json!({ "url": "https://example.com", "expectedStatus": [200] }),
    "spec.http.expectedStatus[0] in body must be of type string: \"integer\""
)]
#[case(
    json!({ "url": "https://example.com", "expectedStatus": ["2xx"] }),
    "spec.http.expectedStatus[0]: Invalid value: \"2xx\""
)]
#[case(
    json!({ "url": "https://example.com", "method": "TRACE" }),
    "spec.http.method: Unsupported value: \"TRACE\": supported values: \"GET\", \"HEAD\", \"POST\", \"PUT\", \"PATCH\", \"DELETE\""
)]
#[case(
    json!({ "url": "https://example.com", "body": "x".repeat(65_537) }),
    "spec.http.body: Too long: may not be more than 65536 bytes"
)]
#[tokio::test(start_paused = true)]
async fn a_wrong_action_is_refused_by_the_schema_with_the_field_and_the_reason(
    #[case] http: Value,
    #[case] message: &str,
) {
    let said = create(http).await.expect_err("it is refused");
    assert!(said.contains(message), "{said}");
}
