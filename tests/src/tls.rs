//! Certificates for servers of stories.

use std::sync::Arc;

use rcgen::{Certificate, CertificateParams, CertifiedIssuer, DnType, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;

/// A certificate authority.
#[derive(Debug)]
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// A new one.
    ///
    /// # Panics
    /// If no key can be made.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Authority {
        let mut about = CertificateParams::new(Vec::new()).expect("no names");
        about.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key can be made");
        Authority(CertifiedIssuer::self_signed(about, key).expect("it can sign"))
    }

    /// Its certificate in PEM.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// The TLS configuration of a server of this name, with a certificate of this authority.
    ///
    /// # Panics
    /// If it is not a DNS name.
    pub fn server(&self, name: &str) -> ServerConfig {
        let (certificate, key) = self.issue(name);
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("it is a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.expect("they are known").with_no_client_auth();
        config.with_single_cert(vec![certificate.into()], key).expect("they belong together")
    }

    /// A certificate of this authority for a server of this name, and its key, in PEM.
    ///
    /// # Panics
    /// If it is not a DNS name.
    pub fn pair(&self, name: &str) -> (String, String) {
        let (certificate, key) = self.issue(name);
        (certificate.pem(), key.serialize_pem())
    }

    fn issue(&self, name: &str) -> (Certificate, KeyPair) {
        let key = KeyPair::generate().expect("a key can be made");
        let mut about = CertificateParams::new([name.to_owned()]).expect("a name");
        // Its subject is not its issuer's, as OpenSSL takes such a certificate for a self-signed one.
        about.distinguished_name.push(DnType::CommonName, name);
        (about.signed_by(&key, &self.0).expect("it signs"), key)
    }
}
