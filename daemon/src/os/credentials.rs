//! The rights to files that one thread has: user, groups and the mode bits its new files do not get.
//!
//! In Linux all of these are each thread's own; it is the C library that makes them the process'.
//! Here the system calls are made directly, or through those wrappers that leave them as they are.
//! Only the file-system user and group change, so a thread keeps every right to come back.
//!
//! When the file-system user is no longer root, the kernel takes the file capabilities
//! (`CAP_DAC_OVERRIDE`, `CAP_CHOWN`, …) out of the effective set by itself, and puts them back when it
//! is root again (capabilities(7)).
//!
//! The first change of user also makes the process undumpable (`/proc/sys/fs/suid_dumpable`): no other
//! user may trace it or read its memory's image, which is what a daemon with everybody's guests wants.
#![allow(unsafe_code, reason = "setfsuid(2) and setfsgid(2) have no safe form, nor has unshare(2)")]

use std::io;

use rustix::fs::{Gid, Mode};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::bundle::User;
use crate::error::{Error, Result};

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
}

impl Credentials {
    /// Those of a container's user. `umask` if the container names none.
    ///
    /// Groups that add no right are left out, since each kind of change costs a microsecond or two: a
    /// user's own group again (CRI lists it), and all of root's, who has every right to files. That
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
        let mut groups: Vec<Gid> = match user.uid {
            0 => Vec::new(),
            _ => user.groups.iter().filter(|&&gid| gid != user.gid).map(|&gid| Gid::from_raw(gid)).collect(),
        };
        sort(&mut groups);
        groups.dedup();
        let umask = user.umask.unwrap_or(umask) & UMASK_BITS;
        Ok(Credentials { uid: user.uid, gid: user.gid, groups, umask })
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
        Ok(Credentials { uid: set_user(NO_ID), gid: set_group(NO_ID), groups, umask: umask.as_raw_mode() })
    }

    /// Those of nobody, after which the thread is half somebody else.
    #[cfg(test)]
    pub(super) fn impossible() -> Credentials {
        Credentials { uid: NO_ID, gid: 4_000, groups: vec![Gid::from_raw(5_000)], umask: 0o77 }
    }

    /// Whether it is root.
    pub fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// The mode bits new files do not get.
    pub fn umask(&self) -> u32 {
        self.umask
    }

    /// Gives them to the calling thread, which has those of `now` and its own umask. Makes system calls
    /// for the differences only.
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

/// What a thread that runs guests keeps of the daemon's capabilities: the file rights that root in a
/// container has, and what it takes to become a guest and the daemon again. Without the others a guest
/// cannot, for one, fill what a file system reserves for root (`CAP_SYS_RESOURCE`).
///
/// The kernel returns all of its own set of file capabilities when a thread's user is root again, so
/// `CAP_DAC_READ_SEARCH`, `CAP_LINUX_IMMUTABLE` and `CAP_MAC_OVERRIDE` come back; the first is part of
/// `CAP_DAC_OVERRIDE`, and no call that a guest can make asks for the others.
pub const GUESTS_CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SYS_ADMIN);

/// What the calling thread may do now.
///
/// # Errors
/// As capget(2).
pub fn capabilities() -> io::Result<CapabilitySet> {
    Ok(rustix::thread::capabilities(None)?.effective)
}

/// Makes these the calling thread's effective capabilities, as far as they are permitted to it. They can
/// be had back the same way.
///
/// # Errors
/// As capset(2).
pub fn set_capabilities(wanted: CapabilitySet) -> io::Result<()> {
    let now = rustix::thread::capabilities(None)?;
    let effective = wanted & now.permitted;
    if effective != now.effective {
        rustix::thread::set_capabilities(None, CapabilitySets { effective, ..now })?;
    }
    Ok(())
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

    #[test]
    fn groups_that_add_nothing_are_left_out_and_an_id_that_is_none_is_named() {
        let user = |uid, gid, groups: &[u32]| User { uid, gid, groups: groups.into(), umask: None };
        let root = Credentials::of(&user(0, 0, &[1, 2]), 0o22).unwrap();
        assert_eq!(root, Credentials { uid: 0, gid: 0, groups: vec![], umask: 0o22 });
        let other = Credentials::of(&user(7, 8, &[10, 8, 9, 10]), 0o22).unwrap();
        assert_eq!(other.groups, [Gid::from_raw(9), Gid::from_raw(10)]);
        for (wrong, name) in [
            (user(NO_ID, 0, &[]), "process.user.uid"),
            (user(0, NO_ID, &[]), "process.user.gid"),
            (user(0, 0, &[NO_ID]), "process.user.additionalGids"),
        ] {
            let error = Credentials::of(&wrong, 0).unwrap_err();
            assert!(error.to_string().starts_with(name), "{error}");
        }
    }

    #[test]
    fn the_kernel_takes_the_file_capabilities_with_root_and_gives_them_back() {
        let file_rights = CapabilitySet::CHOWN | CapabilitySet::DAC_OVERRIDE | CapabilitySet::FOWNER;
        let effective = || capabilities().unwrap();
        std::thread::spawn(move || {
            own_umask().unwrap();
            let home = Credentials::of_this_thread().unwrap();
            assert!(effective().contains(file_rights), "the test runs as root");
            let user = User { uid: 1000, gid: 1000, groups: vec![2000], umask: Some(0o77) };
            let guest = Credentials::of(&user, home.umask()).unwrap();
            guest.apply(&home).unwrap();
            assert_eq!(Credentials::of_this_thread().unwrap(), guest);
            assert!(!effective().intersects(file_rights));
            home.apply(&guest).unwrap();
            assert_eq!(Credentials::of_this_thread().unwrap(), home);
            assert!(effective().contains(file_rights));
        })
        .join()
        .unwrap();
    }
}
