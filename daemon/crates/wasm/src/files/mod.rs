//! A guest's paths: resolved from its `/` as Linux does, and told what is read-only.
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
//! The file is thus always opened by a call that cannot leave the root. Who swaps a link in between the two
//! makes the second one fail, which resolves anew.
//!
//! wasmtime-wasi also refuses to tell what an absolute link says, which programs that resolve paths
//! themselves ask: for such a path from `/` it is read here.
//!
//! Any *other* directory that a guest has open stays what WASI promises: a capability that nothing leads out
//! of. A program may hand one to a part of itself that it does not trust.
//!
//! * [`p1`]: preview 1, whose calls name the path in the guest's memory.
//! * [`p2`]: `wasi:filesystem` 0.2.
//! * [`p3`]: `wasi:filesystem` 0.3.

pub mod p1;
pub mod p2;
pub mod p3;

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::Errno;
use wasmtime::component::Resource;
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystemCtxView};
use wasmtime_wasi::p2::bindings::filesystem::preopens::Host as _;

use hearth_os::in_root::{Last, RootDir};

/// Attempts of one call, each of which lost a race with somebody who changes links.
const ATTEMPTS_MAX: u32 = 16;

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

    /// What the next attempt is made with.
    fn text(&self) -> &str {
        self.resolved.as_deref().unwrap_or(&self.given)
    }

    fn is_absolute(&self) -> bool {
        self.given.starts_with('/')
    }

    /// For a path from `root` that was not permitted: finds another text for it. `false`: there is none,
    /// the refusal stands.
    ///
    /// # Errors
    /// Where it leads is not there, is no directory, goes in circles.
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

/// The guest's `/`, the one directory it is given.
fn root(files: &mut WasiFilesystemCtxView<'_>) -> Option<Arc<File>> {
    let (directory, _) = files.get_directories().ok()?.pop()?;
    match files.table.delete(directory).ok()? {
        Descriptor::Dir(directory) => Some(directory.dir),
        Descriptor::File(_) => None,
    }
}

/// A component's descriptor, and a path from it.
struct Place {
    directory: u32,
    route: Route,
}

impl Place {
    fn new(directory: &Resource<Descriptor>, path: String, followed: bool) -> Place {
        Place { directory: directory.rep(), route: Route::new(path, followed) }
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

    /// What the link there says, which wasmtime-wasi has refused to tell; none if the refusal stands.
    fn read_link(&self, files: &mut WasiFilesystemCtxView<'_>) -> Option<Result<String, Errno>> {
        let root = root(files).filter(|root| !self.route.is_absolute() && self.is_from(root, files))?;
        Some(RootDir::of(root).read_link(self.route.text()))
    }
}

/// Finds other texts for places that were not permitted. `false`: there are none, the refusal stands.
///
/// # Errors
/// As [`Route::resolve`].
fn resolve(files: &mut WasiFilesystemCtxView<'_>, places: &mut [&mut Place]) -> Result<bool, Errno> {
    let Some(root) = root(files) else {
        return Ok(false);
    };
    let mut new = false;
    for place in places.iter_mut().filter(|place| place.is_from(&root, files)) {
        new |= place.route.resolve(&root)?;
    }
    Ok(new)
}
