//! Starting another program from a process with many threads and a large address space.
//!
//! posix_spawn(3) and nothing else: it never copies the address space, and its child runs no code of
//! ours between clone and exec. The standard library does the same, but has no way to hand a child
//! descriptors at numbers of its choice other than code after a fork; a trampoline that execs this
//! binary again first would cost more than the program itself and a hidden entry point. posix_spawn's
//! file actions do exactly this.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::{SigSet, Signal as NixSignal};
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, Result};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};

/// A child that has not been reaped. [`Child::reap`] it: dropped, it stays a zombie.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    pidfd: Arc<OwnedFd>,
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It exited.
    Status(i32),
    /// A signal ended it.
    Signal(i32),
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ended::Status(status) => write!(f, "exit status {status}"),
            Ended::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// Runs `program` with exactly these arguments (the name first) and this environment, standard streams
/// on `/dev/null`, `inherited` as descriptors 3, 4, … and no other that is marked close-on-exec, as all
/// of this process are; in a process group of its own.
///
/// # Errors
/// As execve(2), also for what happens in the child before it.
pub fn spawn(program: &CStr, args: &[CString], env: &[CString], inherited: &[BorrowedFd]) -> Result<Child> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let all: Vec<BorrowedFd> = [null.as_fd(); 3].into_iter().chain(inherited.iter().copied()).collect();
    let end = RawFd::try_from(all.len()).map_err(|_| Errno::INVAL)?;
    // Moved above the numbers they are to have, so that none is overwritten before it is copied. Like
    // every descriptor of this process they close at exec; the copies that dup2 makes do not.
    let sources = all.iter().map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, end)).collect::<Result<Vec<OwnedFd>>>()?;
    let pid = start(program, args, env, (0..end).zip(&sources)).map_err(|e| Errno::from_raw_os_error(e as i32))?;
    let pid = Pid::from_raw(pid.as_raw()).ok_or(Errno::SRCH)?;
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Child { pid, pidfd: Arc::new(pidfd) }),
        Err(error) => {
            // Nobody else waits for it, so the number is still its own.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
            Err(error)
        }
    }
}

fn start<'a>(
    program: &CStr,
    args: &[CString],
    env: &[CString],
    descriptors: impl Iterator<Item = (RawFd, &'a OwnedFd)>,
) -> nix::Result<nix::unistd::Pid> {
    let mut actions = PosixSpawnFileActions::init()?;
    for (target, source) in descriptors {
        actions.add_dup2(source.as_raw_fd(), target)?;
    }
    let mut attributes = PosixSpawnAttr::init()?;
    // This process ignores SIGPIPE, which a child would inherit.
    let mut defaults = SigSet::empty();
    defaults.add(NixSignal::SIGPIPE);
    attributes.set_sigdefault(&defaults)?;
    attributes.set_sigmask(&SigSet::empty())?;
    // A Ctrl-C at a terminal that hearthd was started from is not for it.
    attributes.set_pgroup(nix::unistd::Pid::from_raw(0))?;
    attributes.set_flags(
        PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF
            | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK
            | PosixSpawnFlags::POSIX_SPAWN_SETPGROUP,
    )?;
    posix_spawn(program, &actions, &attributes, args, env)
}

impl Child {
    /// Its number, while it has not been reaped.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// A descriptor that is readable once it has ended.
    pub fn ended(&self) -> Arc<OwnedFd> {
        self.pidfd.clone()
    }

    /// Sends a signal; to a child that has ended, none.
    pub fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&*self.pidfd, signal);
    }

    /// Waits for the end, however long it takes, and reaps it.
    pub fn wait(&self) {
        let _ = rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED));
    }

    /// Takes the status of a child that has ended; `None` if it is running.
    ///
    /// # Errors
    /// As waitid(2).
    pub fn reap(&self) -> Result<Option<Ended>> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(self.pidfd.as_fd()), options))?;
        Ok(status.map(|status| match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Ended::Status(code),
            (None, signal) => Ended::Signal(signal.unwrap_or_default()),
        }))
    }
}

/// Whether the process is exiting or has exited, be it reaped or not. What it does on its way out, such
/// as closing its descriptors, comes after the moment from which this says so.
pub fn is_exiting(pid: Pid) -> bool {
    // `PF_EXITING` of include/linux/sched.h, in the ninth field of proc_pid_stat(5).
    const EXITING: u64 = 0x4;
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    let flags = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(6)?.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & EXITING != 0)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    fn c(text: &str) -> CString {
        CString::new(text).unwrap()
    }

    fn wait(child: &Child) -> Ended {
        poll(&mut [PollFd::new(&*child.pidfd, PollFlags::IN)], None).unwrap();
        child.reap().unwrap().unwrap()
    }

    fn shell(script: &str, inherited: &[BorrowedFd]) -> Result<Child> {
        let args = [c("sh"), c("-c"), c(script), c("sh"), c("first arg"), c("")];
        spawn(c"/bin/sh", &args, &[c("ONLY=this")], inherited)
    }

    #[test]
    fn a_child_gets_its_descriptors_and_nothing_else() {
        let (mut from_child, theirs) = std::io::pipe().unwrap();
        let (other, _hold) = std::io::pipe().unwrap();
        let ours = rustix::io::fcntl_dupfd_cloexec(&other, 500).unwrap();
        let script = r#"exec >&4; echo "$1|$2|$#|$ONLY|$HOME"; for n in 0 1 2; do readlink /proc/$$/fd/$n; done
                        [ -e /proc/$$/fd/OURS ] || echo closed
                        while read -r line; do case $line in SigIgn*) echo $line;; esac; done </proc/$$/status"#
            .replace("OURS", &ours.as_raw_fd().to_string());
        let child = shell(&script, &[other.as_fd(), theirs.as_fd()]).unwrap();
        drop(theirs);
        let mut text = String::new();
        from_child.read_to_string(&mut text).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            (lines[0], lines[1], lines[3], lines[4]),
            ("first arg||2|this|", "/dev/null", "/dev/null", "closed")
        );
        let ignored = u64::from_str_radix(lines[5].trim_start_matches("SigIgn: "), 16).unwrap();
        assert_eq!(ignored & (1 << (Signal::PIPE.as_raw() - 1)), 0, "SIGPIPE is ignored");
        assert_eq!(wait(&child), Ended::Status(0));
    }

    #[test]
    fn how_it_ended_is_told() {
        assert_eq!(wait(&shell("exit 7", &[]).unwrap()), Ended::Status(7));
        let (read, _hold) = std::io::pipe().unwrap();
        let child = shell("read x <&3", &[read.as_fd()]).unwrap();
        assert_eq!((child.reap().unwrap(), is_exiting(child.pid())), (None, false));
        child.signal(Signal::TERM);
        poll(&mut [PollFd::new(&*child.ended(), PollFlags::IN)], None).unwrap();
        assert!(is_exiting(child.pid()), "a zombie");
        assert_eq!(wait(&child), Ended::Signal(15));
        assert!(is_exiting(child.pid()), "nothing");
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error_of_the_start() {
        let error = spawn(c"/absent", &[c("x")], &[], &[]).unwrap_err();
        assert_eq!(error, Errno::NOENT);
        assert_eq!(spawn(c"/etc/passwd", &[c("x")], &[], &[]).unwrap_err(), Errno::ACCESS);
    }
}
