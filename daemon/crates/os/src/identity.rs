//! Who a thread is while it runs a guest: whose rights to files it has and which network it is in.
//!
//! ```text
//!              wear(guest)                  wear(another guest)
//!   the daemon ──────────▶ guest's identity ──────────────────▶ …
//!       ▲                        │ stays on between polls: the next may be of the same guest
//!       └──── go_home() ─────────┘ before the daemon's own work, before the thread sleeps or ends
//! ```
//!
//! What a thread wears is remembered in the thread itself, so that putting on what it wears already,
//! as for every guest that is root in the host's network, makes no system call.
//!
//! **A thread starts as whoever started it**: the kernel copies credentials, namespaces and (shared!) the
//! umask from the parent. Pools start threads when they first need one, which may be in the middle of a
//! guest's poll. So every thread of the daemon's runtimes calls [`settle`] first.

use std::cell::RefCell;
use std::io;
use std::sync::{Arc, OnceLock};

use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::credentials::{self, Credentials};
use crate::netns::NetNs;
use hearth_base::bundle::User;
use hearth_base::error::{Error, Result};

/// Who a guest is. The default is the daemon itself: root in the host's network.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    /// `None`: the daemon's.
    credentials: Option<Arc<Credentials>>,
    /// `None`: the daemon's.
    network: Option<Arc<NetNs>>,
}

/// Who the daemon is.
struct Home {
    credentials: Credentials,
    capabilities: CapabilitySets,
    network: NetNs,
}

static HOME: OnceLock<Home> = OnceLock::new();

/// What a thread wears.
struct Worn {
    /// It has a umask of its own, and is known to have been the daemon.
    settled: bool,
    /// It runs guests.
    is_worker: bool,
    identity: Identity,
}

thread_local! {
    static WORN: RefCell<Worn> = const {
        RefCell::new(Worn { settled: false, is_worker: false, identity: Identity { credentials: None, network: None } })
    };
}

impl Identity {
    /// A container's user, in this network; `None` for the host's.
    ///
    /// # Errors
    /// `InvalidArgument` naming what is wrong with the user; `Internal` if the daemon's own identity
    /// cannot be read.
    pub fn new(user: &User, network: Option<Arc<NetNs>>) -> Result<Identity> {
        let home = home().map_err(|e| Error::Internal(e.to_string()))?;
        let credentials = Credentials::of(user, home.credentials.umask())?;
        let own = credentials == home.credentials;
        let network = network.filter(|network| **network != home.network);
        Ok(Identity { credentials: (!own).then(|| Arc::new(credentials)), network })
    }

    /// The daemon itself, in this network; `None` for the host's.
    ///
    /// # Errors
    /// `Internal` if the daemon's own identity cannot be read.
    pub fn daemon_in(network: Option<Arc<NetNs>>) -> Result<Identity> {
        let home = home().map_err(|e| Error::Internal(e.to_string()))?;
        Ok(Identity { credentials: None, network: network.filter(|network| **network != home.network) })
    }

    /// One that the kernel refuses.
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

/// Remembers who the daemon is; must come before the first guest. Doing it again changes nothing.
///
/// # Errors
/// If procfs is not mounted.
pub fn remember_home() -> io::Result<()> {
    home().map(|_| ())
}

fn home() -> io::Result<&'static Home> {
    if let Some(home) = HOME.get() {
        return Ok(home);
    }
    let text = |e: io::Error| io::Error::new(e.kind(), format!("cannot read the daemon's own identity: {e}"));
    // In a thread of its own: reading the umask means changing it for a moment.
    let read = || {
        credentials::own_umask()?;
        Ok(Home {
            credentials: Credentials::of_this_thread()?,
            capabilities: credentials::capabilities()?,
            network: NetNs::of_this_thread()?,
        })
    };
    let found = std::thread::spawn(read).join().map_err(|_| io::Error::other("a thread panicked"))?;
    let found = found.map_err(text)?;
    Ok(HOME.get_or_init(|| found))
}

/// Makes the calling thread the daemon's, whoever started it. For the start of a thread.
pub fn settle() {
    if let Err(error) = try_to_settle() {
        lost(&error);
    }
}

/// As [`settle`], for a thread that will run guests: the daemon, but with no more capabilities than
/// guests and their changes need. Without the others a guest cannot, for one, fill what a file system
/// reserves for root (`CAP_SYS_RESOURCE`).
pub fn settle_worker() {
    WORN.with_borrow_mut(|worn| worn.is_worker = true);
    settle();
}

fn try_to_settle() -> io::Result<()> {
    let home = home()?;
    credentials::own_umask()?;
    home.credentials.apply(&Credentials::of_this_thread()?)?;
    if NetNs::of_this_thread()? != home.network {
        home.network.enter()?;
    }
    WORN.with_borrow_mut(|worn| {
        worn.settled = true;
        worn.identity = Identity::default();
        // Last: the change of user has brought some back.
        worn.allow(home)
    })
}

impl Worn {
    /// Makes effective what the thread may do as who it is.
    fn allow(&self, home: &Home) -> io::Result<()> {
        let kept = match &self.identity.credentials {
            Some(credentials) => credentials.capabilities(),
            None if self.is_worker => credentials::OF_GUESTS | credentials::TO_CHANGE,
            None => CapabilitySet::all(),
        };
        credentials::set_capabilities(home.capabilities.effective & kept, home.capabilities)
    }
}

/// Makes the calling thread this guest. On an error it is the daemon.
///
/// # Errors
/// What the kernel refuses; the guest must not run.
pub fn wear(identity: &Identity) -> io::Result<()> {
    let is = WORN.with_borrow(|worn| worn.identity.is(identity));
    if is {
        return Ok(());
    }
    if !WORN.with_borrow(|worn| worn.settled) {
        settle();
    }
    let result = change(identity);
    if result.is_err() {
        settle();
    }
    result
}

/// Makes the calling thread the daemon again; free if it is.
pub fn go_home() {
    let home = Identity::default();
    if !WORN.with_borrow(|worn| worn.identity.is(&home))
        && let Err(error) = change(&home)
    {
        tracing::warn!(%error, "a thread did not get its identity back at once");
        settle();
    }
}

/// From what the thread wears to `identity`, by the differences.
fn change(identity: &Identity) -> io::Result<()> {
    let home = home()?;
    WORN.with_borrow_mut(|worn| {
        if !same(&worn.identity.network, &identity.network) {
            identity.network.as_deref().unwrap_or(&home.network).enter()?;
            worn.identity.network.clone_from(&identity.network);
        }
        if !same(&worn.identity.credentials, &identity.credentials) {
            let now = worn.identity.credentials.as_deref().unwrap_or(&home.credentials);
            identity.credentials.as_deref().unwrap_or(&home.credentials).apply(now)?;
            worn.identity.credentials.clone_from(&identity.credentials);
            worn.allow(home)?;
        }
        Ok(())
    })
}

/// A thread that cannot become the daemon again would do the daemon's work, or another guest's, as
/// somebody else. The kernel gives no reason to expect this, and there is no way on from it.
fn lost(error: &io::Error) -> ! {
    tracing::error!(%error, "a thread cannot get the daemon's identity back; ending the process");
    std::process::abort();
}

/// Does `work`, which binds sockets, as this identity.
///
/// # Errors
/// If the thread cannot be the identity; then nothing is done.
pub fn bind_as<T>(identity: &Identity, work: impl FnOnce() -> T) -> io::Result<T> {
    let _home = ComeHome;
    wear(identity)?;
    Ok(work())
}

/// Brings the thread home when it is dropped, also by a panic.
#[derive(Debug)]
pub struct ComeHome;

impl Drop for ComeHome {
    fn drop(&mut self) {
        go_home();
    }
}
