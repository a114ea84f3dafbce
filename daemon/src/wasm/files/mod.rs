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

pub mod p1;
pub mod p2;

use std::os::fd::AsFd;

use rustix::io::Errno;

use crate::os::in_root::{Last, RootDir};

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
