//! The guest's root file system: the snapshot containerd made, with the spec's volumes in their places.
//!
//! [`plan`] is pure and picks the cheapest mounts that are right:
//!
//! | the root | no volumes | volumes |
//! |---|---|---|
//! | a bare directory, writable | nothing | a bind of it |
//! | a bare directory or a single layer, read-only | a bind, read-only | a scratch overlay over it |
//! | a single layer, writable | a bind | a bind |
//! | an overlay, writable | that overlay | that overlay |
//! | an overlay, read-only | its layers without an upper directory | a scratch overlay over its layers |
//! | another file system | that | that |
//!
//! A scratch overlay has its upper directory on a tmpfs of its own. There the mount points that the
//! image lacks are made, by the kernel's own rules for links and attributes, before it is turned
//! read-only; nothing of it outlives the mount. In a writable root they are made where the guest's
//! files go, as every OCI runtime does. A read-only root refuses writes in the kernel, so that a
//! writable volume in it stays writable.
//!
//! [`Plan::perform`] mounts; if it fails, or once the [`Root`] is dropped, nothing is mounted.
//! A writable overlay is unmounted with a sync of the file system its upper directory lies on (by the
//! kernel), which can take milliseconds on a busy disk: neither happens on a request's path.
//!
//! Failures: `InvalidArgument` names the mount and the remedy, `ResourceExhausted` the limit.

use std::path::{Path, PathBuf};

use prometheus::IntGauge;
use rustix::io::Errno;
use rustix::mount::MountFlags;

use crate::bundle::SpecMount;
use crate::config;
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::os::in_root::{Kind, RootDir};
use crate::os::mount::{self, Bind, Detached, MountOptions, Mounted, Overlay, Propagation};

/// A mount of a snapshot, as in `Create.rootfs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsMount {
    /// `overlay`, `bind`, or a file system.
    pub fstype: String,
    /// What to mount.
    pub source: String,
    /// mount(8)-style options.
    pub options: Vec<String>,
}

/// What a Create request and its bundle say about the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootSpec {
    /// `Create.rootfs`; empty if the bundle brings its root itself.
    pub rootfs: Vec<FsMount>,
    /// `root.path` of the spec, absolute. A snapshot is mounted here.
    pub path: PathBuf,
    /// A path of this task's own, to mount a root that is no snapshot: several tasks may share
    /// [`RootSpec::path`] then. Made if missing, and removed again.
    pub own_path: PathBuf,
    /// `root.readonly` of the spec.
    pub read_only: bool,
    /// `mounts` of the spec.
    pub volumes: Vec<SpecMount>,
}

/// Which mounts to make. Made by [`plan`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    base: Base,
    /// Where the root will be.
    path: PathBuf,
    /// Whether [`Plan::perform`] makes that directory and [`Root::unmount`] removes it.
    own: bool,
    /// Whether to turn the base read-only once the mount points are there.
    seal: bool,
    volumes: Vec<Volume>,
}

/// What a root stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Base {
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
enum Volume {
    Bind { source: PathBuf, destination: PathBuf, bind: Bind, options: MountOptions },
    Tmpfs { destination: PathBuf, flags: MountFlags, data: Vec<String> },
}

/// File systems that show the Linux kernel's own affairs; a guest cannot tell if they are missing.
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
    // Without an upper directory it is meaningless, and with another one, not ours to repeat.
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

/// What a mount of the spec is for a guest; `None` if it is only for Linux.
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
    // The spec's own tmpfs on /dev is there for device nodes, of which a guest has none.
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
    fn destination(&self) -> &Path {
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

    /// Whether nothing is to be mounted, so that performing it takes no time.
    pub fn is_bare(&self) -> bool {
        matches!(self.base, Base::Bare)
    }

    /// Mounts. Waits for the disk: not for a thread that serves requests.
    ///
    /// # Errors
    /// As the module says; nothing is mounted then.
    pub fn perform(self, metrics: &Metrics) -> Result<Root> {
        let mut root =
            Root { path: self.path, own: self.own, base: Vec::new(), volumes: 0, gauge: metrics.mounts.clone() };
        root.prepare(matches!(self.base, Base::Bare))?;
        match self.base {
            Base::Bare => return Ok(root),
            Base::Bind { source, flags } => root.bind(&source, flags)?,
            Base::Overlay { layers, flags } => root.overlay(&layers, flags)?,
            Base::Scratch { lower, options } => root.scratch(lower, options)?,
            Base::FileSystem { fstype, source, flags, data } => {
                let mounted = mount::filesystem(&fstype, &source, &root.path, flags, &data);
                root.keep(
                    mounted.map_err(|e| failed(&format!("cannot mount the snapshot ({fstype} on {source})"), e))?,
                );
            }
        }
        if !self.volumes.is_empty() {
            let inside = RootDir::open(&root.path).map_err(|e| failed("cannot open the mounted root", e))?;
            for volume in &self.volumes {
                let at = |e: Error| e.context(format!("mount at {}", volume.destination().display()));
                root.attach(&inside, volume).map_err(at)?;
            }
        }
        if self.seal {
            mount::make_read_only(&root.path).map_err(|e| failed("cannot make the root read-only", e))?;
        }
        Ok(root)
    }
}

/// A root, mounted.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    own: bool,
    /// What is mounted at `path`, the uppermost last.
    base: Vec<Mounted>,
    /// Mounts inside it.
    volumes: i64,
    gauge: IntGauge,
}

impl Root {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether nothing is mounted.
    pub fn is_bare(&self) -> bool {
        self.base.is_empty()
    }

    /// Unmounts everything. Waits for the disk: not for a thread that serves requests.
    ///
    /// # Errors
    /// If something in it was still open, or a mount could not be undone. No path leads to it any more.
    pub fn unmount(mut self) -> Result<()> {
        self.undo()
    }

    fn undo(&mut self) -> Result<()> {
        let mut first = Ok(());
        self.gauge.sub(std::mem::take(&mut self.volumes));
        while let Some(mounted) = self.base.pop() {
            self.gauge.dec();
            let done = mounted.unmount().map_err(|e| failed(&format!("cannot unmount {}", self.path.display()), e));
            first = first.and(done);
        }
        if std::mem::take(&mut self.own) {
            // Left where it is, it is empty and lies in the task's bundle.
            let _ = std::fs::remove_dir(&self.path);
        }
        first
    }

    /// Sees to the directory at `path`: a bare root has to be there, a place to mount is made.
    fn prepare(&mut self, bare: bool) -> Result<()> {
        if self.path.is_dir() {
            return Ok(());
        }
        let path = self.path.display();
        if bare {
            return Err(Error::InvalidArgument(format!(
                "the root {path} is not a directory on the node; correct root.path in config.json"
            )));
        }
        std::fs::create_dir_all(&self.path)
            .map_err(|e| Error::InvalidArgument(format!("cannot make the directory {path} to mount the root on: {e}")))
    }

    fn keep(&mut self, mounted: Mounted) {
        self.base.push(mounted);
        self.gauge.inc();
    }

    fn bind(&mut self, source: &Path, flags: MountFlags) -> Result<()> {
        let what = || format!("cannot bind the root {}", source.display());
        let tree = Detached::open(source, Bind::Tree).map_err(|e| failed(&what(), e))?;
        if Kind::of(tree.as_fd()).map_err(|e| failed(&what(), e))? == Kind::File {
            return Err(Error::InvalidArgument(format!("the root {} is not a directory", source.display())));
        }
        let options = MountOptions {
            flags,
            tree_flags: MountFlags::empty(),
            bind: Some(Bind::Tree),
            propagation: Propagation::Private,
            data: Vec::new(),
        };
        self.keep(Mounted::bind(&tree, &self.path, &options).map_err(|e| failed(&what(), e))?);
        Ok(())
    }

    fn overlay(&mut self, layers: &Overlay, flags: MountFlags) -> Result<()> {
        let mounted = mount::overlay(layers, &self.path, flags).map_err(|e| overlay_failed(layers, e))?;
        self.keep(mounted);
        Ok(())
    }

    fn scratch(&mut self, lower: Vec<PathBuf>, options: Vec<String>) -> Result<()> {
        let size = ["size=1m".to_string(), "mode=755".to_string()];
        let tmpfs =
            Mounted::tmpfs(&self.path, &size).map_err(|e| failed("cannot mount a tmpfs for mount points", e))?;
        self.keep(tmpfs);
        let (upper, work) = (self.path.join("upper"), self.path.join("work"));
        for directory in [&upper, &work] {
            std::fs::create_dir(directory)
                .map_err(|e| Error::Internal(format!("cannot make {}: {e}", directory.display())))?;
        }
        let layers = Overlay { lower, upper: Some((upper, work)), options };
        self.overlay(&layers, MountFlags::empty())
    }

    fn attach(&mut self, inside: &RootDir, volume: &Volume) -> Result<()> {
        match volume {
            Volume::Bind { source, destination, bind, options } => {
                let tree = Detached::open(source, *bind).map_err(|e| source_failed(source, e))?;
                let wanted = Kind::of(tree.as_fd()).map_err(|e| source_failed(source, e))?;
                let target = inside.make(destination, wanted).map_err(target_failed)?;
                let has = Kind::of(&target).map_err(target_failed)?;
                if wanted != has {
                    return Err(kinds_differ(source, wanted));
                }
                mount::bind(&tree, &target, options)
                    .map_err(|e| failed(&format!("cannot bind {}", source.display()), e))?;
            }
            Volume::Tmpfs { destination, flags, data } => {
                let target = inside.make(destination, Kind::Directory).map_err(target_failed)?;
                if Kind::of(&target).map_err(target_failed)? == Kind::File {
                    return Err(Error::InvalidArgument(
                        "a tmpfs needs a directory, and the image has a file there".into(),
                    ));
                }
                mount::tmpfs(&target, *flags, data)
                    .map_err(|e| failed(&format!("cannot mount a tmpfs with options {:?}", data.join(",")), e))?;
            }
        }
        if let Some(base) = self.base.last_mut() {
            base.holds_others();
        }
        self.volumes += 1;
        self.gauge.inc();
        Ok(())
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if let Err(error) = self.undo() {
            tracing::warn!(path = %self.path.display(), %error, "a task's root was not unmounted cleanly");
        }
    }
}

fn kinds_differ(source: &Path, source_is: Kind) -> Error {
    let (is, has) = match source_is {
        Kind::Directory => ("a directory", "a file"),
        Kind::File => ("a file", "a directory"),
    };
    Error::InvalidArgument(format!(
        "the source {} is {is}, but the root has {has} there; choose another destination or a source of the same kind",
        source.display()
    ))
}

fn source_failed(source: &Path, error: Errno) -> Error {
    let source = source.display();
    match error {
        Errno::NOENT => Error::InvalidArgument(format!(
            "the source {source} does not exist on the node; create it or correct the volume"
        )),
        Errno::NOTDIR | Errno::LOOP => {
            Error::InvalidArgument(format!("the source {source} cannot be reached: {error}"))
        }
        other => failed(&format!("cannot open the source {source}"), other),
    }
}

fn target_failed(error: Errno) -> Error {
    match error {
        Errno::ROFS => Error::InvalidArgument(
            "the mount point does not exist and what it should lie in is read-only; create it there first".into(),
        ),
        Errno::NOTDIR => {
            Error::InvalidArgument("a part of the path is a file in this root; choose another destination".into())
        }
        Errno::LOOP => {
            Error::InvalidArgument("the path goes round in symbolic links; choose another destination".into())
        }
        Errno::NAMETOOLONG => Error::InvalidArgument("the path is too long; choose another destination".into()),
        other => failed("cannot make the mount point", other),
    }
}

/// mount(2) says only "no" about an overlay: look which directory is the reason.
fn overlay_failed(layers: &Overlay, error: Errno) -> Error {
    let upper = layers.upper.iter().flat_map(|(upper, work)| [upper, work]);
    if let Some(missing) = layers.lower.iter().chain(upper).find(|path| !path.is_dir()) {
        return Error::InvalidArgument(format!(
            "the snapshot's directory {} does not exist; remove the container and pull the image again",
            missing.display()
        ));
    }
    match error {
        Errno::TOOBIG => Error::InvalidArgument(format!(
            "the snapshot has {} layers, more than one mount call can name; squash the image",
            layers.lower.len()
        )),
        other => failed(
            &format!(
                "cannot mount the snapshot's overlay of {} layers (the kernel's log says why)",
                layers.lower.len()
            ),
            other,
        ),
    }
}

/// Errors that do not depend on whose mount it is.
fn failed(what: &str, error: Errno) -> Error {
    match error {
        Errno::NOSPC => Error::ResourceExhausted(format!(
            "{what}: no space, or too many mounts (sysctl fs.mount-max, see the gauge hearth_mounts)"
        )),
        Errno::MFILE | Errno::NFILE => {
            Error::ResourceExhausted(format!("{what}: {error}; raise LimitNOFILE of hearthd"))
        }
        Errno::NOMEM => Error::ResourceExhausted(format!("{what}: {error}")),
        Errno::PERM | Errno::ACCESS => Error::Internal(format!("{what}: {error}; hearthd needs CAP_SYS_ADMIN")),
        Errno::NOENT | Errno::NOTDIR | Errno::INVAL | Errno::NODEV | Errno::NOTBLK => {
            Error::InvalidArgument(format!("{what}: {error}"))
        }
        other => Error::Internal(format!("{what}: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;
    use crate::os::mount::tests::{directory, in_namespace, mounts_below};

    fn words(text: &str) -> Vec<String> {
        text.split(',').filter(|word| !word.is_empty()).map(String::from).collect()
    }

    fn volume(fstype: &str, source: impl AsRef<Path>, destination: &str, options: &str) -> SpecMount {
        SpecMount {
            destination: destination.into(),
            fstype: fstype.into(),
            source: source.as_ref().to_str().unwrap().into(),
            options: words(options),
        }
    }

    fn snapshot(fstype: &str, source: impl AsRef<Path>, options: &str) -> FsMount {
        FsMount { fstype: fstype.into(), source: source.as_ref().to_str().unwrap().into(), options: words(options) }
    }

    fn spec(rootfs: Vec<FsMount>, read_only: bool, volumes: Vec<SpecMount>) -> RootSpec {
        RootSpec { rootfs, path: "/b/rootfs".into(), own_path: "/b/own".into(), read_only, volumes }
    }

    fn planned(spec: RootSpec) -> Result<Plan> {
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

    fn none_of() -> Vec<SpecMount> {
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
    fn a_colon_in_a_layer_survives() {
        assert_eq!(split_layers(r"/a\:b:/c\\d").unwrap(), [PathBuf::from("/a:b"), PathBuf::from(r"/c\d")]);
    }

    /// An image of two layers, a fresh snapshot on it, and volumes.
    struct Fixture {
        base: PathBuf,
        metrics: Metrics,
    }

    impl Fixture {
        fn new(base: &Path) -> Fixture {
            directory(&base.join("l1"), &["etc/passwd", "app.wasm", "both"]);
            let upper_layer = directory(&base.join("l2"), &["both", "usr/x"]);
            symlink("/usr", upper_layer.join("link")).unwrap();
            symlink("../../../../outside", upper_layer.join("out")).unwrap();
            for name in ["u", "w", "outside", "b"] {
                directory(&base.join(name), &[]);
            }
            directory(&base.join("vol"), &["data", "sub/deep"]);
            directory(&base.join("files"), &["hosts", "resolv.conf"]);
            Fixture { base: base.to_path_buf(), metrics: Metrics::new() }
        }

        fn at(&self, path: &str) -> PathBuf {
            self.base.join(path)
        }

        fn overlay(&self) -> Vec<FsMount> {
            let at = |path| self.at(path).display().to_string();
            let (u, w, l1, l2) = (at("u"), at("w"), at("l1"), at("l2"));
            vec![snapshot("overlay", "overlay", &format!("index=off,workdir={w},upperdir={u},lowerdir={l2}:{l1}"))]
        }

        fn spec(&self, rootfs: Vec<FsMount>, read_only: bool, volumes: Vec<SpecMount>) -> RootSpec {
            let path = if rootfs.is_empty() { self.at("l1") } else { self.at("b/rootfs") };
            RootSpec { rootfs, path, own_path: self.at("b/own"), read_only, volumes }
        }

        fn mount(&self, spec: RootSpec) -> Result<Root> {
            planned(spec)?.perform(&self.metrics)
        }

        /// Six file binds and the directories CRI adds, and a volume of each kind.
        fn volumes(&self) -> Vec<SpecMount> {
            vec![
                volume("tmpfs", "shm", "/dev/shm", "nosuid,mode=1777,size=64k"),
                volume("bind", self.at("files/hosts"), "/etc/hosts", "rbind,rprivate,rw"),
                volume("bind", self.at("files/resolv.conf"), "/link/resolv.conf", "rbind,ro"),
                volume("bind", self.at("vol"), "/data", "rbind,rprivate,rw"),
                volume("bind", self.at("vol/sub"), "/var/run/secrets/x", "rbind,ro"),
                volume("tmpfs", "t", "/data/sub", "size=64k"),
            ]
        }

        fn assert_nothing_left(&self) {
            assert_eq!(mounts_below(&self.base), Vec::<String>::new());
            assert_eq!(self.metrics.mounts.get(), 0);
            assert!(!self.at("b/own").exists());
        }
    }

    fn is_read_only(path: &Path) -> bool {
        match fs::OpenOptions::new().create(true).append(true).open(path) {
            Ok(_) => false,
            Err(e) if e.raw_os_error() == Some(Errno::ROFS.raw_os_error()) => true,
            Err(e) => panic!("{}: {e}", path.display()),
        }
    }

    fn check_volumes(root: &Path) {
        assert!(fs::read_to_string(root.join("etc/hosts")).unwrap().ends_with("files/hosts"));
        assert!(!is_read_only(&root.join("etc/hosts")));
        assert!(fs::read_to_string(root.join("usr/resolv.conf")).unwrap().ends_with("files/resolv.conf"));
        assert!(is_read_only(&root.join("usr/resolv.conf")));
        assert_eq!(fs::metadata(root.join("dev/shm")).unwrap().mode() & 0o7777, 0o1777);
        assert!(!is_read_only(&root.join("dev/shm/x")));
        assert!(root.join("data/data").exists());
        assert!(!is_read_only(&root.join("data/written")));
        assert!(!root.join("data/sub/deep").exists(), "the tmpfs hides it");
        assert!(fs::read_to_string(root.join("var/run/secrets/x/deep")).unwrap().ends_with("vol/sub/deep"));
        assert!(is_read_only(&root.join("var/run/secrets/x/new")));
    }

    #[test]
    fn a_bare_root_costs_nothing_and_has_to_be_there() {
        in_namespace(|base| {
            let fixture = Fixture::new(base);
            let root = fixture.mount(fixture.spec(Vec::new(), false, none_of())).unwrap();
            assert_eq!((root.path(), root.is_bare()), (fixture.at("l1").as_path(), true));
            root.unmount().unwrap();
            let mut absent = fixture.spec(Vec::new(), false, none_of());
            absent.path = fixture.at("absent");
            let error = fixture.mount(absent).unwrap_err().to_string();
            assert!(error.contains("absent is not a directory on the node"), "{error}");
            assert!(!fixture.at("absent").exists());
            fixture.assert_nothing_left();
        });
    }

    #[test]
    fn a_writable_overlay_keeps_what_was_written_and_takes_volumes() {
        in_namespace(|base| {
            let fixture = Fixture::new(base);
            let root = fixture.mount(fixture.spec(fixture.overlay(), false, fixture.volumes())).unwrap();
            assert!(fs::read_to_string(root.path().join("both")).unwrap().ends_with("l2/both"));
            assert!(!is_read_only(&root.path().join("new")));
            check_volumes(root.path());
            assert_eq!(fixture.metrics.mounts.get(), 7);
            root.unmount().unwrap();
            fixture.assert_nothing_left();
            assert!(fixture.at("u/new").exists());
            assert!(fixture.at("vol/written").exists() && !fixture.at("u/data/written").exists());
            // The same snapshot can be mounted again: nothing holds its upper directory.
            let root = fixture.mount(fixture.spec(fixture.overlay(), false, none_of())).unwrap();
            assert!(root.path().join("new").exists());
        });
    }

    #[test]
    fn a_read_only_root_is_sealed_and_its_snapshot_untouched() {
        in_namespace(|base| {
            let fixture = Fixture::new(base);
            fs::set_permissions(fixture.at("l1/etc"), fs::Permissions::from_mode(0o750)).unwrap();
            fs::write(fixture.at("u/earlier"), "").unwrap();
            for (rootfs, own) in [
                (fixture.overlay(), false),
                (vec![snapshot("bind", fixture.at("l1"), "rbind,rw")], false),
                (Vec::new(), true),
            ] {
                let single = rootfs.first().is_none_or(|mount| mount.fstype == "bind");
                let mut volumes = fixture.volumes();
                if single {
                    volumes[2].destination = "/usr/resolv.conf".into();
                }
                let root = fixture.mount(fixture.spec(rootfs, true, volumes)).unwrap();
                assert_eq!(root.path() == fixture.at("b/own"), own);
                assert_eq!(root.path().join("earlier").exists(), !single);
                assert!(root.path().join("app.wasm").exists());
                assert!(is_read_only(&root.path().join("new")));
                assert!(is_read_only(&root.path().join("etc/new")));
                assert_eq!(fs::metadata(root.path().join("etc")).unwrap().mode() & 0o777, 0o750);
                check_volumes(root.path());
                root.unmount().unwrap();
                fixture.assert_nothing_left();
                assert!(!fixture.at("l1/dev").exists() && !fixture.at("u/dev").exists());
                assert!(!fixture.at("l1/etc/hosts").exists());
            }
        });
    }

    #[test]
    fn a_read_only_root_without_volumes_is_a_bind_or_layers_only() {
        in_namespace(|base| {
            let fixture = Fixture::new(base);
            fs::write(fixture.at("u/earlier"), "").unwrap();
            for rootfs in [fixture.overlay(), vec![snapshot("bind", fixture.at("l1"), "rbind,ro")], Vec::new()] {
                let root = fixture.mount(fixture.spec(rootfs, true, none_of())).unwrap();
                assert_eq!(fixture.metrics.mounts.get(), 1);
                assert!(root.path().join("app.wasm").exists());
                assert!(is_read_only(&root.path().join("new")));
                drop(root);
                fixture.assert_nothing_left();
            }
        });
    }

    #[test]
    fn another_file_system_is_mounted_and_sealed() {
        in_namespace(|base| {
            let fixture = Fixture::new(base);
            let tmpfs = || vec![snapshot("tmpfs", "t", "size=1m,mode=755")];
            let root = fixture.mount(fixture.spec(tmpfs(), true, vec![volume("tmpfs", "t", "/t", "")])).unwrap();
            assert!(is_read_only(&root.path().join("new")) && !is_read_only(&root.path().join("t/new")));
            root.unmount().unwrap();
            let mut gone = tmpfs();
            gone[0].fstype = "nosuchfs".into();
            let error = fixture.mount(fixture.spec(gone, false, none_of())).unwrap_err().to_string();
            assert!(error.contains("cannot mount the snapshot (nosuchfs on t)"), "{error}");
            fixture.assert_nothing_left();
        });
    }

    #[test]
    fn two_tasks_on_one_directory_do_not_see_each_others_volumes() {
        in_namespace(|base| {
            let fixture = Fixture::new(base);
            let task = |name: &str| {
                let mut spec = fixture.spec(Vec::new(), false, vec![volume("tmpfs", "t", "/etc", "")]);
                spec.own_path = fixture.at(name);
                let root = fixture.mount(spec).unwrap();
                fs::write(root.path().join("etc").join(name), "").unwrap();
                root
            };
            let (one, two) = (task("one"), task("two"));
            one.unmount().unwrap();
            assert!(two.path().join("etc/two").exists() && !two.path().join("etc/one").exists());
            assert!(fixture.at("l1/etc/passwd").exists());
        });
    }

    #[test]
    fn a_destination_never_leads_outside() {
        in_namespace(|base| {
            let fixture = Fixture::new(base);
            for destination in ["/out/x", "/../../x", "/link/../../x"] {
                let volumes = vec![volume("bind", fixture.at("vol"), destination, "rbind")];
                let root = fixture.mount(fixture.spec(fixture.overlay(), false, volumes)).unwrap();
                assert_eq!(mounts_below(&fixture.at("b/rootfs")).len(), 1, "{destination}");
                drop(root);
                assert_eq!(fs::read_dir(fixture.at("outside")).unwrap().count(), 0);
                fixture.assert_nothing_left();
            }
        });
    }

    #[test]
    fn a_failure_names_the_mount_and_leaves_nothing() {
        in_namespace(|base| {
            let fixture = Fixture::new(base);
            let bind = |source: &str, destination| volume("bind", fixture.at(source), destination, "rbind");
            let cases = [
                (bind("absent", "/x"), "mount at /x: the source ", "absent does not exist on the node; create it"),
                (
                    bind("vol", "/etc/passwd"),
                    "mount at /etc/passwd: ",
                    "vol is a directory, but the root has a file there",
                ),
                (bind("files/hosts", "/etc"), "mount at /etc: ", "hosts is a file, but the root has a directory there"),
                (bind("vol", "/etc/passwd/x"), "mount at /etc/passwd/x: ", "a part of the path is a file"),
                (bind("vol/data/x", "/x"), "mount at /x: ", "cannot be reached"),
                (volume("tmpfs", "t", "/etc/passwd", ""), "mount at /etc/passwd: ", "a tmpfs needs a directory"),
                (volume("tmpfs", "t", "/t", "nosuchoption=1"), "mount at /t: ", "nosuchoption=1"),
            ];
            for (mount, start, end) in cases {
                for read_only in [false, true] {
                    let mut volumes = fixture.volumes();
                    volumes.push(mount.clone());
                    let error = fixture.mount(fixture.spec(fixture.overlay(), read_only, volumes)).unwrap_err();
                    let Error::InvalidArgument(text) = &error else { panic!("{error:?}") };
                    assert!(text.starts_with(start) && text.contains(end), "{text}");
                    fixture.assert_nothing_left();
                }
            }
            let inside_read_only =
                vec![volume("bind", fixture.at("vol"), "/data", "rbind,ro"), volume("tmpfs", "t", "/data/new", "")];
            let error =
                fixture.mount(fixture.spec(fixture.overlay(), false, inside_read_only)).unwrap_err().to_string();
            assert!(error.contains("mount at /data/new: the mount point does not exist"), "{error}");
            fs::remove_dir_all(fixture.at("l2")).unwrap();
            for read_only in [false, true] {
                let error =
                    fixture.mount(fixture.spec(fixture.overlay(), read_only, none_of())).unwrap_err().to_string();
                assert!(error.contains("l2 does not exist; remove the container"), "{error}");
                fixture.assert_nothing_left();
            }
        });
    }

    #[test]
    fn a_root_in_use_is_gone_from_its_path_all_the_same() {
        in_namespace(|base| {
            let fixture = Fixture::new(base);
            let root = fixture.mount(fixture.spec(fixture.overlay(), false, none_of())).unwrap();
            let open = fs::File::open(root.path().join("app.wasm")).unwrap();
            let error = root.unmount().unwrap_err().to_string();
            assert!(error.contains("busy"), "{error}");
            fixture.assert_nothing_left();
            drop(open);
        });
    }
}
