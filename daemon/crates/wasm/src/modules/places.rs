//! Where a module is known to be, without opening it.
//!
//! A [`Place`] is the digest of everything that decides which bytes a start would read:
//!
//! * *of a snapshot*: containerd's snapshots are final once they are layers. If the root is one
//!   overlay whose upper directory is still empty, its lower directories decide what the guest sees.
//!   They are taken by path, the top one also by inode and birth time, because a containerd whose
//!   root directory was wiped uses the same paths for other content. This takes one `statx`
//!   and one `getdents`; the root need not be mounted, and no layer's file is opened.
//! * *of an image*: its manifest's digest, which names all of its content.
//! * *of a file*: device, inode, size and both times, for bare directories, binds and everything
//!   else. The root must be mounted, but the file is not read.
//!
//! A place allows a start to read nothing, so there is one only where the same place cannot come to mean other bytes. A volume that covers the program is such a case, and it is met from two
//! sides: the volumes' destinations are part of a snapshot's place, and a search that left the root's
//! own mount is never remembered under it (see [`ProgramFile::on_root_mount`](super::lookup::ProgramFile)).

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir, StatxFlags, fstatfs, fstatvfs, open, statx};

use hearth_base::bundle::SpecMount;
use hearth_base::digest::Digest;
use hearth_base::wanted::Wanted;

/// Volumes of one container that a snapshot's place can describe; with more the root is looked at.
const VOLUMES_MAX: usize = 64;

/// How old a file's last change must be before its identity stands for its content: a change within
/// the clock's granularity of the last one would leave the same times.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

/// The digest of everything that decides which bytes a start would read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place(pub(super) [u8; 32]);

/// A mount of a Create request, as containerd sends it.
#[derive(Debug, Clone, Copy)]
pub struct RootMount<'a> {
    /// Its type, for example `overlay`.
    pub fstype: &'a str,
    /// Its options, for example `lowerdir=/a:/b`.
    pub options: &'a [String],
}

impl Place {
    /// Its bytes, for a message to another process of this daemon's.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The place with these bytes.
    pub fn of_bytes(bytes: [u8; 32]) -> Place {
        Place(bytes)
    }

    /// The place of `wanted` in a snapshot. `None` if the root is not one overlay, if something was
    /// already written to it, or if the layers cannot be told apart from others.
    pub fn of_snapshot(mounts: &[RootMount<'_>], wanted: &Wanted, volumes: &[SpecMount]) -> Option<Place> {
        let [root] = mounts else { return None };
        let overlay = OverlayMount::parse(*root)?;
        if volumes.len() > VOLUMES_MAX || has_nested_binds(volumes) {
            return None;
        }
        let birth = Birth::of_directory(&overlay.top)?;
        if !overlay.upper.is_none_or(is_empty_directory) {
            return None;
        }
        let mut key = PlaceHasher::new(b"snapshot");
        for option in root.options.iter().filter(|option| decides_content(option)) {
            key.add(option.as_bytes());
        }
        key.end_of_list();
        birth.add_to(&mut key);
        key.add(wanted.program.as_bytes());
        key.add(wanted.path.as_deref().unwrap_or("").as_bytes());
        key.add(&[u8::from(wanted.path.is_some())]);
        key.add(wanted.cwd.as_bytes());
        for volume in volumes {
            key.add(volume.destination.as_os_str().as_bytes());
        }
        Some(key.place())
    }

    /// The place of an image's program, by the manifest's digest.
    pub fn of_image(manifest: &str) -> Place {
        let mut key = PlaceHasher::new(b"image");
        key.add(manifest.as_bytes());
        key.place()
    }

    /// The place of the component that is made of a core module, by the module's digest.
    pub fn of_adapted(module: Digest) -> Place {
        let mut key = PlaceHasher::new(b"adapted 1");
        key.add(&module.0);
        key.place()
    }

    /// The place that is the file itself (an `O_PATH` descriptor will do), or `None` on a file system
    /// whose server chooses times and inode numbers.
    pub fn of_file(file: impl AsFd) -> Option<Place> {
        let file = file.as_fd();
        // A server chooses them on FUSE, NFS, 9p and image-based file systems, and an overlay's device number is
        // soon reused.
        let filesystem = fstatfs(file).ok()?;
        if !LOCAL_FILESYSTEMS.contains(&(filesystem.f_type as u32)) {
            return None;
        }
        let stat = rustix::fs::fstat(file).ok()?;
        let mut key = PlaceHasher::new(b"file");
        key.add(&(filesystem.f_type as u32).to_le_bytes());
        key.add(&fstatvfs(file).ok()?.f_fsid.to_le_bytes());
        for number in [stat.st_dev, stat.st_ino, stat.st_size as u64, stat.st_mtime as u64, stat.st_ctime as u64] {
            key.add(&number.to_le_bytes());
        }
        key.add(&(stat.st_mtime_nsec as u64).to_le_bytes());
        key.add(&(stat.st_ctime_nsec as u64).to_le_bytes());
        Some(key.place())
    }
}

/// Whether a file's last change is old enough for [`Place::of_file`] to stand for the content read
/// by now.
pub fn is_settled(file: &File, now: SystemTime) -> bool {
    let Ok(stat) = rustix::fs::fstat(file) else { return false };
    let (Ok(seconds), Ok(nanoseconds)) = (u64::try_from(stat.st_ctime), u32::try_from(stat.st_ctime_nsec)) else {
        return false;
    };
    let changed = UNIX_EPOCH + Duration::new(seconds, nanoseconds);
    now.duration_since(changed).is_ok_and(|age| age >= SETTLED_AFTER)
}

/// `statfs(2)` types of file systems in which the kernel alone sets inode numbers and change times.
const LOCAL_FILESYSTEMS: [u32; 7] = [
    0xef53,      // ext4
    0x5846_5342, // XFS
    0x9123_683e, // Btrfs
    0x0102_1994, // tmpfs
    0xf2f5_2010, // F2FS
    0x2fc1_2fc1, // ZFS
    0xca45_1a4e, // bcachefs
];

/// The directories of an overlay that decide its place.
struct OverlayMount {
    /// The lower directory on top of the others.
    top: String,
    /// The upper directory, if it has one.
    upper: Option<String>,
}

impl OverlayMount {
    fn parse(mount: RootMount<'_>) -> Option<OverlayMount> {
        if mount.fstype != "overlay" {
            return None;
        }
        let (mut top, mut upper) = (None, None);
        for option in mount.options {
            match option.split_once('=') {
                // Twice, or in the newer form with one directory each: which one is on top is not known.
                Some(("lowerdir", _)) if top.is_some() => return None,
                Some(("lowerdir", list)) => top = Some(first_of_list(list)),
                Some(("lowerdir+" | "datadir+", _)) => return None,
                Some(("upperdir", _)) if upper.is_some() => return None,
                Some(("upperdir", directory)) => upper = Some(directory.to_string()),
                _ => {}
            }
        }
        let top = top.filter(|top| top.starts_with('/'))?;
        if upper.as_ref().is_some_and(|upper| !upper.starts_with('/')) {
            return None;
        }
        Some(OverlayMount { top, upper })
    }
}

/// The first element of a list separated by colons, where a backslash takes the next character as it is.
fn first_of_list(list: &str) -> String {
    let mut first = String::new();
    let mut characters = list.chars();
    while let Some(character) = characters.next() {
        match character {
            ':' => break,
            '\\' => first.extend(characters.next()),
            other => first.push(other),
        }
    }
    first
}

/// An empty upper directory and the overlay's own work space say nothing about the content.
fn decides_content(option: &str) -> bool {
    !option.starts_with("upperdir=") && !option.starts_with("workdir=")
}

/// Whether a volume is mounted inside a bound directory: then the volume's content, which the place
/// does not describe, may decide by a symbolic link where the inner one goes.
fn has_nested_binds(volumes: &[SpecMount]) -> bool {
    let binds = volumes.iter().filter(|volume| is_bind(volume));
    binds.into_iter().any(|outer| {
        let outer = outer.destination.as_os_str().as_bytes();
        let outer = outer.strip_suffix(b"/").unwrap_or(outer);
        volumes.iter().any(|inner| {
            inner
                .destination
                .as_os_str()
                .as_bytes()
                .strip_prefix(outer)
                .is_some_and(|rest| rest.len() > 1 && rest[0] == b'/')
        })
    })
}

fn is_bind(volume: &SpecMount) -> bool {
    matches!(volume.fstype.as_str(), "" | "bind" | "none") || volume.options.iter().any(|o| o == "bind" || o == "rbind")
}

/// Which directory a path means now.
struct Birth {
    device: (u32, u32),
    inode: u64,
    seconds: i64,
    nanoseconds: u32,
}

impl Birth {
    fn of_directory(path: &str) -> Option<Birth> {
        let want = StatxFlags::TYPE | StatxFlags::INO | StatxFlags::BTIME | StatxFlags::CTIME;
        let stat = statx(CWD, path, AtFlags::NO_AUTOMOUNT, want).ok()?;
        let has = |flag: StatxFlags| stat.stx_mask & flag.bits() != 0;
        // A file system on a block device that keeps no birth times has change times of the kernel's
        // own; one without either (FUSE, mostly) could be any.
        let time = if has(StatxFlags::BTIME) {
            stat.stx_btime
        } else if has(StatxFlags::CTIME) && stat.stx_dev_major != 0 {
            stat.stx_ctime
        } else {
            return None;
        };
        Some(Birth {
            device: (stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
            seconds: time.tv_sec,
            nanoseconds: time.tv_nsec,
        })
    }

    fn add_to(&self, key: &mut PlaceHasher) {
        key.add(&self.device.0.to_le_bytes());
        key.add(&self.device.1.to_le_bytes());
        key.add(&self.inode.to_le_bytes());
        key.add(&self.seconds.to_le_bytes());
        key.add(&self.nanoseconds.to_le_bytes());
    }
}

/// Whether a directory can be read and has nothing in it.
fn is_empty_directory(path: String) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(directory) = open(path, flags, Mode::empty()) else { return false };
    // Room for `.`, `..` and one more: any third entry will do.
    let mut buffer = [std::mem::MaybeUninit::uninit(); 1024];
    let mut entries = RawDir::new(directory, &mut buffer);
    while let Some(entry) = entries.next() {
        match entry {
            Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
            _ => return false,
        }
    }
    true
}

/// Collects parts so that no two lists of parts read the same; hashed at once, which is faster than
/// piece by piece.
struct PlaceHasher(Vec<u8>);

impl PlaceHasher {
    fn new(kind: &[u8]) -> PlaceHasher {
        let mut key = PlaceHasher(Vec::with_capacity(2048));
        key.add(kind);
        key
    }

    fn add(&mut self, part: &[u8]) {
        self.0.extend_from_slice(&(part.len() as u64).to_le_bytes());
        self.0.extend_from_slice(part);
    }

    /// No part is this long.
    fn end_of_list(&mut self) {
        self.0.extend_from_slice(&u64::MAX.to_le_bytes());
    }

    fn place(&self) -> Place {
        Place(*blake3::hash(&self.0).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Two layers, an upper and a work directory.
    struct Snapshot(tempfile::TempDir);

    impl Snapshot {
        fn new() -> Snapshot {
            let snapshot = Snapshot(tempfile::tempdir().unwrap());
            for directory in ["1", "2", "up", "work"] {
                fs::create_dir(snapshot.0.path().join(directory)).unwrap();
            }
            snapshot
        }

        fn path(&self, name: &str) -> String {
            self.0.path().join(name).to_str().unwrap().to_string()
        }

        fn options(&self) -> Vec<String> {
            vec![
                "index=off".into(),
                format!("workdir={}", self.path("work")),
                format!("upperdir={}", self.path("up")),
                format!("lowerdir={}:{}", self.path("2"), self.path("1")),
            ]
        }

        fn place(&self) -> Option<Place> {
            place(&self.options(), &wanted(), &[])
        }
    }

    fn place(options: &[String], wanted: &Wanted, volumes: &[SpecMount]) -> Option<Place> {
        Place::of_snapshot(&[RootMount { fstype: "overlay", options }], wanted, volumes)
    }

    fn wanted() -> Wanted {
        Wanted { program: "app".into(), path: Some("/bin".into()), cwd: "/".into() }
    }

    fn volume(destination: &str, fstype: &str) -> SpecMount {
        SpecMount { destination: destination.into(), fstype: fstype.into(), source: "/x".into(), options: Vec::new() }
    }

    #[test]
    fn a_snapshot_is_one_place_and_whatever_decides_the_bytes_makes_another() {
        let snapshot = Snapshot::new();
        let options = snapshot.options();
        let first = snapshot.place().unwrap();
        assert_eq!(snapshot.place(), Some(first));

        // Another container of the same image has its own upper and work directories.
        let sibling = Snapshot::new();
        let mut moved = options.clone();
        moved[1] = format!("workdir={}", sibling.path("work"));
        moved[2] = format!("upperdir={}", sibling.path("up"));
        assert_eq!(place(&moved, &wanted(), &[]), Some(first));
        let read_only = [options[0].clone(), options[3].clone()];
        assert_eq!(place(&read_only, &wanted(), &[]), Some(first));

        let mut reversed = options.clone();
        reversed[3] = format!("lowerdir={}:{}", snapshot.path("1"), snapshot.path("2"));
        let mut metacopy = options.clone();
        metacopy.push("metacopy=on".into());
        let others = [
            place(&reversed, &wanted(), &[]),
            place(&metacopy, &wanted(), &[]),
            place(&options, &Wanted { program: "app#x".into(), ..wanted() }, &[]),
            place(&options, &Wanted { path: Some("/sbin".into()), ..wanted() }, &[]),
            place(&options, &Wanted { path: Some(String::new()), ..wanted() }, &[]),
            place(&options, &Wanted { path: None, ..wanted() }, &[]),
            place(&options, &Wanted { cwd: "/bin".into(), ..wanted() }, &[]),
            place(&options, &wanted(), &[volume("/bin", "bind")]),
            place(&options, &wanted(), &[volume("/bin", "bind"), volume("/lib", "bind")]),
        ];
        let mut places: Vec<_> = others.into_iter().map(|place| place.expect("a place of its own")).collect();
        places.push(first);
        let distinct: std::collections::HashSet<_> = places.iter().collect();
        assert_eq!(distinct.len(), places.len());
    }

    #[test]
    fn a_layer_made_anew_under_the_same_path_is_another_place() {
        let snapshot = Snapshot::new();
        let first = snapshot.place().unwrap();
        // Both exist for a moment, so that the inode differs whatever the clock's granularity.
        fs::create_dir(snapshot.path("new")).unwrap();
        fs::remove_dir(snapshot.path("2")).unwrap();
        fs::rename(snapshot.path("new"), snapshot.path("2")).unwrap();
        let second = snapshot.place().unwrap();
        assert_ne!(first, second);
        // A file in it changes the directory's times, not its birth.
        fs::write(snapshot.path("2/file"), "").unwrap();
        assert_eq!(snapshot.place(), Some(second));
    }

    #[test]
    fn a_root_that_was_written_to_is_no_place() {
        let snapshot = Snapshot::new();
        fs::write(snapshot.path("up/x"), "").unwrap();
        assert_eq!(snapshot.place(), None);
        fs::remove_file(snapshot.path("up/x")).unwrap();
        assert!(snapshot.place().is_some());
        symlink("nowhere", snapshot.path("up/.hidden")).unwrap();
        assert_eq!(snapshot.place(), None);
    }

    #[test]
    fn what_is_not_one_plain_overlay_is_no_place() {
        let snapshot = Snapshot::new();
        let options = snapshot.options();
        let mount = |fstype, options| RootMount { fstype, options };
        let overlay = mount("overlay", &options[..]);
        assert_eq!(Place::of_snapshot(&[], &wanted(), &[]), None);
        assert_eq!(Place::of_snapshot(&[overlay, overlay], &wanted(), &[]), None);
        assert_eq!(Place::of_snapshot(&[mount("bind", &options)], &wanted(), &[]), None);
        let wrong = [
            vec!["ro".to_string()],
            vec![options[3].clone(), options[3].clone()],
            vec![options[3].clone(), format!("lowerdir+={}", snapshot.path("1"))],
            vec!["lowerdir=1:2".into()],
            vec![format!("lowerdir={}", snapshot.path("gone"))],
            vec![options[3].clone(), format!("upperdir={}", snapshot.path("gone"))],
            vec![options[3].clone(), "upperdir=up".into()],
        ];
        for options in wrong {
            assert_eq!(place(&options, &wanted(), &[]), None, "{options:?}");
        }
    }

    #[test]
    fn a_volume_whose_content_could_steer_another_is_no_place() {
        let snapshot = Snapshot::new();
        let options = snapshot.options();
        let with = |volumes: &[SpecMount]| place(&options, &wanted(), volumes);
        assert!(
            with(&[
                volume("/data", "bind"),
                volume("/data-2", "bind"),
                volume("/dev", "tmpfs"),
                volume("/dev/shm", "bind")
            ])
            .is_some()
        );
        assert_eq!(with(&[volume("/data/", "bind"), volume("/data/in", "tmpfs")]), None);
        assert_eq!(with(&[volume("/", "bind"), volume("/x", "bind")]), None);
        let many: Vec<_> = (0..=VOLUMES_MAX).map(|i| volume(&format!("/v{i}"), "bind")).collect();
        assert_eq!(with(&many), None);
        assert!(with(&many[1..]).is_some());
    }

    #[test]
    fn lists_of_layers_may_quote_colons() {
        assert_eq!(first_of_list("/a:/b"), "/a");
        assert_eq!(first_of_list(r"/a\:b\\:/c"), r"/a:b\");
        assert_eq!(first_of_list(""), "");
    }

    #[test]
    fn a_file_is_one_place_until_it_changes() {
        let mut file = tempfile::tempfile().unwrap();
        if !LOCAL_FILESYSTEMS.contains(&(fstatfs(&file).unwrap().f_type as u32)) {
            assert_eq!(Place::of_file(&file), None);
            return;
        }
        file.write_all(b"one").unwrap();
        let first = Place::of_file(&file).unwrap();
        assert_eq!(Place::of_file(&file), Some(first));
        file.write_all(b"more").unwrap();
        assert_ne!(Place::of_file(&file).unwrap(), first);
        let now = SystemTime::now();
        assert!(!is_settled(&file, now));
        assert!(is_settled(&file, now + SETTLED_AFTER + Duration::from_millis(1)));
        assert!(!is_settled(&file, now - Duration::from_secs(60)), "changed in the future");
    }

    #[test]
    fn a_served_file_system_has_no_places() {
        assert_eq!(Place::of_file(File::open("/proc/version").unwrap()), None);
    }

    #[test]
    fn parts_of_a_key_do_not_run_into_each_other() {
        let key = |parts: &[&[u8]]| {
            let mut key = PlaceHasher::new(b"test");
            parts.iter().for_each(|part| key.add(part));
            key.place()
        };
        assert_ne!(key(&[b"ab", b"c"]), key(&[b"a", b"bc"]));
        assert_ne!(key(&[b"", b"a"]), key(&[b"a", b""]));
    }
}
