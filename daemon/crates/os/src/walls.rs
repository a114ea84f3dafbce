//! The confinement of a cell. Before its second thread, it gives up the node's mounts, the node's network, most
//! capabilities, and the system calls that no cell needs.
//!
//! A cell mounts the roots of its containers itself, so it keeps `CAP_SYS_ADMIN` and its view of the node's files. The walls
//! here keep its memory, its signals and its faults to itself; they do not hold a process that an attacker controls.

use std::collections::BTreeMap;
use std::io;

use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use crate::credentials::{OF_GUESTS, TO_CHANGE};
use crate::holder::bring_loopback_up;
use crate::mount;
use crate::netns::NetNs;
use hearth_base::bundle::NetworkNamespace;

/// Puts the walls of a cell around this process, for good. Must come before its second thread, which inherits them. A new
/// network has a loopback interface.
///
/// # Errors
/// The step that failed and the reason; the process must then end.
pub fn raise(network: &NetworkNamespace) -> Result<(), String> {
    let step = |what: &'static str| move |e: io::Error| format!("cannot {what}: {e}");
    mount::unshare_mounts().map_err(|e| step("make a mount namespace")(e.into()))?;
    match network {
        NetworkNamespace::Host => {}
        NetworkNamespace::Path(path) => {
            let namespace = NetNs::open(path).map_err(|e| e.to_string())?;
            namespace.enter().map_err(step("enter the pod's network"))?;
        }
        NetworkNamespace::New => make_network().map_err(step("make a network namespace"))?,
    }
    // A shortage of memory on the node ends a pod before the daemon.
    std::fs::write("/proc/self/oom_score_adj", "0").map_err(step("set its score for a shortage of memory"))?;
    drop_capabilities().map_err(step("drop capabilities"))?;
    rustix::thread::set_no_new_privs(true).map_err(|e| step("forbid new privileges")(e.into()))?;
    for filter in [filter(), without_clone3()] {
        let filter = filter.map_err(|e| format!("cannot make a system call filter: {e}"))?;
        seccompiler::apply_filter(&filter).map_err(|e| format!("cannot set a system call filter: {e}"))?;
    }
    Ok(())
}

#[allow(unsafe_code, reason = "unshare(2) of a namespace")]
fn make_network() -> io::Result<()> {
    // SAFETY: a network namespace has nothing to do with the table of descriptors; there is one thread.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }?;
    bring_loopback_up()
}

fn drop_capabilities() -> io::Result<()> {
    let has = crate::credentials::capabilities()?;
    let kept = has.permitted & (OF_GUESTS | TO_CHANGE);
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if kept.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // Beyond the last the kernel knows.
            Err(rustix::io::Errno::INVAL) => break,
            result => result?,
        }
    }
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)?;
    Ok(())
}

/// Answers `EPERM` to calls that no cell needs: other programs, other processes, the kernel itself, namespaces,
/// devices.
fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let refused = [
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_kill,
        libc::SYS_tkill,
        libc::SYS_rt_sigqueueinfo,
        libc::SYS_rt_tgsigqueueinfo,
        libc::SYS_pidfd_send_signal,
        libc::SYS_pidfd_getfd,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_process_madvise,
        libc::SYS_kcmp,
        libc::SYS_setns,
        libc::SYS_chroot,
        libc::SYS_pivot_root,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_kexec_load,
        libc::SYS_kexec_file_load,
        libc::SYS_reboot,
        libc::SYS_swapon,
        libc::SYS_swapoff,
        libc::SYS_acct,
        libc::SYS_quotactl,
        libc::SYS_syslog,
        libc::SYS_settimeofday,
        libc::SYS_clock_settime,
        libc::SYS_adjtimex,
        libc::SYS_clock_adjtime,
        libc::SYS_sethostname,
        libc::SYS_setdomainname,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_keyctl,
        libc::SYS_open_by_handle_at,
        libc::SYS_mknodat,
    ];
    #[cfg(target_arch = "x86_64")]
    let older =
        [libc::SYS_fork, libc::SYS_vfork, libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_modify_ldt, libc::SYS_mknod];
    #[cfg(not(target_arch = "x86_64"))]
    let older = [];
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        refused.into_iter().chain(older).map(|call| (call, Vec::new())).collect();
    let mut refused_if = |call: i64, condition: SeccompCondition| -> Result<(), seccompiler::BackendError> {
        rules.insert(call, vec![SeccompRule::new(vec![condition])?]);
        Ok(())
    };
    let condition =
        |argument, operator, value: u64| SeccompCondition::new(argument, SeccompCmpArgLen::Qword, operator, value);
    // Threads only; see `without_clone3`.
    refused_if(libc::SYS_clone, condition(0, SeccompCmpOp::MaskedEq(libc::CLONE_THREAD as u64), 0)?)?;
    // A thread's own umask and working directory: no namespace.
    refused_if(libc::SYS_unshare, condition(0, SeccompCmpOp::Ne, libc::CLONE_FS as u64)?)?;
    // A signal to a thread of this process.
    refused_if(libc::SYS_tgkill, condition(0, SeccompCmpOp::Ne, u64::from(std::process::id()))?)?;
    let architecture = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(libc::EPERM as u32), architecture)?.try_into()
}

/// Answers `ENOSYS` to clone3(2), whose flags no filter can see: the C library then uses clone(2).
fn without_clone3() -> Result<BpfProgram, seccompiler::BackendError> {
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let architecture = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32), architecture)?.try_into()
}
