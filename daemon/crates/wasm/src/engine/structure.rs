//! How many core instances, memories and tables a guest may have, in every engine.
//!
//! Each memory reserves four gigabytes of the daemon's address space, also one that begins with no page: the number of
//! memories has to be bounded, and not their size alone. A module's structure tells it before the module is
//! instantiated; [`MemoryLimiter`](crate::memory::MemoryLimiter) holds each store to the same numbers, whatever
//! the structure said.

use wasmtime::ResourcesRequired;

use hearth_base::config;
use hearth_base::error::{Error, Result};

/// How many core instances, memories and tables a guest may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StructureLimits {
    /// `engine.component_core_instances_max`.
    pub core_instances: u32,
    /// `engine.memories_max`.
    pub memories: u32,
    /// `engine.tables_max`.
    pub tables: u32,
}

impl StructureLimits {
    /// Those of the configuration.
    pub fn of(config: &config::Engine) -> StructureLimits {
        StructureLimits {
            core_instances: config.component_core_instances_max,
            memories: config.memories_max,
            tables: config.tables_max,
        }
    }

    /// Refuses a module, or a component with all of its core instances, that has more memories or tables. `None`: its
    /// structure does not tell, and instantiating it will.
    ///
    /// # Errors
    /// `ResourceExhausted` naming the limit.
    pub(super) fn check(&self, required: Option<&ResourcesRequired>) -> Result<()> {
        let Some(required) = required else { return Ok(()) };
        let counts = [
            ("linear memories", required.num_memories, self.memories, "engine.memories_max"),
            ("tables", required.num_tables, self.tables, "engine.tables_max"),
        ];
        match counts.into_iter().find(|(_, has, limit, _)| has > limit) {
            Some((what, has, limit, key)) => {
                Err(Error::ResourceExhausted(format!("the module has {has} {what}, more than {limit}: raise {key}")))
            }
            None => Ok(()),
        }
    }
}
