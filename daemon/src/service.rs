//! What hearthd and a service manager say to each other, by systemd's protocol. Started by hand, nobody
//! listens, and nothing here does anything.
//!
//! The watchdog's sign of life is a proof: both runtimes have run a task and the guests' ticker has
//! gone round since the last one. It says nothing about guests: one that computes or is stuck in a
//! system call is no reason to end the others.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::runtime::Handle;

use hearth_wasm::scheduler::Scheduler;

/// Signs of life in the time after which one is missed.
const SIGNS_PER_WATCHDOG_TIME: u32 = 3;

/// The control socket is open: a unit that is ordered after this one may start. `main`: the process that is the
/// service's main one from now on, if that is another.
pub fn ready(main: Option<u32>) {
    // In one message: who is not the main process may not be heard any more.
    let states = [NotifyState::Ready, NotifyState::MainPid(main.unwrap_or_default())];
    tell(&states[..if main.is_some() { 2 } else { 1 }]);
}

/// The daemon is about to end its guests.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// How long the service manager goes on waiting for a stop, from each [`not_yet`] on.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// A stop takes its time, and is under way.
pub fn not_yet() {
    tell(&[NotifyState::ExtendTimeoutUsec(u32::try_from(PATIENCE.as_micros()).unwrap_or(u32::MAX))]);
}

/// Gives signs of life for as long as there is a reason to, if the service manager wants them
/// (`WATCHDOG_USEC`). Runs on the runtime it is spawned on, which it proves that way.
pub async fn watchdog(answering: Handle, scheduler: Arc<Scheduler>) {
    let Some(time) = sd_notify::watchdog_enabled() else { return };
    tracing::debug!(time_ms = time.as_millis() as u64, "the service manager's watchdog is on");
    loop {
        tokio::time::sleep(pause(time)).await;
        if answering.spawn(std::future::ready(())).await.is_err() {
            // The runtime is being shut down.
            return;
        }
        scheduler.ticked().await;
        tell(&[NotifyState::Watchdog]);
    }
}

fn pause(time: Duration) -> Duration {
    (time / SIGNS_PER_WATCHDOG_TIME).max(Duration::from_millis(1))
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "cannot tell the service manager");
    }
}
