//! Compiling ahead: the program of an image is compiled when the image arrives, so that its first start
//! finds it prepared.
//!
//! ```text
//!   containerd's image events ─┐                    ┌─ artifact: its layer ─┐
//!   its list, at start and     ├─▶ queue ─▶ image ──┤                       ├─▶ modules::load_ahead
//!   whenever it comes back    ─┘        one by one  └─ entry point: a view ─┘    one compile, nice
//!                                                      of its layers, mounted
//! ```
//!
//! The program of an image is remembered by its manifest's digest, so that after a restart of the daemon
//! nothing is read again: the artifact on disk is mapped, and that is all.
//!
//! It never delays a start: it has a compile process of its own beside the ones of starts, at the lowest
//! priority until a start waits for that very module.
//!
//! Failure paths: containerd away is tried again, with a doubling pause, for ever; what is wrong with an image
//! is logged once, and is the error of its first start.

use std::collections::{HashSet, VecDeque};
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{FileType, Mode, OFlags};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::task::root::{self, FsMount, Root, RootSpec};
use hearth_base::config::{self, Live};
use hearth_base::digest::Digest;
use hearth_base::error::{Error, Result};
use hearth_base::namespace::ContainerdNamespace;
use hearth_base::operator::{Warm, Warmed};
use hearth_base::wanted::Wanted;
use hearth_containerd::client::{Containerd, Entry, Runnable, SnapshotMount};
use hearth_observe::logging;
use hearth_observe::metrics::Metrics;
use hearth_os::in_root::open_root;
use hearth_wasm::modules::lookup::ProgramFile;
use hearth_wasm::modules::origin::Origin;
use hearth_wasm::modules::places::Place;
use hearth_wasm::modules::{Loaded, ModuleStore};

/// The first pause after containerd has gone away; it doubles.
const RETRY: Duration = Duration::from_millis(500);

/// The longest pause.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// When to look at the list again after following began: images of the moment in between are in it.
const SETTLE: Duration = Duration::from_secs(1);

/// The first pause before an image that is not unpacked is looked at again; it doubles.
const UNPACK_RETRY: Duration = Duration::from_millis(100);

/// The longest such pause.
const UNPACK_RETRY_MAX: Duration = Duration::from_secs(5);

/// Where an operator means an image to be, if the configuration follows none.
const DEFAULT_NAMESPACE: &str = "k8s.io";

/// Where a view's layers are mounted, below the daemon's own directory.
const MOUNT_POINT: &str = "ahead";

/// Digits of a manifest's digest in the name of a view.
const DIGITS: usize = 16;

/// Follows one containerd's images.
pub struct Ahead {
    live: Arc<Live>,
    containerd: Containerd,
    modules: Arc<ModuleStore>,
    metrics: Arc<Metrics>,
    /// Where files are read and mounts are made.
    runtime: Handle,
    /// The daemon's own.
    directory: PathBuf,
    mount_point: PathBuf,
    /// This life of the daemon, for names that no other has taken.
    generation: String,
    /// Held while the mount point is in use: an operator's call may come while an image has its turn.
    mounting: Semaphore,
    queue: Mutex<Queue>,
    wake: Notify,
    /// Other images are to be followed.
    changed: Notify,
}

/// Images that wait for their turn, each once.
#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// In `waiting`, or to come back to it.
    known: HashSet<Image>,
}

/// An image's namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Image {
    namespace: ContainerdNamespace,
    name: Arc<str>,
}

struct Waiting {
    image: Image,
    /// When it was first looked at and not unpacked, and the pause after that.
    since: Option<(Instant, Duration)>,
}

/// The result for an image.
pub enum Done {
    /// Its program is prepared.
    Loaded(Loaded),
    /// It runs no WebAssembly, as far as its description tells.
    NotWasm,
    /// Its layers are not unpacked.
    NotUnpacked,
}

impl Ahead {
    /// By the configuration; nothing is followed before [`Ahead::follow`]. `directory`: the daemon's
    /// own.
    pub fn new(
        live: Arc<Live>,
        modules: Arc<ModuleStore>,
        metrics: Arc<Metrics>,
        runtime: Handle,
        directory: &Path,
    ) -> Arc<Ahead> {
        let config = live.now();
        Arc::new(Ahead {
            live,
            containerd: Containerd::new(&config.ahead.containerd.display().to_string(), &config.rpc),
            modules,
            metrics,
            runtime,
            directory: directory.to_path_buf(),
            mount_point: directory.join(MOUNT_POINT),
            generation: directory.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            mounting: Semaphore::new(1),
            queue: Mutex::default(),
            wake: Notify::new(),
            changed: Notify::new(),
        })
    }

    fn config(&self) -> config::Ahead {
        self.live.now().ahead.clone()
    }

    /// Follows the configured namespaces until the handle is aborted.
    pub fn follow(self: &Arc<Self>, background: &Handle) -> JoinHandle<()> {
        let ahead = self.clone();
        background.spawn(async move {
            tokio::join!(ahead.listen(), ahead.work());
        })
    }

    /// Takes another configuration: the namespaces that it names are followed from now on.
    pub fn follow_anew(&self) {
        self.changed.notify_one();
    }

    /// Fills the queue, for ever.
    async fn listen(&self) {
        let mut pause = RETRY;
        loop {
            if self.config().namespaces.is_empty() {
                self.changed.notified().await;
                continue;
            }
            // A node may have its containerd at another socket: that is no error.
            if self.containerd.is_there().await {
                let followed = Instant::now();
                let error = tokio::select! {
                    error = self.containerd.follow_images(|namespace, name| self.enqueue(&namespace, name)) => error,
                    error = self.catch_up() => error,
                    () = self.changed.notified() => continue,
                };
                tracing::info!(%error, "containerd's images are not followed for now: tried again");
                if followed.elapsed() > RETRY_MAX {
                    pause = RETRY;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(RETRY_MAX),
                () = self.changed.notified() => pause = RETRY,
            }
        }
    }

    /// Looks at the list, and again when following has surely begun; returns only if that fails.
    async fn catch_up(&self) -> Error {
        let config = self.config();
        for pause in [Duration::ZERO, SETTLE] {
            tokio::time::sleep(pause).await;
            for namespace in &config.namespaces {
                let namespace = &ContainerdNamespace::from(namespace.as_str());
                match self.containerd.images(namespace, config.images_max).await {
                    Ok(names) => names.iter().for_each(|name| self.enqueue(namespace, name)),
                    Err(error) => return error,
                }
            }
        }
        std::future::pending().await
    }

    fn enqueue(&self, namespace: &ContainerdNamespace, name: &str) {
        let config = self.config();
        if !config.namespaces.iter().any(|followed| **followed == **namespace) {
            return;
        }
        let image = Image { namespace: namespace.clone(), name: name.into() };
        let mut queue = self.queue.lock();
        if queue.known.len() >= config.images_max || !queue.known.insert(image.clone()) {
            return;
        }
        queue.waiting.push_back(Waiting { image, since: None });
        drop(queue);
        self.wake.notify_one();
    }

    /// Takes one image after another, for ever.
    async fn work(self: &Arc<Self>) {
        loop {
            let next = self.queue.lock().waiting.pop_front();
            match next {
                Some(waiting) => self.turn(waiting).await,
                None => self.wake.notified().await,
            }
        }
    }

    /// One image's turn.
    async fn turn(self: &Arc<Self>, waiting: Waiting) {
        let Waiting { image, since } = waiting;
        let label = match self.image(&image.namespace, &image.name).await {
            Ok(Done::NotUnpacked) => {
                let (first, pause) = since.unwrap_or((Instant::now(), UNPACK_RETRY));
                if first.elapsed() < Duration::from_millis(self.config().unpack_timeout_ms) {
                    return self.later(image, first, pause);
                }
                "late"
            }
            Ok(Done::Loaded(Loaded { compile_time: Some(took), .. })) => {
                let (namespace, image, took_ms) = (&*image.namespace, &*image.name, took.as_millis() as u64);
                tracing::info!(namespace, image, took_ms, "compiled ahead of its first start");
                "compiled"
            }
            Ok(Done::Loaded(_)) => "known",
            Ok(Done::NotWasm) => "not_wasm",
            Err(error) => {
                let (namespace, name) = (&*image.namespace, &*image.name);
                tracing::info!(target: logging::GUEST, namespace, image = name, %error, "not compiled ahead");
                "failed"
            }
        };
        self.metrics.modules.images_ahead.with_label_values(&[label]).inc();
        self.queue.lock().known.remove(&image);
    }

    /// Brings an image back after a pause.
    fn later(self: &Arc<Self>, image: Image, first: Instant, pause: Duration) {
        let ahead = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let since = Some((first, (pause * 2).min(UNPACK_RETRY_MAX)));
            ahead.queue.lock().waiting.push_back(Waiting { image, since });
            ahead.wake.notify_one();
        });
    }

    /// Compiles the program of an image, or a file, at an operator's request.
    ///
    /// # Errors
    /// The error of containerd, the file or the compiler.
    pub async fn warm(&self, what: &Warm) -> Result<Warmed> {
        let began = Instant::now();
        let done = match what {
            Warm::Image { namespace, name } => {
                let config = self.config();
                let own = config.namespaces.first().map(String::as_str);
                let namespace = namespace.as_deref().or(own).unwrap_or(DEFAULT_NAMESPACE);
                self.image(&namespace.into(), name).await?
            }
            Warm::File { path } => {
                let loaded = self.modules.load_ahead(Origin::File(self.open(path).await?), None).await?;
                Done::Loaded(loaded)
            }
        };
        let loaded = match done {
            Done::Loaded(loaded) => loaded,
            Done::NotWasm => {
                return Err(Error::InvalidArgument(
                    "the image runs no WebAssembly, as far as its description tells: neither is it a Wasm artifact nor has its entry point .wasm in its name".into(),
                ));
            }
            Done::NotUnpacked => {
                return Err(Error::FailedPrecondition(format!(
                    "the image's layers are not unpacked for the snapshotter {} (ahead.snapshotter): pull it, or import it, with that",
                    self.config().snapshotter
                )));
            }
        };
        Ok(Warmed {
            module: loaded.digest.to_string(),
            compiled: loaded.compile_time.is_some(),
            seconds: began.elapsed().as_secs_f64(),
        })
    }

    /// A file of the node's own.
    async fn open(&self, path: &str) -> Result<ProgramFile> {
        let path = path.to_owned();
        self.blocking(move || {
            let cannot = |what: &dyn Display| Error::InvalidArgument(format!("cannot compile {path}: {what}"));
            // Without waiting for the writer of a FIFO.
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            let file = rustix::fs::open(&path, flags, Mode::empty()).map_err(|e| cannot(&e))?;
            let stat = rustix::fs::fstat(&file).map_err(|e| cannot(&e))?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return Err(cannot(&"it is no regular file"));
            }
            Ok(ProgramFile { file: file.into(), path: path.clone(), export: None, on_root_mount: false })
        })
        .await
    }

    /// Compiles the program of an image, if it is WebAssembly and not compiled yet.
    ///
    /// # Errors
    /// The error of containerd or the compiler.
    pub async fn image(&self, namespace: &ContainerdNamespace, name: &str) -> Result<Done> {
        let Some(Runnable { manifest, program }) = self.containerd.runnable(namespace, name).await? else {
            return Ok(Done::NotWasm);
        };
        let place = Place::of_image(&manifest);
        if let Some(loaded) = self.modules.known(&place).await? {
            return Ok(Done::Loaded(loaded));
        }
        let loaded = match program {
            Entry::Layer(digest) => self.layer(namespace, name, &digest, place).await?,
            Entry::Components(digests) => {
                let mut last = None;
                for digest in digests {
                    last = Some(self.component(namespace, name, &digest).await?);
                }
                return Ok(last.map_or(Done::NotWasm, Done::Loaded));
            }
            Entry::File { chain, wanted } => {
                // It is never closed.
                let _mounting = self.mounting.acquire().await;
                let tail = &manifest[manifest.len().saturating_sub(DIGITS)..];
                let key = format!("hearth-ahead-{}-{tail}", self.generation);
                let snapshotter = self.config().snapshotter;
                let view = self.containerd.view(namespace, &snapshotter, &chain, &key).await?;
                let Some(mounts) = view else { return Ok(Done::NotUnpacked) };
                let loaded = self.file(mounts, wanted, place).await;
                let removed = self.containerd.remove_view(namespace, &snapshotter, &key).await;
                if let Err(error) = removed {
                    tracing::debug!(%error, "a view is left to containerd");
                }
                loaded?
            }
        };
        Ok(Done::Loaded(loaded))
    }

    /// A Wasm artifact.
    async fn layer(&self, namespace: &ContainerdNamespace, image: &str, digest: &str, place: Place) -> Result<Loaded> {
        let origin = self.origin(namespace, image, digest, digest_of(image, digest)?).await?;
        self.modules.load_ahead(origin, Some(place)).await
    }

    /// A component of a Spin application.
    async fn component(&self, namespace: &ContainerdNamespace, image: &str, digest: &str) -> Result<Loaded> {
        let wanted = digest_of(image, digest)?;
        if let Some(loaded) = self.modules.known_component(wanted).await? {
            return Ok(loaded);
        }
        let origin = self.origin(namespace, image, digest, wanted).await?;
        self.modules.load_component_ahead(origin).await
    }

    /// The program of a layer, which containerd knows by the text of its digest.
    async fn origin(&self, namespace: &ContainerdNamespace, image: &str, text: &str, digest: Digest) -> Result<Origin> {
        let bytes = self.containerd.read_blob(namespace, text, self.live.now().modules.module_bytes_max).await?;
        Ok(Origin::Layer { name: image.to_owned(), digest, bytes: bytes.into(), export: None })
    }

    /// A program in an image's layers.
    async fn file(&self, mounts: Vec<SnapshotMount>, wanted: Wanted, place: Place) -> Result<Loaded> {
        let mount = |mount: SnapshotMount| {
            let SnapshotMount { fstype, source, options } = mount;
            FsMount { fstype, source, options }
        };
        let spec = RootSpec {
            rootfs: mounts.into_iter().map(mount).collect(),
            path: self.mount_point.clone(),
            bundle: self.directory.clone(),
            own_path: self.mount_point.clone(),
            read_only: true,
            volumes: Vec::new(),
        };
        let plan = root::plan(spec, &self.live.now().files)?;
        let metrics = self.metrics.clone();
        let root = self.blocking(move || plan.perform(&metrics)).await?;
        let loaded = self.mounted(&root, wanted, place).await;
        self.blocking(move || root.unmount()).await?;
        loaded
    }

    async fn mounted(&self, root: &Root, wanted: Wanted, place: Place) -> Result<Loaded> {
        let found = self.modules.find(open_root(root.path())?, wanted).await?;
        self.modules.load_ahead(Origin::File(found), Some(place)).await
    }

    async fn blocking<T: Send + 'static>(&self, job: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let ended = |e| Error::Internal(format!("mounting ended early: {e}"));
        self.runtime.spawn_blocking(job).await.map_err(ended)?
    }
}

/// The digest of a layer of an image.
fn digest_of(image: &str, text: &str) -> Result<Digest> {
    Digest::required(text).map_err(|error| error.context(image))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_base::config::Config;
    use hearth_wasm::engine::Engines;

    fn ahead(namespaces: &[&str], images_max: usize) -> Arc<Ahead> {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config { root_dir: directory.path().join("lib"), ..Config::default() };
        config.engine.pool_slots = 2;
        config.ahead.namespaces = namespaces.iter().map(ToString::to_string).collect();
        config.ahead.images_max = images_max;
        let metrics = Arc::new(Metrics::new());
        let engines = Arc::new(Engines::new(&config.engine, config.modules.baseline, &[]).unwrap());
        let modules = ModuleStore::open(&config, engines, metrics.clone(), Handle::current()).unwrap();
        Ahead::new(Live::new(config), modules, metrics, Handle::current(), directory.path())
    }

    #[tokio::test]
    async fn an_image_waits_once_and_only_so_many_wait() {
        let ahead = ahead(&["k8s.io"], 2);
        for (namespace, name) in [("k8s.io", "a"), ("k8s.io", "a"), ("other", "b"), ("k8s.io", "c"), ("k8s.io", "d")] {
            ahead.enqueue(&namespace.into(), name);
        }
        let names: Vec<_> = ahead.queue.lock().waiting.iter().map(|waiting| waiting.image.name.to_string()).collect();
        assert_eq!(names, ["a", "c"]);
    }

    #[tokio::test]
    async fn an_image_of_a_namespace_the_configuration_names_by_now_waits() {
        let ahead = ahead(&[], 1);
        ahead.enqueue(&"k8s.io".into(), "a");
        assert!(ahead.queue.lock().waiting.is_empty());
        let mut config = Config::clone(&ahead.live.now());
        config.ahead.namespaces = vec!["k8s.io".into()];
        ahead.live.replace(config);
        ahead.enqueue(&"k8s.io".into(), "a");
        assert_eq!(ahead.queue.lock().waiting.len(), 1);
    }
}
