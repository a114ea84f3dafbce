//! Starting another program from a process with many threads and a large address space: `binary://` log programs,
//! holder processes. And the end of such a program.
//!
//! [`spawn`] is posix_spawn(3): it never copies the address space, and its child runs no code of this program between
//! clone and exec. The standard library uses it too, but can give a child descriptors at chosen numbers only by code
//! after a fork. A trampoline that executes this binary again first would cost more than the program itself, and be a
//! hidden entry point. The file actions of posix_spawn do exactly this.

use std::ffi::{CStr, CString, c_char, c_int};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, Result};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};

use hearth_base::proc_stat::ProcStat;

/// A child that has not been reaped. Call [`Child::reap`]: a child that is only dropped stays a zombie.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    pidfd: Arc<OwnedFd>,
}

/// The end of a child.
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

/// Runs `program` with exactly these arguments (the name first) and this environment, in a process group of its own.
/// Its standard streams are `/dev/null`, `inherited` become descriptors 3, 4, …; it gets no other descriptor of this
/// process, which marks all of them close-on-exec.
///
/// # Errors
/// As execve(2), also for errors in the child before execve.
pub fn spawn(program: &CStr, args: &[CString], env: &[CString], inherited: &[BorrowedFd]) -> Result<Child> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let all: Vec<BorrowedFd> = [null.as_fd(); 3].into_iter().chain(inherited.iter().copied()).collect();
    let end = RawFd::try_from(all.len()).map_err(|_| Errno::INVAL)?;
    // Copies above the final numbers, so that no descriptor is overwritten before it is copied. Like every descriptor
    // of this process they are closed at exec; the copies that dup2 makes are not.
    let sources = all.iter().map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, end)).collect::<Result<Vec<OwnedFd>>>()?;
    let pid = posix_spawn(program, args, env, (0..end).zip(&sources))?;
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Child { pid, pidfd: Arc::new(pidfd) }),
        Err(error) => {
            // Only this function waits for the child, so the number still belongs to it.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
            Err(error)
        }
    }
}

/// The result of a function that returns an error number.
fn check(code: c_int) -> Result<()> {
    if code == 0 { Ok(()) } else { Err(Errno::from_raw_os_error(code)) }
}

/// `posix_spawn_file_actions_t`, destroyed when it is dropped. Boxed, so that it never moves after its initialisation.
struct FileActions(Box<MaybeUninit<libc::posix_spawn_file_actions_t>>);

#[allow(unsafe_code, reason = "rustix has no posix_spawn")]
impl FileActions {
    fn new() -> Result<FileActions> {
        let mut actions = Box::new(MaybeUninit::uninit());
        // SAFETY: the pointer leads to memory for the structure, which the call initialises.
        check(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        Ok(FileActions(actions))
    }

    /// Has the child copy its descriptor `source` to `target`.
    fn dup2(&mut self, source: RawFd, target: RawFd) -> Result<()> {
        // SAFETY: `new` has initialised the structure; a wrong number is an error of the child.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(self.0.as_mut_ptr(), source, target) })
    }
}

#[allow(unsafe_code, reason = "see new")]
impl Drop for FileActions {
    fn drop(&mut self) {
        // SAFETY: `new` has initialised the structure, and this is its only destruction.
        unsafe { libc::posix_spawn_file_actions_destroy(self.0.as_mut_ptr()) };
    }
}

/// `posix_spawnattr_t`, destroyed when it is dropped. Boxed, so that it never moves after its initialisation.
struct Attributes(Box<MaybeUninit<libc::posix_spawnattr_t>>);

#[allow(unsafe_code, reason = "rustix has no posix_spawn")]
impl Attributes {
    /// No signal blocked, SIGPIPE not ignored, a process group of its own.
    fn new() -> Result<Attributes> {
        const FLAGS: c_int = libc::POSIX_SPAWN_SETSIGDEF | libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETPGROUP;
        let mut attributes = Box::new(MaybeUninit::uninit());
        // SAFETY: the pointer leads to memory for the structure, which the call initialises.
        check(unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        let mut attributes = Attributes(attributes);
        let pointer = attributes.0.as_mut_ptr();
        let mut signals = MaybeUninit::uninit();
        // SAFETY: sigemptyset initialises the set; the structure is initialised; both live for the calls.
        unsafe {
            libc::sigemptyset(signals.as_mut_ptr());
            check(libc::posix_spawnattr_setsigmask(pointer, signals.as_ptr()))?;
            // This process ignores SIGPIPE, which a child would inherit.
            libc::sigaddset(signals.as_mut_ptr(), libc::SIGPIPE);
            check(libc::posix_spawnattr_setsigdefault(pointer, signals.as_ptr()))?;
            // A Ctrl-C at a terminal from which hearthd was started must not reach the child.
            check(libc::posix_spawnattr_setpgroup(pointer, 0))?;
            check(libc::posix_spawnattr_setflags(pointer, FLAGS as libc::c_short))?;
        }
        Ok(attributes)
    }
}

#[allow(unsafe_code, reason = "see new")]
impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: `new` has initialised the structure, and this is its only destruction.
        unsafe { libc::posix_spawnattr_destroy(self.0.as_mut_ptr()) };
    }
}

#[allow(unsafe_code, reason = "rustix has no posix_spawn")]
fn posix_spawn<'a>(
    program: &CStr,
    args: &[CString],
    env: &[CString],
    descriptors: impl Iterator<Item = (RawFd, &'a OwnedFd)>,
) -> Result<Pid> {
    let mut actions = FileActions::new()?;
    for (target, source) in descriptors {
        actions.dup2(source.as_raw_fd(), target)?;
    }
    let attributes = Attributes::new()?;
    let pointers = |texts: &[CString]| -> Vec<*mut c_char> {
        texts.iter().map(|text| text.as_ptr().cast_mut()).chain([ptr::null_mut()]).collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    let mut pid = 0;
    // SAFETY: program, the two structures, and the arrays, which a null pointer ends, live for the call; posix_spawn
    // writes to none of the texts.
    let refused = unsafe {
        libc::posix_spawn(
            &raw mut pid,
            program.as_ptr(),
            actions.0.as_ptr(),
            attributes.0.as_ptr(),
            args.as_ptr(),
            env.as_ptr(),
        )
    };
    check(refused)?;
    Pid::from_raw(pid).ok_or(Errno::SRCH)
}

impl Child {
    /// The process id, valid until the child is reaped.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// A descriptor that is readable once the child has ended.
    pub fn ended(&self) -> Arc<OwnedFd> {
        self.pidfd.clone()
    }

    /// Sends a signal. Does nothing to a child that has ended.
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

/// Whether the process is exiting or has exited, be it reaped or not. The kernel closes the process's descriptors, and
/// does the rest of its exit, after this is true.
pub fn is_exiting(pid: Pid) -> bool {
    /// `PF_EXITING` of include/linux/sched.h.
    const EXITING: u64 = 0x4;
    let Ok(stat) = ProcStat::of_process(pid.as_raw_nonzero().get()) else { return true };
    stat.field::<u64>(ProcStat::FLAGS).is_some_and(|flags| flags & EXITING != 0)
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
        let (mut from_child, childs_end) = std::io::pipe().unwrap();
        let (other, _hold) = std::io::pipe().unwrap();
        let parents_own = rustix::io::fcntl_dupfd_cloexec(&other, 500).unwrap();
        let script = r#"exec >&4; echo "$1|$2|$#|$ONLY|$HOME"; for n in 0 1 2; do readlink /proc/$$/fd/$n; done
                        [ -e /proc/$$/fd/OURS ] || echo closed
                        while read -r line; do case $line in SigIgn*) echo $line;; esac; done </proc/$$/status"#
            .replace("OURS", &parents_own.as_raw_fd().to_string());
        let child = shell(&script, &[other.as_fd(), childs_end.as_fd()]).unwrap();
        drop(childs_end);
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
    fn the_end_is_told() {
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
    fn an_absent_program_is_an_error_of_the_start() {
        let error = spawn(c"/absent", &[c("x")], &[], &[]).unwrap_err();
        assert_eq!(error, Errno::NOENT);
        assert_eq!(spawn(c"/etc/passwd", &[c("x")], &[], &[]).unwrap_err(), Errno::ACCESS);
    }
}
