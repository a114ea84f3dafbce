//! Two calls of preview 1 that differ from wasmtime-wasi's: `poll_oneoff` and `proc_exit`.

use std::time::Duration;

use wasmtime::{AsContextMut, Caller, Extern, Linker};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi::p1::wasi_snapshot_preview1;
use wiggle::GuestMemory;

use crate::state::CoreState;

/// Puts the calls in the place of wasmtime-wasi's own.
///
/// # Errors
/// If a name is added twice: a mistake of this module.
pub fn replace(linker: &mut Linker<CoreState>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    linker.func_wrap_async(
        "wasi_snapshot_preview1",
        "poll_oneoff",
        |caller: Caller<'_, CoreState>, (subscriptions, events, count, ready): (i32, i32, i32, i32)| {
            Box::new(poll_oneoff(caller, subscriptions, events, count, ready))
        },
    )?;
    linker.func_wrap("wasi_snapshot_preview1", "proc_exit", proc_exit)?;
    linker.allow_shadowing(false);
    Ok(())
}

/// Preview 1's `proc_exit`, with any status.
///
/// wasmtime-wasi 48 traps for a status from 126 on (its `p1.rs`). On Linux programs end with such a status, and
/// 200 is 200 to the parent.
fn proc_exit(_: Caller<'_, CoreState>, status: i32) -> wasmtime::Result<()> {
    Err(I32Exit(status).into())
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

/// Writes into a guest's memory; `false` if the bytes do not fit.
pub(crate) fn put(memory: &mut [u8], at: i32, bytes: &[u8]) -> bool {
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
