//! wasmtime's configuration: the settings that decide the machine code, and the pool's size.

use wasmtime::{Config, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig, Strategy};

use super::{ModuleKind, Tier};
use hearth_base::config;

/// Core instances, tables and memories in the pool for each slot: a component made by the preview 1
/// adapter has about four core instances, two tables and one memory.
const CORE_INSTANCES_PER_SLOT: u32 = 5;
const TABLES_PER_SLOT: u32 = 3;

/// How much larger a guest's own stack is for baseline code. Frames of baseline code hold values that optimised code
/// keeps in registers: a guest that needs its stack must not overflow it before it is optimised. Frames of code
/// with many locals can be larger by more than this; such a guest traps. All of it is address space until touched.
const BASELINE_STACK_FACTOR: usize = 4;

/// The settings that every engine and the compiler share: they decide the machine code.
pub(super) fn tunables(config: &config::Engine) -> Config {
    let mut tunables = Config::new();
    tunables
        .epoch_interruption(true)
        .cranelift_opt_level(OptLevel::Speed)
        .memory_reservation(config::engine::MEMORY_RESERVATION_BYTES)
        .memory_guard_size(config::engine::MEMORY_GUARD_BYTES)
        .memory_init_cow(true)
        // Backtraces of traps come from wasmtime's own tables; registering DWARF unwind tables with
        // the C runtime for each module costs time under a global lock.
        .native_unwind_info(false)
        .max_wasm_stack(config.wasm_stack_bytes)
        .async_stack_size(config.stack_bytes);
    tunables
}

/// The settings that the baseline engine and its compiler share.
pub(super) fn baseline_tunables(config: &config::Engine) -> Config {
    let mut baseline = tunables(config);
    let more = config.wasm_stack_bytes.saturating_mul(BASELINE_STACK_FACTOR - 1);
    baseline
        .strategy(Strategy::Winch)
        .allocation_strategy(InstanceAllocationStrategy::OnDemand)
        .max_wasm_stack(config.wasm_stack_bytes.saturating_add(more))
        .async_stack_size(config.stack_bytes.saturating_add(more));
    baseline
}

pub(super) fn pool(config: &config::Engine) -> PoolingAllocationConfig {
    let slots = config.pool_slots;
    let mut pool = PoolingAllocationConfig::new();
    pool.total_core_instances(slots.saturating_mul(CORE_INSTANCES_PER_SLOT))
        .total_component_instances(slots)
        .total_memories(config.pool_memories())
        .total_tables(slots.saturating_mul(TABLES_PER_SLOT))
        .total_stacks(slots.saturating_add(slots / 10))
        .total_gc_heaps(slots)
        .max_memory_size(usize::try_from(config.memory_bytes_max).unwrap_or(usize::MAX))
        .table_elements(config.table_elements_max as usize)
        .max_core_instances_per_component(config.component_core_instances_max)
        .max_memories_per_component(config.memories_max)
        .max_memories_per_module(config.memories_max)
        .max_tables_per_component(config.tables_max)
        .max_tables_per_module(config.tables_max)
        .linear_memory_keep_resident(config.memory_keep_resident_bytes)
        .table_keep_resident(64 << 10)
        .max_unused_warm_slots(slots.min(100))
        .pagemap_scan(wasmtime::Enabled::Auto);
    pool
}

/// wasmtime's own compatibility hash, as hex.
pub(super) fn fingerprint(engine: &Engine) -> String {
    /// Collects what is hashed and digests it with a hash that is the same in every process.
    struct Collect(blake3::Hasher);
    impl std::hash::Hasher for Collect {
        fn finish(&self) -> u64 {
            0
        }
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
    }
    let mut collect = Collect(blake3::Hasher::new());
    std::hash::Hash::hash(&engine.precompile_compatibility_hash(), &mut collect);
    collect.0.finalize().to_hex()[..32].to_string()
}

/// Why a module was not compiled; the texts are one line.
#[derive(Debug)]
pub enum CompileError {
    /// wasmtime's error about the module, or the feature that the baseline compiler lacks for it.
    Invalid(String),
    /// There was no memory, or no room for another thread.
    Memory(String),
}

/// Compiles a module or component into an artifact. Runs in the compile process.
///
/// # Errors
/// See [`CompileError`].
pub fn compile(
    config: &config::Engine,
    wasm: &[u8],
    kind: ModuleKind,
    tier: Tier,
) -> std::result::Result<Vec<u8>, CompileError> {
    let failed = |e: wasmtime::Error| {
        let text = format!("{e:#}").replace('\n', " ");
        if super::is_of_node(&e) { CompileError::Memory(text) } else { CompileError::Invalid(text) }
    };
    let tunables = match tier {
        Tier::Optimised => tunables(config),
        Tier::Baseline => baseline_tunables(config),
    };
    let engine = Engine::new(&tunables).map_err(failed)?;
    match kind {
        ModuleKind::Core => engine.precompile_module(wasm),
        ModuleKind::Component => engine.precompile_component(wasm),
    }
    .map_err(failed)
}
