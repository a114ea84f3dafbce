//! `wasi:filesystem` 0.2: wasmtime-wasi's own, with paths resolved and open files counted as in [`super`].

use std::ops::ControlFlow;

use rustix::io::Errno;
use wasmtime::component::{HasData, Linker, Resource};
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystemCtxView};
use wasmtime_wasi::p2::bindings::filesystem::types::{
    self, Advice, DescriptorFlags, DescriptorStat, DescriptorType, DirectoryEntry, DirectoryEntryStream, ErrorCode,
    Filesize, Host, HostDescriptor, HostDirectoryEntryStream, MetadataHashValue, NewTimestamp, OpenFlags, PathFlags,
};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, FsError, FsResult};

use super::PathAt;
use crate::budget::GuestDescriptors;
use crate::state::ComponentState;

/// Puts the interface in the place of wasmtime-wasi's own.
///
/// # Errors
/// If wasmtime-wasi has no such interface: a mistake of this module.
pub fn replace(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    types::add_to_linker::<ComponentState, FilesView<'static>>(linker, |state| FilesView {
        partly_read_only: state.partly_read_only,
        wasi: WasiFilesystemCtxView { ctx: state.ctx.filesystem(), table: &mut state.table },
        descriptors: &mut state.descriptors,
    })?;
    linker.allow_shadowing(false);
    Ok(())
}

/// A component's files.
struct FilesView<'a> {
    wasi: WasiFilesystemCtxView<'a>,
    /// Whether its root, or a volume in it, refuses writes.
    partly_read_only: bool,
    descriptors: &'a mut GuestDescriptors,
}

impl HasData for FilesView<'static> {
    type Data<'a> = FilesView<'a>;
}

impl FilesView<'_> {
    /// Decides whether to repeat a call that gave `result`, with the paths as they are then.
    fn after<T>(&mut self, result: FsResult<T>, places: &mut [&mut PathAt]) -> ControlFlow<FsResult<T>> {
        if !refused(&result) {
            return ControlFlow::Break(result);
        }
        match super::resolve(&mut self.wasi, places) {
            Ok(true) => ControlFlow::Continue(()),
            Ok(false) => ControlFlow::Break(result),
            Err(errno) => ControlFlow::Break(Err(code(errno).into())),
        }
    }

    /// wasmtime-wasi 48 maps the kernel's `EROFS` to `io`. Where a file system is read-only, `io` is taken for it.
    fn written<T>(&self, result: FsResult<T>) -> FsResult<T> {
        match result {
            Err(error) if self.partly_read_only && matches!(error.downcast_ref(), Some(ErrorCode::Io)) => {
                Err(ErrorCode::ReadOnly.into())
            }
            result => result,
        }
    }
}

fn refused<T>(result: &FsResult<T>) -> bool {
    result.as_ref().is_err_and(|error| matches!(error.downcast_ref(), Some(ErrorCode::NotPermitted)))
}

fn code(errno: Errno) -> ErrorCode {
    ErrorCode::from(std::io::Error::from(errno))
}

/// Repeats `$call` while [`FilesView::after`] asks for it.
macro_rules! from_root {
    ($self:ident, [$($place:ident),+], $call:expr) => {
        loop {
            let result = $call.await;
            if let ControlFlow::Break(result) = $self.after(result, &mut [$(&mut $place),+]) {
                break result;
            }
        }
    };
}

macro_rules! unchanged {
    ($(async $name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {$(
        async fn $name(&mut self, $($argument: $type),*) -> $result {
            self.wasi.$name($($argument),*).await
        }
    )*};
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {$(
        fn $name(&mut self, $($argument: $type),*) -> $result {
            self.wasi.$name($($argument),*)
        }
    )*};
}

/// A guest's handle.
type Handle = Resource<Descriptor>;

fn followed(flags: PathFlags, path: &str) -> bool {
    // As in the kernel, a slash at the end follows whatever the call says.
    flags.contains(PathFlags::SYMLINK_FOLLOW) || path.ends_with('/')
}

impl HostDescriptor for FilesView<'_> {
    unchanged! {
        async advise(fd: Handle, offset: Filesize, length: Filesize, advice: Advice) -> FsResult<()>;
        async sync_data(fd: Handle) -> FsResult<()>;
        async get_flags(fd: Handle) -> FsResult<DescriptorFlags>;
        async get_type(fd: Handle) -> FsResult<DescriptorType>;
        async set_size(fd: Handle, size: Filesize) -> FsResult<()>;
        async read(fd: Handle, length: Filesize, offset: Filesize) -> FsResult<(Vec<u8>, bool)>;
        async write(fd: Handle, bytes: Vec<u8>, offset: Filesize) -> FsResult<Filesize>;
        async read_directory(fd: Handle) -> FsResult<Resource<DirectoryEntryStream>>;
        async sync(fd: Handle) -> FsResult<()>;
        async stat(fd: Handle) -> FsResult<DescriptorStat>;
        async is_same_object(one: Handle, other: Handle) -> wasmtime::Result<bool>;
        async metadata_hash(fd: Handle) -> FsResult<MetadataHashValue>;
    }

    unchanged! {
        read_via_stream(fd: Handle, offset: Filesize) -> FsResult<Resource<DynInputStream>>;
        write_via_stream(fd: Handle, offset: Filesize) -> FsResult<Resource<DynOutputStream>>;
        append_via_stream(fd: Handle) -> FsResult<Resource<DynOutputStream>>;
    }

    fn drop(&mut self, fd: Handle) -> wasmtime::Result<()> {
        let address = super::address_of(self.wasi.table, &fd);
        HostDescriptor::drop(&mut self.wasi, fd)?;
        if let Some(address) = address {
            self.descriptors.handle_dropped(address);
        }
        Ok(())
    }

    async fn set_times(&mut self, fd: Handle, accessed: NewTimestamp, modified: NewTimestamp) -> FsResult<()> {
        let result = self.wasi.set_times(fd, accessed, modified).await;
        self.written(result)
    }

    async fn create_directory_at(&mut self, fd: Handle, path: String) -> FsResult<()> {
        let mut at = PathAt::new(&fd, path, false);
        let result = from_root!(self, [at], self.wasi.create_directory_at(at.directory(), at.path()));
        self.written(result)
    }

    async fn stat_at(&mut self, fd: Handle, links: PathFlags, path: String) -> FsResult<DescriptorStat> {
        let follow = followed(links, &path);
        let mut at = PathAt::new(&fd, path, follow);
        from_root!(self, [at], self.wasi.stat_at(at.directory(), links, at.path()))
    }

    async fn set_times_at(
        &mut self,
        fd: Handle,
        links: PathFlags,
        path: String,
        accessed: NewTimestamp,
        modified: NewTimestamp,
    ) -> FsResult<()> {
        let follow = followed(links, &path);
        let mut at = PathAt::new(&fd, path, follow);
        let result =
            from_root!(self, [at], self.wasi.set_times_at(at.directory(), links, at.path(), accessed, modified));
        self.written(result)
    }

    async fn link_at(
        &mut self,
        fd: Handle,
        links: PathFlags,
        path: String,
        new_fd: Handle,
        new: String,
    ) -> FsResult<()> {
        let (mut from, mut to) = (PathAt::new(&fd, path, false), PathAt::new(&new_fd, new, false));
        let result = from_root!(
            self,
            [from, to],
            self.wasi.link_at(from.directory(), links, from.path(), to.directory(), to.path())
        );
        self.written(result)
    }

    async fn open_at(
        &mut self,
        fd: Handle,
        links: PathFlags,
        path: String,
        how: OpenFlags,
        flags: DescriptorFlags,
    ) -> FsResult<Handle> {
        let mut at = PathAt::new(&fd, path.clone(), followed(links, &path));
        let stat = from_root!(self, [at], self.wasi.stat_at(at.directory(), links, at.path()));
        // wasmtime-wasi 48 has no type of its own for a FIFO (its `filesystem.rs`).
        if matches!(stat, Ok(DescriptorStat { type_: DescriptorType::Fifo | DescriptorType::Unknown, .. })) {
            return Err(super::IS_FIFO.into());
        }
        if !self.descriptors.take() {
            return Err(super::TOO_MANY.into());
        }
        // As with O_EXCL, a new file is no link.
        let follow = followed(links, &path) && !how.contains(OpenFlags::EXCLUSIVE);
        let writes = how.intersects(OpenFlags::CREATE | OpenFlags::TRUNCATE) || flags.contains(DescriptorFlags::WRITE);
        let mut at = PathAt::new(&fd, path, follow);
        let result = from_root!(self, [at], self.wasi.open_at(at.directory(), links, at.path(), how, flags));
        match &result {
            Ok(fd) => super::opened(self.wasi.table, self.descriptors, fd),
            Err(_) => self.descriptors.give_back(),
        }
        if writes { self.written(result) } else { result }
    }

    async fn readlink_at(&mut self, fd: Handle, path: String) -> FsResult<String> {
        let at = PathAt::new(&fd, path, false);
        let result = self.wasi.readlink_at(fd, at.path()).await;
        match refused(&result).then(|| at.read_link(&mut self.wasi)).flatten() {
            Some(read) => read.map_err(|errno| code(errno).into()),
            None => result,
        }
    }

    async fn remove_directory_at(&mut self, fd: Handle, path: String) -> FsResult<()> {
        let mut at = PathAt::new(&fd, path, false);
        let result = from_root!(self, [at], self.wasi.remove_directory_at(at.directory(), at.path()));
        self.written(result)
    }

    async fn rename_at(&mut self, fd: Handle, path: String, new_fd: Handle, new: String) -> FsResult<()> {
        let (mut from, mut to) = (PathAt::new(&fd, path, false), PathAt::new(&new_fd, new, false));
        let result =
            from_root!(self, [from, to], self.wasi.rename_at(from.directory(), from.path(), to.directory(), to.path()));
        self.written(result)
    }

    async fn symlink_at(&mut self, fd: Handle, target: String, path: String) -> FsResult<()> {
        let mut at = PathAt::new(&fd, path, false);
        let result = from_root!(self, [at], self.wasi.symlink_at(at.directory(), target.clone(), at.path()));
        self.written(result)
    }

    async fn unlink_file_at(&mut self, fd: Handle, path: String) -> FsResult<()> {
        let mut at = PathAt::new(&fd, path, false);
        let result = from_root!(self, [at], self.wasi.unlink_file_at(at.directory(), at.path()));
        self.written(result)
    }

    async fn metadata_hash_at(&mut self, fd: Handle, links: PathFlags, path: String) -> FsResult<MetadataHashValue> {
        let follow = followed(links, &path);
        let mut at = PathAt::new(&fd, path, follow);
        from_root!(self, [at], self.wasi.metadata_hash_at(at.directory(), links, at.path()))
    }
}

impl HostDirectoryEntryStream for FilesView<'_> {
    unchanged! {
        async read_directory_entry(stream: Resource<DirectoryEntryStream>) -> FsResult<Option<DirectoryEntry>>;
    }

    fn drop(&mut self, stream: Resource<DirectoryEntryStream>) -> wasmtime::Result<()> {
        HostDirectoryEntryStream::drop(&mut self.wasi, stream)
    }
}

impl Host for FilesView<'_> {
    fn convert_error_code(&mut self, error: FsError) -> wasmtime::Result<ErrorCode> {
        self.wasi.convert_error_code(error)
    }

    fn filesystem_error_code(&mut self, error: Resource<wasmtime::Error>) -> wasmtime::Result<Option<ErrorCode>> {
        let read_only = |error: &wasmtime::Error| {
            let of_os = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
            of_os == Some(Errno::ROFS.raw_os_error())
        };
        if read_only(self.wasi.table.get(&error)?) {
            return Ok(Some(ErrorCode::ReadOnly));
        }
        self.wasi.filesystem_error_code(error)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use hearth_base::tenant::{Kind, Limits, Tenant};
    use wasmtime::component::ResourceTable;
    use wasmtime_wasi::p2::bindings::filesystem::preopens::Host as _;
    use wasmtime_wasi::{FsPerms, WasiCtx};

    use super::*;

    #[tokio::test]
    async fn a_component_has_as_many_files_open_as_its_container_may_with_those_of_its_streams() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), "x").unwrap();
        fs::create_dir(root.path().join("directory")).unwrap();
        hearth_testing::make_fifo(root.path(), "fifo");
        let mut builder = WasiCtx::builder();
        builder.allow_blocking_current_thread(true).preopened_dir(root.path(), "/", FsPerms::ReadWrite).unwrap();
        let (mut ctx, mut table) = (builder.build(), ResourceTable::new());
        let container = Tenant::unnamed(&Limits::none().with(Kind::Descriptors, 2));
        let mut descriptors = GuestDescriptors::new(container.clone(), 100);
        let mut files = FilesView {
            wasi: WasiFilesystemCtxView { ctx: ctx.filesystem(), table: &mut table },
            partly_read_only: false,
            descriptors: &mut descriptors,
        };
        let (slash, _) = files.wasi.get_directories().unwrap().pop().unwrap();
        let slash = || Resource::new_borrow(slash.rep());
        let is_limit = |result: FsResult<Handle>| matches!(result.unwrap_err().downcast(), Ok(ErrorCode::Quota));
        macro_rules! open {
            ($name:literal, $how:expr) => {
                files.open_at(slash(), PathFlags::empty(), $name.into(), $how, DescriptorFlags::READ).await
            };
        }
        let file = open!("file", OpenFlags::empty()).unwrap();
        let directory = open!("directory", OpenFlags::DIRECTORY).unwrap();
        assert_eq!(container.used(Kind::Descriptors), 2);
        assert!(is_limit(open!("file", OpenFlags::empty())));
        let fifo = open!("fifo", OpenFlags::empty());
        let is_refused = matches!(fifo.unwrap_err().downcast(), Ok(ErrorCode::Unsupported));
        assert!(is_refused, "opening it would wait for a writer");
        HostDescriptor::drop(&mut files, directory).unwrap();
        assert!(!is_limit(open!("nothing", OpenFlags::empty())), "what is not there is not there");
        assert_eq!(container.used(Kind::Descriptors), 1);

        let stream = files.read_via_stream(Resource::new_borrow(file.rep()), 0).unwrap();
        HostDescriptor::drop(&mut files, file).unwrap();
        assert_eq!(container.used(Kind::Descriptors), 1, "the stream has the file open");
        let other = open!("file", OpenFlags::empty()).unwrap();
        assert!(is_limit(open!("file", OpenFlags::empty())));
        files.wasi.table.delete(stream).unwrap();
        let third = open!("file", OpenFlags::empty()).unwrap();
        assert_eq!(container.used(Kind::Descriptors), 2);
        HostDescriptor::drop(&mut files, Resource::new_own(slash().rep())).unwrap();
        assert_eq!(container.used(Kind::Descriptors), 2, "the root is not the guest's own");
        for fd in [other, third] {
            HostDescriptor::drop(&mut files, fd).unwrap();
        }
        assert_eq!(container.used(Kind::Descriptors), 0);
    }
}
