//! tokio's runtimes, each with its share of the processors: which threads answer containerd, which serve HTTP
//! sockets, which do work that no caller waits for.

use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};

use hearth_base::config::Config;
use hearth_os::identity;
use hearth_os::process::{self, Share};

/// tokio's default for blocking threads, for the runtimes that hardly use any.
const BLOCKING_THREADS: usize = 512;

/// How long a runtime's threads may take to end.
const END_TIME: Duration = Duration::from_millis(100);

/// The runtimes of the daemon, which own its threads.
pub struct Threads {
    answering: Runtime,
    background: Runtime,
    http: Runtime,
}

/// Where the daemon runs its tasks.
#[derive(Clone)]
pub struct Handles {
    /// Calls, and what their callers wait for.
    pub answering: Handle,
    /// Work that no caller waits for: events to containerd, scrapes.
    pub background: Handle,
    /// The sockets of HTTP components.
    pub http: Handle,
}

impl Threads {
    /// Starts the threads. The daemon's credentials have been remembered
    /// ([`record_daemon`](hearth_os::identity::record_daemon)).
    ///
    /// # Errors
    /// One line: the kernel gives no threads.
    pub fn start(config: &Config) -> Result<Threads, String> {
        let answering = runtime("rpc", (config.rpc.threads, config.rpc.blocking_threads_max), Share::Prompt)?;
        // These steps back where the threads that answer need the processors: in a burst of starts, telling containerd
        // of them takes as much processor time as the starts.
        let background = runtime("background", (1, BLOCKING_THREADS), Share::Less)?;
        let threads = match config.http.threads {
            // They only tell workers whose connection can go on: with a second on two cores a worker has less.
            0 => std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(4)),
            threads => threads,
        };
        // With the share `Prompt`, the kernel would switch between them and the guests that answer: a tenth fewer
        // requests. On the runtime that answers, requests from outside would delay containerd's calls.
        let http = runtime("http", (threads, BLOCKING_THREADS), Share::Usual)?;
        Ok(Threads { answering, background, http })
    }

    /// Where to run tasks.
    pub fn handles(&self) -> Handles {
        let [answering, background, http] =
            [&self.answering, &self.background, &self.http].map(|runtime| runtime.handle().clone());
        Handles { answering, background, http }
    }

    /// Runs the daemon on the threads that answer, then ends all threads. Jobs stuck in a system call (a hung volume)
    /// end with the process.
    pub fn run<T>(self, daemon: impl Future<Output = T>) -> T {
        let result = self.answering.block_on(daemon);
        self.http.shutdown_timeout(END_TIME);
        self.answering.shutdown_timeout(END_TIME);
        self.background.shutdown_background();
        result
    }
}

/// A runtime with so many threads, and at most so many for blocking calls.
fn runtime(name: &str, (threads, blocking): (usize, usize), share: Share) -> Result<Runtime, String> {
    Builder::new_multi_thread()
        // A thread may be started in the middle of a guest's poll, with the guest's identity.
        .on_thread_start(move || begin_thread(share))
        .worker_threads(threads)
        .max_blocking_threads(blocking)
        .thread_name(name)
        .enable_all()
        .build()
        .map_err(|e| format!("cannot start the runtime: {e}"))
}

fn begin_thread(share: Share) {
    identity::become_daemon();
    process::take_share(share);
}
