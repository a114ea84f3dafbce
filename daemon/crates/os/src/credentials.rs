//! The rights of one thread to files: user, groups, capabilities and umask.
//!
//! In Linux all of these belong to a thread; the C library applies them to all threads of the process. This file makes
//! the system calls directly, or through wrappers that change the calling thread only. Only the file-system user and
//! group change, so that a thread keeps the right to change back.
//!
//! When the file-system user changes from root to another, the kernel removes the file capabilities
//! (`CAP_DAC_OVERRIDE`, `CAP_CHOWN`, …) from the effective set, and adds them when it changes back (capabilities(7)). So
//! a change of capabilities follows each change of user and sets exactly the effective ones.
//!
//! The first change of user also makes the process undumpable (`/proc/sys/fs/suid_dumpable`): no other user may trace it
//! or read its memory, which holds the guests of all tenants.
#![allow(unsafe_code, reason = "setfsuid(2) and setfsgid(2) have no safe form, nor has unshare(2)")]

use std::io;

use rustix::fs::{Gid, Mode};
use rustix::thread::{CapabilitySet, CapabilitySets};

use hearth_base::bundle::User;
use hearth_base::error::{Error, Result};

/// Groups a thread may have beside its own (`NGROUPS_MAX`).
const GROUPS_MAX: usize = 65_536;

/// The id that means "no change" to the kernel; no user has it.
const NO_ID: u32 = u32::MAX;

/// The valid bits of a umask.
const UMASK_BITS: u32 = 0o777;

/// The rights of a thread to files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    uid: u32,
    gid: u32,
    groups: Vec<Gid>,
    umask: u32,
    /// A subset of [`OF_GUESTS`].
    capabilities: CapabilitySet,
}

impl Credentials {
    /// The credentials of a container's user, with `umask` if the container names none.
    ///
    /// As when Linux starts a program, root has the spec's effective capabilities, and another user the ambient ones,
    /// which are none unless a pod's security context adds some.
    ///
    /// Groups that add no right are left out, since each kind of change costs a microsecond or two: the user's own
    /// group (CRI lists it), and all groups of a user with every right to files. So root in a usual container has the
    /// daemon's own credentials, whatever groups its image lists.
    ///
    /// # Errors
    /// `InvalidArgument` naming the invalid id, group or umask.
    pub fn of(user: &User, umask: u32) -> Result<Credentials> {
        let wrong = |what: String| Err(Error::InvalidArgument(format!("process.user.{what}")));
        if let Some((name, _)) = [("uid", user.uid), ("gid", user.gid)].iter().find(|(_, id)| *id == NO_ID) {
            return wrong(format!("{name}: {NO_ID} is no id"));
        }
        if user.groups.contains(&NO_ID) {
            return wrong(format!("additionalGids: {NO_ID} is no id"));
        }
        if user.groups.len() > GROUPS_MAX {
            return wrong(format!("additionalGids: {} are over the kernel's limit of {GROUPS_MAX}", user.groups.len()));
        }
        let named = if user.uid == 0 { user.capabilities.effective } else { user.capabilities.ambient };
        let capabilities = completed(named & OF_GUESTS);
        let mut groups: Vec<Gid> = match capabilities.contains(CapabilitySet::DAC_OVERRIDE) {
            true => Vec::new(),
            false => user.groups.iter().filter(|&&gid| gid != user.gid).map(|&gid| Gid::from_raw(gid)).collect(),
        };
        sort(&mut groups);
        groups.dedup();
        let umask = user.umask.unwrap_or(umask) & UMASK_BITS;
        Ok(Credentials { uid: user.uid, gid: user.gid, groups, umask, capabilities })
    }

    /// The credentials of the calling thread, which must have called [`own_umask`].
    ///
    /// # Errors
    /// As getgroups(2).
    pub fn of_this_thread() -> io::Result<Credentials> {
        let umask = rustix::process::umask(Mode::empty());
        rustix::process::umask(umask);
        let mut groups = rustix::process::getgroups()?;
        sort(&mut groups);
        let capabilities = completed(capabilities()?.effective & OF_GUESTS);
        let (uid, gid) = (set_user(NO_ID), set_group(NO_ID));
        Ok(Credentials { uid, gid, groups, umask: umask.as_raw_mode(), capabilities })
    }

    /// Credentials that the kernel refuses after it has changed some of them. For tests.
    #[doc(hidden)]
    pub(super) fn impossible() -> Credentials {
        let capabilities = CapabilitySet::empty();
        Credentials { uid: NO_ID, gid: 4_000, groups: vec![Gid::from_raw(5_000)], umask: 0o77, capabilities }
    }

    /// The effective capabilities of a thread with these credentials.
    pub fn capabilities(&self) -> CapabilitySet {
        self.capabilities | TO_CHANGE
    }

    /// The umask.
    pub fn umask(&self) -> u32 {
        self.umask
    }

    /// Gives these credentials to the calling thread, which has those of `now` and a umask of its own. Capabilities
    /// are excluded: [`set_capabilities`] has to follow. Makes system calls for the differences only.
    ///
    /// # Errors
    /// The process lacks a right; some of the credentials may have changed by then.
    pub fn apply(&self, now: &Credentials) -> io::Result<()> {
        if self.umask != now.umask {
            rustix::process::umask(Mode::from_raw_mode(self.umask));
        }
        if self.groups != now.groups {
            rustix::thread::set_thread_groups(&self.groups)?;
        }
        let refused = |what: &str, id: u32| {
            let text = format!("the kernel refuses {what} {id} (does hearthd run as root, outside a user namespace?)");
            Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
        };
        if self.gid != now.gid {
            set_group(self.gid);
            if set_group(NO_ID) != self.gid {
                return refused("group", self.gid);
            }
        }
        if self.uid != now.uid {
            set_user(self.uid);
            if set_user(NO_ID) != self.uid {
                return refused("user", self.uid);
            }
        }
        Ok(())
    }
}

/// Sorts groups as the kernel keeps them.
fn sort(groups: &mut [Gid]) {
    groups.sort_unstable_by_key(|group| group.as_raw());
}

/// The capabilities that concern a guest's calls: files and privileged ports.
pub const OF_GUESTS: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::NET_BIND_SERVICE);

/// The capabilities needed to assume a guest's identity and to restore the daemon's.
pub const TO_CHANGE: CapabilitySet = CapabilitySet::SETUID.union(CapabilitySet::SETGID).union(CapabilitySet::SYS_ADMIN);

/// The set and the capabilities that another one of the set includes.
fn completed(set: CapabilitySet) -> CapabilitySet {
    match set.contains(CapabilitySet::DAC_OVERRIDE) {
        true => set | CapabilitySet::DAC_READ_SEARCH,
        false => set,
    }
}

/// The capability sets of the calling thread.
///
/// # Errors
/// As capget(2).
pub fn capabilities() -> io::Result<CapabilitySets> {
    Ok(rustix::thread::capabilities(None)?)
}

/// Makes `effective` the calling thread's effective capabilities. The other sets become those of `sets`, so that a
/// later call can make other capabilities effective.
///
/// # Errors
/// As capset(2).
pub fn set_capabilities(effective: CapabilitySet, sets: CapabilitySets) -> io::Result<()> {
    Ok(rustix::thread::set_capabilities(None, CapabilitySets { effective, ..sets })?)
}

/// Gives the calling thread a umask (and a working directory) of its own.
///
/// # Errors
/// As unshare(2).
pub fn own_umask() -> io::Result<()> {
    // SAFETY: only the table of descriptors must stay shared, and it does: FS is umask, root and
    // working directory.
    Ok(unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }?)
}

/// Sets this thread's file-system user and returns the one before; the call reports no failure.
fn set_user(uid: u32) -> u32 {
    // SAFETY: takes a number; glibc passes it to the kernel for this thread alone.
    unsafe { libc::setfsuid(uid) as u32 }
}

/// As [`set_user`], for the group.
fn set_group(gid: u32) -> u32 {
    // SAFETY: as in `set_user`.
    unsafe { libc::setfsgid(gid) as u32 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_base::bundle::Capabilities;

    fn user(uid: u32, gid: u32, groups: &[u32], effective: CapabilitySet, ambient: CapabilitySet) -> User {
        let capabilities = Capabilities { effective, ambient };
        User { uid, gid, groups: groups.into(), umask: None, capabilities }
    }

    #[test]
    fn groups_that_add_nothing_are_left_out_and_an_id_that_is_none_is_named() {
        let none = CapabilitySet::empty();
        let default = CapabilitySet::CHOWN | CapabilitySet::DAC_OVERRIDE | CapabilitySet::FOWNER;
        let root = Credentials::of(&user(0, 0, &[1, 2], default, none), 0o22).unwrap();
        let capabilities = default | CapabilitySet::DAC_READ_SEARCH;
        assert_eq!(root, Credentials { uid: 0, gid: 0, groups: vec![], umask: 0o22, capabilities });
        let bare = Credentials::of(&user(0, 0, &[1, 2], none, default), 0o22).unwrap();
        assert_eq!((bare.groups.len(), bare.capabilities), (2, none));
        let other = Credentials::of(&user(7, 8, &[10, 8, 9, 10], default, CapabilitySet::FOWNER), 0o22).unwrap();
        assert_eq!(other.groups, [Gid::from_raw(9), Gid::from_raw(10)]);
        assert_eq!(other.capabilities, CapabilitySet::FOWNER, "the ambient ones");
        for (wrong, name) in [
            (user(NO_ID, 0, &[], none, none), "process.user.uid"),
            (user(0, NO_ID, &[], none, none), "process.user.gid"),
            (user(0, 0, &[NO_ID], none, none), "process.user.additionalGids"),
        ] {
            let error = Credentials::of(&wrong, 0).unwrap_err();
            assert!(error.to_string().starts_with(name), "{error}");
        }
    }

    #[test]
    fn a_thread_has_the_rights_of_the_credentials_it_is_given_and_its_own_again() {
        std::thread::spawn(move || {
            own_umask().unwrap();
            let (home, sets) = (Credentials::of_this_thread().unwrap(), capabilities().unwrap());
            assert!(sets.effective.contains(OF_GUESTS), "the test runs as root");
            let some = CapabilitySet::FOWNER | CapabilitySet::NET_BIND_SERVICE;
            for uid in [0, 1_000] {
                let guest = Credentials::of(&user(uid, 1_000, &[2_000], some, some), 0o77).unwrap();
                guest.apply(&home).unwrap();
                set_capabilities(guest.capabilities(), sets).unwrap();
                assert_eq!(Credentials::of_this_thread().unwrap(), guest);
                assert_eq!(capabilities().unwrap().effective, some | TO_CHANGE);
                home.apply(&guest).unwrap();
                set_capabilities(sets.effective, sets).unwrap();
                assert_eq!(Credentials::of_this_thread().unwrap(), home);
                assert_eq!(capabilities().unwrap(), sets);
            }
        })
        .join()
        .unwrap();
    }
}
