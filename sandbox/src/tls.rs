//! The certificate of the sandbox.
//!
//! `kubectl` sends no credentials over plain HTTP, so the kubeconfig speaks of HTTPS and brings this certificate along.
//! It is made once in a process, for loopback only, and never leaves memory but for its public half. A connection that
//! does not begin with a TLS handshake is taken as plain HTTP, which is enough for `curl` and for test harnesses.

use std::sync::{Arc, LazyLock};

use base64::{Engine, engine::general_purpose::STANDARD};
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto::ring, pki_types::PrivatePkcs8KeyDer},
};

struct Identity {
    acceptor: TlsAcceptor,
    certificate: String,
}

static IDENTITY: LazyLock<Identity> = LazyLock::new(|| {
    let key = rcgen::KeyPair::generate().expect("a key can be made where there is randomness");
    let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let mut parameters = rcgen::CertificateParams::new(names).expect("the names are constants in the right form");
    parameters.distinguished_name.push(rcgen::DnType::CommonName, "sandbox");
    let certificate = parameters.self_signed(&key).expect("a key signs its own certificate");
    let private = PrivatePkcs8KeyDer::from(key.serialize_der());
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has the default protocol versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private.into())
        .expect("the key belongs to the certificate");
    Identity { acceptor: TlsAcceptor::from(Arc::new(config)), certificate: STANDARD.encode(certificate.pem()) }
});

/// The certificate as a kubeconfig holds it.
pub(crate) fn certificate_data() -> &'static str {
    &IDENTITY.certificate
}

pub(crate) fn acceptor() -> TlsAcceptor {
    IDENTITY.acceptor.clone()
}

/// Whether the client begins with a TLS handshake.
pub(crate) async fn is_tls(stream: &TcpStream) -> bool {
    /// The content type of a handshake record; no HTTP method begins with it.
    const HANDSHAKE: u8 = 0x16;
    let mut first = [0];
    matches!(stream.peek(&mut first).await, Ok(1)) && first[0] == HANDSHAKE
}
