//! The sandbox of a process that reads untrusted bytes: the compile process.
//!
//! The process keeps its three standard streams, memory, threads and the clock, each within limits. It cannot open a
//! file, make a socket, start a process, signal another process or map executable memory.
//!
//! The main barrier is a seccomp filter that allows a list of system calls and answers `ENOSYS` to all others. Landlock
//! or namespaces would add nothing to it (and a network namespace takes half a millisecond to make). The second barrier
//! is the process's user: an unprivileged one without capabilities, should the filter have a hole.
//!
//! There is no limit on processes (`RLIMIT_NPROC`): it counts all processes of the user on the node, so processes of
//! other programs could prevent this one from starting threads. The filter forbids new processes anyway.

use std::collections::BTreeMap;
use std::io;

use rustix::process::{DumpableBehavior, Pid, Resource, Rlimit, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// The limits of the process.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Address space, in bytes.
    pub memory_bytes: u64,
    /// CPU time of all threads, in seconds; after that the kernel kills the process.
    pub cpu_seconds: u64,
    /// The largest file it can write, in bytes.
    pub file_bytes: u64,
    /// User and group it becomes.
    pub uid: u32,
    /// The parent process. The kernel kills this process when the parent ends.
    pub parent: i32,
}

/// The nice value of the process.
const NICE: i32 = 10;

/// Descriptors 0, 1 and 2.
const DESCRIPTORS: u64 = 3;

/// Confines this process for good. Must come before its second thread: credentials and the filter belong to a thread,
/// and the threads that it starts inherit them.
///
/// # Errors
/// The step that failed and the reason; the process must then end.
pub fn confine(bounds: &Bounds) -> Result<(), String> {
    let step = |what: &'static str| move |e: rustix::io::Errno| format!("cannot {what}: {}", io::Error::from(e));
    close_all_but_streams().map_err(|e| format!("cannot close descriptors: {e}"))?;
    // If memory runs out, the kernel kills this process and not the daemon with all its guests. If the write fails, the
    // kernel chooses by itself.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    rustix::process::nice(NICE).map_err(step("lower its priority"))?;
    for (resource, limit) in [
        (Resource::As, bounds.memory_bytes),
        (Resource::Fsize, bounds.file_bytes),
        (Resource::Nofile, DESCRIPTORS),
        (Resource::Core, 0),
    ] {
        limit_to(resource, limit, limit).map_err(step("set a limit"))?;
    }
    // SIGXCPU first, which tells the reason; then SIGKILL.
    limit_to(Resource::Cpu, bounds.cpu_seconds, bounds.cpu_seconds.saturating_add(1))
        .map_err(step("limit its CPU time"))?;
    drop_privileges(bounds.uid)?;
    // Another process of the same user must not trace this one and so write code that the daemon runs. This also
    // prevents a core dump.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(step("forbid tracing"))?;
    // After the change of user, which would clear it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(step("die with the daemon"))?;
    if rustix::process::getppid().map(Pid::as_raw_nonzero).map(i32::from) != Some(bounds.parent) {
        return Err("the daemon is gone".into());
    }
    let filter = filter().map_err(|e| format!("cannot make a system call filter: {e}"))?;
    seccompiler::apply_filter(&filter).map_err(|e| format!("cannot set a system call filter: {e}"))
}

#[allow(unsafe_code, reason = "close_range(2) has no safe form; std's own descriptors close themselves")]
fn close_all_but_streams() -> io::Result<()> {
    // SAFETY: at the start of a process of one thread, no value owns a descriptor beyond the streams: all others are
    // inherited.
    match unsafe { libc::close_range(DESCRIPTORS as u32, u32::MAX, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn limit_to(resource: Resource, soft: u64, hard: u64) -> rustix::io::Result<()> {
    rustix::process::setrlimit(resource, Rlimit { current: Some(soft), maximum: Some(hard) })
}

/// Becomes user and group `uid`, without other groups, irrevocably.
fn drop_privileges(uid: u32) -> Result<(), String> {
    let step = |what: &'static str| move |e: rustix::io::Errno| format!("cannot {what}: {}", io::Error::from(e));
    for bit in 0..u64::BITS {
        match rustix::thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)) {
            // Beyond the last the kernel knows.
            Err(rustix::io::Errno::INVAL) => break,
            result => result.map_err(step("drop capabilities"))?,
        }
    }
    let (user, group) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(uid));
    rustix::thread::set_thread_groups(&[]).map_err(step("drop groups"))?;
    rustix::thread::set_thread_res_gid(group, group, group).map_err(step("change its group"))?;
    rustix::thread::set_thread_res_uid(user, user, user).map_err(step("change its user"))?;
    let nothing = CapabilitySet::empty();
    rustix::thread::set_capabilities(
        None,
        CapabilitySets { effective: nothing, permitted: nothing, inheritable: nothing },
    )
    .map_err(step("drop capabilities"))?;
    rustix::thread::set_no_new_privs(true).map_err(step("forbid new privileges"))
}

/// The system calls of a running compiler: it reads and writes its streams, and needs memory, threads and its exit.
fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let free = [
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_fstat,
        libc::SYS_lseek,
        libc::SYS_close,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_brk,
        libc::SYS_futex,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_sched_yield,
        libc::SYS_sched_getaffinity,
        libc::SYS_sigaltstack,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_restart_syscall,
        libc::SYS_getrandom,
        libc::SYS_gettid,
        libc::SYS_getpid,
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_nanosleep,
    ];
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = free.map(|call| (call, Vec::new())).into();
    let mut only_if = |call: i64, condition: SeccompCondition| -> Result<(), seccompiler::BackendError> {
        rules.insert(call, vec![SeccompRule::new(vec![condition])?]);
        Ok(())
    };
    let condition =
        |argument, operator, value: u64| SeccompCondition::new(argument, SeccompCmpArgLen::Qword, operator, value);
    // Threads: clone3, whose flags no filter can see, is answered ENOSYS, and glibc then uses clone.
    let thread = libc::CLONE_THREAD as u64;
    let namespaces = (libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET) as u64;
    only_if(libc::SYS_clone, condition(0, SeccompCmpOp::MaskedEq(thread | namespaces), thread)?)?;
    // Memory, but none that could be run.
    let executable = libc::PROT_EXEC as u64;
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        only_if(call, condition(2, SeccompCmpOp::MaskedEq(executable), 0)?)?;
    }
    // abort(3) signals its own thread.
    let own = u64::from(std::process::id());
    only_if(libc::SYS_tgkill, condition(0, SeccompCmpOp::Eq, own)?)?;
    only_if(libc::SYS_prctl, condition(0, SeccompCmpOp::Eq, libc::PR_SET_NAME as u64)?)?;
    let architecture = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::Errno(libc::ENOSYS as u32), SeccompAction::Allow, architecture)?.try_into()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::process::{Command, Stdio};

    use super::*;

    /// The first argument that makes a test's own program run [`probe`].
    const PROBE: &str = "probe-confinement";

    const UID: u32 = 54_321;

    #[used]
    #[unsafe(link_section = ".init_array")]
    #[allow(unsafe_code, reason = "the linker section of functions that run before main; used by this test only")]
    static BECOME_PROBE: extern "C" fn() = become_probe;

    /// glibc hands the arguments to std in an earlier entry of the same section.
    extern "C" fn become_probe() {
        if std::env::args().nth(1).is_some_and(|word| word == PROBE) {
            probe();
        }
    }

    /// The other side of the test: confines itself, tries acts that must fail, and waits for the end
    /// of its input so that it can be looked at.
    #[allow(unsafe_code, reason = "system calls as such, to see them fail")]
    fn probe() -> ! {
        let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
        let bounds = Bounds { memory_bytes: 1 << 30, cpu_seconds: 20, file_bytes: 1 << 20, uid: UID, parent };
        let other = Bounds { parent: parent + 1, ..bounds };
        let mut report = Vec::new();
        if std::env::args().nth(2).is_some() {
            println!("{}", confine(&other).unwrap_err());
            std::process::exit(0);
        }
        confine(&bounds).unwrap();
        // SAFETY: each call fails; none has a pointer to anything but constants.
        let results = unsafe {
            let page =
                libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
            let mapped =
                libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
            [
                ("openat", libc::syscall(libc::SYS_openat, libc::AT_FDCWD, c"/etc/hostname".as_ptr(), 0)),
                ("socket", libc::syscall(libc::SYS_socket, libc::AF_UNIX, libc::SOCK_STREAM, 0)),
                ("fork", libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0)),
                ("execve", libc::syscall(libc::SYS_execve, c"/bin/true".as_ptr(), 0, 0)),
                ("kill", libc::syscall(libc::SYS_kill, parent, 0)),
                ("tgkill", libc::syscall(libc::SYS_tgkill, parent, parent, 0)),
                ("ptrace", libc::syscall(libc::SYS_ptrace, libc::PTRACE_ATTACH, parent, 0, 0)),
                ("setuid", libc::syscall(libc::SYS_setuid, 0)),
                ("unshare", libc::syscall(libc::SYS_unshare, libc::CLONE_NEWUSER)),
                ("process_vm_writev", libc::syscall(libc::SYS_process_vm_writev, parent, 0, 0, 0, 0, 0)),
                ("mmap code", if mapped == libc::MAP_FAILED { -1 } else { 0 }),
                ("mprotect code", libc::syscall(libc::SYS_mprotect, page, 4096, libc::PROT_EXEC)),
            ]
        };
        for (name, result) in results {
            report.push(format!("{name} {}", if result == -1 { "refused" } else { "worked" }));
        }
        let thread = std::thread::spawn(|| "thread worked").join().unwrap();
        report.push(thread.to_string());
        println!("{}", report.join("\n"));
        println!("ready");
        std::io::stdout().flush().unwrap();
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0)
    }

    fn probe_command() -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.arg(PROBE).stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    }

    /// The value of a line like `Uid:\t0`.
    fn field<'a>(text: &'a str, name: &str) -> &'a str {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .unwrap_or_else(|| panic!("no {name} in {text}"))
            .trim()
    }

    #[test]
    fn a_confined_process_has_its_streams_and_nothing_else() {
        // Not closed when the process starts, as std's own would be.
        let inherited = rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), 100).unwrap();
        rustix::io::fcntl_setfd(&inherited, rustix::io::FdFlags::empty()).unwrap();
        let mut process = probe_command().spawn().unwrap();
        drop(inherited);
        let report: Vec<_> = BufReader::new(process.stdout.take().unwrap())
            .lines()
            .map(Result::unwrap)
            .take_while(|line| line != "ready")
            .collect();
        let worked: Vec<_> = report.iter().filter(|line| line.ends_with("worked")).collect();
        assert_eq!(worked, ["thread worked"], "{report:?}");
        assert_eq!(report.len(), 13);

        let of = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", process.id())).unwrap();
        let status = of("status");
        let ids = format!("{UID}\t{UID}\t{UID}\t{UID}");
        assert_eq!((field(&status, "Uid"), field(&status, "Gid"), field(&status, "Groups")), (&*ids, &*ids, ""));
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(field(&status, set), "0000000000000000", "{set}");
        }
        assert_eq!((field(&status, "NoNewPrivs"), field(&status, "Seccomp")), ("1", "2"));
        assert_eq!(of("oom_score_adj").trim(), "1000");
        let nice = of("stat").rsplit_once(") ").unwrap().1.split(' ').nth(16).unwrap().parse::<i32>().unwrap();
        assert!(nice >= NICE, "{nice}");
        let limits = of("limits");
        for (name, soft, hard) in [
            ("Max address space", "1073741824", "1073741824"),
            ("Max file size", "1048576", "1048576"),
            ("Max cpu time", "20", "21"),
            ("Max open files", "3", "3"),
            ("Max core file size", "0", "0"),
        ] {
            let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
            let values: Vec<_> = line[name.len()..].split_whitespace().take(2).collect();
            assert_eq!(values, [soft, hard], "{name}");
        }
        let mut descriptors: Vec<_> = fs::read_dir(format!("/proc/{}/fd", process.id()))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        descriptors.sort();
        assert_eq!(descriptors, ["0", "1", "2"]);
        drop(process.stdin.take());
        assert!(process.wait().unwrap().success());
    }

    #[test]
    fn a_process_whose_parent_is_gone_does_not_start() {
        let output = probe_command().arg("orphan").output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "the daemon is gone");
    }

    #[test]
    fn it_dies_with_the_thread_that_started_it() {
        use std::os::unix::process::ExitStatusExt;
        let start = || {
            let mut process = probe_command().spawn().unwrap();
            let mut lines = BufReader::new(process.stdout.take().unwrap()).lines().map(Result::unwrap);
            assert!(lines.any(|line| line == "ready"));
            process
        };
        // It waits for input. The test holds the writer open, so that only the signal can end it.
        let mut process = std::thread::spawn(start).join().unwrap();
        let input = process.stdin.take();
        assert_eq!(process.wait().unwrap().signal(), Some(libc::SIGKILL));
        drop(input);
    }
}
