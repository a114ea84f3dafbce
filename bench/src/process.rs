//! Child processes that do not outlive this program, however it ends.
//!
//! Each child is executed through this program's hidden `exec-tied` command, which asks the kernel
//! to kill the child with its parent and then becomes the program wanted; and dropping a [`Tied`]
//! ends its process: SIGTERM, and SIGKILL when a deadline has passed.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal};

/// How long a child may take to end after SIGTERM.
const TERM_DEADLINE: Duration = Duration::from_secs(10);

/// A running child process.
pub struct Tied {
    name: &'static str,
    child: Child,
    pid: Pid,
    ended: OwnedFd,
}

/// A command that, spawned with [`Tied::spawn`], becomes `program`. The child has a process group
/// of its own: a Ctrl-C reaches this program alone, which then ends its children in order.
///
/// # Errors
/// If this program's own path cannot be found.
pub fn tied_command(program: &OsStr) -> Result<Command> {
    let own = std::env::current_exe().context("cannot find this program's own path")?;
    let mut command = Command::new(own);
    let parent = std::process::id().to_string();
    command.args([OsStr::new("exec-tied"), OsStr::new(&parent), OsStr::new("--"), program]);
    command.process_group(0);
    // As a service manager starts it. wasmtime makes an error at the end of every component, and with one of these set
    // each takes a backtrace: a tenth of the time of a request.
    command.env_remove("RUST_BACKTRACE").env_remove("RUST_LIB_BACKTRACE");
    Ok(command)
}

/// The `exec-tied` command: ties this process to `parent` and becomes the program. It returns only with an error.
pub fn exec_tied(parent: u32, program: &OsStr, arguments: &[OsString]) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .context("cannot tie this process to its parent")?;
    // A parent that ended before the call above will send nothing.
    if std::os::unix::process::parent_id() != parent {
        bail!("process {parent} is not this one's parent any more");
    }
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot execute {}", program.display()))
}

impl Tied {
    /// Spawns a command of [`tied_command`]. The kernel ties the child to the calling *thread*, so
    /// this is called on the main thread only.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn spawn(name: &'static str, mut command: Command) -> Result<Tied> {
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let pid = Pid::from_child(&child);
        let ended =
            rustix::process::pidfd_open(pid, PidfdFlags::empty()).with_context(|| format!("cannot watch {name}"))?;
        Ok(Tied { name, child, pid, ended })
    }

    /// The standard library's view of the child, for its pipes.
    pub fn child_mut(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How the process ended, if it has.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Ends the process and waits for it. True if SIGTERM was enough.
    pub fn end(&mut self) -> bool {
        if self.status().is_some() {
            return true;
        }
        // Not waited for yet, so the pid is still this child's.
        let _ = rustix::process::kill_process(self.pid, Signal::TERM);
        let gentle = self.wait_ended(TERM_DEADLINE);
        if !gentle {
            eprintln!(
                "hearth-bench: {} did not end within {} s of SIGTERM; killing it",
                self.name,
                TERM_DEADLINE.as_secs()
            );
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
        gentle
    }

    fn wait_ended(&self, deadline: Duration) -> bool {
        let timeout = Timespec { tv_sec: deadline.as_secs() as i64, tv_nsec: 0 };
        loop {
            let mut fds = [PollFd::new(&self.ended, PollFlags::IN)];
            match rustix::event::poll(&mut fds, Some(&timeout)) {
                Ok(ready) => return ready > 0,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }
}

impl Drop for Tied {
    fn drop(&mut self) {
        self.end();
    }
}
