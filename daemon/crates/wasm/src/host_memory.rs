//! The daemon's memory behind a component's handles: headers, requests, bodies, streams, files.
//!
//! It is outside the guest's linear memories, and a guest decides how much of it there is. wasmtime keeps all of it in one
//! table. The table is measured while the guest computes, at most once in [`EVERY`] and for a twentieth of the time, so that a
//! guest that sleeps or ends soon costs nothing. The result beyond [`FREE_BYTES`] counts as memory of the container.
//!
//! The sizes of some parts are not visible from outside. They are counted by their bound.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime::component::ResourceTable;
use wasmtime_wasi_http::FieldMap;
use wasmtime_wasi_http::p2::body::{HostIncomingBody, HostOutgoingBody};
use wasmtime_wasi_http::p2::types::{HostIncomingResponse, HostOutgoingRequest, HostOutgoingResponse};
use wasmtime_wasi_http::p3::{Request, Response};

use crate::memory::{HeldMemory, MemoryUse};

/// How often a table is measured at most. In this time a guest takes a few megabytes more.
const EVERY: Duration = Duration::from_millis(2);

/// How many times as long as a measurement it is until the next one.
const REST: u32 = 20;

/// Memory of each guest that is not charged, in bytes: that of the handles of an ordinary program or request.
const FREE_BYTES: u64 = 512 << 10;

/// An entry of the table with its own allocation, in bytes: the most of the kinds that are not told apart.
const ENTRY_BYTES: u64 = 256;

/// A header beside its name and value, in bytes: an entry of `http::HeaderMap`, of which a third is free.
const HEADER_BYTES: u64 = 160;

/// A body beside its stream, in bytes: the chunk in its channel.
const BODY_BYTES: u64 = 64 << 10;

/// The memory behind the handles of one store, charged to its container until it is dropped.
pub struct HostMemory {
    held: HeldMemory,
    /// When it is measured next; `None`: at the next tick.
    next: Option<Instant>,
}

impl HostMemory {
    /// Nothing measured yet, of the container with this memory.
    pub fn new(memory: &Arc<MemoryUse>) -> HostMemory {
        HostMemory { held: memory.hold(), next: None }
    }

    /// Measures the table, if that is due. `false`: the container has no room for it.
    pub fn measure(&mut self, table: &mut ResourceTable, now: Instant) -> bool {
        if self.next.is_some_and(|next| now < next) {
            return true;
        }
        let bytes = size(table);
        self.next = Some(now + (now.elapsed() * REST).max(EVERY));
        self.held.set(bytes.saturating_sub(FREE_BYTES))
    }
}

/// The memory behind a table's handles, in bytes.
fn size(table: &mut ResourceTable) -> u64 {
    table.iter_mut().map(|entry| ENTRY_BYTES + content(entry)).sum()
}

fn content(entry: &dyn Any) -> u64 {
    let text = |text: Option<&str>| text.map_or(0, str::len) as u64;
    if let Some(found) = entry.downcast_ref::<FieldMap>() {
        fields(found)
    } else if entry.is::<HostOutgoingBody>() || entry.is::<HostIncomingBody>() {
        BODY_BYTES
    } else if let Some(request) = entry.downcast_ref::<HostOutgoingRequest>() {
        fields(&request.headers) + text(request.authority.as_deref()) + text(request.path_with_query.as_deref())
    } else if let Some(response) = entry.downcast_ref::<HostOutgoingResponse>() {
        fields(&response.headers)
    } else if let Some(response) = entry.downcast_ref::<HostIncomingResponse>() {
        fields(&response.headers)
    } else if let Some(request) = entry.downcast_ref::<Request>() {
        let path = request.path_with_query.as_ref().map(|path| path.as_str());
        fields(&request.headers) + text(request.authority.as_ref().map(|authority| authority.as_str())) + text(path)
    } else if let Some(response) = entry.downcast_ref::<Response>() {
        fields(&response.headers)
    } else {
        0
    }
}

/// A set of headers. Clones share their content until one is changed; each is counted whole.
fn fields(fields: &FieldMap) -> u64 {
    fields.iter().map(|(name, value)| HEADER_BYTES + (name.as_str().len() + value.len()) as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table with so many sets of headers of 10,000 bytes.
    fn table(sets: usize) -> ResourceTable {
        let mut table = ResourceTable::new();
        for _ in 0..sets {
            let mut headers = http::HeaderMap::new();
            headers.insert("x-long", "y".repeat(10_000).parse().unwrap());
            table.push(FieldMap::new_immutable(&mut Hooks, headers)).unwrap();
        }
        table
    }

    struct Hooks;

    impl wasmtime_wasi_http::WasiHttpHooks for Hooks {
        fn send_request(
            &mut self,
            _: http::Request<wasmtime_wasi_http::WasiBody>,
            _: Option<wasmtime_wasi_http::RequestOptions>,
            _: Box<dyn Future<Output = Result<(), wasmtime_wasi_http::Error>> + Send>,
        ) -> Box<
            dyn Future<
                    Output = Result<
                        (
                            http::Response<wasmtime_wasi_http::WasiBody>,
                            Box<dyn Future<Output = Result<(), wasmtime_wasi_http::Error>> + Send>,
                        ),
                        wasmtime_wasi_http::Error,
                    >,
                > + Send,
        > {
            Box::new(std::future::ready(Err(wasmtime_wasi_http::Error::HttpRequestDenied)))
        }
    }

    #[test]
    fn handles_and_headers_count_as_memory_until_they_are_gone() {
        let memory = Arc::new(MemoryUse::new(2_000_000));
        let mut host = HostMemory::new(&memory);
        let began = Instant::now();
        let later = |seconds| began + Duration::from_secs(seconds);
        assert!(host.measure(&mut table(10), began));
        assert_eq!(memory.current(), 0, "an ordinary guest's handles cost nothing");
        assert!(host.measure(&mut table(1_000), began), "it is not due yet");
        assert!(host.measure(&mut table(100), later(1)));
        let hundred = memory.current();
        assert!((400_000..600_000).contains(&hundred), "{hundred}");
        assert!(!host.measure(&mut table(1_000), later(2)));
        assert_eq!((memory.current(), memory.refused()), (hundred, 1));
        assert!(host.measure(&mut table(1), later(3)));
        assert_eq!(memory.current(), 0);
        assert!(host.measure(&mut table(100), later(4)));
        drop(host);
        assert_eq!(memory.current(), 0);
    }
}
