//! The digest of the module in each known place, and the export that the program's name asks for.
//!
//! Kept in memory, bounded, and in a file beside the artifacts, so that a start after the daemon's
//! own restart opens no layer either. The file is a journal: a line for each place learnt, written
//! once by appending, and rewritten as a whole when most of it is out of date. Each line carries a
//! keyed code of its own, so a torn or damaged one costs that place only; a lost file costs one
//! reading of each module.

use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lru::LruCache;
use parking_lot::Mutex;

use crate::modules::directory::Directory;
use crate::modules::places::Place;
use hearth_base::digest::Digest;

/// The purpose for which the key of the journal's codes is derived from the directory's key.
const PURPOSE: &str = "hearth 2026 module store: places";

/// The journal's name in the store's directory.
const FILE: &str = "places";

/// The first field of a line: the form of the rest.
const VERSION: &str = "1";

/// Hex digits of a line's code. The directory is root's own: the code is there to find damage.
const CODE_DIGITS: usize = 32;

/// The longest name of an export that is remembered, in bytes.
const EXPORT_BYTES_MAX: usize = 1024;

/// How much larger than needed the journal may grow before it is rewritten.
const GROWTH: usize = 2;

/// The longest line: five fields, spaces and the line's end.
const LINE_BYTES_MAX: usize = 1 + 64 + 64 + 2 * EXPORT_BYTES_MAX + CODE_DIGITS + 5;

/// The module in a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownModule {
    /// The module's digest.
    pub digest: Digest,
    /// The export that the program's name asks for.
    pub export: Option<Arc<str>>,
}

/// Known places and their modules, the least recently used removed first.
pub struct KnownPlaces {
    places: Mutex<LruCache<Place, KnownModule>>,
    journal: Option<Journal>,
}

struct Journal {
    directory: Arc<Directory>,
    key: [u8; 32],
    /// Lines in the file.
    lines: AtomicUsize,
}

impl KnownPlaces {
    /// Reads the places in `directory`; keeps at most `places_max`.
    pub fn open(directory: Option<Arc<Directory>>, places_max: usize) -> KnownPlaces {
        let places_max = NonZeroUsize::new(places_max).unwrap_or(NonZeroUsize::MIN);
        let mut places = LruCache::sparse(places_max);
        let mut damaged = 0;
        let journal = directory.map(|directory| {
            let key = directory.key_for(PURPOSE);
            let journal = Journal { directory, key, lines: AtomicUsize::new(0) };
            damaged = journal.read(places_max.get(), &mut places);
            journal
        });
        let known = KnownPlaces { places: Mutex::new(places), journal };
        if let Some(journal) = &known.journal {
            if damaged > 0 {
                tracing::warn!(lines = damaged, file = %journal.directory.path().join(FILE).display(), "damaged lines in the list of known places: those modules are read again");
            }
            if damaged > 0 || known.is_overgrown(journal) {
                known.rewrite(journal);
            }
        }
        known
    }

    /// The module in `place`. A few tens of nanoseconds.
    pub fn get(&self, place: &Place) -> Option<KnownModule> {
        self.places.lock().get(place).cloned()
    }

    /// Remembers the module in `place`. Writes to the disk if it is new or changed: blocks.
    pub fn learn(&self, place: Place, known: KnownModule) {
        if known.export.as_ref().is_some_and(|export| export.len() > EXPORT_BYTES_MAX) {
            return;
        }
        let line = {
            let mut places = self.places.lock();
            if places.get(&place) == Some(&known) {
                return;
            }
            let line = self.journal.as_ref().map(|journal| journal.line(place, &known));
            places.put(place, known);
            line
        };
        if let (Some(journal), Some(line)) = (&self.journal, line) {
            // A place that does not reach the disk costs one more read of its module after a restart.
            if let Err(error) = journal.directory.append(FILE, line.as_bytes()) {
                tracing::debug!(%error, "cannot add to the list of known places");
            }
            journal.lines.fetch_add(1, Ordering::Relaxed);
            if self.is_overgrown(journal) {
                self.rewrite(journal);
            }
        }
    }

    fn is_overgrown(&self, journal: &Journal) -> bool {
        journal.lines.load(Ordering::Relaxed) > GROWTH * self.places.lock().cap().get()
    }

    fn rewrite(&self, journal: &Journal) {
        let lines: Vec<_> = {
            let places = self.places.lock();
            // From the least recently used on: reading it back restores the order.
            places.iter().rev().map(|(place, known)| journal.line(*place, known)).collect()
        };
        journal.lines.store(lines.len(), Ordering::Relaxed);
        let written = journal.directory.write(FILE, |file| {
            let mut file = io::BufWriter::new(file);
            lines.iter().try_for_each(|line| file.write_all(line.as_bytes()))?;
            file.flush()
        });
        if let Err(error) = written {
            tracing::debug!(%error, "cannot rewrite the list of known places");
        }
    }
}

impl Journal {
    /// Fills `places`; returns the number of damaged lines.
    fn read(&self, places_max: usize, places: &mut LruCache<Place, KnownModule>) -> usize {
        let mut bytes = Vec::new();
        let limit = (GROWTH + 1).saturating_mul(places_max).saturating_mul(LINE_BYTES_MAX) as u64;
        match self.directory.read(FILE).and_then(|file| file.take(limit).read_to_end(&mut bytes)) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return 0,
            // To be rewritten.
            Err(_) => return 1,
        }
        let (mut lines, mut damaged) = (0, 0);
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            lines += 1;
            match self.parse(line) {
                Some((place, known)) => {
                    places.put(place, known);
                }
                None => damaged += 1,
            }
        }
        self.lines.store(lines, Ordering::Relaxed);
        damaged
    }

    fn line(&self, place: Place, known: &KnownModule) -> String {
        let export = known.export.as_ref().map_or_else(|| "-".to_string(), |export| hex::encode(export.as_bytes()));
        let text = format!("{VERSION} {} {} {export}", hex::encode(place.0), known.digest);
        let code = self.code(&text);
        format!("{text} {code}\n")
    }

    fn parse(&self, line: &[u8]) -> Option<(Place, KnownModule)> {
        let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
        let (text, code) = line.rsplit_once(' ')?;
        if self.code(text) != code {
            return None;
        }
        let parts: Vec<_> = text.split(' ').collect();
        let &[VERSION, place, digest, export] = parts.as_slice() else { return None };
        let mut key = [0; 32];
        hex::decode_to_slice(place, &mut key).ok()?;
        let export = match export {
            "-" => None,
            text => Some(Arc::from(String::from_utf8(hex::decode(text).ok()?).ok()?)),
        };
        Some((Place(key), KnownModule { digest: Digest::parse(digest)?, export }))
    }

    fn code(&self, text: &str) -> String {
        blake3::keyed_hash(&self.key, text.as_bytes()).to_hex()[..CODE_DIGITS].to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::modules::directory::OpenedDirectory;

    fn open(root: &Path, places_max: usize) -> KnownPlaces {
        let OpenedDirectory::Disk(directory) = Directory::open(root).unwrap() else { panic!() };
        KnownPlaces::open(Some(Arc::new(directory)), places_max)
    }

    fn place(number: u8) -> Place {
        Place([number; 32])
    }

    fn known(number: u8, export: Option<&str>) -> KnownModule {
        KnownModule { digest: Digest([number; 32]), export: export.map(Arc::from) }
    }

    fn file(root: &Path) -> PathBuf {
        root.join("modules/places")
    }

    fn lines(root: &Path) -> usize {
        fs::read_to_string(file(root)).unwrap().lines().count()
    }

    #[test]
    fn places_survive_a_restart() {
        let root = tempfile::tempdir().unwrap();
        let places = open(root.path(), 8);
        places.learn(place(1), known(1, None));
        places.learn(place(2), known(2, Some("run me\n")));
        places.learn(place(1), known(3, None));
        // Not dropped: the daemon may have been killed.
        std::mem::forget(places);
        let places = open(root.path(), 8);
        assert_eq!(places.get(&place(1)), Some(known(3, None)));
        assert_eq!(places.get(&place(2)), Some(known(2, Some("run me\n"))));
        assert_eq!(places.get(&place(3)), None);
    }

    #[test]
    fn known_news_is_not_written_again() {
        let root = tempfile::tempdir().unwrap();
        let places = open(root.path(), 8);
        for _ in 0..5 {
            places.learn(place(1), known(1, None));
        }
        assert_eq!(lines(root.path()), 1);
        let long = "x".repeat(EXPORT_BYTES_MAX + 1);
        places.learn(place(2), known(2, Some(&long)));
        assert_eq!((lines(root.path()), places.get(&place(2))), (1, None));
    }

    #[test]
    fn the_longest_unused_is_forgotten_and_the_journal_stays_bounded() {
        let root = tempfile::tempdir().unwrap();
        let places = open(root.path(), 3);
        for number in 0..100 {
            places.learn(place(number), known(number, None));
            places.get(&place(0));
            assert!(lines(root.path()) <= 2 * 3, "after {number}");
        }
        for places in [places, open(root.path(), 3)] {
            let left: Vec<_> = (0..100).filter(|number| places.get(&place(*number)).is_some()).collect();
            assert_eq!(left.len(), 3);
            assert!(left.contains(&99) && left.contains(&98), "{left:?}");
        }
        let smaller = open(root.path(), 1);
        assert_eq!(smaller.get(&place(99)), Some(known(99, None)));
        assert_eq!(lines(root.path()), 1);
    }

    #[test]
    fn a_damaged_line_costs_that_place_only() {
        let root = tempfile::tempdir().unwrap();
        let places = open(root.path(), 8);
        for number in 1..=4 {
            places.learn(place(number), known(number, None));
        }
        let text = fs::read_to_string(file(root.path())).unwrap();
        let mut lines: Vec<_> = text.lines().map(str::to_string).collect();
        // Another module's digest in the second, a torn last line, and noise.
        lines[1] = lines[1].replace(&"02".repeat(32), &"04".repeat(32));
        lines[3].truncate(70);
        fs::write(
            file(root.path()),
            [
                lines[0].as_bytes(),
                b"\n\xff\xfe\n",
                lines[1].as_bytes(),
                b"\n",
                lines[2].as_bytes(),
                b"\n",
                lines[3].as_bytes(),
            ]
            .concat(),
        )
        .unwrap();
        for _ in 0..2 {
            let places = open(root.path(), 8);
            let left: Vec<_> = (1..=4).filter(|number| places.get(&place(*number)).is_some()).collect();
            assert_eq!(left, [1, 3]);
            assert_eq!(super::tests::lines(root.path()), 2, "it was rewritten without them");
        }
        // After a torn line has been cut off, new ones are not glued to it.
        let places = open(root.path(), 8);
        places.learn(place(9), known(9, None));
        assert_eq!(open(root.path(), 8).get(&place(9)), Some(known(9, None)));
    }

    #[test]
    fn a_journal_of_another_node_or_none_is_empty() {
        let (root, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        open(other.path(), 8).learn(place(1), known(1, None));
        drop(open(root.path(), 8));
        fs::copy(file(other.path()), file(root.path())).unwrap();
        assert_eq!(open(root.path(), 8).get(&place(1)), None);
        let memory = KnownPlaces::open(None, 8);
        memory.learn(place(1), known(1, None));
        assert_eq!(memory.get(&place(1)), Some(known(1, None)));
    }

    #[test]
    fn something_else_in_the_journals_place_is_replaced() {
        let root = tempfile::tempdir().unwrap();
        drop(open(root.path(), 8));
        std::os::unix::fs::symlink("/etc/hostname", file(root.path())).unwrap();
        open(root.path(), 8).learn(place(1), known(1, None));
        assert!(fs::symlink_metadata(file(root.path())).unwrap().is_file());
        assert_eq!(open(root.path(), 8).get(&place(1)), Some(known(1, None)));
    }
}
