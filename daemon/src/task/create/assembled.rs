//! Last phase of a Create: the task is put together, announced to containerd, and found under its id.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::task::Task;
use crate::task::container::{Container, TERMINATION_LOG};
use crate::task::execs::Execs;
use crate::task::files::Files;
use crate::task::map;
use crate::task::process::state::{Role, State};
use crate::task::process::{NewProcess, Prepared, PreparedApplication, Process, Work};
use crate::task::program::open_files_max;
use crate::task::sandbox::{Joined, Membership};
use hearth_base::bundle::{Cpu, SpecMount};
use hearth_base::error::Result;
use hearth_base::faults::{self, Point};
use hearth_base::tenant::Tenant;
use hearth_containerd::events::{Create, Event};
use hearth_observe::starts::About;
use hearth_os::mount::MountOptions;
use hearth_stdio::Stdio;
use hearth_wasm::access::Access;
use hearth_wasm::memory::MemoryUse;
use hearth_wasm::modules::Loaded;
use hearth_wasm::scheduler::Guest;
use rustix::mount::MountFlags;

use super::located::Found;
use super::opened::{Opened, Runs};
use super::reserved::Reserved;
use super::{CreateRequest, Creator};

/// The parts of a task.
pub(super) struct Parts {
    pub(super) work: Work,
    pub(super) network: Joined,
    pub(super) pod: Membership,
    pub(super) termination_log: Option<PathBuf>,
    pub(super) partly_read_only: bool,
    pub(super) guest: Guest,
    pub(super) access: Access,
    pub(super) cpu: Cpu,
    pub(super) memory: MemoryUse,
    pub(super) tenant: Arc<Tenant>,
    /// The spec's memory limit, in bytes; `None`: none.
    pub(super) limit: Option<u64>,
    pub(super) stdio: Stdio,
    pub(super) files: Arc<Files>,
    pub(super) about: Arc<About>,
}

/// A task that is not known yet.
pub(super) struct Assembled {
    task: Arc<Task>,
    /// The event for containerd.
    event: Create,
    id: map::Reservation,
}

impl Opened {
    /// The task of a container.
    ///
    /// # Errors
    /// As [`Assembled::new`].
    pub(super) fn assemble(self, creator: &Creator) -> Result<Assembled> {
        let Opened { stdio, guest, access, memory_limit, runs, located } = self;
        let specified = located.specified;
        let (spec, about) = (specified.spec, specified.about);
        about.created(located.found.source(), specified.began.elapsed());
        let open_files_max = open_files_max(&spec.process);
        let (digest, work) = match located.found {
            Found::Application(application) => {
                let digest = application.digest;
                let spec = spec.process;
                let prepared = PreparedApplication { application: *application, spec, open_files_max };
                (digest, Work::Application(Box::new(prepared)))
            }
            Found::Program(Loaded { program, export, digest, .. }) => {
                let prepared = Box::new(Prepared { program, export, spec: spec.process, open_files_max });
                let serves = runs == Runs::Service;
                (digest, if serves { Work::Serve(prepared) } else { Work::Program(prepared) })
            }
        };
        // Nothing else sets it.
        let _ = about.module.set(digest);
        let parts = Parts {
            work,
            network: located.network,
            termination_log: termination_log(&spec.mounts),
            partly_read_only: located.partly_read_only,
            guest,
            access,
            cpu: spec.cpu,
            memory: match &located.pod {
                Some(pod) => MemoryUse::new(memory_limit).within(pod.memory(&spec.cgroups_path)),
                None => MemoryUse::new(memory_limit),
            },
            pod: located.pod.map_or(Membership::Alone, Membership::In),
            tenant: located.tenant,
            limit: spec.memory_limit,
            stdio,
            files: located.files,
            about,
        };
        Assembled::new(creator, specified.request, parts, specified.reserved)
    }
}

impl Assembled {
    /// # Errors
    /// In a cell: as [`CellHome::begin`](crate::cell::home::CellHome::begin).
    pub(super) fn new(
        creator: &Creator,
        request: CreateRequest,
        parts: Parts,
        reserved: Reserved,
    ) -> Result<Assembled> {
        let id = parts.about.id.clone();
        if let Some(cell) = &creator.world.cell {
            let log = parts.termination_log.clone();
            match parts.work {
                Work::Pause => cell.note(&id, log)?,
                _ => cell.begin(&id, parts.limit, log)?,
            }
        }
        let event = Create {
            container_id: id.clone(),
            bundle: request.bundle.display().to_string(),
            rootfs: request.rootfs,
            stdin: request.stdio.stdin.clone(),
            stdout: request.stdio.stdout.clone(),
            stderr: request.stdio.stderr.clone(),
            terminal: request.stdio.terminal,
            checkpoint: String::new(),
            pid: parts.network.pid(),
        };
        let (world, config) = (&creator.world, creator.config.now());
        let container = Arc::new(Container {
            id: id.clone(),
            namespace: creator.namespace.clone(),
            seat: match parts.work {
                Work::Pause => world.task_series.none(),
                _ => world.task_series.seat(creator.namespace.clone(), id.clone()),
            },
            about: parts.about,
            bundle: request.bundle,
            network: parts.network,
            pod: parts.pod,
            termination_log: parts.termination_log,
            files: parts.files,
            partly_read_only: parts.partly_read_only,
            memory: Arc::new(parts.memory),
            tenant: parts.tenant.clone(),
            access: parts.access,
            memory_limit_max: config.engine.memory_bytes_max,
            cpu: Mutex::new(parts.cpu),
            application: parts.work.application(),
            requests: parts.work.serves().then(Arc::default),
            metrics: world.runtime.metrics.clone(),
            recent: world.runtime.recent.clone(),
            cell: world.cell.clone(),
        });
        let execs = Arc::new(Execs::new(parts.tenant));
        let init = NewProcess {
            id,
            role: Role::Init,
            stdio_paths: request.stdio,
            stdio: parts.stdio,
            guest: parts.guest,
            events: reserved.events,
            work: parts.work,
        };
        let init = Process::new(container.clone(), execs.clone(), init);
        Ok(Assembled { task: Arc::new(Task { container, init, execs }), event, id: reserved.id })
    }

    /// Makes the task known, to containerd first.
    pub(super) fn publish(self, creator: &Creator) -> Arc<Task> {
        let Assembled { task, event, id } = self;
        creator.world.runtime.metrics.tasks.by_state.with_label_values(&[State::Created.label()]).inc();
        task.init.publish(Event::Create(Box::new(event)));
        id.fill(task.clone());
        faults::at(Point::Created);
        task
    }
}

/// The file on the node that kubelet reads the end of a container from; `None` if the container has none, or may
/// only read it.
fn termination_log(mounts: &[SpecMount]) -> Option<PathBuf> {
    let log = mounts.iter().rev().find(|mount| mount.destination == Path::new(TERMINATION_LOG))?;
    let options = MountOptions::parse(&log.options);
    let read_only = (options.flags | options.tree_flags).contains(MountFlags::RDONLY);
    Some(PathBuf::from(&log.source)).filter(|source| source.is_absolute() && !read_only)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_termination_log_that_the_container_may_only_read_is_left_alone() {
        let log = |source: &str, options: &[&str]| SpecMount {
            destination: TERMINATION_LOG.into(),
            fstype: "bind".into(),
            source: source.into(),
            options: options.iter().map(ToString::to_string).collect(),
        };
        let writable = log("/pod/log", &["rbind", "rprivate", "rw"]);
        assert_eq!(termination_log(std::slice::from_ref(&writable)), Some("/pod/log".into()));
        for read_only in [&["rbind", "ro"][..], &["rbind", "rro"]] {
            assert_eq!(termination_log(&[log("/pod/log", read_only)]), None, "{read_only:?}");
            // The later of two mounts hides the earlier.
            assert_eq!(termination_log(&[writable.clone(), log("/pod/log", read_only)]), None);
        }
        assert_eq!(termination_log(&[log("log", &["rbind"])]), None);
        assert_eq!(termination_log(&[]), None);
    }
}
