//! `[modules]`: the module store and the compile processes: sizes, numbers, time and memory of a compile, its user, the
//! baseline compiler.

use serde::{Deserialize, Serialize};

use super::{ConfigError, at_least_one, refuse};

/// The guests that start on code of the baseline compiler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Baseline {
    /// None.
    Never,
    /// HTTP services that have an instance for each request.
    Services,
    /// All.
    All,
}

/// The module store and the compiler.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Modules {
    /// The largest Wasm file, in bytes.
    pub module_bytes_max: u64,
    /// The largest compiled artifact, in bytes.
    pub artifact_bytes_max: u64,
    /// The most that artifacts may take on disk, in bytes; the least recently used one is removed first.
    pub store_bytes_max: u64,
    /// Modules kept prepared in memory; the least recently used one is dropped first.
    pub prepared_max: usize,
    /// Known places of modules (image layer and path, or file) kept in memory.
    pub places_max: usize,
    /// The guests that start on code of the baseline compiler, which takes a fifth of the time to compile and is two
    /// to three times slower, until the optimising compiler is done as well: `services` (those of wasi:http 0.2,
    /// which have an instance for each request, so that requests soon get the better code), `all` (commands too,
    /// which keep their code until they end) or `never`, which also removes that compiler from the code that the
    /// sandbox trusts. On x86-64 only.
    pub baseline: Baseline,
    /// The smallest Wasm file that the baseline compiler compiles, in bytes.
    pub baseline_bytes_min: u64,
    /// Compile processes at once.
    pub compiles_max: usize,
    /// How long a compile that starts wait for may run while others wait, in milliseconds. Then it is stopped until its
    /// turn comes again. Turns go round by namespace and pod.
    pub compile_turn_ms: u64,
    /// Compiles that are stopped so; each keeps its memory. 0: a compile that runs keeps its turn to its end.
    pub compiles_parked_max: usize,
    /// Compiles that wait for a process.
    pub compile_queue_max: usize,
    /// Threads of one compile process; 0: one per core.
    pub compile_threads: usize,
    /// Address space of a compile process, in bytes.
    pub compile_memory_bytes_max: u64,
    /// CPU time of a compile process, in seconds.
    pub compile_cpu_seconds_max: u64,
    /// Wall time of a compile process, in seconds.
    pub compile_seconds_max: u64,
    /// User and group of a compile process.
    pub compile_uid: u32,
}

impl Default for Modules {
    fn default() -> Self {
        Modules {
            module_bytes_max: 256 << 20,
            artifact_bytes_max: 1 << 30,
            store_bytes_max: 10 << 30,
            prepared_max: 512,
            places_max: 16_384,
            baseline: Baseline::Services,
            baseline_bytes_min: 512 << 10,
            compiles_max: 1,
            compile_turn_ms: 2_000,
            compiles_parked_max: 2,
            compile_queue_max: 1_024,
            compile_threads: 0,
            compile_memory_bytes_max: 8 << 30,
            compile_cpu_seconds_max: 300,
            compile_seconds_max: 300,
            compile_uid: 65_534,
        }
    }
}

impl Modules {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        at_least_one(&[
            ("modules.module_bytes_max", self.module_bytes_max),
            ("modules.artifact_bytes_max", self.artifact_bytes_max),
            ("modules.prepared_max", self.prepared_max as u64),
            ("modules.places_max", self.places_max as u64),
            ("modules.compiles_max", self.compiles_max as u64),
            ("modules.compile_turn_ms", self.compile_turn_ms),
            ("modules.compile_queue_max", self.compile_queue_max as u64),
            ("modules.compile_seconds_max", self.compile_seconds_max),
            ("modules.compile_cpu_seconds_max", self.compile_cpu_seconds_max),
        ])?;
        if self.compile_uid == 0 {
            return refuse("modules.compile_uid", "the compiler reads untrusted bytes: it must not run as root");
        }
        Ok(())
    }
}
