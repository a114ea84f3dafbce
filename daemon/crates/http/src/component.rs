//! A component that answers requests: its program, and the parts that each of its instances finds. A container serves
//! one, or the components of an application.

use std::path::PathBuf;
use std::sync::Arc;

use wasmtime_wasi::filesystem::WasiFilesystemCtx;

use hearth_base::error::Result;
use hearth_wasm::engine::LiveProgram;
use hearth_wasm::instantiate::{GuestSettings, component_files, shared_files};
use hearth_wasm::runtime::Runtime;

use crate::outgoing::client::Client;
use crate::shared_instances::{Reuse, SharedInstances};

/// The parts that a component is made from and keeps.
pub struct ComponentParts {
    /// Its id in its application; none in a container of one program.
    pub id: Option<Arc<str>>,
    /// The program: the next instance is made of its best code so far.
    pub program: Arc<LiveProgram>,
    /// Arguments, environment and limits of each instance.
    pub settings: GuestSettings,
    /// Sends its requests to servers; none if they are refused.
    pub client: Option<Arc<Client>>,
}

/// A component that is not made yet.
pub struct NewComponent {
    /// The parts that it keeps.
    pub parts: ComponentParts,
    /// Its files.
    pub files: ComponentFiles,
    /// How many requests an instance of WASI 0.3 may have.
    pub reuse: Reuse,
}

/// A component's files.
pub enum ComponentFiles {
    /// All of this directory of the host, which becomes its `/`.
    Root(PathBuf),
    /// Directories of the container's root, read-only: each with its path there, and where the component sees it.
    Directories {
        /// The container's root on the host.
        root: PathBuf,
        /// The directories.
        directories: Vec<(String, String)>,
    },
}

/// A component that answers requests.
pub struct Component {
    /// The parts that it was given.
    pub parts: ComponentParts,
    /// Its files, open.
    pub files: WasiFilesystemCtx,
    /// The instances of a component of WASI 0.3, which may have several requests; none for WASI 0.2.
    pub shared: Option<SharedInstances>,
}

impl Component {
    /// Opens its files.
    ///
    /// # Errors
    /// The fault of its files or its code, in one line.
    pub fn new(runtime: &Runtime, new: NewComponent) -> Result<Arc<Component>> {
        let NewComponent { parts, files, reuse } = new;
        let files = match files {
            ComponentFiles::Root(root) => shared_files(&root)?,
            ComponentFiles::Directories { root, directories } => component_files(&root, &directories)?,
        };
        let serves_p3 = parts.program.now().serves_p3(&runtime.engines)?;
        let shared = serves_p3.then(|| SharedInstances::new(reuse));
        Ok(Arc::new(Component { parts, files, shared }))
    }

    /// How many requests an instance may have at once.
    pub(crate) fn requests_per_instance(&self) -> usize {
        self.shared.as_ref().map_or(1, SharedInstances::concurrent)
    }

    /// A request's name in messages: `GET /path`, after the component's id if there are several components.
    pub(crate) fn name_of(&self, request: &Arc<str>) -> Arc<str> {
        match &self.parts.id {
            Some(id) => format!("{id}: {request}").into(),
            None => request.clone(),
        }
    }
}
