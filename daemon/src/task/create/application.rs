//! The Spin application that a container is, found in its root or pushed as an artifact: its components loaded, its files
//! laid out.

use std::collections::BTreeMap;
use std::sync::Arc;

use hearth_base::bundle::ProcessSpec;
use hearth_base::digest::Digest;
use hearth_base::error::{Error, Result};
use hearth_base::wanted::Wanted;
use hearth_containerd::client::{ArtifactLayer, SpinArtifact, WasmArtifact};
use hearth_os::in_root::{RootDir, open_root};
use hearth_spin::application::{Application, Component, Source};
use hearth_spin::environment::LISTEN_ADDRESS;
use hearth_spin::runtime_config::{self, RuntimeConfig};
use hearth_spin::{locked, manifest};
use hearth_wasm::modules::Loaded;
use hearth_wasm::modules::origin::Origin;
use hearth_wasm::resolver;

use crate::spin::files::FileWriter;
use crate::spin::loaded::{ConfiguredApplication, LoadedApplication};
use crate::spin::{handlers, other_hosts};
use crate::task::program::owner;
use crate::task::root::Root;

use super::located::Search;

/// The largest locked application, in bytes.
const LOCKED_BYTES_MAX: u64 = 4 << 20;

/// The media type of an archive of files.
const ARCHIVE_TYPE: &str = "application/vnd.wasm.content.bundle.v1.tar+gzip";

/// The command of the images of Spin and of other hosts of applications.
const COMMAND: &str = "/";

/// Whether the command is a directory, as that of hosts of applications.
pub(super) fn is_its_command(process: &ProcessSpec) -> bool {
    process.args.first().is_some_and(|program| program == COMMAND)
}

impl Search<'_> {
    /// Whether the command is that of an application.
    pub(super) fn is_of_application(&self) -> bool {
        is_its_command(&self.spec.process)
    }

    /// The application whose manifest is in the root; none if there is no manifest.
    ///
    /// # Errors
    /// `InvalidArgument` naming what is wrong or not supported; those of its components.
    pub(super) async fn in_root(&self, root: &Root) -> Result<Option<LoadedApplication>> {
        let Some(text) = self.text(root, manifest::PATH).await? else {
            let path = root.path().to_path_buf();
            let recognise = move || Ok(RootDir::open(&path).ok().and_then(|root| other_hosts::recognised(&root)));
            return self.blocking(recognise).await?.map_or(Ok(None), Err);
        };
        let configured = self.configured(root, manifest::parse(&text)?).await?;
        let components = self.load_all(root, &configured, &[]).await?;
        Ok(Some(LoadedApplication { configured, components, digest: Digest::of(text.as_bytes()), image: None }))
    }

    /// A pushed application. The root is writable, and its components' files are written into it.
    ///
    /// # Errors
    /// As [`Search::in_root`]; what containerd says.
    pub(super) async fn pushed(&self, root: &Root, artifact: &SpinArtifact) -> Result<LoadedApplication> {
        if self.spec.read_only && !self.is_of_application() {
            return Err(Error::InvalidArgument(format!(
                "{}: the root of a Spin application is read-only for its components anyway; set the command to [{COMMAND:?}], or remove readOnlyRootFilesystem",
                artifact.image
            )));
        }
        let digest = Digest::required(&artifact.application)?;
        let bytes = self.blob(&artifact.application, LOCKED_BYTES_MAX).await?;
        let application = locked::parse(&bytes).map_err(|error| error.context(&artifact.image))?;
        let configured = self.configured(root, application).await?;
        let components = self.load_all(root, &configured, &artifact.layers).await?;
        self.write_files(root, &configured, &artifact.image, &artifact.layers).await?;
        Ok(LoadedApplication { configured, components, digest, image: Some(artifact.manifest.clone()) })
    }

    /// Whether a Wasm binary is an application of one component: so the command and the environment of Spin's pods say.
    pub(super) fn is_lone_component(&self) -> bool {
        self.is_of_application() && self.spec.process.env.iter().any(|(name, _)| name == LISTEN_ADDRESS)
    }

    /// The application of one component that takes every request.
    ///
    /// # Errors
    /// As [`Search::pushed`].
    pub(super) async fn lone_component(&self, root: &Root, artifact: WasmArtifact) -> Result<LoadedApplication> {
        let WasmArtifact { image, layer } = artifact;
        let digest = Digest::required(&layer.digest)?;
        let configured = self.configured(root, Application::of_one(&image, digest)).await?;
        let layers = [layer];
        let components = self.load_all(root, &configured, &layers).await?;
        self.write_files(root, &configured, &image, &layers).await?;
        Ok(LoadedApplication { configured, components, digest, image: None })
    }

    async fn configured(&self, root: &Root, application: Application) -> Result<ConfiguredApplication> {
        let config = match self.text(root, runtime_config::PATH).await? {
            Some(text) => RuntimeConfig::parse(&text)?,
            None => RuntimeConfig::default(),
        };
        ConfiguredApplication::new(application, &self.spec.process.env, &config)
    }

    /// Loads the components that triggers start, and checks their exports. `layers`: those of the image, if it is an
    /// artifact.
    async fn load_all(
        &self,
        root: &Root,
        configured: &ConfiguredApplication,
        layers: &[ArtifactLayer],
    ) -> Result<BTreeMap<Arc<str>, Loaded>> {
        let (serving, subscribers, commands) = (configured.serving(), configured.subscribers(), configured.commands());
        let mut components = BTreeMap::new();
        for (_, component) in configured.started() {
            let loaded = self.load_component(root, component, layers).await;
            let loaded = loaded.map_err(|error| error.context(format!("the component {:?}", component.id)))?;
            let exports = loaded.program.now().exports(&self.creator.world.runtime.engines)?;
            if serving.contains(&component.id.as_str()) {
                handlers::check_http(&component.id, &exports)?;
            }
            if subscribers.contains(&component.id.as_str()) {
                handlers::check_redis(&component.id, &exports)?;
            }
            if commands.contains(&component.id.as_str()) {
                handlers::check_command(&component.id, &exports)?;
            }
            components.insert(component.id.as_str().into(), loaded);
        }
        Ok(components)
    }

    async fn load_component(&self, root: &Root, component: &Component, layers: &[ArtifactLayer]) -> Result<Loaded> {
        let modules = &self.creator.modules;
        match &component.source {
            Source::File(path) => {
                let wanted = Wanted { program: format!("/{path}"), path: None, cwd: "/".into() };
                let found = modules.find(open_root(root.path())?, wanted).await?;
                modules.load_component(Origin::File(found), owner(self.about)).await
            }
            Source::Inline(bytes) => {
                let (name, digest) = (component.id.clone(), Digest::of(bytes));
                let origin = Origin::Layer { name, digest, bytes: bytes.clone().into(), export: None };
                modules.load_component(origin, owner(self.about)).await
            }
            Source::Layer(digest) => {
                let layer = layer_of(layers, *digest)?;
                if let Some(loaded) = modules.known_component(*digest).await? {
                    return Ok(loaded);
                }
                let bytes = self.blob(layer, self.creator.config.now().modules.module_bytes_max).await?;
                let origin =
                    Origin::Layer { name: component.id.clone(), digest: *digest, bytes: bytes.into(), export: None };
                modules.load_component(origin, owner(self.about)).await
            }
        }
    }

    /// Writes the components' files, each from its layer or from an archive.
    async fn write_files(
        &self,
        root: &Root,
        configured: &ConfiguredApplication,
        image: &str,
        layers: &[ArtifactLayer],
    ) -> Result<()> {
        let bytes_max = self.creator.config.now().modules.module_bytes_max;
        let (path, contents) = (root.path().to_path_buf(), configured.contents());
        let (mut writer, mut wanted) = self.blocking(move || FileWriter::begin(&path, contents)).await?;
        for layer in layers {
            let Some(digest) = Digest::parse(&layer.digest) else { continue };
            if let Some(places) = wanted.remove(&digest) {
                let bytes = self.blob(&layer.digest, bytes_max).await?;
                let write = move || writer.write(&places, &bytes).map(|()| writer);
                writer = self.blocking(write).await?;
            }
        }
        for layer in layers.iter().filter(|layer| layer.media_type == ARCHIVE_TYPE) {
            if wanted.is_empty() {
                break;
            }
            let bytes = self.blob(&layer.digest, bytes_max).await?;
            let unpack = move || writer.unpack(&bytes, &mut wanted).map(|()| (writer, wanted));
            (writer, wanted) = self.blocking(unpack).await?;
        }
        match wanted.into_iter().next() {
            None => Ok(()),
            Some((digest, places)) => Err(Error::InvalidArgument(format!(
                "{image}: no layer has the file {} ({digest:?}); push the application again",
                places.first().map_or("", String::as_str)
            ))),
        }
    }

    async fn blob(&self, digest: &str, bytes_max: u64) -> Result<Vec<u8>> {
        self.creator.peer.client.read_blob(&self.creator.namespace, digest, bytes_max).await
    }

    /// The text of a file of the root; none if there is no such file.
    async fn text(&self, root: &Root, path: &'static str) -> Result<Option<String>> {
        let root = root.path().to_path_buf();
        let wrong = move |error: &dyn std::fmt::Display| Error::InvalidArgument(format!("{path}: {error}"));
        let read = move || {
            let root = RootDir::open(&root).map_err(|error| wrong(&error))?;
            resolver::read(&root, path).map_err(|error| wrong(&error))
        };
        let Some(bytes) = self.blocking(read).await? else { return Ok(None) };
        String::from_utf8(bytes).map(Some).map_err(|error| wrong(&error))
    }

    async fn blocking<T: Send + 'static>(&self, job: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let ended = |error| Error::Internal(format!("reading the root ended early: {error}"));
        self.creator.runtime.spawn_blocking(job).await.map_err(ended)?
    }
}

/// The layer of the image with this digest. Only layers of the image are read: a manifest may name any blob.
fn layer_of(layers: &[ArtifactLayer], digest: Digest) -> Result<&str> {
    let layer = layers.iter().find(|layer| Digest::parse(&layer.digest) == Some(digest));
    layer.map(|layer| layer.digest.as_str()).ok_or_else(|| {
        Error::InvalidArgument(format!(
            "no layer of the image has its WebAssembly ({digest:?}); push the application again"
        ))
    })
}
