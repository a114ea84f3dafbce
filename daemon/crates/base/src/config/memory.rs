//! `[memory]`: the behaviour of the daemon near the memory limit of its control group.

use serde::{Deserialize, Serialize};

use super::{ConfigError, refuse};

/// The behaviour near the memory limit of the daemon's control group (`MemoryMax=` of its unit). Without such a limit these
/// keys have no effect. Page cache that the kernel can drop at once does not count.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Memory {
    /// From this part of the limit on, new containers are refused, in percent.
    pub refuse_percent: u64,
    /// From this part of the limit on, the container that is most over its share is ended, in percent. Its share is its own
    /// memory limit, an equal part of the limit at most.
    pub end_percent: u64,
}

impl Default for Memory {
    fn default() -> Self {
        Memory { refuse_percent: 90, end_percent: 95 }
    }
}

impl Memory {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        for (key, percent) in [("memory.refuse_percent", self.refuse_percent), ("memory.end_percent", self.end_percent)]
        {
            if !(1..=100).contains(&percent) {
                return refuse(key, format!("{percent} is not from 1 to 100"));
            }
        }
        if self.end_percent < self.refuse_percent {
            return refuse(
                "memory.end_percent",
                format!("must be at least memory.refuse_percent ({})", self.refuse_percent),
            );
        }
        Ok(())
    }
}
