//! The state directory, which the generations share, and the directory of each generation in it.
//!
//! ```text
//! <state_dir>/lock               held by the generation in charge; handed on with the control socket
//! <state_dir>/looking            held by a daemon that reads through s/ at its start
//! <state_dir>/s/<generation>/    task sockets, those of the sandbox controller, generation.sock, control.sock
//! <state_dir>/s/<generation>/alive   held by that generation for as long as it lives
//! ```
//!
//! Every lock is flock(2)'s, which the kernel releases when its process ends, for whatever reason. If the lock `alive`
//! of a directory below `s` is free, its daemon is dead, and the next daemon that finds the directory removes it.
//!
//! All files are reached through a capability handle of the directory (cap-std): the name of a generation, which a
//! message may bring, cannot lead out of it, and a state directory that is replaced meanwhile is not touched. Only
//! sockets are named by path, since bind(2) and connect(2) take nothing else.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use cap_std::fs::{Dir, DirBuilder, DirBuilderExt, FileTypeExt, OpenOptions};
use rustix::fs::FlockOperation;

/// Below the state directory: a directory for each generation.
const GENERATIONS: &str = "s";

/// In a generation's directory: the socket on which generations talk to each other.
pub const SOCKET: &str = "generation.sock";

/// In a generation's directory: its own control socket, which it keeps after another has taken over the node's.
pub const CONTROL: &str = "control.sock";

const ALIVE: &str = "alive";
const LOOKING: &str = "looking";
const CHARGE: &str = "lock";

/// This process's own directory. Dropping it removes the directory.
#[derive(Debug)]
pub struct Directory {
    /// The generation's name: unique over restarts, so that an old bundle's address never reaches a new daemon.
    pub id: String,
    /// The path of the directory, for the addresses of sockets in it.
    pub path: PathBuf,
    /// The directory of all generations.
    all: Dir,
    _alive: File,
}

/// The content of the state directory at the start of a daemon.
#[derive(Debug)]
pub struct Found {
    /// This process's directory, just made.
    pub ours: Directory,
    /// The names of the other generations that live.
    pub living: Vec<String>,
    /// The generations whose daemons have died.
    pub dead: Vec<Dead>,
}

/// A generation that did not stop in good order. Its directory is removed.
#[derive(Debug, PartialEq, Eq)]
pub struct Dead {
    /// Its name.
    pub id: String,
    /// The number of sockets in its directory.
    pub sockets: usize,
}

/// The path of the socket of a generation.
pub fn socket(state_dir: &Path, id: &str) -> PathBuf {
    state_dir.join(GENERATIONS).join(id).join(SOCKET)
}

/// The path of a generation's own control socket.
pub fn control_socket(state_dir: &Path, id: &str) -> PathBuf {
    state_dir.join(GENERATIONS).join(id).join(CONTROL)
}

/// Makes this process's directory, finds the others, and removes those of dead daemons.
///
/// # Errors
/// An error of the file system, with the path.
pub fn open(state_dir: &Path) -> Result<Found, String> {
    let fail = |what: &str, e: io::Error| format!("state_dir: cannot {what} {}: {e}", state_dir.display());
    let state = make_state_dir(state_dir).map_err(|e| fail("make", e))?;
    let all = make_generations(&state).map_err(|e| fail("make", e))?;
    // A directory that is made and not locked yet would look like a dead daemon's.
    let _looking = lock_file(&state, LOOKING, FlockOperation::LockExclusive).map_err(|e| fail("lock", e))?;
    let (mut living, mut dead) = (Vec::new(), Vec::new());
    for id in generations(&all).map_err(|e| fail("read", e))? {
        if is_held(&all, &id) {
            living.push(id);
        } else {
            let sockets = count_sockets(&all, &id);
            all.remove_dir_all(&id).map_err(|e| fail("clean", e))?;
            dead.push(Dead { id, sockets });
        }
    }
    let ours = make(all, &state_dir.join(GENERATIONS), &dead).map_err(|e| fail("make a directory in", e))?;
    Ok(Found { ours, living, dead })
}

/// Makes this process's directory, and leaves the others alone.
///
/// # Errors
/// An error of the file system, with the path.
pub fn create(state_dir: &Path) -> Result<Directory, String> {
    let fail = |e: io::Error| format!("state_dir: cannot make a directory in {}: {e}", state_dir.display());
    let state = make_state_dir(state_dir).map_err(fail)?;
    let all = make_generations(&state).map_err(fail)?;
    let _looking = lock_file(&state, LOOKING, FlockOperation::LockExclusive).map_err(fail)?;
    make(all, &state_dir.join(GENERATIONS), &[]).map_err(fail)
}

/// The path of a generation's directory.
pub fn path(state_dir: &Path, id: &str) -> PathBuf {
    state_dir.join(GENERATIONS).join(id)
}

/// The names of all generations, living or dead.
///
/// # Errors
/// The state directory cannot be read. One that does not exist has no generations.
pub fn all(state_dir: &Path) -> io::Result<Vec<String>> {
    match make_state_dir(state_dir).and_then(|state| lock_file(&state, LOOKING, FlockOperation::LockExclusive)) {
        // A directory that is made and not locked yet would look like a dead one's.
        Ok(_looking) => match open_generations(state_dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            found => generations(&found?),
        },
        Err(e) => Err(e),
    }
}

/// The names of the generations that live. Directories of dead ones are not removed.
///
/// # Errors
/// The state directory cannot be read. One that does not exist has no generations.
pub fn living(state_dir: &Path) -> io::Result<Vec<String>> {
    let all = match open_generations(state_dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        all => all?,
    };
    Ok(generations(&all)?.into_iter().filter(|id| is_held(&all, id)).collect())
}

/// Whether a generation lives.
pub fn is_alive(state_dir: &Path, id: &str) -> bool {
    open_generations(state_dir).is_ok_and(|all| is_held(&all, id))
}

/// Removes the directory of a dead generation. `true` if there was one.
pub fn remove_dead(state_dir: &Path, id: &str) -> bool {
    open_generations(state_dir).is_ok_and(|all| !is_held(&all, id) && all.remove_dir_all(id).is_ok())
}

/// The lock of the generation in charge; `None` while another process holds it.
///
/// # Errors
/// As mkdir(2), open(2) and flock(2).
pub fn try_charge(state_dir: &Path) -> io::Result<Option<File>> {
    let state = make_state_dir(state_dir)?;
    match lock_file(&state, CHARGE, FlockOperation::NonBlockingLockExclusive) {
        Ok(lock) => Ok(Some(lock)),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(e) => Err(e),
    }
}

/// Makes a directory under a name that no dead generation had: an address with that name may be in a bundle still.
fn make(all: Dir, path: &Path, dead: &[Dead]) -> io::Result<Directory> {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mut number = since.as_millis() as u32;
    loop {
        let id = format!("{number:08x}");
        if dead.iter().any(|dead| dead.id == id) {
            number = number.wrapping_add(1);
            continue;
        }
        match all.create_dir_with(&id, &private()) {
            Ok(()) => {
                // Waits for a process that tests the lock right now.
                let alive = lock_file(&all.open_dir(&id)?, ALIVE, FlockOperation::LockExclusive)?;
                return Ok(Directory { path: path.join(&id), id, all, _alive: alive });
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => number = number.wrapping_add(1),
            Err(e) => return Err(e),
        }
    }
}

impl Directory {
    /// Leaves the directory to another process, which removes it after this one has ended.
    pub fn leave(self) {
        // The lock goes with the process.
        std::mem::forget(self);
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = self.all.remove_dir_all(&self.id);
    }
}

fn generations(all: &Dir) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in all.entries()? {
        let entry = entry?;
        if entry.file_type()?.is_dir()
            && let Ok(name) = entry.file_name().into_string()
        {
            found.push(name);
        }
    }
    found.sort();
    Ok(found)
}

fn is_held(all: &Dir, id: &str) -> bool {
    let Ok(file) = all.open(Path::new(id).join(ALIVE)) else { return false };
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_err()
}

fn count_sockets(all: &Dir, id: &str) -> usize {
    let entries = all.read_dir(id).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket())).count()
}

fn lock_file(directory: &Dir, name: &str, how: FlockOperation) -> io::Result<File> {
    let file = directory.open_with(name, OpenOptions::new().create(true).truncate(false).write(true))?.into_std();
    rustix::fs::flock(&file, how)?;
    Ok(file)
}

/// Directories that only root can enter.
fn private() -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.mode(0o700);
    builder
}

fn make_state_dir(path: &Path) -> io::Result<Dir> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().mode(0o700).recursive(true).create(path)?;
    Dir::open_ambient_dir(path, cap_std::ambient_authority())
}

fn make_generations(state: &Dir) -> io::Result<Dir> {
    match state.create_dir_with(GENERATIONS, &private()) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => state.open_dir(GENERATIONS),
    }
}

fn open_generations(state_dir: &Path) -> io::Result<Dir> {
    Dir::open_ambient_dir(state_dir.join(GENERATIONS), cap_std::ambient_authority())
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
    fn one_generation_is_in_charge_until_it_drops_the_lock() {
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
    fn a_name_cannot_lead_out_of_the_state_directory() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let _ours = open(&state).unwrap();
        std::fs::create_dir(dir.path().join("other")).unwrap();
        assert!(!is_alive(&state, "../../other") && !remove_dead(&state, "../../other"));
        std::os::unix::fs::symlink(dir.path().join("other"), state.join("s/link")).unwrap();
        assert!(!remove_dead(&state, "link/.."));
        assert!(dir.path().join("other").exists());
    }

    #[test]
    fn no_state_directory_has_no_generations() {
        assert_eq!(living(Path::new("/no/such/directory")).unwrap(), Vec::<String>::new());
    }
}
