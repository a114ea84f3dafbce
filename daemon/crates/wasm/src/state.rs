//! The state behind a guest's imports, one for each store.

use std::sync::Arc;
use std::time::Instant;

use wasmtime::component::ResourceTable;
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView};

use crate::access::Access;
use crate::budget::GuestDescriptors;
use crate::host_memory::HostMemory;
use crate::memory::MemoryLimiter;
use crate::resolver::Names;
use crate::scheduler::Guest;

/// The state of a core module's store.
pub struct CoreState {
    /// Preview 1.
    pub wasi: WasiP1Ctx,
    /// Its memory.
    pub limits: MemoryLimiter,
    /// Whether its root, or a volume in it, refuses writes.
    pub partly_read_only: bool,
    /// Files and directories it has open, without those it began with.
    pub descriptors: GuestDescriptors,
}

/// The state of a component's store.
pub struct ComponentState {
    /// WASI 0.2 and 0.3.
    pub ctx: WasiCtx,
    /// Its resources.
    pub table: ResourceTable,
    /// Its memory.
    pub limits: MemoryLimiter,
    /// Files, directories and sockets it has open.
    pub descriptors: GuestDescriptors,
    /// The daemon's memory behind its resources.
    pub host_memory: HostMemory,
    /// Whether its root, or a volume in it, refuses writes.
    pub partly_read_only: bool,
    /// How it looks up names; `None`: look-ups are refused.
    pub names: Option<Names>,
    /// The guest, which is charged for work of other threads.
    pub guest: Arc<Guest>,
    /// The servers and host interfaces that it may use.
    pub access: Access,
    /// `wasi:http`.
    pub http: WasiHttpCtx,
    /// Sends its HTTP requests to other servers.
    pub outgoing: Box<dyn WasiHttpHooks + Send>,
}

impl ComponentState {
    /// Charges the daemon's memory behind the guest's handles to its container, if it is time to measure it.
    ///
    /// # Errors
    /// The container has no room for it: the guest ends as one that is out of memory.
    pub fn charge_handles(&mut self) -> wasmtime::Result<()> {
        if self.host_memory.measure(&mut self.table, Instant::now()) {
            return Ok(());
        }
        self.limits.set_starved();
        wasmtime::bail!(
            "the daemon's memory for its handles (headers, requests, bodies) takes the container over its memory limit"
        )
    }
}

/// A table for at most `max` resources.
pub fn resources(max: usize) -> ResourceTable {
    let mut table = ResourceTable::new();
    table.set_max_capacity(max);
    table
}

/// `wasi:http` with at most `bytes_max` bytes in one set of headers.
pub fn fields(bytes_max: usize) -> WasiHttpCtx {
    let mut http = WasiHttpCtx::new();
    http.set_field_size_limit(bytes_max);
    http
}

impl WasiHttpView for ComponentState {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut *self.outgoing }
    }
}

impl WasiView for ComponentState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.ctx, table: &mut self.table }
    }
}
