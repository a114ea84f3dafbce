//! Fourth phase of a Create: the program is found and prepared, by the shortest way there is, and the root is
//! mounted or being mounted.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::spin::loaded::LoadedApplication;
use crate::spin::other_hosts;
use crate::task::files::Files;
use crate::task::program::{owner, wanted};
use crate::task::root::{Plan, Root};
use crate::task::sandbox::{Joined, Sandbox};
use hearth_base::bundle::{self, TaskSpec};
use hearth_base::digest::Digest;
use hearth_base::error::{Error, Result};
use hearth_base::faults::{self, Point};
use hearth_base::tenant::{Kind, Tenant};
use hearth_base::wanted::Wanted;
use hearth_containerd::client::{Artifact, WasmArtifact};
use hearth_observe::metrics::{Metrics, Phase, Source};
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
    pub(super) found: Found,
    pub(super) files: Arc<Files>,
    /// Whether the root, or a volume in it, refuses writes.
    pub(super) partly_read_only: bool,
    pub(super) network: Joined,
    pub(super) pod: Option<Arc<Sandbox>>,
    /// The container's budget.
    pub(super) tenant: Arc<Tenant>,
    /// Dropped last.
    pub(super) specified: Specified,
}

/// The program or the application that a container runs.
pub(super) enum Found {
    /// One program.
    Program(Loaded),
    /// A Spin application.
    Application(Box<LoadedApplication>),
}

impl Found {
    /// The slowest source of its programs.
    pub(super) fn source(&self) -> Source {
        match self {
            Found::Program(loaded) => loaded.source,
            Found::Application(application) => {
                let sources = application.components.values().map(|loaded| loaded.source);
                sources.max_by_key(|source| *source as u8).unwrap_or(Source::Warm)
            }
        }
    }

    /// How long compiles took for this call.
    fn compile_time(&self) -> Option<Duration> {
        match self {
            Found::Program(loaded) => loaded.compile_time,
            Found::Application(application) => {
                let times = application.components.values().filter_map(|loaded| loaded.compile_time);
                times.reduce(|sum, time| sum + time)
            }
        }
    }
}

impl Planned {
    /// Finds the program, prepares it and mounts the root.
    ///
    /// # Errors
    /// `Native` if the container is one of a pod and its program is no WebAssembly; else what is wrong with the
    /// image, the volumes or the module.
    pub(super) async fn locate(self, creator: &Creator) -> Result<Located> {
        let Planned { plan, network, pod, tenant, specified } = self;
        let partly_read_only = plan.is_partly_read_only();
        let search = Search {
            creator,
            request: &specified.request,
            spec: &specified.spec,
            about: &specified.about,
            tenant: &tenant,
            wanted: wanted(&specified.spec.process),
        };
        let found = search.run(plan).await;
        let (found, files) = found.map_err(|error| match (error, &specified.spec.role) {
            (Error::Native(text), bundle::Role::Alone | bundle::Role::Sandbox) => Error::InvalidArgument(text),
            (error, _) => error,
        })?;
        faults::at(Point::Located);
        Ok(Located { found, files, partly_read_only, network, pod, tenant, specified })
    }
}

/// A search for a container's program.
pub(super) struct Search<'a> {
    pub(super) creator: &'a Creator,
    request: &'a CreateRequest,
    pub(super) spec: &'a TaskSpec,
    pub(super) about: &'a Arc<About>,
    tenant: &'a Arc<Tenant>,
    /// `None`: the spec names no program.
    wanted: Option<Wanted>,
}

impl Search<'_> {
    async fn run(self, plan: Plan) -> Result<(Found, Arc<Files>)> {
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
                Ok((
                    Found::Program(loaded),
                    Files::mount(plan, self.about.clone(), metrics, self.creator.runtime.clone()),
                ))
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
    async fn cold(self, plan: Plan, place: Option<Place>) -> Result<(Found, Arc<Files>)> {
        let runtime = &self.creator.runtime;
        let root = self.mounted(plan).await?;
        faults::at(Point::Mounted);
        let began = Instant::now();
        let found = match self.load(&root, place).await {
            Ok(found) => found,
            Err(error) => {
                // The unmount waits for the disk. A second Create, or runc, finds nothing mounted.
                let _ = runtime.spawn_blocking(move || drop(root)).await;
                return Err(error);
            }
        };
        let compile_time = found.compile_time();
        let lookup_time = began.elapsed().saturating_sub(compile_time.unwrap_or_default());
        self.about.phase(self.metrics(), Phase::Lookup, began, lookup_time);
        if let Some(compile_time) = compile_time {
            // What is looked up after the compile takes next to no time.
            self.about.phase(self.metrics(), Phase::Compile, began + lookup_time, compile_time);
        }
        Ok((found, Files::ready(root, runtime.clone())))
    }

    async fn mounted(&self, plan: Plan) -> Result<Root> {
        let (metrics, about) = (self.metrics().clone(), self.about.clone());
        let root = self.creator.runtime.spawn_blocking(move || mount(plan, &about, &metrics)).await;
        root.map_err(|e| Error::Internal(format!("mounting ended early: {e}")))?
    }

    /// The application or the program in the mounted root, or else the image's artifact.
    async fn load(&self, root: &Root, place: Option<Place>) -> Result<Found> {
        let _permit = self.tenant.wait(Kind::Compiles, 1).await;
        if self.is_of_application()
            && let Some(application) = self.in_root(root).await?
        {
            return Ok(Found::Application(Box::new(application)));
        }
        let modules = &self.creator.modules;
        let found = match self.wanted.clone() {
            Some(wanted) => modules.find(open_root(root.path())?, wanted).await,
            None => Err(Error::InvalidArgument(
                "process.args is empty: the image has no entry point and no argument was given".into(),
            )),
        };
        match found {
            Ok(found) => modules.load(Origin::File(found), place, owner(self.about)).await.map(Found::Program),
            Err(missing) => self.load_artifact(root, missing).await,
        }
    }

    /// Loads the program of an image that is an artifact: its layers are no files of the root, which is empty.
    /// `missing`: why there is no program in the root.
    async fn load_artifact(&self, root: &Root, missing: Error) -> Result<Found> {
        let Creator { namespace, peer, .. } = self.creator;
        match peer.client.artifact(namespace, &self.request.id).await {
            Ok(Some(Artifact::Spin(artifact))) => {
                self.pushed(root, &artifact).await.map(|application| Found::Application(Box::new(application)))
            }
            Ok(Some(Artifact::Wasm(artifact))) if self.is_lone_component() => {
                let application = self.lone_component(root, artifact).await?;
                Ok(Found::Application(Box::new(application)))
            }
            Ok(Some(Artifact::Wasm(artifact))) => self.load_layer(artifact).await.map(Found::Program),
            Ok(None) if self.is_of_application() => Err(other_hosts::no_application(missing)),
            Ok(None) => Err(missing),
            Err(error) => {
                tracing::debug!(%error, task = %self.request.id, "cannot tell whether the image is a Wasm artifact");
                Err(missing)
            }
        }
    }

    /// The program of a Wasm OCI artifact, whose one layer is the module.
    async fn load_layer(&self, artifact: WasmArtifact) -> Result<Loaded> {
        let Creator { namespace, modules, config, peer, .. } = self.creator;
        let WasmArtifact { image, layer } = artifact;
        let digest = Digest::required(&layer.digest).map_err(|error| error.context(&image))?;
        let export: Option<Arc<str>> = self.wanted.as_ref().and_then(Wanted::export).map(Arc::from);
        match modules.known_digest(digest, export.clone()).await? {
            Some(loaded) => Ok(loaded),
            None => {
                let limit = config.now().modules.module_bytes_max;
                let bytes = peer.client.read_blob(namespace, &layer.digest, limit).await?;
                let origin = Origin::Layer { name: image, digest, bytes: bytes.into(), export };
                modules.load(origin, None, owner(self.about)).await
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
