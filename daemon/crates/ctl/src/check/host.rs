//! The node's kernel and its settings.

use std::fs;

use super::Finding;
use hearth_base::operator::Status;
use hearth_os::clock;

/// Memory mappings of a guest: its slot and its stack.
const MAPPINGS_PER_GUEST: u64 = 5;

/// Memory mappings of the daemon without guests, and of the modules.
const MAPPINGS_OF_THE_DAEMON: u64 = 8_192;

/// Below this, mounts and waiting for processes do not work: pidfd_open(2), fsopen(2).
const KERNEL_LEAST: (u32, u32) = (5, 3);

/// From this on binds are made by mount_setattr(2): twice as fast.
const KERNEL_GOOD: (u32, u32) = (5, 12);

/// `vm.overcommit_memory`: never commit more than there is.
const NEVER_OVERCOMMIT: u64 = 2;

pub fn check(status: Option<&Status>) -> Vec<Finding> {
    let mut findings = vec![kernel(rustix::system::uname().release().to_string_lossy().as_ref())];
    findings.push(overlay(&fs::read_to_string("/proc/filesystems").unwrap_or_default()));
    findings.push(mappings(number("/proc/sys/vm/max_map_count"), status));
    findings.push(overcommit(number("/proc/sys/vm/overcommit_memory")));
    findings.push(propagation(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()));
    findings.push(time());
    findings
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().ok());
    let version = (numbers.next().flatten(), numbers.next().flatten());
    let (Some(major), Some(minor)) = version else {
        return Finding::warn("kernel", format!("{release} says no version"), "it has to be Linux 5.3 or later");
    };
    match (major, minor) {
        old if old < KERNEL_LEAST => Finding::fail("kernel", release, "hearthd needs Linux 5.3 or later"),
        old if old < KERNEL_GOOD => {
            Finding::warn("kernel", release, "volumes are mounted faster by Linux 5.12 or later")
        }
        _ => Finding::ok("kernel", release),
    }
}

fn overlay(filesystems: &str) -> Finding {
    match filesystems.lines().any(|line| line.split_whitespace().last() == Some("overlay")) {
        true => Finding::ok("overlayfs", "the kernel has it"),
        false => Finding::warn(
            "overlayfs",
            "the kernel has not loaded it",
            "modprobe overlay, unless containerd uses another snapshotter",
        ),
    }
}

fn mappings(limit: Option<u64>, status: Option<&Status>) -> Finding {
    const NAME: &str = "vm.max_map_count";
    let pool = status.map(|status| status.pool.slots + status.pool.on_demand_limit);
    let guests = pool.unwrap_or_else(|| {
        let defaults = hearth_base::config::Engine::default();
        u64::from(defaults.pool_slots) + u64::from(defaults.on_demand_max)
    });
    let wanted = MAPPINGS_OF_THE_DAEMON + guests * MAPPINGS_PER_GUEST;
    match limit {
        Some(limit) if limit >= wanted => Finding::ok(NAME, format!("{limit}, enough for {guests} guests")),
        Some(limit) => Finding::warn(
            NAME,
            format!(
                "{limit}, enough for {} of {guests} guests",
                limit.saturating_sub(MAPPINGS_OF_THE_DAEMON) / MAPPINGS_PER_GUEST
            ),
            format!("sysctl -w vm.max_map_count={}, and a file in /etc/sysctl.d", wanted.max(1 << 20)),
        ),
        None => Finding::warn(NAME, "it cannot be read", "is /proc mounted?"),
    }
}

fn overcommit(mode: Option<u64>) -> Finding {
    const NAME: &str = "vm.overcommit_memory";
    match mode {
        Some(NEVER_OVERCOMMIT) => Finding::warn(
            NAME,
            "2: guests' memory counts before it is used",
            "sysctl -w vm.overcommit_memory=0, or a smaller engine.pool_slots",
        ),
        Some(mode) => Finding::ok(NAME, mode.to_string()),
        None => Finding::warn(NAME, "it cannot be read", "is /proc mounted?"),
    }
}

/// Volumes that kubelet mounts later have to reach the daemon's mount namespace.
fn propagation(mountinfo: &str) -> Finding {
    const NAME: &str = "mount propagation";
    // 25 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
    let root = mountinfo.lines().rfind(|line| line.split(' ').nth(4) == Some("/"));
    let is_shared = root.is_some_and(|line| line.split(" - ").next().unwrap_or_default().contains(" shared:"));
    match is_shared {
        true => Finding::ok(NAME, "/ is shared"),
        false => Finding::warn(
            NAME,
            "/ is not shared: volumes that are mounted after hearthd has started do not reach it",
            "mount --make-rshared / before hearthd starts (systemd does that)",
        ),
    }
}

fn time() -> Finding {
    const NAME: &str = "clock";
    match clock::is_synchronized() {
        Some(true) => Finding::ok(NAME, "synchronised"),
        Some(false) => Finding::warn(
            NAME,
            "not synchronised: times of exits and logs may be off",
            "enable chrony or systemd-timesyncd",
        ),
        None => Finding::warn(
            NAME,
            "the kernel does not say whether it is synchronised",
            "see that chrony or systemd-timesyncd runs",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;

    #[test]
    fn a_kernel_is_judged_by_its_release() {
        let states = ["4.19.0-27-amd64", "5.2", "5.10.0-33-amd64", "6.1.0", "6.18.5+deb14", "x"]
            .map(|release| kernel(release).severity);
        assert_eq!(
            states,
            [Severity::Fail, Severity::Fail, Severity::Warn, Severity::Ok, Severity::Ok, Severity::Warn]
        );
    }

    #[test]
    fn mappings_have_to_do_for_the_pool_that_is_configured() {
        let mut status = Status::default();
        status.pool.slots = 1_000;
        assert_eq!(mappings(Some(65_530), Some(&status)).severity, Severity::Ok);
        status.pool.slots = 20_000;
        let few = mappings(Some(65_530), Some(&status));
        assert_eq!(few.severity, Severity::Warn);
        assert!(few.detail.contains("11467 of 20000") && few.remedy.contains("1048576"), "{few:?}");
    }

    #[test]
    fn a_private_root_is_found() {
        let line = |optional: &str| {
            format!("1 0 8:1 / / rw {optional}- ext4 /dev/sda rw\n2 1 0:5 / /proc rw shared:2 - proc proc rw\n")
        };
        assert_eq!(propagation(&line("shared:1 ")).severity, Severity::Ok);
        assert_eq!(propagation(&line("")).severity, Severity::Warn);
        assert_eq!(propagation("").severity, Severity::Warn);
    }
}
