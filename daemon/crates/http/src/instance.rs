//! Making the instance for a request: what its guest finds around it, and why there may be none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::endings::GuestOutcome;
use crate::lines::Lines;
use crate::service::Service;
use crate::trace_context::CurrentTrace;
use hearth_base::error::Error;
use hearth_wasm::command::trap_text;
use hearth_wasm::instantiate::{self, CallTarget, GuestConfig, GuestInstance, InstantiateError, RootFiles, Streams};
use hearth_wasm::scheduler::Guest;
use hearth_wasm::slots::{Placed, Slot};

impl Service {
    /// Makes the instance for a guest. Its own requests belong to `trace`.
    ///
    /// # Errors
    /// The outcome of a guest that has no instance.
    pub(crate) async fn instance(
        &self,
        guest: &Arc<Guest>,
        placed: Placed,
        trace: CurrentTrace,
    ) -> Result<(Slot, GuestInstance), GuestOutcome> {
        let began = Instant::now();
        let starved: Arc<AtomicBool> = Arc::default();
        let outgoing = || -> instantiate::Outgoing { Box::new(self.outgoing.traced(&trace)) };
        let surroundings = GuestConfig {
            args: &self.args,
            env: &self.env,
            request_id: Some(self.instances.fetch_add(1, Ordering::Relaxed)),
            cwd: &self.cwd,
            files: RootFiles::Open(&self.files),
            partly_read_only: self.partly_read_only,
            open_files_max: self.open_files_max,
            descriptors: &self.descriptors,
            handles_max: self.http.config().handles_max.saturating_mul(self.requests_per_instance()),
            names: self.names.clone(),
            access: &self.access,
            memory: &self.memory,
            starved: &starved,
            outgoing: &outgoing,
        };
        let mark = self.marks.next();
        let streams = || Streams {
            stdin: None::<tokio::io::Empty>,
            stdout: Lines::new(self.stdio.stdout(), mark),
            stderr: Lines::new(self.stdio.stderr(), mark),
        };
        let unseen = || None::<fn()>;
        let made =
            instantiate::instantiate(&self.runtime, guest, placed, CallTarget::Handler, &surroundings, streams, unseen)
                .await;
        let made = made.map_err(|refusal| match refusal {
            InstantiateError::Full(_) => GuestOutcome::Full,
            InstantiateError::NotReady(error) => GuestOutcome::NotStarted(error),
            // The guest has not run yet, so it is the other requests that hold the container's memory.
            InstantiateError::Failed(_) if starved.load(Ordering::Relaxed) => {
                GuestOutcome::NoMemory(self.memory.limit())
            }
            InstantiateError::Failed(error) => GuestOutcome::Trapped(trap_text(&error)),
        })?;
        self.counts.instantiated(began.elapsed());
        Ok(made)
    }
}

/// The outcome where a program changed between WASI 0.2 and 0.3 while it was served.
pub(crate) fn another_world() -> GuestOutcome {
    GuestOutcome::NotStarted(Error::Internal("a service is of another WASI than its program".into()))
}
