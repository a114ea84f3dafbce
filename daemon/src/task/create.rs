//! stand-in
use std::{path::PathBuf, sync::Arc, time::Instant};
use crate::error::*; use crate::task::*; use crate::events::{Create, Event};
use crate::wasm::instance::World;
/// x
pub struct CreateRequest { /// x
 pub id: String, /// x
 pub bundle: PathBuf, /// x
 pub rootfs: Vec<containerd_shim_protos::api::Mount>, /// x
 pub stdio: StdioPaths }
/// x
pub struct Creator { ns: Arc<str>, instance: Arc<crate::server::instances::Instance>, config: Arc<crate::config::Config>, modules: Arc<crate::wasm::modules::ModuleStore>, world: Arc<World>, runtime: tokio::runtime::Handle }
impl Creator {
    /// x
    pub fn new(ns: &str, instance: Arc<crate::server::instances::Instance>, config: Arc<crate::config::Config>, modules: Arc<crate::wasm::modules::ModuleStore>, world: Arc<World>, runtime: tokio::runtime::Handle) -> Creator { Creator { ns: ns.into(), instance, config, modules, world, runtime } }
    /// x
    pub async fn create(&self, map: &Arc<map::TaskMap>, r: CreateRequest, began: Instant) -> Result<Arc<Task>> {
        let reservation = map.reserve(&r.id)?;
        let events = self.instance.events.reserve()?;
        let spec = crate::bundle::TaskSpec::read(&r.bundle, self.config.rpc.spec_bytes_max)?;
        let m = self.world.metrics.clone();
        m.phase(crate::metrics::Phase::Bundle, began.elapsed());
        let plan = root::Plan { path: spec.root.clone(), rootfs: r.rootfs.clone() };
        let files = Files::mount(plan, m.clone(), self.runtime.clone());
        files.wait_ready().await?;
        let l = Instant::now();
        let path = spec.root.join(spec.args[0].trim_start_matches('/'));
        let modules = self.modules.clone();
        let program = modules.get(&path)?;
        m.phase(crate::metrics::Phase::Lookup, l.elapsed());
        program.check_entry(&self.world.engines, None)?;
        let stdio = Arc::new(stdio::Stdio::open(&r.stdio)?);
        let limit = spec.memory_limit.unwrap_or(4 << 30);
        let id: Arc<str> = r.id.as_str().into();
        let task = Arc::new(Task { id: id.clone(), namespace: self.ns.clone(), bundle: r.bundle.clone(), stdio_paths: r.stdio.clone(), memory_limit: limit, memory: Arc::default(), guest: Arc::default(), stdio, files, events, metrics: m.clone(),
            inner: Mutex::new(Inner { state: State::Created, prepared: Some(Prepared { program, export: None, args: spec.args, env: spec.env, cwd: spec.cwd, read_only: spec.read_only, memory_limit: limit, source: Source::Warm, create_took: began.elapsed() }), killed_with: None }), exit: watch::Sender::new(None) });
        m.tasks.with_label_values(&["created"]).inc();
        task.events.publish(&self.ns, Event::Create(Box::new(Create { container_id: id, bundle: r.bundle.display().to_string(), rootfs: vec![], stdin: r.stdio.stdin, stdout: r.stdio.stdout, stderr: r.stdio.stderr, terminal: false, checkpoint: String::new(), pid: pid() })));
        reservation.fill(task.clone());
        Ok(task)
    }
}
