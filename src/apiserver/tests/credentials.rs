//! Credentials that expire, from a plugin and from files.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::config::ExecConfig;
use serde_json::{Value, json};
use tokio_rustls::rustls;

use super::{
    ApiServer, LIST, list,
    support::{PATIENCE, Said, SharedSettable, Stub, config, reply},
};
use crate::clock::{self, Clock, SystemClock};

const MINUTE: Duration = Duration::from_mins(1);

/// A plugin that gives one answer after the other, the last for ever. Where there is none it hangs.
fn plugin(folder: &Path, answers: &[Value]) -> ExecConfig {
    for (number, answer) in answers.iter().enumerate() {
        fs::write(folder.join(format!("answer-{number}")), answer.to_string()).expect("a file");
    }
    let path = folder.join("plugin");
    let script = format!(
        "#!/bin/sh\ncd {folder}\nn=$(cat count 2>/dev/null || echo 0)\necho $((n + 1)) >count\n\
         [ -e answer-$n ] || exec sleep 600\ncat answer-$n\n",
        folder = folder.display()
    );
    fs::write(&path, script).expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("permissions");
    let exec = json!({
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": path,
        "interactiveMode": "Never",
    });
    serde_json::from_value(exec).expect("an exec section")
}

fn credential(status: &Value) -> Value {
    json!({ "apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status })
}

fn token(number: usize, until: Option<Timestamp>) -> Value {
    let mut status = json!({ "token": format!("token-{number}") });
    if let Some(until) = until {
        status["expirationTimestamp"] = json!(until);
    }
    credential(&status)
}

fn with_plugin(stub: &Stub, exec: ExecConfig, clock: &SharedSettable) -> ApiServer {
    let mut config = config(stub);
    config.auth_info.exec = Some(exec);
    ApiServer::from_config(config, Arc::new(clock.clone())).expect("a configuration")
}

/// Asks until a request came with what is wanted, for a load goes on beside the requests.
async fn ask_until(api: &ApiServer, stub: &Stub, wanted: impl Fn(&Said) -> bool) {
    let asking = async {
        loop {
            list(api).await.ok();
            if stub.said().last().is_some_and(&wanted) {
                return;
            }
        }
    };
    clock::timeout(&SystemClock, PATIENCE, asking).await.expect("in time");
}

fn bearer(number: usize) -> impl Fn(&Said) -> bool {
    move |said| said.authorization == Some(format!("Bearer token-{number}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_a_plugin_is_loaded_anew_before_it_expires() {
    let (folder, clock) = (tempfile::tempdir().expect("a folder"), SharedSettable::default());
    let until = Some(clock.wall() + MINUTE * 60);
    let exec = plugin(folder.path(), &[token(0, until), token(1, until.map(|until| until + MINUTE * 60))]);
    let stub = Stub::start(|_: &Said| reply(200, LIST));
    let api = with_plugin(&stub, exec, &clock);
    list(&api).await.expect("served");
    clock.0.advance(MINUTE * 58);
    list(&api).await.expect("served");
    assert!(stub.said().iter().all(bearer(0)), "not before its time");
    clock.0.advance(MINUTE + Duration::from_secs(10));
    ask_until(&api, &stub, bearer(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_with_an_expired_token_waits_for_the_next() {
    let (folder, clock) = (tempfile::tempdir().expect("a folder"), SharedSettable::default());
    let exec = plugin(folder.path(), &[token(0, Some(clock.wall() + MINUTE)), token(1, None)]);
    let stub = Stub::start(|_: &Said| reply(200, LIST));
    let api = with_plugin(&stub, exec, &clock);
    clock.0.advance(MINUTE * 5);
    list(&api).await.expect("served");
    assert!(stub.said().iter().all(bearer(1)), "{:?}", stub.said());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_hangs_keeps_no_request_for_long() {
    let (folder, clock) = (tempfile::tempdir().expect("a folder"), SharedSettable::default());
    let exec = plugin(folder.path(), &[token(0, Some(clock.wall() + MINUTE))]);
    let stub = Stub::start(|_: &Said| reply(200, LIST));
    let api = with_plugin(&stub, exec, &clock);
    clock.0.advance(MINUTE * 5);
    let asked = clock.boot();
    list(&api).await.expect("it is the API server's clock that counts");
    assert!(clock.boot() - asked < super::super::plugin::DEADLINE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_without_an_expiry_is_loaded_anew_when_it_is_refused() {
    let (folder, clock) = (tempfile::tempdir().expect("a folder"), SharedSettable::default());
    let exec = plugin(folder.path(), &[token(0, None), token(1, None)]);
    let stub = Stub::start(|said: &Said| if bearer(0)(said) { reply(401, "") } else { reply(200, LIST) });
    let api = with_plugin(&stub, exec, &clock);
    list(&api).await.expect_err("refused");
    clock.0.advance(MINUTE);
    ask_until(&api, &stub, bearer(1)).await;
    list(&api).await.expect("served");
}

/// A certificate and its key in PEM, and the certificate in DER.
fn identity(name: &str) -> (String, String, Vec<u8>) {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
    (made.cert.pem(), made.signing_key.serialize_pem(), made.cert.der().to_vec())
}

/// A server that wants a certificate of each client, one of these.
fn server(clients: &[&Vec<u8>]) -> rustls::ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    for client in clients {
        roots.add(rustls::pki_types::CertificateDer::from((*client).clone())).expect("a certificate");
    }
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into();
    rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(verifier.build().expect("a verifier"))
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a key that fits")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_a_plugin_is_loaded_anew_before_it_expires() {
    let (folder, clock) = (tempfile::tempdir().expect("a folder"), SharedSettable::default());
    let until = clock.wall() + MINUTE * 60;
    let ((old, old_key, old_der), (new, new_key, new_der)) = (identity("old"), identity("new"));
    let given = |certificate: &str, key: &str| {
        credential(&json!({
            "clientCertificateData": certificate, "clientKeyData": key, "expirationTimestamp": until,
        }))
    };
    let exec = plugin(folder.path(), &[given(&old, &old_key), given(&new, &new_key)]);
    let stub = Stub::start_tls(server(&[&old_der, &new_der]), |_: &Said| reply(200, LIST));
    let api = with_plugin(&stub, exec, &clock);
    list(&api).await.expect("served");
    assert_eq!(stub.said()[0].certificate.as_ref(), Some(&old_der));
    clock.0.advance(MINUTE * 59 + Duration::from_secs(10));
    ask_until(&api, &stub, |said| said.certificate.as_ref() == Some(&new_der)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_was_written_anew_is_read_without_an_error_before() {
    let (folder, clock) = (tempfile::tempdir().expect("a folder"), SharedSettable::default());
    let ((old, old_key, old_der), (new, new_key, new_der)) = (identity("old"), identity("new"));
    let (certificate, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
    let write = |pem: &str, key_pem: &str| {
        fs::write(&certificate, pem).expect("a file");
        fs::write(&key, key_pem).expect("a file");
    };
    write(&old, &old_key);
    let stub = Stub::start_tls(server(&[&old_der, &new_der]), |_: &Said| reply(200, LIST));
    let mut config = config(&stub);
    config.auth_info.client_certificate = Some(certificate.display().to_string());
    config.auth_info.client_key = Some(key.display().to_string());
    let api = ApiServer::from_config(config, Arc::new(clock.clone())).expect("a configuration");
    list(&api).await.expect("served");
    clock.0.advance(MINUTE * 2);
    ask_until(&api, &stub, |said| said.certificate.as_ref() == Some(&old_der)).await;
    assert!(stub.said().iter().all(|said| said.connection == 0), "nothing has changed");
    write(&new, &new_key);
    clock.0.advance(MINUTE * 2);
    ask_until(&api, &stub, |said| said.certificate.as_ref() == Some(&new_der)).await;
}
