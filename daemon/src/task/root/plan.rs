//! Which mounts make a root: the cheapest that are right. Pure: nothing is mounted here.
//!
//! | the root | no volumes | volumes |
//! |---|---|---|
//! | a bare directory, writable | nothing | a bind of it |
//! | a bare directory or a single layer, read-only | a bind, read-only | a scratch overlay over it |
//! | a single layer, writable | a bind | a bind |
//! | an overlay, writable | that overlay | that overlay |
//! | an overlay, read-only | its layers without an upper directory | a scratch overlay over its layers |
//! | another file system | that | that |

use std::path::{Component, Path, PathBuf};

use rustix::mount::MountFlags;

use hearth_base::bundle::SpecMount;
use hearth_base::config;
use hearth_base::error::{Error, Result};
use hearth_os::mount::{Bind, MountOptions, Overlay};

/// A mount of a snapshot, as in `Create.rootfs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsMount {
    /// `overlay`, `bind`, or a file system.
    pub fstype: String,
    /// The source of the mount.
    pub source: String,
    /// mount(8)-style options.
    pub options: Vec<String>,
}

/// The root as a Create request and its bundle describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootSpec {
    /// `Create.rootfs`; empty if the bundle brings its root itself.
    pub rootfs: Vec<FsMount>,
    /// `root.path` of the spec, absolute. A snapshot is mounted here.
    pub path: PathBuf,
    /// The task's bundle: a snapshot is mounted nowhere else.
    pub bundle: PathBuf,
    /// A path of this task's own, to mount a root that is no snapshot: several tasks may share
    /// [`RootSpec::path`] then. Made if missing, and removed again.
    pub own_path: PathBuf,
    /// `root.readonly` of the spec.
    pub read_only: bool,
    /// `mounts` of the spec.
    pub volumes: Vec<SpecMount>,
}

/// The mounts to make, decided by [`plan`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub(super) base: Base,
    /// The path of the root.
    pub(super) path: PathBuf,
    /// Whether [`Plan::perform`] makes that directory and [`Root::unmount`](super::Root::unmount) removes it.
    pub(super) own: bool,
    /// Whether to turn the base read-only once the mount points are there.
    pub(super) seal: bool,
    pub(super) volumes: Vec<Volume>,
}

/// The lowest mount of a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Base {
    /// The directory itself.
    Bare,
    Bind {
        source: PathBuf,
        flags: MountFlags,
    },
    Overlay {
        layers: Overlay,
        flags: MountFlags,
    },
    /// An overlay with these layers below and an upper directory on a tmpfs.
    Scratch {
        lower: Vec<PathBuf>,
        options: Vec<String>,
    },
    FileSystem {
        fstype: String,
        source: String,
        flags: MountFlags,
        data: Vec<String>,
    },
}

/// A mount of the spec that a guest can use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Volume {
    Bind { source: PathBuf, destination: PathBuf, bind: Bind, options: MountOptions },
    Tmpfs { destination: PathBuf, flags: MountFlags, data: Vec<String> },
}

/// File systems that show the state of the Linux kernel. They are skipped: a guest has no kernel interface.
const KERNEL_FILE_SYSTEMS: [&str; 20] = [
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "resctrl",
    "securityfs",
    "sysfs",
    "tracefs",
];

/// Decides which mounts make the root that `spec` describes.
///
/// # Errors
/// `InvalidArgument` for what a guest's root cannot have, `ResourceExhausted` for too many volumes.
pub fn plan(spec: RootSpec, limits: &config::Files) -> Result<Plan> {
    let mut volumes = Vec::new();
    for mount in &spec.volumes {
        volumes.extend(classify(mount, limits)?);
    }
    if volumes.len() > limits.volumes_max {
        return Err(Error::ResourceExhausted(format!(
            "the spec has {} volumes; files.volumes_max allows {}",
            volumes.len(),
            limits.volumes_max
        )));
    }
    let plain = volumes.is_empty();
    let (base, own, seal) = match spec.rootfs.as_slice() {
        [] => match (spec.read_only, plain) {
            (false, true) => (Base::Bare, false, false),
            (read_only, plain) => {
                let (base, seal) = directory(spec.path.clone(), read_only, plain);
                (base, true, seal)
            }
        },
        [snapshot] => {
            if !is_below(&spec.path, &spec.bundle) {
                return Err(Error::InvalidArgument(format!(
                    "root.path leads to {}, out of the bundle {}, and the snapshot would be mounted over what is there; set root.path to \"rootfs\"",
                    spec.path.display(),
                    spec.bundle.display()
                )));
            }
            let (base, seal) = snapshot_base(snapshot, spec.read_only, plain)?;
            (base, false, seal)
        }
        [first, second, ..] => {
            return Err(Error::InvalidArgument(format!(
                "the snapshot consists of several mounts ({}, {}, …), which Hearth does not stack; use the overlayfs snapshotter for runtime class hearth",
                first.fstype, second.fstype
            )));
        }
    };
    let path = if own { spec.own_path } else { spec.path };
    Ok(Plan { base, path, own, seal, volumes })
}

/// A root that is one directory, and whether to seal it.
fn directory(source: PathBuf, read_only: bool, plain: bool) -> (Base, bool) {
    match (read_only, plain) {
        (false, _) => (Base::Bind { source, flags: MountFlags::empty() }, false),
        (true, true) => (Base::Bind { source, flags: MountFlags::RDONLY }, false),
        (true, false) => (Base::Scratch { lower: vec![source], options: Vec::new() }, true),
    }
}

fn snapshot_base(snapshot: &FsMount, read_only: bool, plain: bool) -> Result<(Base, bool)> {
    let options = MountOptions::parse(&snapshot.options);
    let read_only = read_only || options.flags.contains(MountFlags::RDONLY);
    if snapshot.fstype == "bind" || options.bind.is_some() {
        let source = absolute(&snapshot.source, "the snapshot's source")?;
        return Ok(directory(source, read_only, plain));
    }
    if snapshot.fstype != "overlay" {
        return file_system(snapshot, options, read_only, plain);
    }
    let layers = layers(&options.data)?;
    // Without an upper directory the kernel makes it read-only anyway.
    if layers.upper.is_some() && !read_only {
        return Ok((Base::Overlay { layers, flags: options.flags }, false));
    }
    // What an earlier task on the same snapshot wrote is in the upper directory: it is the first layer.
    let lower: Vec<PathBuf> = layers.upper.into_iter().map(|(upper, _)| upper).chain(layers.lower).collect();
    // `volatile` is about the snapshot's own upper directory.
    let options: Vec<String> = layers.options.into_iter().filter(|option| option != "volatile").collect();
    Ok(match (plain, lower.as_slice()) {
        (false, _) => (Base::Scratch { lower, options }, true),
        // An overlay needs two.
        (true, [only]) => (Base::Bind { source: only.clone(), flags: MountFlags::RDONLY }, false),
        (true, _) => {
            let layers = Overlay { lower, upper: None, options };
            (Base::Overlay { layers, flags: MountFlags::RDONLY }, false)
        }
    })
}

/// A snapshot on a file system of its own (a block device). Its missing mount points are made in it.
fn file_system(snapshot: &FsMount, options: MountOptions, read_only: bool, plain: bool) -> Result<(Base, bool)> {
    if snapshot.fstype.is_empty() || snapshot.fstype.contains('/') || options.data.iter().any(|o| o.starts_with("loop"))
    {
        return Err(Error::InvalidArgument(format!(
            "the snapshot is a mount of type {:?} with options {:?}, which Hearth cannot make; use the overlayfs snapshotter for runtime class hearth",
            snapshot.fstype,
            snapshot.options.join(",")
        )));
    }
    let mut flags = options.flags;
    let seal = read_only && !plain && !flags.contains(MountFlags::RDONLY);
    if read_only && !seal {
        flags |= MountFlags::RDONLY;
    }
    let (fstype, source) = (snapshot.fstype.clone(), snapshot.source.clone());
    Ok((Base::FileSystem { fstype, source, flags, data: options.data }, seal))
}

/// Whether `path` lies below `directory`, by its words alone. A path with `..` does not: it is resolved again at
/// the unmount, when a mount of its own may hide what it leads through.
fn is_below(path: &Path, directory: &Path) -> bool {
    path.strip_prefix(directory).is_ok_and(|rest| {
        rest.components().next().is_some() && rest.components().all(|part| matches!(part, Component::Normal(_)))
    })
}

/// Reads an overlay's options.
fn layers(data: &[String]) -> Result<Overlay> {
    let mut overlay = Overlay { lower: Vec::new(), upper: None, options: Vec::new() };
    let (mut upper, mut work) = (None, None);
    for option in data {
        match option.split_once('=') {
            Some(("lowerdir", list)) => overlay.lower = split_layers(list)?,
            Some(("lowerdir+", layer)) => overlay.lower.push(absolute(layer, "a lowerdir of the snapshot")?),
            Some(("upperdir", path)) => upper = Some(absolute(path, "upperdir of the snapshot")?),
            Some(("workdir", path)) => work = Some(absolute(path, "workdir of the snapshot")?),
            _ => overlay.options.push(option.clone()),
        }
    }
    overlay.upper = match (upper, work) {
        (Some(upper), Some(work)) => Some((upper, work)),
        (None, _) => None,
        (Some(upper), None) => {
            return Err(Error::InvalidArgument(format!(
                "the snapshot's overlay has upperdir={} without a workdir; recreate the snapshot",
                upper.display()
            )));
        }
    };
    if overlay.lower.is_empty() {
        return Err(Error::InvalidArgument("the snapshot's overlay has no lowerdir; recreate the snapshot".into()));
    }
    Ok(overlay)
}

/// Splits `lowerdir`, in which a backslash makes a colon part of a path.
fn split_layers(list: &str) -> Result<Vec<PathBuf>> {
    let mut layers = Vec::new();
    let mut layer = String::new();
    let mut characters = list.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => layer.extend(characters.next()),
            ':' => layers.push(std::mem::take(&mut layer)),
            other => layer.push(other),
        }
    }
    layers.push(layer);
    layers.iter().map(|layer| absolute(layer, "a lowerdir of the snapshot")).collect()
}

fn absolute(path: &str, what: &str) -> Result<PathBuf> {
    if !path.starts_with('/') {
        return Err(Error::InvalidArgument(format!("{what} is {path:?}, which is not an absolute path")));
    }
    Ok(path.into())
}

/// The guest's form of a mount of the spec; `None` if the mount is only for Linux.
///
/// # Errors
/// `InvalidArgument` naming the destination.
fn classify(mount: &SpecMount, limits: &config::Files) -> Result<Option<Volume>> {
    let options = MountOptions::parse(&mount.options);
    let destination = mount.destination.clone();
    let at = |what: String| Error::InvalidArgument(format!("mount at {}: {what}", mount.destination.display()));
    let kind = if options.bind.is_some() { "bind" } else { mount.fstype.as_str() };
    if KERNEL_FILE_SYSTEMS.contains(&kind) {
        return Ok(None);
    }
    // The spec's tmpfs on /dev is for device nodes, which a guest does not have.
    if kind == "tmpfs" && destination == Path::new("/dev") {
        return Ok(None);
    }
    if destination == Path::new("/") {
        return Err(at("a volume cannot take the root's place; give it a directory of its own".into()));
    }
    if let Some(option) = options.data.iter().find(|o| o.starts_with("idmap") || o.starts_with("ridmap")) {
        return Err(at(format!("{option}: id-mapped mounts are not supported; mount it without")));
    }
    match kind {
        "bind" => {
            if !mount.source.starts_with('/') {
                return Err(at(format!("the source {:?} is not an absolute path", mount.source)));
            }
            let bind = options.bind.unwrap_or(Bind::One);
            Ok(Some(Volume::Bind { source: mount.source.clone().into(), destination, bind, options }))
        }
        "tmpfs" => {
            if options.data.iter().any(|option| option == "tmpcopyup") {
                return Err(at("tmpcopyup is not supported; use an empty tmpfs or a bind mount".into()));
            }
            let mut data = options.data;
            let sized = |option: &String| ["size=", "nr_blocks="].iter().any(|key| option.starts_with(key));
            if !data.iter().any(sized) {
                data.push(format!("size={}", limits.tmpfs_bytes_default));
            }
            Ok(Some(Volume::Tmpfs { destination, flags: options.flags, data }))
        }
        other => Err(at(format!(
            "file system type {other:?} is not supported for a Wasm task; mount it on the node and bind it"
        ))),
    }
}

impl Volume {
    pub(super) fn destination(&self) -> &Path {
        match self {
            Volume::Bind { destination, .. } | Volume::Tmpfs { destination, .. } => destination,
        }
    }
}

impl Plan {
    /// Where the root will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the root, or a volume in it, refuses writes.
    pub fn is_partly_read_only(&self) -> bool {
        let base = match &self.base {
            Base::Bare | Base::Scratch { .. } => MountFlags::empty(),
            Base::Bind { flags, .. } | Base::Overlay { flags, .. } | Base::FileSystem { flags, .. } => *flags,
        };
        let volume = |volume: &Volume| match volume {
            Volume::Bind { options, .. } => options.flags | options.tree_flags,
            Volume::Tmpfs { flags, .. } => *flags,
        };
        self.seal || self.volumes.iter().map(volume).chain([base]).any(|flags| flags.contains(MountFlags::RDONLY))
    }

    /// Whether nothing is to be mounted, so that performing it takes no time.
    pub fn is_bare(&self) -> bool {
        matches!(self.base, Base::Bare)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    #[test]
    fn each_mount_option_that_the_shim_tells_containerd_is_honoured() {
        for option in hearth_shim::features::MOUNT_OPTIONS {
            let volume = volume("bind", "/source", "/there", option);
            let Some(Volume::Bind { options, .. }) = classify(&volume, &config::Files::default()).unwrap() else {
                panic!("{option}: the volume is left out");
            };
            assert!(options.data.is_empty(), "{option} is no option of a mount to hearthd");
        }
    }

    pub(in super::super) fn words(text: &str) -> Vec<String> {
        text.split(',').filter(|word| !word.is_empty()).map(String::from).collect()
    }

    pub(in super::super) fn volume(
        fstype: &str,
        source: impl AsRef<Path>,
        destination: &str,
        options: &str,
    ) -> SpecMount {
        SpecMount {
            destination: destination.into(),
            fstype: fstype.into(),
            source: source.as_ref().to_str().unwrap().into(),
            options: words(options),
        }
    }

    pub(in super::super) fn snapshot(fstype: &str, source: impl AsRef<Path>, options: &str) -> FsMount {
        FsMount { fstype: fstype.into(), source: source.as_ref().to_str().unwrap().into(), options: words(options) }
    }

    fn spec(rootfs: Vec<FsMount>, read_only: bool, volumes: Vec<SpecMount>) -> RootSpec {
        let (path, bundle, own_path) = ("/b/rootfs".into(), "/b".into(), "/b/own".into());
        RootSpec { rootfs, path, bundle, own_path, read_only, volumes }
    }

    pub(in super::super) fn planned(spec: RootSpec) -> Result<Plan> {
        plan(spec, &config::Files::default())
    }

    #[test]
    fn the_cheapest_right_root_is_planned() {
        let overlay =
            || vec![snapshot("overlay", "overlay", "index=off,workdir=/s/w,upperdir=/s/u,lowerdir=/l/2:/l/1")];
        let view = || vec![snapshot("overlay", "overlay", "lowerdir=/l/2:/l/1")];
        let layer = |options| vec![snapshot("bind", "/l/1", options)];
        let device = || vec![snapshot("ext4", "/dev/dm-1", "discard")];
        let none = Vec::new;
        let some = || vec![volume("tmpfs", "tmpfs", "/t", "")];
        let cases = [
            (none(), false, none_of(), "Bare", false, false),
            (none(), false, some(), "Bind", true, false),
            (none(), true, none_of(), "Bind ro", true, false),
            (none(), true, some(), "Scratch /b/rootfs", true, true),
            (layer("rbind,rw"), false, none_of(), "Bind", false, false),
            (layer("rbind,rw"), false, some(), "Bind", false, false),
            (layer("rbind,ro"), false, none_of(), "Bind ro", false, false),
            (layer("rbind,rw"), true, some(), "Scratch /l/1", false, true),
            (overlay(), false, none_of(), "Overlay /l/2:/l/1 upper", false, false),
            (overlay(), false, some(), "Overlay /l/2:/l/1 upper", false, false),
            (overlay(), true, none_of(), "Overlay /s/u:/l/2:/l/1 ro", false, false),
            (overlay(), true, some(), "Scratch /s/u:/l/2:/l/1", false, true),
            (view(), false, none_of(), "Overlay /l/2:/l/1 ro", false, false),
            (view(), false, some(), "Scratch /l/2:/l/1", false, true),
            (vec![snapshot("overlay", "", "lowerdir=/l/1")], true, none_of(), "Bind ro", false, false),
            (device(), false, some(), "FileSystem", false, false),
            (device(), true, none_of(), "FileSystem ro", false, false),
            (device(), true, some(), "FileSystem", false, true),
        ];
        for (rootfs, read_only, volumes, want, own, seal) in cases {
            let case = format!("{rootfs:?} read_only={read_only} {volumes:?}");
            let plan = planned(spec(rootfs, read_only, volumes)).unwrap();
            assert_eq!((name(&plan.base).as_str(), plan.own, plan.seal), (want, own, seal), "{case}");
            assert_eq!(plan.path(), Path::new(if own { "/b/own" } else { "/b/rootfs" }), "{case}");
            assert_eq!(plan.is_bare(), want == "Bare", "{case}");
        }
    }

    pub(in super::super) fn none_of() -> Vec<SpecMount> {
        Vec::new()
    }

    fn name(base: &Base) -> String {
        let list = |lower: &[PathBuf]| lower.iter().map(|l| l.to_str().unwrap()).collect::<Vec<_>>().join(":");
        let ro = |flags: &MountFlags| if flags.contains(MountFlags::RDONLY) { " ro" } else { "" };
        match base {
            Base::Bare => "Bare".into(),
            Base::Bind { flags, .. } => format!("Bind{}", ro(flags)),
            Base::Overlay { layers, flags } => {
                let upper = if layers.upper.is_some() { " upper" } else { "" };
                format!("Overlay {}{upper}{}", list(&layers.lower), ro(flags))
            }
            Base::Scratch { lower, .. } => format!("Scratch {}", list(lower)),
            Base::FileSystem { flags, .. } => format!("FileSystem{}", ro(flags)),
        }
    }

    #[test]
    fn mounts_that_are_only_for_linux_are_skipped_and_unknown_ones_named() {
        let limits = config::Files::default();
        // What containerd 1.6 to 2.3 and CRI put into a spec.
        let table = [
            (volume("proc", "proc", "/proc", "nosuid,noexec,nodev"), Ok(false)),
            (volume("tmpfs", "tmpfs", "/dev", "nosuid,strictatime,mode=755,size=65536k"), Ok(false)),
            (
                volume("devpts", "devpts", "/dev/pts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
                Ok(false),
            ),
            (volume("tmpfs", "shm", "/dev/shm", "nosuid,noexec,nodev,mode=1777,size=65536k"), Ok(true)),
            (volume("mqueue", "mqueue", "/dev/mqueue", "nosuid,noexec,nodev"), Ok(false)),
            (volume("sysfs", "sysfs", "/sys", "nosuid,noexec,nodev,ro"), Ok(false)),
            (volume("tmpfs", "tmpfs", "/run", "nosuid,strictatime,mode=755,size=65536k"), Ok(true)),
            (volume("cgroup", "cgroup", "/sys/fs/cgroup", "nosuid,noexec,nodev,relatime,ro"), Ok(false)),
            (volume("cgroup2", "cgroup2", "/sys/fs/cgroup", "ro"), Ok(false)),
            (volume("bind", "/h/hosts", "/etc/hosts", "rbind,rprivate,rw"), Ok(true)),
            (volume("", "/h/x", "/x", "rbind"), Ok(true)),
            (volume("none", "/h/x", "/x", "bind,ro"), Ok(true)),
            (volume("nfs", "server:/x", "/x", ""), Err("mount at /x: file system type \"nfs\" is not supported")),
            (volume("", "x", "/x", ""), Err("mount at /x: file system type \"\" is not supported")),
            (volume("bind", "relative", "/x", ""), Err("the source \"relative\" is not an absolute path")),
            (volume("bind", "/h", "/", "rbind"), Err("mount at /: a volume cannot take the root's place")),
            (volume("bind", "/h", "/x", "rbind,idmap=uids=0-1-2"), Err("id-mapped mounts are not supported")),
            (volume("tmpfs", "t", "/x", "tmpcopyup"), Err("tmpcopyup is not supported")),
        ];
        for (mount, want) in table {
            let got = classify(&mount, &limits);
            match (got, want) {
                (Ok(got), Ok(want)) => assert_eq!(got.is_some(), want, "{mount:?}"),
                (Err(Error::InvalidArgument(got)), Err(want)) => assert!(got.contains(want), "{mount:?}: {got}"),
                (got, want) => panic!("{mount:?}: {got:?} instead of {want:?}"),
            }
        }
    }

    #[test]
    fn a_tmpfs_is_never_without_a_size() {
        let limits = config::Files { tmpfs_bytes_default: 4_096, ..config::Files::default() };
        for (options, want) in [("mode=755", "mode=755,size=4096"), ("size=1k", "size=1k"), ("", "size=4096")] {
            let Ok(Some(Volume::Tmpfs { data, .. })) = classify(&volume("tmpfs", "t", "/t", options), &limits) else {
                panic!("no tmpfs for {options}");
            };
            assert_eq!(data.join(","), want);
        }
    }

    #[test]
    fn a_snapshot_that_cannot_be_mounted_says_what_to_do() {
        let refused = |rootfs: Vec<FsMount>| planned(spec(rootfs, false, none_of())).unwrap_err().to_string();
        let cases = [
            (vec![snapshot("overlay", "", "upperdir=/u,lowerdir=/l")], "without a workdir"),
            (vec![snapshot("overlay", "", "upperdir=/u,workdir=/w")], "no lowerdir"),
            (vec![snapshot("overlay", "", "lowerdir=l1:/l2")], "\"l1\", which is not an absolute path"),
            (vec![snapshot("bind", "rel", "rbind")], "the snapshot's source is \"rel\""),
            (vec![snapshot("erofs", "/l", "ro,loop")], "use the overlayfs snapshotter"),
            (vec![snapshot("format/overlay", "x", "")], "use the overlayfs snapshotter"),
            (vec![snapshot("bind", "/a", ""), snapshot("bind", "/b", "")], "several mounts (bind, bind"),
        ];
        for (rootfs, want) in cases {
            let error = refused(rootfs.clone());
            assert!(error.contains(want), "{rootfs:?}: {error}");
        }
        let many = (0..300).map(|n| volume("tmpfs", "t", &format!("/{n}"), "")).collect();
        let error = planned(spec(Vec::new(), false, many)).unwrap_err();
        assert!(matches!(&error, Error::ResourceExhausted(text) if text.contains("files.volumes_max")), "{error}");
    }

    #[test]
    fn a_snapshot_is_mounted_in_the_bundle_only() {
        let with_path = |path: &str| {
            let snapshot = vec![snapshot("bind", "/l/1", "rbind,ro")];
            planned(RootSpec { path: Path::new("/b").join(path), ..spec(snapshot, false, none_of()) })
        };
        for path in ["rootfs", "rootfs/", "./rootfs", "a/b", "/b/rootfs"] {
            assert!(with_path(path).is_ok(), "{path}");
        }
        for path in ["../../../..", "..", "rootfs/..", "rootfs/../x", "", ".", "/", "/bc/rootfs", "/run"] {
            let error = with_path(path).unwrap_err();
            assert!(matches!(&error, Error::InvalidArgument(text) if text.contains("root.path")), "{path}: {error}");
        }
        // A bundle that brings its root itself may have it anywhere: nothing is mounted over it.
        let own = RootSpec { path: "/b/../../r".into(), ..spec(Vec::new(), true, none_of()) };
        assert_eq!(planned(own).unwrap().path(), Path::new("/b/own"));
    }

    #[test]
    fn a_colon_in_a_layer_survives() {
        assert_eq!(split_layers(r"/a\:b:/c\\d").unwrap(), [PathBuf::from("/a:b"), PathBuf::from(r"/c\d")]);
    }
}
