//! From an Exec request to one more process of a task, in phases that undo themselves.
//!
//! ```text
//!   task runs? ─▶ id reserved ─▶ room for events ─▶ spec ─▶ program located ─▶ stdio ─▶ process
//! ```
//!
//! The program is one of the container's root, which is mounted as long as the task runs. It is looked up and prepared
//! here, so that Start is fast. A program that cannot run is refused at Start, as runc does: clients take an error of
//! Exec for a fault of the request or the task.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::task::Task;
use crate::task::container::Container;
use crate::task::create::Creator;
use crate::task::process::state::{Role, State};
use crate::task::process::{NewProcess, Prepared, Process, Work};
use crate::task::program::{check_memory, open_files_max, owner, wanted};
use hearth_base::bundle::ProcessSpec;
use hearth_base::error::{Error, Result};
use hearth_base::tenant::Kind;
use hearth_base::wanted::Wanted;
use hearth_containerd::events::Event;
use hearth_os::identity::Identity;
use hearth_os::in_root::open_root;
use hearth_stdio::Stdio;
use hearth_stdio::StdioPaths;
use hearth_wasm::engine::EntryKind;
use hearth_wasm::modules::Loaded;
use hearth_wasm::modules::origin::Origin;
use hearth_wasm::scheduler::Guest;

/// An Exec call.
#[derive(Debug)]
pub struct ExecRequest {
    /// The exec's id.
    pub exec_id: String,
    /// The JSON of its OCI process.
    pub spec: Vec<u8>,
    /// Where stdio goes.
    pub stdio: StdioPaths,
}

impl Creator {
    /// Adds a process to a task. What is wrong with its program is the error of its Start.
    ///
    /// # Errors
    /// The fault of the request or of the task's state, in one line.
    pub async fn exec(&self, task: &Task, request: ExecRequest) -> Result<()> {
        let ExecRequest { exec_id, spec, stdio: stdio_paths } = request;
        let container = &task.container;
        check_running(task)?;
        if task.is_init(&exec_id) {
            return Err(Error::AlreadyExists(format!("{exec_id:?} is the id of the task's own process")));
        }
        let reserved = task.execs.reserve(&exec_id)?;
        let events = self.peer.events.reserve_exec()?;
        let spec_bytes_max = self.config.now().rpc.spec_bytes_max;
        if spec.len() as u64 > spec_bytes_max {
            return Err(Error::InvalidArgument(format!(
                "the exec's spec is over {spec_bytes_max} bytes (rpc.spec_bytes_max)"
            )));
        }
        let spec = ProcessSpec::parse(&spec)?;
        let found = self.locate_exec(task, &spec).await?;
        let stdio = Stdio::open(&self.namespace, container.id.as_ref(), &stdio_paths, &self.config.now().stdio).await?;

        let identity = Identity::new(&spec.user, container.network.namespace.clone())?;
        let guest = Guest::member(task.init.guest(), identity);
        let open_files_max = open_files_max(&spec);
        let work = match found {
            Ok(Loaded { program, export, .. }) => {
                Work::Program(Box::new(Prepared { program, export, spec, open_files_max }))
            }
            Err(refusal) => Work::Refused(refusal),
        };
        let id: Arc<str> = exec_id.into();
        let new = NewProcess { id: id.clone(), role: Role::Exec, stdio_paths, stdio, guest, events, work };
        let exec = Process::new(container.clone(), task.execs.clone(), new);
        let added = Event::ExecAdded { container_id: container.id.clone(), exec_id: id };
        reserved.fill(exec.clone(), || exec.publish(added))
    }

    /// Finds the program in the task's root and prepares it. The inner result: what is wrong with the program.
    async fn locate_exec(&self, task: &Task, spec: &ProcessSpec) -> Result<Result<Loaded>> {
        let nothing = || Error::InvalidArgument("cannot exec: no command was given".into());
        let wanted = wanted(spec).ok_or_else(nothing)?;
        let files = &task.container.files;
        if files.is_none() {
            return Err(Error::FailedPrecondition("a pod's sandbox has no programs to exec".into()));
        }
        // The init may be running while its root is still being mounted; its guest waits for it too.
        files.wait_ready().await?;
        let command = wanted.program.clone();
        let loaded = self.load_exec(open_root(files.path())?, wanted, &task.container).await;
        Ok(loaded.map_err(|error| {
            error.context(format!("cannot exec {command:?}, only WebAssembly programs run in a Hearth task"))
        }))
    }

    /// Finds a program in `root` and prepares it, if it is a command that the container can run: it has the interfaces
    /// that the program imports, and the memory that it starts with.
    async fn load_exec(&self, root: OwnedFd, wanted: Wanted, container: &Container) -> Result<Loaded> {
        let _permit = container.tenant.wait(Kind::Compiles, 1).await;
        let found = self.modules.find(root, wanted).await?;
        let loaded = self.modules.load(Origin::File(found), None, owner(&container.about)).await?;
        let program = loaded.program.now();
        let entry = program.check_entry(&self.world.runtime.engines, loaded.export.as_deref(), false)?;
        if entry == EntryKind::Serve {
            return Err(Error::InvalidArgument(
                "the component is an HTTP service: only a container's first process can serve".into(),
            ));
        }
        program.check_access(&self.world.runtime.engines, &container.access)?;
        check_memory(&program, container.memory.limit())?;
        Ok(loaded)
    }
}

fn check_running(task: &Task) -> Result<()> {
    match task.init.snapshot().state {
        State::Running => Ok(()),
        State::Created | State::Starting => {
            Err(Error::FailedPrecondition("cannot exec in a task that has not been started: start it first".into()))
        }
        State::Paused => Err(Error::FailedPrecondition("cannot exec in a paused task: resume it first".into())),
        State::Stopped(_) => Err(Error::FailedPrecondition("cannot exec in a stopped task".into())),
    }
}
