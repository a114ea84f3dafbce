//! Images, written as tar files of OCI layouts: there is no registry to pull from.
//!
//! Three kinds: an ordinary image of Linux on amd64, from scratch; a CNCF Wasm OCI artifact
//! (<https://tag-runtime.cncf.io/wgs/wasm/deliverables/wasm-oci-artifact/>), whose one layer is the
//! Wasm file itself; an artifact as `spin registry push` makes it, see [`crate::spin`].

use std::collections::HashMap;

use oci_spec::image::{
    Arch, ConfigBuilder, Descriptor, DescriptorBuilder, Digest, ImageConfigurationBuilder, ImageIndexBuilder,
    ImageManifestBuilder, MediaType, Os, PlatformBuilder, RootFsBuilder,
};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::guests::Guest;
use crate::world::Runtime;

/// Media type of an artifact's config.
pub const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";

/// Media type of an artifact's layer.
pub const WASM_LAYER: &str = "application/wasm";

/// A layer of an ordinary image: a tar file.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
enum Entry {
    File { path: String, mode: u32, bytes: Vec<u8> },
    Directory { path: String, mode: u32 },
    Symlink { path: String, target: String },
    Fifo { path: String },
}

impl Layer {
    /// An empty layer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file, with its permission bits.
    pub fn file(mut self, path: &str, mode: u32, bytes: impl Into<Vec<u8>>) -> Self {
        let (path, bytes) = (path.to_owned(), bytes.into());
        self.entries.push(Entry::File { path, mode, bytes });
        self
    }

    /// Adds a directory, with its permission bits.
    pub fn directory(mut self, path: &str, mode: u32) -> Self {
        let path = path.to_owned();
        self.entries.push(Entry::Directory { path, mode });
        self
    }

    /// Adds a symbolic link. The target need not exist.
    pub fn symlink(mut self, path: &str, target: &str) -> Self {
        let (path, target) = (path.to_owned(), target.to_owned());
        self.entries.push(Entry::Symlink { path, target });
        self
    }

    /// Adds a FIFO that every user may open.
    pub fn fifo(mut self, path: &str) -> Self {
        self.entries.push(Entry::Fifo { path: path.to_owned() });
        self
    }

    /// Removes a path of a lower layer.
    pub fn whiteout(self, path: &str) -> Self {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        self.file(&format!("{parent}/.wh.{name}"), 0o644, [])
    }

    fn to_tar(&self) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for entry in &self.entries {
            match entry {
                Entry::File { path, mode, bytes } => add(&mut tar, path, *mode, bytes),
                Entry::Directory { path, mode } => {
                    let mut header = header(*mode, 0, tar::EntryType::Directory);
                    let path = path.trim_matches('/').to_owned() + "/";
                    tar.append_data(&mut header, path, std::io::empty()).expect(IN_MEMORY);
                }
                Entry::Symlink { path, target } => {
                    let mut header = header(0o777, 0, tar::EntryType::Symlink);
                    let path = path.trim_matches('/');
                    tar.append_link(&mut header, path, target).expect(IN_MEMORY);
                }
                Entry::Fifo { path } => {
                    let mut header = header(0o666, 0, tar::EntryType::Fifo);
                    tar.append_data(&mut header, path.trim_matches('/'), std::io::empty()).expect(IN_MEMORY);
                }
            }
        }
        tar.into_inner().expect(IN_MEMORY)
    }
}

/// An image.
#[derive(Clone, Debug)]
pub struct Image {
    name: String,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    Linux {
        layers: Vec<Layer>,
        entrypoint: Vec<String>,
        environment: Vec<String>,
        directory: Option<String>,
        user: Option<String>,
        stop_signal: Option<String>,
    },
    Wasm {
        os: &'static str,
        module: Vec<u8>,
    },
    /// Layers of an artifact, each with its media type.
    Layers(Vec<(&'static str, Vec<u8>)>),
}

impl Image {
    /// An ordinary image without layers or entry point. `name` is a full reference.
    pub fn scratch(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            content: Content::Linux {
                layers: Vec::new(),
                entrypoint: Vec::new(),
                environment: Vec::new(),
                directory: None,
                user: None,
                stop_signal: None,
            },
        }
    }

    /// An ordinary image of one file, which is its entry point: the guest in the form `runtime` runs.
    pub fn of(guest: &Guest, runtime: Runtime) -> Self {
        let path = match runtime {
            Runtime::Hearth => format!("/{}.wasm", guest.name()),
            Runtime::Runc => format!("/{}", guest.name()),
        };
        Self::of_file(guest.name(), &path, guest.bytes_for(runtime))
    }

    /// An ordinary image of one executable file, which is its entry point.
    pub fn of_file(name: &str, path: &str, bytes: impl Into<Vec<u8>>) -> Self {
        Self::scratch(&format!("hearth.test/{name}:1")).layer(Layer::new().file(path, 0o755, bytes)).entrypoint([path])
    }

    /// A Wasm OCI artifact. `os` is `wasip1` or `wasip2`.
    pub fn artifact(name: &str, os: &'static str, module: impl Into<Vec<u8>>) -> Self {
        Self { name: name.to_owned(), content: Content::Wasm { os, module: module.into() } }
    }

    /// An artifact of these layers, each with its media type, as `spin registry push` makes it.
    pub fn layers(name: &str, layers: Vec<(&'static str, Vec<u8>)>) -> Self {
        Self { name: name.to_owned(), content: Content::Layers(layers) }
    }

    /// Adds a layer.
    pub fn layer(mut self, layer: Layer) -> Self {
        self.linux().0.push(layer);
        self
    }

    /// Sets the entry point.
    pub fn entrypoint<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        *self.linux().1 = words.into_iter().map(Into::into).collect();
        self
    }

    /// Adds an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        if let Content::Linux { environment, .. } = &mut self.content {
            environment.push(format!("{name}={value}"));
        }
        self
    }

    /// Sets the working directory.
    pub fn workdir(mut self, path: &str) -> Self {
        if let Content::Linux { directory, .. } = &mut self.content {
            *directory = Some(path.to_owned());
        }
        self
    }

    /// Sets the user, e.g. `1000:1000`.
    pub fn user(mut self, name: &str) -> Self {
        if let Content::Linux { user, .. } = &mut self.content {
            *user = Some(name.to_owned());
        }
        self
    }

    /// Sets the signal that asks it to stop, e.g. `SIGINT`.
    pub fn stop_signal(mut self, name: &str) -> Self {
        if let Content::Linux { stop_signal, .. } = &mut self.content {
            *stop_signal = Some(name.to_owned());
        }
        self
    }

    /// Its reference.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its entry point; none for an artifact.
    pub fn entry(&self) -> Vec<String> {
        match &self.content {
            Content::Linux { entrypoint, .. } => entrypoint.clone(),
            Content::Wasm { .. } | Content::Layers(_) => Vec::new(),
        }
    }

    /// The platform in its manifest's descriptor, as containerd writes it.
    pub fn platform(&self) -> String {
        match &self.content {
            Content::Linux { .. } => "linux/amd64".to_owned(),
            Content::Wasm { os, .. } => format!("{os}/wasm"),
            Content::Layers(_) => "Wasip1/wasm".to_owned(),
        }
    }

    fn linux(&mut self) -> (&mut Vec<Layer>, &mut Vec<String>) {
        match &mut self.content {
            Content::Linux { layers, entrypoint, .. } => (layers, entrypoint),
            Content::Wasm { .. } | Content::Layers(_) => {
                panic!("an artifact has one layer, its module, and no entry point")
            }
        }
    }

    /// The flags that `ctr images import` needs for this kind of image.
    pub fn import_flags(&self) -> &'static [&'static str] {
        match &self.content {
            Content::Linux { .. } => &[],
            // Its layers are no tar files: there is nothing to unpack.
            Content::Wasm { .. } | Content::Layers(_) => &["--all-platforms", "--no-unpack"],
        }
    }

    /// The tar file of an OCI layout with this image alone in it.
    pub fn to_tar(&self) -> Vec<u8> {
        let mut layout = LayoutTar::new();
        let (config, layers) = match &self.content {
            Content::Linux { .. } => self.linux_blobs(&mut layout),
            Content::Wasm { os, module } => wasm_blobs(&mut layout, os, module),
            Content::Layers(layers) => layer_blobs(&mut layout, layers),
        };
        let manifest = ImageManifestBuilder::default()
            .schema_version(2_u32)
            .media_type(MediaType::ImageManifest)
            .config(config)
            .layers(layers)
            .build()
            .expect("all that is required is set");
        let manifest = layout.json(MediaType::ImageManifest, &manifest);
        layout.finish(self.named(manifest))
    }

    fn linux_blobs(&self, layout: &mut LayoutTar) -> (Descriptor, Vec<Descriptor>) {
        let Content::Linux { layers, entrypoint, environment, directory, user, stop_signal } = &self.content else {
            unreachable!("asked of an ordinary image only")
        };
        let layers: Vec<_> = layers.iter().map(|layer| layout.blob(MediaType::ImageLayer, layer.to_tar())).collect();
        let mut config = ConfigBuilder::default().entrypoint(entrypoint.clone()).env(environment.clone());
        if let Some(directory) = directory {
            config = config.working_dir(directory.clone());
        }
        if let Some(user) = user {
            config = config.user(user.clone());
        }
        if let Some(signal) = stop_signal {
            config = config.stop_signal(signal.clone());
        }
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.digest().to_string()).collect();
        let root = RootFsBuilder::default().typ("layers").diff_ids(diff_ids).build();
        let image = ImageConfigurationBuilder::default()
            .architecture(Arch::Amd64)
            .os(Os::Linux)
            .config(config.build().expect("nothing is required"))
            .rootfs(root.expect("all that is required is set"))
            .build()
            .expect("all that is required is set");
        (layout.json(MediaType::ImageConfig, &image), layers)
    }

    /// The manifest's descriptor, with the reference where containerd looks for it.
    fn named(&self, manifest: Descriptor) -> Descriptor {
        let tag = self.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        let annotations = HashMap::from([
            ("io.containerd.image.name".to_owned(), self.name.clone()),
            ("org.opencontainers.image.ref.name".to_owned(), tag.to_owned()),
        ]);
        let (os, architecture) = match &self.content {
            Content::Linux { .. } => (Os::Linux, Arch::Amd64),
            Content::Wasm { os, .. } => (Os::Other((*os).to_owned()), Arch::Wasm),
            Content::Layers(_) => (Os::Other("Wasip1".to_owned()), Arch::Wasm),
        };
        let platform = PlatformBuilder::default().os(os).architecture(architecture).build();
        DescriptorBuilder::default()
            .media_type(MediaType::ImageManifest)
            .digest(manifest.digest().clone())
            .size(manifest.size())
            .platform(platform.expect("all that is required is set"))
            .annotations(annotations)
            .build()
            .expect("all that is required is set")
    }
}

fn wasm_blobs(layout: &mut LayoutTar, os: &str, module: &[u8]) -> (Descriptor, Vec<Descriptor>) {
    let layer = layout.blob(MediaType::Other(WASM_LAYER.to_owned()), module.to_vec());
    let mut config = json!({
        "created": "2026-01-01T00:00:00Z",
        "architecture": "wasm",
        "os": os,
        "layerDigests": [layer.digest().to_string()],
    });
    if os == "wasip2" {
        config["component"] = json!({"exports": ["wasi:cli/run@0.2.0"], "imports": Value::Array(Vec::new())});
    }
    let config = layout.json(MediaType::Other(WASM_CONFIG.to_owned()), &config);
    (config, vec![layer])
}

/// As `spin registry push` has it: an ordinary configuration of an image without a root.
fn layer_blobs(layout: &mut LayoutTar, layers: &[(&str, Vec<u8>)]) -> (Descriptor, Vec<Descriptor>) {
    let mut blobs: Vec<Descriptor> = Vec::new();
    for (media_type, bytes) in layers {
        let digest = hex::encode(Sha256::digest(bytes));
        // The same bytes are one layer.
        if blobs.iter().all(|blob| blob.digest().digest() != digest) {
            blobs.push(layout.blob(MediaType::Other((*media_type).to_owned()), bytes.clone()));
        }
    }
    let config = json!({"architecture": "wasm", "os": "Wasip1", "rootfs": {"type": "layers", "diff_ids": []}});
    (layout.json(MediaType::ImageConfig, &config), blobs)
}

const IN_MEMORY: &str = "writing to memory never fails, and the paths are short";

struct LayoutTar(tar::Builder<Vec<u8>>);

impl LayoutTar {
    fn new() -> Self {
        let mut tar = tar::Builder::new(Vec::new());
        add(&mut tar, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#);
        Self(tar)
    }

    fn json(&mut self, media_type: MediaType, value: &impl Serialize) -> Descriptor {
        self.blob(media_type, serde_json::to_vec(value).expect(IN_MEMORY))
    }

    fn blob(&mut self, media_type: MediaType, bytes: Vec<u8>) -> Descriptor {
        let digest = hex::encode(Sha256::digest(&bytes));
        add(&mut self.0, &format!("blobs/sha256/{digest}"), 0o644, &bytes);
        let digest: Digest = format!("sha256:{digest}").parse().expect("it is one");
        Descriptor::new(media_type, bytes.len() as u64, digest)
    }

    fn finish(mut self, manifest: Descriptor) -> Vec<u8> {
        let index = ImageIndexBuilder::default()
            .schema_version(2_u32)
            .media_type(MediaType::ImageIndex)
            .manifests(vec![manifest])
            .build()
            .expect("all that is required is set");
        let index = serde_json::to_vec(&index).expect(IN_MEMORY);
        add(&mut self.0, "index.json", 0o644, &index);
        self.0.into_inner().expect(IN_MEMORY)
    }
}

fn header(mode: u32, size: usize, kind: tar::EntryType) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header
}

fn add(tar: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, bytes: &[u8]) {
    let mut header = header(mode, bytes.len(), tar::EntryType::Regular);
    tar.append_data(&mut header, path.trim_matches('/'), bytes).expect(IN_MEMORY);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_blob_of_a_layout_is_under_its_digest() {
        let image = Image::of_file("x", "/x.wasm", *b"\0asm");
        let bytes = image.to_tar();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut blobs = 0;
        for entry in archive.entries().expect("it is a tar file") {
            let mut entry = entry.expect("it is a tar file");
            let path = entry.path().expect("it is short").display().to_string();
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content).expect("it is in memory");
            if let Some(digest) = path.strip_prefix("blobs/sha256/") {
                assert_eq!(hex::encode(Sha256::digest(&content)), digest);
                blobs += 1;
            }
        }
        assert_eq!(blobs, 3, "a layer, a config, a manifest");
    }
}
