//! A guest's files: paths resolved from its `/` as Linux does, read-only file systems reported as such, open files
//! counted.
//!
//! wasmtime-wasi opens beneath a directory (`RESOLVE_BENEATH`) and refuses with "not permitted" whatever
//! leads out of it, also an absolute symbolic link, of which images are full. A guest's `/` is its root, so
//! there, for a path that starts at it, such a link, and a `..` too many, have a meaning:
//!
//! ```text
//!   path from "/" ──▶ wasmtime-wasi ──▶ done            the usual case: no system call more than before
//!                          │ not permitted
//!                          ▼
//!                    Route::resolve: the same path without links, by the kernel (os::in_root)
//!                          │
//!                          ▼
//!                    wasmtime-wasi once more, beneath the root as ever
//! ```
//!
//! The file is thus always opened by a call that cannot leave the root. If a link is swapped between the two calls, the
//! second one fails and the path is resolved again.
//!
//! wasmtime-wasi also refuses to read an absolute link, which programs that resolve paths themselves do: a link at a
//! path from `/` is read here.
//!
//! Any *other* directory that a guest has open keeps WASI's promise: no path leads out of it. A program may hand one
//! to a part of itself that it does not trust.
//!
//! A FIFO is not opened: the call would wait for the other side, and hold its thread.
//!
//! * `p1.rs`: preview 1, whose calls name the path in the guest's memory.
//! * `p2.rs`: the files of components of WASI 0.2.
//! * `p3.rs`: the files of components of WASI 0.3.

pub mod p1;
pub mod p2;
pub mod p3;

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::Errno;
use wasmtime::component::{Resource, ResourceTable};
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystemCtxView};
use wasmtime_wasi::p2::bindings::filesystem::preopens::Host as _;
use wasmtime_wasi::p2::bindings::filesystem::types::ErrorCode;

use crate::budget::{self, GuestDescriptors};
use crate::state::ComponentState;

use hearth_os::in_root::{Last, RootDir};

/// Attempts of one call, each of which lost a race with a change of links.
const ATTEMPTS_MAX: u32 = 16;

/// The error of a guest that has as many files open as it may. WASI has no `EMFILE`; wasi-libc maps this one to
/// `EDQUOT`, a limit.
const TOO_MANY: ErrorCode = ErrorCode::Quota;

/// The error of opening a FIFO. open(2) would wait for the other side, for ever perhaps; and reading it would fail, since
/// files of WASI are read at an offset (pread(2): `ESPIPE`).
const IS_FIFO: ErrorCode = ErrorCode::Unsupported;

/// One path of a call.
#[derive(Debug)]
struct Route {
    given: String,
    last: Last,
    resolved: Option<String>,
    attempts: u32,
}

impl Route {
    /// As the guest gave it. `followed`: also a link at its end.
    fn new(given: String, followed: bool) -> Route {
        // As in the kernel, a slash at the end follows whatever the call says.
        let last = if followed { Last::Followed } else { Last::Itself };
        Route { given, last, resolved: None, attempts: 0 }
    }

    /// The path of the next attempt.
    fn text(&self) -> &str {
        self.resolved.as_deref().unwrap_or(&self.given)
    }

    fn is_absolute(&self) -> bool {
        self.given.starts_with('/')
    }

    /// Finds another text for a path from `root` that was not permitted. `false`: there is none, and the refusal
    /// stands.
    ///
    /// # Errors
    /// The path leads nowhere, through a file, or in circles.
    fn resolve(&mut self, root: impl AsFd) -> Result<bool, Errno> {
        // WASI has no absolute paths; its libraries make them relative to a directory.
        if self.is_absolute() || self.attempts == ATTEMPTS_MAX {
            return Ok(false);
        }
        self.attempts += 1;
        let found = RootDir::of(root).without_links(&self.given, self.last)?;
        let new = found != self.text();
        self.resolved = Some(found);
        Ok(new)
    }
}

/// The guest's `/`, the only directory that it begins with.
fn root(files: &mut WasiFilesystemCtxView<'_>) -> Option<Arc<File>> {
    let (directory, _) = files.get_directories().ok()?.pop()?;
    match files.table.delete(directory).ok()? {
        Descriptor::Dir(directory) => Some(directory.dir),
        Descriptor::File(_) => None,
    }
}

/// A component's descriptor, and a path from it.
struct PathAt {
    directory: u32,
    route: Route,
}

impl PathAt {
    fn new(directory: &Resource<Descriptor>, path: String, followed: bool) -> PathAt {
        PathAt { directory: directory.rep(), route: Route::new(path, followed) }
    }

    fn directory(&self) -> Resource<Descriptor> {
        Resource::new_borrow(self.directory)
    }

    fn path(&self) -> String {
        self.route.text().to_owned()
    }

    fn is_from(&self, root: &Arc<File>, files: &WasiFilesystemCtxView<'_>) -> bool {
        let directory = files.table.get(&self.directory());
        matches!(directory, Ok(Descriptor::Dir(directory)) if Arc::ptr_eq(&directory.dir, root))
    }

    /// The content of a link that wasmtime-wasi has refused to read; `None` if the refusal stands.
    fn read_link(&self, files: &mut WasiFilesystemCtxView<'_>) -> Option<Result<String, Errno>> {
        let root = root(files).filter(|root| !self.route.is_absolute() && self.is_from(root, files))?;
        Some(RootDir::of(root).read_link(self.route.text()))
    }
}

/// Finds other texts for paths that were not permitted. `false`: there are none, and the refusal stands.
///
/// # Errors
/// As [`Route::resolve`].
fn resolve(files: &mut WasiFilesystemCtxView<'_>, places: &mut [&mut PathAt]) -> Result<bool, Errno> {
    let Some(root) = root(files) else {
        return Ok(false);
    };
    let mut new = false;
    for place in places.iter_mut().filter(|place| place.is_from(&root, files)) {
        new |= place.route.resolve(&root)?;
    }
    Ok(new)
}

/// The open file behind a component's handle.
fn file<'a>(table: &'a ResourceTable, fd: &Resource<Descriptor>) -> Option<&'a Arc<File>> {
    match table.get(fd).ok()? {
        Descriptor::File(file) => Some(&file.file),
        Descriptor::Dir(directory) => Some(&directory.dir),
    }
}

fn address_of(table: &ResourceTable, fd: &Resource<Descriptor>) -> Option<usize> {
    file(table, fd).map(budget::address)
}

/// Counts the file that a descriptor was taken for.
fn opened(table: &ResourceTable, descriptors: &mut GuestDescriptors, fd: &Resource<Descriptor>) {
    if let Some(file) = file(table, fd) {
        descriptors.opened(file);
    }
}

/// Drops a component's handle.
///
/// # Errors
/// If there is no such handle: a trap.
fn dropped(state: &mut ComponentState, index: u32) -> wasmtime::Result<()> {
    let fd = Resource::<Descriptor>::new_own(index);
    let address = address_of(&state.table, &fd);
    state.table.delete(fd)?;
    if let Some(address) = address {
        state.descriptors.handle_dropped(address);
    }
    Ok(())
}
