//! The state directory, which the generations share, and what each has of its own in it.
//!
//! ```text
//! <state_dir>/lock               held by the generation in charge; handed on with the control socket
//! <state_dir>/looking            held while somebody looks through s/
//! <state_dir>/s/<generation>/    task sockets, those of the sandbox controller, generation.sock, control.sock
//! <state_dir>/s/<generation>/alive   held by that generation for as long as it lives
//! ```
//!
//! Every lock is flock(2)'s, which goes with the process that holds it, however that ends. A directory below
//! `s` whose `alive` nobody holds is a dead daemon's; it is removed by whoever finds it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

/// Below the state directory: a directory for each generation.
const GENERATIONS: &str = "s";

/// In a generation's directory: the socket on which generations talk to each other.
pub const SOCKET: &str = "generation.sock";

/// In a generation's directory: its own control socket, which stays its when another has taken over the node's.
pub const CONTROL: &str = "control.sock";

const ALIVE: &str = "alive";
const LOOKING: &str = "looking";
const CHARGE: &str = "lock";

/// This process's own directory. Dropping it removes the directory.
#[derive(Debug)]
pub struct Directory {
    /// The generation's name: unique over restarts, so that an old bundle's address never reaches a new daemon.
    pub id: String,
    /// Where its sockets lie.
    pub path: PathBuf,
    _alive: File,
}

/// What lay in the state directory.
#[derive(Debug)]
pub struct Found {
    /// Ours, just made.
    pub ours: Directory,
    /// The names of the other generations that live.
    pub living: Vec<String>,
    /// What dead ones have left.
    pub dead: Vec<Dead>,
}

/// A generation that did not stop in good order. Its directory is removed by now.
#[derive(Debug, PartialEq, Eq)]
pub struct Dead {
    /// Its name.
    pub id: String,
    /// Sockets it has left.
    pub sockets: usize,
}

/// Where the socket of a generation is.
pub fn socket(state_dir: &Path, id: &str) -> PathBuf {
    state_dir.join(GENERATIONS).join(id).join(SOCKET)
}

/// Where the control socket of a generation itself is.
pub fn control_socket(state_dir: &Path, id: &str) -> PathBuf {
    state_dir.join(GENERATIONS).join(id).join(CONTROL)
}

/// Makes this process's directory, finds the others, and removes those of the dead.
///
/// # Errors
/// What the file system says, with the path.
pub fn open(state_dir: &Path) -> Result<Found, String> {
    let fail = |what: &str, e: io::Error| format!("state_dir: cannot {what} {}: {e}", state_dir.display());
    let all = state_dir.join(GENERATIONS);
    make_private(state_dir).and_then(|()| make_private(&all)).map_err(|e| fail("make", e))?;
    // A directory that has been made and whose lock has not been taken yet would be taken for a dead one's.
    let _looking = lock_file(&state_dir.join(LOOKING), FlockOperation::LockExclusive).map_err(|e| fail("lock", e))?;
    let (mut living, mut dead) = (Vec::new(), Vec::new());
    for (id, path) in generations(&all).map_err(|e| fail("read", e))? {
        if is_held(&path) {
            living.push(id);
        } else {
            let sockets = count_sockets(&path);
            std::fs::remove_dir_all(&path).map_err(|e| fail("clean", e))?;
            dead.push(Dead { id, sockets });
        }
    }
    let ours = make(&all, &dead).map_err(|e| fail("make a directory in", e))?;
    Ok(Found { ours, living, dead })
}

/// The names of the generations that live. What the dead have left stays.
///
/// # Errors
/// If the state directory cannot be read; one that is not there has none.
pub fn living(state_dir: &Path) -> io::Result<Vec<String>> {
    let all = match generations(&state_dir.join(GENERATIONS)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        all => all?,
    };
    Ok(all.into_iter().filter(|(_, path)| is_held(path)).map(|(id, _)| id).collect())
}

/// Whether a generation lives.
pub fn is_alive(state_dir: &Path, id: &str) -> bool {
    is_held(&state_dir.join(GENERATIONS).join(id))
}

/// Removes the directory of a generation that is gone. Whether it had left one.
pub fn remove_dead(state_dir: &Path, id: &str) -> bool {
    let path = state_dir.join(GENERATIONS).join(id);
    !is_held(&path) && std::fs::remove_dir_all(path).is_ok()
}

/// The lock of the generation in charge, if nobody holds it.
///
/// # Errors
/// What the file system says.
pub fn try_charge(state_dir: &Path) -> io::Result<Option<File>> {
    make_private(state_dir)?;
    match lock_file(&state_dir.join(CHARGE), FlockOperation::NonBlockingLockExclusive) {
        Ok(lock) => Ok(Some(lock)),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(e) => Err(e),
    }
}

/// Makes a directory under a name that none of the dead had: theirs may be in a bundle still.
fn make(all: &Path, dead: &[Dead]) -> io::Result<Directory> {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mut number = since.as_millis() as u32;
    loop {
        let id = format!("{number:08x}");
        let path = all.join(&id);
        if dead.iter().any(|dead| dead.id == id) {
            number = number.wrapping_add(1);
            continue;
        }
        match private().create(&path) {
            Ok(()) => {
                // (Waits for one who looks right now.)
                let alive = lock_file(&path.join(ALIVE), FlockOperation::LockExclusive)?;
                return Ok(Directory { id, path, _alive: alive });
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => number = number.wrapping_add(1),
            Err(e) => return Err(e),
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn generations(all: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(all)? {
        let entry = entry?;
        if entry.file_type()?.is_dir()
            && let Ok(name) = entry.file_name().into_string()
        {
            found.push((name, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

fn is_held(generation: &Path) -> bool {
    let Ok(file) = File::open(generation.join(ALIVE)) else { return false };
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_err()
}

fn count_sockets(directory: &Path) -> usize {
    use std::os::unix::fs::FileTypeExt;
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket())).count()
}

fn lock_file(path: &Path, how: FlockOperation) -> io::Result<File> {
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    rustix::fs::flock(&file, how)?;
    Ok(file)
}

fn private() -> std::fs::DirBuilder {
    use std::os::unix::fs::DirBuilderExt;
    let mut builder = std::fs::DirBuilder::new();
    builder.mode(0o700);
    builder
}

fn make_private(path: &Path) -> io::Result<()> {
    match private().recursive(true).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_living_are_left_alone_and_the_dead_are_removed() {
        let state = tempfile::tempdir().unwrap();
        let first = open(state.path()).unwrap();
        assert!(first.living.is_empty() && first.dead.is_empty(), "{first:?}");
        // Killed: the lock goes, the files stay.
        let killed = open(state.path()).unwrap();
        let (id, path) = (killed.ours.id.clone(), killed.ours.path.clone());
        let _socket = std::os::unix::net::UnixListener::bind(path.join(SOCKET)).unwrap();
        std::fs::rename(&path, state.path().join("s/kept")).unwrap();
        drop(killed);
        std::fs::rename(state.path().join("s/kept"), &path).unwrap();

        let next = open(state.path()).unwrap();
        assert_eq!(next.living, [first.ours.id.as_str()]);
        assert_eq!(next.dead, [Dead { id, sockets: 1 }]);
        assert!(!path.exists());
        assert_eq!(living(state.path()).unwrap().len(), 2);
        let ours = next.ours.path.clone();
        drop(next);
        assert!(!ours.exists() && first.ours.path.exists());
    }

    #[test]
    fn one_is_in_charge_until_it_lets_go() {
        let state = tempfile::tempdir().unwrap();
        let lock = try_charge(state.path()).unwrap().unwrap();
        assert!(try_charge(state.path()).unwrap().is_none());
        // Handed on: as long as a copy is held, it is held.
        let copy = lock.try_clone().unwrap();
        drop(lock);
        assert!(try_charge(state.path()).unwrap().is_none());
        drop(copy);
        assert!(try_charge(state.path()).unwrap().is_some());
    }

    #[test]
    fn no_state_directory_has_no_generations() {
        assert_eq!(living(Path::new("/no/such/directory")).unwrap(), Vec::<String>::new());
    }
}
