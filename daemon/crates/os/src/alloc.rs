//! A process that ends with an exit status of its choice when it has no memory, instead of aborting.
//!
//! Rust aborts when an allocation fails, and says why in a text only. A process whose parent has to tell want of memory
//! from a crash asks for an exit status.

use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicU8, Ordering};

/// The exit status; 0: none is asked for.
static STATUS: AtomicU8 = AtomicU8::new(0);

/// From now on, ends the process with `status`, which is not 0, when an allocation fails. Only in a process whose
/// allocator is [`ExitOnFailure`].
pub fn exit_on_failure(status: u8) {
    STATUS.store(status, Ordering::Relaxed);
}

/// The allocator `A`, whose failures end the process if [`exit_on_failure`] was called.
pub struct ExitOnFailure<A>(pub A);

/// Passes on an allocator's result.
#[allow(unsafe_code, reason = "_exit takes no memory, and nothing is left to be undone in a process without memory")]
fn checked(memory: *mut u8) -> *mut u8 {
    if memory.is_null() {
        match STATUS.load(Ordering::Relaxed) {
            0 => {}
            // SAFETY: it has no preconditions.
            status => unsafe { libc::_exit(status.into()) },
        }
    }
    memory
}

#[allow(unsafe_code, reason = "the trait is unsafe; each call goes to the allocator as it is")]
// SAFETY: every call is passed on unchanged to an allocator that keeps the contract, and its result is given back
// unchanged.
unsafe impl<A: GlobalAlloc> GlobalAlloc for ExitOnFailure<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: passed on from our caller.
        checked(unsafe { self.0.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: passed on from our caller.
        checked(unsafe { self.0.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: passed on from our caller.
        checked(unsafe { self.0.realloc(memory, layout, bytes) })
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: passed on from our caller.
        unsafe { self.0.dealloc(memory, layout) }
    }
}
