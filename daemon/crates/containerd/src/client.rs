//! Questions to one containerd, at its gRPC socket: its version, the image of a container, blobs of its content store,
//! and the Wasm layer of an artifact image.
//!
//! No state is kept between questions, not even the connection (a new one costs 0.1 ms): a containerd may be restarted
//! behind the same address, in another version, too. Every answer is bounded in size and time. Content is used only if
//! it has its digest.
//!
//! Errors: [`Error::Unavailable`] if containerd is away or hangs; [`Error::NotFound`] for an object that it does not
//! have; [`Error::Internal`] for content that does not have its digest; [`Error::InvalidArgument`] for an image that
//! contradicts itself. Each error names the question and the socket.
//!
//! * `images.rs`: images before their first start: which are new, the program of each, where its files are.

use std::fmt::Display;
use std::time::Duration;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::version_client::VersionClient;
use containerd_client::services::v1::{GetContainerRequest, GetImageRequest, ReadContentRequest, ReadContentResponse};
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::peer::socket_path;
use hearth_base::config;
use hearth_base::error::{Error, Result};
use hearth_base::namespace::ContainerdNamespace;

mod images;

pub use images::{Entry, Runnable, SnapshotMount};

/// Entrances for the fuzz targets.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    pub use super::images::fuzzing::image;
}

/// The largest container record, in bytes: the largest message of containerd itself
/// (defaults/defaults.go, `DefaultMaxSendMsgSize`).
const CONTAINER_BYTES_MAX: usize = 16 << 20;
/// The largest image record or version, in bytes: labels and a descriptor.
const RECORD_BYTES_MAX: usize = 1 << 20;
/// The largest piece of a blob in one message, in bytes; containerd sends 32 kB to 1 MiB.
const PIECE_BYTES_MAX: usize = 4 << 20;
/// The largest index or manifest, in bytes: the size that the OCI distribution specification has registries accept.
const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// How deep an index may lie in indexes.
const INDEX_DEPTH_MAX: usize = 4;
/// The window of a blob's stream, in bytes. With HTTP/2's default of 64 kB containerd would wait after every second
/// piece.
const WINDOW_BYTES: u32 = 1 << 20;

/// Media types of an index of manifests.
const INDEX_TYPES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
/// Media types of a manifest.
const MANIFEST_TYPES: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
/// The media type of a Wasm artifact's configuration (CNCF TAG Runtime, Wasm OCI Artifact layout).
const WASM_CONFIG_TYPE: &str = "application/vnd.wasm.config.v0+json";
/// Media types of a layer that is a Wasm binary: that layout's, and the older ones of runwasi's images and of
/// wasm-to-oci.
const WASM_LAYER_TYPES: [&str; 3] = [
    "application/wasm",
    "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
    "application/vnd.wasm.content.layer.v1+wasm",
];
/// The media type of a layer that is the locked application of Spin.
const SPIN_APPLICATION_TYPE: &str = "application/vnd.fermyon.spin.application.v1+config";
/// Operating systems an index names for Wasm, with the architecture `wasm`.
const WASM_OSES: [&str; 3] = ["wasip1", "wasip2", "wasi"];

/// A release of containerd. Ordered as releases are; a pre-release counts as its release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 2 in 2.3.4.
    pub major: u32,
    /// 3 in 2.3.4.
    pub minor: u32,
    /// 4 in 2.3.4.
    pub patch: u32,
}

/// The Wasm binary that a container's image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WasmArtifact {
    /// The image's name in containerd.
    pub image: String,
    /// Its layer.
    pub layer: ArtifactLayer,
}

/// An image that is no ordinary one: its layers are not the files of a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Artifact {
    /// A Wasm binary.
    Wasm(WasmArtifact),
    /// A Spin application.
    Spin(SpinArtifact),
}

/// The Spin application that a container's image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpinArtifact {
    /// The image's name in containerd.
    pub image: String,
    /// The digest of its manifest, `sha256:` and 64 hexadecimal digits.
    pub manifest: String,
    /// The digest of the layer that is the locked application.
    pub application: String,
    /// Its layers, in their order.
    pub layers: Vec<ArtifactLayer>,
}

/// A layer of an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArtifactLayer {
    /// Its media type.
    pub media_type: String,
    /// Its digest, `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    /// Its size in bytes, as its manifest says.
    pub size: u64,
}

/// One containerd, by the address of its gRPC socket.
#[derive(Debug, Clone)]
pub struct Containerd {
    address: String,
    timeout: Duration,
}

impl Containerd {
    /// The containerd whose gRPC socket is `address`, with or without `unix://`. Dials nothing yet.
    pub fn new(address: &str, config: &config::Rpc) -> Containerd {
        Containerd {
            address: socket_path(address).to_owned(),
            timeout: Duration::from_millis(config.containerd_timeout_ms),
        }
    }

    /// containerd's version, asked anew each time.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if it does not answer; [`Error::Internal`] if the answer is no version.
    pub async fn version(&self) -> Result<Version> {
        let what = "its version";
        let mut client = VersionClient::new(self.connection()).max_decoding_message_size(RECORD_BYTES_MAX);
        let text = self.ask(&what, client.version(())).await?.version;
        Version::parse(&text)
            .ok_or_else(|| Error::Internal(self.failure(&what, format!("{text:?} is not like 1.6.20"))))
    }

    /// The artifact that a container's image is; none if the image is an ordinary one, or if the container has no
    /// image.
    ///
    /// # Errors
    /// [`Error::NotFound`] if containerd does not have the container, its image or the image's
    /// manifest; [`Error::InvalidArgument`] if the image is damaged or has several Wasm layers;
    /// [`Error::Unavailable`] if containerd does not answer.
    pub async fn artifact(&self, namespace: &ContainerdNamespace, container_id: &str) -> Result<Option<Artifact>> {
        let connection = self.connection();
        let Some(image) = self.image_of(&connection, namespace, container_id).await? else {
            return Ok(None);
        };
        let Some((digest, manifest)) = self.manifest(&connection, namespace, &image, choose).await? else {
            return Ok(None);
        };
        if let Some(application) = spin_layer(&manifest) {
            return Ok(Some(Artifact::Spin(spin_artifact(image, digest, application, &manifest))));
        }
        let layer = wasm_layer(&manifest).map_err(|e| e.context(format!("image {image}")))?;
        Ok(layer.map(|layer| Artifact::Wasm(WasmArtifact { image, layer: ArtifactLayer::of(layer) })))
    }

    /// A blob of the content store.
    ///
    /// # Errors
    /// [`Error::NotFound`] if containerd does not have it; [`Error::ResourceExhausted`] if it is
    /// larger than `max_bytes`; [`Error::Internal`] if it is not what its digest says;
    /// [`Error::InvalidArgument`] if `digest` is not a SHA-256; [`Error::Unavailable`] if containerd
    /// does not answer, or stops before the end.
    pub async fn read_blob(&self, namespace: &ContainerdNamespace, digest: &str, max_bytes: u64) -> Result<Vec<u8>> {
        self.blob(&self.connection(), namespace, digest, max_bytes).await
    }

    async fn blob(
        &self,
        connection: &Channel,
        namespace: &ContainerdNamespace,
        digest: &str,
        max_bytes: u64,
    ) -> Result<Vec<u8>> {
        let what = format!("blob {digest} of namespace {namespace:?}");
        let expected = digest
            .strip_prefix("sha256:")
            .and_then(|digits| hex::decode(digits).ok())
            .filter(|hash| hash.len() == Sha256::output_size())
            .ok_or_else(|| {
                let reason = "the digest is not sha256: and 64 hexadecimal digits".into();
                Error::InvalidArgument(self.failure(&what, reason))
            })?;
        let request = ReadContentRequest {
            digest: digest.to_string(),
            offset: 0,
            // One byte above the bound shows that a blob is too large; 0 would mean the whole blob.
            size: i64::try_from(max_bytes).unwrap_or(i64::MAX).saturating_add(1),
        };
        let mut client = ContentClient::new(connection.clone()).max_decoding_message_size(PIECE_BYTES_MAX);
        let request = self.request(&what, namespace, request)?;
        let mut pieces = self.ask(&what, client.read(request)).await?;
        let mut hash = Sha256::new();
        let mut bytes = Vec::new();
        while let Some(piece) = self.piece(&what, &mut pieces).await? {
            if (bytes.len() + piece.data.len()) as u64 > max_bytes {
                let reason = format!("it is larger than {max_bytes} bytes");
                return Err(Error::ResourceExhausted(self.failure(&what, reason)));
            }
            hash.update(&piece.data);
            bytes.extend_from_slice(&piece.data);
        }
        if hash.finalize()[..] != expected[..] {
            let reason =
                format!("the {} bytes it has do not have that digest; remove the image and pull it again", bytes.len());
            return Err(Error::Internal(self.failure(&what, reason)));
        }
        Ok(bytes)
    }

    /// The name of a container's image; none if it has none.
    ///
    /// # Errors
    /// As in the module's page.
    pub async fn image(&self, namespace: &ContainerdNamespace, container_id: &str) -> Result<Option<String>> {
        self.image_of(&self.connection(), namespace, container_id).await
    }

    /// The name of a container's image.
    async fn image_of(
        &self,
        connection: &Channel,
        namespace: &ContainerdNamespace,
        id: &str,
    ) -> Result<Option<String>> {
        let what = format!("container {id:?} of namespace {namespace:?}");
        let mut client = ContainersClient::new(connection.clone()).max_decoding_message_size(CONTAINER_BYTES_MAX);
        let request = self.request(&what, namespace, GetContainerRequest { id: id.to_string() })?;
        let container = self.ask(&what, client.get(request)).await?.container;
        let container = container.ok_or_else(|| self.empty(&what))?;
        // `ctr run --rootfs` makes containers without one.
        Ok(Some(container.image).filter(|image| !image.is_empty()))
    }

    /// The manifest of an image with its digest. Of several `choose` takes one; none if it takes none.
    async fn manifest(
        &self,
        connection: &Channel,
        namespace: &ContainerdNamespace,
        image: &str,
        choose: fn(&[Descriptor]) -> Option<&Descriptor>,
    ) -> Result<Option<images::Named>> {
        let what = format!("image {image:?} of namespace {namespace:?}");
        let mut client = ImagesClient::new(connection.clone()).max_decoding_message_size(RECORD_BYTES_MAX);
        let name = image.to_string();
        let request = self.request(&what, namespace, GetImageRequest { name })?;
        let record = self.ask(&what, client.get(request)).await?.image;
        let target = record.and_then(|image| image.target).ok_or_else(|| self.empty(&what))?;

        let (mut media_type, mut digest) = (target.media_type, target.digest);
        // Whether another manifest of the image could have been pulled instead.
        let mut one_of_several = false;
        for _ in 0..=INDEX_DEPTH_MAX {
            let is_index = INDEX_TYPES.contains(&&*media_type);
            if !is_index && !MANIFEST_TYPES.contains(&&*media_type) {
                return Ok(None);
            }
            let blob = match self.blob(connection, namespace, &digest, MANIFEST_BYTES_MAX).await {
                // The image was pulled for the node's own platform: the container does not run Wasm.
                Err(Error::NotFound(_)) if one_of_several => return Ok(None),
                blob => blob.map_err(|e| e.context(format!("image {image}")))?,
            };
            if !is_index {
                let manifest = parse(image, &digest, &blob)?;
                return Ok(Some((digest, manifest)));
            }
            let index: ImageIndex = parse(image, &digest, &blob)?;
            let Some(chosen) = choose(index.manifests()) else { return Ok(None) };
            one_of_several |= index.manifests().len() > 1;
            (media_type, digest) = (chosen.media_type().to_string(), chosen.digest().to_string());
        }
        Err(Error::InvalidArgument(format!("image {image}: more than {INDEX_DEPTH_MAX} indexes within each other")))
    }

    /// A new connection, dialled by its first request.
    pub fn connection(&self) -> Channel {
        // Fails only for bytes that are not UTF-8.
        Endpoint::from_shared(format!("unix://{}", self.address))
            .expect("a string")
            .connect_timeout(self.timeout)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .connect_lazy()
    }

    /// A request in `namespace`.
    fn request<T>(
        &self,
        what: &(dyn Display + Sync),
        namespace: &ContainerdNamespace,
        message: T,
    ) -> Result<Request<T>> {
        let mut request = Request::new(message);
        let value = namespace.parse().map_err(|_| {
            let reason = format!("{namespace:?} is not a namespace's name");
            Error::InvalidArgument(self.failure(what, reason))
        })?;
        request.metadata_mut().insert("containerd-namespace", value);
        Ok(request)
    }

    /// Waits for an answer.
    async fn ask<T>(
        &self,
        what: &(dyn Display + Sync),
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T> {
        match tokio::time::timeout(self.timeout, answer).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.error(what, &status)),
            Err(_) => Err(self.late(what)),
        }
    }

    /// Waits for the next piece of a blob. Each piece has the whole time-out, so that a large blob may take long while
    /// it arrives.
    async fn piece(
        &self,
        what: &(dyn Display + Sync),
        pieces: &mut Streaming<ReadContentResponse>,
    ) -> Result<Option<ReadContentResponse>> {
        match tokio::time::timeout(self.timeout, pieces.message()).await {
            Ok(Ok(piece)) => Ok(piece),
            Ok(Err(status)) => Err(self.error(what, &status)),
            Err(_) => Err(self.late(what)),
        }
    }

    fn failure(&self, what: &(dyn Display + Sync), reason: String) -> String {
        format!("cannot get {what} from containerd at {}: {reason}", self.address)
    }

    fn late(&self, what: &(dyn Display + Sync)) -> Error {
        let reason =
            format!("no answer within rpc.containerd_timeout_ms = {}; is it overloaded?", self.timeout.as_millis());
        Error::Unavailable(self.failure(what, reason))
    }

    fn empty(&self, what: &(dyn Display + Sync)) -> Error {
        Error::Internal(self.failure(what, "the answer is empty".into()))
    }

    fn error(&self, what: &(dyn Display + Sync), status: &Status) -> Error {
        let text = |hint: &str| self.failure(what, format!("{}{hint}", reason(status)));
        // tonic reports a connection that broke during a call as Unknown.
        if std::error::Error::source(status).is_some_and(|s| s.is::<tonic::transport::Error>()) {
            return Error::Unavailable(text("; is it running?"));
        }
        match status.code() {
            Code::NotFound => Error::NotFound(text("")),
            Code::InvalidArgument => Error::InvalidArgument(text("")),
            Code::Unimplemented => Error::Unimplemented(text("")),
            // tonic reports an answer above the bound as OutOfRange.
            Code::ResourceExhausted | Code::OutOfRange => Error::ResourceExhausted(text("")),
            Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Aborted => {
                Error::Unavailable(text(""))
            }
            Code::Ok
            | Code::Unknown
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::Internal
            | Code::DataLoss
            | Code::Unauthenticated => Error::Internal(text("")),
        }
    }
}

/// The reason in a status. tonic's own transport errors have theirs only in their sources.
fn reason(status: &Status) -> String {
    let mut text = status.message().to_string();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

impl Version {
    /// Reads `1.6.20~ds1`, `v2.0.0-rc.1`, `2.3.4` and the like.
    fn parse(text: &str) -> Option<Version> {
        let mut parts = text.strip_prefix('v').unwrap_or(text).splitn(3, '.').map(|part| {
            let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
            part[..end].parse().ok()
        });
        let mut next = || parts.next().flatten();
        Some(Version { major: next()?, minor: next()?, patch: next()? })
    }
}

impl Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

fn parse<T: DeserializeOwned>(image: &str, digest: &str, blob: &[u8]) -> Result<T> {
    serde_json::from_slice(blob)
        .map_err(|error| Error::InvalidArgument(format!("image {image}: manifest {digest} is damaged: {error}")))
}

/// The manifest for Wasm in an index: the first for a Wasm platform or with a Wasm artifact's type, else the only one.
fn choose(manifests: &[Descriptor]) -> Option<&Descriptor> {
    let platform = |descriptor: &Descriptor| {
        let platform = descriptor.platform().as_ref()?;
        Some((platform.architecture().to_string(), platform.os().to_string()))
    };
    let is_wasm = |descriptor: &&Descriptor| {
        platform(descriptor).is_some_and(|(arch, os)| arch == "wasm" && WASM_OSES.contains(&&*os))
            || descriptor.artifact_type().as_ref().is_some_and(|t| t.as_ref() == WASM_CONFIG_TYPE)
    };
    if let Some(wasm) = manifests.iter().find(is_wasm) {
        return Some(wasm);
    }
    // BuildKit adds the attestations of each image for the platform unknown/unknown.
    let attests =
        |descriptor: &&Descriptor| platform(descriptor).is_some_and(|(arch, os)| arch == "unknown" && os == "unknown");
    let mut images = manifests.iter().filter(|descriptor| !attests(descriptor));
    images.next().filter(|_| images.next().is_none())
}

/// The layer with the locked application of a Spin artifact's manifest. `spin registry push` puts it last.
fn spin_layer(manifest: &ImageManifest) -> Option<&Descriptor> {
    manifest.layers().iter().rev().find(|layer| layer.media_type().as_ref() == SPIN_APPLICATION_TYPE)
}

impl ArtifactLayer {
    fn of(layer: &Descriptor) -> ArtifactLayer {
        ArtifactLayer {
            media_type: layer.media_type().to_string(),
            digest: layer.digest().to_string(),
            size: layer.size(),
        }
    }
}

fn spin_artifact(image: String, digest: String, application: &Descriptor, manifest: &ImageManifest) -> SpinArtifact {
    let layers = manifest.layers().iter().map(ArtifactLayer::of).collect();
    SpinArtifact { image, manifest: digest, application: application.digest().to_string(), layers }
}

/// The Wasm binary of an artifact's manifest; none if the manifest is of an ordinary image.
fn wasm_layer(manifest: &ImageManifest) -> Result<Option<&Descriptor>> {
    let is_wasm = |layer: &&Descriptor| WASM_LAYER_TYPES.contains(&layer.media_type().as_ref());
    let mut layers = manifest.layers().iter().filter(is_wasm);
    match (layers.next(), layers.count()) {
        (Some(layer), 0) => Ok(Some(layer)),
        (Some(_), more) => Err(Error::InvalidArgument(format!(
            "it has {} Wasm layers, and Hearth runs one: compose the components into one \
             (`wac plug`) and push that",
            more + 1
        ))),
        (None, _) if manifest.config().media_type().as_ref() == WASM_CONFIG_TYPE => {
            let types: Vec<_> = manifest.layers().iter().map(|layer| layer.media_type().to_string()).collect();
            Err(Error::InvalidArgument(format!(
                "it is a Wasm artifact without a Wasm layer: it has [{}], and {} is one",
                types.join(", "),
                WASM_LAYER_TYPES[0]
            )))
        }
        (None, _) => Ok(None),
    }
}

#[cfg(test)]
pub(crate) mod tests;
