//! A hearthd that serves: what it does when it is told something, how it leaves.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::ahead::Ahead;
use crate::generation::charge::Charge;
use crate::generation::server::Order;
use crate::reload;
use crate::server::operator::METRICS_ADDRESS;
use crate::server::sandboxer::sockets::Controllers;
use crate::server::task_sockets::TaskSockets;
use crate::service;
use crate::task::Task;
use crate::task::world::World;
use hearth_base::config::{Config, Live};
use hearth_base::generation::directory::Directory;
use hearth_observe::metrics::Metrics;

use super::Setup;
use super::taking::Scrape;

/// How long the end of a guest may take at a stop; one stuck in a system call does not hold us up.
const STOP_GUESTS_TIME: Duration = Duration::from_secs(5);

/// How long a containerd may take to hear that its pods have ended.
const STOP_ANSWERS_TIME: Duration = Duration::from_secs(1);

/// How long containerd may take to hear of the last exits at a stop.
const STOP_EVENTS_TIME: Duration = Duration::from_secs(5);

/// How long a collector may take to take the last starts' spans at a stop.
const STOP_TRACES_TIME: Duration = Duration::from_secs(1);

/// How often a daemon that drains looks whether it is needed any more.
const DRAINED_EVERY: Duration = Duration::from_millis(100);

/// Shows the limits that a reload can change, and that of the module store.
pub fn set_limits(metrics: &Metrics, config: &Config) {
    metrics.tasks.limit.set(i64::try_from(config.rpc.tasks_max).unwrap_or(i64::MAX));
    metrics.store.limit_bytes.set(i64::try_from(config.modules.store_bytes_max).unwrap_or(i64::MAX));
}

/// The signals that mean something.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// From now on they are this process's own affair.
    ///
    /// # Errors
    /// What the kernel says.
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

/// What a signal says.
enum Signalled {
    /// Leave.
    End(&'static str),
    /// Read the configuration again.
    Reload,
}

/// A daemon that serves.
pub struct Daemon {
    /// As it was at the start.
    pub setup: Setup,
    /// As it is now.
    pub live: Arc<Live>,
    /// Its directory.
    pub ours: Directory,
    /// What its guests share.
    pub world: Arc<World>,
    /// Its tasks.
    pub task_sockets: Arc<TaskSockets>,
    /// Whether it takes new ones.
    pub charge: Arc<Charge>,
    /// Answers on the control socket.
    pub questions: JoinHandle<()>,
    /// Shows its metrics.
    pub scrape: Option<Scrape>,
    /// Compiles images before a start.
    pub ahead: Arc<Ahead>,
    /// Does that, while it is in charge.
    pub following: Option<JoinHandle<()>>,
    /// Gives signs of life.
    pub watchdog: JoinHandle<()>,
    /// Makes pods itself.
    pub controllers: Controllers,
    /// The generation's own sockets.
    pub serving: [JoinHandle<()>; 2],
}

impl Daemon {
    /// Serves until it is to end, and ends.
    ///
    /// # Errors
    /// None so far.
    pub async fn run(mut self, mut signals: Signals, mut orders: mpsc::Receiver<Order>) -> Result<(), String> {
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
                // The server, which has the other end, is among what this waits for.
                Some(order) = orders.recv() => order,
            };
            match order {
                Order::Drain(done) => {
                    let is_ours = self.charge.is_held();
                    if is_ours {
                        draining = Some(self.drain().await);
                    }
                    let _ = done.send(is_ours);
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
        Ok(())
    }

    /// Waits for the tasks before a stop, if that is wanted: until the last has ended, the time has passed, or
    /// another signal says that it is enough.
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
                // Whoever wants to take over finds the charge free soon.
                Order::Drain(done) => drop(done.send(false)),
                Order::Reload(done) => drop(done.send(Err("it is stopping".into()))),
                Order::Stop(done) => stopped.push(done),
            }
        }
    }

    /// Another is in charge: nothing new is taken any more, but for the tasks that are here.
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
        self.controllers.hand_over();
        self.charge.release();
        let tasks = self.task_sockets.count().used();
        let time = Duration::from_secs(self.live.now().upgrade.drain_seconds_max);
        let why = "upgrade.drain_seconds_max has passed";
        let drain = if time.is_zero() { Drain { end: None, why } } else { Drain::within(time, why) };
        tracing::info!(tasks, "another hearthd has taken over; this one leaves with its last task");
        drain
    }

    /// Reads the configuration again and puts it in force, or says why not.
    fn reload(&self) -> Result<(), String> {
        let reloaded = || {
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
        };
        match reloaded() {
            Ok(changed) => {
                tracing::info!(changed = changed.join(" "), "the configuration was read again");
                Ok(())
            }
            Err(error) => {
                let error: String = error;
                tracing::error!(error, "the configuration was not read again");
                Err(error)
            }
        }
    }

    async fn stop(self, why: &str) {
        tracing::info!(why, "stopping");
        if self.charge.is_held() {
            service::stopping();
        }
        self.questions.abort();
        if let Some(following) = &self.following {
            following.abort();
        }
        let held = self.charge.release();
        if let Some(file) = held.as_ref().and_then(|held| held.control_file.as_ref()) {
            let _ = std::fs::remove_file(file);
        }
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
        drop((held, self.ours));
        tracing::info!("stopped");
    }
}

/// A daemon that drains.
struct Drain {
    end: Option<tokio::time::Instant>,
    /// What is said at that time.
    why: &'static str,
}

impl Drain {
    fn within(time: Duration, why: &'static str) -> Drain {
        Drain { end: Some(tokio::time::Instant::now() + time), why }
    }

    /// Waits until the daemon need not be there any more, or may not.
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

/// SIGKILL of `kill(2)`, for containerd's eyes: 128 + 9.
const SIGKILL: u32 = 9;

async fn stop_guests(tasks: &[Arc<Task>]) {
    for task in tasks {
        // One that has ended already is as wanted.
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
