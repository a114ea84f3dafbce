//! Fourth phase of a Create: the program is found and prepared, by the shortest way there is, and the root is
//! mounted or being mounted.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::task::files::Files;
use crate::task::program::wanted;
use crate::task::root::{Plan, Root};
use crate::task::sandbox::{Joined, Sandbox};
use hearth_base::bundle::{self, TaskSpec};
use hearth_base::digest::Digest;
use hearth_base::error::{Error, Result};
use hearth_base::faults::{self, Point};
use hearth_base::wanted::Wanted;
use hearth_observe::metrics::{Metrics, Phase};
use hearth_observe::starts::About;
use hearth_os::in_root::open_root;
use hearth_wasm::modules::Loaded;
use hearth_wasm::modules::lookup;
use hearth_wasm::modules::origin::Origin;
use hearth_wasm::modules::places::{Place, RootMount};

use super::planned::{Planned, ROOTFS};
use super::specified::Specified;
use super::{CreateRequest, Creator};

/// A Create whose program is prepared.
pub(super) struct Located {
    pub(super) loaded: Loaded,
    pub(super) files: Arc<Files>,
    /// Whether the root, or a volume in it, refuses writes.
    pub(super) partly_read_only: bool,
    pub(super) network: Joined,
    pub(super) pod: Option<Arc<Sandbox>>,
    /// Dropped last.
    pub(super) specified: Specified,
}

impl Planned {
    /// Finds the program, prepares it and mounts the root.
    ///
    /// # Errors
    /// `Native` if the container is one of a pod and its program is no WebAssembly; else what is wrong with the
    /// image, the volumes or the module.
    pub(super) async fn locate(self, creator: &Creator) -> Result<Located> {
        let Planned { plan, network, pod, specified } = self;
        let partly_read_only = plan.is_partly_read_only();
        let search = Search {
            creator,
            request: &specified.request,
            spec: &specified.spec,
            about: &specified.about,
            wanted: wanted(&specified.spec.process),
        };
        let found = search.run(plan).await;
        let (loaded, files) = found.map_err(|error| match (error, &specified.spec.role) {
            (Error::Native(text), bundle::Role::Alone | bundle::Role::Sandbox) => Error::InvalidArgument(text),
            (error, _) => error,
        })?;
        faults::at(Point::Located);
        Ok(Located { loaded, files, partly_read_only, network, pod, specified })
    }
}

/// A search for a container's program.
struct Search<'a> {
    creator: &'a Creator,
    request: &'a CreateRequest,
    spec: &'a TaskSpec,
    about: &'a Arc<About>,
    /// `None`: the spec names no program.
    wanted: Option<Wanted>,
}

impl Search<'_> {
    async fn run(self, plan: Plan) -> Result<(Loaded, Arc<Files>)> {
        let began = Instant::now();
        let place = self.wanted.as_ref().and_then(|wanted| self.snapshot_place(wanted));
        let warm = match self.warm_by_place(place.as_ref()).await? {
            Some(loaded) => Some(loaded),
            None if plan.is_bare() => self.warm_in_bundle(),
            None => None,
        };
        match warm {
            Some(loaded) => {
                self.about.phase(self.metrics(), Phase::Lookup, began, began.elapsed());
                let metrics = self.metrics().clone();
                Ok((loaded, Files::mount(plan, self.about.clone(), metrics, self.creator.runtime.clone())))
            }
            None => self.cold(plan, place).await,
        }
    }

    fn metrics(&self) -> &Arc<Metrics> {
        &self.creator.world.runtime.metrics
    }

    fn snapshot_place(&self, wanted: &Wanted) -> Option<Place> {
        let mounts = self.request.rootfs.iter();
        let mounts: Vec<_> = mounts.map(|mount| RootMount { fstype: &mount.type_, options: &mount.options }).collect();
        Place::of_snapshot(&mounts, wanted, &self.spec.mounts)
    }

    async fn warm_by_place(&self, place: Option<&Place>) -> Result<Option<Loaded>> {
        let Some(place) = place else { return Ok(None) };
        match self.creator.modules.warm(place) {
            Some(loaded) => Ok(Some(loaded)),
            None => self.creator.modules.known(place).await,
        }
    }

    /// A prepared program in a bundle's own directory. The look-up runs on the thread of the call: containerd's
    /// state directory is on the node's own disk or in its memory.
    fn warm_in_bundle(&self) -> Option<Loaded> {
        let wanted = self.wanted.as_ref()?;
        let path: &Path = &self.spec.root;
        if path != self.request.bundle.join(ROOTFS) {
            return None;
        }
        let root = open_root(path).ok()?;
        let found = lookup::locate(root.as_fd(), wanted).ok()?;
        let loaded = self.creator.modules.warm(&Place::of_file(&found.file)?)?;
        Some(Loaded { export: found.export, ..loaded })
    }

    /// Mounts the root, looks the program up in it, reads and prepares it.
    async fn cold(self, plan: Plan, place: Option<Place>) -> Result<(Loaded, Arc<Files>)> {
        let runtime = &self.creator.runtime;
        let (metrics, about) = (self.metrics().clone(), self.about.clone());
        let root = runtime.spawn_blocking(move || mount(plan, &about, &metrics)).await;
        let root = root.map_err(|e| Error::Internal(format!("mounting ended early: {e}")))??;
        faults::at(Point::Mounted);
        let began = Instant::now();
        let loaded = match self.load(&root, place).await {
            Ok(loaded) => loaded,
            Err(error) => {
                // The unmount waits for the disk. A second Create, or runc, finds nothing mounted.
                let _ = runtime.spawn_blocking(move || drop(root)).await;
                return Err(error);
            }
        };
        let compile_time = loaded.compile_time.unwrap_or_default();
        let lookup_time = began.elapsed().saturating_sub(compile_time);
        self.about.phase(self.metrics(), Phase::Lookup, began, lookup_time);
        if loaded.compile_time.is_some() {
            // What is looked up after the compile takes next to no time.
            self.about.phase(self.metrics(), Phase::Compile, began + lookup_time, compile_time);
        }
        Ok((loaded, Files::ready(root, runtime.clone())))
    }

    /// The program in the mounted root, or else the image's artifact.
    async fn load(&self, root: &Root, place: Option<Place>) -> Result<Loaded> {
        let modules = &self.creator.modules;
        let found = match self.wanted.clone() {
            Some(wanted) => modules.find(open_root(root.path())?, wanted).await,
            None => Err(Error::InvalidArgument(
                "process.args is empty: the image has no entry point and no argument was given".into(),
            )),
        };
        match found {
            Ok(found) => modules.load(Origin::File(found), place).await,
            Err(missing) => self.load_artifact(missing).await,
        }
    }

    /// The program of an image that is a Wasm OCI artifact: its one layer is the module, and the root is empty.
    /// `missing`: why there is no program in the root.
    async fn load_artifact(&self, missing: Error) -> Result<Loaded> {
        let Creator { namespace, modules, config, peer, .. } = self.creator;
        let artifact = match peer.client.wasm_artifact(namespace, &self.request.id).await {
            Ok(Some(artifact)) => artifact,
            Ok(None) => return Err(missing),
            Err(error) => {
                tracing::debug!(%error, task = %self.request.id, "cannot tell whether the image is a Wasm artifact");
                return Err(missing);
            }
        };
        let digest = Digest::parse(&artifact.digest).ok_or_else(|| {
            Error::InvalidArgument(format!("{}: {:?} is not a SHA-256 digest", artifact.image, artifact.digest))
        })?;
        let export: Option<Arc<str>> = self.wanted.as_ref().and_then(Wanted::export).map(Arc::from);
        match modules.known_digest(digest, export.clone()).await? {
            Some(loaded) => Ok(loaded),
            None => {
                let limit = config.now().modules.module_bytes_max;
                let bytes = peer.client.read_blob(namespace, &artifact.digest, limit).await?;
                let origin = Origin::Layer { name: artifact.image, digest, bytes: bytes.into(), export };
                modules.load(origin, None).await
            }
        }
    }
}

fn mount(plan: Plan, about: &About, metrics: &Metrics) -> Result<Root> {
    let began = Instant::now();
    let root = plan.perform(metrics)?;
    about.phase(metrics, Phase::Mounts, began, began.elapsed());
    Ok(root)
}
