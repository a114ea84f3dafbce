//! The certificates that a container trusts: those of its image, or of the node.
//!
//! As OpenSSL's programs do: the file that the container's `SSL_CERT_FILE` names, else the first that exists of the
//! places where Linux distributions keep certificates, in the container's root, so that a volume over one of them counts.
//! A file is parsed once for all containers with the same certificates, and read again when it has changed.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use wasmtime_wasi_http::Error;

use super::connect::Transport;
use super::context::OutgoingContext;
use super::fault;
use crate::file_stamp::FileStamp;
use hearth_base::config::TlsRoots;
use hearth_base::env::last;
use hearth_os::in_root::RootDir;
use hearth_wasm::resolver;

/// The environment variable with the file of certificates, as in OpenSSL.
const CERTIFICATES: &str = "SSL_CERT_FILE";

/// Files of certificates without it: of Debian and Alpine, of Fedora, of Alpine and BSD.
const PLACES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// The certificates that one container trusts.
pub struct Trust {
    context: Arc<OutgoingContext>,
    root: PathBuf,
    /// The value of `SSL_CERT_FILE`.
    named: Option<String>,
    current: Mutex<Option<(Stamp, Arc<ClientConfig>)>>,
}

/// Which file the certificates are from, and its state when it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stamp {
    /// The image's file.
    Image(FileStamp),
    /// The node's files.
    Node,
}

impl Trust {
    /// Those of a container with this root and environment.
    pub fn new(context: Arc<OutgoingContext>, root: PathBuf, env: &[(String, String)]) -> Trust {
        let named = last(env, CERTIFICATES).map(str::to_owned);
        Trust { context, root, named, current: Mutex::default() }
    }

    /// Makes a connection one of TLS with `host`.
    ///
    /// # Errors
    /// The error code of `wasi:http`.
    pub async fn secure<S: Transport>(&self, host: &str, stream: S) -> Result<TlsStream<S>, Error> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| Error::HttpRequestUriInvalid)?;
        let configuration = self.configuration().await?;
        TlsConnector::from(configuration).connect(name, stream).await.map_err(|error| fault::securing(&error))
    }

    /// The configuration with these certificates, for a protocol without the names of HTTP's versions (ALPN).
    ///
    /// # Errors
    /// As [`Trust::secure`].
    pub async fn without_http(&self) -> Result<Arc<ClientConfig>, Error> {
        let mut configuration = ClientConfig::clone(&*self.configuration().await?);
        configuration.alpn_protocols.clear();
        Ok(Arc::new(configuration))
    }

    async fn configuration(&self) -> Result<Arc<ClientConfig>, Error> {
        let current = self.current.lock().clone();
        let find = Find { context: self.context.clone(), root: self.root.clone(), named: self.named.clone(), current };
        // A volume may hang: its file is not read on a thread that serves.
        let found = tokio::task::spawn_blocking(move || find.find()).await;
        let found = found.map_err(|error| Error::InternalError(Some(error.to_string())))??;
        *self.current.lock() = Some(found.clone());
        Ok(found.1)
    }
}

/// Looks for a container's certificates. All of it blocks.
struct Find {
    context: Arc<OutgoingContext>,
    root: PathBuf,
    named: Option<String>,
    current: Option<(Stamp, Arc<ClientConfig>)>,
}

impl Find {
    fn find(self) -> Result<(Stamp, Arc<ClientConfig>), Error> {
        let roots = self.context.config().tls_roots;
        if roots != TlsRoots::Node
            && let Some(found) = self.in_image()?
        {
            return Ok(found);
        }
        match (&self.current, roots) {
            (_, TlsRoots::Image) => {
                tracing::debug!(root = %self.root.display(), "an image has no certificates to trust");
                Err(Error::TlsCertificateError)
            }
            (Some(current @ (Stamp::Node, _)), _) => Ok(current.clone()),
            _ => self.of_node(),
        }
    }

    fn in_image(&self) -> Result<Option<(Stamp, Arc<ClientConfig>)>, Error> {
        let unreadable = |error: io::Error| {
            tracing::debug!(%error, root = %self.root.display(), "a container's certificates cannot be read");
            Error::ConfigurationError
        };
        let root = RootDir::open(&self.root).map_err(|error| unreadable(error.into()))?;
        let places: Vec<&str> = self.named.as_deref().map_or_else(|| PLACES.to_vec(), |named| vec![named]);
        for place in places {
            let Some(stamp) = FileStamp::of(&root, place).map_err(unreadable)?.map(Stamp::Image) else { continue };
            if let Some(current) = self.current.as_ref().filter(|(of, _)| *of == stamp) {
                return Ok(Some(current.clone()));
            }
            let Some(text) = resolver::read(&root, place).map_err(unreadable)? else { continue };
            let configuration = self.context.configurations.get(*blake3::hash(&text).as_bytes(), || parse(&text))?;
            return Ok(Some((stamp, configuration)));
        }
        // A named file that does not exist means no certificates, not those of the node.
        if self.named.is_some() { Err(Error::ConfigurationError) } else { Ok(None) }
    }

    fn of_node(&self) -> Result<(Stamp, Arc<ClientConfig>), Error> {
        let loaded = rustls_native_certs::load_native_certs();
        for error in &loaded.errors {
            tracing::debug!(%error, "some of the node's certificates cannot be read");
        }
        let mut digest = blake3::Hasher::new();
        for certificate in &loaded.certs {
            digest.update(certificate);
        }
        let store = || {
            let mut store = RootCertStore::empty();
            store.add_parsable_certificates(loaded.certs);
            store
        };
        Ok((Stamp::Node, self.context.configurations.get(*digest.finalize().as_bytes(), store)?))
    }
}

/// The certificates of a PEM file; anything else in it is left out.
fn parse(text: &[u8]) -> RootCertStore {
    let mut store = RootCertStore::empty();
    let (taken, left_out) = store.add_parsable_certificates(CertificateDer::pem_slice_iter(text).flatten());
    tracing::debug!(taken, left_out, "certificates to trust");
    store
}
