//! `wasi:config/store`: values of the container's environment, of files of a directory (a ConfigMap or a Secret), or of
//! a Spin component's variables.
//!
//! A file is read at each call, so that a change of the ConfigMap is seen, and as the container's user.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::Semaphore;
use wasmtime::component::{HasSelf, Linker};

use hearth_os::identity;
use hearth_os::in_root::RootDir;
use hearth_wasm::access::{Access, InterfaceState};
use hearth_wasm::host_interface::HostInterface;
use hearth_wasm::resolver;
use hearth_wasm::state::ComponentState;

use crate::container::Container;

/// The registration.
pub const INTERFACE: HostInterface = HostInterface {
    imports: &["wasi:config/"],
    is_granted: Access::has::<Configuration>,
    setting: "the environment variable HEARTH_CONFIG: \"env\" for the container's environment, or the directory of a ConfigMap",
    add_to_linker,
};

/// The most files of a directory that `get-all` returns; a ConfigMap has at most 1 MiB in all.
const FILES_MAX: usize = 1024;

/// The most that `get-all` returns of a directory, in bytes: the size of the largest ConfigMap.
const FILES_BYTES_MAX: usize = 1 << 20;

mod generated {
    wasmtime::component::bindgen!({
        path: "src/config/config.wit",
        world: "hearth:config/host",
        imports: { default: async },
    });
}

use generated::wasi::{config0_2_0_draft_2024_09_27 as draft, config0_2_0_rc_1 as rc};

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// These values.
    Values(BTreeMap<String, String>),
    /// Files of this directory of the container: a file's name is the key, its content the value.
    Directory(PathBuf),
}

/// The configuration of one component.
pub struct Configuration {
    container: Arc<Container>,
    /// The first that has a key counts.
    sources: Arc<[Source]>,
    /// One call at a time reads files.
    reads: Arc<Semaphore>,
}

impl InterfaceState for Configuration {}

impl Configuration {
    /// With these sources; the first that has a key counts.
    pub fn new(container: &Arc<Container>, sources: Vec<Source>) -> Configuration {
        Configuration { container: container.clone(), sources: sources.into(), reads: Arc::new(Semaphore::new(1)) }
    }

    /// The value of a key.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(crate) async fn get(&self, key: String) -> Result<Option<String>, String> {
        self.look(move |files, sources| {
            for source in sources {
                let found = match source {
                    Source::Values(values) => values.get(&key).cloned(),
                    Source::Directory(directory) => files.read(directory, &key)?,
                };
                if found.is_some() {
                    return Ok(found);
                }
            }
            Ok(None)
        })
        .await
    }

    async fn all(&self) -> Result<Vec<(String, String)>, String> {
        self.look(|files, sources| {
            let mut all = BTreeMap::new();
            for source in sources.iter().rev() {
                match source {
                    Source::Values(values) => all.extend(values.clone()),
                    Source::Directory(directory) => all.extend(files.read_all(directory)?),
                }
            }
            Ok(all.into_iter().collect())
        })
        .await
    }

    /// Looks into the sources: files on a thread that may wait, one call at a time.
    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&ContainerFiles<'_>, &[Source]) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let (container, sources) = (self.container.clone(), self.sources.clone());
        let work = move || look(&ContainerFiles(&container), &sources);
        if !self.sources.iter().any(|source| matches!(source, Source::Directory(_))) {
            return work();
        }
        let reads = self.reads.clone();
        let shared = &self.container.shared;
        let turn = tokio::time::timeout(shared.call_timeout(), reads.acquire_owned()).await;
        let turn = turn.map_err(|_| "another call still reads the files".to_owned())?.map_err(|e| e.to_string())?;
        // The turn is over when the files are read, also if the guest ends before that.
        let reading = shared.runtime.spawn_blocking(move || (work(), turn));
        let read = tokio::time::timeout(shared.call_timeout(), reading).await;
        let read = read.map_err(|_| "the files were not read within interfaces.call_timeout_ms".to_owned())?;
        read.map(|(done, _)| done).unwrap_or_else(|error| Err(error.to_string()))
    }
}

/// The files of a container. Blocks.
struct ContainerFiles<'a>(&'a Container);

impl ContainerFiles<'_> {
    /// The file of a key; none if there is no such file.
    fn read(&self, directory: &Path, key: &str) -> Result<Option<String>, String> {
        if !is_key(OsStr::new(key)) {
            return Ok(None);
        }
        self.as_user(directory, |root| text(root, &directory.join(key)))
    }

    fn read_all(&self, directory: &Path) -> Result<Vec<(String, String)>, String> {
        self.as_user(directory, |root| {
            let listed = root.resolve(directory)?;
            let mut all = Vec::new();
            let mut bytes = 0;
            for entry in std::fs::read_dir(format!("/proc/self/fd/{}", listed.as_raw_fd()))? {
                let name = entry?.file_name();
                let Some(key) = name.to_str().filter(|_| is_key(&name)) else { continue };
                // A directory is no key of a ConfigMap.
                let Ok(Some(value)) = text(root, &directory.join(key)) else { continue };
                bytes += key.len() + value.len();
                if all.len() == FILES_MAX || bytes > FILES_BYTES_MAX {
                    return Err(io::Error::other(format!("more than {FILES_MAX} files or {FILES_BYTES_MAX} bytes")));
                }
                all.push((key.to_owned(), value));
            }
            Ok(all)
        })
    }

    fn as_user<T>(&self, directory: &Path, read: impl FnOnce(&RootDir) -> io::Result<T>) -> Result<T, String> {
        let names = &self.0.names;
        let done = RootDir::open(&names.root)
            .map_err(io::Error::from)
            .and_then(|root| identity::bind_as(&names.identity, || read(&root))?);
        done.map_err(|error| format!("{}: {error}", directory.display()))
    }
}

fn text(root: &RootDir, path: &Path) -> io::Result<Option<String>> {
    let path = path.to_str().ok_or(io::ErrorKind::InvalidInput)?;
    let bytes = resolver::read(root, path)?;
    bytes.map(String::from_utf8).transpose().map_err(|_| io::Error::other(format!("{path} is not UTF-8")))
}

/// Whether a file's name is a key of a ConfigMap: letters, digits, `-`, `_` and `.`, and it does not begin with `..`.
fn is_key(name: &OsStr) -> bool {
    let bytes = name.as_encoded_bytes();
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !bytes.is_empty() && bytes != b"." && !bytes.starts_with(b"..") && bytes.iter().all(allowed)
}

/// The state; the check at Create has seen to it that there is one.
fn state(state: &ComponentState) -> Result<Arc<Configuration>, String> {
    state.access.get::<Configuration>().ok_or_else(|| "there is no configuration".to_owned())
}

macro_rules! implement {
    ($version:ident) => {
        impl $version::store::Host for ComponentState {
            async fn get(&mut self, key: String) -> Result<Option<String>, $version::store::Error> {
                let configuration = state(self).map_err($version::store::Error::Upstream)?;
                configuration.get(key).await.map_err($version::store::Error::Io)
            }

            async fn get_all(&mut self) -> Result<Vec<(String, String)>, $version::store::Error> {
                let configuration = state(self).map_err($version::store::Error::Upstream)?;
                configuration.all().await.map_err($version::store::Error::Io)
            }
        }
    };
}

implement!(draft);
implement!(rc);

fn add_to_linker(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    draft::store::add_to_linker::<_, HasSelf<ComponentState>>(linker, |state| state)?;
    rc::store::add_to_linker::<_, HasSelf<ComponentState>>(linker, |state| state)
}
