//! Conversions between the daemon's types and those of the Task API: limits, statistics, terminal sizes, processes.

use std::time::Duration;

use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::oci::ProcessDetails;

use hearth_base::bundle::ResourceUpdate;
use hearth_base::error::{Error, Result};
use hearth_os::pty::Size;
use hearth_wasm::scheduler::Throttling;

/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const CGROUP2_MAGIC: i64 = 0x6367_7270;

/// Type of an update's limits: the runtime spec's JSON, as containerd's typeurl names it.
const RESOURCES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// The limits of an Update call.
///
/// # Errors
/// `InvalidArgument` naming the field that is wrong.
pub fn resources(any: Option<&Any>) -> Result<ResourceUpdate> {
    let Some(any) = any else {
        return Err(Error::InvalidArgument("resources: there are none".into()));
    };
    if any.type_url != RESOURCES_TYPE {
        return Err(Error::InvalidArgument(format!("resources: the type is {:?}, not {RESOURCES_TYPE}", any.type_url)));
    }
    ResourceUpdate::parse(&any.value)
}

/// Which of containerd's two statistics messages the host's cgroups call for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupVersion {
    /// Legacy and hybrid hosts.
    V1,
    /// Unified hosts.
    V2,
}

impl CgroupVersion {
    /// As containerd decides it (its cgroups library, `Mode()`): unified if `/sys/fs/cgroup` itself is
    /// a cgroup2 file system.
    pub fn of_host() -> CgroupVersion {
        match rustix::fs::statfs("/sys/fs/cgroup") {
            Ok(stat) if stat.f_type == CGROUP2_MAGIC => CgroupVersion::V2,
            _ => CgroupVersion::V1,
        }
    }
}

/// The resources that one task uses, or several together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// CPU time of the guest.
    pub cpu: Duration,
    /// How it was held back by its CPU quota.
    pub throttling: Throttling,
    /// Linear memories and tables, in bytes.
    pub memory: u64,
    /// The most that ever was, in bytes.
    pub memory_peak: u64,
    /// The memory limit, in bytes.
    pub memory_limit: u64,
    /// How often growing was refused.
    pub memory_refused: u64,
    /// Whether that ended it.
    pub out_of_memory: bool,
    /// Processes: one while it runs.
    pub processes: u64,
}

impl Usage {
    /// Both together.
    pub fn with(self, other: Usage) -> Usage {
        let (one, two) = (self.throttling, other.throttling);
        Usage {
            cpu: self.cpu + other.cpu,
            throttling: Throttling {
                periods: one.periods + two.periods,
                throttled_periods: one.throttled_periods + two.throttled_periods,
                throttled_ns: one.throttled_ns + two.throttled_ns,
            },
            memory: self.memory + other.memory,
            // The peaks need not coincide: an upper bound.
            memory_peak: self.memory_peak + other.memory_peak,
            memory_limit: self.memory_limit.saturating_add(other.memory_limit),
            memory_refused: self.memory_refused + other.memory_refused,
            out_of_memory: self.out_of_memory || other.out_of_memory,
            processes: self.processes + other.processes,
        }
    }
}

/// Statistics as containerd's cgroup monitor and CRI read them; any other type than the host's makes
/// CRI's listing fail for the whole node.
///
/// # Errors
/// `Internal` if encoding fails, which it does not for such small messages.
pub fn stats(usage: Usage, version: CgroupVersion) -> Result<Any> {
    let (type_url, value) = match version {
        CgroupVersion::V1 => ("io.containerd.cgroups.v1.Metrics", stats_v1(usage).write_to_bytes()),
        CgroupVersion::V2 => ("io.containerd.cgroups.v2.Metrics", stats_v2(usage).write_to_bytes()),
    };
    let value = value.map_err(|e| Error::Internal(format!("cannot encode statistics: {e}")))?;
    Ok(Any { type_url: type_url.into(), value, ..Default::default() })
}

/// A terminal's size, as large as the kernel can hold at most.
pub fn terminal_size(width: u32, height: u32) -> Size {
    let short = |length: u32| u16::try_from(length).unwrap_or(u16::MAX);
    Size { width: short(width), height: short(height) }
}

/// containerd's name of [`ProcessDetails`], whose package the generated type does not know.
const PROCESS_DETAILS: &str = "containerd.runc.v1.ProcessDetails";

/// The details of an exec's process in the answer to Pids, as the runc shim has them.
///
/// # Errors
/// `Internal` if encoding fails, which it does not for one string.
pub fn process_details(exec_id: &str) -> Result<Any> {
    let details = ProcessDetails { exec_id: exec_id.into(), ..Default::default() };
    let value = details.write_to_bytes().map_err(|e| Error::Internal(format!("cannot encode an exec's id: {e}")))?;
    Ok(Any { type_url: PROCESS_DETAILS.into(), value, ..Default::default() })
}

fn stats_v1(usage: Usage) -> v1::Metrics {
    let nanoseconds = usage.cpu.as_nanos() as u64;
    v1::Metrics {
        pids: MessageField::some(v1::PidsStat { current: usage.processes, ..Default::default() }),
        cpu: MessageField::some(v1::CPUStat {
            // A guest has no kernel share that could be told apart.
            usage: MessageField::some(v1::CPUUsage { total: nanoseconds, user: nanoseconds, ..Default::default() }),
            throttling: MessageField::some(v1::Throttle {
                periods: usage.throttling.periods,
                throttled_periods: usage.throttling.throttled_periods,
                throttled_time: usage.throttling.throttled_ns,
                ..Default::default()
            }),
            ..Default::default()
        }),
        memory: MessageField::some(v1::MemoryStat {
            rss: usage.memory,
            total_rss: usage.memory,
            hierarchical_memory_limit: usage.memory_limit,
            usage: MessageField::some(v1::MemoryEntry {
                limit: usage.memory_limit,
                usage: usage.memory,
                max: usage.memory_peak,
                failcnt: usage.memory_refused,
                ..Default::default()
            }),
            ..Default::default()
        }),
        memory_oom_control: MessageField::some(v1::MemoryOomControl {
            oom_kill: u64::from(usage.out_of_memory),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn stats_v2(usage: Usage) -> v2::Metrics {
    let microseconds = usage.cpu.as_micros() as u64;
    v2::Metrics {
        pids: MessageField::some(v2::PidsStat { current: usage.processes, ..Default::default() }),
        cpu: MessageField::some(v2::CPUStat {
            usage_usec: microseconds,
            user_usec: microseconds,
            nr_periods: usage.throttling.periods,
            nr_throttled: usage.throttling.throttled_periods,
            throttled_usec: usage.throttling.throttled_ns / 1_000,
            ..Default::default()
        }),
        memory: MessageField::some(v2::MemoryStat {
            anon: usage.memory,
            usage: usage.memory,
            usage_limit: usage.memory_limit,
            ..Default::default()
        }),
        memory_events: MessageField::some(v2::MemoryEvents {
            max: usage.memory_refused,
            oom: u64::from(usage.out_of_memory),
            oom_kill: u64::from(usage.out_of_memory),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USAGE: Usage = Usage {
        cpu: Duration::from_micros(1_500_000),
        memory: 65_536,
        memory_peak: 131_072,
        memory_limit: 1 << 20,
        memory_refused: 2,
        throttling: Throttling { periods: 9, throttled_periods: 4, throttled_ns: 5_000_000 },
        out_of_memory: true,
        processes: 1,
    };

    #[test]
    fn statistics_say_the_same_in_both_forms() {
        let any = stats(USAGE, CgroupVersion::V1).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
        let one = v1::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!(one.cpu.usage.total, 1_500_000_000);
        assert_eq!((one.memory.usage.usage, one.memory.usage.limit), (65_536, 1 << 20));
        let throttle = &one.cpu.throttling;
        assert_eq!((throttle.periods, throttle.throttled_periods, throttle.throttled_time), (9, 4, 5_000_000));
        assert_eq!((one.memory.usage.failcnt, one.memory_oom_control.oom_kill), (2, 1));
        let any = stats(USAGE, CgroupVersion::V2).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let two = v2::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!(two.cpu.usage_usec, 1_500_000);
        assert_eq!((two.cpu.nr_periods, two.cpu.nr_throttled, two.cpu.throttled_usec), (9, 4, 5_000));
        assert_eq!((two.memory_events.max, two.memory_events.oom_kill), (2, 1));
        assert_eq!((two.memory.usage, two.memory.usage_limit, two.pids.current), (65_536, 1 << 20, 1));
    }
}
