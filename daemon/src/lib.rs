//! hearthd: one warm daemon per node that runs containerd's WebAssembly tasks.
//!
//! ```text
//!  containerd ──exec──▶ containerd-shim-hearth-v1 ──control socket──▶ server::control
//!      │                        │ prints the address                        │ makes
//!      │                        ▼                                           ▼
//!      └────────── Task API (ttrpc) ───── task socket of this ──────▶ server::task
//!                                         (generation, containerd,          │ Create, Start, Kill, …
//!      ▲                                   namespace)                       ▼
//!      └── events (ttrpc) ◀── events ◀──────────────────────────────── task::{create, process}
//!                                                                           │            │
//!                                             wasm::modules (which program) ┘            │ hands over
//!                                                  │ compiles in a process of its own    ▼
//!                                                  ▼                            wasm::scheduler
//!                                             wasm::engine (prepared) ────────▶ wasm::instance
//! ```
//!
//! On containerd 2.x a pod's sandbox can be made without any shim: containerd asks [`server::sandboxer`] for it by
//! gRPC, and is told the task socket in the answer.
//!
//! # What holds, everywhere
//!
//! * **One owner.** A process's state changes only in [`task::process`], by the pure machine of
//!   [`task::state`]; the guest's future is owned by the scheduler and dropped by it alone.
//! * **Guests and containerd's calls never share a thread.** Calls run on a small tokio runtime; guests, and the
//!   connections of an HTTP component's clients, on the scheduler's workers. Mounts, file reads and hashing of a
//!   first start run on tokio's blocking pool. Compiling runs in another process.
//! * **No lock is held across an await**, a mount, a poll of a guest or a system call on a guest's files.
//! * **Everything is bounded**, and the bound has a name in [`config`].
//! * **Creation undoes itself.** What Create has made so far is held by values whose drop takes it
//!   back, so that an error, a panic or a caller that hangs up leaves nothing.
//! * **A thread is the daemon unless a guest acts on it.** The scheduler puts a guest's user and network
//!   on the worker for its polls and its end, and takes them off before anything of the daemon runs there;
//!   every thread of a runtime begins as the daemon, whoever's poll started it ([`os::identity`]). An HTTP component's
//!   connections are served as its guests' user, who may do less: they read and write what is open.
//! * **An order containerd can rely on**: TaskCreate before Create is answered; TaskStart before the
//!   guest's first instruction; stdio closed, then TaskExit, then every Wait; the exits of a task's execs,
//!   then its init's; the root unmounted, then TaskDelete, then Delete is answered.
//! * **Native code is run only if our own compiler wrote it**, into a directory only root can write,
//!   and a keyed hash proves it. Bytes out of an image are only ever WebAssembly.
//!
//! # Generations
//!
//! A new daemon takes over the control socket while the old one serves its tasks until the last has ended:
//! [`generation`]. So a task socket belongs to one daemon, and whoever asks for a task of an older one is told
//! that one's.
//!
//! # Threads
//!
//! | | how many | what |
//! |---|---|---|
//! | `rpc` | `rpc.threads` | sockets and timers; the guests' timers and readiness too |
//! | `http` | `http.threads` | accepts HTTP components' clients, and says whose connection can go on; guests' own requests |
//! | `background` | 1 | events to containerd, scrapes: what no caller waits for |
//! | blocking pool | up to `rpc.blocking_threads_max` | mounts, module files, hashing |
//! | `compile` | `modules.compiles_max`, and one for what no start waits for | one beside each compile process, which dies with its thread |
//! | `guest-worker` | one per core, more while some are blocked | guests, and the connections of HTTP components' clients |
//! | `guest-ticker` | 1 | the epoch; finds workers stuck in system calls |
//!
//! # A guest's file calls block its worker
//!
//! They run as plain system calls inside the poll: the fastest form, and the only one in which a
//! thread's credentials and network namespace can apply to them. A worker that sleeps in one for
//! longer than `scheduler.blocked_after_ms` is replaced by a fresh one until it comes back. The root is
//! opened, and the program mapped, as the daemon, before the guest acts for the first time.
//!
//! # Mounts
//!
//! hearthd works in a mount namespace of its own that receives the host's mounts (slave) and gives none
//! back. A task's root is mounted at `<bundle>/rootfs` in it; nothing of it is seen by the host, and
//! everything goes when the daemon does, however it ends.
//!
//! # Modules, in reading order
//!
//! [`config`] · [`error`] · [`logging`] · [`metrics`] · [`starts`] · [`traces`] · [`server`] (control, instances, task, sandboxer,
//! operator, endpoint) · [`task`] (map, create, state, process, container, exec, control, oom, sandbox, pods, holders,
//! files, root, stdio) · [`native`] ·
//! [`bundle`] ·
//! [`events`] · [`containerd`] · [`ahead`] · [`wasm`] (modules, engine, instance, wasi, files, names, scheduler) ·
//! [`http`] · [`os`] ·
//! [`generation`] · [`reload`] · [`service`] · [`daemon`] · [`command`]; for tests, [`faults`]
//!
//! `hearthctl`, the other program of this crate, is [`ctl`]; what it says to the daemon is [`operator`].
#![forbid(unsafe_code)]

/// A request to an HTTP component makes and drops hundreds of small objects. With mimalloc it takes three quarters of the
/// processor time that it takes with glibc's allocator. (Its large pages, which the feature `no_thp` leaves out, would
/// take a service at rest from 16 to 105 KiB.)
#[global_allocator]
static ALLOCATOR: hearth_os::alloc::ExitOnFailure<mimalloc::MiMalloc> =
    hearth_os::alloc::ExitOnFailure(mimalloc::MiMalloc);

pub mod ahead;
pub mod command;
pub mod daemon;
pub mod generation;
pub mod native;
pub mod reload;
pub mod server;
pub mod service;
pub mod task;
