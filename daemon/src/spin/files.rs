//! The files of pushed components, written into the container's root: each component has a directory there, which it
//! sees as its `/`, read-only.
//!
//! They lie in the container's own layer, so that they are counted and removed with it. All functions block.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::Path;

use flate2::read::GzDecoder;

use hearth_base::digest::Digest;
use hearth_base::error::{Error, Result};
use hearth_os::in_root::{Kind, RootDir};
use hearth_spin::application::{FileBytes, FileContent};

/// The directory of all components, in the container's root.
const DIRECTORY: &str = ".hearth/components";

/// The most bytes of all files of an application.
const BYTES_MAX: u64 = 256 << 20;

/// Entries that are read of one archive.
const ENTRIES_MAX: usize = 100_000;

/// The directory of the component at this place of its application, from the container's root.
pub fn directory_of(index: usize) -> String {
    format!("{DIRECTORY}/{index}")
}

/// The files of an application by their content, and where each of them goes.
pub type Wanted = BTreeMap<Digest, Vec<String>>;

/// The files of one component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComponentContents {
    /// Its directory, from the container's root.
    pub directory: String,
    /// Its files.
    pub files: Vec<FileContent>,
}

/// Writes the files of an application's components.
pub struct FileWriter {
    root: RootDir,
    left: u64,
}

impl FileWriter {
    /// Makes the directories of the components, and writes the files whose content the manifest itself
    /// has. Returns the others.
    ///
    /// # Errors
    /// As [`FileWriter::write`].
    pub fn begin(root: &Path, components: Vec<ComponentContents>) -> Result<(FileWriter, Wanted)> {
        let root = RootDir::open(root).map_err(|error| Error::Internal(format!("cannot open the root: {error}")))?;
        let mut writer = FileWriter { root, left: BYTES_MAX };
        let mut wanted = Wanted::new();
        for ComponentContents { directory, files } in components {
            let made = writer.root.make(Path::new(&directory), Kind::Directory);
            made.map_err(|error| Error::Internal(format!("cannot make {directory} in the root: {error}")))?;
            for file in files {
                let place = format!("{directory}/{}", file.path);
                match file.bytes {
                    FileBytes::Inline(bytes) => writer.write(&[place], &bytes)?,
                    FileBytes::Digest(digest) => wanted.entry(digest).or_default().push(place),
                }
            }
        }
        Ok((writer, wanted))
    }

    /// Writes one content to its places.
    ///
    /// # Errors
    /// `ResourceExhausted` over the limit, `InvalidArgument` for a place that a directory has, `Internal` if the disk is
    /// full.
    pub fn write(&mut self, places: &[String], bytes: &[u8]) -> Result<()> {
        for place in places {
            self.left = self.left.checked_sub(bytes.len() as u64).ok_or_else(too_large)?;
            let failed = |error: &dyn std::fmt::Display| Error::Internal(format!("cannot write {place}: {error}"));
            let made = self.root.make(Path::new(place), Kind::File).map_err(|error| failed(&error))?;
            if Kind::of(&made).map_err(|error| failed(&error))? != Kind::File {
                return Err(Error::InvalidArgument(format!("two files of the application are at {place}")));
            }
            std::fs::write(format!("/proc/self/fd/{}", made.as_raw_fd()), bytes).map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    /// Writes the files of an archive that are wanted. A file is known by its content, whatever its name is.
    ///
    /// # Errors
    /// `InvalidArgument` for a damaged archive; as [`FileWriter::write`].
    pub fn unpack(&mut self, archive: &[u8], wanted: &mut Wanted) -> Result<()> {
        let damaged = |error: io::Error| Error::InvalidArgument(format!("an archive of files is damaged: {error}"));
        let mut archive = tar::Archive::new(GzDecoder::new(archive));
        for entry in archive.entries().map_err(damaged)?.take(ENTRIES_MAX) {
            let entry = entry.map_err(damaged)?;
            if wanted.is_empty() {
                return Ok(());
            }
            if entry.header().entry_type() != tar::EntryType::Regular {
                continue;
            }
            let mut bytes = Vec::new();
            // One byte more shows a file that is too large.
            entry.take(self.left.saturating_add(1)).read_to_end(&mut bytes).map_err(damaged)?;
            if bytes.len() as u64 > self.left {
                return Err(too_large());
            }
            if let Some(places) = wanted.remove(&Digest::of(&bytes)) {
                self.write(&places, &bytes)?;
            }
        }
        Ok(())
    }
}

fn too_large() -> Error {
    Error::ResourceExhausted(format!(
        "the files of the application have more than {BYTES_MAX} bytes; put them on a volume"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spin::loaded::ConfiguredApplication;
    use hearth_spin::runtime_config::RuntimeConfig;
    use serde_json::json;
    use std::io::Write;

    fn application(files: serde_json::Value) -> Vec<ComponentContents> {
        let source = json!({"content_type": "application/wasm", "inline": "AGFzbQ=="});
        let locked = json!({
            "spin_lock_version": 1,
            "metadata": {"name": "a"},
            "triggers": [{"id": "t", "trigger_type": "http", "trigger_config": {"component": "c", "route": "/"}}],
            "components": [{"id": "unused", "source": source}, {"id": "c", "source": source, "files": files}],
        });
        let application = hearth_spin::locked::parse(locked.to_string().as_bytes()).unwrap();
        ConfiguredApplication::new(application, &[], &RuntimeConfig::default()).unwrap().contents()
    }

    fn archive(files: &[(&str, &str)]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, bytes) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            // By hand: the crate writes no name with `..`.
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_cksum();
            tar.append(&header, bytes.as_bytes()).unwrap();
        }
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&tar.into_inner().unwrap()).unwrap();
        gzip.finish().unwrap()
    }

    #[test]
    fn files_come_from_the_manifest_from_layers_and_from_archives() {
        let directory = tempfile::tempdir().unwrap();
        let digest = |text: &str| format!("sha256:{}", Digest::of(text.as_bytes()));
        let application = application(json!([
            {"path": "inline.txt", "inline": "aGk="},
            {"path": "a/layer.txt", "digest": digest("layer")},
            {"path": "b/packed.txt", "digest": digest("packed")},
            {"path": "again.txt", "digest": digest("packed")},
        ]));
        let (mut writer, mut wanted) = FileWriter::begin(directory.path(), application).unwrap();
        assert_eq!(wanted.len(), 2);
        let places = wanted.remove(&Digest::of(b"layer")).unwrap();
        writer.write(&places, b"layer").unwrap();
        writer.unpack(&archive(&[("../x", "other"), ("whatever", "packed")]), &mut wanted).unwrap();
        assert!(wanted.is_empty());
        let read =
            |path: &str| std::fs::read_to_string(directory.path().join(".hearth/components/1").join(path)).unwrap();
        let texts = ["inline.txt", "a/layer.txt", "b/packed.txt", "again.txt"].map(read);
        assert_eq!(texts, ["hi", "layer", "packed", "packed"]);
    }

    #[test]
    fn a_link_in_the_root_leads_nowhere_outside() {
        let directory = tempfile::tempdir().unwrap();
        let (root, outside) = (directory.path().join("root"), directory.path().join("outside"));
        std::fs::create_dir_all(&root).unwrap();
        std::fs::create_dir_all(&outside).unwrap();
        std::os::unix::fs::symlink("../../outside", root.join(".hearth")).unwrap();
        // In the root, the link leads to /outside, which does not exist there.
        drop(FileWriter::begin(&root, application(json!([{"path": "x", "inline": "aGk="}]))));
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_archive_and_a_place_that_is_taken_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let two = application(json!([{"path": "a/b", "inline": "aGk="}, {"path": "a", "inline": "aGk="}]));
        let error = FileWriter::begin(directory.path(), two).err().unwrap().to_string();
        assert!(error.starts_with("two files of the application are at"), "{error}");
        let (mut writer, _) = FileWriter::begin(directory.path(), application(json!([]))).unwrap();
        let mut wanted = Wanted::from([(Digest([0; 32]), vec!["x".into()])]);
        let error = writer.unpack(b"no archive", &mut wanted).unwrap_err().to_string();
        assert!(error.starts_with("an archive of files is damaged"), "{error}");
        writer.left = 3;
        assert!(matches!(writer.write(&["x".into()], b"four"), Err(Error::ResourceExhausted(_))));
    }
}
