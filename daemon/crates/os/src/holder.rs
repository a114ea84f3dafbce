//! Processes that only hold a namespace.
//!
//! * [`Holder`]: a network namespace, for tasks that ask for a new one. A program that configures the network
//!   (`ctr run --cni`, nerdctl) finds the namespace at `/proc/<the task's pid>/ns/net`.
//! * [`PidHolder`]: the first process of a pid namespace, for native containers of a pod that share one. It
//!   reaps their orphans, and all of them end with it.
//!
//! Each is this program again, started with a subcommand and one end of a socket as descriptor 3. It prepares its
//! namespace, reports that, and waits for the end of the socket. So it ends when its value here is dropped, and with
//! the daemon, for whatever reason the daemon ends.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::net::{AddressFamily, SocketType};
use rustix::process::{DumpableBehavior, Signal, chdir, chroot, set_dumpable_behavior};
use rustix::thread::{Gid, Uid, UnshareFlags, set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use tokio::io::Interest;

use crate::fifo;
use crate::netns::NetNs;
use crate::spawn::{self, Child};
use hearth_base::error::{Error, Result};

/// The argument that makes this program hold a network namespace.
pub const SUBCOMMAND: &str = "hold";

/// The argument that makes it the first process of a pid namespace.
pub const PIDS_SUBCOMMAND: &str = "hold-pids";

/// This program.
const PROGRAM: &str = "/proc/self/exe";

/// The child's end of the socket.
const SOCKET: i32 = 3;

/// The time-out until it is ready.
const READY_TIME: Duration = Duration::from_secs(10);

/// The user `nobody`, who has no rights.
const NOBODY: u32 = 65_534;

/// A holder process. Dropping the value ends the process.
#[derive(Debug)]
struct Held {
    child: Arc<Child>,
    _socket: UnixStream,
    runtime: tokio::runtime::Handle,
}

impl Held {
    /// Starts it and waits until it is ready. `runtime` reaps it.
    fn start(subcommand: &str, runtime: tokio::runtime::Handle) -> io::Result<Held> {
        let (ours, theirs) = UnixStream::pair()?;
        let args = [c"hearthd".to_owned(), CString::new(subcommand)?];
        let program = CString::new(PROGRAM)?;
        let child = Arc::new(spawn::spawn(&program, &args, &[], &[theirs.as_fd()])?);
        drop(theirs);
        // From here on, an error drops the value and so ends the process.
        let held = Held { child, _socket: ours.try_clone()?, runtime };
        ours.set_read_timeout(Some(READY_TIME))?;
        let mut said = String::new();
        let mut byte = [0];
        // One line: empty, or an error.
        while (&ours).read(&mut byte)? == 1 {
            if byte[0] == b'\n' {
                return if said.is_empty() { Ok(held) } else { Err(io::Error::other(said)) };
            }
            said.push(char::from(byte[0]));
        }
        Err(io::Error::other("its holder process ended"))
    }

    /// The process id.
    fn pid(&self) -> u32 {
        self.child.pid().as_raw_nonzero().get().unsigned_abs()
    }

    /// Ends the process, and calls `then` when the kernel has forgotten its id.
    fn end(&self, then: impl FnOnce() + Send + 'static) {
        self.child.signal(Signal::KILL);
        let child = self.child.clone();
        self.runtime.spawn(async move {
            match fifo::register(child.ended(), Interest::READABLE) {
                Ok(ended) => drop(ended.readable().await),
                // Only without memory: the process ends by itself, a moment later than `then` is called.
                Err(error) => tracing::warn!(%error, "cannot wait for the process of a network namespace"),
            }
            let _ = child.reap();
            then();
        });
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.child.signal(Signal::KILL);
        let child = self.child.clone();
        // The end of a namespace takes the kernel long.
        self.runtime.spawn_blocking(move || child.wait());
    }
}

/// A process with a network namespace of its own. Dropping it ends the process.
#[derive(Debug)]
pub struct Holder {
    held: Held,
    namespace: Arc<NetNs>,
}

impl Holder {
    /// Starts one. Blocks for about a millisecond, in which the kernel makes the namespace.
    /// `runtime` reaps it.
    ///
    /// # Errors
    /// `Internal` with the reason, if the process or the namespace cannot be made.
    pub fn start(runtime: tokio::runtime::Handle) -> Result<Holder> {
        let failed = |e: io::Error| Error::Internal(format!("cannot make a network namespace for the task: {e}"));
        let held = Held::start(SUBCOMMAND, runtime).map_err(failed)?;
        let namespace = NetNs::open(&PathBuf::from(format!("/proc/{}/ns/net", held.pid())))?;
        Ok(Holder { held, namespace })
    }

    /// The process id, by which other programs find the namespace.
    pub fn pid(&self) -> u32 {
        self.held.pid()
    }

    /// Its namespace.
    pub fn namespace(&self) -> &Arc<NetNs> {
        &self.namespace
    }

    /// Ends the process before the value is dropped, and calls `then` when its id is no process's. The namespace stays.
    pub fn end(&self, then: impl FnOnce() + Send + 'static) {
        self.held.end(then);
    }
}

/// A pid namespace with its first process. Dropping the value ends all processes in it.
#[derive(Debug)]
pub struct PidHolder {
    _held: Held,
    namespace: File,
}

impl PidHolder {
    /// Starts one; blocks for it. `runtime` reaps it.
    ///
    /// # Errors
    /// An error of the kernel, or of the process.
    pub fn start(runtime: tokio::runtime::Handle) -> io::Result<PidHolder> {
        let make = || {
            #[allow(unsafe_code, reason = "unshare(2) of a namespace")]
            // SAFETY: the table of descriptors stays shared. The call concerns the children of this thread, which starts
            // one child and ends.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWPID) }?;
            let held = Held::start(PIDS_SUBCOMMAND, runtime)?;
            let namespace = File::open(format!("/proc/{}/ns/pid", held.pid()))?;
            Ok(PidHolder { _held: held, namespace })
        };
        let thread = std::thread::Builder::new().name("namespaces".into()).spawn(make)?;
        thread.join().map_err(|_| io::Error::other("the thread that makes namespaces panicked"))?
    }

    /// The namespace.
    pub fn namespace(&self) -> &File {
        &self.namespace
    }
}

/// The process of a [`Holder`].
pub fn child_main() -> ExitCode {
    serve(|| {
        #[allow(unsafe_code, reason = "unshare(2) of a namespace")]
        // SAFETY: a network namespace has nothing to do with the table of descriptors.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
        bring_loopback_up()
    })
}

/// The process of a [`PidHolder`].
pub fn pids_child_main() -> ExitCode {
    serve(|| {
        // The kernel then reaps the orphans that become its children.
        ignore(libc::SIGCHLD);
        shut_in()
    })
}

/// Prepares the namespace, reports that, and waits for the end of the daemon.
fn serve(make: impl FnOnce() -> io::Result<()>) -> ExitCode {
    #[allow(unsafe_code, reason = "the descriptor this process was started with")]
    // SAFETY: nothing else in this process, which has only begun, knows descriptor 3.
    let mut socket = UnixStream::from(unsafe { OwnedFd::from_raw_fd(SOCKET) });
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // A service manager signals all processes of a unit. This process ignores the signal and ends with its daemon,
        // which may have tasks to end first.
        ignore(signal);
    }
    let made = make();
    let line = made.as_ref().err().map(|e| e.to_string().replace('\n', " ")).unwrap_or_default();
    if socket.write_all(format!("{line}\n").as_bytes()).is_err() || made.is_err() {
        return ExitCode::FAILURE;
    }
    // The daemon writes no byte: the read returns at its end.
    let _ = io::copy(&mut socket, &mut io::sink());
    ExitCode::SUCCESS
}

fn ignore(signal: libc::c_int) {
    #[allow(unsafe_code, reason = "signal(2)")]
    // SAFETY: SIG_IGN is a valid disposition.
    unsafe {
        libc::signal(signal, libc::SIG_IGN)
    };
}

/// Removes from this process all that containers, which see it as `/proc/1`, could use: files, rights, readable memory.
fn shut_in() -> io::Result<()> {
    #[allow(unsafe_code, reason = "unshare(2) of a namespace")]
    // SAFETY: the table of descriptors stays as it is; there is one thread.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    // A directory that every Linux has.
    let empty = "/proc";
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    mount("tmpfs", empty, "tmpfs", flags, Some(c"size=4k,mode=0555"))?;
    chdir(empty)?;
    chroot(".")?;
    rustix::process::umask(Mode::from_raw_mode(0o777));
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    // With it go the capabilities.
    set_thread_res_uid(uid, uid, uid)?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Brings the loopback interface up, as runc does in a new namespace.
pub(crate) fn bring_loopback_up() -> io::Result<()> {
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
