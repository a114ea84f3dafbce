//! Our questions to one containerd, at its gRPC socket: its version, and the Wasm artifact a
//! container's image is.
//!
//! Nothing is remembered between questions, not even the connection (it costs 0.1 ms), since a
//! containerd can be restarted, as another version too, behind the same address. Every answer is
//! bounded in size and time; content is believed only if it has its digest.
//!
//! When it goes wrong: containerd away or hanging is [`Error::Unavailable`]; what it does not have is
//! [`Error::NotFound`]; content that is not what its digest says is [`Error::Internal`]; an image
//! that contradicts itself is [`Error::InvalidArgument`]. Each names the question and the socket.

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

use hearth_base::config;
use hearth_base::error::{Error, Result};

mod images;

pub use images::{Entry, Runnable, SnapshotMount};

/// The largest container record, in bytes: what containerd itself sends or takes at most
/// (defaults/defaults.go, `DefaultMaxSendMsgSize`).
const CONTAINER_BYTES_MAX: usize = 16 << 20;
/// The largest image record or version, in bytes: labels and a descriptor.
const RECORD_BYTES_MAX: usize = 1 << 20;
/// The largest piece of a blob in one message, in bytes; containerd sends 32 kB to 1 MiB.
const PIECE_BYTES_MAX: usize = 4 << 20;
/// The largest index or manifest, in bytes: what the OCI distribution specification has registries
/// take.
const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// How deep an index may lie in indexes.
const INDEX_DEPTH_MAX: usize = 4;
/// How much of a blob may be under way, in bytes. HTTP/2's own 64 kB would have containerd wait for
/// us after every second piece.
const WINDOW_BYTES: u32 = 1 << 20;

/// Media types of an index of manifests.
const INDEX_TYPES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
/// Media types of a manifest.
const MANIFEST_TYPES: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
/// The media type of a Wasm artifact's configuration (CNCF TAG Runtime, Wasm OCI Artifact layout).
const WASM_CONFIG_TYPE: &str = "application/vnd.wasm.config.v0+json";
/// Media types of a layer that is a Wasm binary: that layout's, and those that runwasi's images and
/// wasm-to-oci had before it.
const WASM_LAYER_TYPES: [&str; 3] = [
    "application/wasm",
    "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
    "application/vnd.wasm.content.layer.v1+wasm",
];
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
    /// The layer's digest, `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    /// The layer's size in bytes, as its manifest says.
    pub size: u64,
    /// The layer's media type.
    pub media_type: String,
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
            address: address.strip_prefix("unix://").unwrap_or(address).to_string(),
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

    /// The Wasm binary that the image of a container is; none if the image is an ordinary one, or
    /// if the container has no image.
    ///
    /// # Errors
    /// [`Error::NotFound`] if containerd does not have the container, its image or the image's
    /// manifest; [`Error::InvalidArgument`] if the image is damaged or has several Wasm layers;
    /// [`Error::Unavailable`] if containerd does not answer.
    pub async fn wasm_artifact(&self, namespace: &str, container_id: &str) -> Result<Option<WasmArtifact>> {
        let connection = self.connection();
        let Some(image) = self.image_of(&connection, namespace, container_id).await? else {
            return Ok(None);
        };
        let Some((_, manifest)) = self.manifest(&connection, namespace, &image, choose).await? else {
            return Ok(None);
        };
        let layer = wasm_layer(&manifest).map_err(|e| e.context(format!("image {image}")))?;
        Ok(layer.map(|layer| WasmArtifact {
            image,
            digest: layer.digest().to_string(),
            size: layer.size(),
            media_type: layer.media_type().to_string(),
        }))
    }

    /// A blob of the content store.
    ///
    /// # Errors
    /// [`Error::NotFound`] if containerd does not have it; [`Error::ResourceExhausted`] if it is
    /// larger than `max_bytes`; [`Error::Internal`] if it is not what its digest says;
    /// [`Error::InvalidArgument`] if `digest` is not a SHA-256; [`Error::Unavailable`] if containerd
    /// does not answer, or stops in between.
    pub async fn read_blob(&self, namespace: &str, digest: &str, max_bytes: u64) -> Result<Vec<u8>> {
        self.blob(&self.connection(), namespace, digest, max_bytes).await
    }

    async fn blob(&self, connection: &Channel, namespace: &str, digest: &str, max_bytes: u64) -> Result<Vec<u8>> {
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
            // One byte more than allowed is enough to know; 0 would be all of it.
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
    /// See the module's head.
    pub async fn image(&self, namespace: &str, container_id: &str) -> Result<Option<String>> {
        self.image_of(&self.connection(), namespace, container_id).await
    }

    /// The name of a container's image.
    async fn image_of(&self, connection: &Channel, namespace: &str, id: &str) -> Result<Option<String>> {
        let what = format!("container {id:?} of namespace {namespace:?}");
        let mut client = ContainersClient::new(connection.clone()).max_decoding_message_size(CONTAINER_BYTES_MAX);
        let request = self.request(&what, namespace, GetContainerRequest { id: id.to_string() })?;
        let container = self.ask(&what, client.get(request)).await?.container;
        let container = container.ok_or_else(|| self.empty(&what))?;
        // `ctr run --rootfs` makes containers without one.
        Ok(Some(container.image).filter(|image| !image.is_empty()))
    }

    /// The manifest of an image with its digest: that which `choose` takes if there are several. None if it
    /// takes none.
    async fn manifest(
        &self,
        connection: &Channel,
        namespace: &str,
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
                // Pulled for the node's own platform: what the container has is not Wasm.
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
    fn request<T>(&self, what: &(dyn Display + Sync), namespace: &str, message: T) -> Result<Request<T>> {
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

    /// Waits for the next piece of a blob. Each has the whole time: a large blob may take long as
    /// long as it comes.
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
        // tonic calls a connection that broke in between Unknown.
        if std::error::Error::source(status).is_some_and(|s| s.is::<tonic::transport::Error>()) {
            return Error::Unavailable(text("; is it running?"));
        }
        match status.code() {
            Code::NotFound => Error::NotFound(text("")),
            Code::InvalidArgument => Error::InvalidArgument(text("")),
            Code::Unimplemented => Error::Unimplemented(text("")),
            // tonic says OutOfRange of an answer over our bound.
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

/// What a status says. tonic's own transport errors say what happened only in their sources.
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

/// The manifest an index has for Wasm: the first for a Wasm platform, or with a Wasm artifact's type;
/// else the only one there is.
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
    // BuildKit puts each image's attestations beside it, for the platform unknown/unknown.
    let attests =
        |descriptor: &&Descriptor| platform(descriptor).is_some_and(|(arch, os)| arch == "unknown" && os == "unknown");
    let mut images = manifests.iter().filter(|descriptor| !attests(descriptor));
    images.next().filter(|_| images.next().is_none())
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
pub(crate) mod tests {
    use std::io::{BufRead, BufReader, Read};
    use std::os::unix::net::UnixListener;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};
    use std::sync::mpsc;

    use containerd_client::services::v1::container::Runtime;
    use containerd_client::services::v1::{Container, CreateContainerRequest};
    use serde_json::{Value, json};
    use tempfile::TempDir;

    use super::*;

    pub(crate) const NAMESPACE: &str = "hearth-test";
    /// `(module)`, as bytes.
    const MODULE: &[u8] = b"\0asm\x01\0\0\0";
    /// Long enough for a busy machine; nothing waits for it that goes well.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// A containerd of the test's own, in a directory and a mount namespace of its own. It dies with
    /// this value, and with the test's thread if that is killed. Fields in the order of their end.
    pub(crate) struct PrivateContainerd {
        process: Killed,
        directory: TempDir,
    }

    impl PrivateContainerd {
        pub(crate) fn start() -> PrivateContainerd {
            let directory = tempfile::tempdir().unwrap();
            let at = |name: &str| directory.path().join(name).display().to_string();
            let config = format!(
                "version = 2\nroot = {:?}\nstate = {:?}\n\
                 disabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.internal.v1.opt']\n\
                 [grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n[debug]\naddress = {:?}\n",
                at("root"),
                at("state"),
                at("grpc"),
                at("ttrpc"),
                at("debug")
            );
            std::fs::write(directory.path().join("config.toml"), config).unwrap();
            let process = Self::spawn(directory.path());
            PrivateContainerd { process, directory }
        }

        /// Starts the process and waits until it says that it serves.
        fn spawn(directory: &Path) -> Killed {
            let mut process = Command::new("setpriv")
                .args(["--pdeathsig", "KILL", "unshare", "-m", "--propagation", "slave"])
                .args(["containerd", "-c"])
                .arg(directory.join("config.toml"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .expect("setpriv is in Debian's package util-linux: apt-get install util-linux");
            let lines = lines(process.stderr.take().unwrap());
            let process = Killed(process);
            let mut said = String::new();
            loop {
                match lines.recv_timeout(PATIENCE) {
                    Ok(line) if line.contains("containerd successfully booted") => return process,
                    Ok(line) => said = format!("{said}{line}\n"),
                    Err(error) => panic!(
                        "containerd does not start ({error}). If it is not installed: \
                         apt-get install containerd. It also needs root. It said:\n{said}"
                    ),
                }
            }
        }

        pub(crate) fn stop(&mut self) {
            self.process.0.kill().unwrap();
            self.process.0.wait().unwrap();
        }

        pub(crate) fn restart(&mut self) {
            self.process = Self::spawn(self.directory.path());
        }

        fn address(&self) -> String {
            self.directory.path().join("grpc").display().to_string()
        }

        pub(crate) fn ttrpc_address(&self) -> String {
            self.directory.path().join("ttrpc").display().to_string()
        }

        /// What `ctr events` prints, line by line, until the process is killed.
        pub(crate) fn events(&self) -> (Killed, mpsc::Receiver<String>) {
            let mut process = Command::new("setpriv")
                .args(["--pdeathsig", "KILL", "ctr", "--address", &self.address()])
                .args(["--namespace", NAMESPACE, "events"])
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .expect("setpriv is in Debian's package util-linux: apt-get install util-linux");
            let lines = lines(process.stdout.take().unwrap());
            (Killed(process), lines)
        }

        fn client(&self) -> Containerd {
            Containerd::new(&format!("unix://{}", self.address()), &config::Rpc::default())
        }

        fn ctr(&self, arguments: &[&str]) {
            let output = Command::new("ctr")
                .args(["--address", &self.address(), "--namespace", NAMESPACE])
                .args(arguments)
                .output()
                .expect("ctr is in Debian's package containerd: apt-get install containerd");
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "ctr {arguments:?}: {text}");
        }

        fn import(&self, layout: &Layout, flags: &[&str]) {
            let tar = self.directory.path().join("layout.tar");
            layout.write(&tar);
            let tar = tar.display().to_string();
            self.ctr(&[&["image", "import", "--no-unpack"], flags, &[&tar]].concat());
        }

        /// Makes a container's record. `ctr container create` would unpack the image into a root
        /// file system, which containerd 1.6 cannot do for a Wasm artifact.
        async fn create_container(&self, client: &Containerd, id: &str, image: &str) {
            let mut container = Container {
                id: id.into(),
                image: image.into(),
                runtime: Some(Runtime { name: "io.containerd.hearth.v1".into(), options: None }),
                ..Default::default()
            };
            let spec = container.spec.get_or_insert_default();
            spec.type_url = "types.containerd.io/opencontainers/runtime-spec/1/Spec".into();
            spec.value = b"{}".to_vec();
            let request = CreateContainerRequest { container: Some(container) };
            let request = client.request(&"", NAMESPACE, request).unwrap();
            ContainersClient::new(client.connection()).create(request).await.unwrap();
        }
    }

    /// A process that ends with this value.
    pub(crate) struct Killed(Child);

    impl Drop for Killed {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// The lines of a process's output; read to its end, so that the process never waits.
    fn lines(output: impl Read + Send + 'static) -> mpsc::Receiver<String> {
        let (to, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = to.send(line);
            }
        });
        lines
    }

    /// An OCI image layout to import.
    struct Layout {
        directory: TempDir,
        images: Vec<Value>,
    }

    impl Layout {
        fn new() -> Layout {
            let directory = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(directory.path().join("blobs/sha256")).unwrap();
            Layout { directory, images: Vec::new() }
        }

        /// Adds a blob; its descriptor.
        fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
            let hash = hex::encode(Sha256::digest(bytes));
            std::fs::write(self.directory.path().join("blobs/sha256").join(&hash), bytes).unwrap();
            json!({"mediaType": media_type, "digest": format!("sha256:{hash}"), "size": bytes.len()})
        }

        fn json(&self, media_type: &str, value: &Value) -> Value {
            self.blob(media_type, value.to_string().as_bytes())
        }

        fn manifest(&self, config: &Value, layers: &[Value]) -> Value {
            let manifest = json!({
                "schemaVersion": 2, "mediaType": MANIFEST_TYPES[0],
                "config": config, "layers": layers,
            });
            self.json(MANIFEST_TYPES[0], &manifest)
        }

        /// A CNCF Wasm artifact with this layer.
        fn artifact(&self, layer: &[u8]) -> Value {
            let layer = self.blob(WASM_LAYER_TYPES[0], layer);
            let config = json!({
                "architecture": "wasm", "os": "wasip1", "layerDigests": [layer["digest"]],
            });
            self.manifest(&self.json(WASM_CONFIG_TYPE, &config), &[layer])
        }

        /// An ordinary image with one file.
        fn plain(&self) -> Value {
            let file = self.directory.path().join("file");
            std::fs::write(&file, "hello").unwrap();
            let layer = tar(self.directory.path(), &["file"]);
            std::fs::remove_file(file).unwrap();
            let layer = self.blob("application/vnd.oci.image.layer.v1.tar", &layer);
            let config = json!({
                "architecture": "amd64", "os": "linux",
                "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
            });
            let config = self.json("application/vnd.oci.image.config.v1+json", &config);
            self.manifest(&config, &[layer])
        }

        /// The same, for the node's platform.
        fn for_this_node(&self) -> Value {
            // Go's names; the two differ for these only, among Debian's architectures.
            let architecture = match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            };
            with_platform(self.plain(), architecture, "linux")
        }

        fn index(&self, manifests: &[Value]) -> Value {
            let index = json!({
                "schemaVersion": 2, "mediaType": INDEX_TYPES[0], "manifests": manifests,
            });
            self.json(INDEX_TYPES[0], &index)
        }

        /// Takes a blob out again.
        fn forget(&self, descriptor: &Value) {
            let digest = descriptor["digest"].as_str().unwrap().replace(':', "/");
            std::fs::remove_file(self.directory.path().join("blobs").join(digest)).unwrap();
        }

        fn name(&mut self, name: &str, mut descriptor: Value) {
            descriptor["annotations"] = json!({"io.containerd.image.name": name});
            self.images.push(descriptor);
        }

        fn write(&self, to: &Path) {
            let directory = self.directory.path();
            let index = json!({"schemaVersion": 2, "manifests": self.images});
            std::fs::write(directory.join("index.json"), index.to_string()).unwrap();
            let version = json!({"imageLayoutVersion": "1.0.0"}).to_string();
            std::fs::write(directory.join("oci-layout"), version).unwrap();
            std::fs::write(to, tar(directory, &["blobs", "index.json", "oci-layout"])).unwrap();
        }
    }

    fn tar(directory: &Path, names: &[&str]) -> Vec<u8> {
        let output = Command::new("tar").arg("-cC").arg(directory).args(names).output().expect("tar");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    fn with_platform(mut descriptor: Value, architecture: &str, os: &str) -> Value {
        descriptor["platform"] = json!({"architecture": architecture, "os": os});
        descriptor
    }

    #[tokio::test]
    async fn a_wasm_artifact_is_found_by_its_container() {
        let containerd = PrivateContainerd::start();
        let client = containerd.client();
        let mut layout = Layout::new();
        let artifact = layout.artifact(MODULE);
        let plain = layout.plain();
        let several = layout.index(&[layout.for_this_node(), with_platform(artifact.clone(), "wasm", "wasip1")]);
        let nested = layout.index(&[layout.index(std::slice::from_ref(&artifact))]);
        layout.name("example.com/artifact:1", artifact);
        layout.name("example.com/several:1", several);
        layout.name("example.com/nested:1", nested);
        layout.name("example.com/plain:1", plain);
        containerd.import(&layout, &["--all-platforms"]);

        let digest = format!("sha256:{}", hex::encode(Sha256::digest(MODULE)));
        containerd.create_container(&client, "artifact", "example.com/artifact:1").await;
        containerd.create_container(&client, "nested", "example.com/nested:1").await;
        // `ctr` unpacks what is for the node, and never looks at the rest.
        containerd.ctr(&["container", "create", "example.com/several:1", "several", "/file"]);
        for name in ["artifact", "several", "nested"] {
            let image = format!("example.com/{name}:1");
            let found = client.wasm_artifact(NAMESPACE, name).await.unwrap();
            let media_type = "application/wasm".to_string();
            let want = WasmArtifact { image, digest: digest.clone(), size: 8, media_type };
            assert_eq!(found, Some(want), "{name}");
        }
        assert_eq!(client.read_blob(NAMESPACE, &digest, 8).await.unwrap(), MODULE);
        let error = client.read_blob(NAMESPACE, &digest, 7).await.unwrap_err();
        assert!(matches!(&error, Error::ResourceExhausted(_)), "{error:?}");
        assert!(error.to_string().contains("larger than 7 bytes"), "{error}");

        containerd.ctr(&["container", "create", "example.com/plain:1", "plain", "/file"]);
        assert_eq!(client.wasm_artifact(NAMESPACE, "plain").await.unwrap(), None);
        containerd.create_container(&client, "no-image", "").await;
        assert_eq!(client.wasm_artifact(NAMESPACE, "no-image").await.unwrap(), None);
    }

    #[tokio::test]
    async fn an_image_whose_wasm_was_not_pulled_is_an_ordinary_one() {
        let containerd = PrivateContainerd::start();
        let client = containerd.client();
        let mut layout = Layout::new();
        let artifact = layout.artifact(MODULE);
        let plain = layout.for_this_node();
        layout.forget(&artifact);
        let several = layout.index(&[plain, with_platform(artifact, "wasm", "wasip1")]);
        layout.name("example.com/several:1", several);
        containerd.import(&layout, &[]);
        containerd.create_container(&client, "several", "example.com/several:1").await;
        assert_eq!(client.wasm_artifact(NAMESPACE, "several").await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_large_blob_arrives_whole_and_only_with_its_digest() {
        let containerd = PrivateContainerd::start();
        let client = containerd.client();
        let mut layout = Layout::new();
        let large: Vec<u8> = (0..5_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let artifact = layout.artifact(&large);
        layout.name("example.com/large:1", artifact);
        containerd.import(&layout, &["--all-platforms"]);
        let hash = hex::encode(Sha256::digest(&large));
        let digest = format!("sha256:{hash}");
        let size = large.len() as u64;
        assert!(client.read_blob(NAMESPACE, &digest, size).await.unwrap() == large);

        let file = containerd.directory.path().join("root/io.containerd.content.v1.content/blobs/sha256").join(hash);
        let mut damaged = large;
        damaged[1_000_000] ^= 1;
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, damaged).unwrap();
        let error = client.read_blob(NAMESPACE, &digest, size).await.unwrap_err();
        assert!(matches!(&error, Error::Internal(_)), "{error:?}");
        assert!(error.to_string().contains("do not have that digest"), "{error}");
    }

    #[tokio::test]
    async fn what_containerd_does_not_have_is_not_found() {
        let containerd = PrivateContainerd::start();
        let client = containerd.client();
        let error = client.wasm_artifact(NAMESPACE, "nobody").await.unwrap_err();
        assert!(matches!(&error, Error::NotFound(_)), "{error:?}");
        let want = format!(
            "cannot get container \"nobody\" of namespace \"hearth-test\" from containerd at {}: ",
            containerd.address()
        );
        assert!(error.to_string().starts_with(&want), "{error}");

        containerd.create_container(&client, "orphan", "example.com/gone:1").await;
        let error = client.wasm_artifact(NAMESPACE, "orphan").await.unwrap_err();
        assert!(matches!(&error, Error::NotFound(_)), "{error:?}");
        assert!(error.to_string().contains("image \"example.com/gone:1\""), "{error}");

        let digest = format!("sha256:{}", "0".repeat(64));
        let error = client.read_blob(NAMESPACE, &digest, 1).await.unwrap_err();
        assert!(matches!(&error, Error::NotFound(_)), "{error:?}");
        for bad in ["", "sha256:00", "sha512:00", "../../etc/passwd"] {
            let error = client.read_blob(NAMESPACE, bad, 1).await.unwrap_err();
            assert!(matches!(&error, Error::InvalidArgument(_)), "{bad}: {error:?}");
        }
        let error = client.wasm_artifact("two\nlines", "x").await.unwrap_err();
        assert!(matches!(&error, Error::InvalidArgument(_)), "{error:?}");
    }

    #[tokio::test]
    async fn a_restarted_containerd_answers_again() {
        let mut containerd = PrivateContainerd::start();
        let client = containerd.client();
        let version = client.version().await.unwrap();
        assert!(version >= Version { major: 1, minor: 6, patch: 0 }, "{version}");
        let said = Command::new("containerd").arg("--version").output().unwrap().stdout;
        let said = String::from_utf8(said).unwrap();
        assert!(said.contains(&version.to_string()), "{version} is not in {said}");

        containerd.stop();
        let error = client.version().await.unwrap_err();
        assert!(matches!(&error, Error::Unavailable(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(&containerd.address()), "{text}");
        assert!(text.ends_with("is it running?"), "{text}");
        containerd.restart();
        assert_eq!(client.version().await.unwrap(), version);
    }

    #[tokio::test]
    async fn an_absent_or_silent_containerd_is_unavailable() {
        let directory = tempfile::tempdir().unwrap();
        let path: PathBuf = directory.path().join("grpc");
        let config = config::Rpc { containerd_timeout_ms: 50, ..Default::default() };
        let client = Containerd::new(path.to_str().unwrap(), &config);
        let error = client.version().await.unwrap_err();
        assert!(matches!(&error, Error::Unavailable(_)), "{error:?}");
        assert!(error.to_string().contains("No such file"), "{error}");

        // The kernel accepts for it; nobody reads.
        let listener = UnixListener::bind(&path).unwrap();
        let error = client.version().await.unwrap_err();
        assert!(matches!(&error, Error::Unavailable(_)), "{error:?}");
        assert!(error.to_string().contains("rpc.containerd_timeout_ms = 50"), "{error}");

        // It dies with the question read.
        let reader = std::thread::spawn(move || {
            // The first connection is the one that timed out.
            let _ = listener.accept().unwrap();
            let (mut connection, _) = listener.accept().unwrap();
            connection.read_exact(&mut [0; 24]).unwrap();
        });
        let client = Containerd::new(path.to_str().unwrap(), &config::Rpc::default());
        let error = client.version().await.unwrap_err();
        assert!(matches!(&error, Error::Unavailable(_)), "{error:?}");
        assert!(error.to_string().ends_with("is it running?"), "{error}");
        reader.join().unwrap();
    }

    #[test]
    fn versions_are_read_as_they_are_written() {
        let version = |major, minor, patch| Some(Version { major, minor, patch });
        let table = [
            ("1.6.20~ds1", version(1, 6, 20)),
            ("1.6.20", version(1, 6, 20)),
            ("v1.7.24", version(1, 7, 24)),
            ("2.0.0-rc.1", version(2, 0, 0)),
            ("2.4.0-beta+unknown", version(2, 4, 0)),
            ("v2.3.1-12-gabcdef.m", version(2, 3, 1)),
            ("", None),
            ("2", None),
            ("2.3", None),
            ("dev", None),
            ("1.x.3", None),
            ("99999999999.0.0", None),
        ];
        for (text, want) in table {
            assert_eq!(Version::parse(text), want, "{text}");
        }
        assert!(version(1, 7, 24) < version(2, 0, 0));
    }

    fn descriptor(value: Value) -> Descriptor {
        let mut full = json!({
            "mediaType": MANIFEST_TYPES[0], "size": 1, "digest": format!("sha256:{}", "a".repeat(64)),
        });
        full.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
        serde_json::from_value(full).unwrap()
    }

    #[test]
    fn the_manifest_for_wasm_is_chosen() {
        let on = |arch: &str, os: &str| descriptor(json!({"platform": {"architecture": arch, "os": os}}));
        let bare = descriptor(json!({}));
        let typed = descriptor(json!({"artifactType": WASM_CONFIG_TYPE}));
        let linux = on("amd64", "linux");
        let attestation = on("unknown", "unknown");
        let table = [
            (vec![linux.clone(), on("wasm", "wasip1")], Some(1)),
            (vec![on("wasm", "wasip2"), linux.clone()], Some(0)),
            (vec![linux.clone(), on("wasm", "wasi"), bare.clone()], Some(1)),
            (vec![linux.clone(), on("wasm", "js")], None),
            (vec![linux.clone(), on("arm64", "wasip1")], None),
            (vec![linux.clone(), typed], Some(1)),
            (vec![bare.clone()], Some(0)),
            (vec![linux.clone()], Some(0)),
            (vec![attestation.clone(), linux.clone()], Some(1)),
            (vec![attestation], None),
            (vec![bare, linux], None),
            (vec![], None),
        ];
        for (manifests, want) in table {
            let chosen = choose(&manifests);
            let position = manifests.iter().position(|m| chosen.is_some_and(|c| std::ptr::eq(c, m)));
            assert_eq!(position, want, "{manifests:?}");
        }
    }

    #[test]
    fn a_wasm_layer_is_told_from_an_ordinary_one() {
        let oci = "application/vnd.oci.image.config.v1+json";
        let tar = "application/vnd.oci.image.layer.v1.tar+gzip";
        let table = [
            (WASM_CONFIG_TYPE, vec!["application/wasm"], Ok(Some(0))),
            (oci, vec!["application/wasm"], Ok(Some(0))),
            (oci, vec![tar, WASM_LAYER_TYPES[1]], Ok(Some(1))),
            ("application/vnd.wasm.config.v1+json", vec![WASM_LAYER_TYPES[2]], Ok(Some(0))),
            (oci, vec![tar], Ok(None)),
            (oci, vec![], Ok(None)),
            (WASM_CONFIG_TYPE, vec![], Err("without a Wasm layer: it has []")),
            (WASM_CONFIG_TYPE, vec![tar], Err("layer.v1.tar+gzip], and application/wasm is one")),
            (WASM_CONFIG_TYPE, vec!["application/wasm"; 3], Err("it has 3 Wasm layers")),
        ];
        for (config, types, want) in table {
            let layers: Vec<_> = types.iter().map(|t| descriptor(json!({"mediaType": t}))).collect();
            let manifest: ImageManifest = serde_json::from_value(json!({
                "schemaVersion": 2, "layers": layers,
                "config": descriptor(json!({"mediaType": config})),
            }))
            .unwrap();
            let found = wasm_layer(&manifest)
                .map(|layer| manifest.layers().iter().position(|l| layer.is_some_and(|f| std::ptr::eq(f, l))));
            match (found, want) {
                (Err(Error::InvalidArgument(text)), Err(part)) => {
                    assert!(text.contains(part), "{text}");
                }
                (found, want) => assert_eq!(found, want.map_err(|e| Error::Internal(e.into()))),
            }
        }
    }
}
