//! A process that does nothing but have a network namespace: for tasks that ask for a new one, since who
//! sets a network up (`ctr run --cni`, nerdctl) finds it at `/proc/<the task's pid>/ns/net`.
//!
//! It is this program again, started with [`SUBCOMMAND`] and one end of a socket as descriptor 3. It makes
//! the namespace, brings the loopback up, says so, and then waits for the socket to end: so it goes
//! when its [`Holder`] does, and with the daemon, however that ends.

use std::ffi::CString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType};
use rustix::process::Signal;

use crate::error::{Error, Result};
use crate::os::netns::NetNs;
use crate::os::spawn::{self, Child};

/// The argument that makes this program a holder.
pub const SUBCOMMAND: &str = "hold";

/// This program.
const PROGRAM: &str = "/proc/self/exe";

/// The child's end of the socket.
const SOCKET: i32 = 3;

/// How long it may take to be ready.
const READY_TIME: Duration = Duration::from_secs(10);

/// A process with a network namespace of its own. Dropping it ends the process.
#[derive(Debug)]
pub struct Holder {
    child: Arc<Child>,
    namespace: Arc<NetNs>,
    _socket: UnixStream,
    runtime: tokio::runtime::Handle,
}

impl Holder {
    /// Starts one. Takes about a millisecond, most of it the kernel's for the namespace; blocks for it.
    /// `runtime` reaps it.
    ///
    /// # Errors
    /// `Internal` if there is no process or no namespace to be had, with the reason.
    pub fn start(runtime: tokio::runtime::Handle) -> Result<Holder> {
        let failed = |e: io::Error| Error::Internal(format!("cannot make a network namespace for the task: {e}"));
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let args = [c"hearthd".to_owned(), CString::new(SUBCOMMAND).unwrap_or_default()];
        let program = CString::new(PROGRAM).unwrap_or_default();
        let child = spawn::spawn(&program, &args, &[], &[theirs.as_fd()]).map_err(|e| failed(e.into()))?;
        drop(theirs);
        let child = Arc::new(child);
        let reaped = || {
            child.signal(Signal::KILL);
            child.wait();
        };
        let ready = || -> io::Result<()> {
            ours.set_read_timeout(Some(READY_TIME))?;
            let mut said = String::new();
            let mut byte = [0];
            // One line: empty, or why not.
            while (&ours).read(&mut byte)? == 1 {
                if byte[0] == b'\n' {
                    return if said.is_empty() { Ok(()) } else { Err(io::Error::other(said)) };
                }
                said.push(char::from(byte[0]));
            }
            Err(io::Error::other("its holder process ended"))
        };
        let path = PathBuf::from(format!("/proc/{}/ns/net", child.pid()));
        match ready().map_err(failed).and_then(|()| NetNs::open(&path)) {
            Ok(namespace) => Ok(Holder { child, namespace, _socket: ours, runtime }),
            Err(error) => {
                reaped();
                Err(error)
            }
        }
    }

    /// Its pid, for who looks for the namespace.
    pub fn pid(&self) -> u32 {
        self.child.pid().as_raw_nonzero().get().unsigned_abs()
    }

    /// Its namespace.
    pub fn namespace(&self) -> &Arc<NetNs> {
        &self.namespace
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.child.signal(Signal::KILL);
        let child = self.child.clone();
        // The kernel takes its time for a namespace.
        self.runtime.spawn_blocking(move || child.wait());
    }
}

/// What the process does.
pub fn child_main() -> ExitCode {
    #[allow(unsafe_code, reason = "the descriptor this process was started with")]
    // SAFETY: nothing else in this process, which has only begun, knows descriptor 3.
    let mut socket = UnixStream::from(unsafe { OwnedFd::from_raw_fd(SOCKET) });
    let made = make_namespace();
    let line = made.as_ref().err().map(|e| e.to_string().replace('\n', " ")).unwrap_or_default();
    if socket.write_all(format!("{line}\n").as_bytes()).is_err() || made.is_err() {
        return ExitCode::FAILURE;
    }
    // The daemon writes nothing: this is its end.
    let _ = io::copy(&mut socket, &mut io::sink());
    ExitCode::SUCCESS
}

fn make_namespace() -> io::Result<()> {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        #[allow(unsafe_code, reason = "signal(2)")]
        // SAFETY: to be ignored is a valid disposition. A service manager signals all of a unit; this
        // process ends with its daemon, which may have tasks to end first.
        unsafe {
            libc::signal(signal, libc::SIG_IGN)
        };
    }
    #[allow(unsafe_code, reason = "unshare(2) of a namespace")]
    // SAFETY: a network namespace has nothing to do with the table of descriptors.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }?;
    bring_loopback_up()
}

/// As runc does in a new namespace.
fn bring_loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    #[allow(unsafe_code, reason = "ioctl(2) on an interface")]
    // SAFETY: `ifreq` is plain data, valid when zeroed; both requests take a pointer to one that lives
    // through the call, with a name that ends in a NUL.
    unsafe {
        use std::os::fd::AsRawFd;
        let mut request: libc::ifreq = std::mem::zeroed();
        for (place, byte) in request.ifr_name.iter_mut().zip(b"lo") {
            *place = *byte as libc::c_char;
        }
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request) != 0 {
            return Err(io::Error::last_os_error());
        }
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
