//! Messages between hearthd and a service manager, by systemd's protocol. Without a service manager, nothing here has
//! an effect.
//!
//! The watchdog's message is a proof: since the last one, both runtimes have run a task and the guests' ticker has
//! completed a round. It says nothing about guests: a guest that computes or is stuck in a system call is no reason to
//! end the others.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::runtime::Handle;

use hearth_wasm::scheduler::Scheduler;

/// Messages in the time after which the service manager misses one.
const SIGNS_PER_WATCHDOG_TIME: u32 = 3;

/// The control socket is open: a unit that is ordered after this one may start. `main`: the process that is the
/// service's main one from now on, if that is another.
pub fn ready(main: Option<u32>) {
    // In one message: the service manager may ignore a process that is no longer the main one.
    let states = [NotifyState::Ready, NotifyState::MainPid(main.unwrap_or_default())];
    tell(&states[..if main.is_some() { 2 } else { 1 }]);
}

/// The daemon is about to end its guests.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// How long the service manager goes on waiting for a stop, from each [`not_yet`] on.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Tells that a stop is under way and needs more time.
pub fn not_yet() {
    tell(&[NotifyState::ExtendTimeoutUsec(u32::try_from(PATIENCE.as_micros()).unwrap_or(u32::MAX))]);
}

/// Tells the service manager that the daemon lives, if it wants that (`WATCHDOG_USEC`). The message also proves that
/// the runtime it is spawned on runs tasks.
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
