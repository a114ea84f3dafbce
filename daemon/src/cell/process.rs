//! A cell from its orders to its end.
//!
//! Before its second thread it puts its walls up ([`hearth_os::walls`]). Then it makes its directory, binds its sockets and
//! says that it serves. It ends when its pod's last task has been deleted, or when the daemon orders it to stop. It leaves
//! its directory, which the daemon removes.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;

use crate::cell::home::CellHome;
use crate::cell::zygote::Inherited;
use crate::daemon::life::{STOP_EVENTS_TIME, stop_guests};
use crate::daemon::threads::{Handles, Threads};
use crate::generation::leadership::Leadership;
use crate::generation::older::OlderGenerations;
use crate::generation::server::{self as generation_server, Order, Server};
use crate::server::control;
use crate::server::operator_calls::Operator;
use crate::server::task_sockets::TaskSockets;
use crate::serving::{Ground, Serving};
use hearth_base::cell::{self, ABOUT_FILE, About, DIRECTORY, Orders, PROGRAMS_SOCKET, Ready};
use hearth_base::config::{Config, Live};
use hearth_base::generation::directory::{self, Directory};
use hearth_containerd::peer::Key;
use hearth_observe::logging::Logging;
use hearth_os::cell_group::Cgroup;
use hearth_os::identity;
use hearth_os::walls;
use hearth_wasm::modules::remote::RemotePrograms;

use super::configuration;

/// Orders under way at once.
const ORDERS_MAX: usize = 4;

/// How long a cell stays after its last task was deleted: containerd has calls to make for a task that is gone.
const LINGER_TIME: Duration = Duration::from_secs(1);

/// Waits for the orders on `socket`, and carries them out.
pub(super) fn run(mut socket: UnixStream, inherited: Inherited) -> ExitCode {
    // Without orders there is no pod: the daemon is gone, or had a spare too many.
    let orders: Orders = match cell::read_json(&mut socket) {
        Ok(orders) => orders,
        Err(error) if error.kind() == ErrorKind::InvalidData => return failed(&mut socket, error.to_string()),
        Err(_) => return ExitCode::SUCCESS,
    };
    match put_walls_up(&orders).and_then(|()| serve(orders, &mut socket, inherited)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => failed(&mut socket, why),
    }
}

fn failed(socket: &mut UnixStream, why: String) -> ExitCode {
    eprintln!("hearthd: a cell ended: {why}");
    answer(socket, &Ready::Failed { why });
    ExitCode::FAILURE
}

fn answer(socket: &mut UnixStream, ready: &Ready) {
    // A daemon that is gone by now finds the cell by its directory.
    let _ = cell::write_json(socket, ready);
}

fn put_walls_up(orders: &Orders) -> Result<(), String> {
    rustix::thread::set_name(c"hearthd-cell").map_err(|e| e.to_string())?;
    walls::raise(&orders.network)?;
    // Every thread begins with these credentials.
    identity::record_daemon().map_err(|e| e.to_string())
}

fn serve(orders: Orders, socket: &mut UnixStream, inherited: Inherited) -> Result<(), String> {
    let Orders { config, about, .. } = orders;
    let config = configuration(config);
    let logging = Logging::start(&config.log, &inherited.metrics)?;
    let threads = Threads::start(&config)?;
    let handles = threads.handles();
    threads.run(async move {
        let cell = Cell::assemble(config, about, inherited, logging, &handles).await?;
        let ready = Ready::Serves { id: cell.directory.id.clone(), address: cell.address.clone() };
        answer(socket, &ready);
        cell.run().await;
        Ok(())
    })
}

/// A cell that serves.
struct Cell {
    directory: Directory,
    /// Its task socket.
    address: String,
    task_sockets: Arc<TaskSockets>,
    orders: mpsc::Receiver<Order>,
    operator: Arc<Operator>,
}

impl Cell {
    async fn assemble(
        config: Config,
        about: About,
        inherited: Inherited,
        logging: Arc<Logging>,
        handles: &Handles,
    ) -> Result<Cell, String> {
        let Handles { answering, background, .. } = handles;
        let Inherited { engines, metrics } = inherited;
        let cannot = |e: std::io::Error| format!("the cell's directory: {e}");
        let directory = directory::create(&config.state_dir.join(DIRECTORY))?;
        let text = serde_json::to_vec(&about).map_err(|e| e.to_string())?;
        std::fs::write(directory.path.join(ABOUT_FILE), text).map_err(cannot)?;
        let home = CellHome::new(&directory.path, Cgroup::at(about.cgroup)).map_err(cannot)?;
        let programs = config.state_dir.join(PROGRAMS_SOCKET);
        let modules = RemotePrograms::new(programs, engines.clone(), metrics.clone(), answering.clone());
        let older = OlderGenerations::new(config.state_dir.clone(), Vec::new(), background, |_| {});
        let live = Live::new(config);
        let ground = Ground {
            live: live.clone(),
            metrics,
            engines,
            traces: None,
            modules,
            older: older.clone(),
            cell: Some(home),
            directory: directory.path.clone(),
        };
        let Serving { world, task_sockets } = Serving::start(ground, handles)?;
        let key = Key { grpc: about.grpc, ttrpc: about.ttrpc };
        let entered = task_sockets.enter(&key, &about.namespace.as_str().into()).await.map_err(|e| e.to_string())?;
        task_sockets.count().expect(&about.id);
        let operator = Arc::new(Operator {
            config: live,
            world,
            node: None,
            task_sockets: task_sockets.clone(),
            older,
            logging,
            generation: directory.id.clone(),
            started_at: SystemTime::now(),
            answering: answering.clone(),
            background: background.clone(),
        });
        let (order, orders) = mpsc::channel(ORDERS_MAX);
        let server = Arc::new(Server {
            id: directory.id.clone(),
            began: Instant::now(),
            task_sockets: task_sockets.clone(),
            leadership: Arc::new(Leadership::default()),
            operator: operator.clone(),
            orders: order,
        });
        tokio::spawn(server.serve(generation_server::bind(&directory.path).map_err(cannot)?));
        let control = control::open(None, &directory.path.join(directory::CONTROL)).map_err(cannot)?;
        tokio::spawn(control::serve(control.listener, task_sockets.clone(), operator.clone()));
        Ok(Cell { directory, address: entered.address, task_sockets, orders, operator })
    }

    /// Serves until the last task is gone, or an order to stop.
    async fn run(mut self) {
        loop {
            let order = tokio::select! {
                () = idle(&self.task_sockets) => break,
                Some(order) = self.orders.recv() => order,
            };
            match order {
                Order::Drain(done) => drop(done.send(false)),
                Order::Reload(done) => drop(done.send(Err("a cell keeps the configuration of its start".into()))),
                Order::Stop(done) => {
                    self.stop().await;
                    drop(done);
                    break;
                }
            }
        }
        self.task_sockets.flush_events(tokio::time::Instant::now() + STOP_EVENTS_TIME).await;
        self.task_sockets.close().await;
        self.operator.world.runtime.scheduler.stop();
        self.directory.leave();
    }

    async fn stop(&self) {
        stop_guests(&self.task_sockets.tasks()).await;
        self.task_sockets.end_pods();
    }
}

/// Waits until there has been no task, and none is on its way, for [`LINGER_TIME`].
async fn idle(task_sockets: &TaskSockets) {
    loop {
        task_sockets.count().idle().await;
        tokio::time::sleep(LINGER_TIME).await;
        if task_sockets.count().is_idle() {
            return;
        }
    }
}
