//! Files are replaced as a whole, and put back if a later step fails.

use std::fs::{self, Metadata, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use super::plan::FileChange;

/// The mode of a file that is made.
const NEW_MODE: u32 = 0o644;

/// Changes that are undone when this is dropped, unless [`Transaction::commit`] came first.
#[derive(Default)]
pub struct Transaction {
    /// The paths with their files before the change, in the order of the changes.
    done: Vec<(PathBuf, Option<Saved>)>,
}

/// A file before its change.
struct Saved {
    text: String,
    metadata: Metadata,
}

impl Transaction {
    /// Makes a change. `path`: the file's path on this machine. `like`: the file whose mode and owner a new file gets.
    ///
    /// # Errors
    /// As the operating system says; nothing of this change is done then.
    pub fn apply(&mut self, change: &FileChange, path: &Path, like: Option<&Path>) -> io::Result<()> {
        let path = resolve(path)?;
        let saved = match &change.before {
            Some(text) => Some(Saved { text: text.clone(), metadata: fs::metadata(&path)? }),
            None => None,
        };
        match &change.after {
            None => fs::remove_file(&path)?,
            Some(text) => {
                let like = like.and_then(|like| fs::metadata(like).ok());
                replace(&path, text, saved.as_ref().map(|saved| &saved.metadata).or(like.as_ref()))?;
            }
        }
        self.done.push((path, saved));
        Ok(())
    }

    /// Keeps the changes.
    pub fn commit(mut self) {
        self.done.clear();
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        for (path, saved) in self.done.drain(..).rev() {
            let undone = match saved {
                Some(saved) => replace(&path, &saved.text, Some(&saved.metadata)),
                None => fs::remove_file(&path),
            };
            if let Err(error) = undone {
                eprintln!("hearthctl: cannot put {} back as it was: {error}", path.display());
            }
        }
    }
}

/// The file that a path names: a symbolic link stays, and the file that it names is replaced.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => match fs::symlink_metadata(path) {
            Ok(_) => Err(io::Error::other("it is a symbolic link to a file that does not exist: make that file first")),
            Err(_) => Ok(path.to_owned()),
        },
        resolved => resolved,
    }
}

fn replace(path: &Path, text: &str, like: Option<&Metadata>) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent)?;
    let mut file = tempfile::NamedTempFile::new_in(parent)?;
    file.write_all(text.as_bytes())?;
    let mode = like.map_or(NEW_MODE, |like| like.mode() & 0o7777);
    if let Some(like) = like {
        fchown(file.as_file(), Some(like.uid()), Some(like.gid()))?;
    }
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(before: Option<&str>, after: Option<&str>) -> FileChange {
        FileChange { path: PathBuf::new(), before: before.map(str::to_owned), after: after.map(str::to_owned) }
    }

    #[test]
    fn changes_that_are_not_committed_are_undone() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["changed", "removed"] {
            fs::write(path(name), "before").unwrap();
            fs::set_permissions(path(name), Permissions::from_mode(0o440)).unwrap();
        }
        let make = |transaction: &mut Transaction| {
            transaction.apply(&change(Some("before"), Some("after")), &path("changed"), None).unwrap();
            transaction.apply(&change(Some("before"), None), &path("removed"), None).unwrap();
            transaction.apply(&change(None, Some("after")), &path("made"), Some(&path("changed"))).unwrap();
        };
        let mut transaction = Transaction::default();
        make(&mut transaction);
        assert_eq!(fs::metadata(path("made")).unwrap().mode() & 0o7777, 0o440);
        drop(transaction);
        for name in ["changed", "removed"] {
            assert_eq!(fs::read_to_string(path(name)).unwrap(), "before");
            assert_eq!(fs::metadata(path(name)).unwrap().mode() & 0o7777, 0o440);
        }
        assert!(!path("made").exists());
        let mut transaction = Transaction::default();
        make(&mut transaction);
        transaction.commit();
        assert_eq!(fs::read_to_string(path("changed")).unwrap(), "after");
        assert!(!path("removed").exists() && path("made").exists());
    }

    #[test]
    fn a_link_stays_and_one_to_nothing_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("file"), directory.path().join("link"));
        std::os::unix::fs::symlink("file", &link).unwrap();
        let error = Transaction::default().apply(&change(None, Some("x")), &link, None).unwrap_err();
        assert!(error.to_string().contains("symbolic link"), "{error}");
        fs::write(&file, "before").unwrap();
        let mut transaction = Transaction::default();
        transaction.apply(&change(Some("before"), Some("after")), &link, None).unwrap();
        transaction.commit();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "after");
    }
}
