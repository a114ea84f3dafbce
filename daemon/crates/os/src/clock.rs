//! The node's clock.

#![allow(unsafe_code, reason = "adjtimex(2) has no safe form")]

/// Whether the kernel's clock is kept right by somebody; `None` if the kernel does not say.
pub fn is_synchronized() -> Option<bool> {
    // SAFETY: all-zero is a value of this plain structure of numbers: it asks and sets nothing.
    let mut time: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a structure of ours that lives through the call; the kernel only fills it.
    match unsafe { libc::adjtimex(&raw mut time) } {
        state if state < 0 => None,
        _ => Some(time.status & libc::STA_UNSYNC == 0),
    }
}
