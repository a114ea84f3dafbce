//! Files in memory: bytes that another process gets to read, or that no disk had room for.

use std::fs::File;
use std::io;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;

/// An empty file in memory that can be sealed; `name` shows up in `/proc/<pid>/fd`.
///
/// # Errors
/// If the kernel has no memory or no descriptor left.
pub fn create(name: &str) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // It is never executed by exec(2). Nodes with `vm.memfd_noexec=2` insist on saying so, kernels
    // before 6.3 do not know the word.
    match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => Ok(memfd_create(name, flags)?.into()),
        result => Ok(result?.into()),
    }
}

/// Makes the bytes of a memory file final: nobody can change them any more, through no descriptor.
///
/// # Errors
/// If somebody has mapped it to write.
pub fn seal(file: &File) -> io::Result<()> {
    Ok(fcntl_add_seals(file, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?)
}
