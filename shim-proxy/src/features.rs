//! The features of Hearth, which `-info` tells containerd: `Features` of the OCI runtime specification, as JSON
//! (<https://github.com/opencontainers/runtime-spec/blob/main/features.md>).
//!
//! They are those of a Wasm container. A native container of a pod has all features of runc, which includes these.

/// The mount options that hearthd honours; a test in `hearthd` compares the list with the words that it reads. Options
/// with effect on a file system only, such as `size=`, are not listed, as the specification says.
pub const MOUNT_OPTIONS: &[&str] = &[
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "lazytime",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "nolazytime",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "rexec",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "rw",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
];

/// The namespaces of a pod that hearthd joins or makes.
const NAMESPACES: &[&str] = &["ipc", "network", "pid", "uts"];

/// The features as JSON. A feature that is false is named: an absent one means that it is not known.
pub fn json() -> String {
    let list = |words: &[&str]| format!("[\"{}\"]", words.join("\",\""));
    format!(
        r#"{{"hooks":[],"mountOptions":{},"linux":{{"namespaces":{},"cgroup":{{"v1":true,"v2":true,"systemd":true}},"seccomp":{{"enabled":false}},"apparmor":{{"enabled":false}},"selinux":{{"enabled":false}},"intelRdt":{{"enabled":false}},"mountExtensions":{{"idmap":{{"enabled":false}}}},"netDevices":{{"enabled":false}}}}}}"#,
        list(MOUNT_OPTIONS),
        list(NAMESPACES)
    )
}
