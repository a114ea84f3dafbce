//! Questions about images before their first container: which exist, which are new, the program of each, where its
//! files are.

use std::future::Future;

use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{RemoveSnapshotRequest, ViewSnapshotRequest};
use containerd_client::services::v1::{ListImagesRequest, SubscribeRequest};
use oci_spec::image::{Descriptor, ImageConfiguration, ImageManifest};
use prost::Message;
use sha2::{Digest as _, Sha256};
use tonic::Request;

use super::{
    CONTAINER_BYTES_MAX, Containerd, MANIFEST_BYTES_MAX, RECORD_BYTES_MAX, WASM_LAYER_TYPES, WASM_OSES, choose, parse,
    spin_layer, wasm_layer,
};
use hearth_base::error::{Error, Result};
use hearth_base::namespace::ContainerdNamespace;
use hearth_base::wanted::Wanted;

/// The program of an image, if it is WebAssembly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runnable {
    /// The digest of the image's manifest, `sha256:` and 64 hexadecimal digits.
    pub manifest: String,
    /// The program.
    pub program: Entry,
}

/// Where an image's program is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// The image is the program: a Wasm artifact's layer, by digest.
    Layer(String),
    /// The image is a Spin application: the layers of its components, by digest.
    Components(Vec<String>),
    /// A file in the image's layers.
    File {
        /// containerd's name of all layers together as a snapshot.
        chain: String,
        /// The program that its containers look up by default.
        wanted: Wanted,
    },
}

/// A mount of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotMount {
    /// Its type, for example `overlay`.
    pub fstype: String,
    /// The source of the mount.
    pub source: String,
    /// mount(8)-style options.
    pub options: Vec<String>,
}

impl Containerd {
    /// The names of a namespace's images, at most `max`.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if containerd does not answer.
    pub async fn images(&self, namespace: &ContainerdNamespace, max: usize) -> Result<Vec<String>> {
        let what = format!("the images of namespace {namespace:?}");
        let mut client = ImagesClient::new(self.connection()).max_decoding_message_size(CONTAINER_BYTES_MAX);
        let request = self.request(&what, namespace, ListImagesRequest::default())?;
        let images = self.ask(&what, client.list(request)).await?.images;
        Ok(images.into_iter().take(max).map(|image| image.name).collect())
    }

    /// The program of an image; none unless the description shows WebAssembly: a Wasm artifact, an image for a Wasm
    /// platform, or an entry point with `.wasm` in its name.
    ///
    /// # Errors
    /// As [`Containerd::artifact`].
    pub async fn runnable(&self, namespace: &ContainerdNamespace, image: &str) -> Result<Option<Runnable>> {
        let connection = self.connection();
        let Some((digest, manifest)) = self.manifest(&connection, namespace, image, choose_for_node).await? else {
            return Ok(None);
        };
        if spin_layer(&manifest).is_some() {
            let layers = manifest.layers().iter();
            let wasm = layers.filter(|layer| WASM_LAYER_TYPES.contains(&layer.media_type().as_ref()));
            let digests = wasm.map(|layer| layer.digest().to_string()).collect();
            return Ok(Some(Runnable { manifest: digest, program: Entry::Components(digests) }));
        }
        let layer = wasm_layer(&manifest).map_err(|e| e.context(format!("image {image}")))?;
        if let Some(layer) = layer {
            return Ok(Some(Runnable { manifest: digest, program: Entry::Layer(layer.digest().to_string()) }));
        }
        let config = manifest.config().digest().to_string();
        let blob = self.blob(&connection, namespace, &config, MANIFEST_BYTES_MAX).await;
        let blob = blob.map_err(|e| e.context(format!("image {image}")))?;
        let config: ImageConfiguration = parse(image, &config, &blob)?;
        Ok(entry_of(&config).map(|program| Runnable { manifest: digest, program }))
    }

    /// A read-only view of the layers `chain`, named `key`; none if they are not unpacked (yet).
    ///
    /// # Errors
    /// [`Error::Unavailable`] if containerd does not answer.
    pub async fn view(
        &self,
        namespace: &ContainerdNamespace,
        snapshotter: &str,
        chain: &str,
        key: &str,
    ) -> Result<Option<Vec<SnapshotMount>>> {
        let what = format!("a view of {chain} in namespace {namespace:?}");
        let request = ViewSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
            parent: chain.to_owned(),
            ..ViewSnapshotRequest::default()
        };
        let mut client = SnapshotsClient::new(self.connection()).max_decoding_message_size(RECORD_BYTES_MAX);
        let request = self.request(&what, namespace, request)?;
        match self.ask(&what, client.view(request)).await {
            Err(Error::NotFound(_)) => Ok(None),
            answer => {
                let mounts = answer?.mounts.into_iter();
                let mount = |mount: containerd_client::types::Mount| SnapshotMount {
                    fstype: mount.r#type,
                    source: mount.source,
                    options: mount.options,
                };
                Ok(Some(mounts.map(mount).collect()))
            }
        }
    }

    /// Removes a view. containerd collects a view that a killed daemon leaves, since nothing refers to it.
    ///
    /// # Errors
    /// As [`Containerd::view`].
    pub async fn remove_view(&self, namespace: &ContainerdNamespace, snapshotter: &str, key: &str) -> Result<()> {
        let what = format!("the removal of view {key} in namespace {namespace:?}");
        let request = RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
        let mut client = SnapshotsClient::new(self.connection());
        let request = self.request(&what, namespace, request)?;
        self.ask(&what, client.remove(request)).await
    }

    /// Follows the images of all namespaces: `seen` receives the namespace and name of each new or changed image.
    /// Returns the reason when containerd goes away.
    pub async fn follow_images(&self, mut seen: impl FnMut(ContainerdNamespace, &str)) -> Error {
        let what = "its events";
        // The filter of containerd's own CRI plugin.
        let filters = vec![r#"topic~="/images/""#.to_owned()];
        let mut client = EventsClient::new(self.connection()).max_decoding_message_size(RECORD_BYTES_MAX);
        // Without a time-out: the answer's head comes with the first event, which may be hours later.
        let mut events = match client.subscribe(Request::new(SubscribeRequest { filters })).await {
            Ok(events) => events.into_inner(),
            Err(status) => return self.error(&what, &status),
        };
        loop {
            match events.message().await {
                Ok(Some(envelope)) => {
                    let event = envelope.event.as_ref().map(|event| &event.value[..]);
                    if let Some(name) = event.and_then(|event| image_of(&envelope.topic, event)) {
                        seen(envelope.namespace.as_str().into(), &name);
                    }
                }
                Ok(None) => return Error::Unavailable(self.failure(&what, "they have ended".into())),
                Err(status) => return self.error(&what, &status),
            }
        }
    }

    /// Whether its socket exists.
    pub fn is_there(&self) -> impl Future<Output = bool> + Send + use<> {
        let address = self.address.clone();
        async move { tokio::fs::metadata(address).await.is_ok() }
    }
}

/// The first field of `containerd.events.ImageCreate` and `ImageUpdate`.
#[derive(Clone, PartialEq, Message)]
struct ImageEvent {
    #[prost(string, tag = "1")]
    name: String,
}

/// The name of a new or changed image; none for any other event.
fn image_of(topic: &str, event: &[u8]) -> Option<String> {
    match topic {
        "/images/create" | "/images/update" => ImageEvent::decode(event).ok().map(|event| event.name),
        _ => None,
    }
}

/// The manifest for this node in an index: the one for Wasm, else the only one, else the one for the node's own
/// platform.
fn choose_for_node(manifests: &[Descriptor]) -> Option<&Descriptor> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let is_native = |descriptor: &&Descriptor| {
        descriptor.platform().as_ref().is_some_and(|platform| {
            platform.os().to_string() == "linux" && platform.architecture().to_string() == architecture
        })
    };
    choose(manifests).or_else(|| manifests.iter().find(is_native))
}

/// The program of an ordinary image, if it is WebAssembly by its name or its platform.
fn entry_of(config: &ImageConfiguration) -> Option<Entry> {
    let process = config.config().as_ref()?;
    let words = process.entrypoint().iter().chain(process.cmd()).flatten();
    let program = words.into_iter().next()?.clone();
    let for_wasm = config.architecture().to_string() == "wasm" || WASM_OSES.contains(&config.os().to_string().as_str());
    if !for_wasm && !program.contains(".wasm") {
        return None;
    }
    let variables = process.env().iter().flatten();
    let path = variables.filter_map(|variable| variable.strip_prefix("PATH=")).next_back().map(str::to_owned);
    let cwd = process.working_dir().as_deref().filter(|cwd| cwd.starts_with('/')).unwrap_or("/").to_owned();
    let chain = chain_of(config.rootfs().diff_ids())?;
    Some(Entry::File { chain, wanted: Wanted { program, path, cwd } })
}

/// The chain id of layers, lowest first, as the OCI image specification defines it.
fn chain_of<T: AsRef<str>>(layers: &[T]) -> Option<String> {
    let (first, others) = layers.split_first()?;
    let chain = |below: String, layer: &T| {
        let digest = Sha256::digest(format!("{below} {}", layer.as_ref()));
        format!("sha256:{}", hex::encode(digest))
    };
    Some(others.iter().fold(first.as_ref().to_owned(), chain))
}

/// A manifest with its digest.
pub(super) type Named = (String, ImageManifest);

/// Entrances for the fuzz targets.
#[cfg(feature = "fuzzing")]
pub(super) mod fuzzing {
    use oci_spec::image::ImageIndex;

    use super::*;

    /// Reads a blob as an index, as a manifest and as the configuration of an image.
    pub fn image(blob: &[u8]) {
        if let Ok(index) = parse::<ImageIndex>("fuzzed", "none", blob) {
            let _ = (choose(index.manifests()), choose_for_node(index.manifests()));
        }
        if let Ok(manifest) = parse::<ImageManifest>("fuzzed", "none", blob) {
            let _ = (wasm_layer(&manifest), spin_layer(&manifest));
        }
        if let Ok(config) = parse::<ImageConfiguration>("fuzzed", "none", blob) {
            let _ = entry_of(&config);
        }
        let _ = image_of("/images/create", blob);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(process: serde_json::Value, platform: [&str; 2], layers: &[&str]) -> ImageConfiguration {
        let [os, architecture] = platform;
        serde_json::from_value(json!({
            "os": os, "architecture": architecture, "config": process,
            "rootfs": {"type": "layers", "diff_ids": layers}, "history": [],
        }))
        .unwrap()
    }

    #[test]
    fn an_images_program_is_its_first_word_if_that_is_webassembly() {
        let linux = ["linux", "amd64"];
        let of = |process, platform| entry_of(&config(process, platform, &["sha256:aa"]));
        let Some(Entry::File { chain, wanted }) = of(
            json!({"Entrypoint": ["/app.wasm#serve"], "Cmd": ["x"], "Env": ["A=b", "PATH=/bin"], "WorkingDir": "/w"}),
            linux,
        ) else {
            panic!("it is WebAssembly by its name")
        };
        assert_eq!(chain, "sha256:aa");
        assert_eq!(wanted, Wanted { program: "/app.wasm#serve".into(), path: Some("/bin".into()), cwd: "/w".into() });
        assert!(of(json!({"Cmd": ["app.wasm"]}), linux).is_some());
        assert!(of(json!({"Entrypoint": ["/app"]}), ["wasip1", "wasm"]).is_some());
        assert_eq!(of(json!({"Entrypoint": ["/bin/sh", "-c", "x.wasm"]}), linux), None);
        assert_eq!(of(json!({}), linux), None);
    }

    #[test]
    fn a_chain_of_layers_has_the_id_that_containerd_gives_it() {
        assert_eq!(chain_of::<String>(&[]), None);
        assert_eq!(chain_of(&["sha256:aa"]).as_deref(), Some("sha256:aa"));
        let want = format!("sha256:{}", hex::encode(Sha256::digest("sha256:aa sha256:bb")));
        assert_eq!(chain_of(&["sha256:aa", "sha256:bb"]), Some(want));
    }

    #[test]
    fn only_new_and_changed_images_are_seen() {
        let event = ImageEvent { name: "a:1".into() }.encode_to_vec();
        assert_eq!(image_of("/images/create", &event).as_deref(), Some("a:1"));
        assert_eq!(image_of("/images/delete", &event), None);
        assert_eq!(image_of("/images/create", b"\xff"), None);
    }
}
