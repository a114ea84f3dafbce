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

    /// The lines that `ctr events` prints until the process is killed.
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
        let request = client.request(&"", &NAMESPACE.into(), request).unwrap();
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
    // `ctr` unpacks the layers for the node, and never looks at the rest.
    containerd.ctr(&["container", "create", "example.com/several:1", "several", "/file"]);
    for name in ["artifact", "several", "nested"] {
        let image = format!("example.com/{name}:1");
        let found = client.artifact(&NAMESPACE.into(), name).await.unwrap();
        let media_type = "application/wasm".to_string();
        let want = WasmArtifact { image, layer: ArtifactLayer { digest: digest.clone(), size: 8, media_type } };
        assert_eq!(found, Some(Artifact::Wasm(want)), "{name}");
    }
    assert_eq!(client.read_blob(&NAMESPACE.into(), &digest, 8).await.unwrap(), MODULE);
    let error = client.read_blob(&NAMESPACE.into(), &digest, 7).await.unwrap_err();
    assert!(matches!(&error, Error::ResourceExhausted(_)), "{error:?}");
    assert!(error.to_string().contains("larger than 7 bytes"), "{error}");

    containerd.ctr(&["container", "create", "example.com/plain:1", "plain", "/file"]);
    assert_eq!(client.artifact(&NAMESPACE.into(), "plain").await.unwrap(), None);
    containerd.create_container(&client, "no-image", "").await;
    assert_eq!(client.artifact(&NAMESPACE.into(), "no-image").await.unwrap(), None);
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
    assert_eq!(client.artifact(&NAMESPACE.into(), "several").await.unwrap(), None);
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
    assert!(client.read_blob(&NAMESPACE.into(), &digest, size).await.unwrap() == large);

    let file = containerd.directory.path().join("root/io.containerd.content.v1.content/blobs/sha256").join(hash);
    let mut damaged = large;
    damaged[1_000_000] ^= 1;
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, damaged).unwrap();
    let error = client.read_blob(&NAMESPACE.into(), &digest, size).await.unwrap_err();
    assert!(matches!(&error, Error::Internal(_)), "{error:?}");
    assert!(error.to_string().contains("do not have that digest"), "{error}");
}

#[tokio::test]
async fn what_containerd_does_not_have_is_not_found() {
    let containerd = PrivateContainerd::start();
    let client = containerd.client();
    let error = client.artifact(&NAMESPACE.into(), "nobody").await.unwrap_err();
    assert!(matches!(&error, Error::NotFound(_)), "{error:?}");
    let want = format!(
        "cannot get container \"nobody\" of namespace \"hearth-test\" from containerd at {}: ",
        containerd.address()
    );
    assert!(error.to_string().starts_with(&want), "{error}");

    containerd.create_container(&client, "orphan", "example.com/gone:1").await;
    let error = client.artifact(&NAMESPACE.into(), "orphan").await.unwrap_err();
    assert!(matches!(&error, Error::NotFound(_)), "{error:?}");
    assert!(error.to_string().contains("image \"example.com/gone:1\""), "{error}");

    let digest = format!("sha256:{}", "0".repeat(64));
    let error = client.read_blob(&NAMESPACE.into(), &digest, 1).await.unwrap_err();
    assert!(matches!(&error, Error::NotFound(_)), "{error:?}");
    for bad in ["", "sha256:00", "sha512:00", "../../etc/passwd"] {
        let error = client.read_blob(&NAMESPACE.into(), bad, 1).await.unwrap_err();
        assert!(matches!(&error, Error::InvalidArgument(_)), "{bad}: {error:?}");
    }
    let error = client.artifact(&"two\nlines".into(), "x").await.unwrap_err();
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

    // The kernel accepts connections for it; no process reads them.
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
fn a_spin_application_is_told_by_its_last_layer() {
    let layer = |media_type: &str, digit: &str| {
        let digest: oci_spec::image::Digest = format!("sha256:{}", digit.repeat(64)).parse().unwrap();
        Descriptor::new(oci_spec::image::MediaType::Other(media_type.into()), 8, digest)
    };
    let config = layer("application/vnd.oci.image.config.v1+json", "0");
    let wasm = "application/vnd.wasm.content.layer.v1+wasm";
    let manifest = |layers: Vec<Descriptor>| {
        let manifest = oci_spec::image::ImageManifestBuilder::default();
        manifest.schema_version(2_u32).config(config.clone()).layers(layers).build().unwrap()
    };
    let two = manifest(vec![layer(wasm, "1"), layer(wasm, "2"), layer(SPIN_APPLICATION_TYPE, "3")]);
    let application = spin_layer(&two).expect("it has one");
    let found = spin_artifact("a:1".into(), "sha256:m".into(), application, &two);
    assert_eq!(found.application, format!("sha256:{}", "3".repeat(64)));
    let types: Vec<_> = found.layers.iter().map(|layer| (layer.media_type.as_str(), layer.size)).collect();
    assert_eq!(types, [(wasm, 8), (wasm, 8), (SPIN_APPLICATION_TYPE, 8)]);
    assert_eq!(spin_layer(&manifest(vec![layer(wasm, "1")])), None);
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
