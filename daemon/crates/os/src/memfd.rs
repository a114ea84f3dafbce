//! Files in memory: bytes for another process to read, or bytes for which the disk had no room.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use memmap2::Mmap;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use rustix::io::Errno;

/// Makes an empty file in memory that can be sealed; `/proc/<pid>/fd` shows `name`.
///
/// # Errors
/// The kernel has no memory or no descriptor left.
pub fn create(name: &str) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // exec(2) never executes it. Nodes with `vm.memfd_noexec=2` require the flag; kernels before 6.3 do not have it.
    match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => Ok(memfd_create(name, flags)?.into()),
        result => Ok(result?.into()),
    }
}

/// Makes the bytes of a memory file final: no descriptor can change them any more.
///
/// # Errors
/// A process has a writable mapping of the file.
pub fn seal(file: &File) -> io::Result<()> {
    Ok(fcntl_add_seals(file, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?)
}

/// The bytes of a sealed memory file, mapped: no copy of them is made.
///
/// Only files that cannot change are mapped. A file of an image or a volume can be changed by a guest that can write to
/// it: another length under a mapping is a SIGBUS for the process that reads it, and other bytes break Rust's promise
/// about `&[u8]`. Such files are copied into memory files first.
///
/// # Errors
/// `InvalidInput` if the file is not sealed against writing and shrinking; those of mmap(2).
#[allow(unsafe_code, reason = "mapping is what this function is for; the seals are checked")]
pub fn map(file: impl AsFd) -> io::Result<Mmap> {
    let file = file.as_fd();
    // Other files have no seals at all, which is an error of its own.
    let seals = fcntl_get_seals(file)?;
    if !seals.contains(SealFlags::WRITE | SealFlags::SHRINK) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the file is not sealed"));
    }
    // SAFETY: no process can write to the file or shorten it any more, so the mapping's bytes stay as they are and there.
    unsafe { Mmap::map(file.as_raw_fd()) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn only_a_file_that_cannot_change_is_mapped() {
        let mut file = create("test").unwrap();
        file.write_all(b"bytes").unwrap();
        assert_eq!(map(&file).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert!(map(tempfile::tempfile().unwrap()).is_err(), "a file of a disk has no seals");
        seal(&file).unwrap();
        assert_eq!(&*map(&file).unwrap(), b"bytes");
        assert!(file.write_all(b"x").is_err() && file.set_len(0).is_err());
    }
}
