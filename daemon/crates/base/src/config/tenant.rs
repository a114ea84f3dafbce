//! `[tenant]`: limits of the things that one container takes from the node, by kind.

use serde::{Deserialize, Serialize};

use super::{ConfigError, at_least_one};

/// Limits of the things that one container takes from the node. No ordinary container meets one of these limits. The
/// memory of its guests has the limit of its spec. A limit holds for containers that are created from then on.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tenant {
    /// How many times the limits of one container the containers of a pod have together.
    pub pod_factor: u64,
    /// Address space that its guests beyond the pool may reserve, in bytes: about 4 GiB for each linear memory.
    pub address_space_bytes_max: u64,
    /// Memory mappings that its guests beyond the pool may take: about 3 for each linear memory.
    pub mappings_max: u64,
    /// Modules that are read, compiled or prepared for its start or its execs at once.
    pub compiles_max: usize,
    /// Files, directories and sockets that its guests may have open together; one guest has no more than its spec's
    /// `RLIMIT_NOFILE`. They are descriptors of the daemon, which has `LimitNOFILE` of them.
    pub descriptors_max: u32,
    /// Threads of `scheduler.workers_max` that its guests may block in system calls; a quarter of them at most. Its other
    /// guests wait until one is free again.
    pub blocked_workers_max: usize,
    /// Look-ups of names under way; more wait.
    pub lookups_max: usize,
    /// HTTP requests to it at once, each an instance; more wait.
    pub http_requests_max: usize,
    /// Requests of components of a Spin application to each other at once; more are refused.
    pub component_calls_max: usize,
    /// Connections of its clients at once; more wait in the kernel's queue.
    pub http_connections_max: usize,
    /// Connections that its guests may have open for requests of their own, idle ones included.
    pub outgoing_connections_max: usize,
    /// Execs, including execs that have ended and are not deleted yet.
    pub execs_max: usize,
}

impl Default for Tenant {
    fn default() -> Self {
        Tenant {
            pod_factor: 4,
            address_space_bytes_max: 4 << 40,
            mappings_max: 4_096,
            compiles_max: 8,
            descriptors_max: 4_096,
            blocked_workers_max: 32,
            lookups_max: 16,
            http_requests_max: 256,
            component_calls_max: 256,
            http_connections_max: 1_024,
            outgoing_connections_max: 256,
            execs_max: 64,
        }
    }
}

impl Tenant {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        at_least_one(&[
            ("tenant.pod_factor", self.pod_factor),
            ("tenant.address_space_bytes_max", self.address_space_bytes_max),
            ("tenant.mappings_max", self.mappings_max),
            ("tenant.compiles_max", self.compiles_max as u64),
            ("tenant.descriptors_max", u64::from(self.descriptors_max)),
            ("tenant.blocked_workers_max", self.blocked_workers_max as u64),
            ("tenant.lookups_max", self.lookups_max as u64),
            ("tenant.http_requests_max", self.http_requests_max as u64),
            ("tenant.component_calls_max", self.component_calls_max as u64),
            ("tenant.http_connections_max", self.http_connections_max as u64),
            ("tenant.outgoing_connections_max", self.outgoing_connections_max as u64),
            ("tenant.execs_max", self.execs_max as u64),
        ])
    }
}
