//! The IPC and UTS namespaces of a pod. No process is in them; a descriptor keeps each.

use std::fs::File;
use std::io;

use rustix::thread::UnshareFlags;

use crate::sysctl::Sysctl;

/// The IPC and UTS namespaces of a pod.
#[derive(Debug)]
pub struct Shared {
    /// System V IPC and POSIX message queues.
    pub ipc: File,
    /// The host name.
    pub uts: File,
}

impl Shared {
    /// Makes new namespaces with this host name and these settings.
    ///
    /// # Errors
    /// As unshare(2) and sethostname(2), and as [`Sysctl::write`].
    pub fn new(hostname: &str, sysctls: Vec<Sysctl>) -> io::Result<Shared> {
        let hostname = hostname.to_owned();
        let make = move || {
            // A thread can leave these two without its process; unlike a mount namespace they share
            // nothing with the other threads' view of files.
            #[allow(unsafe_code, reason = "unshare(2) of namespaces")]
            // SAFETY: neither flag touches the table of descriptors, which is what can be unsafe here.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWIPC | UnshareFlags::NEWUTS) }?;
            if !hostname.is_empty() {
                rustix::system::sethostname(hostname.as_bytes())?;
            }
            sysctls.iter().try_for_each(Sysctl::write)?;
            Ok(Shared { ipc: File::open("/proc/thread-self/ns/ipc")?, uts: File::open("/proc/thread-self/ns/uts")? })
        };
        std::thread::Builder::new()
            .name("namespaces".into())
            .spawn(make)?
            .join()
            .map_err(|_| io::Error::other("the thread that makes namespaces panicked"))?
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn they_are_new_and_outlive_the_thread_that_made_them() {
        let sysctl = Sysctl::parse("kernel.shmmni", "77").unwrap();
        let of_node = || std::fs::read_to_string("/proc/sys/kernel/shmmni").unwrap();
        let before = of_node();
        let shared = Shared::new("pod-name", vec![sysctl]).unwrap();
        assert_eq!(of_node(), before);
        let inode = |file: &File| file.metadata().unwrap().ino();
        assert_ne!(inode(&shared.uts), std::fs::metadata("/proc/self/ns/uts").unwrap().ino());
        assert_ne!(inode(&shared.ipc), std::fs::metadata("/proc/self/ns/ipc").unwrap().ino());
        let name = std::thread::spawn(move || {
            use std::os::fd::AsFd;
            let kind = Some(rustix::thread::LinkNameSpaceType::HostNameAndNISDomainName);
            rustix::thread::move_into_link_name_space(shared.uts.as_fd(), kind).unwrap();
            let kind = Some(rustix::thread::LinkNameSpaceType::InterProcessCommunication);
            rustix::thread::move_into_link_name_space(shared.ipc.as_fd(), kind).unwrap();
            assert_eq!(of_node(), "77\n");
            rustix::system::uname().nodename().to_str().unwrap().to_owned()
        });
        assert_eq!(name.join().unwrap(), "pod-name");
    }
}
