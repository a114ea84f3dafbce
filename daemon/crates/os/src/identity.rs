//! The identity of a thread while it polls a guest: its credentials, which decide its rights to files, and its
//! network namespace.
//!
//! ```text
//!              assume(guest)                assume(another guest)
//!   the daemon ──────────▶ guest's identity ────────────────────▶ …
//!       ▲                        │ kept between polls: the next poll may be of the same guest
//!       └──── restore() ─────────┘ before the daemon's own work, before the thread sleeps or ends
//! ```
//!
//! Each thread records the identity that it has assumed. Assuming the same identity again, as for every guest that
//! is root in the host's network, makes no system call.
//!
//! **A new thread has the identity of the thread that started it**: the kernel copies credentials, namespaces and
//! the umask, which is even shared. Thread pools start threads on demand, which may be in the middle of a guest's
//! poll. So every thread of the daemon's runtimes calls [`become_daemon`] or [`become_worker`] first.

use std::cell::RefCell;
use std::io;
use std::sync::{Arc, OnceLock};

use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::credentials::{self, Credentials};
use crate::netns::NetNs;
use hearth_base::bundle::User;
use hearth_base::error::{Error, Result};

/// The identity of a guest. The default is the daemon's own: root in the host's network.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    /// `None`: the daemon's.
    credentials: Option<Arc<Credentials>>,
    /// `None`: the daemon's.
    network: Option<Arc<NetNs>>,
}

/// The daemon's identity, as the kernel reports it.
struct Daemon {
    credentials: Credentials,
    capabilities: CapabilitySets,
    network: NetNs,
}

static DAEMON: OnceLock<Daemon> = OnceLock::new();

/// The identity that a thread has now.
struct Assumed {
    /// The thread has a umask of its own, and has had the daemon's identity.
    is_initialised: bool,
    /// The thread polls guests.
    is_worker: bool,
    identity: Identity,
}

thread_local! {
    static ASSUMED: RefCell<Assumed> = const {
        RefCell::new(Assumed {
            is_initialised: false,
            is_worker: false,
            identity: Identity { credentials: None, network: None },
        })
    };
}

impl Identity {
    /// The identity of a container's user in `network`; `None` stands for the host's network.
    ///
    /// # Errors
    /// `InvalidArgument` naming what is wrong with the user; `Internal` if the daemon's own identity
    /// cannot be read.
    pub fn new(user: &User, network: Option<Arc<NetNs>>) -> Result<Identity> {
        let daemon = daemon().map_err(|e| Error::Internal(e.to_string()))?;
        let credentials = Credentials::of(user, daemon.credentials.umask())?;
        let is_daemons = credentials == daemon.credentials;
        let network = network.filter(|network| **network != daemon.network);
        Ok(Identity { credentials: (!is_daemons).then(|| Arc::new(credentials)), network })
    }

    /// The daemon's credentials in `network`; `None` stands for the host's network.
    ///
    /// # Errors
    /// `Internal` if the daemon's own identity cannot be read.
    pub fn daemon_in(network: Option<Arc<NetNs>>) -> Result<Identity> {
        let daemon = daemon().map_err(|e| Error::Internal(e.to_string()))?;
        Ok(Identity { credentials: None, network: network.filter(|network| **network != daemon.network) })
    }

    /// An identity that the kernel refuses. For tests.
    #[doc(hidden)]
    pub fn impossible() -> Identity {
        Identity { credentials: Some(Arc::new(Credentials::impossible())), network: None }
    }

    fn is(&self, other: &Identity) -> bool {
        same(&self.credentials, &other.credentials) && same(&self.network, &other.network)
    }
}

fn same<T: PartialEq>(one: &Option<Arc<T>>, other: &Option<Arc<T>>) -> bool {
    match (one, other) {
        (None, None) => true,
        (Some(one), Some(other)) => Arc::ptr_eq(one, other) || one == other,
        _ => false,
    }
}

/// Records the daemon's identity; must come before the first guest. A second call changes nothing.
///
/// # Errors
/// procfs is not mounted, or the kernel does not tell the identity.
pub fn record_daemon() -> io::Result<()> {
    daemon().map(|_| ())
}

fn daemon() -> io::Result<&'static Daemon> {
    if let Some(daemon) = DAEMON.get() {
        return Ok(daemon);
    }
    let text = |e: io::Error| io::Error::new(e.kind(), format!("cannot read the daemon's own identity: {e}"));
    // In a thread of its own: reading the umask means changing it for a moment.
    let read = || {
        credentials::own_umask()?;
        Ok(Daemon {
            credentials: Credentials::of_this_thread()?,
            capabilities: credentials::capabilities()?,
            network: NetNs::of_this_thread()?,
        })
    };
    let found = std::thread::spawn(read).join().map_err(|_| io::Error::other("a thread panicked"))?;
    let found = found.map_err(text)?;
    Ok(DAEMON.get_or_init(|| found))
}

/// Gives the calling thread the daemon's identity, whichever thread started it. The first call of a new thread.
///
/// Aborts the process if the kernel refuses.
pub fn become_daemon() {
    if let Err(error) = try_to_become_daemon() {
        abort(&error);
    }
}

/// As [`become_daemon`], for a thread that will poll guests: the daemon's identity without the capabilities that
/// neither guests nor changes of identity need. Without the others a guest cannot, for example, fill the blocks
/// that a file system reserves for root (`CAP_SYS_RESOURCE`).
pub fn become_worker() {
    ASSUMED.with_borrow_mut(|assumed| assumed.is_worker = true);
    become_daemon();
}

fn try_to_become_daemon() -> io::Result<()> {
    let daemon = daemon()?;
    credentials::own_umask()?;
    daemon.credentials.apply(&Credentials::of_this_thread()?)?;
    if NetNs::of_this_thread()? != daemon.network {
        daemon.network.enter()?;
    }
    ASSUMED.with_borrow_mut(|assumed| {
        assumed.is_initialised = true;
        assumed.identity = Identity::default();
        // Last: a change of user to root makes all permitted capabilities effective again.
        assumed.limit_capabilities(daemon)
    })
}

impl Assumed {
    /// Makes effective the capabilities that the thread may use with its present identity, and no others.
    fn limit_capabilities(&self, daemon: &Daemon) -> io::Result<()> {
        let kept = match &self.identity.credentials {
            Some(credentials) => credentials.capabilities(),
            None if self.is_worker => credentials::OF_GUESTS | credentials::TO_CHANGE,
            None => CapabilitySet::all(),
        };
        credentials::set_capabilities(daemon.capabilities.effective & kept, daemon.capabilities)
    }
}

/// Gives the calling thread this guest's identity. After an error the thread has the daemon's.
///
/// # Errors
/// The kernel refuses; the guest must not run.
pub fn assume(identity: &Identity) -> io::Result<()> {
    let is_assumed = ASSUMED.with_borrow(|assumed| assumed.identity.is(identity));
    if is_assumed {
        return Ok(());
    }
    if !ASSUMED.with_borrow(|assumed| assumed.is_initialised) {
        become_daemon();
    }
    let result = change(identity);
    if result.is_err() {
        become_daemon();
    }
    result
}

/// As [`assume`], for a thread that acts as this guest until it ends. It has no more capabilities than a thread that
/// polls guests. It reads nothing of procfs, which a root directory of the thread's own may lack.
///
/// # Errors
/// The kernel refuses; the thread has to end.
pub fn assume_for_good(identity: &Identity) -> io::Result<()> {
    let daemon = daemon()?;
    ASSUMED.with_borrow_mut(|assumed| assumed.is_worker = true);
    change(identity)?;
    ASSUMED.with_borrow_mut(|assumed| assumed.limit_capabilities(daemon))
}

/// Gives the calling thread the daemon's identity back. Makes no system call if the thread has it.
pub fn restore() {
    let daemon = Identity::default();
    if !ASSUMED.with_borrow(|assumed| assumed.identity.is(&daemon))
        && let Err(error) = change(&daemon)
    {
        tracing::warn!(%error, "a thread did not get its identity back at once");
        become_daemon();
    }
}

/// Changes the thread's identity to `identity`: only the parts that differ.
fn change(identity: &Identity) -> io::Result<()> {
    let daemon = daemon()?;
    ASSUMED.with_borrow_mut(|assumed| {
        if !same(&assumed.identity.network, &identity.network) {
            identity.network.as_deref().unwrap_or(&daemon.network).enter()?;
            assumed.identity.network.clone_from(&identity.network);
        }
        if !same(&assumed.identity.credentials, &identity.credentials) {
            let now = assumed.identity.credentials.as_deref().unwrap_or(&daemon.credentials);
            identity.credentials.as_deref().unwrap_or(&daemon.credentials).apply(now)?;
            assumed.identity.credentials.clone_from(&identity.credentials);
            assumed.limit_capabilities(daemon)?;
        }
        Ok(())
    })
}

/// Ends the process. A thread without the daemon's identity would do the daemon's work, or poll another guest, with
/// the wrong rights. The kernel gives no reason to expect this error, and no recovery is possible.
fn abort(error: &io::Error) -> ! {
    tracing::error!(%error, "a thread cannot get the daemon's identity back; ending the process");
    std::process::abort();
}

/// Calls `work`, which binds sockets, with this identity.
///
/// # Errors
/// The kernel refuses the identity; then `work` is not called.
pub fn bind_as<T>(identity: &Identity, work: impl FnOnce() -> T) -> io::Result<T> {
    let _restore = RestoreGuard;
    assume(identity)?;
    Ok(work())
}

/// Restores the thread's identity when it is dropped, also by a panic.
#[derive(Debug)]
pub struct RestoreGuard;

impl Drop for RestoreGuard {
    fn drop(&mut self) {
        restore();
    }
}
