//! The JSON file. Its directory is checked before the run, and it appears whole or not at all.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use tempfile::NamedTempFile;

/// A file to be written at the end of a run.
pub struct JsonFile {
    file: NamedTempFile,
    path: PathBuf,
}

impl JsonFile {
    /// Makes a temporary file beside `path`.
    ///
    /// # Errors
    /// If nothing can be written there.
    pub fn at(path: &Path) -> Result<JsonFile> {
        let parent = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let mut file = tempfile::Builder::new();
        let file = file.permissions(std::fs::Permissions::from_mode(0o644)).tempfile_in(parent);
        let file = file.with_context(|| format!("cannot write to {}", parent.display()))?;
        Ok(JsonFile { file, path: path.to_owned() })
    }

    /// Writes the value and puts the file in its place, over an older one.
    ///
    /// # Errors
    /// Of the file system.
    pub fn write(mut self, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string_pretty(value)?;
        let failed = || format!("cannot write {}", self.path.display());
        self.file.write_all(text.as_bytes()).with_context(failed)?;
        self.file.write_all(b"\n").with_context(failed)?;
        self.file.persist(&self.path).with_context(failed)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.json");
        drop(JsonFile::at(&path).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        JsonFile::at(&path).unwrap().write(&[1, 2]).unwrap();
        let read: Vec<u8> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(read, [1, 2]);
        assert!(JsonFile::at(&dir.path().join("missing/out.json")).is_err());
    }
}
