//! The bundles that are started: directories with `config.json` and a root file system, as a person
//! (bare) or CRI (cri) would make them. All of it is made before the clock starts.
//!
//! Failure paths: file system errors, with the path.

use std::ffi::CString;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use containerd_shim_protos::api::{CreateTaskRequest, Mount};
use rustix::fs::{FileType, Mode};
use serde_json::{Value, json};
use tokio::net::unix::pipe;

use crate::guest::{self, Module};
use crate::namespaces::PodNetwork;
use crate::rootfs::{FloorPlan, RootPlan, Volume};

/// A directory that holds the module and nothing else: an image's only layer.
#[derive(Debug, Clone)]
pub struct BundleImage {
    dir: PathBuf,
}

impl BundleImage {
    /// Writes an image to a new directory.
    ///
    /// # Errors
    /// Of the file system.
    pub fn create(dir: PathBuf, module: &Module) -> Result<BundleImage> {
        make_dir(&dir)?;
        write(&dir.join(guest::FILE_NAME), module.bytes())?;
        Ok(BundleImage { dir })
    }

    /// The image's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// The parts that the containers of one pod share: the files that kubelet and CRI write for it, and its network
/// namespace.
pub struct PodFiles {
    dir: PathBuf,
    /// None: the node's.
    network: Option<Arc<PodNetwork>>,
    /// The task id of its sandbox, if it has one.
    sandbox: Option<String>,
}

impl PodFiles {
    /// Writes the files of a pod with a network of its own to a new directory.
    ///
    /// # Errors
    /// Of the file system; without root, from the network namespace.
    pub fn create(dir: PathBuf) -> Result<PodFiles> {
        Ok(PodFiles { network: Some(Arc::new(PodNetwork::new()?)), ..PodFiles::in_host_network(dir)? })
    }

    /// The same for a pod in the node's network.
    ///
    /// # Errors
    /// Of the file system.
    pub fn in_host_network(dir: PathBuf) -> Result<PodFiles> {
        make_dir(&dir)?;
        write(&dir.join("hosts"), b"127.0.0.1\tlocalhost\n::1\tlocalhost\n10.88.0.7\tbench\n")?;
        write(&dir.join("hostname"), b"bench\n")?;
        write(
            &dir.join("resolv.conf"),
            b"search default.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n",
        )?;
        write(&dir.join("termination-log"), b"")?;
        make_dir(&dir.join("shm"))?;
        make_dir(&dir.join("secret"))?;
        write(&dir.join("secret/token"), &[b'x'; 1024])?;
        write(&dir.join("secret/namespace"), b"default")?;
        Ok(PodFiles { dir, network: None, sandbox: None })
    }

    /// The pod's entry in `linux.namespaces`.
    fn network(&self) -> Option<Value> {
        let network = self.network.as_ref()?;
        Some(json!({ "type": "network", "path": network.path() }))
    }

    /// Another pod with these files and this network, whose sandbox is the task `id`.
    pub fn with_sandbox(&self, id: &str) -> PodFiles {
        PodFiles { dir: self.dir.clone(), network: self.network.clone(), sandbox: Some(id.to_owned()) }
    }

    /// The bundle of its sandbox, in a new directory, and the Create request for it.
    ///
    /// # Errors
    /// Of the file system.
    pub fn sandbox_bundle(&self, dir: &Path) -> Result<CreateTaskRequest> {
        make_dir(dir)?;
        let id = self.sandbox.clone().unwrap_or_default();
        let spec = json!({
            "ociVersion": "1.1.0",
            "process": { "user": { "uid": 65_535, "gid": 65_535 }, "args": ["/pause"], "cwd": "/" },
            "root": { "path": "rootfs", "readonly": true },
            "hostname": "bench",
            "annotations": { CONTAINER_TYPE: "sandbox", SANDBOX_ID: id },
            "linux": { "namespaces": self.network().into_iter().collect::<Vec<_>>() },
        });
        write_json(&dir.join("config.json"), &spec)?;
        Ok(CreateTaskRequest { id, bundle: text(dir), ..CreateTaskRequest::default() })
    }

    /// The six binds that CRI makes for a container, in its order. The shared memory's source is a
    /// plain directory here; under CRI it is a tmpfs of the sandbox.
    fn volumes(&self) -> Vec<Volume> {
        let bind = |destination, source: &str, directory, read_only| Volume {
            source: self.dir.join(source),
            destination,
            directory,
            read_only,
        };
        vec![
            bind("/etc/hosts", "hosts", false, false),
            bind("/dev/termination-log", "termination-log", false, false),
            bind("/etc/hostname", "hostname", false, false),
            bind("/etc/resolv.conf", "resolv.conf", false, false),
            bind("/dev/shm", "shm", true, false),
            bind("/var/run/secrets/kubernetes.io/serviceaccount", "secret", true, true),
        ]
    }
}

/// Annotations of containerd's CRI plugin.
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";

/// The environment variable that says where an HTTP component listens.
const HTTP_ADDRESS: &str = "WASMTIME_HTTP_PROXY_SOCKET_ADDR";

/// The reading ends of a task's FIFOs.
pub struct Stdio {
    /// The FIFO of the guest's first byte.
    pub stdout: pipe::Receiver,
    /// Kept open, as containerd keeps it; the guest writes nothing there.
    _stderr: pipe::Receiver,
}

/// The kind of a bundle.
pub enum Recipe {
    /// The least: a root file system, no mounts, no stdio.
    Bare,
    /// The least, with FIFOs for stdout and stderr.
    Stdio,
    /// A bundle as CRI makes it for a container of this pod.
    Cri(PodFiles),
    /// The least, for an HTTP component that listens at this address of the node's network.
    Service(SocketAddr),
}

/// A bundle ready to be created and started.
pub struct Bundle {
    dir: PathBuf,
    image: BundleImage,
    /// Where an overlay's writes go, and the directory it works in.
    writable: Option<[PathBuf; 2]>,
    /// The Create request for it.
    pub create: CreateTaskRequest,
    /// FIFOs, where the request names some.
    pub stdio: Option<Stdio>,
    /// The floor's work beside the calls.
    pub floor: Option<FloorPlan>,
}

impl Bundle {
    /// Makes a bundle in a new directory for the task `id`.
    ///
    /// # Errors
    /// Of the file system.
    pub fn create(dir: PathBuf, id: &str, image: BundleImage, recipe: &Recipe) -> Result<Bundle> {
        make_dir(&dir)?;
        let mut create = CreateTaskRequest::new();
        create.id = id.to_owned();
        create.bundle = text(&dir);
        let mut bundle = Bundle { dir, image, writable: None, create, stdio: None, floor: None };
        match recipe {
            Recipe::Bare => bundle.add_bare_root(&bare_spec())?,
            Recipe::Service(address) => {
                let mut spec = bare_spec();
                spec["process"]["env"] = json!([format!("{HTTP_ADDRESS}={address}")]);
                bundle.add_bare_root(&spec)?;
            }
            Recipe::Stdio => {
                bundle.add_bare_root(&bare_spec())?;
                bundle.add_stdio(None)?;
            }
            Recipe::Cri(pod) => {
                let root = bundle.add_cri_root(pod)?;
                bundle.add_stdio(Some(root))?;
            }
        }
        Ok(bundle)
    }

    /// The image's directory itself as root file system. It is moved, which keeps the file's identity:
    /// no start pays for a file that is new to the kernel.
    fn add_bare_root(&mut self, spec: &Value) -> Result<()> {
        let image = self.image.dir();
        fs::rename(image, self.dir.join("rootfs"))
            .with_context(|| format!("cannot move {} into a bundle", image.display()))?;
        write_json(&self.dir.join("config.json"), spec)
    }

    /// An overlay with the image as lower directory, and the pod's volumes.
    fn add_cri_root(&mut self, pod: &PodFiles) -> Result<RootPlan> {
        let inside = |name: &str| self.dir.join(name);
        let [upper, work] = ["upper", "work"].map(|name| pod.dir.join(format!("{}-{name}", self.create.id)));
        for dir in [&inside("rootfs"), &upper, &work] {
            make_dir(dir)?;
        }
        let volumes = pod.volumes();
        let mut spec = cri_spec(&self.create.id, &volumes, pod.network());
        if let Some(sandbox) = &pod.sandbox {
            spec["annotations"][CONTAINER_TYPE] = "container".into();
            spec["annotations"][SANDBOX_ID] = sandbox.as_str().into();
        }
        write_json(&inside("config.json"), &spec)?;
        let options = vec![
            "index=off".to_owned(),
            format!("workdir={}", text(&work)),
            format!("upperdir={}", text(&upper)),
            format!("lowerdir={}", text(self.image.dir())),
        ];
        let overlay_options = CString::new(options.join(","))?;
        let target = inside("rootfs");
        self.writable = Some([upper, work]);
        self.create.rootfs =
            vec![Mount { type_: "overlay".into(), source: "overlay".into(), options, ..Mount::default() }];
        Ok(RootPlan { overlay_options, target, volumes })
    }

    fn add_stdio(&mut self, root: Option<RootPlan>) -> Result<()> {
        let fifos = [self.dir.join("stdout"), self.dir.join("stderr")];
        let [stdout, stderr] = &fifos;
        self.create.stdout = text(stdout);
        self.create.stderr = text(stderr);
        self.stdio = Some(Stdio { stdout: make_fifo(stdout)?, _stderr: make_fifo(stderr)? });
        self.floor = Some(FloorPlan { root, fifos });
        Ok(())
    }

    /// The same without standard streams.
    pub fn without_stdio(mut self) -> Bundle {
        (self.stdio, self.floor) = (None, None);
        self.create.stdout.clear();
        self.create.stderr.clear();
        self
    }

    /// Removes the bundle and hands its image back.
    ///
    /// # Errors
    /// Of the file system.
    pub fn remove(self) -> Result<BundleImage> {
        if self.create.rootfs.is_empty() {
            let rootfs = self.dir.join("rootfs");
            fs::rename(&rootfs, self.image.dir()).with_context(|| format!("cannot move {} back", rootfs.display()))?;
        }
        for dir in [self.dir].iter().chain(self.writable.iter().flatten()) {
            remove_dir(dir)?;
        }
        Ok(self.image)
    }
}

/// Removes a directory and all in it.
///
/// # Errors
/// Of the file system, with the path.
pub fn remove_dir(dir: &Path) -> Result<()> {
    fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))
}

/// Makes a directory that must not exist yet.
///
/// # Errors
/// Of the file system, with the path.
pub fn make_dir(dir: &Path) -> Result<()> {
    fs::create_dir(dir).with_context(|| format!("cannot make directory {}", dir.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    write(path, &serde_json::to_vec(value)?)
}

/// Our paths are made of the scratch directory's, which was checked to be UTF-8.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Makes a FIFO and opens it as containerd's client does before Create. Opened read-write, it shows
/// no end of file before the daemon has opened its side.
fn make_fifo(path: &Path) -> Result<pipe::Receiver> {
    rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, Mode::from_raw_mode(0o700), 0)
        .with_context(|| format!("cannot make FIFO {}", path.display()))?;
    pipe::OpenOptions::new()
        .read_write(true)
        .open_receiver(path)
        .with_context(|| format!("cannot open FIFO {}", path.display()))
}

/// The least that starts a guest.
fn bare_spec() -> Value {
    json!({
        "ociVersion": "1.1.0",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": [format!("/{}", guest::FILE_NAME)],
            "env": ["PATH=/"],
            "cwd": "/",
        },
        "root": { "path": "rootfs" },
    })
}

/// The spec that CRI makes for a container of an ordinary pod with a service account.
fn cri_spec(id: &str, volumes: &[Volume], network: Option<Value>) -> Value {
    let mut namespaces = vec![
        json!({ "type": "pid" }),
        json!({ "type": "ipc", "path": "/proc/self/ns/ipc" }),
        json!({ "type": "uts", "path": "/proc/self/ns/uts" }),
        json!({ "type": "mount" }),
    ];
    namespaces.extend(network);
    json!({
        "ociVersion": "1.1.0",
        "process": cri_process(),
        "root": { "path": "rootfs" },
        "mounts": cri_mounts(volumes),
        "annotations": {
            "io.kubernetes.cri.container-name": "app",
            "io.kubernetes.cri.image-name": "registry.example/bench/hello:1.0.0",
        },
        "linux": {
            "resources": {
                "devices": [{ "allow": false, "access": "rwm" }],
                "memory": { "limit": 134_217_728u64 },
                "cpu": { "shares": 256, "quota": 100_000, "period": 100_000 },
            },
            "cgroupsPath": format!("/kubepods/burstable/pod5f3c6a54-7a0e-4a1c-9d0e-6b5a4b7d1c22/{id}"),
            "namespaces": namespaces,
            "maskedPaths": [
                "/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi",
                "/sys/firmware", "/sys/devices/virtual/powercap",
            ],
            "readonlyPaths": [
                "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
            ],
        },
    })
}

fn cri_process() -> Value {
    let capabilities = [
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE",
    ];
    json!({
        "user": { "uid": 0, "gid": 0, "additionalGids": [0] },
        "args": [format!("/{}", guest::FILE_NAME), "--listen", "0.0.0.0:8080"],
        "env": [
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOSTNAME=bench",
            "LOG_LEVEL=info",
            "POD_NAME=bench",
            "POD_NAMESPACE=default",
            "KUBERNETES_SERVICE_HOST=10.96.0.1",
            "KUBERNETES_SERVICE_PORT=443",
            "KUBERNETES_SERVICE_PORT_HTTPS=443",
            "KUBERNETES_PORT=tcp://10.96.0.1:443",
            "KUBERNETES_PORT_443_TCP=tcp://10.96.0.1:443",
            "KUBERNETES_PORT_443_TCP_PROTO=tcp",
            "KUBERNETES_PORT_443_TCP_PORT=443",
            "KUBERNETES_PORT_443_TCP_ADDR=10.96.0.1",
        ],
        "cwd": "/",
        "capabilities": {
            "bounding": capabilities,
            "effective": capabilities,
            "permitted": capabilities,
        },
        "apparmorProfile": "cri-containerd.apparmor.d",
        "oomScoreAdj": 999,
    })
}

fn cri_mounts(volumes: &[Volume]) -> Vec<Value> {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ];
    mounts.extend(volumes.iter().map(|volume| {
        let access = if volume.read_only { "ro" } else { "rw" };
        json!({
            "destination": volume.destination,
            "type": "bind",
            "source": volume.source,
            "options": ["rbind", "rprivate", access],
        })
    }));
    mounts
}
