//! A service's certificate and its key, as they are in the container now.
//!
//! Kubernetes renews a Secret in a volume by one rename of a link, so that both files change at once. Other programs write
//! one file after the other. Files that do not fit together are therefore told only once they are older than
//! `SETTLED`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::NoServerSessionStorage;
use tokio_rustls::rustls::{self, ServerConfig};

use crate::file_stamp::FileStamp;
use hearth_os::in_root::RootDir;
use hearth_wasm::resolver;

/// The names of the files, as in a Secret of the type `kubernetes.io/tls`.
const FILES: [&str; 2] = ["tls.crt", "tls.key"];

/// The least time between two looks at the files.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How long a client waits for a look at the files, which may be in a volume that hangs.
const LOOK_TIME: Duration = Duration::from_secs(1);

/// The age from which on files are taken for complete.
const SETTLED: Duration = Duration::from_secs(2);

/// Protocols that a client may choose by ALPN (RFC 7301), the first one preferred.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The stamps of the files; none for a file that does not exist.
type Stamps = [Option<FileStamp>; FILES.len()];

/// The certificate of one service.
pub struct Certificate {
    runtime: Handle,
    files: Arc<Files>,
    current: Arc<Mutex<Current>>,
}

struct Current {
    configuration: Arc<ServerConfig>,
    /// Of the files that were read last, usable or not.
    stamps: Stamps,
    looked_at: Instant,
    /// Told when the look that is under way has ended.
    looking: Option<watch::Receiver<()>>,
}

/// Called after a renewal, with the text if it cannot be used.
pub type TellRenewal = Box<dyn FnOnce(Result<(), String>) + Send>;

impl Certificate {
    /// Reads the certificate in `directory` of the container whose root is at `root`. `runtime` is where its files are
    /// read from now on.
    ///
    /// # Errors
    /// The file and its fault, in one line.
    pub async fn open(runtime: &Handle, root: PathBuf, directory: String) -> Result<Certificate, String> {
        let files = Arc::new(Files { root, directory });
        let reading = files.clone();
        let read = runtime.spawn_blocking(move || reading.read()).await;
        let (stamps, configuration) = read.map_err(|error| format!("reading ended early: {error}"))??;
        let current = Current { configuration, stamps, looked_at: Instant::now(), looking: None };
        Ok(Certificate { runtime: runtime.clone(), files, current: Arc::new(Mutex::new(current)) })
    }

    /// The configuration with the files that are there now, or with the last usable ones. Looks at the files at most once
    /// in `LOOK_INTERVAL`, and waits for that no longer than `LOOK_TIME`.
    pub async fn configuration(&self, tell: TellRenewal) -> Arc<ServerConfig> {
        let looking = {
            let mut current = self.current.lock();
            match &current.looking {
                Some(looking) => Some(looking.clone()),
                None if current.looked_at.elapsed() < LOOK_INTERVAL => None,
                None => {
                    let looking = self.look(current.stamps, tell);
                    current.looking = Some(looking.clone());
                    Some(looking)
                }
            }
        };
        if let Some(mut looking) = looking {
            // An error tells the end of the look, too.
            let _ = tokio::time::timeout(LOOK_TIME, looking.changed()).await;
        }
        self.current.lock().configuration.clone()
    }

    /// Looks at the files, off the threads that serve. The receiver is told when it is done.
    fn look(&self, known: Stamps, tell: TellRenewal) -> watch::Receiver<()> {
        let (done, looking) = watch::channel(());
        let (files, current) = (self.files.clone(), self.current.clone());
        self.runtime.spawn_blocking(move || {
            let seen = files.changed_since(known);
            let mut state = current.lock();
            state.looked_at = Instant::now();
            state.looking = None;
            let renewal = match seen {
                Seen::Unchanged => None,
                Seen::Usable(stamps, configuration) => {
                    (state.stamps, state.configuration) = (stamps, configuration);
                    Some(Ok(()))
                }
                Seen::Unusable(stamps, text) => {
                    state.stamps = stamps;
                    Some(Err(text))
                }
            };
            drop(state);
            drop(done);
            if let Some(renewal) = renewal {
                tell(renewal);
            }
        });
        looking
    }
}

/// The result of a look at the files.
enum Seen {
    /// They are as they were, or are being written.
    Unchanged,
    /// Others.
    Usable(Stamps, Arc<ServerConfig>),
    /// Others that cannot be used, and why.
    Unusable(Stamps, String),
}

/// Where the files are. All of it blocks.
struct Files {
    root: PathBuf,
    directory: String,
}

impl Files {
    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.directory.trim_end_matches('/'))
    }

    fn changed_since(&self, known: Stamps) -> Seen {
        let stamps = match self.open_root().and_then(|root| self.stamps(&root)) {
            Ok(stamps) if stamps == known => return Seen::Unchanged,
            Ok(stamps) => stamps,
            Err(error) => return Seen::Unusable(known, error),
        };
        match self.read() {
            Ok((stamps, configuration)) => Seen::Usable(stamps, configuration),
            Err(_) if !is_settled(&stamps, SystemTime::now()) => Seen::Unchanged,
            Err(error) => Seen::Unusable(stamps, error),
        }
    }

    /// Reads the files, with their stamps from before.
    fn read(&self) -> Result<(Stamps, Arc<ServerConfig>), String> {
        let root = self.open_root()?;
        let stamps = self.stamps(&root)?;
        let [chain, key] = [self.file(&root, FILES[0])?, self.file(&root, FILES[1])?];
        Ok((stamps, Arc::new(self.parse(&chain, &key)?)))
    }

    fn open_root(&self) -> Result<RootDir, String> {
        RootDir::open(&self.root).map_err(|error| format!("{}: {error}", self.directory))
    }

    fn stamps(&self, root: &RootDir) -> Result<Stamps, String> {
        let mut stamps = [None; FILES.len()];
        for (stamp, name) in stamps.iter_mut().zip(FILES) {
            let path = self.path(name);
            *stamp = FileStamp::of(root, &path).map_err(|error| format!("{path}: {error}"))?;
        }
        Ok(stamps)
    }

    fn file(&self, root: &RootDir, name: &str) -> Result<Vec<u8>, String> {
        let path = self.path(name);
        match resolver::read(root, &path) {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) => Err(format!(
                "{path} does not exist; mount a Secret of the type kubernetes.io/tls at {}",
                self.directory
            )),
            Err(error) => Err(format!("{path}: {error}")),
        }
    }

    fn parse(&self, chain: &[u8], key: &[u8]) -> Result<ServerConfig, String> {
        let [of_chain, of_key] = FILES.map(|name| self.path(name));
        let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|error| format!("{of_chain}: {error}"))?;
        if chain.is_empty() {
            return Err(format!("{of_chain} has no certificate in PEM form"));
        }
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|_| format!("{of_key} has no private key in PEM form (PKCS#8, PKCS#1 or SEC1, not encrypted)"))?;
        configuration(chain, key).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                format!("{of_key} is not the key of the first certificate in {of_chain}")
            }
            rustls::Error::InvalidCertificate(_) => format!("{of_chain}: {error}"),
            _ => format!("{of_key}: {error}"),
        })
    }
}

/// Whether no file is so young that another one of its renewal may still have to be written.
fn is_settled(stamps: &Stamps, now: SystemTime) -> bool {
    stamps.iter().flatten().all(|stamp| stamp.age(now).is_some_and(|age| age >= SETTLED))
}

/// How a service speaks TLS. Sessions are resumed by tickets, which the client keeps: the daemon remembers none.
fn configuration(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions()?;
    let mut configuration = builder.with_no_client_auth().with_single_cert(chain, key)?;
    configuration.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    configuration.session_storage = Arc::new(NoServerSessionStorage {});
    configuration.ticketer = ring::Ticketer::new()?;
    Ok(configuration)
}

#[cfg(test)]
mod tests;
