//! hearthd, its sockets and its directories.

use std::fs;
use std::io;
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Finding;
use crate::CtlError;
use hearth_base::operator::Status;
use hearth_base::units::bytes;

/// The module store should have so much room on its disk, in bytes.
const ROOM_BYTES: u64 = 1 << 30;

/// Descriptors of a guest: its stdio, its root, its sockets.
const DESCRIPTORS_PER_GUEST: u64 = 8;

pub fn check(socket: &Path, asked: &Result<Status, CtlError>) -> Vec<Finding> {
    let mut findings = vec![control_socket(socket)];
    let status = match asked {
        Ok(status) => status,
        Err(CtlError::Refused(text) | CtlError::Unreachable(text) | CtlError::Usage(text)) => {
            findings.push(Finding::fail("hearthd", text.as_str(), "systemctl status hearthd; journalctl -u hearthd"));
            return findings;
        }
        Err(CtlError::Print(error)) => {
            findings.push(Finding::fail("hearthd", error.to_string(), "systemctl status hearthd"));
            return findings;
        }
    };
    findings.push(version(status));
    findings.push(mounts(status));
    findings.push(descriptors(status));
    findings.push(store(status));
    findings.push(metrics(&status.metrics_address));
    findings.push(isolation(status));
    findings
}

/// Which processes run guests.
fn isolation(status: &Status) -> Finding {
    let shared = "pods of level node share hearthd's process";
    let detail = match status.cells.len() {
        0 => format!("{shared}; no pod has a process of its own"),
        cells => format!("{shared}; {cells} pods of level pod have a process each"),
    };
    Finding::ok("isolation", detail)
}

fn control_socket(socket: &Path) -> Finding {
    const NAME: &str = "control socket";
    let at = socket.display();
    let metadata = match fs::symlink_metadata(socket) {
        Ok(metadata) => metadata,
        Err(error) => return Finding::fail(NAME, format!("{at}: {error}"), "systemctl start hearthd.socket hearthd"),
    };
    let mode = metadata.mode() & 0o777;
    if metadata.uid() != 0 || mode & 0o077 != 0 {
        let owner = metadata.uid();
        return Finding::fail(
            NAME,
            format!("{at} is of user {owner}, mode {mode:04o}: other users could reach it"),
            format!("chown root:root {at}; chmod 0600 {at}"),
        );
    }
    let directory = socket.parent().and_then(|directory| fs::metadata(directory).ok());
    match directory {
        Some(directory) if directory.uid() != 0 || directory.mode() & 0o022 != 0 => Finding::fail(
            NAME,
            format!("other users can write to the directory of {at}, and put another socket there"),
            "chown root:root and chmod 0700 that directory",
        ),
        _ => Finding::ok(NAME, format!("{at}, root's alone")),
    }
}

fn version(status: &Status) -> Finding {
    let own = env!("CARGO_PKG_VERSION");
    let detail = format!("{} with wasmtime {}, pid {}", status.version, status.wasmtime, status.pid);
    if status.draining {
        return Finding::warn("hearthd", format!("{detail}; it is draining"), "hearthctl drain --undo");
    }
    match status.version == own {
        true => Finding::ok("hearthd", detail),
        false => Finding::warn(
            "hearthd",
            format!("{detail}; hearthctl is {own}"),
            "the newer one was installed and has not been started: systemctl restart hearthd once the node is drained",
        ),
    }
}

/// CNI mounts the network namespace of each pod here, and hearthd opens it by this path.
const NETWORK_NAMESPACES: &str = "/run/netns";

/// Checks whether a mount that the node makes later reaches hearthd, which has a mount namespace of its own.
fn mounts(status: &Status) -> Finding {
    const NAME: &str = "mounts of hearthd";
    let of = |process: &str| {
        let namespace = fs::read_link(format!("/proc/{process}/ns/mnt")).ok()?;
        Some((namespace, fs::read_to_string(format!("/proc/{process}/mountinfo")).ok()?))
    };
    let (Some((here, node)), Some((there, daemon))) = (of("self"), of(&status.pid.to_string())) else {
        return Finding::warn(NAME, "they cannot be read", "run this on the node itself, as root");
    };
    match here == there || is_received(&node, &daemon, NETWORK_NAMESPACES) {
        true => Finding::ok(NAME, "they receive the mounts of the node"),
        false => Finding::fail(
            NAME,
            format!(
                "they do not receive mounts below {NETWORK_NAMESPACES}: pods of a CNI network are refused (\"the network \
                 namespace ... is no namespace\")"
            ),
            "mount --make-rshared / on the node, then systemctl restart hearthd",
        ),
    }
}

/// Whether mounts at `path` in the one mount namespace are received in the other: the peer group of the mount that holds
/// the path there is a peer or the master here. Both texts are of `/proc/PID/mountinfo`.
fn is_received(sender: &str, receiver: &str, path: &str) -> bool {
    let sent = peer_groups(sender, path, &["shared:"]);
    peer_groups(receiver, path, &["shared:", "master:"]).iter().any(|group| sent.contains(group))
}

/// The numbers after these prefixes among the optional fields of the last mount that holds `path`.
fn peer_groups<'a>(mountinfo: &'a str, path: &str, prefixes: &[&str]) -> Vec<&'a str> {
    // 25 1 8:1 / / rw,relatime shared:1 master:2 - ext4 /dev/sda1 rw
    let holds = |line: &&str| line.split(' ').nth(4).is_some_and(|at| Path::new(path).starts_with(at));
    let depth = |line: &&str| line.split(' ').nth(4).map_or(0, str::len);
    let Some(line) = mountinfo.lines().filter(holds).max_by_key(depth) else { return Vec::new() };
    let optional = line.split(' ').skip(6).take_while(|field| *field != "-");
    optional.filter_map(|field| prefixes.iter().find_map(|prefix| field.strip_prefix(prefix))).collect()
}

fn descriptors(status: &Status) -> Finding {
    const NAME: &str = "open files";
    let limits = fs::read_to_string(format!("/proc/{}/limits", status.pid)).unwrap_or_default();
    let Some(limit) = soft_limit(&limits, "Max open files") else {
        return Finding::warn(NAME, "hearthd's limit cannot be read", "run this on the node itself, as root");
    };
    let guests = status.pool.slots + status.pool.on_demand_limit;
    match limit >= guests * DESCRIPTORS_PER_GUEST {
        true => Finding::ok(NAME, format!("at most {limit}")),
        false => Finding::warn(
            NAME,
            format!("at most {limit}: too few for {guests} guests"),
            "LimitNOFILE=1048576 in hearthd.service, or a smaller engine.pool_slots",
        ),
    }
}

/// From `/proc/PID/limits`.
fn soft_limit(limits: &str, name: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

fn store(status: &Status) -> Finding {
    const NAME: &str = "module store";
    let path = Path::new(&status.root_dir);
    let at = path.display();
    let disk = match rustix::fs::statvfs(path) {
        Ok(disk) => disk,
        Err(error) => {
            return Finding::warn(
                NAME,
                format!("{at}: {error}: every module is compiled again after a restart"),
                "make the directory, or set root_dir",
            );
        }
    };
    let free = disk.f_bavail * disk.f_frsize;
    if free < ROOM_BYTES.min(status.modules.bytes_limit) {
        return Finding::warn(
            NAME,
            format!("{at}: {} are left on its disk", bytes(free)),
            "make room, or set modules.store_bytes_max or root_dir; hearthctl modules prune",
        );
    }
    if disk.f_flag.contains(rustix::fs::StatVfsMountFlags::NOEXEC) {
        return Finding::warn(
            NAME,
            format!("{at} is mounted noexec: compiled code is copied into memory"),
            "mount it with exec, or set root_dir",
        );
    }
    let limit = bytes(status.modules.bytes_limit);
    Finding::ok(NAME, format!("{at}: {} of {limit}, {} left on the disk", bytes(status.modules.bytes), bytes(free)))
}

fn metrics(address: &str) -> Finding {
    const NAME: &str = "metrics";
    if address.is_empty() {
        return Finding::warn(NAME, "not served", "set metrics.address, for dashboards and probes");
    }
    let connected = match address.strip_prefix(hearth_base::config::UNIX) {
        Some(path) => std::os::unix::net::UnixStream::connect(path).map(drop),
        None => TcpStream::connect(address).map(drop),
    };
    match connected {
        Ok(()) => Finding::ok(NAME, address),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Finding::warn(NAME, format!("{address}: {error}"), "use sudo")
        }
        Err(error) => Finding::fail(NAME, format!("{address}: {error}"), "see hearthd's log"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_read_from_proc() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
            Max open files            1024                 1048576              files\n\
            Max processes             unlimited            unlimited            processes\n";
        assert_eq!(soft_limit(limits, "Max open files"), Some(1024));
        assert_eq!(soft_limit(limits, "Max processes"), Some(u64::MAX));
        assert_eq!(soft_limit("", "Max open files"), None);
    }

    #[test]
    fn mounts_are_received_from_a_peer_or_a_master() {
        let node = "1 0 8:1 / / rw shared:1 - ext4 /dev/sda rw\n2 1 0:5 / /run rw shared:7 - tmpfs tmpfs rw\n";
        let daemon = |root: &str, run: &str| {
            format!("1 0 8:1 / / rw {root}- ext4 /dev/sda rw\n2 1 0:5 / /run rw {run}- tmpfs tmpfs rw\n")
        };
        for (root, run, wanted) in [
            ("master:1 ", "master:7 ", true),
            ("", "shared:9 master:7 ", true),
            ("master:1 ", "shared:7 ", true),
            ("master:1 ", "", false),
            ("master:1 ", "shared:9 ", false),
            ("master:1 ", "master:1 ", false),
        ] {
            assert_eq!(is_received(node, &daemon(root, run), "/run/netns"), wanted, "{root:?} {run:?}");
        }
        // Longer by characters is not below.
        let other = "1 0 8:1 / / rw shared:1 - ext4 /dev/sda rw\n2 1 0:5 / /run/net rw - tmpfs tmpfs rw\n";
        assert!(is_received(other, &daemon("master:1 ", "master:1 "), "/run/netns"));
        assert!(!is_received(&daemon("", ""), &daemon("", ""), "/run/netns"), "a private mount");
    }
}
