//! A daemon that serves: its acts at SIGTERM, SIGINT and SIGHUP and at the orders of another generation or an
//! operator; how it drains after a hand-over, and how it stops.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::ahead::Ahead;
use crate::cells::Cells;
use crate::generation::leadership::Leadership;
use crate::generation::server::Order;
use crate::reload;
use crate::server::operator_calls::METRICS_ADDRESS;
use crate::server::sandboxer::sockets::Controllers;
use crate::server::task_sockets::TaskSockets;
use crate::service;
use crate::task::Task;
use crate::task::world::World;
use hearth_base::config::{Config, Live};
use hearth_base::generation::directory::Directory;
use hearth_observe::metrics::Metrics;

use super::Setup;
use super::startup::Scrape;

/// How long the guests may take to end at a stop; a guest stuck in a system call does not delay it further.
const STOP_GUESTS_TIME: Duration = Duration::from_secs(5);

/// How long a containerd may take to receive the answers that its pods have ended.
const STOP_ANSWERS_TIME: Duration = Duration::from_secs(1);

/// How long containerd may take to receive the last exits at a stop.
pub const STOP_EVENTS_TIME: Duration = Duration::from_secs(5);

/// How long a collector may take to receive the spans of the last starts at a stop.
const STOP_TRACES_TIME: Duration = Duration::from_secs(1);

/// How often a daemon that drains checks whether its last task has ended.
const DRAINED_EVERY: Duration = Duration::from_millis(100);

/// Sets the metrics of the limits that a reload can change, and of the module store's limit.
pub fn set_limits(metrics: &Metrics, config: &Config) {
    metrics.tasks.limit.set(i64::try_from(config.rpc.tasks_max).unwrap_or(i64::MAX));
    metrics.store.limit_bytes.set(i64::try_from(config.modules.store_bytes_max).unwrap_or(i64::MAX));
}

/// The signals that the daemon handles.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Takes them over from their default actions.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next one.
    async fn next(&mut self) -> Signalled {
        tokio::select! {
            _ = self.terminate.recv() => Signalled::End("SIGTERM"),
            _ = self.interrupt.recv() => Signalled::End("SIGINT"),
            _ = self.hangup.recv() => Signalled::Reload,
        }
    }
}

/// The meaning of a signal.
enum Signalled {
    /// Leave.
    End(&'static str),
    /// Read the configuration again.
    Reload,
}

/// A daemon that serves.
pub struct Daemon {
    /// The set-up at the start.
    pub setup: Setup,
    /// The configuration in force.
    pub live: Arc<Live>,
    /// The directory of this generation.
    pub own: Directory,
    /// The parts that all tasks share.
    pub world: Arc<World>,
    /// Its tasks.
    pub task_sockets: Arc<TaskSockets>,
    /// Its leadership: whether it takes new pods, and with which sockets.
    pub leadership: Arc<Leadership>,
    /// Answers on the control socket.
    pub questions: JoinHandle<()>,
    /// The metrics endpoint.
    pub scrape: Option<Scrape>,
    /// Compiles images before a start.
    pub ahead: Arc<Ahead>,
    /// The pods that have a process of their own.
    pub cells: Arc<Cells>,
    /// The task that follows images, while this generation leads.
    pub following: Option<JoinHandle<()>>,
    /// Tells the service manager that the daemon lives.
    pub watchdog: JoinHandle<()>,
    /// The sandbox controller's sockets.
    pub controllers: Controllers,
    /// The generation's own sockets.
    pub serving: [JoinHandle<()>; 2],
}

impl Daemon {
    /// Serves until it has to end, and ends.
    pub async fn run(mut self, mut signals: Signals, mut orders: mpsc::Receiver<Order>) {
        let mut draining: Option<Drain> = None;
        let mut stopped = Vec::new();
        let why = loop {
            let drained = async {
                match &draining {
                    Some(drain) => drain.over(&self.task_sockets, &self.controllers).await,
                    None => std::future::pending().await,
                }
            };
            let order = tokio::select! {
                signal = signals.next() => match signal {
                    Signalled::End(why) => break why,
                    Signalled::Reload => Order::Reload(oneshot::channel().0),
                },
                why = drained => break why,
                // The server, which has the other end, is among the tasks that this waits for.
                Some(order) = orders.recv() => order,
            };
            match order {
                Order::Drain(done) => {
                    let leads = self.leadership.is_held();
                    if leads {
                        draining = Some(self.drain().await);
                    }
                    let _ = done.send(leads);
                }
                Order::Stop(done) => {
                    stopped.push(done);
                    break "asked to";
                }
                Order::Reload(done) => {
                    let _ = done.send(self.reload());
                }
            }
        };
        self.let_tasks_end(&mut signals, &mut orders, &mut stopped).await;
        self.stop(why).await;
        drop(stopped);
    }

    /// Waits for the tasks before a stop, if that is configured: until the last has ended, the time has passed, or
    /// another signal comes.
    async fn let_tasks_end(
        &self,
        signals: &mut Signals,
        orders: &mut mpsc::Receiver<Order>,
        stopped: &mut Vec<oneshot::Sender<()>>,
    ) {
        let time = Duration::from_secs(self.live.now().upgrade.stop_drain_seconds);
        if time.is_zero() || self.task_sockets.count().is_idle() {
            return;
        }
        self.task_sockets.drain(true);
        tracing::info!(
            tasks = self.task_sockets.count().used(),
            seconds = time.as_secs(),
            "waits for the tasks to end before it stops (upgrade.stop_drain_seconds); another SIGTERM ends them at once"
        );
        let drain = Drain::within(time, "upgrade.stop_drain_seconds has passed");
        let mut over = pin!(drain.over(&self.task_sockets, &self.controllers));
        let mut patience = tokio::time::interval(service::PATIENCE / 3);
        loop {
            let order = tokio::select! {
                why = &mut over => return tracing::info!(why, "waits no longer"),
                signal = signals.next() => match signal {
                    Signalled::End(why) => return tracing::info!(why, "waits no longer"),
                    Signalled::Reload => continue,
                },
                _ = patience.tick() => { service::not_yet(); continue },
                Some(order) = orders.recv() => order,
            };
            match order {
                // A generation that wants to take over finds the lock free soon.
                Order::Drain(done) => drop(done.send(false)),
                Order::Reload(done) => drop(done.send(Err("it is stopping".into()))),
                Order::Stop(done) => stopped.push(done),
            }
        }
    }

    /// Another generation leads: this one takes nothing new, except for the tasks it has.
    async fn drain(&mut self) -> Drain {
        self.questions.abort();
        // Only then is every question that was accepted counted.
        let _ = (&mut self.questions).await;
        self.watchdog.abort();
        if let Some(following) = self.following.take() {
            following.abort();
        }
        if let Some(scrape) = self.scrape.take() {
            scrape.serving.abort();
        }
        self.cells.release();
        self.controllers.hand_over();
        self.leadership.release();
        let tasks = self.task_sockets.count().used();
        let time = Duration::from_secs(self.live.now().upgrade.drain_seconds_max);
        let why = "upgrade.drain_seconds_max has passed";
        let drain = if time.is_zero() { Drain { end: None, why } } else { Drain::within(time, why) };
        tracing::info!(tasks, "another hearthd has taken over; this one leaves with its last task");
        drain
    }

    /// Reads the configuration again and puts it in force, or says why not.
    fn reload(&self) -> Result<(), String> {
        let changed = self.replace_configuration();
        match &changed {
            Ok(changed) => tracing::info!(changed = changed.join(" "), "the configuration was read again"),
            Err(error) => tracing::error!(error, "the configuration was not read again"),
        }
        changed.map(drop)
    }

    /// Puts the configuration file in force. Returns the keys that changed.
    fn replace_configuration(&self) -> Result<Vec<String>, String> {
        let new = (self.setup.reread)()?;
        let changed = reload::changes(&self.live.now(), &new)?;
        if changed.iter().any(|key| key == "log.level") {
            self.setup.logging.configure(&new.log.level)?;
        }
        self.task_sockets.count().set_limit(new.rpc.tasks_max);
        set_limits(&self.world.runtime.metrics, &new);
        self.live.replace(new);
        if changed.iter().any(|key| key.starts_with("ahead.")) {
            self.ahead.follow_anew();
        }
        Ok(changed)
    }

    async fn stop(self, why: &str) {
        tracing::info!(why, "stopping");
        if self.leadership.is_held() {
            service::stopping();
        }
        self.questions.abort();
        if let Some(following) = &self.following {
            following.abort();
        }
        let held = self.leadership.release();
        if let Some(file) = held.as_ref().and_then(|held| held.control_file.as_ref()) {
            let _ = std::fs::remove_file(file);
        }
        self.cells.stop().await;
        for native in self.task_sockets.natives() {
            native.kill().await;
        }
        stop_guests(&self.task_sockets.tasks()).await;
        self.task_sockets.end_pods();
        let end = tokio::time::Instant::now() + STOP_ANSWERS_TIME;
        self.controllers.close(end, held.is_some()).await;
        self.task_sockets.flush_events(tokio::time::Instant::now() + STOP_EVENTS_TIME).await;
        self.task_sockets.close().await;
        if let Some(traces) = &self.world.traces {
            traces.stop(STOP_TRACES_TIME).await;
        }
        if let Some(scrape) = self.scrape {
            scrape.serving.abort();
            let _ = std::fs::remove_file(self.setup.config.state_dir.join(METRICS_ADDRESS));
            if let Some(file) = scrape.file {
                let _ = std::fs::remove_file(file);
            }
        }
        self.serving.iter().for_each(JoinHandle::abort);
        self.world.holders.close();
        self.world.runtime.scheduler.stop();
        drop((held, self.own));
        tracing::info!("stopped");
    }
}

/// A daemon that drains.
struct Drain {
    end: Option<tokio::time::Instant>,
    /// The log line of that time.
    why: &'static str,
}

impl Drain {
    fn within(time: Duration, why: &'static str) -> Drain {
        Drain { end: Some(tokio::time::Instant::now() + time), why }
    }

    /// Waits until the last task has ended, or the time has passed.
    async fn over(&self, task_sockets: &TaskSockets, controllers: &Controllers) -> &'static str {
        let mut look = tokio::time::interval(DRAINED_EVERY);
        loop {
            look.tick().await;
            if !controllers.are_asked() && task_sockets.count().is_idle() {
                return "the last task has ended";
            }
            if self.end.is_some_and(|end| tokio::time::Instant::now() >= end) {
                return self.why;
            }
        }
    }
}

/// SIGKILL of kill(2); containerd is told the exit status 128 + 9.
const SIGKILL: u32 = 9;

/// Kills the guests of these tasks and waits for their ends, `STOP_GUESTS_TIME` at most.
pub async fn stop_guests(tasks: &[Arc<Task>]) {
    for task in tasks {
        // A task that has ended needs no kill.
        let _ = task.init.kill(SIGKILL);
    }
    let all = async {
        for task in tasks {
            let _ = task.init.wait().await;
            task.unmounted().await;
        }
    };
    if tokio::time::timeout(STOP_GUESTS_TIME, all).await.is_err() {
        tracing::warn!("some guests are stuck in a system call; they end with the process");
    }
}
