//! The task of a pod's sandbox: a record that holds the pod's network. Nothing of its image is looked at.

use std::sync::Arc;

use crate::task::files::Files;
use crate::task::process::Work;
use crate::task::sandbox::{Membership, Sandbox, SandboxSpec};
use hearth_base::bundle::TaskSpec;
use hearth_base::error::{Error, Result};
use hearth_stdio::Stdio;
use hearth_wasm::access::Access;
use hearth_wasm::memory::MemoryUse;
use hearth_wasm::scheduler::Guest;

use super::Creator;
use super::assembled::{Assembled, Parts};
use super::specified::Specified;

impl Specified {
    /// Makes the sandbox and its task.
    ///
    /// # Errors
    /// As [`Sandbox::new`].
    pub(super) async fn make_sandbox(self, creator: &Creator) -> Result<Assembled> {
        let tenant = self.tenant(creator, None);
        let Specified { request, spec, about, reserved, .. } = self;
        let TaskSpec { network, hostname, scopes, sysctls, user_namespace, cpu, memory_limit, .. } = spec;
        let sandbox = SandboxSpec { network, hostname, scopes, sysctls, user_namespace };
        let runtime = creator.runtime.clone();
        let made = creator.runtime.spawn_blocking(move || Sandbox::new(sandbox, None, runtime)).await;
        let sandbox = Arc::new(made.map_err(|e| Error::Internal(format!("making a sandbox ended early: {e}")))??);
        let config = creator.config.now();
        let parts = Parts {
            work: Work::Pause,
            network: sandbox.network.clone(),
            pod: Membership::Sandbox(sandbox),
            termination_log: None,
            guest: Guest::default(),
            access: Access::default(),
            cpu,
            memory: MemoryUse::new(memory_limit.unwrap_or(config.engine.memory_bytes_max)),
            tenant,
            limit: None,
            stdio: Stdio::none(&config.stdio),
            files: Files::none(creator.runtime.clone()),
            partly_read_only: false,
            about,
        };
        Assembled::new(creator, request, parts, reserved)
    }
}
