//! The share of a container's guests in the daemon's descriptors: files, directories and sockets together, of
//! preview 1, WASI 0.2 and 0.3.
//!
//! Every descriptor of a guest is one of the daemon's, which has `LimitNOFILE` of them for all containers.
//! The container's [`Tenant`] counts those of one container, [`GuestDescriptors`] those of one store.
//!
//! A component's stream keeps its file open after the file's handle is gone. So a component's files are counted until
//! the last reference to the file itself is dropped, and not until its handle is.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::sync::{Arc, Weak};

use hearth_base::tenant::{Kind, Tenant};

/// The descriptors of one store; given back when it is dropped.
#[derive(Debug)]
pub struct GuestDescriptors {
    container: Arc<Tenant>,
    /// The process' own limit (`RLIMIT_NOFILE`).
    limit: u32,
    held: u32,
    /// A component's open files, by address. A `Weak` keeps the address from being used for another file.
    files: HashMap<usize, Weak<File>>,
    /// A component's counted sockets, by their index in the resource table.
    sockets: HashSet<u32>,
}

impl GuestDescriptors {
    /// None open, of at most `limit` and of the container's.
    pub fn new(container: Arc<Tenant>, limit: u32) -> GuestDescriptors {
        GuestDescriptors { container, limit, held: 0, files: HashMap::new(), sockets: HashSet::new() }
    }

    /// Takes one, before the descriptor is made. `false`: the guest or the container has as many as it may.
    pub fn take(&mut self) -> bool {
        if self.held >= self.limit || self.container.is_full(Kind::Descriptors) {
            self.forget_closed();
        }
        let taken = self.held < self.limit && self.container.add(Kind::Descriptors, 1).is_ok();
        self.held += u32::from(taken);
        taken
    }

    /// Gives one back: a descriptor that was taken for was not made, or is closed.
    pub fn give_back(&mut self) {
        if self.held > 0 {
            self.held -= 1;
            self.container.give_back(Kind::Descriptors, 1);
        }
    }

    /// The descriptor that was taken for is this file; it counts until the file is closed.
    pub fn opened(&mut self, file: &Arc<File>) {
        self.files.insert(address(file), Arc::downgrade(file));
    }

    /// A handle of the file at `address` was dropped; the file is given back unless a stream keeps it open.
    pub fn handle_dropped(&mut self, address: usize) {
        if self.files.get(&address).is_some_and(|file| file.strong_count() == 0) {
            self.files.remove(&address);
            self.give_back();
        }
    }

    /// The descriptor that was taken for is the socket with this index.
    pub fn socket_made(&mut self, index: u32) {
        self.sockets.insert(index);
    }

    /// The socket with this index was dropped.
    pub fn socket_dropped(&mut self, index: u32) {
        if self.sockets.remove(&index) {
            self.give_back();
        }
    }

    /// Gives back the files that streams have closed since.
    fn forget_closed(&mut self) {
        let before = self.files.len();
        self.files.retain(|_, file| file.strong_count() > 0);
        for _ in self.files.len()..before {
            self.give_back();
        }
    }
}

impl Drop for GuestDescriptors {
    fn drop(&mut self) {
        self.container.give_back(Kind::Descriptors, self.held.into());
    }
}

/// The number that identifies an open file in this process, as long as a reference to it is kept.
pub fn address(file: &Arc<File>) -> usize {
    Arc::as_ptr(file) as usize
}

#[cfg(test)]
mod tests {
    use hearth_base::tenant::Limits;

    use super::*;

    fn container(limit: u64) -> Arc<Tenant> {
        Tenant::unnamed(&Limits::none().with(Kind::Descriptors, limit))
    }

    fn file() -> Arc<File> {
        Arc::new(File::open("/dev/null").unwrap())
    }

    #[test]
    fn guests_of_one_container_share_its_descriptors_and_give_them_back() {
        let container = container(3);
        let [mut init, mut exec] = [(); 2].map(|()| GuestDescriptors::new(container.clone(), 2));
        assert!(init.take() && init.take());
        assert!(!init.take(), "over the process' own limit");
        assert!(container.refused(Kind::Descriptors) == 0, "that is not the container's limit");
        assert!(exec.take());
        assert!(!exec.take(), "over the container's");
        assert!(container.refused(Kind::Descriptors) == 1);
        init.give_back();
        assert!(exec.take());
        drop(exec);
        assert_eq!(container.used(Kind::Descriptors), 1);
        drop(init);
        assert_eq!(container.used(Kind::Descriptors), 0);
    }

    #[test]
    fn a_file_counts_until_its_last_reference_is_gone() {
        let container = container(2);
        let mut guest = GuestDescriptors::new(container.clone(), 2);
        let (first, second) = (file(), file());
        for file in [&first, &second] {
            assert!(guest.take());
            guest.opened(file);
        }
        let (at, stream) = (address(&first), first.clone());
        drop(first);
        guest.handle_dropped(at);
        assert_eq!(container.used(Kind::Descriptors), 2, "a stream has it open");
        assert!(!guest.take());
        drop(stream);
        assert!(guest.take(), "the closed file is noticed when it is needed");
        let at = address(&second);
        drop(second);
        guest.handle_dropped(at);
        guest.handle_dropped(at);
        assert_eq!(container.used(Kind::Descriptors), 1);
    }

    #[test]
    fn only_counted_sockets_are_given_back() {
        let container = container(2);
        let mut guest = GuestDescriptors::new(container.clone(), 2);
        assert!(guest.take());
        guest.socket_made(7);
        guest.socket_dropped(8);
        assert_eq!(container.used(Kind::Descriptors), 1);
        guest.socket_dropped(7);
        guest.socket_dropped(7);
        assert_eq!(container.used(Kind::Descriptors), 0);
    }
}
