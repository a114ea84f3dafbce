//! A thread with the root directory, the user and the network of a guest, for libraries that open files by path.
//!
//! The kernel resolves each path of such a thread inside the guest's root, whatever links and renames the guest makes
//! there meanwhile, and decides by the guest's user. The thread is not used for other work.

use std::io;
use std::path::Path;
use std::thread;

use rustix::fs::{CWD, Mode, OFlags};

use crate::identity::{self, Identity};

/// Starts a thread called `name` (of at most 15 bytes) that runs `body` with `root` as its root directory and with the
/// identity of a guest. `body` gets the error if the kernel refuses one of them: then it must open no file.
///
/// # Errors
/// As pthread_create(3).
pub fn spawn(
    name: &str,
    root: &Path,
    identity: &Identity,
    body: impl FnOnce(io::Result<()>) + Send + 'static,
) -> io::Result<()> {
    let (root, identity) = (root.to_path_buf(), identity.clone());
    let begin = move || {
        // It also gives the thread a root directory and a working directory of its own.
        identity::become_daemon();
        let entered = enter(&root).and_then(|()| identity::assume_for_good(&identity));
        body(entered);
    };
    thread::Builder::new().name(name.into()).spawn(begin).map(drop)
}

fn enter(root: &Path) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, root, flags, Mode::empty())?;
    rustix::process::fchdir(&root)?;
    rustix::process::chroot(".")?;
    Ok(rustix::process::chdir("/")?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn paths_stay_in_the_root_and_files_are_the_users() {
        identity::record_daemon().unwrap();
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(root.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        symlink("/../../etc", root.path().join("link")).unwrap();
        let user = hearth_base::bundle::User { uid: 1234, gid: 1234, ..Default::default() };
        let identity = Identity::new(&user, None).unwrap();
        let (tell, told) = mpsc::channel();
        spawn("rooted", root.path(), &identity, move |entered| {
            entered.unwrap();
            fs::write("/file", "x").unwrap();
            tell.send((fs::read_dir("/link").is_err(), fs::metadata("/file").unwrap().uid())).unwrap();
        })
        .unwrap();
        assert_eq!(told.recv().unwrap(), (true, 1234));
        assert!(root.path().join("file").exists());
        assert!(Path::new("/etc").exists(), "other threads keep their root");
    }

    #[test]
    fn a_root_that_does_not_exist_is_an_error() {
        let (tell, told) = mpsc::channel();
        let missing = Path::new("/does/not/exist");
        spawn("rooted", missing, &Identity::default(), move |entered| tell.send(entered.is_err()).unwrap()).unwrap();
        assert!(told.recv().unwrap());
    }
}
