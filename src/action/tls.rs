//! TLS towards a target: which authorities are trusted, and by which clock.
//!
//! With `tls.ca` only those authorities are trusted; without it, the system's (`SSL_CERT_FILE` and `SSL_CERT_DIR` are
//! honoured). Certificates are judged by the replica's own wall clock. The provider is ring's, named here rather than
//! installed for the process, so that a library user's choice is not disturbed.

use std::sync::{Arc, OnceLock};

use tokio_rustls::rustls::{
    self, ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, UnixTime, pem::PemObject},
    time_provider::TimeProvider,
};

use crate::clock::SharedClock;

/// Makes the TLS settings for targets.
#[derive(Debug)]
pub(super) struct Tls {
    clock: SharedClock,
    /// The settings with the system's authorities. They are read when they are first needed: a replica whose jobs call
    /// plain HTTP, or their own authorities, does not hold them.
    system: OnceLock<Arc<ClientConfig>>,
}

/// TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    #[error("http.tls: the authority's certificate is not PEM: {0}")]
    NotPem(#[source] rustls::pki_types::pem::Error),
    #[error("http.tls: there is no certificate in the given text")]
    Empty,
    #[error("http.tls: the authority's certificate cannot be used: {0}")]
    Unusable(#[source] rustls::Error),
    #[error(
        "no certificate authority is installed on this system: set SSL_CERT_FILE for the replica, or give http.tls"
    )]
    NoSystemRoots,
    #[error("TLS cannot be set up: {0}")]
    Settings(#[source] rustls::Error),
}

#[derive(Debug)]
struct WallTime(SharedClock);

impl TimeProvider for WallTime {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.wall().as_second()).ok()?;
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds)))
    }
}

impl Tls {
    pub(super) fn new(clock: SharedClock) -> Self {
        Self { clock, system: OnceLock::new() }
    }

    /// The settings that trust the authorities in `pem`, or the system's without it.
    pub(super) fn settings(&self, pem: Option<&str>) -> Result<Arc<ClientConfig>, TlsError> {
        if let Some(pem) = pem {
            return self.trusting(given_roots(pem)?);
        }
        if let Some(settings) = self.system.get() {
            return Ok(settings.clone());
        }
        let mut roots = RootCertStore::empty();
        let (usable, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if usable == 0 {
            return Err(TlsError::NoSystemRoots);
        }
        let settings = self.trusting(roots)?;
        Ok(self.system.get_or_init(|| settings).clone())
    }

    fn trusting(&self, roots: RootCertStore) -> Result<Arc<ClientConfig>, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let mut settings = ClientConfig::builder_with_details(provider, Arc::new(WallTime(self.clock.clone())))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Settings)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        settings.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(settings))
    }
}

fn given_roots(pem: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.map_err(TlsError::NotPem)?).map_err(TlsError::Unusable)?;
    }
    if roots.is_empty() { Err(TlsError::Empty) } else { Ok(roots) }
}
