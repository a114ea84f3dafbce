//! Preview 1's calls with paths: wasmtime-wasi's own, with paths resolved as in [`super`].
//!
//! wasmtime-wasi's calls read the path from the guest's memory. To try again with another text, they are given a
//! scratch memory that holds that text, and what they write there is copied to the guest's memory.

use rustix::io::Errno;
use wasmtime::{AsContextMut, Caller, Extern, Linker};
use wasmtime_wasi::filesystem::WasiFilesystemView;
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::p1::types::Errno as Preview1;
use wasmtime_wasi::p1::wasi_snapshot_preview1::{self as preview1, WasiSnapshotPreview1};
use wasmtime_wasi::p2::bindings::filesystem::types::ErrorCode;
use wiggle::GuestMemory;

use super::{Route, root};
use crate::state::CoreState;
use crate::wasi::preview1::put;
use hearth_os::in_root::RootDir;

const SUCCESS: i32 = 0;
const FAULT: i32 = Preview1::Fault as i32;
const IO: i32 = Preview1::Io as i32;
const PERM: i32 = Preview1::Perm as i32;
const ROFS: i32 = Preview1::Rofs as i32;
const MFILE: i32 = Preview1::Mfile as i32;
const NOTSUP: i32 = Preview1::Notsup as i32;

/// `lookupflags`: a link at the end of the path is followed.
const SYMLINK_FOLLOW: i32 = 1;

/// `oflags`: an existing file, or a link, is an error.
const EXCLUSIVE: i32 = 4;

/// Sizes of preview 1's types, in bytes.
const FD_BYTES: usize = 4;
const PRESTAT_BYTES: usize = 8;
const FILESTAT_BYTES: usize = 64;

/// Where the type of a file is in its `filestat`, and the type that preview 1 has for a FIFO: none of its own.
const FILETYPE_AT: usize = 16;
const FILETYPE_UNKNOWN: u8 = 0;

/// Puts the calls in the place of wasmtime-wasi's own.
///
/// # Errors
/// If wasmtime-wasi has no such call: a mistake of this module.
pub fn replace(linker: &mut Linker<CoreState>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    replace_calls(linker)?;
    read_links(linker)?;
    count_closes(linker)?;
    linker.allow_shadowing(false);
    Ok(())
}

/// Counts the two calls that close files. Neither reads the guest's memory. Closing a file that the guest began with
/// counts as well: the guest may then open one more.
fn count_closes(linker: &mut Linker<CoreState>) -> wasmtime::Result<()> {
    fn closed(state: &mut CoreState, errno: i32) -> i32 {
        if errno == SUCCESS {
            state.descriptors.give_back();
        }
        errno
    }
    linker.func_wrap_async(
        "wasi_snapshot_preview1",
        "fd_close",
        |mut caller: Caller<'_, CoreState>, (fd,): (i32,)| {
            Box::new(async move {
                let state = caller.data_mut();
                let errno = preview1::fd_close(&mut state.wasi, &mut GuestMemory::Unshared(&mut []), fd).await?;
                Ok(closed(state, errno))
            })
        },
    )?;
    linker.func_wrap_async(
        "wasi_snapshot_preview1",
        "fd_renumber",
        |mut caller: Caller<'_, CoreState>, (fd, to): (i32, i32)| {
            Box::new(async move {
                let state = caller.data_mut();
                let memory = &mut GuestMemory::Unshared(&mut []);
                let errno = preview1::fd_renumber(&mut state.wasi, memory, fd, to).await?;
                Ok(if fd == to { errno } else { closed(state, errno) })
            })
        },
    )?;
    Ok(())
}

/// `name(arguments) from [each path: its directory, address, length, and whether a link at its end is
/// followed] gives [each thing the call writes: its address and bytes] changes (whether it writes to files),
/// opens (how many files, and the directory, link flags, address and length of the path, which is no FIFO's), reads
/// (another text: its address and length)`.
macro_rules! calls {
    ($linker:ident: $($name:ident($($argument:ident: $type:ty),*)
        from [$($fd:ident $path:ident $length:ident $followed:expr),*]
        gives [$($given:ident $bytes:expr),*]
        changes $changes:expr $(, opens $one:literal $at:ident $links:ident $from:ident $bytes_of_path:ident)? $(, reads $text:ident $bytes_of:ident)?;)*) => {$(
        $linker.func_wrap_async(
            "wasi_snapshot_preview1",
            stringify!($name),
            |mut caller: Caller<'_, CoreState>, ($($argument,)*): ($($type,)*)| Box::new(async move {
                let Preview1Call { state, memory } = &mut Preview1Call::of(&mut caller)?;
                $(if is_fifo(&mut state.wasi, memory, $at, $links, $from, $bytes_of_path).await? {
                    return Ok(NOTSUP);
                }
                if !(0..$one).all(|_| state.descriptors.take()) {
                    return Ok(MFILE);
                })?
                let guests = &mut GuestMemory::Unshared(&mut **memory);
                let mut errno = preview1::$name(&mut state.wasi, guests, $($argument),*).await?;
                if errno == PERM {
                    let places = [$(GuestPath::read(&mut state.wasi, memory, $fd, $path, $length, $followed)?),*];
                    let mut places: Vec<GuestPath> = places.into();
                    while errno == PERM && resolve(&mut state.wasi, &mut places, &mut errno) {
                        let mut own = ScratchMemory::default();
                        let mut texts = places.iter().map(|place| place.route.text());
                        $(let ($path, $length) = own.put(texts.next());)*
                        $(let ($text, $bytes_of) = own.copy(memory, $text, $bytes_of);)?
                        debug_assert!(texts.next().is_none(), "a path is not passed on");
                        $(let $given = own.room($given, $bytes);)*
                        let owns = &mut GuestMemory::Unshared(own.memory());
                        errno = preview1::$name(&mut state.wasi, owns, $($argument),*).await?;
                        if errno == SUCCESS {
                            errno = own.give(memory);
                        }
                    }
                }
                $(if errno != SUCCESS {
                    (0..$one).for_each(|_| state.descriptors.give_back());
                })?
                // wasmtime-wasi 48 does not know the kernel's number and says EIO (its `p1.rs`, "unknown raw
                // os error"). Without a read-only file system, `io` stays `io`.
                Ok(if $changes && errno == IO && state.partly_read_only { ROFS } else { errno })
            }),
        )?;
    )*};
}

#[rustfmt::skip]
fn replace_calls(linker: &mut Linker<CoreState>) -> wasmtime::Result<()> {
    calls! { linker:
        path_open(fd: i32, links: i32, path: i32, length: i32, how: i32, rights: i64, inherited: i64, flags: i32, opened: i32)
            from [fd path length links & SYMLINK_FOLLOW != 0 && how & EXCLUSIVE == 0] gives [opened FD_BYTES] changes true, opens 1 fd links path length;
        path_filestat_get(fd: i32, links: i32, path: i32, length: i32, status: i32)
            from [fd path length links & SYMLINK_FOLLOW != 0] gives [status FILESTAT_BYTES] changes false;
        path_filestat_set_times(fd: i32, links: i32, path: i32, length: i32, accessed: i64, modified: i64, which: i32)
            from [fd path length links & SYMLINK_FOLLOW != 0] gives [] changes true;
        path_create_directory(fd: i32, path: i32, length: i32) from [fd path length false] gives [] changes true;
        path_remove_directory(fd: i32, path: i32, length: i32) from [fd path length false] gives [] changes true;
        path_unlink_file(fd: i32, path: i32, length: i32) from [fd path length false] gives [] changes true;
        path_symlink(target: i32, target_length: i32, fd: i32, path: i32, length: i32)
            from [fd path length false] gives [] changes true, reads target target_length;
        path_rename(fd: i32, path: i32, length: i32, new_fd: i32, new: i32, new_length: i32)
            from [fd path length false, new_fd new new_length false] gives [] changes true;
        path_link(fd: i32, links: i32, path: i32, length: i32, new_fd: i32, new: i32, new_length: i32)
            from [fd path length false, new_fd new new_length false] gives [] changes true;
        fd_filestat_set_times(fd: i32, accessed: i64, modified: i64, which: i32) from [] gives [] changes true;
    }
    Ok(())
}

/// `path_readlink`, also of links that wasmtime-wasi refuses to read.
fn read_links(linker: &mut Linker<CoreState>) -> wasmtime::Result<()> {
    linker.func_wrap_async(
        "wasi_snapshot_preview1",
        "path_readlink",
        |mut caller: Caller<'_, CoreState>,
         (fd, path, length, target, room, written): (i32, i32, i32, i32, i32, i32)| {
            Box::new(async move {
                let Preview1Call { state, memory } = &mut Preview1Call::of(&mut caller)?;
                let guests = &mut GuestMemory::Unshared(memory);
                let wasi = &mut state.wasi;
                let errno = preview1::path_readlink(wasi, guests, fd, path, length, target, room, written).await?;
                if errno != PERM {
                    return Ok(errno);
                }
                let place = GuestPath::read(wasi, memory, fd, path, length, false)?;
                let Some(root) = root(&mut wasi.filesystem()).filter(|_| place.at_root && !place.route.is_absolute())
                else {
                    return Ok(PERM);
                };
                Ok(match RootDir::of(&root).read_link(place.route.text()) {
                    Ok(text) => {
                        let text = &text.as_bytes()[..text.len().min(room as u32 as usize)];
                        let length = (text.len() as u32).to_le_bytes();
                        if put(memory, target, text) && put(memory, written, &length) { SUCCESS } else { FAULT }
                    }
                    Err(error) => number(error),
                })
            })
        },
    )?;
    Ok(())
}

/// Whether a path leads to a FIFO.
async fn is_fifo(
    wasi: &mut WasiP1Ctx,
    memory: &[u8],
    fd: i32,
    links: i32,
    path: i32,
    length: i32,
) -> wasmtime::Result<bool> {
    if text_at(memory, path, length).is_none() {
        // The call itself says what is wrong.
        return Ok(false);
    }
    let mut places = [GuestPath::read(wasi, memory, fd, path, length, links & SYMLINK_FOLLOW != 0)?];
    loop {
        let mut own = ScratchMemory::default();
        let (path, length) = own.put(Some(places[0].route.text()));
        let status = own.put_room(FILESTAT_BYTES);
        let owns = &mut GuestMemory::Unshared(own.memory());
        let mut errno = preview1::path_filestat_get(wasi, owns, fd, links, path, length, status).await?;
        if errno == SUCCESS {
            let status = &own.aligned[own.start + status as usize..];
            return Ok(status[FILETYPE_AT] == FILETYPE_UNKNOWN);
        }
        if errno != PERM || !resolve(wasi, &mut places, &mut errno) {
            return Ok(false);
        }
    }
}

/// The guest's state and memory during a call.
struct Preview1Call<'a> {
    state: &'a mut CoreState,
    memory: &'a mut [u8],
}

impl<'a> Preview1Call<'a> {
    fn of(caller: &'a mut Caller<'_, CoreState>) -> wasmtime::Result<Preview1Call<'a>> {
        let Some(Extern::Memory(memory)) = caller.get_export("memory") else {
            wasmtime::bail!("missing required memory export");
        };
        let fuel = caller.as_context_mut().hostcall_fuel();
        let (memory, state) = memory.data_and_store_mut(caller);
        state.wasi.set_hostcall_fuel(fuel);
        Ok(Preview1Call { state, memory })
    }
}

/// A path, and whether it starts at the guest's `/`.
struct GuestPath {
    route: Route,
    at_root: bool,
}

impl GuestPath {
    fn read(
        wasi: &mut WasiP1Ctx,
        memory: &[u8],
        fd: i32,
        path: i32,
        length: i32,
        followed: bool,
    ) -> wasmtime::Result<GuestPath> {
        let text = text_at(memory, path, length)
            .ok_or_else(|| wasmtime::format_err!("a path that was read before cannot be read"))?;
        // `/` is the only directory that a guest begins with.
        let mut own = ScratchMemory::default();
        let prestat = own.put_room(PRESTAT_BYTES);
        let at_root = preview1::fd_prestat_get(wasi, &mut GuestMemory::Unshared(own.memory()), fd, prestat)? == SUCCESS;
        // As in the kernel, a slash at the end follows whatever the call says.
        Ok(GuestPath { route: Route::new(text.to_owned(), followed || text.ends_with('/')), at_root })
    }
}

/// Finds other texts for paths that were not permitted; `false`, with the errno to return, if there are none.
fn resolve(wasi: &mut WasiP1Ctx, places: &mut [GuestPath], errno: &mut i32) -> bool {
    let Some(root) = root(&mut wasi.filesystem()) else {
        return false;
    };
    let mut new = false;
    for place in places.iter_mut().filter(|place| place.at_root) {
        match place.route.resolve(&root) {
            Ok(found) => new |= found,
            Err(error) => {
                *errno = number(error);
                return false;
            }
        }
    }
    new
}

/// Preview 1's for the kernel's.
fn number(errno: Errno) -> i32 {
    Preview1::from(ErrorCode::from(std::io::Error::from(errno))) as i32
}

/// The text at an address of the guest's memory.
fn text_at(memory: &[u8], at: i32, length: i32) -> Option<&str> {
    slice(memory, at, length as u32 as usize).and_then(|bytes| std::str::from_utf8(bytes).ok())
}

fn slice(memory: &[u8], at: i32, length: usize) -> Option<&[u8]> {
    let at = at as u32 as usize;
    memory.get(at..at.checked_add(length)?)
}

/// A memory for one call.
#[derive(Default)]
struct ScratchMemory {
    bytes: Vec<u8>,
    /// `bytes`, at an address that suits every type of preview 1.
    aligned: Vec<u8>,
    start: usize,
    /// The results that the call writes: their address in here and in the guest's memory, and their length.
    given: Vec<(usize, i32, usize)>,
}

/// The largest alignment of a type of preview 1, in bytes.
const ALIGNMENT: usize = 8;

impl ScratchMemory {
    /// Adds a path; returns its address and length.
    fn put(&mut self, text: Option<&str>) -> (i32, i32) {
        let text = text.unwrap_or_default();
        let at = self.bytes.len();
        self.bytes.extend_from_slice(text.as_bytes());
        (at as i32, text.len() as i32)
    }

    /// Adds a copy of the bytes at `at` in the guest's memory; returns their address and length.
    fn copy(&mut self, guests: &[u8], at: i32, length: i32) -> (i32, i32) {
        let here = self.bytes.len();
        self.bytes.extend_from_slice(slice(guests, at, length as u32 as usize).unwrap_or_default());
        (here as i32, length)
    }

    /// Adds room; returns its address.
    fn put_room(&mut self, bytes: usize) -> i32 {
        let at = self.bytes.len().next_multiple_of(ALIGNMENT);
        self.bytes.resize(at + bytes, 0);
        at as i32
    }

    /// Adds room for a result that goes to `at` in the guest's memory; returns its address.
    fn room(&mut self, at: i32, bytes: usize) -> i32 {
        let here = self.put_room(bytes) as usize;
        self.given.push((here, at, bytes));
        here as i32
    }

    fn memory(&mut self) -> &mut [u8] {
        self.aligned = vec![0; self.bytes.len() + ALIGNMENT];
        self.start = self.aligned.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        let memory = &mut self.aligned[self.start..][..self.bytes.len()];
        memory.copy_from_slice(&self.bytes);
        memory
    }

    /// Copies the results to the guest's memory.
    fn give(&self, guests: &mut [u8]) -> i32 {
        for &(here, at, bytes) in &self.given {
            if !put(guests, at, &self.aligned[self.start + here..][..bytes]) {
                return FAULT;
            }
        }
        SUCCESS
    }
}
