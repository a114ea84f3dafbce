//! The guest's root file system: the snapshot that containerd made, with the volumes of the spec in their places.
//!
//! [`plan()`] decides which mounts make it; [`Plan::perform`] makes them; if that fails, or once the [`Root`] is
//! dropped, nothing is mounted.
//!
//! A scratch overlay has its upper directory on a tmpfs of its own. The mount points that the image lacks are made
//! there, by the kernel's own rules for links and attributes, before it is turned read-only; nothing of it outlives the
//! mount. In a writable root they are made where the guest's files go, as every OCI runtime does. A read-only root
//! refuses writes in the kernel, so that a writable volume in it stays writable.
//!
//! A writable overlay is unmounted with a sync of the file system that its upper directory lies on (by the kernel),
//! which can take milliseconds on a busy disk: mounts and unmounts run on the blocking pool.
//!
//! Failures: `InvalidArgument` names the mount and the remedy, `ResourceExhausted` the limit.
//!
//! * `mod.rs`: mounts made and undone; the text of an error for each way a mount can fail.
//! * `plan.rs`: which mounts make a root; mounts that are skipped or refused; a root path outside of the bundle.

mod plan;

use std::path::{Path, PathBuf};

use prometheus::IntGauge;
use rustix::io::Errno;
use rustix::mount::MountFlags;

use hearth_base::error::{Error, Result};
use hearth_observe::metrics::Metrics;
use hearth_os::in_root::{Kind, RootDir};
use hearth_os::mount::{self, Bind, Detached, MountOptions, Mounted, Overlay, Propagation};
use plan::{Base, Volume};

pub use plan::{FsMount, Plan, RootSpec, plan};

impl Plan {
    /// Mounts. Waits for the disk: for the blocking pool only.
    ///
    /// # Errors
    /// As the module says; nothing is mounted then.
    pub fn perform(self, metrics: &Metrics) -> Result<Root> {
        let mut root =
            Root { path: self.path, own: self.own, base: Vec::new(), volumes: 0, gauge: metrics.tasks.mounts.clone() };
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
    /// The mounts at `path`, the uppermost last.
    base: Vec<Mounted>,
    /// Mounts inside it.
    volumes: i64,
    gauge: IntGauge,
}

impl Root {
    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether nothing is mounted.
    pub fn is_bare(&self) -> bool {
        self.base.is_empty()
    }

    /// Unmounts everything. Waits for the disk: for the blocking pool only.
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
            // A directory that stays is empty and lies in the task's bundle.
            let _ = std::fs::remove_dir(&self.path);
        }
        first
    }

    /// Makes the directory at `path`, to mount on; a bare root has to exist.
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
        if tree.kind() == Kind::File {
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
                let wanted = tree.kind();
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

/// The reason why an overlay was not mounted, which mount(2) does not tell: a directory that does not exist.
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

/// The error of any mount.
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

    use super::plan::tests::{none_of, planned, snapshot, volume};
    use super::*;
    use hearth_base::bundle::SpecMount;
    use hearth_testing::{directory, in_namespace, mounts_below};

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
            RootSpec { rootfs, path, bundle: self.at("b"), own_path: self.at("b/own"), read_only, volumes }
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
            assert_eq!(self.metrics.tasks.mounts.get(), 0);
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
            assert_eq!(fixture.metrics.tasks.mounts.get(), 7);
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
                assert_eq!(fixture.metrics.tasks.mounts.get(), 1);
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
    fn a_root_path_that_leads_out_of_the_bundle_mounts_nothing() {
        in_namespace(|base| {
            let fixture = Fixture::new(base);
            for path in ["b/rootfs/../..", "b/..", "b", "outside"] {
                for volumes in [none_of(), fixture.volumes()] {
                    let spec = fixture.spec(fixture.overlay(), false, volumes);
                    let error = fixture.mount(RootSpec { path: fixture.at(path), ..spec }).unwrap_err();
                    assert!(matches!(&error, Error::InvalidArgument(text) if text.contains("root.path")), "{error}");
                    fixture.assert_nothing_left();
                }
            }
            assert!(fixture.mount(fixture.spec(fixture.overlay(), false, none_of())).is_ok(), "the next start");
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
