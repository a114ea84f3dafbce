//! The store through restarts, damage, full and read-only disks.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use rustix::mount::{MountFlags, mount};

use super::*;
use crate::modules::directory::OpenedDirectory;

const ENGINE: &str = "0123456789abcdef0123456789abcdef";
const OTHER_ENGINE: &str = "fedcba9876543210fedcba9876543210";

/// A daemon's view of the store below `root`.
struct Node {
    root: PathBuf,
    store: Store,
    metrics: Arc<Metrics>,
}

impl Node {
    fn start(root: &Path) -> Node {
        Node::start_with(root, ENGINE, 1 << 20)
    }

    fn start_with(root: &Path, engine: &str, bytes_max: u64) -> Node {
        let metrics = Arc::new(Metrics::new());
        let directory = match Directory::open(root).unwrap() {
            OpenedDirectory::Disk(directory) => Some(Arc::new(directory)),
            OpenedDirectory::Unusable(_) => None,
        };
        let store = Store::open(directory, engine, bytes_max, metrics.clone());
        Node { root: root.to_path_buf(), store, metrics }
    }

    fn put(&self, name: &str, bytes: &[u8]) -> String {
        let memory = memfd::create("test").unwrap();
        memory.write_all_at(bytes, 0).unwrap();
        memfd::seal(&memory).unwrap();
        text(self.store.put(Digest::of(name.as_bytes()), ModuleKind::Core, memory))
    }

    fn get(&self, name: &str) -> Option<String> {
        self.store.get(Digest::of(name.as_bytes())).map(text)
    }

    /// Notes a use at `second`.
    fn use_at(&self, name: &str, second: u64) {
        let index = self.store.index.lock();
        index.artifacts[&Digest::of(name.as_bytes())].used.0.store(second * 1_000_000, Ordering::Relaxed);
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.root.join("modules")).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.to_str().unwrap().ends_with(SUFFIX)).collect()
    }

    fn file(&self, name: &str) -> PathBuf {
        let start = Digest::of(name.as_bytes()).to_string();
        self.files().into_iter().find(|path| path.file_name().unwrap().to_str().unwrap().starts_with(&start)).unwrap()
    }
}

fn text(verified: VerifiedArtifact) -> String {
    assert_eq!(verified.kind, ModuleKind::Core);
    let mut bytes = vec![0; verified.file.metadata().unwrap().len() as usize];
    verified.file.read_exact_at(&mut bytes, 0).unwrap();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn what_was_put_is_there_after_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let first = Node::start(root.path());
    assert_eq!(first.get("a"), None);
    assert_eq!(first.put("a", b"code of a"), "code of a");
    assert_eq!(first.get("a").as_deref(), Some("code of a"));
    // Both generations of an upgrade use it at once.
    let second = Node::start(root.path());
    assert_eq!(second.get("a").as_deref(), Some("code of a"));
    assert_eq!(second.metrics.store.artifacts.get(), 1);
    assert_eq!(second.metrics.store.bytes.get(), 9);
    assert_eq!(fs::metadata(second.file("a")).unwrap().permissions().mode() & 0o7777, 0o600);
    // One removed it; the other notices, and that is no damage.
    fs::remove_file(first.file("a")).unwrap();
    assert_eq!(second.get("a"), None);
    assert_eq!(second.metrics.store.damaged.get(), 0);
    assert_eq!(second.metrics.store.bytes.get(), 0);
}

#[test]
fn an_artifact_of_another_engine_is_not_ours() {
    let root = tempfile::tempdir().unwrap();
    Node::start_with(root.path(), OTHER_ENGINE, 100).put("a", b"other code");
    let node = Node::start(root.path());
    assert_eq!(node.get("a"), None);
    assert_eq!(node.metrics.store.artifacts.get(), 1);
    node.put("a", b"our code");
    assert_eq!(node.get("a").as_deref(), Some("our code"));
    assert_eq!(Node::start_with(root.path(), OTHER_ENGINE, 100).get("a").as_deref(), Some("other code"));
}

#[test]
fn what_another_engine_compiled_goes_when_nobody_uses_that_any_more() {
    let root = tempfile::tempdir().unwrap();
    let old = Node::start_with(root.path(), OTHER_ENGINE, 100);
    old.put("a", b"other code");
    let node = Node::start(root.path());
    node.put("b", b"our code");
    node.store.remove_unused();
    assert_eq!(old.get("a").as_deref(), Some("other code"), "the old daemon still lives");
    drop(old);
    node.store.remove_unused();
    assert_eq!(node.files(), [node.file("b")]);
    assert_eq!((node.metrics.store.artifacts.get(), node.metrics.store.bytes.get()), (1, 8));
    assert_eq!(node.metrics.store.damaged.get(), 0);
    // And back again.
    let old = Node::start_with(root.path(), OTHER_ENGINE, 100);
    assert_eq!(old.get("a"), None);
    old.put("a", b"other code");
    assert_eq!(old.get("a").as_deref(), Some("other code"));
}

/// Does something to the file of `a`, and expects that the next daemon notices and recovers.
fn expect_damage(spoil: impl Fn(&Node, &Path)) {
    let root = tempfile::tempdir().unwrap();
    let node = Node::start(root.path());
    node.put("a", b"code of a");
    node.put("b", b"code of b");
    spoil(&node, &node.file("a"));
    let node = Node::start(root.path());
    assert_eq!(node.get("a"), None);
    assert_eq!(node.metrics.store.damaged.get(), 1);
    assert_eq!(node.files(), [node.file("b")], "it is removed, and nothing else");
    assert_eq!(node.get("b").as_deref(), Some("code of b"));
    node.put("a", b"new code");
    assert_eq!(node.get("a").as_deref(), Some("new code"));
    assert_eq!(node.metrics.store.damaged.get(), 1);
}

fn flip_a_bit(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    bytes[4] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_flipped_bit_is_noticed() {
    expect_damage(|_, path| flip_a_bit(path));
    // In the same daemon's life too.
    let root = tempfile::tempdir().unwrap();
    let node = Node::start(root.path());
    node.put("a", b"code of a");
    assert!(node.get("a").is_some());
    flip_a_bit(&node.file("a"));
    assert_eq!(node.get("a"), None);
    assert_eq!((node.metrics.store.damaged.get(), node.files().len()), (1, 0));
}

#[test]
fn a_shortened_or_lengthened_file_is_noticed() {
    for length in [0, 8, 10] {
        expect_damage(|_, path| fs::OpenOptions::new().write(true).open(path).unwrap().set_len(length).unwrap());
    }
}

#[test]
fn a_file_in_anothers_place_is_noticed() {
    // Whole, signed, and of another module: it would run the wrong program.
    expect_damage(|node, path| fs::write(path, fs::read(node.file("b")).unwrap()).unwrap());
    expect_damage(|node, path| {
        let code = node.file("b").to_str().unwrap().rsplit('.').nth(1).unwrap().to_string();
        let name = ArtifactName::parse(path.file_name().unwrap().to_str().unwrap()).unwrap();
        let swapped = format!("{}.{ENGINE}.core.{code}{SUFFIX}", name.digest);
        fs::copy(node.file("b"), path.with_file_name(&swapped)).unwrap();
        fs::remove_file(path).unwrap();
    });
}

#[test]
fn a_file_of_another_node_or_user_is_noticed() {
    expect_damage(|_, path| {
        let elsewhere = tempfile::tempdir().unwrap();
        let node = Node::start(elsewhere.path());
        node.put("a", b"code of a");
        let foreign = node.file("a");
        fs::remove_file(path).unwrap();
        fs::copy(&foreign, path.with_file_name(foreign.file_name().unwrap())).unwrap();
    });
    expect_damage(|_, path| std::os::unix::fs::chown(path, Some(12_345), None).unwrap());
    expect_damage(|_, path| fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap());
}

#[test]
fn names_that_only_look_like_ours_go_and_others_stay() {
    let root = tempfile::tempdir().unwrap();
    let node = Node::start(root.path());
    let directory = root.path().join("modules");
    for name in ["x.artifact", "notes.txt", "places"] {
        fs::write(directory.join(name), "x").unwrap();
    }
    fs::create_dir(directory.join("6.1.0-amd64")).unwrap();
    drop(node);
    let node = Node::start(root.path());
    assert_eq!(node.metrics.store.damaged.get(), 1);
    let mut left: Vec<_> = fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, [&format!("{ENGINE}.in-use"), "6.1.0-amd64", "key", "notes.txt", "places"]);
}

#[test]
fn an_artifact_that_the_engine_refused_goes() {
    let root = tempfile::tempdir().unwrap();
    let node = Node::start(root.path());
    node.put("a", b"code");
    node.store.discard(Digest::of(b"a"), "deserialize failed");
    assert_eq!(node.get("a"), None);
    assert_eq!(node.metrics.store.damaged.get(), 1);
    assert_eq!(node.files().len(), 0);
    node.store.discard(Digest::of(b"a"), "again");
    assert_eq!(node.metrics.store.damaged.get(), 1);
}

#[test]
fn the_longest_unused_goes_first_also_after_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let tenth = [b'x'; 10];
    Node::start_with(root.path(), OTHER_ENGINE, 100).put("other", &tenth);
    let node = Node::start_with(root.path(), ENGINE, 50);
    for name in ["a", "b", "c", "d"] {
        node.put(name, &tenth);
    }
    for (name, second) in [("a", 4), ("b", 1), ("c", 3), ("d", 2)] {
        node.use_at(name, second);
    }
    // They are in the past: the disk has to learn that too.
    for artifact in node.store.index.lock().artifacts.values_mut() {
        artifact.saved = UNIX_EPOCH;
    }
    node.store.save_times();
    let node = Node::start_with(root.path(), ENGINE, 50);
    assert_eq!(node.metrics.store.bytes.get(), 50);
    node.put("e", &tenth);
    assert_eq!((node.metrics.store.evictions.get(), node.files().len()), (1, 5), "the other engine's went first");
    node.put("f", &tenth);
    assert_eq!(node.get("b"), None);
    node.put("g", &[b'x'; 20]);
    assert_eq!((node.get("d"), node.get("c")), (None, None));
    assert!(node.get("a").is_some() && node.get("e").is_some() && node.get("f").is_some());
    assert_eq!(node.metrics.store.evictions.get(), 4);
    assert_eq!(node.metrics.store.bytes.get(), 50);
    let smaller = Node::start_with(root.path(), ENGINE, 25);
    assert!(smaller.metrics.store.bytes.get() <= 25 && !smaller.files().is_empty());
    assert_eq!(smaller.metrics.store.damaged.get(), 0);
}

#[test]
fn what_is_larger_than_the_store_runs_from_memory() {
    let root = tempfile::tempdir().unwrap();
    let node = Node::start_with(root.path(), ENGINE, 10);
    node.put("a", b"code of a");
    assert_eq!(node.put("large", b"eleven byte"), "eleven byte");
    assert_eq!(node.get("large"), None);
    assert!(node.get("a").is_some(), "nothing had to go for it");
    assert_eq!(node.metrics.store.write_failures.get(), 1);
}

/// Runs `test` on a small tmpfs that only this thread sees.
fn on_tmpfs(options: &std::ffi::CStr, flags: MountFlags, test: impl FnOnce(&Path) + Send + 'static) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_path_buf();
    let options = options.to_owned();
    std::thread::spawn(move || {
        hearth_os::mount::unshare_mounts().unwrap();
        mount("tmpfs", &path, "tmpfs", flags, Some(options.as_c_str())).unwrap();
        test(&path);
    })
    .join()
    .unwrap();
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "the mount was seen outside");
}

#[test]
fn on_a_full_disk_it_runs_from_memory_and_leaves_nothing_behind() {
    on_tmpfs(c"mode=0700,size=64k", MountFlags::empty(), |root| {
        let node = Node::start(root);
        node.put("small", b"fits");
        let large = "x".repeat(100 << 10);
        assert_eq!(node.put("large", large.as_bytes()), large);
        assert_eq!(node.metrics.store.write_failures.get(), 1);
        assert_eq!(node.get("large"), None);
        assert_eq!(node.get("small").as_deref(), Some("fits"));
        assert_eq!(fs::read_dir(root.join("modules")).unwrap().count(), 3, "the small one, the key, and who uses them");
    });
}

#[test]
fn on_a_read_only_disk_what_is_there_is_used() {
    on_tmpfs(c"mode=0700", MountFlags::empty(), |root| {
        Node::start(root).put("a", b"code of a");
        rustix::mount::mount_remount(root, MountFlags::RDONLY, "").unwrap();
        let node = Node::start(root);
        assert_eq!(node.get("a").as_deref(), Some("code of a"));
        assert_eq!(node.put("b", b"code of b"), "code of b");
        assert_eq!(node.metrics.store.write_failures.get(), 1);
        assert_eq!(node.get("b"), None);
    });
    on_tmpfs(c"mode=0700", MountFlags::RDONLY, |root| {
        let node = Node::start(root);
        assert_eq!(node.put("b", b"code of b"), "code of b");
        assert_eq!(node.metrics.store.write_failures.get(), 1);
    });
}

#[test]
fn from_a_disk_without_execution_code_is_copied_into_memory() {
    on_tmpfs(c"mode=0700", MountFlags::NOEXEC, |root| {
        let node = Node::start(root);
        node.put("a", b"code of a");
        let verified = node.store.get(Digest::of(b"a")).unwrap();
        assert!(verified.file.set_len(0).is_err(), "the copy can still be changed");
        assert_eq!(text(verified), "code of a");
        assert_eq!(node.metrics.store.write_failures.get(), 0);
    });
}
