//! The directory of all files of a run, removed at its end.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, UnmountFlags};
use tempfile::TempDir;

use crate::bundle::make_dir;

/// The longest path of a scratch directory, in bytes: a Unix socket's path holds 107, and the
/// daemon's sockets lie deeper.
const PATH_BYTES_MAX: usize = 48;

/// A new directory below `parent` (the system's temporary directory by default).
pub struct Scratch {
    /// Unmounted before the directory is removed.
    bundles: Store,
    layers: Store,
    dir: TempDir,
    path: PathBuf,
}

/// Where the bundles are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BundleStore {
    /// On the scratch directory's file system.
    Disk,
    /// On a tmpfs, for which this process must be in a mount namespace of its own.
    Memory,
}

struct Store {
    path: PathBuf,
    store: BundleStore,
}

impl Scratch {
    /// Makes it.
    ///
    /// # Errors
    /// If the directory cannot be made, or its path is one that sockets or overlays cannot take.
    pub fn create(parent: Option<&Path>, store: BundleStore) -> Result<Scratch> {
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_owned);
        let dir = tempfile::Builder::new()
            .prefix("hearth-bench-")
            .tempdir_in(&parent)
            .with_context(|| format!("cannot make a directory in {}", parent.display()))?;
        let path = dir.path().canonicalize()?;
        check(&path)?;
        let bundles = Store::create(path.join("b"), store)?;
        let layers = Store::create(path.join("l"), store)?;
        Ok(Scratch { bundles, layers, dir, path })
    }

    /// Its absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory for bundles and images in it.
    pub fn bundles(&self) -> &Path {
        &self.bundles.path
    }

    /// The directory for images' layers and pods' files. On a node they lie on another file system than the bundles,
    /// which are below `/run`.
    pub fn layers(&self) -> &Path {
        &self.layers.path
    }

    /// Removes it.
    ///
    /// # Errors
    /// Of the file system, with the path that is left.
    pub fn remove(self) -> Result<()> {
        drop((self.bundles, self.layers));
        self.dir.close().with_context(|| format!("cannot remove {}", self.path.display()))
    }
}

impl Store {
    fn create(path: PathBuf, store: BundleStore) -> Result<Store> {
        make_dir(&path)?;
        if store == BundleStore::Memory {
            rustix::mount::mount("tmpfs", &path, "tmpfs", MountFlags::empty(), c"mode=700")
                .with_context(|| format!("cannot mount a tmpfs on {}", path.display()))?;
        }
        Ok(Store { path, store })
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if self.store == BundleStore::Disk {
            return;
        }
        if let Err(error) = rustix::mount::unmount(&self.path, UnmountFlags::DETACH) {
            eprintln!("hearth-bench: cannot unmount {}: {error}", self.path.display());
        }
    }
}

fn check(path: &Path) -> Result<()> {
    let text = path.to_str().with_context(|| format!("{path:?} is not UTF-8; choose --scratch"))?;
    ensure!(
        text.len() <= PATH_BYTES_MAX,
        "{text} is longer than {PATH_BYTES_MAX} bytes, too long for sockets in it; choose a shorter --scratch"
    );
    ensure!(
        !text.contains([',', ':', '\\']),
        "{text} has a character that overlay options cannot take; choose another --scratch"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_sockets_or_overlays_cannot_take_are_refused() {
        assert!(check(Path::new("/tmp/hearth-bench-x")).is_ok());
        assert!(check(Path::new(&format!("/{}", "x".repeat(48)))).is_err());
        assert!(check(Path::new("/tmp/a:b")).is_err());
        assert!(check(Path::new("/tmp/a,b")).is_err());
    }

    #[test]
    fn it_is_gone_afterwards() {
        let scratch = Scratch::create(None, BundleStore::Disk).unwrap();
        let path = scratch.path().to_owned();
        assert!(scratch.bundles().starts_with(&path) && scratch.bundles().is_dir());
        scratch.remove().unwrap();
        assert!(!path.exists());
    }
}
