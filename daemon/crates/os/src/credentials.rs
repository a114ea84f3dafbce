//! The rights to files that one thread has: user, groups, capabilities and the mode bits its new files do
//! not get.
//!
//! In Linux all of these are each thread's own; it is the C library that makes them the process'.
//! Here the system calls are made directly, or through those wrappers that leave them as they are.
//! Only the file-system user and group change, so a thread keeps every right to come back.
//!
//! When the file-system user is no longer root, the kernel takes the file capabilities
//! (`CAP_DAC_OVERRIDE`, `CAP_CHOWN`, …) out of the effective set by itself, and puts them back when it
//! is root again (capabilities(7)). So a change of user is followed by one of capabilities, which says
//! exactly which ones are effective.
//!
//! The first change of user also makes the process undumpable (`/proc/sys/fs/suid_dumpable`): no other
//! user may trace it or read its memory's image, which is what a daemon with everybody's guests wants.
#![allow(unsafe_code, reason = "setfsuid(2) and setfsgid(2) have no safe form, nor has unshare(2)")]

use std::io;

use rustix::fs::{Gid, Mode};
use rustix::thread::{CapabilitySet, CapabilitySets};

use hearth_base::bundle::User;
use hearth_base::error::{Error, Result};

/// Groups a thread may have beside its own (`NGROUPS_MAX`).
const GROUPS_MAX: usize = 65_536;

/// The id that means "no change" to the kernel and is nobody's.
const NO_ID: u32 = u32::MAX;

/// Mode bits a umask can have.
const UMASK_BITS: u32 = 0o777;

/// Whose rights to files a thread has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    uid: u32,
    gid: u32,
    groups: Vec<Gid>,
    umask: u32,
    /// Of [`OF_GUESTS`].
    capabilities: CapabilitySet,
}

impl Credentials {
    /// Those of a container's user. `umask` if the container names none.
    ///
    /// As when Linux starts a program, root has the spec's effective capabilities and another user the
    /// ambient ones, which are none unless a pod's security context adds some.
    ///
    /// Groups that add no right are left out, since each kind of change costs a microsecond or two: a
    /// user's own group again (CRI lists it), and all of one's who has every right to files. That
    /// makes root in the usual container, with whatever groups its image lists, the daemon's equal.
    ///
    /// # Errors
    /// `InvalidArgument` naming what cannot be.
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

    /// Those of the calling thread, which must have called [`own_umask`].
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

    /// Those of nobody, after which the thread is half somebody else.
    #[doc(hidden)]
    pub(super) fn impossible() -> Credentials {
        let capabilities = CapabilitySet::empty();
        Credentials { uid: NO_ID, gid: 4_000, groups: vec![Gid::from_raw(5_000)], umask: 0o77, capabilities }
    }

    /// What a thread with these credentials may do.
    pub fn capabilities(&self) -> CapabilitySet {
        self.capabilities | TO_CHANGE
    }

    /// The mode bits new files do not get.
    pub fn umask(&self) -> u32 {
        self.umask
    }

    /// Gives them to the calling thread, which has those of `now` and its own umask, but for the
    /// capabilities: [`set_capabilities`] has to follow. Makes system calls for the differences only.
    ///
    /// # Errors
    /// If this process may not; some of them may then have changed.
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

/// As the kernel keeps them.
fn sort(groups: &mut [Gid]) {
    groups.sort_unstable_by_key(|group| group.as_raw());
}

/// Capabilities that a guest's calls can ask for: of files, and of privileged ports.
pub const OF_GUESTS: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::NET_BIND_SERVICE);

/// What it takes to become a guest and the daemon again.
pub const TO_CHANGE: CapabilitySet = CapabilitySet::SETUID.union(CapabilitySet::SETGID).union(CapabilitySet::SYS_ADMIN);

/// With what is part of another of the set.
fn completed(set: CapabilitySet) -> CapabilitySet {
    match set.contains(CapabilitySet::DAC_OVERRIDE) {
        true => set | CapabilitySet::DAC_READ_SEARCH,
        false => set,
    }
}

/// What the calling thread may do now, and could.
///
/// # Errors
/// As capget(2).
pub fn capabilities() -> io::Result<CapabilitySets> {
    Ok(rustix::thread::capabilities(None)?)
}

/// Makes these the calling thread's effective capabilities. `sets`: what it could; they can be had back
/// the same way.
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
