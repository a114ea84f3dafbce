//! `[engine]`: wasmtime's engines: the slots of the pool and the address space they take, guests beyond the pool, the
//! largest memories, tables and stacks.

use serde::{Deserialize, Serialize};

use super::{ConfigError, at_least_one, refuse};

/// Address space of one linear memory, in bytes. With 4 GiB, compiled code needs no bounds check.
pub const MEMORY_RESERVATION_BYTES: u64 = 4 << 30;

/// Unmapped address space after a linear memory, in bytes, so that a constant offset needs no check either.
pub const MEMORY_GUARD_BYTES: u64 = 32 << 20;

/// The stack that host functions need beyond the guest's own share, in bytes. They run on the guest's stack, and an
/// overflow there ends the whole process.
const HOST_STACK_BYTES_MIN: usize = 1 << 20;

/// The largest address space that the pool can reserve, in bytes.
///
/// wasmtime maps the memories of all slots as one contiguous range. A process has 128 TiB on x86-64 (47 bits) and
/// 256 TiB on 64-bit ARM (48 bits), but Linux loads a program at two thirds of it (`ELF_ET_DYN_BASE`), so the largest
/// free range lies below the program. The allocator has its heap in the lowest 6 TiB (mimalloc's `MI_HINT_BASE` and
/// `MI_HINT_AREA`), and grows upwards: 8 TiB are left to it.
const POOL_BYTES_MAX: u64 = (1 << if cfg!(target_arch = "x86_64") { 47 } else { 48 }) / 3 * 2 - (8 << 40);

/// wasmtime's engine and its pool.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Engine {
    /// Guests that get a warm slot. Each slot costs about 5 GiB of address space, and no memory until it is used.
    pub pool_slots: u32,
    /// Guests beyond the pool, allocated on demand (slower to start).
    pub on_demand_max: u32,
    /// The largest linear memory of a guest, in bytes; a container's own limit may be lower.
    pub memory_bytes_max: u64,
    /// The largest table, in elements.
    pub table_elements_max: u32,
    /// Core instances of which a component may consist.
    pub component_core_instances_max: u32,
    /// Linear memories a module or component may have.
    pub memories_max: u32,
    /// Tables a module or component may have.
    pub tables_max: u32,
    /// Handles that a component that is a command may have at once: files, sockets, streams, sets of headers. The
    /// daemon keeps them outside the guest's memory.
    pub handles_max: usize,
    /// A guest's stack, including the frames of host functions, in bytes.
    pub stack_bytes: usize,
    /// A guest's own share of its stack, in bytes.
    pub wasm_stack_bytes: usize,
    /// Pages of a slot's memory kept resident between guests, in bytes.
    pub memory_keep_resident_bytes: usize,
}

impl Default for Engine {
    fn default() -> Self {
        Engine {
            pool_slots: 1_000,
            on_demand_max: 1_000,
            memory_bytes_max: MEMORY_RESERVATION_BYTES,
            table_elements_max: 20_000,
            component_core_instances_max: 50,
            memories_max: 10,
            tables_max: 50,
            handles_max: 65_536,
            stack_bytes: 2 << 20,
            wasm_stack_bytes: 512 << 10,
            memory_keep_resident_bytes: 1 << 20,
        }
    }
}

impl Engine {
    /// The most slots whose memories fit the address space.
    pub const POOL_SLOTS_MAX: u32 = {
        // The memories that fit beside the guard in front of the first.
        let memories = (POOL_BYTES_MAX - MEMORY_GUARD_BYTES) / (MEMORY_RESERVATION_BYTES + MEMORY_GUARD_BYTES);
        // The largest number for which `pool_memories` is not above that.
        ((5 * memories + 4) / 6) as u32
    };

    /// The linear memories of the pool: a fifth more than slots, since some components have two.
    pub fn pool_memories(&self) -> u32 {
        self.pool_slots.saturating_add(self.pool_slots / 5)
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        at_least_one(&[
            ("engine.pool_slots", u64::from(self.pool_slots)),
            ("engine.memory_bytes_max", self.memory_bytes_max),
            ("engine.component_core_instances_max", u64::from(self.component_core_instances_max)),
            ("engine.memories_max", u64::from(self.memories_max)),
            ("engine.tables_max", u64::from(self.tables_max)),
            ("engine.handles_max", self.handles_max as u64),
        ])?;
        if self.pool_slots > Self::POOL_SLOTS_MAX {
            return refuse(
                "engine.pool_slots",
                format!(
                    "at most {}: the pool reserves the memories of all slots in one piece, about 5 GiB of address space a slot, and a process has no larger piece than {} TiB; use engine.on_demand_max for more guests",
                    Self::POOL_SLOTS_MAX,
                    POOL_BYTES_MAX >> 40
                ),
            );
        }
        if self.wasm_stack_bytes.saturating_add(HOST_STACK_BYTES_MIN) > self.stack_bytes {
            return refuse(
                "engine.stack_bytes",
                format!("must leave host functions 1 MiB beyond engine.wasm_stack_bytes ({})", self.wasm_stack_bytes),
            );
        }
        if self.memory_bytes_max > MEMORY_RESERVATION_BYTES {
            return refuse(
                "engine.memory_bytes_max",
                format!("at most {MEMORY_RESERVATION_BYTES}, the reservation of a slot"),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool_bytes(pool_slots: u32) -> u64 {
        let memories = Engine { pool_slots, ..Engine::default() }.pool_memories();
        u64::from(memories) * (MEMORY_RESERVATION_BYTES + MEMORY_GUARD_BYTES) + MEMORY_GUARD_BYTES
    }

    #[test]
    fn the_largest_pool_fits_and_one_slot_more_does_not() {
        let largest = Engine { pool_slots: Engine::POOL_SLOTS_MAX, ..Engine::default() };
        largest.check().unwrap();
        assert!(pool_bytes(largest.pool_slots) <= POOL_BYTES_MAX);
        let beyond = Engine { pool_slots: Engine::POOL_SLOTS_MAX + 1, ..Engine::default() };
        let error = beyond.check().unwrap_err().to_string();
        assert!(error.starts_with(&format!("engine.pool_slots: at most {}", Engine::POOL_SLOTS_MAX)), "{error}");
        assert!(pool_bytes(beyond.pool_slots) > POOL_BYTES_MAX);
    }
}
