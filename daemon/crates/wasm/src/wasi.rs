//! The world a guest sees: its linkers, the state behind its imports, and its limits.
//!
//! File calls run on the guest's own worker thread, inside the poll: that is the fastest form, and
//! the only one in which the thread's credentials and namespace apply. The one call for which
//! wasmtime-wasi would then *sleep* on the worker, preview 1's `poll_oneoff`, is replaced here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use wasmtime::component::{Linker as ComponentLinker, Resource, ResourceTable};
use wasmtime::{AsContextMut, Caller, Engine, Extern, Linker, ResourceLimiter, StoreContextMut};
use wasmtime_wasi::p1::{self, WasiP1Ctx, wasi_snapshot_preview1};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, IoError};
use wasmtime_wasi_http::{Error as HttpError, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView};
use wiggle::GuestMemory;

use crate::files;
use crate::names;
use crate::resolver::Names;

/// Bytes a table element takes on the host.
pub const TABLE_ELEMENT_BYTES: u64 = 8;

/// Memory of one task's guests, shared between their stores and those who ask for statistics or change its
/// limit.
#[derive(Debug)]
pub struct MemoryUse {
    limit: AtomicU64,
    current: AtomicU64,
    peak: AtomicU64,
    refused: AtomicU64,
    /// Want of it ended a guest.
    fatal: AtomicBool,
}

impl MemoryUse {
    /// Nothing yet, of at most `limit` bytes.
    pub fn new(limit: u64) -> MemoryUse {
        MemoryUse {
            limit: AtomicU64::new(limit),
            current: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            fatal: AtomicBool::new(false),
        }
    }

    /// What it may be, in bytes.
    pub fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Changes the limit for every growth from now on. A guest that holds more keeps it: memory cannot be
    /// taken away from WebAssembly.
    pub fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Linear memories and tables, in bytes.
    pub fn current(&self) -> u64 {
        self.current.load(Ordering::Relaxed)
    }

    /// The most it ever was, in bytes.
    pub fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    /// How often growing was refused for the limit.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Takes `more` bytes if all together stay within the limit.
    fn take(&self, more: u64) -> bool {
        let limit = self.limit();
        let add = |held: u64| held.checked_add(more).filter(|sum| *sum <= limit);
        match self.current.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add) {
            Ok(before) => {
                self.peak.fetch_max(before + more, Ordering::Relaxed);
                true
            }
            Err(_) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                false
            }
        }
    }

    fn give_back(&self, bytes: u64) {
        self.current.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Notes that a guest ended for want of memory.
    pub fn set_fatal(&self) {
        self.fatal.store(true, Ordering::Relaxed);
    }

    /// Whether a guest ended for want of memory.
    pub fn was_fatal(&self) -> bool {
        self.fatal.load(Ordering::Relaxed)
    }
}

/// Counts a guest's memory over all its memories and tables, and refuses what would take it and the
/// other guests of its task over their limit. What it holds is given back when its store goes.
pub struct Limits {
    usage: Arc<MemoryUse>,
    held: u64,
    starved: Arc<AtomicBool>,
}

impl Limits {
    /// Counts in `usage`; `starved` tells whether the last growth was refused.
    pub fn new(usage: Arc<MemoryUse>, starved: Arc<AtomicBool>) -> Limits {
        Limits { usage, held: 0, starved }
    }

    /// Whether the last growth was refused.
    pub fn is_starved(&self) -> bool {
        self.starved.load(Ordering::Relaxed)
    }

    fn grow(&mut self, current: u64, desired: u64) -> bool {
        let more = desired.saturating_sub(current);
        let taken = self.usage.take(more);
        self.starved.store(!taken, Ordering::Relaxed);
        if taken {
            self.held += more;
        }
        taken
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        self.usage.give_back(self.held);
    }
}

impl ResourceLimiter for Limits {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        Ok(self.grow(current as u64, desired as u64))
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        Ok(self.grow(current as u64 * TABLE_ELEMENT_BYTES, desired as u64 * TABLE_ELEMENT_BYTES))
    }
}

/// The state of a core module's store.
pub struct CoreState {
    /// Preview 1.
    pub wasi: WasiP1Ctx,
    /// What it may hold.
    pub limits: Limits,
    /// Whether its root, or a volume in it, refuses writes.
    pub partly_read_only: bool,
    /// Files it has open, but for those it began with.
    pub open_files: u32,
    /// How many it may have.
    pub open_files_max: u32,
}

/// The state of a component's store.
pub struct ComponentState {
    /// WASI 0.2 and 0.3.
    pub ctx: WasiCtx,
    /// Its resources.
    pub table: ResourceTable,
    /// What it may hold.
    pub limits: Limits,
    /// Whether its root, or a volume in it, refuses writes.
    pub partly_read_only: bool,
    /// Its names; none if it may not ask.
    pub names: Option<Names>,
    /// `wasi:http`.
    pub http: WasiHttpCtx,
    /// What becomes of its requests to others.
    pub outgoing: Box<dyn WasiHttpHooks + Send>,
}

/// A table for at most so many resources.
pub fn resources(max: usize) -> ResourceTable {
    let mut table = ResourceTable::new();
    table.set_max_capacity(max);
    table
}

/// `wasi:http` with sets of headers of at most so many bytes.
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

/// The linker of core modules: WASI preview 1.
///
/// # Errors
/// None in practice: names are added once.
pub fn core_linker(engine: &Engine) -> wasmtime::Result<Linker<CoreState>> {
    let mut linker = Linker::new(engine);
    p1::add_to_linker_async(&mut linker, |state: &mut CoreState| &mut state.wasi)?;
    linker.allow_shadowing(true);
    linker.func_wrap_async(
        "wasi_snapshot_preview1",
        "poll_oneoff",
        |caller: Caller<'_, CoreState>, (subscriptions, events, count, ready): (i32, i32, i32, i32)| {
            Box::new(poll_oneoff(caller, subscriptions, events, count, ready))
        },
    )?;
    linker.allow_shadowing(false);
    files::p1::replace(&mut linker)?;
    Ok(linker)
}

/// The linker of components: what `wasi:cli/command` and `wasi:http/proxy` (0.2) or `wasi:http/service` (0.3)
/// import.
///
/// # Errors
/// None in practice: names are added once.
pub fn component_linker(engine: &Engine) -> wasmtime::Result<ComponentLinker<ComponentState>> {
    let mut linker = ComponentLinker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    wasmtime_wasi::p3::add_to_linker(&mut linker)?;
    wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
    names::replace(&mut linker)?;
    files::p2::replace(&mut linker)?;
    files::p3::replace(&mut linker)?;
    tell_http_errors(&mut linker)?;
    Ok(linker)
}

/// `wasi:http`'s types, as wasmtime-wasi-http 48 has them; a guest's older 0.2 is linked to them too.
const HTTP_TYPES: &str = "wasi:http/types@0.2.12";

/// Replaces the call that tells the code of a stream's error by one that knows those of responses' bodies.
///
/// wasmtime-wasi-http 48 looks for WASI's own type (its `p2/types_impl.rs`), where bodies have the crate's.
fn tell_http_errors(linker: &mut ComponentLinker<ComponentState>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    linker.instance(HTTP_TYPES)?.func_wrap(
        "http-error-code",
        |mut store: StoreContextMut<'_, ComponentState>, (error,): (Resource<IoError>,)| {
            let error = store.data_mut().table.get(&error)?;
            let own = error.downcast_ref::<ErrorCode>().cloned();
            Ok((own.or_else(|| error.downcast_ref().and_then(of_body)),))
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

/// What WASI 0.2 calls an error in the middle of a response's body.
fn of_body(error: &HttpError) -> Option<ErrorCode> {
    Some(match error {
        HttpError::ConnectionReadTimeout => ErrorCode::ConnectionReadTimeout,
        HttpError::HttpResponseIncomplete => ErrorCode::HttpResponseIncomplete,
        HttpError::HttpProtocolError => ErrorCode::HttpProtocolError,
        HttpError::TlsProtocolError => ErrorCode::TlsProtocolError,
        _ => return None,
    })
}

/// Preview 1's `poll_oneoff`, asynchronous also where it is just a sleep.
///
/// With file calls on the current thread, wasmtime-wasi 48 answers a single relative clock
/// subscription with `std::thread::sleep` on the worker (its `p1.rs`), for as long as the guest
/// likes. That case is a timer here; everything else is wasmtime-wasi's own.
async fn poll_oneoff(
    mut caller: Caller<'_, CoreState>,
    subscriptions: i32,
    events: i32,
    count: i32,
    ready: i32,
) -> wasmtime::Result<i32> {
    let Some(Extern::Memory(memory)) = caller.get_export("memory") else {
        wasmtime::bail!("missing required memory export");
    };
    if count == 1
        && let Some(sleep) = Sleep::read(memory.data(&caller), subscriptions)
    {
        tokio::time::sleep(sleep.duration).await;
        return Ok(sleep.answer(memory.data_mut(&mut caller), events, ready));
    }
    let fuel = caller.as_context_mut().hostcall_fuel();
    let (bytes, state) = memory.data_and_store_mut(&mut caller);
    wasi_snapshot_preview1::WasiSnapshotPreview1::set_hostcall_fuel(&mut state.wasi, fuel);
    let mut memory = GuestMemory::Unshared(bytes);
    wasi_snapshot_preview1::poll_oneoff(&mut state.wasi, &mut memory, subscriptions, events, count, ready).await
}

/// A subscription that is just a relative clock.
///
/// Layouts from WASI preview 1's witx: `subscription` is 48 bytes (userdata u64 at 0, tag u8 at 8,
/// clock id u32 at 16, timeout u64 at 24, precision u64 at 32, flags u16 at 40); `event` is 32 bytes
/// (userdata u64 at 0, error u16 at 8, type u8 at 10, the rest for files).
struct Sleep {
    userdata: [u8; 8],
    duration: Duration,
}

const SUBSCRIPTION_BYTES: usize = 48;
const EVENT_BYTES: usize = 32;
const TAG_CLOCK: u8 = 0;
const CLOCK_ABSOLUTE: u16 = 1;
const CLOCK_MONOTONIC: u32 = 1;
const ERRNO_SUCCESS: i32 = 0;
const ERRNO_FAULT: i32 = 21;

impl Sleep {
    fn read(memory: &[u8], at: i32) -> Option<Sleep> {
        let at = at as u32 as usize;
        let bytes = memory.get(at..at.checked_add(SUBSCRIPTION_BYTES)?)?;
        let clock = u32::from_le_bytes(bytes[16..20].try_into().ok()?);
        let flags = u16::from_le_bytes(bytes[40..42].try_into().ok()?);
        // Realtime is 0; the CPU-time clocks (2, 3) cannot be waited for.
        if bytes[8] != TAG_CLOCK || flags & CLOCK_ABSOLUTE != 0 || clock > CLOCK_MONOTONIC {
            return None;
        }
        Some(Sleep {
            userdata: bytes[..8].try_into().ok()?,
            duration: Duration::from_nanos(u64::from_le_bytes(bytes[24..32].try_into().ok()?)),
        })
    }

    fn answer(&self, memory: &mut [u8], events: i32, ready: i32) -> i32 {
        let mut event = [0u8; EVENT_BYTES];
        event[..8].copy_from_slice(&self.userdata);
        if put(memory, events, &event) && put(memory, ready, &1u32.to_le_bytes()) { ERRNO_SUCCESS } else { ERRNO_FAULT }
    }
}

/// Writes into a guest's memory; `false` if that ends before.
pub(super) fn put(memory: &mut [u8], at: i32, bytes: &[u8]) -> bool {
    let at = at as u32 as usize;
    match at.checked_add(bytes.len()).and_then(|end| memory.get_mut(at..end)) {
        Some(place) => {
            place.copy_from_slice(bytes);
            true
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_counted_over_all_memories_and_refused_at_the_limit() {
        let usage = Arc::new(MemoryUse::new(200_000));
        let starved = Arc::new(AtomicBool::new(false));
        let mut limits = Limits::new(usage.clone(), starved.clone());
        assert!(limits.memory_growing(0, 65_536, None).unwrap());
        assert!(limits.memory_growing(0, 65_536, None).unwrap());
        assert!(limits.table_growing(0, 100, None).unwrap());
        assert_eq!(usage.current(), 2 * 65_536 + 800);
        assert!(!limits.memory_growing(65_536, 3 * 65_536, None).unwrap());
        assert_eq!((usage.current(), usage.refused()), (2 * 65_536 + 800, 1));
        assert!(!limits.memory_growing(0, 10, Some(5)).unwrap(), "over the module's own maximum");
        assert_eq!(usage.refused(), 1, "the module's own maximum is not the container's limit");
        assert!(starved.load(Ordering::Relaxed));
        usage.set_limit(300_000);
        assert!(limits.memory_growing(65_536, 3 * 65_536, None).unwrap());
        assert!(!starved.load(Ordering::Relaxed));
        usage.set_limit(1);
        assert!(!limits.memory_growing(0, 1, None).unwrap(), "what is held stays, more is refused");
        assert_eq!((usage.current(), usage.limit()), (4 * 65_536 + 800, 1));
    }

    #[test]
    fn guests_of_one_task_share_its_limit_and_give_back_what_they_held() {
        let usage = Arc::new(MemoryUse::new(200_000));
        let [mut init, mut exec] = [(); 2].map(|()| Limits::new(usage.clone(), Arc::default()));
        assert!(init.memory_growing(0, 65_536, None).unwrap());
        assert!(exec.memory_growing(0, 131_072, None).unwrap());
        assert!(!init.memory_growing(65_536, 131_072, None).unwrap());
        drop(exec);
        assert_eq!((usage.current(), usage.peak()), (65_536, 196_608));
        assert!(init.memory_growing(65_536, 131_072, None).unwrap());
        drop(init);
        assert_eq!(usage.current(), 0);
    }

    #[test]
    fn only_a_relative_clock_is_a_sleep() {
        let mut bytes = [0u8; 48];
        bytes[..8].copy_from_slice(&7u64.to_le_bytes());
        bytes[24..32].copy_from_slice(&1_000u64.to_le_bytes());
        let sleep = Sleep::read(&bytes, 0).unwrap();
        assert_eq!(sleep.duration, Duration::from_micros(1));
        let mut memory = [1u8; 64];
        assert_eq!(sleep.answer(&mut memory, 0, 40), ERRNO_SUCCESS);
        assert_eq!((&memory[..8], memory[8], memory[10], memory[40]), (&7u64.to_le_bytes()[..], 0, 0, 1));
        assert_eq!(sleep.answer(&mut memory, 60, 40), ERRNO_FAULT);
        bytes[40] = 1;
        assert!(Sleep::read(&bytes, 0).is_none(), "absolute");
        bytes[40] = 0;
        bytes[8] = 1;
        assert!(Sleep::read(&bytes, 0).is_none(), "a file");
        assert!(Sleep::read(&bytes, -1).is_none(), "out of bounds");
    }
}
