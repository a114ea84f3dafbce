//! Kernel settings that belong to a namespace, as a pod may set them (`linux.sysctl`).
//!
//! A file below `/proc/sys` is the setting of the namespaces of the thread that opens it.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;

use hearth_base::error::{Error, Result};

/// The namespace a setting belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `net.*`.
    Network,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// `kernel.domainname`.
    Uts,
}

/// A setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    /// The namespace that it belongs to.
    pub kind: Kind,
    name: String,
    value: String,
}

/// The settings of the IPC namespace outside of `fs.mqueue` (sysctl(8), runc's list).
const IPC: [&str; 8] = ["msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced"];

impl Sysctl {
    /// Parses a setting of the spec: `net.ipv4.tcp_syncookies`, or with slashes if a part contains a dot.
    ///
    /// # Errors
    /// `InvalidArgument` for a setting of the whole node, or an invalid name.
    pub fn parse(name: &str, value: &str) -> Result<Sysctl> {
        let wrong = |why: &str| Err(Error::InvalidArgument(format!("linux.sysctl {name:?}: {why}")));
        // As sysctl(8) does it: the first separator says which it is.
        let slashes = name.find(['.', '/']).is_some_and(|at| name[at..].starts_with('/'));
        let path = if slashes { name.to_owned() } else { name.replace('.', "/") };
        if path.contains('\0') || path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return wrong("is not the name of a kernel setting");
        }
        let kind = match path.split_once('/') {
            Some(("net", _)) => Kind::Network,
            Some(("fs", rest)) if rest.starts_with("mqueue/") => Kind::Ipc,
            Some(("kernel", rest)) if IPC.contains(&rest) => Kind::Ipc,
            Some(("kernel", "domainname")) => Kind::Uts,
            _ => return wrong("is the whole node's, not a pod's"),
        };
        Ok(Sysctl { kind, name: path, value: value.to_owned() })
    }

    /// Sets the value in the calling thread's namespaces.
    ///
    /// # Errors
    /// An error of the kernel, with the name in front.
    pub fn write(&self) -> io::Result<()> {
        let path = PathBuf::from("/proc/sys").join(&self.name);
        let written =
            OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(self.value.as_bytes()));
        written.map_err(|e| io::Error::new(e.kind(), format!("cannot set {} to {:?}: {e}", path.display(), self.value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_belongs_to_a_namespace_or_is_refused() {
        for (name, kind) in [
            ("net.ipv4.ip_unprivileged_port_start", Kind::Network),
            ("net/ipv4/conf/eth0.1/forwarding", Kind::Network),
            ("kernel.shmmax", Kind::Ipc),
            ("fs.mqueue.msg_max", Kind::Ipc),
            ("kernel.domainname", Kind::Uts),
        ] {
            assert_eq!(Sysctl::parse(name, "1").unwrap().kind, kind, "{name}");
        }
        assert_eq!(
            Sysctl::parse("net/ipv4/conf/eth0.1/forwarding", "1").unwrap().name,
            "net/ipv4/conf/eth0.1/forwarding"
        );
        for name in
            ["", "net", "kernel.hostname", "vm.swappiness", "net/../vm/swappiness", "net..x", "net.a\0", "/net/x"]
        {
            assert!(matches!(Sysctl::parse(name, "1"), Err(Error::InvalidArgument(_))), "{name:?}");
        }
    }

    #[test]
    fn what_the_kernel_does_not_have_is_named() {
        let error = Sysctl::parse("net.ipv4.no_such_setting", "1").unwrap().write().unwrap_err();
        assert!(error.to_string().contains("/proc/sys/net/ipv4/no_such_setting"), "{error}");
    }
}
