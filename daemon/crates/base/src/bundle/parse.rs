//! The parser of `config.json` and of an exec's process. It reads only the fields that a Wasm task uses; serde skips
//! the rest. Errors name the field.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::SystemTime;

use rustix::thread::CapabilitySet;
use serde::Deserialize;

use super::spec::{
    Capabilities, Cpu, CriNames, NetworkNamespace, ProcessSpec, Role, Scope, Scopes, SpecMount, TaskSpec, User,
};
use crate::error::{Error, Result};

#[derive(Deserialize)]
struct RawSpec<'a> {
    #[serde(borrow)]
    process: Option<RawProcess<'a>>,
    #[serde(borrow)]
    root: Option<RawRoot<'a>>,
    #[serde(borrow, default)]
    mounts: Vec<RawMount<'a>>,
    #[serde(default)]
    linux: Option<RawLinux>,
    #[serde(default)]
    annotations: Option<RawAnnotations>,
    #[serde(borrow, default)]
    hostname: Cow<'a, str>,
}

/// The annotations of containerd's CRI plugin (its pkg/cri/annotations).
#[derive(Deserialize, Default)]
struct RawAnnotations {
    #[serde(rename = "io.kubernetes.cri.container-type", default)]
    container_type: Option<String>,
    #[serde(rename = "io.kubernetes.cri.sandbox-id", default)]
    sandbox_id: Option<String>,
    #[serde(rename = "io.kubernetes.cri.sandbox-namespace", default)]
    pod_namespace: Option<String>,
    #[serde(rename = "io.kubernetes.cri.sandbox-name", default)]
    pod_name: Option<String>,
    #[serde(rename = "io.kubernetes.cri.container-name", default)]
    container_name: Option<String>,
    #[serde(rename = "io.kubernetes.cri.image-name", default)]
    image_name: Option<String>,
    #[serde(rename = "hearth.io/isolation", default)]
    isolation: Option<String>,
}

#[derive(Deserialize)]
struct RawProcess<'a> {
    #[serde(borrow, default)]
    args: Option<Vec<Cow<'a, str>>>,
    #[serde(borrow, default)]
    env: Option<Vec<Cow<'a, str>>>,
    #[serde(borrow, default)]
    cwd: Cow<'a, str>,
    #[serde(default)]
    user: RawUser,
    #[serde(default)]
    capabilities: Option<RawCapabilities>,
    #[serde(default)]
    terminal: bool,
    #[serde(borrow, default)]
    rlimits: Option<Vec<RawLimit<'a>>>,
}

#[derive(Deserialize)]
struct RawLimit<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    soft: u64,
}

#[derive(Deserialize)]
struct RawCapabilities {
    #[serde(default)]
    effective: Option<RawSet>,
    #[serde(default)]
    ambient: Option<RawSet>,
}

/// A list of names of capabilities, parsed without a copy of each name.
struct RawSet(CapabilitySet);

impl<'de> Deserialize<'de> for RawSet {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<RawSet, D::Error> {
        struct Names;

        impl<'de> serde::de::Visitor<'de> for Names {
            type Value = RawSet;

            fn expecting(&self, text: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                text.write_str("a list of capabilities")
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut names: A) -> std::result::Result<RawSet, A::Error> {
                let mut set = CapabilitySet::empty();
                while let Some(RawName(name)) = names.next_element()? {
                    set |= capability(&name);
                }
                Ok(RawSet(set))
            }
        }

        deserializer.deserialize_seq(Names)
    }
}

#[derive(Deserialize)]
struct RawName<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Deserialize, Default)]
struct RawUser {
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
    #[serde(default, rename = "additionalGids")]
    groups: Option<Vec<u32>>,
    #[serde(default)]
    umask: Option<u32>,
}

#[derive(Deserialize)]
struct RawRoot<'a> {
    #[serde(borrow)]
    path: Cow<'a, str>,
    #[serde(default)]
    readonly: bool,
}

#[derive(Deserialize)]
struct RawMount<'a> {
    #[serde(borrow)]
    destination: Cow<'a, str>,
    #[serde(borrow, rename = "type", default)]
    fstype: Cow<'a, str>,
    #[serde(borrow, default)]
    source: Cow<'a, str>,
    #[serde(borrow, default)]
    options: Option<Vec<Cow<'a, str>>>,
}

#[derive(Deserialize, Default)]
struct RawLinux {
    #[serde(default)]
    resources: Option<RawResources>,
    #[serde(default)]
    namespaces: Option<Vec<RawNamespace>>,
    #[serde(default)]
    sysctl: Option<BTreeMap<String, String>>,
    #[serde(default)]
    devices: Option<Vec<RawDevice>>,
    #[serde(default, rename = "cgroupsPath")]
    cgroups_path: Option<String>,
}

#[derive(Deserialize)]
struct RawDevice {
    path: String,
}

/// Devices that the OCI runtime specification has in every container ("Default Devices" of its config-linux.md).
const DEFAULT_DEVICES: [&str; 8] =
    ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/console", "/dev/ptmx"];

#[derive(Deserialize)]
struct RawNamespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: Option<String>,
}

#[derive(Deserialize)]
struct RawResources {
    #[serde(default)]
    memory: Option<RawMemory>,
    #[serde(default)]
    cpu: Option<RawCpu>,
}

#[derive(Deserialize, Default)]
struct RawCpu {
    #[serde(default)]
    shares: Option<u64>,
    #[serde(default)]
    quota: Option<i64>,
    #[serde(default)]
    period: Option<u64>,
}

#[derive(Deserialize)]
struct RawMemory {
    #[serde(default)]
    limit: Option<i64>,
}

/// The spec's file in a bundle.
const FILE: &str = "config.json";

/// The bytes of a bundle's spec, and when they were written.
fn read(bundle: &Path, bytes_max: u64) -> Result<(Vec<u8>, Option<SystemTime>)> {
    let path = bundle.join(FILE);
    let wrong = |what: String| Error::InvalidArgument(format!("{}: {what}", path.display()));
    let file = File::open(&path).map_err(|e| wrong(format!("cannot open: {e}")))?;
    let written_at = file.metadata().and_then(|metadata| metadata.modified()).ok();
    let mut bytes = Vec::with_capacity(16 << 10);
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(|e| wrong(format!("cannot read: {e}")))?;
    if bytes.len() as u64 > bytes_max {
        return Err(wrong(format!("is over {bytes_max} bytes (rpc.spec_bytes_max)")));
    }
    Ok((bytes, written_at))
}

/// The set of the one capability with this name. It is empty for a capability without effect on a guest: its calls
/// concern files and privileged ports only.
fn capability(name: &str) -> CapabilitySet {
    match name {
        "CAP_CHOWN" => CapabilitySet::CHOWN,
        "CAP_DAC_OVERRIDE" => CapabilitySet::DAC_OVERRIDE,
        "CAP_DAC_READ_SEARCH" => CapabilitySet::DAC_READ_SEARCH,
        "CAP_FOWNER" => CapabilitySet::FOWNER,
        "CAP_FSETID" => CapabilitySet::FSETID,
        "CAP_NET_BIND_SERVICE" => CapabilitySet::NET_BIND_SERVICE,
        _ => CapabilitySet::empty(),
    }
}

impl TaskSpec {
    /// Reads `<bundle>/config.json`, of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// `InvalidArgument` naming the file, the line and what is wrong.
    pub fn read(bundle: &Path, bytes_max: u64) -> Result<TaskSpec> {
        let (bytes, written_at) = read(bundle, bytes_max)?;
        let wrong = |e: Error| Error::InvalidArgument(format!("{}: {e}", bundle.join(FILE).display()));
        let spec = TaskSpec::parse(&bytes, bundle).map_err(wrong)?;
        Ok(TaskSpec { written_at, ..spec })
    }

    /// The bytes of `<bundle>/config.json`, at most `bytes_max`.
    ///
    /// # Errors
    /// `InvalidArgument` naming the file and what is wrong.
    pub fn read_bytes(bundle: &Path, bytes_max: u64) -> Result<Vec<u8>> {
        Ok(read(bundle, bytes_max)?.0)
    }

    /// Parses the bytes of a config.json that lies in `bundle`.
    ///
    /// # Errors
    /// `InvalidArgument` saying what is wrong, without the file's name.
    pub fn parse(bytes: &[u8], bundle: &Path) -> Result<TaskSpec> {
        let raw: RawSpec = serde_json::from_slice(bytes)
            .map_err(|e| Error::InvalidArgument(format!("is not an OCI runtime spec: {e}")))?;
        let process = raw.process.ok_or_else(|| Error::InvalidArgument("has no process".into()))?;
        let process = ProcessSpec::from_raw(process)?;
        let (root, read_only) = match raw.root {
            Some(root) if root.path.is_empty() => {
                return Err(Error::InvalidArgument("root.path is empty".into()));
            }
            Some(root) => (bundle.join(no_nul(root.path, "root.path")?), root.readonly),
            None => (bundle.join("rootfs"), false),
        };
        let mounts = raw.mounts.into_iter().map(SpecMount::from_raw).collect::<Result<_>>()?;
        let linux = raw.linux.unwrap_or_default();
        let (memory, cpu) = linux.resources.map_or((None, None), |resources| (resources.memory, resources.cpu));
        let namespaces = linux.namespaces.unwrap_or_default();
        let devices = linux.devices.unwrap_or_default().into_iter().map(|device| device.path);
        let mut annotations = raw.annotations.unwrap_or_default();
        let names = annotations.names();
        let isolation = annotations.isolation.take();
        Ok(TaskSpec {
            process,
            root,
            read_only,
            mounts,
            memory_limit: memory.and_then(|memory| memory.limit).and_then(positive),
            cpu: cpu.unwrap_or_default().into(),
            network: network(&namespaces)?,
            role: annotations.role(),
            names,
            written_at: None,
            hostname: no_nul(raw.hostname, "hostname")?,
            scopes: scopes(&namespaces),
            sysctls: linux.sysctl.unwrap_or_default(),
            user_namespace: namespaces.iter().any(|namespace| namespace.kind == "user"),
            isolation,
            devices: devices.filter(|path| !DEFAULT_DEVICES.contains(&path.as_str())).collect(),
            cgroups_path: linux.cgroups_path.unwrap_or_default(),
        })
    }
}

impl ProcessSpec {
    /// Parses the JSON of an OCI process, as an exec has it.
    ///
    /// # Errors
    /// `InvalidArgument` saying what is wrong.
    pub fn parse(bytes: &[u8]) -> Result<ProcessSpec> {
        let raw: RawProcess = serde_json::from_slice(bytes)
            .map_err(|e| Error::InvalidArgument(format!("the exec's spec is not an OCI process: {e}")))?;
        ProcessSpec::from_raw(raw)
    }

    fn from_raw(raw: RawProcess) -> Result<ProcessSpec> {
        let texts = |list: Option<Vec<Cow<str>>>, what: &str| -> Result<Vec<String>> {
            list.unwrap_or_default().into_iter().map(|text| no_nul(text, what)).collect()
        };
        let env = texts(raw.env, "process.env")?
            .into_iter()
            .map(|pair| match pair.split_once('=') {
                Some((name, value)) => (name.to_string(), value.to_string()),
                None => (pair, String::new()),
            })
            .collect();
        let cwd = match raw.cwd.as_ref() {
            "" => "/".to_string(),
            cwd if cwd.starts_with('/') => no_nul(raw.cwd, "process.cwd")?,
            cwd => return Err(Error::InvalidArgument(format!("process.cwd {cwd:?} is not an absolute path"))),
        };
        let RawUser { uid, gid, groups, umask } = raw.user;
        let set = |set: Option<RawSet>| set.map_or(CapabilitySet::empty(), |RawSet(set)| set);
        let capabilities = raw.capabilities.map_or_else(Capabilities::default, |raw| Capabilities {
            effective: set(raw.effective),
            ambient: set(raw.ambient),
        });
        Ok(ProcessSpec {
            args: texts(raw.args, "process.args")?,
            env,
            cwd,
            user: User { uid, gid, groups: groups.unwrap_or_default(), umask, capabilities },
            terminal: raw.terminal,
            open_files: raw
                .rlimits
                .iter()
                .flatten()
                .find(|limit| limit.kind == "RLIMIT_NOFILE")
                .map(|limit| limit.soft),
        })
    }

    /// The value of `PATH` in the environment, if it is set.
    pub fn path(&self) -> Option<&str> {
        crate::env::last(&self.env, "PATH")
    }
}

/// A limit of the OCI runtime spec, in which 0 and negative numbers mean no limit.
pub(super) fn positive(limit: i64) -> Option<u64> {
    u64::try_from(limit).ok().filter(|&limit| limit > 0)
}

impl From<RawCpu> for Cpu {
    fn from(raw: RawCpu) -> Cpu {
        Cpu {
            shares: raw.shares.filter(|&shares| shares > 0),
            quota: raw.quota.and_then(positive),
            period: raw.period.filter(|&period| period > 0),
        }
    }
}

fn scopes(namespaces: &[RawNamespace]) -> Scopes {
    let scope = |kind| match namespaces.iter().any(|namespace| namespace.kind == kind) {
        true => Scope::Pod,
        false => Scope::Node,
    };
    Scopes { ipc: scope("ipc"), pid: scope("pid"), uts: scope("uts") }
}

fn network(namespaces: &[RawNamespace]) -> Result<NetworkNamespace> {
    let Some(found) = namespaces.iter().find(|namespace| namespace.kind == "network") else {
        return Ok(NetworkNamespace::Host);
    };
    match found.path.as_deref() {
        None | Some("") => Ok(NetworkNamespace::New),
        Some(path) if path.starts_with('/') => {
            Ok(NetworkNamespace::Path(no_nul(Cow::Borrowed(path), "linux.namespaces")?.into()))
        }
        Some(path) => Err(Error::InvalidArgument(format!("linux.namespaces: {path:?} is not an absolute path"))),
    }
}

impl RawAnnotations {
    fn names(&mut self) -> CriNames {
        CriNames {
            namespace: self.pod_namespace.take(),
            pod: self.pod_name.take(),
            container: self.container_name.take(),
            image: self.image_name.take(),
        }
    }

    fn role(self) -> Role {
        match (self.container_type.as_deref(), self.sandbox_id) {
            (Some("sandbox"), _) => Role::Sandbox,
            (Some("container"), Some(id)) if !id.is_empty() => Role::InSandbox(id),
            _ => Role::Alone,
        }
    }
}

impl SpecMount {
    fn from_raw(raw: RawMount) -> Result<SpecMount> {
        if !raw.destination.starts_with('/') {
            return Err(Error::InvalidArgument(format!(
                "mounts: the destination {:?} is not an absolute path",
                raw.destination
            )));
        }
        Ok(SpecMount {
            destination: no_nul(raw.destination, "mounts.destination")?.into(),
            fstype: no_nul(raw.fstype, "mounts.type")?,
            source: no_nul(raw.source, "mounts.source")?,
            options: raw
                .options
                .unwrap_or_default()
                .into_iter()
                .map(|option| no_nul(option, "mounts.options"))
                .collect::<Result<_>>()?,
        })
    }
}

/// Refuses a NUL character, which neither a system call nor a guest's argument can contain.
fn no_nul(text: Cow<str>, what: &str) -> Result<String> {
    if text.contains('\0') {
        return Err(Error::InvalidArgument(format!("{what} has a NUL character in {text:?}")));
    }
    Ok(text.into_owned())
}
