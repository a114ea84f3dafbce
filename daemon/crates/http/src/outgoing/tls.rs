//! Whom a container trusts: the certificates of its image, or of the node.
//!
//! As OpenSSL's programs do: the file that the container's `SSL_CERT_FILE` names, else the first of the
//! places where Linux distributions keep theirs, in the container's root, so that a volume over one of
//! them counts. What is read is parsed once for all containers with the same certificates, and
//! read again when the file has changed.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};
use wasmtime_wasi_http::Error;

use super::fault;
use crate::context::Http;
use hearth_base::config::TlsRoots;
use hearth_os::in_root::RootDir;
use hearth_wasm::resolver;

/// The variable with the file of certificates, as OpenSSL has it.
const CERTIFICATES: &str = "SSL_CERT_FILE";

/// Where certificates are without it: Debian and Alpine, Fedora, Alpine and BSD.
const PLACES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Configurations by the digest of the certificates they are made from, while somebody has them.
#[derive(Default)]
pub struct Configurations(Mutex<HashMap<[u8; 32], Weak<ClientConfig>>>);

impl Configurations {
    /// The one for these certificates, made by `parse` if there is none.
    fn get(&self, digest: [u8; 32], parse: impl FnOnce() -> RootCertStore) -> Result<Arc<ClientConfig>, Error> {
        let known = |all: &HashMap<_, Weak<_>>| all.get(&digest).and_then(Weak::upgrade);
        if let Some(configuration) = known(&self.0.lock()) {
            return Ok(configuration);
        }
        let configuration = Arc::new(configuration(parse())?);
        let mut all = self.0.lock();
        all.retain(|_, configuration| configuration.strong_count() > 0);
        // Somebody may have been faster.
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
    configuration.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(configuration)
}

/// Whom one container trusts.
pub struct Trust {
    http: Arc<Http>,
    root: PathBuf,
    /// What `SSL_CERT_FILE` says.
    named: Option<String>,
    current: Mutex<Option<(Stamp, Arc<ClientConfig>)>>,
}

/// Which file it was, as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stamp {
    /// Device, inode, size and change time of the image's.
    Image([i64; 5]),
    /// The node's.
    Node,
}

impl Trust {
    /// That of a container with this root and environment.
    pub fn new(http: Arc<Http>, root: PathBuf, env: &[(String, String)]) -> Trust {
        let named = env.iter().rev().find(|(name, _)| name == CERTIFICATES).map(|(_, value)| value.clone());
        Trust { http, root, named, current: Mutex::default() }
    }

    /// TLS with `host` over a connection.
    ///
    /// # Errors
    /// What `wasi:http` has for it.
    pub async fn secure(&self, host: &str, stream: TcpStream) -> Result<TlsStream<TcpStream>, Error> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| Error::HttpRequestUriInvalid)?;
        let configuration = self.configuration().await?;
        TlsConnector::from(configuration).connect(name, stream).await.map_err(|error| fault::securing(&error))
    }

    async fn configuration(&self) -> Result<Arc<ClientConfig>, Error> {
        let current = self.current.lock().clone();
        let find = Find { http: self.http.clone(), root: self.root.clone(), named: self.named.clone(), current };
        // A volume may hang: not on a thread that serves.
        let found = tokio::task::spawn_blocking(move || find.find()).await;
        let found = found.map_err(|error| Error::InternalError(Some(error.to_string())))??;
        *self.current.lock() = Some(found.clone());
        Ok(found.1)
    }
}

/// Looks for a container's certificates. All of it blocks.
struct Find {
    http: Arc<Http>,
    root: PathBuf,
    named: Option<String>,
    current: Option<(Stamp, Arc<ClientConfig>)>,
}

impl Find {
    fn find(self) -> Result<(Stamp, Arc<ClientConfig>), Error> {
        let roots = self.http.config().tls_roots;
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
            let Some(stamp) = stamp(&root, place).map_err(unreadable)? else { continue };
            if let Some(current) = self.current.as_ref().filter(|(of, _)| *of == stamp) {
                return Ok(Some(current.clone()));
            }
            let Some(text) = resolver::read(&root, place).map_err(unreadable)? else { continue };
            let configuration = self.http.tls.get(*blake3::hash(&text).as_bytes(), || parse(&text))?;
            return Ok(Some((stamp, configuration)));
        }
        // What is named and is not there is nobody, not everybody that the node trusts.
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
        Ok((Stamp::Node, self.http.tls.get(*digest.finalize().as_bytes(), store)?))
    }
}

/// Which file is at `path` now; none if none is.
fn stamp(root: &RootDir, path: &str) -> io::Result<Option<Stamp>> {
    let found = match root.resolve(Path::new(path)) {
        Ok(found) => found,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let found = std::fs::File::from(found).metadata()?;
    let (device, inode) = (found.dev() as i64, found.ino() as i64);
    Ok(Some(Stamp::Image([device, inode, found.size() as i64, found.ctime(), found.ctime_nsec()])))
}

/// The certificates of a PEM file; what is none is left out.
fn parse(text: &[u8]) -> RootCertStore {
    let mut store = RootCertStore::empty();
    let (taken, left_out) = store.add_parsable_certificates(CertificateDer::pem_slice_iter(text).flatten());
    tracing::debug!(taken, left_out, "certificates to trust");
    store
}
