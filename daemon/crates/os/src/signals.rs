//! Signals as bytes of a descriptor (signalfd(2)), for a process that waits for signals and other events with poll(2).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::process::Signal;

/// A descriptor that is readable while one of its signals is pending.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

impl SignalFd {
    /// Blocks these signals in the calling thread and opens a descriptor for them. To be called before the process
    /// starts its second thread, since a thread that does not block a signal may receive it instead.
    ///
    /// # Errors
    /// As pthread_sigmask(3) and signalfd(2).
    #[allow(unsafe_code, reason = "rustix has no signal sets and no signalfd")]
    pub fn block(signals: &[Signal]) -> io::Result<SignalFd> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigemptyset initialises the set that the pointer leads to.
        let mut set: libc::sigset_t = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            set.assume_init()
        };
        for signal in signals {
            // SAFETY: the set is initialised; a wrong number is refused with EINVAL.
            if unsafe { libc::sigaddset(&raw mut set, signal.as_raw()) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: the set is initialised, and no old mask is asked for.
        let refused = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if refused != 0 {
            return Err(io::Error::from_raw_os_error(refused));
        }
        // SAFETY: the set is initialised; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just opened it, so that no other part of this process owns it.
        Ok(SignalFd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Takes the next pending signal; `None` if none is pending.
    ///
    /// # Errors
    /// As read(2).
    pub fn read(&self) -> io::Result<Option<Signal>> {
        // `struct signalfd_siginfo` has 128 bytes and begins with the signal's number, `ssi_signo` (signalfd(2)).
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.0, &mut info)) {
            Ok(_) => {
                let number = i32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
                Ok(Signal::from_named_raw(number))
            }
            Err(rustix::io::Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    #[test]
    fn a_blocked_signal_is_read_once() {
        // SIGWINCH ends no process, should another thread receive it.
        let signals = SignalFd::block(&[Signal::WINCH]).unwrap();
        assert_eq!(signals.read().unwrap(), None);
        #[allow(unsafe_code, reason = "a signal for this thread alone")]
        // SAFETY: numbers only; the calling thread exists.
        unsafe {
            let thread = rustix::thread::gettid().as_raw_nonzero().get();
            libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, libc::SIGWINCH);
        }
        poll(&mut [PollFd::new(&signals, PollFlags::IN)], None).unwrap();
        assert_eq!(signals.read().unwrap(), Some(Signal::WINCH));
        assert_eq!(signals.read().unwrap(), None);
    }
}
