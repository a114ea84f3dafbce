//! Linux: namespaces, mounts, identities of threads, FIFOs, terminals, signals and processes. This is the only crate of
//! the daemon that makes their system calls (`daemon/clippy.toml` refuses them elsewhere). A value undoes its change
//! when it is dropped: a mount is unmounted, an identity restored, a process ended.
//!
//! Sockets:
//!
//! * [`accept`]: accept loops: the limit of connections, and accept(2)'s errors such as too many open files.
//! * [`activation`]: the control socket that systemd passes (`LISTEN_FDS`).
//! * [`readiness`]: waiting for many sockets and a wake-up at once (epoll(7)), and reading from one.
//! * [`sockets`]: binding a Unix socket that only root can open.
//! * [`packet_filter`]: a listening socket that refuses new connections while it completes the pending ones.
//!
//! Identities and namespaces:
//!
//! * [`identity`]: a worker thread assumes a guest's user and network, and restores the daemon's.
//! * [`credentials`]: user, groups, umask and capabilities of one thread; which capabilities a guest keeps.
//! * [`netns`]: network namespaces: opening one, entering it, comparing two.
//! * [`namespaces`]: IPC and UTS namespaces of a pod, kept by a descriptor.
//! * [`holder`]: processes that only hold a network or pid namespace.
//! * [`cgroup`]: the memory limit of a pod's control group; paths of systemd's control groups.
//! * [`memory_group`]: the use and the limit of the control group of this process's memory.
//! * [`rooted`]: a thread with a guest's root directory, user and network.
//! * [`sysctl`]: a pod's `linux.sysctl` settings, written in its namespaces.
//!
//! Files and mounts:
//!
//! * [`mount`]: the daemon's mount namespace; overlay, bind and tmpfs mounts of a guest's root.
//!   * `mount/options.rs`: mount(8)'s option words, as containerd and OCI specs use them.
//! * [`in_root`]: paths inside an image or volume, resolved so that no link leads out; mount points made there.
//! * [`memfd`]: files in memory, for wasm and artifacts.
//! * [`fifo`]: FIFOs and pipes of a task's stdio, opened without waiting for the other side.
//! * [`pty`]: pseudo-terminals for `terminal: true`.
//!
//! Processes, threads and time:
//!
//! * [`spawn`]: starting log programs and holders with posix_spawn(3); their exit status or signal.
//! * [`fork`]: copies of a process with one thread, and their ends.
//! * [`walls`]: the confinement of a pod's cell: mounts, network, capabilities, system calls.
//! * [`cell_group`]: the control group of a pod's cell: joined, limited, read, removed.
//! * [`confine`]: the sandbox of the compile process: seccomp filter, limits, no rights.
//! * [`process`]: a thread that sleeps in a system call, its interruption, its share of the CPU time.
//! * [`alloc`]: an exit status of the process's choice when an allocation fails.
//! * [`signals`]: signals as a readable descriptor (signalfd(2)).
//! * [`coarse_timer`]: a timer whose setting wakes no thread of a runtime.
//! * [`clock`]: whether the node's clock is synchronised (adjtimex(2)).
#![deny(unsafe_code)]

pub mod accept;
pub mod activation;
pub mod alloc;
pub mod cell_group;
pub mod cgroup;
pub mod clock;
pub mod coarse_timer;
pub mod confine;
pub mod credentials;
pub mod fifo;
pub mod fork;
pub mod holder;
pub mod identity;
pub mod in_root;
pub mod memfd;
pub mod memory_group;
pub mod mount;
pub mod namespaces;
pub mod netns;
pub mod packet_filter;
pub mod process;
pub mod pty;
pub mod readiness;
pub mod rooted;
pub mod signals;
pub mod sockets;
pub mod spawn;
pub mod sysctl;
pub mod walls;

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_names_every_file() {
        hearth_testing::page_names_every_file(env!("CARGO_MANIFEST_DIR"));
    }
}
