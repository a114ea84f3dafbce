//! `config.json` → [`TaskSpec`], and an exec's process → [`ProcessSpec`]: the part of the OCI runtime
//! spec that a Wasm task uses, checked.
//!
//! Only what is used is parsed: a CRI config.json is 10–20 kB of seccomp rules, devices and paths of
//! procfs that mean nothing to a guest, and serde skips what no field asks for.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::thread::CapabilitySet;
use serde::Deserialize;

use crate::error::{Error, Result};

/// A mount of the spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecMount {
    /// Where, in the container.
    pub destination: PathBuf,
    /// File-system type; empty or `bind` for a bind mount.
    pub fstype: String,
    /// What.
    pub source: String,
    /// mount(8)-style options.
    pub options: Vec<String>,
}

/// What is said about a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessSpec {
    /// `process.args`; empty for an image without entry point.
    pub args: Vec<String>,
    /// `process.env`, split at the first `=`.
    pub env: Vec<(String, String)>,
    /// `process.cwd`, absolute.
    pub cwd: String,
    /// `process.user`.
    pub user: User,
    /// `process.terminal`.
    pub terminal: bool,
    /// The soft limit of `RLIMIT_NOFILE` in `process.rlimits`.
    pub open_files: Option<u64>,
}

/// What a bundle says about its task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskSpec {
    /// `process`: the first one.
    pub process: ProcessSpec,
    /// `root.path`, made absolute with the bundle's path.
    pub root: PathBuf,
    /// `root.readonly`.
    pub read_only: bool,
    /// `mounts`.
    pub mounts: Vec<SpecMount>,
    /// `linux.resources.memory.limit` in bytes, if there is one.
    pub memory_limit: Option<u64>,
    /// `linux.resources.cpu`.
    pub cpu: Cpu,
    /// The network namespace in `linux.namespaces`.
    pub network: Network,
    /// What CRI says the container is.
    pub role: Role,
    /// What CRI calls it, for those who look.
    pub names: CriNames,
    /// When the file was written.
    pub written_at: Option<SystemTime>,
    /// `hostname`; may be empty.
    pub hostname: String,
    /// Which other namespaces it has of its own.
    pub scopes: Scopes,
    /// `linux.sysctl`, by name.
    pub sysctls: BTreeMap<String, String>,
}

/// Whose a namespace of a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scope {
    /// The pod's.
    Pod,
    /// The node's.
    #[default]
    Node,
}

/// A pod's namespaces beside that of its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scopes {
    /// System V IPC and POSIX message queues.
    pub ipc: Scope,
    /// Processes.
    pub pid: Scope,
    /// The host name.
    pub uts: Scope,
}

/// `process.user`: whose rights the process has to files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Mode bits that new files do not get; the daemon's (0o022) if absent.
    pub umask: Option<u32>,
    /// `process.capabilities`, as far as they are a guest's.
    pub capabilities: Capabilities,
}

/// Those of `process.capabilities` that decide what a guest's calls may do; see `capability`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// `effective`: what root has.
    pub effective: CapabilitySet,
    /// `ambient`: what other users keep when their program is started.
    pub ambient: CapabilitySet,
}

impl Default for Capabilities {
    /// None, as for whom the spec names none.
    fn default() -> Capabilities {
        Capabilities { effective: CapabilitySet::empty(), ambient: CapabilitySet::empty() }
    }
}

/// The set of the one capability with this name, empty for one that means nothing to a guest: files and
/// privileged ports are all that its calls are about.
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

/// `linux.resources.cpu`; absent or 0 means no limit of that kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cpu {
    /// Weight relative to others, in cgroup v1's unit: 2 to 262,144, 1024 by default.
    pub shares: Option<u64>,
    /// CPU time in microseconds it may use in each period.
    pub quota: Option<u64>,
    /// The period in microseconds.
    pub period: Option<u64>,
}

/// Which network a process is in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Network {
    /// The node's: the spec lists no network namespace.
    #[default]
    Host,
    /// A namespace that exists, by path.
    Path(PathBuf),
    /// A namespace of its own.
    New,
}

/// What a container is to CRI, by containerd's annotations.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Role {
    /// Not CRI's.
    #[default]
    Alone,
    /// A pod's sandbox (the pause container).
    Sandbox,
    /// A container in the pod whose sandbox has this id.
    InSandbox(String),
}

/// What CRI calls a container and its pod, by containerd's annotations; some versions leave some out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CriNames {
    /// The pod's namespace.
    pub namespace: Option<String>,
    /// The pod's name.
    pub pod: Option<String>,
    /// The container's name.
    pub container: Option<String>,
    /// The image's name.
    pub image: Option<String>,
}

/// What an Update call changes; what it does not name stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ResourceUpdate {
    /// `memory.limit` in bytes; `Some(None)` takes the limit away.
    pub memory_limit: Option<Option<u64>>,
    shares: Option<u64>,
    quota: Option<Option<u64>>,
    period: Option<u64>,
}

impl ResourceUpdate {
    /// Parses an OCI `LinuxResources`. As for runc, 0 names nothing and -1 takes a limit away.
    ///
    /// # Errors
    /// `InvalidArgument` naming the field that is wrong.
    pub fn parse(bytes: &[u8]) -> Result<ResourceUpdate> {
        let all: serde_json::Value = serde_json::from_slice(bytes)
            .map_err(|e| Error::InvalidArgument(format!("resources: are not an OCI LinuxResources: {e}")))?;
        let wrong = |field: &str, value: &dyn std::fmt::Display, what: &str| {
            Error::InvalidArgument(format!("linux.resources.{field}: {value} is {what}"))
        };
        let number = |group: &str, name: &str| {
            let field = format!("{group}.{name}");
            let value = match all.get(group) {
                None | Some(serde_json::Value::Null) => return Ok(None),
                Some(serde_json::Value::Object(group)) => group.get(name),
                Some(other) => return Err(wrong(group, other, "not an object")),
            };
            match value {
                None | Some(serde_json::Value::Null) => Ok(None),
                Some(value) => match value.as_i64() {
                    Some(0) => Ok(None),
                    Some(number) if number >= -1 => Ok(Some(number)),
                    Some(number) => Err(wrong(&field, &number, "negative; -1 is no limit")),
                    None => Err(wrong(&field, value, "not a whole number of 64 bits")),
                },
            }
        };
        let at_least_0 = |name: &str| -> Result<Option<u64>> {
            let number = number("cpu", name)?;
            number.map(|n| u64::try_from(n).map_err(|_| wrong(&format!("cpu.{name}"), &n, "negative"))).transpose()
        };
        if !all.is_object() {
            return Err(Error::InvalidArgument("resources: are not an object".into()));
        }
        Ok(ResourceUpdate {
            memory_limit: number("memory", "limit")?.map(positive),
            shares: at_least_0("shares")?,
            quota: number("cpu", "quota")?.map(positive),
            period: at_least_0("period")?,
        })
    }

    /// The CPU limits that were `now`, with what this names.
    pub fn cpu(&self, now: Cpu) -> Cpu {
        Cpu {
            shares: self.shares.or(now.shares),
            quota: self.quota.unwrap_or(now.quota),
            period: self.period.or(now.period),
        }
    }
}

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

/// Keys of containerd's CRI plugin (its pkg/cri/annotations).
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

/// Names of capabilities, without a copy of each.
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
}

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

impl TaskSpec {
    /// Reads `<bundle>/config.json`, of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// `InvalidArgument` naming the file, the line and what is wrong.
    pub fn read(bundle: &Path, bytes_max: u64) -> Result<TaskSpec> {
        let path = bundle.join("config.json");
        let wrong = |what: String| Error::InvalidArgument(format!("{}: {what}", path.display()));
        let file = File::open(&path).map_err(|e| wrong(format!("cannot open: {e}")))?;
        let written_at = file.metadata().and_then(|metadata| metadata.modified()).ok();
        let mut bytes = Vec::with_capacity(16 << 10);
        file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(|e| wrong(format!("cannot read: {e}")))?;
        if bytes.len() as u64 > bytes_max {
            return Err(wrong(format!("is over {bytes_max} bytes (rpc.spec_bytes_max)")));
        }
        let spec = TaskSpec::parse(&bytes, bundle).map_err(|e| wrong(e.to_string()))?;
        Ok(TaskSpec { written_at, ..spec })
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
        let mut annotations = raw.annotations.unwrap_or_default();
        let names = annotations.names();
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

    /// `PATH` of the environment, if set.
    pub fn path(&self) -> Option<&str> {
        self.env.iter().rev().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_str())
    }
}

/// 0 and negative numbers mean no limit in the OCI runtime spec.
fn positive(limit: i64) -> Option<u64> {
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

fn network(namespaces: &[RawNamespace]) -> Result<Network> {
    let Some(found) = namespaces.iter().find(|namespace| namespace.kind == "network") else {
        return Ok(Network::Host);
    };
    match found.path.as_deref() {
        None | Some("") => Ok(Network::New),
        Some(path) if path.starts_with('/') => {
            Ok(Network::Path(no_nul(Cow::Borrowed(path), "linux.namespaces")?.into()))
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

/// A system call cannot take a NUL, nor can a guest's argument.
fn no_nul(text: Cow<str>, what: &str) -> Result<String> {
    if text.contains('\0') {
        return Err(Error::InvalidArgument(format!("{what} has a NUL character in {text:?}")));
    }
    Ok(text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<TaskSpec> {
        TaskSpec::parse(text.as_bytes(), Path::new("/b"))
    }

    #[test]
    fn what_a_task_uses_is_read_and_the_rest_skipped() {
        let spec = parse(
            r#"{"ociVersion":"1.1.0","hooks":{"prestart":[{"path":"/x"}]},
                "process":{"terminal":false,"user":{"uid":0,"gid":0},"args":["/a.wasm","x\ny"],
                           "env":["PATH=/bin","A=b=c","N"],"cwd":"/w","capabilities":{"bounding":["CAP_X"]}},
                "root":{"path":"rootfs","readonly":true},
                "mounts":[{"destination":"/proc","type":"proc","source":"proc","options":null},
                          {"destination":"/etc/hosts","type":"bind","source":"/h","options":["rbind","ro"]}],
                "linux":{"namespaces":[{"type":"pid"}],"resources":{"memory":{"limit":1048576},"cpu":{"shares":2}}}}"#,
        )
        .unwrap();
        assert_eq!(spec.process.args, ["/a.wasm", "x\ny"]);
        assert_eq!(spec.process.env[1], ("A".into(), "b=c".into()));
        assert_eq!(spec.process.env[2], ("N".into(), String::new()));
        assert_eq!((spec.process.path(), spec.process.cwd.as_str()), (Some("/bin"), "/w"));
        assert_eq!((spec.root, spec.read_only), (PathBuf::from("/b/rootfs"), true));
        assert_eq!(spec.mounts.len(), 2);
        assert_eq!(spec.mounts[1].options, ["rbind", "ro"]);
        assert_eq!(spec.memory_limit, Some(1 << 20));
        assert_eq!(spec.cpu, Cpu { shares: Some(2), ..Cpu::default() });
        assert_eq!((spec.network, spec.role, spec.process.user), (Network::Host, Role::Alone, User::default()));
    }

    #[test]
    fn who_a_container_is_and_where() {
        let spec = parse(
            r#"{"process":{"terminal":true,"user":{"uid":7,"gid":8,"additionalGids":[9,10],"umask":23}},
                "annotations":{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"s","x":"y"},
                "linux":{"namespaces":[{"type":"pid"},{"type":"network","path":"/proc/1/ns/net"}],
                         "resources":{"cpu":{"shares":512,"quota":10000,"period":100000}}}}"#,
        )
        .unwrap();
        let capabilities = Capabilities::default();
        assert_eq!(spec.process.user, User { uid: 7, gid: 8, groups: vec![9, 10], umask: Some(0o27), capabilities });
        assert_eq!(spec.network, Network::Path("/proc/1/ns/net".into()));
        assert_eq!((spec.role, spec.process.terminal), (Role::InSandbox("s".into()), true));
        assert_eq!(spec.cpu, Cpu { shares: Some(512), quota: Some(10_000), period: Some(100_000) });
        let pause = r#"{"process":{},"annotations":{"io.kubernetes.cri.container-type":"sandbox"},
                        "linux":{"namespaces":[{"type":"network"}],"resources":{"cpu":{"quota":-1,"shares":0}}}}"#;
        let spec = parse(pause).unwrap();
        assert_eq!((spec.role, spec.network, spec.cpu), (Role::Sandbox, Network::New, Cpu::default()));
        assert_eq!((spec.scopes, spec.sysctls.len()), (Scopes::default(), 0));
        let own = r#"{"process":{},"linux":{"namespaces":[{"type":"ipc"},{"type":"pid"}],"sysctl":{"net.x":"1"}}}"#;
        let spec = parse(own).unwrap();
        assert_eq!(spec.scopes, Scopes { ipc: Scope::Pod, pid: Scope::Pod, uts: Scope::Node });
        assert_eq!(spec.sysctls["net.x"], "1");
    }

    #[test]
    fn capabilities_are_those_a_guest_has_a_use_for() {
        let of = |text: &str| {
            let spec = format!(r#"{{"process":{{"capabilities":{text}}}}}"#);
            TaskSpec::parse(spec.as_bytes(), Path::new("/b")).map(|spec| spec.process.user.capabilities)
        };
        let some = of(r#"{"bounding":["CAP_CHOWN"],"effective":["CAP_FOWNER","CAP_SYS_ADMIN","CAP_NET_BIND_SERVICE"],
                         "ambient":["CAP_DAC_OVERRIDE"]}"#);
        let effective = CapabilitySet::FOWNER | CapabilitySet::NET_BIND_SERVICE;
        assert_eq!(some.unwrap(), Capabilities { effective, ambient: CapabilitySet::DAC_OVERRIDE });
        for none in ["null", "{}", r#"{"effective":null,"ambient":[]}"#, r#"{"effective":["CAP_NO_SUCH"]}"#] {
            assert_eq!(of(none).unwrap(), Capabilities::default(), "{none}");
        }
        for wrong in [r#"{"effective":"CAP_CHOWN"}"#, r#"{"effective":[1]}"#] {
            let error = of(wrong).unwrap_err().to_string();
            assert!(error.starts_with("is not an OCI runtime spec: "), "{error}");
        }
    }

    #[test]
    fn the_process_of_an_exec_is_read_like_a_tasks() {
        let spec = ProcessSpec::parse(
            br#"{"terminal":true,"user":{"uid":5},"args":["tool"],"env":["PATH=/opt"],"cwd":"/w",
                 "capabilities":{},"noNewPrivileges":true,"rlimits":[{"type":"RLIMIT_NOFILE","hard":1,"soft":1}]}"#,
        )
        .unwrap();
        assert_eq!((spec.args.len(), spec.path(), spec.cwd.as_str()), (1, Some("/opt"), "/w"));
        assert_eq!((spec.user.uid, spec.terminal), (5, true));
        let error = ProcessSpec::parse(b"{").unwrap_err().to_string();
        assert!(error.starts_with("the exec's spec is not an OCI process"), "{error}");
    }

    #[test]
    fn an_absolute_root_and_defaults() {
        let spec = parse(r#"{"process":{},"root":{"path":"/r"}}"#).unwrap();
        assert_eq!((spec.root, spec.process.cwd.as_str(), spec.process.args.len()), ("/r".into(), "/", 0));
        let spec = parse(r#"{"process":{"args":null},"linux":{"resources":{"memory":{"limit":-1}}}}"#).unwrap();
        assert_eq!((spec.root, spec.memory_limit), ("/b/rootfs".into(), None));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("", "is not an OCI runtime spec"),
            ("{\"process\":", "line 1"),
            ("[]", "is not an OCI runtime spec"),
            ("{}", "has no process"),
            (r#"{"process":{"args":"x"}}"#, "expected a sequence"),
            (r#"{"process":{"cwd":"w"}}"#, "process.cwd \"w\" is not an absolute path"),
            (r#"{"process":{"args":["a\u0000b"]}}"#, "process.args has a NUL"),
            (r#"{"process":{},"root":{"path":""}}"#, "root.path is empty"),
            (
                r#"{"process":{},"linux":{"namespaces":[{"type":"network","path":"x"}]}}"#,
                "linux.namespaces: \"x\" is not an absolute path",
            ),
            (r#"{"process":{},"mounts":[{"destination":"x"}]}"#, "\"x\" is not an absolute path"),
        ];
        for (text, want) in cases {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
    }

    #[test]
    fn a_missing_and_an_oversized_file_name_the_file() {
        let bundle = tempfile::tempdir().unwrap();
        let error = TaskSpec::read(bundle.path(), 100).unwrap_err().to_string();
        assert!(error.contains("config.json: cannot open"), "{error}");
        std::fs::write(bundle.path().join("config.json"), [b' '; 101]).unwrap();
        let error = TaskSpec::read(bundle.path(), 100).unwrap_err().to_string();
        assert!(error.contains("over 100 bytes (rpc.spec_bytes_max)"), "{error}");
    }

    #[test]
    fn an_update_names_what_it_changes() {
        let now = Cpu { shares: Some(5), quota: Some(10_000), period: Some(50_000) };
        let parse = |text: &str| ResourceUpdate::parse(text.as_bytes());
        let update =
            parse(r#"{"memory":{"limit":1048576,"swap":7},"cpu":{"shares":0,"cpus":"0-1"},"pids":{}}"#).unwrap();
        assert_eq!((update.memory_limit, update.cpu(now)), (Some(Some(1 << 20)), now));
        let update = parse(r#"{"memory":{"limit":-1},"cpu":{"quota":-1,"period":100000,"shares":7}}"#).unwrap();
        assert_eq!(update.memory_limit, Some(None));
        assert_eq!(update.cpu(now), Cpu { shares: Some(7), quota: None, period: Some(100_000) });
        assert_eq!(parse(r#"{"memory":null,"cpu":{"quota":null}}"#).unwrap(), ResourceUpdate::default());
        for (text, want) in [
            (r#"{"memory":{"limit":-2}}"#, "linux.resources.memory.limit: -2"),
            (r#"{"memory":{"limit":"1Gi"}}"#, "linux.resources.memory.limit: \"1Gi\""),
            (r#"{"memory":7}"#, "linux.resources.memory: 7"),
            (r#"{"cpu":{"shares":-1}}"#, "linux.resources.cpu.shares: -1"),
            (r#"{"cpu":{"period":1.5}}"#, "linux.resources.cpu.period: 1.5"),
            ("[]", "resources: are not"),
            ("", "resources: are not"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with(want), "{text}: {error}");
        }
    }
}
