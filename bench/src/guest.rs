//! The Wasm guest that is started.
//!
//! Its first act is visible from outside: it writes one byte to stdout, then ends. Failure path: a byte that cannot be
//! written becomes the exit status, and the run is aborted with it.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};

/// The file name of the module in a root file system; a spec's `args[0]` is `/` and this.
pub const FILE_NAME: &str = "hello.wasm";

/// A WASI preview 1 command. Nothing comes before the call that writes the byte.
const HELLO: &str = r#"
(module
  (import "wasi_snapshot_preview1" "fd_write"
    (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 1)
  ;; One iovec at 0: the byte at 8, of length 1.
  (data (i32.const 0) "\08\00\00\00\01\00\00\00!")
  (func (export "_start") (local $errno i32)
    (local.set $errno
      (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16)))
    (if (local.get $errno) (then (call $proc_exit (local.get $errno))))))
"#;

/// The same, but it sleeps longer than any measurement.
const IDLE: &str = r#"
(module
  (import "wasi_snapshot_preview1" "fd_write"
    (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff"
    (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\08\00\00\00\01\00\00\00!")
  ;; A subscription at 32: user data 0, the clock (0), monotonic (1), a day from now.
  (data (i32.const 48) "\01\00\00\00\00\00\00\00\00\00\4f\91\94\4e\00\00")
  (func (export "_start")
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16)))
    (loop $again
      (drop (call $poll_oneoff (i32.const 32) (i32.const 96) (i32.const 1) (i32.const 20)))
      (br $again))))
"#;

/// The same, but it computes for ever.
const SPIN: &str = r#"
(module
  (memory (export "memory") 1)
  (func (export "_start") (loop $again (br $again))))
"#;

/// The four bytes that modules and components begin with.
const MAGIC: &[u8] = b"\0asm";

/// The guest's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module(Vec<u8>);

impl Module {
    /// The module of this program.
    ///
    /// # Errors
    /// None in practice: the text is constant, and tested.
    pub fn hello() -> Result<Module> {
        wat::parse_str(HELLO).map(Module).context("the bench's own module does not assemble")
    }

    /// A module that sleeps.
    ///
    /// # Errors
    /// As [`Module::hello`].
    pub fn idle() -> Result<Module> {
        wat::parse_str(IDLE).map(Module).context("the bench's own module does not assemble")
    }

    /// A module that computes.
    ///
    /// # Errors
    /// As [`Module::hello`].
    pub fn spin() -> Result<Module> {
        wat::parse_str(SPIN).map(Module).context("the bench's own module does not assemble")
    }

    /// A module or component from a file. To be started again and again, it must write to stdout first thing and
    /// then end with status 0.
    ///
    /// # Errors
    /// If the file cannot be read or is no Wasm binary.
    pub fn read(path: &Path) -> Result<Module> {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read module {}", path.display()))?;
        ensure!(bytes.starts_with(MAGIC), "{} is no Wasm binary", path.display());
        Ok(Module(bytes))
    }

    /// The same program with other bytes: a custom section with a number that no module of this process had before.
    /// Every cache by content misses on it.
    pub fn never_seen(&self) -> Module {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        const NAME: &[u8] = b"hearth-bench";
        let mut content = vec![NAME.len() as u8];
        content.extend_from_slice(NAME);
        content.extend_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        let mut bytes = self.0.clone();
        // A custom section: id 0 and the length, which one LEB128 byte holds.
        bytes.extend_from_slice(&[0, content.len() as u8]);
        bytes.extend_from_slice(&content);
        Module(bytes)
    }

    /// The binary.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_assembles_and_stays_within_a_page() {
        let module = Module::hello().unwrap();
        assert!(module.bytes().starts_with(MAGIC));
        assert!(module.bytes().len() < 4096);
    }

    #[test]
    fn a_module_never_seen_differs_from_all_others_only_behind_the_program() {
        let module = Module::hello().unwrap();
        let (one, other) = (module.never_seen(), module.never_seen());
        assert_ne!(one, other);
        let length = module.bytes().len();
        assert_eq!(&one.bytes()[..length], module.bytes());
        // Section id, then the length of all that follows it.
        assert_eq!(one.bytes()[length], 0);
        assert_eq!(usize::from(one.bytes()[length + 1]), one.bytes().len() - length - 2);
    }

    #[test]
    fn a_file_that_is_not_wasm_is_refused() {
        let error = Module::read(Path::new("/proc/self/status")).unwrap_err();
        assert!(error.to_string().contains("no Wasm binary"), "{error}");
    }
}
