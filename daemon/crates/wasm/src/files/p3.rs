//! `wasi:filesystem` 0.3: wasmtime-wasi's own, with paths resolved and open files counted as in [`super`].

use rustix::io::Errno;
use wasmtime::component::{Accessor, Linker, LinkerInstance, Resource, ResourceType};
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystem, WasiFilesystemView};
use wasmtime_wasi::p3::bindings::filesystem::types::{
    DescriptorFlags, DescriptorStat, DescriptorType, ErrorCode, HostDescriptorWithStore, MetadataHashValue,
    NewTimestamp, OpenFlags, PathFlags,
};
use wasmtime_wasi::p3::filesystem::FilesystemResult;

use super::PathAt;
use crate::state::ComponentState;

/// The interface whose functions are replaced.
const INTERFACE: &str = "wasi:filesystem/types@0.3.0";

/// Puts the functions with paths in the place of wasmtime-wasi's own.
///
/// # Errors
/// If wasmtime-wasi has no such interface: a mistake of this module.
pub fn replace(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut interface = linker.instance(INTERFACE)?;
    replace_calls(&mut interface)?;
    read_links(&mut interface)?;
    interface.resource("descriptor", ResourceType::host::<Descriptor>(), |mut store, index| {
        super::dropped(store.data_mut(), index)
    })?;
    linker.allow_shadowing(false);
    Ok(())
}

/// A guest's handle.
type Handle = Resource<Descriptor>;

/// `name method(handle, arguments) -> result, from [each path: a name for it, its handle, itself, and whether a
/// link at its end is followed], changes (whether it writes to files), opens (how many files, and the directory, link flags
/// and path of a file that is no FIFO)`.
macro_rules! calls {
    ($interface:ident: $($name:literal $method:ident($fd:ident $(, $argument:ident: $type:ty)*) -> $result:ty,
        from [$($place:ident $directory:ident $path:ident $followed:expr),*], changes $changes:expr
        $(, opens $opened:literal $at_fd:ident $at_links:ident $at_path:ident)?;)*) => {$(
        $interface.func_wrap_concurrent(
            concat!("[method]descriptor.", $name),
            |accessor: &Accessor<ComponentState>, ($fd, $($argument,)*): (Handle, $($type,)*)| Box::pin(async move {
                let files = accessor.with_getter::<WasiFilesystem>(WasiFilesystemView::filesystem);
                $(if is_fifo(&files, &$at_fd, $at_links, &$at_path).await? {
                    return Ok((Err(ErrorCode::Unsupported),));
                }
                if !(0..$opened).all(|_| accessor.with(|mut access| access.get().descriptors.take())) {
                    return Ok((Err(ErrorCode::Quota),));
                })?
                $(let mut $place = PathAt::new(&$directory, $path.clone(), $followed);)*
                let result = loop {
                    $(let ($directory, $path) = ($place.directory(), $place.path());)*
                    let result = WasiFilesystem::$method(&files, $fd.again(), $($argument.again(),)*).await;
                    let result: Result<$result, ErrorCode> = known(result)?;
                    if !matches!(result, Err(ErrorCode::NotPermitted)) {
                        break result;
                    }
                    match files.with(|mut access| super::resolve(&mut access.get(), &mut [$(&mut $place),*])) {
                        Ok(true) => {}
                        Ok(false) => break result,
                        Err(errno) => break Err(code(errno)),
                    }
                };
                $(opened(accessor, &result, $opened);)?
                Ok((if $changes { written(accessor, result) } else { result },))
            }),
        )?;
    )*};
}

#[rustfmt::skip]
fn replace_calls(interface: &mut LinkerInstance<'_, ComponentState>) -> wasmtime::Result<()> {
    calls! { interface:
        "open-at" open_at(fd, links: PathFlags, path: String, how: OpenFlags, flags: DescriptorFlags) -> Handle,
            from [at fd path followed(links, &path) && !how.contains(OpenFlags::EXCLUSIVE)],
            changes how.intersects(OpenFlags::CREATE | OpenFlags::TRUNCATE) || flags.contains(DescriptorFlags::WRITE),
            opens 1 fd links path;
        "stat-at" stat_at(fd, links: PathFlags, path: String) -> DescriptorStat,
            from [at fd path followed(links, &path)], changes false;
        "metadata-hash-at" metadata_hash_at(fd, links: PathFlags, path: String) -> MetadataHashValue,
            from [at fd path followed(links, &path)], changes false;
        "set-times-at" set_times_at(fd, links: PathFlags, path: String, accessed: NewTimestamp, modified: NewTimestamp) -> (),
            from [at fd path followed(links, &path)], changes true;
        "create-directory-at" create_directory_at(fd, path: String) -> (), from [at fd path false], changes true;
        "remove-directory-at" remove_directory_at(fd, path: String) -> (), from [at fd path false], changes true;
        "unlink-file-at" unlink_file_at(fd, path: String) -> (), from [at fd path false], changes true;
        "symlink-at" symlink_at(fd, target: String, path: String) -> (), from [at fd path false], changes true;
        "rename-at" rename_at(fd, path: String, new_fd: Handle, new: String) -> (),
            from [from fd path false, to new_fd new false], changes true;
        "link-at" link_at(fd, links: PathFlags, path: String, new_fd: Handle, new: String) -> (),
            from [from fd path false, to new_fd new false], changes true;
    }
    Ok(())
}

/// `readlink-at`, also of links that wasmtime-wasi refuses to read.
fn read_links(interface: &mut LinkerInstance<'_, ComponentState>) -> wasmtime::Result<()> {
    interface.func_wrap_concurrent(
        "[method]descriptor.readlink-at",
        |accessor: &Accessor<ComponentState>, (fd, path): (Handle, String)| {
            Box::pin(async move {
                let files = accessor.with_getter::<WasiFilesystem>(WasiFilesystemView::filesystem);
                let at = PathAt::new(&fd, path, false);
                let result = known(WasiFilesystem::readlink_at(&files, fd, at.path()).await)?;
                let refused = matches!(result, Err(ErrorCode::NotPermitted));
                let read = refused.then(|| files.with(|mut access| at.read_link(&mut access.get()))).flatten();
                Ok((read.map_or(result, |read| read.map_err(code)),))
            })
        },
    )
}

/// An argument that can be passed again, for another attempt.
trait Again {
    fn again(&self) -> Self;
}

impl Again for Handle {
    fn again(&self) -> Self {
        Resource::new_borrow(self.rep())
    }
}

impl Again for String {
    fn again(&self) -> Self {
        self.clone()
    }
}

macro_rules! copied_again {
    ($($type:ty),*) => {$(
        impl Again for $type {
            fn again(&self) -> Self {
                *self
            }
        }
    )*};
}

copied_again!(PathFlags, OpenFlags, DescriptorFlags, NewTimestamp);

/// Whether a file has another type than a FIFO.
fn is_known(kind: &DescriptorType) -> bool {
    !matches!(kind, DescriptorType::Fifo | DescriptorType::Other(_))
}

/// Whether a path leads to a FIFO.
async fn is_fifo(
    files: &Accessor<ComponentState, WasiFilesystem>,
    fd: &Handle,
    links: PathFlags,
    path: &str,
) -> wasmtime::Result<bool> {
    let mut at = PathAt::new(fd, path.to_owned(), followed(links, path));
    loop {
        match known(WasiFilesystem::stat_at(files, at.directory(), links, at.path()).await)? {
            // wasmtime-wasi 48 has no type of its own for a FIFO.
            Ok(stat) => return Ok(!is_known(&stat.type_)),
            Err(ErrorCode::NotPermitted) => {
                let resolved = files.with(|mut access| super::resolve(&mut access.get(), &mut [&mut at]));
                if !resolved.unwrap_or(false) {
                    return Ok(false);
                }
            }
            // The call itself says what is wrong.
            Err(_) => return Ok(false),
        }
    }
}

/// The error as the guest sees it.
///
/// # Errors
/// A trap: an error that is not for the guest.
fn known<T>(result: FilesystemResult<T>) -> wasmtime::Result<Result<T, ErrorCode>> {
    match result {
        Ok(done) => Ok(Ok(done)),
        Err(error) => error.downcast().map(Err),
    }
}

/// Counts the files that descriptors were taken for, or gives those back.
fn opened(accessor: &Accessor<ComponentState>, result: &Result<Handle, ErrorCode>, count: u32) {
    accessor.with(|mut access| {
        let state = access.get();
        match result {
            Ok(fd) => super::opened(&state.table, &mut state.descriptors, fd),
            Err(_) => (0..count).for_each(|_| state.descriptors.give_back()),
        }
    });
}

fn code(errno: Errno) -> ErrorCode {
    ErrorCode::from(std::io::Error::from(errno))
}

fn followed(flags: PathFlags, path: &str) -> bool {
    // As in the kernel, a slash at the end follows whatever the call says.
    flags.contains(PathFlags::SYMLINK_FOLLOW) || path.ends_with('/')
}

/// As in `wasi:filesystem` 0.2: where a file system is read-only, `io` is taken for `EROFS`.
fn written<T>(accessor: &Accessor<ComponentState>, result: Result<T, ErrorCode>) -> Result<T, ErrorCode> {
    match result {
        Err(ErrorCode::Io) if accessor.with(|mut access| access.get().partly_read_only) => Err(ErrorCode::ReadOnly),
        result => result,
    }
}
