//! Whether the node's clock is synchronised, as NTP clients tell the kernel.

#![allow(unsafe_code, reason = "adjtimex(2) has no safe form")]

/// Whether a time service synchronises the kernel's clock; `None` if the kernel does not tell.
pub fn is_synchronized() -> Option<bool> {
    // SAFETY: all-zero is a valid value of this structure of numbers; it requests no change.
    let mut time: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the structure lives for the call; the kernel only fills it.
    match unsafe { libc::adjtimex(&raw mut time) } {
        state if state < 0 => None,
        _ => Some(time.status & libc::STA_UNSYNC == 0),
    }
}
