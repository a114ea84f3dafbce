//! From a Create request to a task, in phases that undo themselves.
//!
//! ```text
//!   id reserved ─▶ room for events ─▶ config.json ─▶ root planned ─▶ program located ─▶ stdio ─▶ task
//! ```
//!
//! Every phase is a value whose drop takes it back, so a refusal, or a caller that hangs up, leaves
//! nothing behind.
//!
//! Locating the program has two ways. **Warm**: the place (image layers and path, or the file's own
//! identity) is known and its program prepared. Nothing is opened, the root is mounted while Create
//! answers, and the guest waits for it. **Cold**: the root is mounted first, the program looked up in
//! it, read, hashed, and mapped or compiled, all before Create answers, so that what is wrong with an
//! image is Create's error.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use containerd_shim_protos::api::Mount;
use parking_lot::Mutex;

use crate::task::Task;
use crate::task::container::{Container, TERMINATION_LOG};
use crate::task::execs::Execs;
use crate::task::files::Files;
use crate::task::map::{self, TaskMap};
use crate::task::pods::{Membership, Sandboxes};
use crate::task::process::{self, NewProcess, Prepared, Process, Work};
use crate::task::root::{self, FsMount, Plan, Root, RootSpec};
use crate::task::sandbox::{self, Joined, Sandbox, SandboxSpec};
use crate::task::state::{Role, State};
use crate::task::world::World;
use hearth_base::bundle::{self, Cpu, ProcessSpec, SpecMount, TaskSpec};
use hearth_base::config::Live;
use hearth_base::digest::Digest;
use hearth_base::error::{Error, Result};
use hearth_base::faults::{self, Point};
use hearth_base::wanted::Wanted;
use hearth_containerd::events::{Create, Event, Reservation};
use hearth_containerd::peer::Peer;
use hearth_http::service;
use hearth_observe::metrics::{Metrics, Phase, Source};
use hearth_observe::starts::trace::Trace;
use hearth_observe::starts::{About, NewAbout};
use hearth_os::identity::Identity;
use hearth_os::in_root::open_root;
use hearth_stdio::Stdio;
use hearth_stdio::StdioPaths;
use hearth_wasm::budget::Descriptors;
use hearth_wasm::command::over_memory;
use hearth_wasm::engine::{EntryKind, LiveProgram, Program};
use hearth_wasm::memory::MemoryUse;
use hearth_wasm::modules::lookup::{self};
use hearth_wasm::modules::origin::Origin;
use hearth_wasm::modules::places::{Place, RootMount};
use hearth_wasm::modules::{Loaded, ModuleStore};
use hearth_wasm::scheduler::{CpuLimits, Guest};

/// A Create call.
#[derive(Debug)]
pub struct CreateRequest {
    /// The task's id.
    pub id: String,
    /// The bundle's directory.
    pub bundle: PathBuf,
    /// The snapshot's mounts.
    pub rootfs: Vec<Mount>,
    /// Where stdio goes.
    pub stdio: StdioPaths,
    /// Its trace, if it is recorded.
    pub trace: Option<Trace>,
}

/// Makes the tasks of one containerd instance and namespace.
pub struct Creator {
    pub(super) namespace: Arc<str>,
    pub(super) peer: Arc<Peer>,
    pub(super) config: Arc<Live>,
    pub(super) modules: Arc<ModuleStore>,
    pub(super) world: Arc<World>,
    sandboxes: Arc<Sandboxes>,
    runtime: tokio::runtime::Handle,
}

/// A program with its root.
struct Located {
    program: Arc<LiveProgram>,
    digest: Digest,
    export: Option<Arc<str>>,
    source: Source,
    files: Arc<Files>,
}

/// What Create has seen to.
struct Made {
    work: Work,
    network: Joined,
    pod: Membership,
    termination_log: Option<PathBuf>,
    partly_read_only: bool,
    guest: Guest,
    cpu: Cpu,
    memory_limit: u64,
    stdio: Stdio,
    files: Arc<Files>,
    events: Reservation,
    about: Arc<About>,
}

impl Creator {
    /// A creator for one namespace.
    pub fn new(
        namespace: &str,
        peer: Arc<Peer>,
        config: Arc<Live>,
        modules: Arc<ModuleStore>,
        world: Arc<World>,
        sandboxes: Arc<Sandboxes>,
        runtime: tokio::runtime::Handle,
    ) -> Creator {
        Creator { namespace: namespace.into(), peer, config, modules, world, sandboxes, runtime }
    }

    /// containerd's namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Makes a task and puts it into `map`. `began`: when the request arrived.
    ///
    /// # Errors
    /// Whatever is wrong with the request, the bundle, the image or the node, in one line.
    pub async fn create(&self, map: &Arc<TaskMap>, request: CreateRequest, began: Instant) -> Result<Arc<Task>> {
        let reservation = map.reserve(&request.id)?;
        let events = self.peer.events.reserve()?;
        faults::at(Point::Reserved);
        let spec = TaskSpec::read(&request.bundle, self.config.now().rpc.spec_bytes_max)?;
        if spec.role == bundle::Role::Sandbox {
            let about = self.about(&request, &spec, began);
            return Ok(self.fill(reservation, self.sandbox(request, spec, events, about).await?));
        }
        let about = self.about(&request, &spec, began);
        self.create_container(request, (spec, about.clone()), (reservation, events), began).await.inspect_err(|error| {
            // One that is native is passed on, and starts elsewhere.
            if !matches!(error, Error::Native(_)) {
                self.world.runtime.recent.failed(&about, &error.to_string());
            }
        })
    }

    /// What those who look see of it.
    fn about(&self, request: &CreateRequest, spec: &TaskSpec, began: Instant) -> Arc<About> {
        let upper = request.rootfs.iter().flat_map(|mount| &mount.options);
        About::new(NewAbout {
            namespace: self.namespace.clone(),
            id: request.id.as_str().into(),
            names: spec.names.clone(),
            program: spec.process.args.first().cloned().unwrap_or_default(),
            began,
            bundle_written_at: spec.written_at,
            snapshot: upper.filter_map(|option| option.strip_prefix("upperdir=")).next().map(PathBuf::from),
            trace: request.trace.clone(),
        })
    }

    async fn create_container(
        &self,
        request: CreateRequest,
        (mut spec, about): (TaskSpec, Arc<About>),
        (reservation, events): (map::Reservation, Reservation),
        began: Instant,
    ) -> Result<Arc<Task>> {
        let pod = sandbox::of(&spec, &self.sandboxes)?;
        if let Some(pod) = &pod {
            let more =
                pod.mounts(spec.read_only, |path| spec.mounts.iter().any(|m| m.destination == Path::new(path)))?;
            spec.mounts.extend(more);
        }
        let network = sandbox::network(&spec, pod.as_ref(), &self.world.holders).await?;
        faults::at(Point::Joined);
        let plan = root::plan(root_spec(&request, &spec), &self.config.now().files)?;
        let partly_read_only = plan.is_partly_read_only();
        about.phase(&self.world.runtime.metrics, Phase::Bundle, began, began.elapsed());

        let located = self.locate(&request, &spec, plan, &about).await.map_err(|error| match (error, &spec.role) {
            (Error::Native(text), bundle::Role::Alone | bundle::Role::Sandbox) => Error::InvalidArgument(text),
            (error, _) => error,
        })?;
        faults::at(Point::Located);
        let entry = located
            .program
            .now()
            .check_entry(&self.world.runtime.engines, located.export.as_deref(), service::asked(&spec.process.env)?)
            .map_err(|e| e.context(spec.process.args.first().map_or("the artifact", String::as_str)))?;
        let memory_limit = spec.memory_limit.unwrap_or(u64::MAX).min(self.config.now().engine.memory_bytes_max);
        check_memory(&located.program.now(), memory_limit)?;
        let identity = Identity::new(&spec.process.user, network.namespace.clone())?;
        let guest = Guest::new(identity, CpuLimits::of(&spec.cpu)?);
        let stdio = Stdio::open(&self.namespace, &request.id, &request.stdio, &self.config.now().stdio).await?;
        faults::at(Point::Opened);

        // Of nobody else.
        let _ = about.module.set(located.digest);
        about.created(located.source, began.elapsed());
        let open_files_max = self.open_files_max(&spec.process);
        let prepared =
            Prepared { program: located.program, export: located.export, spec: spec.process, open_files_max };
        let made = Made {
            work: match entry {
                EntryKind::Run => Work::Program(Box::new(prepared)),
                EntryKind::Serve => Work::Serve(Box::new(prepared)),
            },
            network,
            pod: pod.map_or(Membership::Alone, Membership::In),
            termination_log: termination_log(&spec.mounts),
            partly_read_only,
            guest,
            cpu: spec.cpu,
            memory_limit,
            stdio,
            files: located.files,
            events,
            about,
        };
        Ok(self.fill(reservation, self.task(request, made)))
    }

    /// A pod's sandbox: a record that holds the pod's network. Nothing of its image is looked at.
    async fn sandbox(
        &self,
        request: CreateRequest,
        spec: TaskSpec,
        events: Reservation,
        about: Arc<About>,
    ) -> Result<(Arc<Task>, Create)> {
        let TaskSpec { network, hostname, scopes, sysctls, cpu, memory_limit, .. } = spec;
        let (sandbox, runtime) = (SandboxSpec { network, hostname, scopes, sysctls }, self.runtime.clone());
        let made = self.runtime.spawn_blocking(move || Sandbox::new(sandbox, None, runtime)).await;
        let sandbox = Arc::new(made.map_err(|e| Error::Internal(format!("making a sandbox ended early: {e}")))??);
        let made = Made {
            work: Work::Pause,
            network: sandbox.network.clone(),
            pod: Membership::Sandbox(sandbox),
            termination_log: None,
            guest: Guest::default(),
            cpu,
            memory_limit: memory_limit.unwrap_or(self.config.now().engine.memory_bytes_max),
            stdio: Stdio::none(&self.config.now().stdio),
            files: Files::none(self.runtime.clone()),
            partly_read_only: false,
            events,
            about,
        };
        Ok(self.task(request, made))
    }

    /// Files that a process may have open.
    pub(super) fn open_files_max(&self, spec: &ProcessSpec) -> u32 {
        let max = self.config.now().files.open_max;
        spec.open_files.and_then(|soft| u32::try_from(soft).ok()).map_or(max, |soft| soft.min(max))
    }

    /// The task, and what containerd is told of it.
    fn task(&self, request: CreateRequest, made: Made) -> (Arc<Task>, Create) {
        let id = made.about.id.clone();
        let create = Create {
            container_id: id.clone(),
            bundle: request.bundle.display().to_string(),
            rootfs: request.rootfs,
            stdin: request.stdio.stdin.clone(),
            stdout: request.stdio.stdout.clone(),
            stderr: request.stdio.stderr.clone(),
            terminal: request.stdio.terminal,
            checkpoint: String::new(),
            pid: made.network.pid(),
        };
        let container = Arc::new(Container {
            id: id.clone(),
            namespace: self.namespace.clone(),
            seat: match made.work {
                Work::Pause => self.world.task_series.none(),
                _ => self.world.task_series.seat(self.namespace.clone(), id.clone()),
            },
            about: made.about,
            bundle: request.bundle,
            network: made.network,
            pod: made.pod,
            termination_log: made.termination_log,
            files: made.files,
            partly_read_only: made.partly_read_only,
            memory: Arc::new(MemoryUse::new(made.memory_limit)),
            descriptors: Arc::new(Descriptors::new(
                format!("{}/{id}", self.namespace),
                self.config.now().files.open_max,
            )),
            memory_limit_max: self.config.now().engine.memory_bytes_max,
            cpu: Mutex::new(made.cpu),
            execs: Execs::new(self.config.now().rpc.execs_per_task_max),
            requests: matches!(made.work, Work::Serve(_)).then(Arc::default),
            metrics: self.world.runtime.metrics.clone(),
            recent: self.world.runtime.recent.clone(),
        });
        let init = NewProcess {
            id,
            role: Role::Init,
            stdio_paths: request.stdio,
            stdio: made.stdio,
            guest: made.guest,
            events: made.events,
            work: made.work,
        };
        let init = Process::new(container.clone(), init);
        (Arc::new(Task { container, init }), create)
    }

    /// Makes the task known, to containerd first.
    fn fill(&self, reservation: map::Reservation, (task, create): (Arc<Task>, Create)) -> Arc<Task> {
        self.world.runtime.metrics.tasks.by_state.with_label_values(&[process::label(State::Created)]).inc();
        task.init.publish(Event::Create(Box::new(create)));
        reservation.fill(task.clone());
        faults::at(Point::Created);
        task
    }

    /// Finds the program and sees to the root, by the shortest way there is.
    async fn locate(
        &self,
        request: &CreateRequest,
        spec: &TaskSpec,
        plan: Plan,
        about: &Arc<About>,
    ) -> Result<Located> {
        let found = |began: Instant| about.phase(&self.world.runtime.metrics, Phase::Lookup, began, began.elapsed());
        let mount = |plan| Files::mount(plan, about.clone(), self.world.runtime.metrics.clone(), self.runtime.clone());
        let began = Instant::now();
        let wanted = wanted(&spec.process);
        let place = wanted.as_ref().and_then(|wanted| snapshot_place(request, spec, wanted));
        if let Some(place) = &place {
            let loaded = match self.modules.warm(place) {
                Some(loaded) => Some(loaded),
                None => self.modules.known(place).await?,
            };
            if let Some(loaded) = loaded {
                found(began);
                return Ok(located(loaded, mount(plan)));
            }
        }
        if let Some(wanted) = &wanted
            && plan.is_bare()
            && spec.root == request.bundle.join(ROOTFS)
            && let Some(loaded) = self.warm_in_bundle(&spec.root, wanted)
        {
            found(began);
            return Ok(located(loaded, mount(plan)));
        }
        self.locate_cold(request, plan, wanted, place, about).await
    }

    /// A prepared program in a bundle's own directory. containerd's state directory is on the node's
    /// own disk or in its memory, so looking into it on a request's thread is in order.
    fn warm_in_bundle(&self, root: &Path, wanted: &Wanted) -> Option<Loaded> {
        let root = open_root(root).ok()?;
        let found = lookup::locate(root.as_fd(), wanted).ok()?;
        let loaded = self.modules.warm(&Place::of_file(&found.file)?)?;
        Some(Loaded { export: found.export, ..loaded })
    }

    /// Mounts the root, looks the program up in it, reads and prepares it.
    async fn locate_cold(
        &self,
        request: &CreateRequest,
        plan: Plan,
        wanted: Option<Wanted>,
        place: Option<Place>,
        about: &Arc<About>,
    ) -> Result<Located> {
        let (metrics, theirs) = (self.world.runtime.metrics.clone(), about.clone());
        let root = self.runtime.spawn_blocking(move || perform(plan, &theirs, &metrics)).await;
        let root = root.map_err(|e| Error::Internal(format!("mounting ended early: {e}")))??;
        faults::at(Point::Mounted);
        let began = Instant::now();
        let found = match wanted.clone() {
            Some(wanted) => self.modules.find(open_root(root.path())?, wanted).await,
            None => Err(Error::InvalidArgument(
                "process.args is empty: the image has no entry point and no argument was given".into(),
            )),
        };
        let loaded = match found {
            Ok(found) => self.modules.load(Origin::File(found), place).await,
            Err(missing) => self.load_artifact(request, wanted.as_ref(), missing).await,
        };
        let loaded = match loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                // It waits for the disk; who tries again, or hands it to runc, finds nothing mounted.
                let _ = self.runtime.spawn_blocking(move || drop(root)).await;
                return Err(error);
            }
        };
        let compile_time = loaded.compile_time.unwrap_or_default();
        let lookup_time = began.elapsed().saturating_sub(compile_time);
        about.phase(&self.world.runtime.metrics, Phase::Lookup, began, lookup_time);
        if loaded.compile_time.is_some() {
            // What is looked up after it is a trifle.
            about.phase(&self.world.runtime.metrics, Phase::Compile, began + lookup_time, compile_time);
        }
        Ok(located(loaded, Files::ready(root, self.runtime.clone())))
    }

    /// The program of an image that is a Wasm OCI artifact: its one layer is the module, and there is
    /// nothing in the root. `missing`: why there is no program in the root.
    async fn load_artifact(&self, request: &CreateRequest, wanted: Option<&Wanted>, missing: Error) -> Result<Loaded> {
        let containerd = &self.peer.client;
        let artifact = match containerd.wasm_artifact(&self.namespace, &request.id).await {
            Ok(Some(artifact)) => artifact,
            Ok(None) => return Err(missing),
            Err(error) => {
                tracing::debug!(%error, task = %request.id, "cannot tell whether the image is a Wasm artifact");
                return Err(missing);
            }
        };
        let digest = Digest::parse(&artifact.digest).ok_or_else(|| {
            Error::InvalidArgument(format!("{}: {:?} is not a SHA-256 digest", artifact.image, artifact.digest))
        })?;
        let export: Option<Arc<str>> = wanted.and_then(Wanted::export).map(Arc::from);
        match self.modules.known_digest(digest, export.clone()).await? {
            Some(loaded) => Ok(loaded),
            None => {
                let limit = self.config.now().modules.module_bytes_max;
                let bytes = containerd.read_blob(&self.namespace, &artifact.digest, limit).await?;
                let origin = Origin::Layer { name: artifact.image, digest, bytes: bytes.into(), export };
                self.modules.load(origin, None).await
            }
        }
    }
}

/// The root's directory in a bundle.
const ROOTFS: &str = "rootfs";

/// Where a root that is no snapshot is mounted, in the bundle.
const OWN_ROOT: &str = "root";

fn root_spec(request: &CreateRequest, spec: &TaskSpec) -> RootSpec {
    let mount = |mount: &Mount| FsMount {
        fstype: mount.type_.clone(),
        source: mount.source.clone(),
        options: mount.options.clone(),
    };
    RootSpec {
        rootfs: request.rootfs.iter().map(mount).collect(),
        path: spec.root.clone(),
        own_path: request.bundle.join(OWN_ROOT),
        read_only: spec.read_only,
        volumes: spec.mounts.clone(),
    }
}

/// Refuses a program that starts with more memory than `limit`.
pub(super) fn check_memory(program: &Program, limit: u64) -> Result<()> {
    match program.initial_memory().map(|memory| memory.at_least) {
        Some(initial) if initial > limit => Err(over_memory(limit, &format!("it starts with {initial} bytes"))),
        _ => Ok(()),
    }
}

/// What to look for; none if the spec names no program.
pub(super) fn wanted(spec: &ProcessSpec) -> Option<Wanted> {
    let program = spec.args.first()?.clone();
    Some(Wanted { program, path: spec.path().map(str::to_string), cwd: spec.cwd.clone() })
}

fn termination_log(mounts: &[SpecMount]) -> Option<PathBuf> {
    let log = mounts.iter().find(|mount| mount.destination == Path::new(TERMINATION_LOG))?;
    Some(log.source.clone().into()).filter(|source: &PathBuf| source.is_absolute())
}

fn snapshot_place(request: &CreateRequest, spec: &TaskSpec, wanted: &Wanted) -> Option<Place> {
    let mounts: Vec<_> =
        request.rootfs.iter().map(|mount| RootMount { fstype: &mount.type_, options: &mount.options }).collect();
    Place::of_snapshot(&mounts, wanted, &spec.mounts)
}

fn perform(plan: Plan, about: &About, metrics: &Metrics) -> Result<Root> {
    let began = Instant::now();
    let root = plan.perform(metrics)?;
    about.phase(metrics, Phase::Mounts, began, began.elapsed());
    Ok(root)
}

fn located(loaded: Loaded, files: Arc<Files>) -> Located {
    Located { program: loaded.program, digest: loaded.digest, export: loaded.export, source: loaded.source, files }
}
