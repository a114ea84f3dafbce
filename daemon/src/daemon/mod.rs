//! Puts the daemon together, runs it and takes it down.
//!
//! Order matters at both ends. Start: everything that can fail, then the leadership (which another hearthd may have
//! to hand over), then the sockets, then `READY=1`. Stop: no new calls, the guests end, containerd learns of every
//! exit, the sockets go.
//!
//! ```text
//!   starts ──▶ leads ──handed over──▶ drains ──last task ended──▶ gone
//!                └─────── SIGTERM, SIGINT, or an order to stop ───▶ stops
//! ```
//!
//! * `threads.rs`: the runtimes, and which work is done on which threads.
//! * `capacity.rs`: warnings about limits of the kernel that are too low for the configured guests.
//! * `assembly.rs`: the parts that serve the tasks, put together.
//! * `startup.rs`: the sockets of the generation, the leadership, the sockets that come with it.
//! * `life.rs`: signals, reload, drain after a hand-over, stop.
//! * `anchor.rs`: the process that stands for the daemon at systemd.

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;

use crate::generation::leadership::{self, Leadership};
use crate::native;
use crate::server::sandboxer::sockets::Controllers;
use crate::service;
use hearth_base::config::Config;
use hearth_base::generation::directory::{self, Dead, Directory};
use hearth_observe::logging::Logging;
use hearth_observe::metrics::Metrics;
use hearth_observe::traces;
use hearth_os::{activation, identity};

pub mod anchor;
mod assembly;
mod capacity;
pub mod life;
mod startup;
pub mod threads;

use assembly::Assembly;
use life::{Daemon, Signals, set_limits};
use startup::{Leading, lead, serve_generation, start_anchor};
use threads::{Handles, Threads};

/// Orders under way at once; each holds a connection of its caller.
const ORDERS_MAX: usize = 16;

/// The settings that a daemon is started with.
pub struct Setup {
    /// The configuration.
    pub config: Config,
    /// Whether to take over from a hearthd that runs.
    pub replace: bool,
    /// The unit of systemd whose main process shall be another one than this.
    pub anchor: Option<String>,
    /// Reads the configuration again.
    pub reread: Box<dyn Fn() -> Result<Config, String> + Send + Sync>,
    /// Its metrics.
    pub metrics: Arc<Metrics>,
    /// Its log.
    pub logging: Arc<Logging>,
    /// How starts are traced, if they are.
    pub traces: Option<traces::settings::Settings>,
}

/// Runs until SIGTERM or SIGINT, or until another hearthd has taken over and the last task has ended.
///
/// # Errors
/// The step that failed, in one line with a remedy.
pub fn run(setup: Setup) -> Result<(), String> {
    let config = setup.config.clone();
    let passed = activation::passed_listener().map_err(|e| format!("socket activation: {e}"))?;
    let free = leadership::try_free(&config.state_dir)?;
    if free.is_none() && !setup.replace {
        return Err(leadership::held_by_another(&config.state_dir));
    }
    let found = directory::open(&config.state_dir)?;
    warn_of_dead(&found.dead);
    if found.living.len() >= config.upgrade.generations_max {
        return Err(format!(
            "{} older hearthds still serve their tasks, with this one more than may run (upgrade.generations_max); \
             see `hearthctl generations`, and end their pods or raise the limit",
            found.living.len()
        ));
    }
    // Before the first thread: every thread begins with these credentials.
    identity::record_daemon().map_err(|e| e.to_string())?;
    let threads = Threads::start(&config)?;
    let handles = threads.handles();
    threads.run(serve(Start { setup, passed, free, own: found.ours, older: found.living, handles }))
}

fn warn_of_dead(dead: &[Dead]) {
    if dead.is_empty() {
        return;
    }
    let sockets: usize = dead.iter().map(|dead| dead.sockets).sum();
    let generations: Vec<&str> = dead.iter().map(|dead| dead.id.as_str()).collect();
    tracing::warn!(
        generations = generations.join(" "),
        sockets,
        "an earlier hearthd did not stop cleanly; removed its sockets (its mounts and helpers' processes went with it, the module store stays)"
    );
}

/// The parts of the daemon before anything is served.
struct Start {
    setup: Setup,
    /// The control socket, if the service manager has passed it.
    passed: Option<UnixListener>,
    /// The lock of the leadership, if no other generation holds it.
    free: Option<File>,
    /// The directory of this generation.
    own: Directory,
    /// The generations that still serve.
    older: Vec<String>,
    handles: Handles,
}

async fn serve(start: Start) -> Result<(), String> {
    let began = Instant::now();
    let Start { setup, passed, free, own, older, handles } = start;
    let (config, Handles { answering, background, .. }) = (&setup.config, &handles);
    for lacking in capacity::warnings(config) {
        tracing::warn!("{lacking}");
    }
    set_limits(&setup.metrics, config);
    let older_count = older.len();
    let assembly = Assembly::new(&setup, &own, older, &handles)?;
    let signals = Signals::new().map_err(|e| e.to_string())?;
    let (orders, ordered) = mpsc::channel(ORDERS_MAX);
    let leadership = Arc::new(Leadership::default());
    let serving = serve_generation(&assembly, &own, &leadership, orders, began)?;
    let anchor = start_anchor(&setup).await?;
    let Leading { scrape, controllers, questions, passed, left } =
        lead(config, &assembly, &own, &leadership, (passed, free), older_count, background).await?;
    let Assembly { live, world, modules, ahead, cells, task_sockets, .. } = assembly;
    cells.lead().map_err(|e| format!("state_dir: the cells of earlier daemons, or the socket for cells: {e}"))?;
    // Images are followed by the generation that leads.
    let following = Some(ahead.follow(background));
    if let Some(left) = left {
        let shim = config.native.shim.clone();
        answering.spawn_blocking(move || native::end_leftovers(&shim, left));
    }
    let controllers = Controllers::serve(controllers, config, &task_sockets);
    let watchdog = background.spawn(service::watchdog(answering.clone(), world.runtime.scheduler.clone()));
    service::ready(anchor);
    modules.remove_unused();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        generation = own.id,
        older = older_count,
        control_socket = %config.control_socket().display(),
        passed,
        took_ms = began.elapsed().as_millis() as u64,
        "hearthd is ready"
    );
    let daemon = Daemon {
        setup,
        live,
        own,
        world,
        task_sockets,
        leadership,
        questions,
        scrape,
        ahead,
        cells,
        following,
        watchdog,
        controllers,
        serving,
    };
    daemon.run(signals, ordered).await;
    Ok(())
}
