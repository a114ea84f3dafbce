//! The tokio runtimes that this program's clients run on.

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};

/// Threads of several clients: as many as the servers have.
const CROWD_THREADS: usize = 2;

/// One runtime for a single client, one for many. A client's own time is in every number, so each gets the runtime that
/// was measured to be faster for it: alone, a single thread, which saves wake-ups; in a crowd, two.
pub struct Runtimes {
    /// The main thread's, which everything else runs on, too.
    pub alone: Runtime,
    crowd: Runtime,
}

impl Runtimes {
    /// Builds both.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn build() -> io::Result<Runtimes> {
        Ok(Runtimes {
            alone: Builder::new_current_thread().enable_all().build()?,
            crowd: Builder::new_multi_thread().worker_threads(CROWD_THREADS).enable_all().build()?,
        })
    }

    /// The runtime for this many clients.
    pub fn for_clients(&self, clients: usize) -> Handle {
        if clients == 1 { self.alone.handle().clone() } else { self.crowd.handle().clone() }
    }
}
