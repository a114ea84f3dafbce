//! Reads a module's bytes: hashes them, and copies them into memory for the compiler.
//!
//! Bytes are hashed in one pass without being kept; only a compile reads them again, into a sealed
//! memory file, and checks that they still hash to the same.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::engine::ModuleKind;
use crate::modules::identify::{FileIdentity, HEAD_BYTES, identify};
use crate::modules::lookup::ProgramFile;
use hearth_base::digest::Digest;
use hearth_base::error::{Error, Result};
use hearth_os::memfd;

/// How much is read at a time, in bytes: it stays in a core's own cache while it is hashed.
const CHUNK_BYTES: usize = 128 << 10;

/// WebAssembly bytes to run.
#[derive(Debug)]
pub enum Origin {
    /// A file found in a root.
    File(ProgramFile),
    /// A layer of an OCI Wasm artifact.
    Layer {
        /// Its name in messages, for example the image's.
        name: String,
        /// The digest in the image's manifest.
        digest: Digest,
        /// The bytes.
        bytes: Bytes,
        /// The export to call, if the program's name had one.
        export: Option<Arc<str>>,
    },
}

/// The result of reading a module once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scanned {
    /// Its digest.
    pub digest: Digest,
    /// Its kind.
    pub kind: ModuleKind,
    /// How many bytes it has.
    pub bytes: u64,
}

impl Origin {
    /// Its name in messages.
    pub fn name(&self) -> &str {
        match self {
            Origin::File(found) => &found.path,
            Origin::Layer { name, .. } => name,
        }
    }

    /// How many bytes it has. Blocks.
    ///
    /// # Errors
    /// `Internal` if its file cannot be looked at.
    pub fn length(&self) -> Result<u64> {
        match self {
            Origin::File(ProgramFile { file, .. }) => {
                let metadata = file.metadata();
                metadata.map(|of| of.len()).map_err(|e| Error::Internal(format!("cannot read it: {e}")))
            }
            Origin::Layer { bytes, .. } => Ok(bytes.len() as u64),
        }
    }

    /// Reads and hashes all bytes; refuses a file whose first bytes are not WebAssembly. Blocks.
    ///
    /// Messages begin with "it": the caller puts the origin's name before them.
    ///
    /// # Errors
    /// `InvalidArgument` if it is not WebAssembly or does not hash to what was promised,
    /// `ResourceExhausted` over `bytes_max`.
    pub fn scan(&self, bytes_max: u64) -> Result<Scanned> {
        self.scan_with(bytes_max, |_| Ok(()))
    }

    fn scan_with(&self, bytes_max: u64, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<Scanned> {
        let mut head = Vec::with_capacity(HEAD_BYTES);
        let mut hasher = Sha256::new();
        let mut kind = None;
        let mut bytes = 0;
        self.read(bytes_max, |chunk| {
            hasher.update(chunk);
            bytes += chunk.len() as u64;
            if kind.is_none() {
                head.extend_from_slice(&chunk[..chunk.len().min(HEAD_BYTES - head.len())]);
                if head.len() == HEAD_BYTES {
                    kind = Some(self.kind(&head)?);
                }
            }
            take(chunk)
        })?;
        let kind = kind.map_or_else(|| self.kind(&head), Ok)?;
        let digest = Digest(hasher.finalize().into());
        if let Origin::Layer { digest: promised, .. } = self
            && digest != *promised
        {
            return Err(Error::InvalidArgument(format!(
                "the layer hashes to {digest:?}, its manifest says {promised:?}: pull the image again"
            )));
        }
        Ok(Scanned { digest, kind, bytes })
    }

    /// The bytes in a sealed memory file, for the compiler, and their kind. Blocks.
    ///
    /// # Errors
    /// `Unavailable` if they do not hash to `digest`: an error of any other kind would be believed of
    /// all bytes that do. `Internal` if they cannot be read, or there is no memory for them.
    pub fn to_memory(&self, digest: Digest, bytes_max: u64) -> Result<(File, ModuleKind)> {
        let failed = |e: std::io::Error| Error::Internal(format!("cannot copy it into memory: {e}"));
        let changed = || {
            Error::Unavailable("it changed while it was being read: start it again when no process writes to it".into())
        };
        let memory = memfd::create("hearth-wasm").map_err(failed)?;
        let mut at = 0;
        let scanned = self.scan_with(bytes_max, |chunk| {
            memory.write_all_at(chunk, at).map_err(failed)?;
            at += chunk.len() as u64;
            Ok(())
        });
        let scanned = match scanned {
            Err(Error::InvalidArgument(_) | Error::Native(_) | Error::ResourceExhausted(_)) => return Err(changed()),
            scanned => scanned?,
        };
        if digest != scanned.digest {
            return Err(changed());
        }
        memfd::seal(&memory).map_err(failed)?;
        Ok((memory, scanned.kind))
    }

    fn kind(&self, head: &[u8]) -> Result<ModuleKind> {
        match identify(head) {
            FileIdentity::Wasm(kind) => Ok(kind),
            FileIdentity::NotWasm(other) => Err(other.error()),
        }
    }

    fn read(&self, bytes_max: u64, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let too_large = || {
            Error::ResourceExhausted(format!(
                "it is larger than {bytes_max} bytes: build it smaller or raise modules.module_bytes_max"
            ))
        };
        match self {
            Origin::Layer { bytes, .. } if bytes.len() as u64 > bytes_max => Err(too_large()),
            Origin::Layer { bytes, .. } => bytes.chunks(CHUNK_BYTES).try_for_each(take),
            Origin::File(ProgramFile { file, .. }) => {
                let failed = |e: std::io::Error| Error::Internal(format!("cannot read it: {e}"));
                if file.metadata().map_err(failed)?.len() > bytes_max {
                    return Err(too_large());
                }
                let mut read = 0;
                each_chunk(file, failed, |chunk| {
                    // It may have grown since.
                    read += chunk.len() as u64;
                    if read > bytes_max { Err(too_large()) } else { take(chunk) }
                })
            }
        }
    }
}

/// Hands all of `file`, from its start, to `take` in chunks. Blocks.
///
/// # Errors
/// Those of reading, as `failed` makes them, and those of `take`.
pub fn each_chunk<E>(
    file: &File,
    failed: impl Fn(std::io::Error) -> E,
    mut take: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut at = 0;
    loop {
        match file.read_at(&mut chunk, at) {
            Ok(0) => return Ok(()),
            Ok(read) => {
                at += read as u64;
                take(&chunk[..read])?;
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(failed(e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    const MODULE: &[u8] = b"\0asm\x01\0\0\0";

    fn file(bytes: &[u8]) -> Origin {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, bytes).unwrap();
        Origin::File(ProgramFile {
            file,
            path: "/app.wasm".into(),
            export: Some(Arc::from("run")),
            on_root_mount: true,
        })
    }

    fn layer(bytes: &'static [u8], digest: Digest) -> Origin {
        Origin::Layer { name: "image:1".into(), digest, bytes: Bytes::from_static(bytes), export: None }
    }

    #[test]
    fn a_digest_has_one_written_form() {
        let digest = Digest::of(b"");
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest.to_string(), hex);
        assert_eq!(Digest::parse(hex), Some(digest));
        assert_eq!(Digest::parse(&format!("sha256:{hex}")), Some(digest));
        assert_eq!(Digest::parse(&hex.to_uppercase()), None);
        assert_eq!(Digest::parse(&hex[1..]), None);
        assert_eq!(Digest::parse("../../etc/passwd"), None);
    }

    #[test]
    fn scanning_hashes_everything_and_tells_the_kind() {
        let mut large = b"\0asm\x0d\0\x01\0".to_vec();
        large.resize(3 * CHUNK_BYTES + 17, 0xaa);
        let scanned = file(&large).scan(u64::MAX).unwrap();
        assert_eq!(
            scanned,
            Scanned { digest: Digest::of(&large), kind: ModuleKind::Component, bytes: large.len() as u64 }
        );
        let scanned = layer(MODULE, Digest::of(MODULE)).scan(8).unwrap();
        assert_eq!(scanned, Scanned { digest: Digest::of(MODULE), kind: ModuleKind::Core, bytes: MODULE.len() as u64 });
    }

    #[test]
    fn what_is_too_large_not_wasm_or_not_as_promised_is_refused() {
        let text = |origin: Origin, max| origin.scan(max).unwrap_err();
        for origin in [file(MODULE), layer(MODULE, Digest::of(MODULE))] {
            let Error::ResourceExhausted(text) = text(origin, 7) else { panic!() };
            assert!(text.contains("larger than 7 bytes") && text.contains("modules.module_bytes_max"), "{text}");
        }
        let Error::InvalidArgument(empty) = text(file(b""), 8) else { panic!() };
        assert!(empty.starts_with("it is an empty file"), "{empty}");
        let Error::InvalidArgument(other) = text(layer(MODULE, Digest([7; 32])), 8) else { panic!() };
        assert!(other.starts_with("the layer hashes to sha256:93a44b") && other.contains("sha256:0707"), "{other}");
    }

    #[test]
    fn the_compiler_gets_the_bytes_that_were_hashed_or_none() {
        let origin = file(MODULE);
        let (mut memory, kind) = origin.to_memory(Digest::of(MODULE), 8).unwrap();
        assert_eq!(kind, ModuleKind::Core);
        let mut bytes = Vec::new();
        memory.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, MODULE);
        assert!(memory.set_len(0).is_err(), "the copy can still be changed");
        let Origin::File(found) = &origin else { unreachable!() };
        found.file.write_all_at(b"\x0d\0\x01", 4).unwrap();
        let is_changed = || matches!(origin.to_memory(Digest::of(MODULE), 8), Err(Error::Unavailable(_)));
        assert!(is_changed());
        found.file.write_all_at(b"#!", 0).unwrap();
        assert!(is_changed(), "that it is a script now says nothing about the module");
        found.file.set_len(9).unwrap();
        assert!(is_changed());
    }
}
