//! Pseudo-terminals: the daemon's side (master) and the program's side.
//!
//! Neither side ever waits, and neither becomes the daemon's controlling terminal.
#![allow(unsafe_code, reason = "no crate in use offers terminals' ioctls; each call is argued below")]

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// The device that makes terminals.
const PTMX: &str = "/dev/ptmx";

/// The value that switches a control character off (`_POSIX_VDISABLE` on Linux).
const DISABLED: u8 = 0;

/// A new terminal in the kernel's default mode: lines, echo, signals, `\n` to `\r\n`.
pub struct Pty {
    /// The master: the side of the person at the terminal.
    pub master: OwnedFd,
    /// The side of the program.
    pub slave: OwnedFd,
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// The keys for which the kernel sends a signal; `None` for a key that is switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SignalKeys {
    /// ^C: SIGINT.
    pub interrupt: Option<u8>,
    /// ^\: SIGQUIT.
    pub quit: Option<u8>,
    /// ^V: the next character is taken literally.
    pub quote: Option<u8>,
}

/// Makes a terminal.
///
/// # Errors
/// `ENOSPC` if `kernel.pty.max` terminals exist, else as open(2) and ioctl(2).
pub fn open() -> Result<Pty, Errno> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let master = rustix::fs::open(PTMX, flags, Mode::empty())?;
    let unlock: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int through the pointer, which is valid for the call.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) })?;
    // SAFETY: TIOCGPTPEER takes open(2)'s flags by value and touches no memory of this process. It opens the other side
    // without a path, so in any mount namespace.
    let slave = check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags.bits() as libc::c_int) })?;
    // SAFETY: the kernel has just opened this descriptor, and no other part of the process knows it.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    Ok(Pty { master, slave })
}

/// A second descriptor of the same open file.
///
/// # Errors
/// As fcntl(2).
pub fn duplicate(fd: BorrowedFd) -> Result<OwnedFd, Errno> {
    rustix::io::fcntl_dupfd_cloexec(fd, 0)
}

/// Sets a terminal's size.
///
/// # Errors
/// As ioctl(2).
pub fn resize(terminal: BorrowedFd, size: Size) -> Result<(), Errno> {
    let size = libc::winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize through the pointer, which is valid for the call.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }).map(|_| ())
}

/// The keys for which the kernel sends a signal in the terminal's present mode.
///
/// # Errors
/// As tcgetattr(3).
pub fn signal_keys(terminal: BorrowedFd) -> Result<SignalKeys, Errno> {
    let mut settings = MaybeUninit::<libc::termios>::uninit();
    // SAFETY: tcgetattr writes a termios through the pointer, which is valid for the call.
    check(unsafe { libc::tcgetattr(terminal.as_fd().as_raw_fd(), settings.as_mut_ptr()) })?;
    // SAFETY: it succeeded, so it has written all of it.
    let settings = unsafe { settings.assume_init() };
    if settings.c_lflag & libc::ISIG == 0 {
        return Ok(SignalKeys::default());
    }
    let key = |index: usize| Some(settings.c_cc[index]).filter(|key| *key != DISABLED);
    let quotes = settings.c_lflag & libc::IEXTEN != 0 && settings.c_lflag & libc::ICANON != 0;
    Ok(SignalKeys { interrupt: key(libc::VINTR), quit: key(libc::VQUIT), quote: key(libc::VLNEXT).filter(|_| quotes) })
}

fn check(result: libc::c_int) -> Result<libc::c_int, Errno> {
    if result >= 0 {
        return Ok(result);
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_terminal_cooks_and_never_waits() {
        let pty = open().unwrap();
        assert_eq!(rustix::io::read(&pty.slave, &mut [0; 9]).unwrap_err(), Errno::AGAIN);
        assert_eq!(rustix::io::read(&pty.master, &mut [0; 9]).unwrap_err(), Errno::AGAIN);
        rustix::io::write(&pty.slave, b"a\nb\n").unwrap();
        let mut read = [0; 9];
        let length = rustix::io::read(&pty.master, &mut read).unwrap();
        assert_eq!(&read[..length], b"a\r\nb\r\n");
        let keys = SignalKeys { interrupt: Some(3), quit: Some(28), quote: Some(22) };
        assert_eq!(signal_keys(pty.master.as_fd()), Ok(keys));
    }

    #[test]
    fn a_size_is_seen_on_the_other_side() {
        let pty = open().unwrap();
        resize(pty.master.as_fd(), Size { width: 132, height: 43 }).unwrap();
        let mut size = MaybeUninit::<libc::winsize>::zeroed();
        // SAFETY: TIOCGWINSZ writes one winsize through the pointer, which is valid for the call.
        check(unsafe { libc::ioctl(pty.slave.as_raw_fd(), libc::TIOCGWINSZ, size.as_mut_ptr()) }).unwrap();
        // SAFETY: all-zero is a valid winsize, and the call has filled it in.
        let size = unsafe { size.assume_init() };
        assert_eq!((size.ws_col, size.ws_row), (132, 43));
    }

    #[test]
    fn all_that_was_written_is_read_before_the_end() {
        let Pty { master, slave } = open().unwrap();
        rustix::io::write(&slave, b"last words").unwrap();
        drop(slave);
        let mut read = [0; 32];
        assert_eq!(rustix::io::read(&master, &mut read), Ok(10));
        assert_eq!(rustix::io::read(&master, &mut read), Err(Errno::IO));
    }
}
