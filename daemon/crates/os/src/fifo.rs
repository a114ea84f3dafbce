//! FIFOs and pipes, opened so that no call ever waits for the other side.
//!
//! Output is opened read-write: there is always a reader, so neither the open nor a write fails or
//! waits while the client is away (containerd restarts), and data stays until it is back. Input is opened for reading
//! only, because a descriptor that can write does not report that the writers have gone. [`hold_open`] adds a writer
//! for the time in which an end must not be reported.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The reason why a path cannot serve as a FIFO.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The path does not exist.
    #[error("does not exist")]
    Missing,
    /// The file is not a FIFO.
    #[error("is {0}, not a FIFO")]
    NotFifo(&'static str),
    /// The kernel refuses to open it.
    #[error("cannot be opened: {0}")]
    Os(Errno),
}

/// Opens a FIFO to write to it.
///
/// # Errors
/// As [`OpenError`].
pub fn open_output(path: &Path) -> Result<OwnedFd, OpenError> {
    open(path, OFlags::RDWR)
}

/// Opens a FIFO to read from it.
///
/// # Errors
/// As [`OpenError`].
pub fn open_input(path: &Path) -> Result<OwnedFd, OpenError> {
    let input = open(path, OFlags::RDONLY)?;
    // The kernel reports a hang-up only if there was a writer after this open. This one makes a client that was gone
    // before count as gone.
    drop(hold_open(input.as_fd()).map_err(OpenError::Os)?);
    Ok(input)
}

fn open(path: &Path, access: OFlags) -> Result<OwnedFd, OpenError> {
    let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| match error {
        Errno::NOENT => OpenError::Missing,
        Errno::ISDIR => OpenError::NotFifo("a directory"),
        Errno::NXIO => OpenError::NotFifo("a socket or an absent device"),
        other => OpenError::Os(other),
    })?;
    match FileType::from_raw_mode(rustix::fs::fstat(&fd).map_err(OpenError::Os)?.st_mode) {
        FileType::Fifo => Ok(fd),
        FileType::RegularFile => Err(OpenError::NotFifo("a regular file")),
        FileType::Directory => Err(OpenError::NotFifo("a directory")),
        FileType::CharacterDevice | FileType::BlockDevice => Err(OpenError::NotFifo("a device")),
        FileType::Symlink | FileType::Socket | FileType::Unknown => Err(OpenError::NotFifo("something else")),
    }
}

/// Opens a writer of the FIFO that `input` reads, also if the FIFO's name was removed.
///
/// # Errors
/// As open(2).
pub fn hold_open(input: BorrowedFd) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", input.as_raw_fd());
    rustix::fs::open(path, OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
}

/// Keeps data in a FIFO that no reader has opened yet; see [`keep_unread`].
#[derive(Debug)]
pub struct Unread(OwnedFd);

/// At the end of an output that [`open_output`] opened: returns a descriptor that keeps its unread data, if there is
/// any. The caller then closes `output`, and may drop this one as soon as [`Unread::is_safe`].
///
/// Data in a FIFO is lost when the last descriptor of it is closed, and a client that opens its end a
/// moment late (containerd's clients do so in the background) finds nothing. `output` is a reader itself, so only a
/// descriptor for writing alone can report whether there is another reader.
///
/// # Errors
/// As open(2).
pub fn keep_unread(output: BorrowedFd) -> Result<Option<Unread>, Errno> {
    // A pipe to a log program has had its reader from the start.
    if rustix::io::ioctl_fionread(output)? == 0 || !rustix::fs::fcntl_getfl(output)?.contains(OFlags::RDWR) {
        return Ok(None);
    }
    hold_open(output).map(|writer| Some(Unread(writer)))
}

impl Unread {
    /// Whether a reader has opened the FIFO, or all data is read.
    pub fn is_safe(&self) -> bool {
        self.has_reader() || self.is_read()
    }

    /// Whether waiting is pointless: all data is read, or the FIFO has no reader.
    pub fn is_over(&self) -> bool {
        self.is_read() || !self.has_reader()
    }

    fn has_reader(&self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.0.as_fd(), PollFlags::OUT)];
        let polled = rustix::io::retry_on_intr(|| poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })));
        // For a writer, POLLERR means that there is no reader.
        polled.is_ok() && !fds[0].revents().contains(PollFlags::ERR)
    }

    fn is_read(&self) -> bool {
        rustix::io::ioctl_fionread(&self.0).is_ok_and(|unread| unread == 0)
    }
}

/// The result of a read, without reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readiness {
    /// A read would not wait.
    pub readable: bool,
    /// The FIFO has no writer.
    pub hung_up: bool,
}

/// Tells whether a read would wait.
///
/// # Errors
/// As poll(2).
pub fn readiness(input: BorrowedFd) -> Result<Readiness, Errno> {
    let mut fds = [PollFd::from_borrowed_fd(input, PollFlags::IN)];
    rustix::io::retry_on_intr(|| poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })))?;
    let found = fds[0].revents();
    let hung_up = found.intersects(PollFlags::HUP | PollFlags::ERR);
    Ok(Readiness { readable: hung_up || found.contains(PollFlags::IN), hung_up })
}

/// Registers a descriptor with the epoll instance of the runtime that is entered.
///
/// # Errors
/// epoll has no room, or the descriptor is a regular file, which is always ready.
#[allow(unsafe_code, reason = "tokio asks for a promise about the descriptor; see the comment")]
pub fn register(fd: Arc<OwnedFd>, interest: Interest) -> std::io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: the descriptor has to stay the same open file until it is deregistered. An `OwnedFd`
    // behind an `Arc` cannot be replaced, and is closed only when its last owner is dropped; the registration is an
    // owner.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest)? })
}

/// Makes a pipe to a program: the program's end to read, and the daemon's end, which never waits.
///
/// # Errors
/// As pipe2(2).
pub fn pipe_to_program() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (theirs, ours) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((theirs, ours))
}

/// Makes a pipe from a program: the daemon's end, which never waits, and the program's end to write.
///
/// # Errors
/// As pipe2(2).
pub fn pipe_from_program() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (ours, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use hearth_testing::make_fifo;

    use super::*;

    fn read(fd: &OwnedFd) -> Result<Vec<u8>, Errno> {
        let mut buffer = [0; 16];
        rustix::io::read(fd, &mut buffer).map(|n| buffer[..n].to_vec())
    }

    #[test]
    fn opening_and_writing_never_wait_for_a_reader() {
        let dir = tempfile::tempdir().unwrap();
        let path = make_fifo(dir.path(), "f");
        let output = open_output(&path).unwrap();
        assert_eq!(rustix::io::write(&output, b"early"), Ok(5));
        let reader = open_input(&path).unwrap();
        assert_eq!(read(&reader).unwrap(), b"early");
        drop(reader);
        assert_eq!(rustix::io::write(&output, b"late"), Ok(4), "a reader that left is no broken pipe");
    }

    #[test]
    fn what_nobody_has_come_for_is_kept_until_somebody_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = make_fifo(dir.path(), "f");
        let output = open_output(&path).unwrap();
        assert!(keep_unread(output.as_fd()).unwrap().is_none(), "there is nothing in it");
        rustix::io::write(&output, b"early").unwrap();
        let unread = keep_unread(output.as_fd()).unwrap().unwrap();
        drop(output);
        assert!(!unread.is_safe());
        assert!(unread.is_over(), "nobody reads");
        let reader = open(&path, OFlags::RDONLY).unwrap();
        assert!(unread.is_safe() && !unread.is_over());
        drop(unread);
        assert_eq!(read(&reader).unwrap(), b"early");
        assert_eq!(read(&reader).unwrap(), b"");
        let (_theirs, ours) = pipe_to_program().unwrap();
        rustix::io::write(&ours, b"x").unwrap();
        assert!(keep_unread(ours.as_fd()).unwrap().is_none(), "a log program is there");
    }

    #[test]
    fn a_reader_can_tell_whether_anybody_may_still_write() {
        let dir = tempfile::tempdir().unwrap();
        let path = make_fifo(dir.path(), "f");
        let input = open_input(&path).unwrap();
        let gone = Readiness { readable: true, hung_up: true };
        let waiting = Readiness { readable: false, hung_up: false };
        assert_eq!(readiness(input.as_fd()), Ok(gone), "nobody came");
        let keeper = hold_open(input.as_fd()).unwrap();
        assert_eq!(readiness(input.as_fd()), Ok(waiting));
        assert_eq!(read(&input).unwrap_err(), Errno::AGAIN);
        fs::remove_file(&path).unwrap();
        let second = hold_open(input.as_fd()).unwrap();
        drop(keeper);
        assert_eq!(readiness(input.as_fd()), Ok(waiting));
        rustix::io::write(&second, b"x").unwrap();
        drop(second);
        assert_eq!(readiness(input.as_fd()), Ok(gone));
        assert_eq!(read(&input).unwrap(), b"x");
        assert_eq!(read(&input).unwrap(), b"");
    }

    #[test]
    fn what_is_no_fifo_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        let cases = [
            ("absent", OpenError::Missing),
            ("file", OpenError::NotFifo("a regular file")),
            (".", OpenError::NotFifo("a directory")),
            ("socket", OpenError::NotFifo("a socket or an absent device")),
        ];
        for (name, want) in cases {
            assert_eq!(open_output(&dir.path().join(name)).unwrap_err(), want, "{name}");
            assert_eq!(open_input(&dir.path().join(name)).unwrap_err(), want, "{name}");
        }
        assert_eq!(open_output(Path::new("/dev/null")).unwrap_err(), OpenError::NotFifo("a device"));
        assert_eq!(open_output(&file.join("x")).unwrap_err(), OpenError::Os(Errno::NOTDIR));
    }
}
