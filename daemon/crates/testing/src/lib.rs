//! Helpers that unit tests of several crates share: a private mount namespace, directories of files, FIFOs, and the
//! check that a crate's page names every file. Crates use it as a dev-dependency only.
//!
//! * `lib.rs`: the mount namespace, the directories and the FIFOs.
//! * `length.rs`: no source file of the workspace is longer than the limit.
//! * [`page`] (`page.rs`): every source file of a crate has its line on the crate's page.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "tests start programs and make mounts")]

#[cfg(test)]
mod length;
pub mod page;

use std::fs;
use std::path::{Path, PathBuf};

pub use page::page_names_every_file;
use rustix::fs::{CWD, FileType, Mode};
use rustix::mount::MountFlags;

/// Runs `body` on a thread with a mount namespace of its own, and passes it the path of an empty tmpfs there. All
/// mounts that it makes go with the thread.
pub fn in_namespace<T: Send>(body: impl FnOnce(&Path) -> T + Send) -> T {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap();
    std::thread::scope(|scope| {
        let run = || {
            hearth_os::mount::unshare_mounts().expect("these tests need root");
            rustix::mount::mount("tmpfs", &path, "tmpfs", MountFlags::empty(), None::<&std::ffi::CStr>).unwrap();
            body(&path)
        };
        scope.spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The mount points below `path` in the calling thread's mount namespace, relative to `path`.
pub fn mounts_below(path: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let below = format!("{}/", path.display());
    table.lines().filter_map(|line| line.split(' ').nth(4)?.strip_prefix(&below).map(String::from)).collect()
}

/// Makes a directory with these files; each file contains its own path.
pub fn directory(path: &Path, files: &[&str]) -> PathBuf {
    fs::create_dir_all(path).unwrap();
    for file in files {
        let file = path.join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, file.to_str().unwrap()).unwrap();
    }
    path.to_path_buf()
}

/// Makes a FIFO called `name` in `dir`.
pub fn make_fifo(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    path
}
