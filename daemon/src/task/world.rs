//! The parts that all tasks of this daemon share.

use std::sync::Arc;

use hearth_base::tenant::Refusals;
use hearth_http::context::Http;
use hearth_interfaces::container::Shared;
use hearth_observe::metrics::task_series::TaskSeries;
use hearth_observe::traces::Traces;
use hearth_wasm::runtime::Runtime;

use crate::cell::home::CellHome;
use crate::task::holders::Holders;
use crate::task::memory_watch::Shortage;
use hearth_base::isolation::Level;

/// The parts that all tasks of this daemon share.
pub struct World {
    /// The engine and the scheduler of their guests.
    pub runtime: Arc<Runtime>,
    /// Network namespaces for tasks that ask for a new one.
    pub holders: Arc<Holders>,
    /// The number of refusals to containers at their limits, by kind.
    pub refusals: Arc<Refusals>,
    /// Tells whether new containers are refused for want of memory.
    pub shortage: Arc<Shortage>,
    /// Where requests are served.
    pub http: Arc<Http>,
    /// The context that the host interfaces of all containers share.
    pub interfaces: Arc<Shared>,
    /// Which tasks have metrics of their own.
    pub task_series: Arc<TaskSeries>,
    /// Traces of starts, if there are any.
    pub traces: Option<Arc<Traces>>,
    /// Whether there are metrics of each pod.
    pub by_pod: bool,
    /// The cell's directory, where it keeps records for the daemon; none if this process is no cell.
    pub cell: Option<Arc<CellHome>>,
}

impl World {
    /// The isolation level of its tasks.
    pub fn level(&self) -> Level {
        if self.cell.is_some() { Level::Pod } else { Level::Node }
    }
}
