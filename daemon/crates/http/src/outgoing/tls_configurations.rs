//! TLS configurations, one for each set of trusted certificates, shared by the containers that trust the same.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};
use wasmtime_wasi_http::Error;

/// Configurations by the digest of their certificates, as long as a container uses them.
#[derive(Default)]
pub struct Configurations(Mutex<HashMap<[u8; 32], Weak<ClientConfig>>>);

impl Configurations {
    /// The configuration for the certificates with this digest. `parse` makes the certificates if there is none yet.
    ///
    /// # Errors
    /// The error code of `wasi:http` if rustls refuses its own defaults.
    pub fn get(&self, digest: [u8; 32], parse: impl FnOnce() -> RootCertStore) -> Result<Arc<ClientConfig>, Error> {
        let known = |all: &HashMap<_, Weak<_>>| all.get(&digest).and_then(Weak::upgrade);
        if let Some(configuration) = known(&self.0.lock()) {
            return Ok(configuration);
        }
        let configuration = Arc::new(configuration(parse())?);
        let mut all = self.0.lock();
        all.retain(|_, configuration| configuration.strong_count() > 0);
        // Another container may have been faster.
        Ok(known(&all).unwrap_or_else(|| {
            all.insert(digest, Arc::downgrade(&configuration));
            configuration
        }))
    }
}

fn configuration(roots: RootCertStore) -> Result<ClientConfig, Error> {
    let provider = Arc::new(crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| Error::InternalError(Some(error.to_string())))?;
    let mut configuration = builder.with_root_certificates(roots).with_no_client_auth();
    configuration.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(configuration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_with_the_same_certificates_share_a_configuration() {
        let all = Configurations::default();
        let one = all.get([1; 32], RootCertStore::empty).unwrap();
        let same = all.get([1; 32], || panic!("it is there")).unwrap();
        assert!(Arc::ptr_eq(&one, &same));
        assert!(!Arc::ptr_eq(&one, &all.get([2; 32], RootCertStore::empty).unwrap()));
        drop((one, same));
        let mut parsed = false;
        all.get([1; 32], || {
            parsed = true;
            RootCertStore::empty()
        })
        .unwrap();
        assert!(parsed, "no container used it any more");
    }
}
